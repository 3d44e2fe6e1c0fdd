/* runtime/sim/port_process.c - the process port: actors that sim_add has introduced. */
#include "parts.h"

enum { START_US = 20000, STOP_US = 5000, FIRST_PID = 1000, WALL_AT_ZERO_S = 1767225600 };

static actor_t *by_pid(const sim_t *self, uint32_t pid)
{
    return pid >= FIRST_PID && pid - FIRST_PID < self->node_count ? self->nodes[pid - FIRST_PID]
                                                                  : NULL;
}

err_t actor_process_open(actor_t *world)
{
    invariant(world->sim != NULL);
    return ERR_OK;
}

err_t actor_process_start(actor_t *world, address_t who, uint64_t epoch, uint32_t *pid)
{
    sim_t *self = world->sim;
    actor_t *node = node_find(self, who);
    if (!node || node->is_alive) return ERR_INVALID;
    invariant(epoch > node->epoch);
    node->epoch = epoch - 1;
    events_push(&self->queue, (event_t){ .at_us = self->now_us + random_below(self, START_US),
                                         .kind = EVENT_START,
                                         .stamp = node->stamp,
                                         .subject = node });
    *pid = FIRST_PID + node->number;
    return ERR_OK;
}

uint32_t actor_process_self(const actor_t *world)
{
    return FIRST_PID + world->number;
}

void actor_process_stop(actor_t *world, uint32_t pid, bool is_forced)
{
    sim_t *self = world->sim;
    actor_t *node = by_pid(self, pid);
    if (!node || !node->is_alive) return;
    events_push(&self->queue, (event_t){ .at_us = self->now_us + (is_forced ? 0 : STOP_US),
                                         .kind = EVENT_STOP,
                                         .stamp = node->stamp,
                                         .subject = node });
}

void process_port_exited(sim_t *self, const actor_t *node)
{
    actor_t *supervisor = node_find(self, (address_t){ ROLE_supervisor, 0 });
    if (!supervisor || supervisor == node) return;
    msg_t m;
    msg_init(&m, MSG_process_exited);
    m.header = (header_t){ .from = supervisor->address };
    m.process_exited.role = (u32)node->address.role;
    m.process_exited.index = node->address.index;
    m.process_exited.pid = FIRST_PID + node->number;
    snprintf(m.process_exited.how, sizeof m.process_exited.how, "signal 9");
    node_tell(self, supervisor, &m, NULL, 0);
}

uint64_t actor_wall_us(const actor_t *world)
{
    return world->sim->now_us + (uint64_t)WALL_AT_ZERO_S * 1000000;
}
