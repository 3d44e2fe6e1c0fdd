/* tests/world/script.h - one script for two actors, to be run in the real world and in the
 * simulated one: what they may observe is written down once. */
#ifndef TESTS_WORLD_SCRIPT_H
#define TESTS_WORLD_SCRIPT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/actor.h"

/* A connects (DEALER), B binds (ROUTER). */
typedef enum { ACTOR_A, ACTOR_B, ACTORS } who_t;
static const address_t script_addresses[ACTORS] = { { ROLE_ingress, 0 }, { ROLE_prefill_lb, 0 } };

enum { SEEN_MAX = 1 << 18, LIVES_MAX = 8, SCRIPT_MARK = 4096, TRACE_BYTES = 8192 };

typedef enum { SEEN_START, SEEN_UP, SEEN_DOWN, SEEN_HEARD } seen_kind_t;

typedef struct {
    seen_kind_t kind;
    uint64_t number; /* epoch of SEEN_UP and SEEN_DOWN, what was said of SEEN_HEARD */
} seen_t;

/* What one actor saw in all its lives, in order; may lie in memory that processes share. */
typedef struct {
    _Atomic uint32_t count;
    _Atomic uint32_t lives;
    _Atomic uint32_t heard;
    _Atomic uint32_t ups;
    _Atomic uint32_t downs;
    seen_t items[SEEN_MAX];
} seen_list_t;

/* What each world must be able to do.  Waits end with false after long. */
typedef struct {
    void *context;
    seen_list_t *seen[ACTORS];
    void (*start)(void *context, who_t who);
    void (*kill)(void *context, who_t who);
    void (*pause)(void *context, who_t who, bool is_paused);
    /* who says first, first + 1, ... to an address, until it is refused; *accepted is how many were
     * not. */
    err_t (*say)(void *context, who_t who, address_t to, uint64_t first, uint32_t count,
                 uint32_t *accepted);
    bool (*wait)(void *context, const _Atomic uint32_t *counter, uint32_t least);
} script_world_t;

static inline void script_see(seen_list_t *list, seen_kind_t kind, uint64_t number)
{
    uint32_t at = atomic_load(&list->count);
    if (at < SEEN_MAX) list->items[at] = (seen_t){ kind, number };
    atomic_store(&list->count, at + 1);
    if (kind == SEEN_START) atomic_fetch_add(&list->lives, 1);
    if (kind == SEEN_UP) atomic_fetch_add(&list->ups, 1);
    if (kind == SEEN_DOWN) atomic_fetch_add(&list->downs, 1);
    if (kind == SEEN_HEARD) atomic_fetch_add(&list->heard, 1);
}

/* An actor's handler for everything that the script is about. */
static inline void script_on_message(seen_list_t *list, const msg_t *m)
{
    if (m->type == MSG_peer_up) script_see(list, SEEN_UP, m->peer_up.peer_epoch);
    if (m->type == MSG_peer_down) script_see(list, SEEN_DOWN, m->peer_down.peer_epoch);
    if (m->type == MSG_cancel) script_see(list, SEEN_HEARD, m->header.request.lo);
}

static inline void script_message(msg_t *m, uint64_t number)
{
    msg_init(m, MSG_cancel);
    m->header.request.lo = number;
}

/* ---- the script ---- */

typedef struct {
    char text[TRACE_BYTES];
    size_t size;
} trace_t;

static inline void trace_add(trace_t *self, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int size = vsnprintf(self->text + self->size, TRACE_BYTES - self->size, format, args);
    va_end(args);
    assert_true(size >= 0 && (size_t)size < TRACE_BYTES - self->size);
    self->size += (size_t)size;
}

static inline void say(const script_world_t *world, trace_t *trace, who_t who, uint64_t first,
                       uint32_t count)
{
    uint32_t accepted = 0;
    err_t error =
        world->say(world->context, who, script_addresses[1 - who], first, count, &accepted);
    trace_add(trace, "%c says %u: %s\n", "AB"[who], accepted, error_descs[error].name);
}

static inline void say_to(const script_world_t *world, trace_t *trace, address_t to)
{
    uint32_t accepted = 0;
    err_t error = world->say(world->context, ACTOR_A, to, 0, 1, &accepted);
    trace_add(trace, "A says to %s.%u: %s\n", role_names[to.role], to.index,
              error_descs[error].name);
}

static inline void wait_for(const script_world_t *world, const _Atomic uint32_t *counter,
                            uint32_t least)
{
    assert_true(world->wait(world->context, counter, least));
}

/* Epochs differ between the worlds; the order of lives does not. */
static inline uint32_t life_of(uint64_t lives[LIVES_MAX], uint64_t epoch)
{
    for (uint32_t i = 0; i < LIVES_MAX; i++) {
        if (lives[i] == 0) lives[i] = epoch;
        if (lives[i] == epoch) return i + 1;
    }
    return LIVES_MAX + 1;
}

/* What one actor saw, with runs of numbers drawn together. */
static inline void trace_seen(trace_t *trace, who_t who, const seen_list_t *list)
{
    uint64_t lives[LIVES_MAX] = { 0 };
    uint32_t count = atomic_load(&list->count);
    for (uint32_t i = 0; i < count; i++) {
        const seen_t *seen = &list->items[i];
        uint32_t run = i;
        char other = "AB"[1 - who];
        switch (seen->kind) {
        case SEEN_START:
            trace_add(trace, "%c begins\n", "AB"[who]);
            break;
        case SEEN_UP:
        case SEEN_DOWN:
            trace_add(trace, "%c: %c.%u %s\n", "AB"[who], other, life_of(lives, seen->number),
                      seen -> kind == SEEN_UP ? "up" : "down");
            break;
        case SEEN_HEARD:
            while (run + 1 < count && list->items[run + 1].kind == SEEN_HEARD &&
                   list->items[run + 1].number == list->items[run].number + 1)
                run++;
            trace_add(trace, "%c heard %u from %llu on\n", "AB"[who], run - i + 1,
                      (unsigned long long)seen->number);
            i = run;
            break;
        }
    }
}

/* A peer that stands still: past the high-water mark the sender is refused, and what was accepted
 * arrives. */
static inline void script_pressure(const script_world_t *world, trace_t *trace)
{
    const seen_list_t *b = world->seen[ACTOR_B];
    uint32_t heard = atomic_load(&b->heard), accepted = 0, all = 0;
    err_t error = ERR_OK;
    world->pause(world->context, ACTOR_B, true);
    while (error == ERR_OK && all < SEEN_MAX / 2) {
        error =
            world->say(world->context, ACTOR_A, script_addresses[ACTOR_B], all, 1000, &accepted);
        all += accepted;
    }
    trace_add(trace, "A says to B that stands still: %s, %s\n", error_descs[error].name,
              all >= SCRIPT_MARK ? "not below the mark" : "below the mark");
    world->pause(world->context, ACTOR_B, false);
    wait_for(world, &b->heard, heard + all);
    uint32_t count = atomic_load(&b->count), in_order = 0;
    for (uint32_t i = count - all; i < count; i++)
        in_order += b->items[i].kind == SEEN_HEARD && b->items[i].number == i - (count - all);
    trace_add(trace, "B heard %s\n", in_order == all ? "all of it in order" : "something else");
    atomic_store(&world->seen[ACTOR_B]->count,
                 count - all); /* how many it was is each world's own affair */
    say(world, trace, ACTOR_A, 900, 1);
    wait_for(world, &b->heard, heard + all + 1);
}

static inline void script_run(const script_world_t *world, trace_t *trace)
{
    seen_list_t *a = world->seen[ACTOR_A], *b = world->seen[ACTOR_B];
    world->start(world->context, ACTOR_A);
    wait_for(world, &a->lives, 1);
    say(world, trace, ACTOR_A, 0, 1);
    say_to(world, trace, (address_t){ ROLE_kv_store, 0 });
    world->start(world->context, ACTOR_B);
    wait_for(world, &a->ups, 1);
    wait_for(world, &b->ups, 1);
    say(world, trace, ACTOR_A, 1, 100);
    say(world, trace, ACTOR_B, 1, 50);
    wait_for(world, &b->heard, 100);
    wait_for(world, &a->heard, 50);
    world->kill(world->context, ACTOR_B);
    wait_for(world, &a->downs, 1);
    say(world, trace, ACTOR_A, 200, 1);
    world->start(world->context, ACTOR_B);
    wait_for(world, &a->ups, 2);
    wait_for(world, &b->ups, 2);
    say(world, trace, ACTOR_A, 300, 10);
    wait_for(world, &b->heard, 110);
    world->kill(world->context, ACTOR_A);
    wait_for(world, &b->downs, 1);
    say(world, trace, ACTOR_B, 400, 1);
    world->start(world->context, ACTOR_A);
    wait_for(world, &a->ups, 3);
    wait_for(world, &b->ups, 3);
    say(world, trace, ACTOR_B, 500, 5);
    wait_for(world, &a->heard, 55);
    script_pressure(world, trace);
    trace_seen(trace, ACTOR_A, a);
    trace_seen(trace, ACTOR_B, b);
}

/* What must come out, in whatever world. */
static const char script_expected[] =
    "A says 0: LOST\n"
    "A says to kv_store.0: INVALID\n"
    "A says 100: OK\n"
    "B says 50: OK\n"
    "A says 0: LOST\n"
    "A says 10: OK\n"
    "B says 0: LOST\n"
    "B says 5: OK\n"
    "A says to B that stands still: OVERLOAD, not below the mark\n"
    "B heard all of it in order\n"
    "A says 1: OK\n"
    "A begins\n"
    "A: B.1 up\n"
    "A heard 50 from 1 on\n"
    "A: B.1 down\n"
    "A: B.2 up\n"
    "A begins\n"
    "A: B.2 up\n"
    "A heard 5 from 500 on\n"
    "B begins\n"
    "B: A.1 up\n"
    "B heard 100 from 1 on\n"
    "B begins\n"
    "B: A.1 up\n"
    "B heard 10 from 300 on\n"
    "B: A.1 down\n"
    "B: A.2 up\n"
    "B heard 1 from 900 on\n";

#endif
