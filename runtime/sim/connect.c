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

/* ---- peers as an actor sees them
 * --------------------------------------------------------------------------- */

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

bool link_hear(sim_t *self, direction_t *way, const msg_t *m)
{
    uint64_t epoch = m->header.epoch;
    if (epoch < way->epoch_seen) return false;
    if (m->type == MSG_hello) {
        /* A new greeting means a new connection: whatever the old one carried may be lost. */
        peer_down(self, way);
        peer_up(self, way, epoch);
        return true;
    }
    if (epoch > way->epoch_seen) return false; /* it has not said hello */
    if (way->epoch == 0) peer_up(self, way, epoch);
    way->heard_us = self->now_us;
    return true;
}

void link_notice(sim_t *self, link_t *link)
{
    for (int i = 0; i < 2; i++) {
        actor_t *node = link->ways[i].to;
        if (!node->is_alive || node->is_paused) continue;
        peer_down(self, &link->ways[i]);
        node->is_turn_wanted = true;
        node_want_turn(self, node);
    }
}

static void beat(sim_t *self, direction_t *way)
{
    uint64_t interval_us = (uint64_t)self->config.timing.heartbeat_ms * 1000;
    if (!way->link->is_connected || self->now_us - way->sent_us < interval_us) return;
    msg_t *m = &self->outgoing;
    msg_init(m, MSG_heartbeat);
    m->header = (header_t){ .epoch = way->from->epoch,
                            .to_epoch = link_way(self, way->to, way->from)->epoch,
                            .sequence = ++way->sequence,
                            .sent_us = self->now_us };
    link_write(self, way, m);
}

void link_tick(sim_t *self, actor_t *node)
{
    uint64_t dead_us = (uint64_t)self->config.timing.dead_ms * 1000;
    for (uint32_t i = 0; i < self->node_count; i++) {
        direction_t *out = node->to[i];
        if (!out) continue;
        beat(self, out);
        direction_t *in = link_way(self, out->to, node);
        if (in->epoch && self->now_us - in->heard_us > dead_us) {
            trace_line(self, "%s.%u hears nothing of %s.%u", role_names[node->address.role],
                       node->address.index, role_names[in->from->address.role],
                       in->from->address.index);
            peer_down(self, in);
            node->is_turn_wanted = true;
        }
    }
    node_want_turn(self, node);
}
