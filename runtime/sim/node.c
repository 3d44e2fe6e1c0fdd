/* runtime/sim/node.c - one actor's lives: born, taking turns, dying. */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

actor_t *node_find(const sim_t *self, address_t who)
{
    for (uint32_t i = 0; i < self->node_count; i++)
        if (self->nodes[i]->address.role == who.role && self->nodes[i]->address.index == who.index)
            return self->nodes[i];
    return NULL;
}

static void schedule(sim_t *self, actor_t *node, event_kind_t kind, uint64_t delay_us)
{
    events_push(&self->queue, (event_t){ .at_us = self->now_us + delay_us,
                                         .kind = kind,
                                         .stamp = node->stamp,
                                         .subject = node });
}

/* ---- turns ---------------------------------------------------------------------------------- */

void node_want_turn(sim_t *self, actor_t *node)
{
    if (!node->is_alive || node->is_paused) return;
    uint64_t late_us =
        random_below(self, (node->slow_us ? node->slow_us : self->options.turn_us) + 1);
    uint64_t at_us = self->now_us + late_us;
    if (node->turn_at_us <= at_us) return;
    node->turn_at_us = at_us;
    schedule(self, node, EVENT_TURN, late_us);
}

void node_handle(sim_t *self, actor_t *node, const msg_t *m)
{
    const actor_class_t *class = node->class;
    trace_message(self, node, "gets", m);
    const sim_observer_t *observer = &self->options.observer;
    if (observer->on_deliver) observer->on_deliver(observer->context, node->address, m);
    metrics_count(&node->metrics, METRIC_messages_received_total, 1);
    if (!class->on[m->type]) {
        if (m->type < MSG_peer_up)
            metrics_count(&node->metrics, METRIC_messages_unexpected_total, 1);
        return;
    }
    class->on[m->type](node->state, node, m);
    if (class->check) class->check(node->state);
}

/* Keep some messages, bytes and all, so that they can come again. */
static void maybe_keep(sim_t *self, const frame_t *frame, size_t at, size_t size)
{
    if (!random_chance(self, self->options.duplicate_rate)) return;
    uint32_t room = sizeof self->kept / sizeof *self->kept;
    uint32_t place =
        self->kept_count < room ? self->kept_count++ : (uint32_t)random_below(self, room);
    frame_free(self->kept[place]);
    frame_t *kept = calloc(1, sizeof *kept);
    invariant(kept);
    kept->way = frame->way;
    kept->bytes = malloc(size);
    invariant(kept->bytes);
    memcpy(kept->bytes, frame->bytes + at, size);
    kept->size = kept->room = size;
    kept->messages = 1;
    self->kept[place] = kept;
}

static void handle_remote(sim_t *self, actor_t *node, frame_t *frame)
{
    msg_t *m = &self->scratch;
    size_t used = 0;
    err_t error = msg_decode(m, frame->bytes + frame->used, frame->size - frame->used, &used);
    invariant(error == ERR_OK);
    size_t at = frame->used;
    frame->used += used;
    direction_t *way = frame->way;
    m->header.from = way->from->address;
    bool is_counted = m->type != MSG_heartbeat && m->type != MSG_hello;
    if (is_counted) {
        frame->messages--;
        way->queued--;
    }
    if (!link_hear(self, way, m)) {
        if (!is_counted) return;
        metrics_count(&node->metrics, METRIC_messages_stale_total, 1);
        trace_message(self, node, "fences off", m);
        const sim_observer_t *observer = &self->options.observer;
        if (observer->on_fenced) observer->on_fenced(observer->context, node->address, m);
        return;
    }
    if (!is_counted) return;
    trace_hash(self, frame->bytes + at, used);
    maybe_keep(self, frame, at, used);
    node_handle(self, node, m);
}

static void handle_next(sim_t *self, actor_t *node)
{
    frame_t *frame = node->inbox.head;
    if (frame->local) {
        frames_pop(&node->inbox);
        if (frame->size) trace_hash(self, frame->bytes, frame->size);
        node_handle(self, node, frame->local);
        frame_free(frame);
        return;
    }
    handle_remote(self, node, frame);
    if (frame->used < frame->size) return;
    frames_pop(&node->inbox);
    frame_free(frame);
}

void node_turn(sim_t *self, actor_t *node)
{
    node->turn_at_us = UINT64_MAX;
    if (node->is_paused) return;
    bool is_due = node->wake_us && node->wake_us <= self->now_us;
    if (!node->inbox.head && !is_due && !node->is_turn_wanted) return;
    node->is_turn_wanted = false;
    link_mourn(self, node);
    for (int count = 0; count < TURN_MESSAGES_MAX && node->inbox.head; count++)
        handle_next(self, node);
    if (node->wake_us && node->wake_us <= self->now_us) {
        node->wake_us = 0;
        if (node->class->wake) node->class->wake(node->state, node);
        if (node->class->check) node->class->check(node->state);
    }
    if (node->class->turn) node->class->turn(node->state, node);
    if (node->class->check) node->class->check(node->state);
    link_flush(self, node);
    if (node->inbox.head) node_want_turn(self, node);
}

/* ---- local messages ------------------------------------------------------------------------- */

void node_tell(sim_t *self, actor_t *node, const msg_t *m, const void *bytes, size_t size)
{
    if (!node->is_alive) return;
    frame_t *frame = calloc(1, sizeof *frame);
    invariant(frame);
    frame->local = malloc(sizeof *frame->local);
    invariant(frame->local);
    msg_init(frame->local, m->type);
    size_t body = offsetof(msg_t, hello);
    memcpy((char *)frame->local + body, (const char *)m + body, msg_descs[m->type].size);
    frame->local->header = m->header;
    frame->bytes = malloc(size ? size : 1);
    invariant(frame->bytes);
    if (size) memcpy(frame->bytes, bytes, size);
    frame->size = size;
    bytes_t borrowed = { frame->bytes, size };
    if (m->type == MSG_engine_done) frame->local->engine_done.results = borrowed;
    if (m->type == MSG_http_request) frame->local->http_request.body = borrowed;
    frames_push(&node->inbox, frame);
    node_want_turn(self, node);
}

void node_free_inbox(actor_t *node)
{
    frame_t *frame;
    while ((frame = frames_pop(&node->inbox))) {
        if (frame->way) frame->way->queued -= frame->messages;
        frame_free(frame);
    }
}

void node_report(sim_t *self, actor_t *node)
{
    schedule(self, node, EVENT_REPORT, 1000000);
    actor_t *director = node_find(self, (address_t){ ROLE_director, 0 });
    if (!director || node->is_paused || !node->to[director->number]) return;
    msg_t m;
    msg_init(&m, MSG_report);
    m.header = (header_t){ 0 };
    m.report.role = (u32)node->address.role;
    m.report.index = node->address.index;
    m.report.life = node->epoch;
    m.report.uptime_us = self->now_us - node->born_us;
    m.report.values_count = metrics_slot_count();
    memcpy(m.report.values, node->metrics.slots, m.report.values_count * sizeof(double));
    err_t error = actor_send(node, director->address, &m);
    if (error != ERR_OK) return; /* the next second brings another */
    node->is_turn_wanted = true;
    node_want_turn(self, node);
}

/* ---- birth and death ------------------------------------------------------------------------ */

err_t node_start(sim_t *self, actor_t *node)
{
    invariant(!node->is_alive);
    node->epoch++;
    node->stamp++;
    node->is_alive = node->is_in_init = true;
    node->is_paused = node->is_stopping = false;
    node->born_us = self->now_us;
    node->wake_us = 0;
    node->turn_at_us = UINT64_MAX;
    node->random_state = sim_random(self);
    node->state = calloc(1, node->class->state_size ? node->class->state_size : 1);
    node->metrics.slots = calloc(metrics_slot_count(), sizeof(double));
    invariant(node->state && node->metrics.slots);
    trace_line(self, "%s.%u begins life %llu", role_names[node->address.role], node->address.index,
               (unsigned long long)node->epoch);
    err_t error = node->class->init ? node->class->init(node->state, node) : ERR_OK;
    node->is_in_init = false;
    if (error != ERR_OK) {
        node_end(self, node);
        return error;
    }
    if (node->class->check) node->class->check(node->state);
    for (uint32_t i = 0; i < self->node_count; i++) {
        if (!node->to[i]) continue;
        direction_t *in = link_way(self, self->nodes[i], node);
        in->epoch = in->epoch_seen = in->asked_us = 0;
        in->is_broken = false;
        node->to[i]->sequence = 0;
        link_connect_soon(self, in->link);
    }
    schedule(self, node, EVENT_TICK,
             random_below(self, (uint64_t)self->config.timing.heartbeat_ms * 1000));
    schedule(self, node, EVENT_REPORT, random_below(self, 1000000));
    node->is_turn_wanted = true;
    node_want_turn(self, node);
    return ERR_OK;
}

void node_end(sim_t *self, actor_t *node)
{
    node->is_alive = node->is_paused = false;
    node->stamp++;
    node_free_inbox(node);
    if (node->class->fini) node->class->fini(node->state, node);
    http_port_drop(node);
    engine_port_close(self, node);
    engine_port_free(&node->engine);
    pool_port_free(&node->pool);
    for (uint32_t i = 0; i < node->allocations.count; i++) free(node->allocations.items[i]);
    node->allocations.count = 0;
    free(node->state);
    node->state = NULL;
    free(node->metrics.slots);
    node->metrics.slots = NULL;
    node->is_listening = false;
}
