/* runtime/sim/faults.c - what goes wrong on purpose. */
#include "parts.h"

/* Each link of a node whose process ends. */
static void break_links(sim_t *self, actor_t *node, bool is_noticed)
{
    for (uint32_t i = 0; i < self->node_count; i++) {
        if (!node->to[i]) continue;
        direction_t *out = node->to[i];
        link_break(self, out->link, is_noticed ? NOTICE_BOTH : NOTICE_NOBODY);
        link_drop_flight(out);
    }
}

void sim_kill(sim_t *self, address_t who, bool is_noticed)
{
    actor_t *node = node_find(self, who);
    if (!node || !node->is_alive) return;
    trace_line(self, "%s.%u is killed, %s", role_names[who.role], who.index,
               is_noticed ? "its connections end" : "in silence");
    const sim_observer_t *observer = &self->options.observer;
    if (observer->on_death) observer->on_death(observer->context, who);
    node->is_alive = false; /* what it still had to say stays unsaid */
    break_links(self, node, is_noticed);
    engine_port_lose_peer(self, node);
    node_end(self, node);
    process_port_exited(self, node);
}

void sim_restart(sim_t *self, address_t who)
{
    actor_t *node = node_find(self, who);
    if (!node || node->is_alive) return;
    err_t error = node_start(self, node);
    invariant(error == ERR_OK);
}

void sim_pause(sim_t *self, address_t who)
{
    actor_t *node = node_find(self, who);
    if (!node || !node->is_alive || node->is_paused) return;
    trace_line(self, "%s.%u is paused", role_names[who.role], who.index);
    node->is_paused = true;
    engine_port_lose_peer(self, node);
}

void sim_resume(sim_t *self, address_t who)
{
    actor_t *node = node_find(self, who);
    if (!node || !node->is_alive || !node->is_paused) return;
    trace_line(self, "%s.%u is resumed", role_names[who.role], who.index);
    node->is_paused = false;
    node->turn_at_us = UINT64_MAX;
    link_forgive(self, node);
    node->is_turn_wanted = true;
    node_want_turn(self, node);
}

void sim_disconnect(sim_t *self, address_t a, address_t b, uint64_t for_us)
{
    actor_t *one = node_find(self, a);
    actor_t *other = node_find(self, b);
    if (!one || !other || !one->to[other->number]) return;
    link_t *link = one->to[other->number]->link;
    if (!link->is_connected) return;
    trace_line(self, "%s.%u and %s.%u are disconnected for %llu us", role_names[a.role], a.index,
               role_names[b.role], b.index, (unsigned long long)for_us);
    link->barred_until_us = self->now_us + for_us;
    link_break(self, link, random_chance(self, 0.5) ? NOTICE_BOTH : NOTICE_CONNECTOR);
    link_connect_soon(self, link);
}

void sim_clog(sim_t *self, address_t a, address_t b, uint64_t for_us)
{
    actor_t *from = node_find(self, a);
    actor_t *to = node_find(self, b);
    if (!from || !to || !from->to[to->number]) return;
    trace_line(self, "%s.%u to %s.%u is clogged for %llu us", role_names[a.role], a.index,
               role_names[b.role], b.index, (unsigned long long)for_us);
    direction_t *way = from->to[to->number];
    way->clogged_until_us = self->now_us + for_us;
    link_schedule(self, way);
}

void sim_slow(sim_t *self, address_t who, uint32_t turn_us)
{
    actor_t *node = node_find(self, who);
    if (node) node->slow_us = turn_us;
}

static void heal_link(sim_t *self, link_t *link)
{
    link->barred_until_us = 0;
    for (int i = 0; i < 2; i++) {
        link->ways[i].clogged_until_us = 0;
        link_schedule(self, &link->ways[i]);
    }
    if (!link->is_connected) link_connect_soon(self, link);
}

void sim_heal(sim_t *self)
{
    sim_options_t *options = &self->options;
    options->engine_failure_rate = options->engine_slow_rate = 0;
    options->pull_lost_rate = options->pull_corrupt_rate = options->duplicate_rate = 0;
    for (uint32_t i = 0; i < self->link_count; i++) heal_link(self, self->links[i]);
    for (uint32_t i = 0; i < self->node_count; i++) {
        actor_t *node = self->nodes[i];
        node->slow_us = 0;
        sim_resume(self, node->address);
    }
}

bool sim_replay(sim_t *self, bool (*is_wanted)(void *context, address_t to, const msg_t *m),
                void *context)
{
    for (uint32_t i = 0; i < self->kept_count; i++) {
        frame_t *frame = self->kept[i];
        size_t used = 0;
        msg_t *m = &self->scratch;
        err_t error = msg_decode(m, frame->bytes, frame->size, &used);
        invariant(error == ERR_OK);
        m->header.from = frame->way->from->address;
        actor_t *to = frame->way->to;
        if (!to->is_alive || !is_wanted(context, to->address, m)) continue;
        trace_line(self, "%s to %s.%u comes again", msg_descs[m->type].name,
                   role_names[to->address.role], to->address.index);
        self->kept[i] = self->kept[--self->kept_count];
        self->kept[self->kept_count] = NULL;
        frame->way->queued++;
        frames_push(&to->inbox, frame);
        node_want_turn(self, to);
        return true;
    }
    return false;
}
