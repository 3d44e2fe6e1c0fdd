/* runtime/sim/actor_sim.c - the functions of runtime/actor.h under the virtual clock. */
#include "parts.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

uint64_t actor_now_us(const actor_t *world)
{
    return world->sim->now_us;
}

address_t actor_self(const actor_t *world)
{
    return world->address;
}

uint64_t actor_epoch(const actor_t *world)
{
    return world->epoch;
}

uint64_t actor_peer_epoch(const actor_t *world, address_t peer)
{
    const actor_t *other = node_find(world->sim, peer);
    if (!other) return 0;
    const direction_t *in = link_way(world->sim, other, world);
    return in ? in->epoch : 0;
}

const config_t *actor_config(const actor_t *world)
{
    return &world->sim->config;
}

void *actor_alloc(actor_t *world, size_t count, size_t size)
{
    invariant(world->is_in_init);
    allocations_t *list = &world->allocations;
    if (list->count == list->room) {
        list->room = list->room ? list->room * 2 : 32;
        list->items = realloc(list->items, list->room * sizeof(void *));
        invariant(list->items);
    }
    void *memory = calloc(count ? count : 1, size ? size : 1);
    invariant(memory);
    list->items[list->count++] = memory;
    return memory;
}

static err_t send_answer(actor_t *world, address_t to, const msg_t *m)
{
    sim_t *self = world->sim;
    invariant(msg_descs[m->type].tag < TAG_LOCAL);
    actor_t *other = node_find(self, to);
    direction_t *way = other ? link_way(self, world, other) : NULL;
    if (!way) return ERR_INVALID;
    uint64_t peer_epoch = link_way(self, other, world)->epoch;
    if (peer_epoch == 0 || !world->is_alive) return ERR_LOST;
    if (!way->link->is_connected && !way->is_dealer) return ERR_LOST;
    if (way->queued >= way->link->high_water) return ERR_OVERLOAD;
    msg_t *copy = &self->outgoing;
    copy->type = m->type;
    size_t body = offsetof(msg_t, hello);
    memcpy((char *)copy + body, (const char *)m + body, msg_descs[m->type].size);
    copy->header = (header_t){ .request = m->header.request,
                               .attempt = m->header.attempt,
                               .epoch = world->epoch,
                               .to_epoch = peer_epoch,
                               .sequence = ++way->sequence,
                               .sent_us = self->now_us };
    link_write(self, way, copy);
    return ERR_OK;
}

err_t actor_send(actor_t *world, address_t to, const msg_t *m)
{
    sim_t *self = world->sim;
    err_t answer = send_answer(world, to, m);
    if (answer == ERR_OK)
        metrics_count(&world->metrics, METRIC_messages_sent_total, 1);
    else if (world->is_alive)
        metrics_count(&world->metrics, METRIC_sends_refused_total, 1);
    const sim_observer_t *observer = &self->options.observer;
    if (observer->on_send) observer->on_send(observer->context, world->address, to, m, answer);
    return answer;
}

void actor_wake_at(actor_t *world, uint64_t at_us)
{
    sim_t *self = world->sim;
    world->wake_us = at_us;
    if (at_us == 0) return;
    events_push(&self->queue, (event_t){ .at_us = at_us > self->now_us ? at_us : self->now_us,
                                         .kind = EVENT_TURN,
                                         .stamp = world->stamp,
                                         .subject = world });
}

uint64_t actor_random(actor_t *world)
{
    return random_next(&world->random_state);
}

void actor_log(actor_t *world, log_level_t level, const char *id, const char *format, ...)
{
    static const char letters[] = "DIWE";
    char text[TRACE_LINE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    trace_line(world->sim, "%s.%u logs %c %s %s", role_names[world->address.role],
               world->address.index, letters[level], id, text);
}

void actor_count(actor_t *world, metric_t counter, uint64_t by)
{
    if (world->metrics.slots) metrics_count(&world->metrics, counter, by);
}

void actor_gauge(actor_t *world, metric_t gauge, double value)
{
    if (world->metrics.slots) metrics_gauge(&world->metrics, gauge, value);
}

void actor_observe(actor_t *world, metric_t histogram, double value)
{
    if (world->metrics.slots) metrics_observe(&world->metrics, histogram, value);
}
