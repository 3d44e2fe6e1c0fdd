/* runtime/sim/connect.c - who is linked to whom, and how the two ends notice each other. */
#include "parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { RECONNECT_MIN_US = 1000, RECONNECT_SPREAD_US = 50000 };

typedef struct {
    role_t connector, binder;
    uint32_t high_water;
} link_rule_t;

/* clang-format off */
static const link_rule_t rules[] = {
#define LINK(connector, binder, high_water, doc) { ROLE_##connector, ROLE_##binder, high_water },
#include "../../proto/links.def"
#undef LINK
};
/* clang-format on */

static const link_rule_t *rule_between(role_t connector, role_t binder)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (rules[i].connector == connector && rules[i].binder == binder) return &rules[i];
    return NULL;
}

static void make(sim_t *self, actor_t *connector, actor_t *binder, uint32_t high_water)
{
    if (self->link_count == self->link_room) {
        self->link_room = self->link_room ? self->link_room * 2 : 64;
        self->links = realloc(self->links, self->link_room * sizeof(link_t *));
        invariant(self->links);
    }
    link_t *link = calloc(1, sizeof *link);
    invariant(link);
    self->links[self->link_count++] = link;
    link->high_water = high_water;
    link->ways[0] =
        (direction_t){ .link = link, .from = connector, .to = binder, .is_dealer = true };
    link->ways[1] = (direction_t){ .link = link, .from = binder, .to = connector };
    connector->to[binder->number] = &link->ways[0];
    binder->to[connector->number] = &link->ways[1];
}

void link_make_all(sim_t *self, actor_t *node)
{
    for (uint32_t i = 0; i < self->node_count; i++) {
        actor_t *other = self->nodes[i];
        if (other == node) continue;
        const link_rule_t *rule = rule_between(node->address.role, other->address.role);
        if (rule) make(self, node, other, rule->high_water);
        rule = rule_between(other->address.role, node->address.role);
        if (rule) make(self, other, node, rule->high_water);
    }
}

direction_t *link_way(sim_t *self, const actor_t *from, const actor_t *to)
{
    return from->to[to->number];
}

void link_connect_soon(sim_t *self, link_t *link)
{
    uint64_t at_us = self->now_us + RECONNECT_MIN_US + random_below(self, RECONNECT_SPREAD_US);
    if (at_us < link->barred_until_us) at_us = link->barred_until_us;
    events_push(
        &self->queue,
        (event_t){ .at_us = at_us, .kind = EVENT_CONNECT, .stamp = link->stamp, .subject = link });
}

/* ---- peers as an actor sees them ------------------------------------------------------------ */

static void tell_peer(sim_t *self, direction_t *way, msg_type_t type, uint64_t epoch)
{
    static_assert(sizeof(msg_peer_up_t) == sizeof(msg_peer_down_t), "one is written as the other");
    msg_t m;
    msg_init(&m, type);
    m.header = (header_t){ .from = way->from->address };
    m.peer_up.role = (u32)way->from->address.role;
    m.peer_up.index = way->from->address.index;
    m.peer_up.peer_epoch = epoch;
    node_handle(self, way->to, &m);
}

static void peer_down(sim_t *self, direction_t *way)
{
    uint64_t epoch = way->epoch;
    if (epoch == 0) return;
    way->epoch = 0;
    tell_peer(self, way, MSG_peer_down, epoch);
}

static void peer_up(sim_t *self, direction_t *way, uint64_t epoch)
{
    way->epoch = way->epoch_seen = epoch;
    way->heard_us = self->now_us;
    tell_peer(self, way, MSG_peer_up, epoch);
}

static direction_t *back(const direction_t *way)
{
    return &way->link->ways[way == &way->link->ways[0]];
}

/* A hello that does not name our life says "I do not know you (any more)": it is answered, and if
 * we thought that peer up, everything in between was lost. */
static bool hear_hello(sim_t *self, direction_t *way, const msg_t *m)
{
    uint64_t epoch = m->header.epoch, to_epoch = m->header.to_epoch;
    if (epoch < way->epoch_seen || (to_epoch && to_epoch != way->to->epoch)) return false;
    if (way->epoch && (way->epoch != epoch || to_epoch == 0)) peer_down(self, way);
    bool was_up = way->epoch == epoch;
    way->epoch = epoch; /* our answer names the life it answers */
    if (to_epoch == 0) link_hello(self, back(way));
    if (!was_up) peer_up(self, way, epoch);
    return true;
}

bool link_hear(sim_t *self, direction_t *way, const msg_t *m)
{
    if (m->type == MSG_hello) return hear_hello(self, way, m);
    bool is_foreign = m->header.to_epoch && m->header.to_epoch != way->to->epoch;
    bool is_known = way->epoch != 0 && way->epoch == m->header.epoch;
    if (!is_foreign && is_known) {
        way->heard_us = self->now_us;
        return true;
    }
    /* It still takes us for up: ask, but let the answer come before asking again. */
    uint64_t wait_us = (uint64_t)self->config.timing.dead_ms * 500;
    if (way->epoch == 0 && self->now_us - way->asked_us > wait_us) link_hello(self, back(way));
    return false;
}

void link_notice(sim_t *self, link_t *link)
{
    for (int i = 0; i < 2; i++) {
        actor_t *node = link->ways[i].to;
        bool is_told = link->notice == NOTICE_BOTH || (i == 1 && link->notice == NOTICE_CONNECTOR);
        if (!node->is_alive || !is_told) continue;
        link->ways[i].is_broken = true;
        node->has_broken = node->is_turn_wanted = true;
        node_want_turn(self, node);
    }
}

void link_mourn(sim_t *self, actor_t *node)
{
    if (!node->has_broken) return;
    node->has_broken = false;
    for (uint32_t i = 0; i < self->node_count; i++) {
        direction_t *in = node->to[i] ? back(node->to[i]) : NULL;
        if (!in || !in->is_broken) continue;
        in->is_broken = false;
        peer_down(self, in);
    }
}

/* Nobody was silent while we did not listen. */
void link_forgive(sim_t *self, actor_t *node)
{
    for (uint32_t i = 0; i < self->node_count; i++)
        if (node->to[i]) back(node->to[i])->heard_us = self->now_us;
}

static void beat(sim_t *self, direction_t *way)
{
    uint64_t interval_us = (uint64_t)self->config.timing.heartbeat_ms * 1000;
    if (!way->link->is_connected || back(way)->epoch == 0 ||
        self->now_us - way->sent_us < interval_us)
        return;
    msg_t *m = &self->outgoing;
    msg_init(m, MSG_heartbeat);
    m->header = (header_t){ .epoch = way->from->epoch,
                            .to_epoch = back(way)->epoch,
                            .sequence = ++way->sequence,
                            .sent_us = self->now_us };
    link_write(self, way, m);
}

/* A connector that hears nothing gives its connection up for a new one. */
static void give_up(sim_t *self, direction_t *in)
{
    actor_t *node = in->to;
    trace_line(self, "%s.%u hears nothing of %s.%u", role_names[node->address.role],
               node->address.index, role_names[in->from->address.role], in->from->address.index);
    peer_down(self, in);
    node->is_turn_wanted = true;
    direction_t *out = back(in);
    if (!out->is_dealer) return;
    link_break(self, in->link, random_chance(self, 0.5) ? NOTICE_BOTH : NOTICE_CONNECTOR);
    link_drop_flight(out);
    link_connect_soon(self, in->link);
}

void link_tick(sim_t *self, actor_t *node)
{
    uint64_t dead_us = (uint64_t)self->config.timing.dead_ms * 1000;
    for (uint32_t i = 0; i < self->node_count; i++) {
        direction_t *out = node->to[i];
        if (!out) continue;
        beat(self, out);
        if (back(out)->epoch && self->now_us - back(out)->heard_us > dead_us)
            give_up(self, back(out));
    }
    node_want_turn(self, node);
}
