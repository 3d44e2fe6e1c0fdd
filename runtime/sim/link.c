/* runtime/sim/link.c - one link's frames: written in a turn, under way, arrived, or lost. */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

enum { CLOGGED_CHECK_US = 1000 };

void frames_push(frame_list_t *self, frame_t *frame)
{
    frame->next = NULL;
    if (self->tail)
        self->tail->next = frame;
    else
        self->head = frame;
    self->tail = frame;
}

frame_t *frames_pop(frame_list_t *self)
{
    frame_t *frame = self->head;
    if (!frame) return NULL;
    self->head = frame->next;
    if (!self->head) self->tail = NULL;
    return frame;
}

void frame_free(frame_t *frame)
{
    if (!frame) return;
    free(frame->local);
    free(frame->bytes);
    free(frame);
}

/* A frame that nobody will handle. */
static void drop(frame_t *frame)
{
    invariant(frame->way->queued >= frame->messages);
    frame->way->queued -= frame->messages;
    frame_free(frame);
}

void link_write(sim_t *self, direction_t *way, const msg_t *m)
{
    if (!way->open) {
        way->open = calloc(1, sizeof *way->open);
        invariant(way->open);
        way->open->way = way;
    }
    frame_t *frame = way->open;
    size_t size = msg_encode(m, self->encode_buffer, MESSAGE_BYTES_MAX);
    invariant(size > 0);
    if (frame->size + size > frame->room) {
        frame->room = (frame->size + size) * (frame->size ? 2 : 1);
        frame->bytes = realloc(frame->bytes, frame->room);
        invariant(frame->bytes);
    }
    memcpy(frame->bytes + frame->size, self->encode_buffer, size);
    frame->size += size;
    if (m->type != MSG_heartbeat && m->type != MSG_hello) {
        frame->messages++;
        way->queued++;
    }
    way->sent_us = self->now_us;
}

void link_schedule(sim_t *self, direction_t *way)
{
    way->stamp++;
    if (!way->flight.head || !way->link->is_connected) return;
    uint64_t at_us = way->flight.head->due_us;
    if (at_us < way->clogged_until_us) at_us = way->clogged_until_us;
    if (at_us < self->now_us) at_us = self->now_us;
    events_push(
        &self->queue,
        (event_t){ .at_us = at_us, .kind = EVENT_ARRIVE, .stamp = way->stamp, .subject = way });
}

/* When a frame that leaves now arrives, at the earliest: never before those ahead of it. */
static uint64_t due(sim_t *self, direction_t *way)
{
    uint64_t at_us = self->now_us + self->options.delay_least_us +
                     random_exponential(self, self->options.delay_mean_us);
    if (at_us < way->last_due_us) at_us = way->last_due_us;
    way->last_due_us = at_us;
    return at_us;
}

static void depart(sim_t *self, direction_t *way)
{
    frame_t *frame = way->open;
    if (!frame) return;
    way->open = NULL;
    if (!way->link->is_connected && !way->is_dealer) {
        drop(frame);
        return;
    }
    frame->due_us = due(self, way);
    bool was_empty = !way->flight.head;
    frames_push(&way->flight, frame);
    if (was_empty) link_schedule(self, way);
}

void link_flush(sim_t *self, actor_t *node)
{
    for (uint32_t other = 0; other < self->node_count; other++)
        if (node->to[other] && node->to[other]->open) depart(self, node->to[other]);
}

static void arrive(sim_t *self, direction_t *way)
{
    frame_t *frame = frames_pop(&way->flight);
    if (!way->to->is_alive) {
        drop(frame);
        return;
    }
    frames_push(&way->to->inbox, frame);
    node_want_turn(self, way->to);
}

void link_arrive(sim_t *self, direction_t *way)
{
    invariant(way->flight.head);
    if (way->clogged_until_us <= self->now_us) arrive(self, way);
    link_schedule(self, way);
}

void link_drop_flight(direction_t *way)
{
    frame_t *frame;
    while ((frame = frames_pop(&way->flight))) drop(frame);
    if (way->open) drop(way->open);
    way->open = NULL;
    way->stamp++;
}

/* Of what was under way, a first part has reached the receiver's machine, a middle part is lost,
 * and the rest still lay in the sender's queue: a DEALER keeps that, a ROUTER throws it away, a
 * dead process has none. */
static void break_way(sim_t *self, direction_t *way)
{
    uint32_t count = 0;
    for (frame_t *frame = way->flight.head; frame; frame = frame->next) count++;
    uint32_t reached = (uint32_t)random_below(self, count + 1);
    if (way->clogged_until_us > self->now_us) reached = 0;
    uint32_t lost = (uint32_t)random_below(self, count - reached + 1);
    if (!way->is_dealer || !way->from->is_alive) lost = count - reached;
    for (uint32_t i = 0; i < reached; i++) arrive(self, way);
    for (uint32_t i = 0; i < lost; i++) drop(frames_pop(&way->flight));
    way->stamp++;
    way->last_due_us = 0;
}

void link_break(sim_t *self, link_t *link, notice_t notice)
{
    if (!link->is_connected) return;
    for (int i = 0; i < 2; i++) break_way(self, &link->ways[i]);
    link->is_connected = false;
    link->notice = notice;
    link->stamp++;
    events_push(&self->queue, (event_t){ .at_us = self->now_us + random_below(self, 5000),
                                         .kind = EVENT_NOTICE,
                                         .stamp = link->stamp,
                                         .subject = link });
}

/* What survived in the DEALER's queue leaves before its hello. */
void link_connect(sim_t *self, link_t *link)
{
    actor_t *connector = link->ways[0].from;
    if (link->is_connected || !connector->is_alive || !link->ways[0].to->is_alive) return;
    if (link->barred_until_us > self->now_us || connector->is_paused) {
        link_connect_soon(self, link);
        return;
    }
    link->is_connected = true;
    link->stamp++;
    /* Whatever it believed of the old connection is over. */
    link->ways[1].is_broken = connector->has_broken = true;
    link_mourn(self, connector);
    for (frame_t *frame = link->ways[0].flight.head; frame; frame = frame->next)
        frame->due_us = due(self, &link->ways[0]);
    link_hello(self, &link->ways[0]);
    link_schedule(self, &link->ways[0]);
}

/* The world greets by itself, outside of any turn: the greeting leaves at once, behind what
 * survived. */
void link_hello(sim_t *self, direction_t *way)
{
    frame_t *kept = way->open;
    way->open = NULL;
    msg_t *m = &self->outgoing;
    msg_init(m, MSG_hello);
    direction_t *in = link_way(self, way->to, way->from);
    in->asked_us = self->now_us;
    m->header = (header_t){ .epoch = way->from->epoch,
                            .to_epoch = in->epoch,
                            .sequence = ++way->sequence,
                            .sent_us = self->now_us };
    m->hello.role = (u32)way->from->address.role;
    m->hello.index = way->from->address.index;
    m->hello.model_key = self->model_key;
    link_write(self, way, m);
    depart(self, way);
    way->open = kept;
}
