/* actors/ingress_turns.c - what takes ingress more than one turn: large answers are printed part by
 * part, several by turns, for everybody who waits for a sign of life would wait for the whole.
 */
#include "ingress_parts.h"

enum { FULL_LINK_US = 50000 /* until a client's full link is tried again */ };

void turns_set_wake(const ingress_t *self, actor_t *world)
{
    uint64_t next_us = alarms_next_us(&self->alarms);
    bool is_print_next = self->in_print != NONE && (next_us == 0 || self->print_at_us < next_us);
    actor_wake_at(world, is_print_next ? self->print_at_us : next_us);
}

static void print_later(ingress_t *self, actor_t *world, call_t *call)
{
    uint32_t *link = &self->in_print;
    while (*link != NONE) link = &self->calls[*link].next;
    *link = call_index(self, call);
    call->next = NONE;
    self->print_at_us = actor_now_us(world) + (call->is_client ? FULL_LINK_US : 0);
    turns_set_wake(self, world);
}

void call_end(ingress_t *self, actor_t *world, call_t *call)
{
    if (answer_call_end(self, world, call))
        call_free(self, call);
    else
        print_later(self, world, call);
}

/* In turn, for one client that takes nothing must not keep the others waiting. */
static void print_next(ingress_t *self, actor_t *world)
{
    if (self->in_print == NONE || actor_now_us(world) < self->print_at_us) return;
    call_t *call = &self->calls[self->in_print];
    self->in_print = call->next;
    call_end(self, world, call);
}

void turns_go_on(ingress_t *self, actor_t *world)
{
    print_next(self, world);
}
