/* tests/actors/fake_world.h - a world of one actor: calls handlers, keeps what it sends, starts and
 * stops. */
#ifndef TESTS_ACTORS_FAKE_WORLD_H
#define TESTS_ACTORS_FAKE_WORLD_H

#include "runtime/actor.h"
#include "runtime/base/config.h"
#include "runtime/base/log.h"
#include "runtime/process.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FAKE_SENT_MAX = 256,
    FAKE_STARTS_MAX = 4096,
    FAKE_ALLOCATIONS_MAX = 1024,
    FAKE_OWN_PID = 4000
};

typedef struct {
    address_t to;
    msg_t message;
} fake_sent_t;

typedef struct {
    address_t who;
    uint64_t epoch, at_us;
    uint32_t pid;
    bool is_stop, is_forced;
} fake_process_t;

struct actor {
    const actor_class_t *class;
    void *state;
    config_loaded_t loaded;
    uint64_t now_us, wake_us, wall_us;
    uint64_t director_epoch; /* what actor_peer_epoch says of the director */
    bool is_in_init, is_down;
    address_t down; /* while is_down: who actor_peer_epoch says is down */
    err_t send_answer, start_answer;
    fake_sent_t *sent;
    uint32_t sent_count;
    fake_process_t processes[FAKE_STARTS_MAX]; /* starts and stops, in order */
    uint32_t process_count, next_pid;
    void *allocations[FAKE_ALLOCATIONS_MAX];
    uint32_t allocation_count;
    double metrics[METRICS_MAX];
    char log[1 << 16];
    size_t log_size;
};

/* ---- the contract ---- */

uint64_t actor_now_us(const actor_t *world)
{
    return world->now_us;
}

address_t actor_self(const actor_t *world)
{
    return (address_t){ world->class->role, 0 };
}

uint64_t actor_peer_epoch(const actor_t *world, address_t peer)
{
    if (peer.role == ROLE_director) return world->director_epoch;
    return world->is_down && peer.role == world->down.role && peer.index == world->down.index ? 0
                                                                                              : 1;
}

const config_t *actor_config(const actor_t *world)
{
    return &world->loaded.config;
}

void *actor_alloc(actor_t *world, size_t count, size_t size)
{
    invariant(world->is_in_init);
    invariant(world->allocation_count < FAKE_ALLOCATIONS_MAX);
    return world->allocations[world->allocation_count++] = calloc(count, size);
}

err_t actor_send(actor_t *world, address_t to, const msg_t *m)
{
    static uint8_t frame[2 << 20];
    if (world->send_answer != ERR_OK) return world->send_answer;
    invariant(msg_encode(m, frame, sizeof frame) > 0); /* its fields are in range */
    invariant(world->sent_count < FAKE_SENT_MAX);
    world->sent[world->sent_count++] = (fake_sent_t){ to, *m };
    return ERR_OK;
}

void actor_wake_at(actor_t *world, uint64_t at_us)
{
    world->wake_us = at_us;
}

void actor_log(actor_t *world, log_level_t level, const char *id, const char *format, ...)
{
    char line[LOG_LINE_BYTES];
    log_event_t event = { .who = actor_self(world), .level = level, .id = id };
    va_list args;
    va_start(args, format);
    size_t size = log_format(line, &event, format, args);
    va_end(args);
    invariant(strchr(line, '=') == NULL);
    if (world->log_size + size >= sizeof world->log) world->log_size = 0;
    memcpy(world->log + world->log_size, line, size + 1);
    world->log_size += size;
}

void actor_count(actor_t *world, metric_t counter, uint64_t by)
{
    world->metrics[counter] += (double)by;
}

void actor_gauge(actor_t *world, metric_t gauge, double value)
{
    world->metrics[gauge] = value;
}

err_t actor_process_open(actor_t *world)
{
    return ERR_OK;
}

err_t actor_process_start(actor_t *world, address_t who, uint64_t epoch, uint32_t *pid)
{
    invariant(world->process_count < FAKE_STARTS_MAX);
    if (world->start_answer != ERR_OK) return world->start_answer;
    *pid = ++world->next_pid;
    world->processes[world->process_count++] =
        (fake_process_t){ .who = who, .epoch = epoch, .at_us = world->now_us, .pid = *pid };
    return ERR_OK;
}

uint32_t actor_process_self(const actor_t *world)
{
    return FAKE_OWN_PID;
}

void actor_process_stop(actor_t *world, uint32_t pid, bool is_forced)
{
    invariant(world->process_count < FAKE_STARTS_MAX);
    world->processes[world->process_count++] = (fake_process_t){
        .pid = pid, .at_us = world->now_us, .is_stop = true, .is_forced = is_forced
    };
}

uint64_t actor_wall_us(const actor_t *world)
{
    return world->wall_us + world->now_us;
}

/* ---- driving it ---- */

static inline void fake_check(actor_t *world)
{
    if (world->class->check != NULL) world->class->check(world->state);
}

/* One prefill and one decode worker, all else as by default, unless `settings` (NULL at its end)
 * say more. */
static inline actor_t *fake_new(const actor_class_t *class, const char *const *settings)
{
    actor_t *world = calloc(1, sizeof *world);
    world->class = class;
    world->state = calloc(1, class->state_size);
    world->sent = calloc(FAKE_SENT_MAX, sizeof *world->sent);
    world->now_us = 1000000;
    world->wall_us = 1700000000000000;
    config_init(&world->loaded);
    for (; settings != NULL && *settings != NULL; settings++) {
        err_t error = config_set(&world->loaded, *settings);
        invariant(error == ERR_OK);
    }
    world->is_in_init = true;
    err_t error = class->init(world->state, world);
    invariant(error == ERR_OK);
    world->is_in_init = false;
    fake_check(world);
    return world;
}

static inline void fake_destroy(actor_t *world)
{
    for (uint32_t i = 0; i < world->allocation_count; i++) free(world->allocations[i]);
    free(world->sent);
    free(world->state);
    free(world);
}

static inline void fake_tell(actor_t *world, address_t from, msg_t *m)
{
    m->header.from = from;
    invariant(world->class->on[m->type] != NULL);
    world->class->on[m->type](world->state, world, m);
    fake_check(world);
}

/* Time passes; the alarm rings whenever it is due. */
static inline void fake_run(actor_t *world, uint64_t for_us)
{
    uint64_t end_us = world->now_us + for_us;
    while (world->wake_us > 0 && world->wake_us <= end_us) {
        if (world->wake_us > world->now_us) world->now_us = world->wake_us;
        world->wake_us = 0;
        world->class->wake(world->state, world);
        fake_check(world);
    }
    world->now_us = end_us;
}

#endif
