/* runtime/zmq/peers.c - who is up: hello makes a peer up, silence or a broken connection makes it
 * down, an old life is not heard.
 *
 * A hello with to_epoch 0 says "I do not know you (any more)" and is answered with a hello.  Heard
 * from a peer that is up it means that the peer had given us up, so that everything in between was
 * lost: the actor is told peer_down and then peer_up.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../base/company.h"
#include "state.h"

static uint64_t dead_us(const actor_t *world)
{
    return (uint64_t)world->config->timing.dead_ms * 1000;
}

/* ---- the table ---- */

void peer_init(actor_t *world, peer_t *peer, address_t who, uint32_t mark)
{
    memset(peer, 0, sizeof *peer);
    peer->address = who;
    peer->mark = mark;
    peer->next_client = -1;
    peer->channel = &world->channels[0];
}

/* Peers that connect to us are known by their routing id; to others we open a DEALER of our own. */
static void place_peer(actor_t *world, peer_t *peer, const link_t *link, uint32_t *channels)
{
    if (link->connector == world->self.role) {
        peer->channel = &world->channels[(*channels)++];
        peer->channel->peer = peer;
    } else {
        const char *role = role_names[peer->address.role];
        peer->id_size = (uint32_t)snprintf((char *)peer->id, sizeof peer->id, "%s.%u", role,
                                           peer->address.index);
    }
}

static uint32_t count_peers(actor_t *world)
{
    uint32_t count = 0;
    for (role_t role = 0; role < ROLES_MAX; role++) {
        if (!link_between(role, world->self.role)) continue;
        world->first_peer[role] = count;
        world->role_peers[role] = company_count(world->config, role);
        count += world->role_peers[role];
    }
    return count;
}

err_t peers_open(actor_t *world)
{
    world->peer_count = count_peers(world);
    world->channels = calloc(world->peer_count + 1, sizeof *world->channels);
    world->peers = calloc(world->peer_count + 1, sizeof *world->peers);
    world->dirty = calloc(world->peer_count + CLIENTS_MAX, sizeof *world->dirty);
    if (!world->channels || !world->peers || !world->dirty) return ERR_NO_SPACE;
    uint32_t channels = 1;
    for (role_t role = 0; role < ROLES_MAX; role++) {
        const link_t *link = link_between(role, world->self.role);
        for (u32 i = 0; i < world->role_peers[role]; i++) {
            peer_t *peer = &world->peers[world->first_peer[role] + i];
            peer_init(world, peer, (address_t){ role, i }, link->mark);
            place_peer(world, peer, link, &channels);
        }
    }
    world->channel_count = channels;
    return clients_open(world);
}

void peers_close(actor_t *world)
{
    free(world->channels);
    free(world->peers);
    free(world->dirty);
    free(world->clients);
    world->channels = NULL;
    world->peers = world->clients = NULL;
    world->dirty = NULL;
}

peer_t *peer_find(const actor_t *world, address_t who)
{
    if ((unsigned)who.role >= ROLES_MAX) return NULL;
    if (who.role == ROLE_client) {
        if (!world->clients || who.index >= CLIENTS_MAX) return NULL;
        return world->clients[who.index].id_size ? &world->clients[who.index] : NULL;
    }
    if (who.index >= world->role_peers[who.role]) return NULL;
    return &world->peers[world->first_peer[who.role] + who.index];
}

/* ---- up and down ---- */

void peer_say_hello(actor_t *world, peer_t *peer)
{
    msg_t hello;
    msg_init(&hello, MSG_hello);
    hello.hello.role = world->self.role;
    hello.hello.index = world->self.index;
    hello.hello.model_key = world->model_key;
    (void)snprintf(hello.hello.version, sizeof hello.hello.version, "%s", TROUPE_VERSION);
    peer->asked_us = actor_now_us(world);
    peer->owes_hello = peer_queue(world, peer, &hello) != ERR_OK;
}

void peer_lose(actor_t *world, peer_t *peer)
{
    peer_drop_batch(world, peer);
    peer->connected_us = 0;
    peer->owes_hello = false;
    bool is_client = peer->address.role == ROLE_client;
    if (peer->epoch == 0 && !is_client) return;
    peer->is_lost = true;
    world->has_lost = true;
}

static void tell_down(actor_t *world, peer_t *peer)
{
    msg_t down;
    uint64_t epoch = peer->epoch;
    peer_drop_batch(world, peer);
    peer->is_lost = false;
    peer->epoch = 0;
    msg_init(&down, MSG_peer_down);
    down.peer_down.role = peer->address.role;
    down.peer_down.index = peer->address.index;
    down.peer_down.peer_epoch = epoch;
    if (epoch && world->class->on[MSG_peer_down]) deliver(world, &down);
    if (peer->address.role == ROLE_client && peer->id_size) client_release(world, peer);
}

/* heard: its sequence before this message. */
static void tell_up(actor_t *world, peer_t *peer, uint64_t epoch, uint64_t heard)
{
    msg_t up;
    peer->epoch = peer->last_epoch = epoch;
    peer->acknowledged = peer->sequence; /* what was under way to an earlier connection is gone */
    peer->heard = peer->told = heard;
    peer->heard_us = actor_now_us(world);
    peer->is_refused = false;
    msg_init(&up, MSG_peer_up);
    up.peer_up.role = peer->address.role;
    up.peer_up.index = peer->address.index;
    up.peer_up.peer_epoch = epoch;
    if (world->class->on[MSG_peer_up]) deliver(world, &up);
}

void peers_deliver_lost(actor_t *world)
{
    if (!world->has_lost) return;
    world->has_lost = false;
    for (uint32_t i = 0; i < world->peer_count; i++)
        if (world->peers[i].is_lost) tell_down(world, &world->peers[i]);
    for (uint32_t i = 0; world->clients && i < CLIENTS_MAX; i++)
        if (world->clients[i].is_lost) tell_down(world, &world->clients[i]);
}

/* ---- what a peer says ---- */

static void count_stale(actor_t *world)
{
    metrics_count(&world->metrics, METRIC_messages_stale_total, 1);
}

static void count_refused(actor_t *world)
{
    metrics_count(&world->metrics, METRIC_frames_refused_total, 1);
}

/* A hello must name who its routing id names, serve the same model, and be of the peer's latest
 * life. */
static bool is_welcome(actor_t *world, peer_t *peer, const msg_t *m)
{
    const msg_hello_t *hello = &m->hello;
    bool is_client = peer->address.role == ROLE_client;
    if (hello->role != (u32)peer->address.role ||
        (!is_client && hello->index != peer->address.index) || m->header.epoch == 0) {
        count_refused(world);
        return false;
    }
    if (!is_client && m->header.epoch < peer->last_epoch) {
        count_stale(world);
        return false;
    }
    bool is_other_model =
        hello->model_key && world->model_key && hello->model_key != world->model_key;
    if (is_other_model && !peer->is_refused) {
        peer->is_refused = true;
        actor_log(world, LOG_ERROR, "WIRE-MODEL",
                  "%s.%u serves model key %016" PRIx64 ", this actor %016" PRIx64
                  "; no link is made",
                  role_names[peer->address.role], peer->address.index, hello->model_key,
                  world->model_key);
    }
    return !is_other_model;
}

static void on_hello(actor_t *world, peer_t *peer, const msg_t *m)
{
    uint64_t epoch = m->header.epoch, to_epoch = m->header.to_epoch;
    if (!is_welcome(world, peer, m)) return;
    if (to_epoch && to_epoch != world->epoch) {
        count_stale(world);
        return;
    }
    bool is_reset = peer->epoch && (peer->epoch != epoch || to_epoch == 0);
    if ((is_reset && peer->address.role != ROLE_client) || peer->is_lost) tell_down(world, peer);
    if (peer->id_size == 0 && !peer->channel->peer) return; /* a client that was lost this moment */
    bool was_up = peer->epoch == epoch;
    peer->epoch = epoch; /* our answer must name the life it answers */
    if (to_epoch == 0) peer_say_hello(world, peer);
    if (!was_up) tell_up(world, peer, epoch, m->header.sequence);
}

/* Clients speak for themselves only: nothing that workers and balancers say to each other. */
static bool is_for_clients(msg_type_t type)
{
    switch (type) {
    case MSG_status_request:
    case MSG_stop:
    case MSG_client_submit:
    case MSG_client_cancel:
        return true;
    default:
        return false;
    }
}

/* A client may leave out its hello. */
static bool is_client_welcome(actor_t *world, peer_t *peer, const msg_t *m)
{
    if (!is_for_clients(m->type)) {
        count_refused(world);
        return false;
    }
    if (peer->epoch == 0 && !peer->is_lost)
        tell_up(world, peer, m->header.epoch ? m->header.epoch : 1, 0);
    return true;
}

void peer_say_heartbeat(actor_t *world, peer_t *peer)
{
    msg_t heartbeat;
    msg_init(&heartbeat, MSG_heartbeat);
    heartbeat.heartbeat.heard = peer->heard;
    if (peer_queue(world, peer, &heartbeat)) return;
    peer->told = peer->heard;
    peer->sent_us = actor_now_us(world);
}

/* What it has handled of ours, and what we have handled of its. */
static void note_sequence(actor_t *world, peer_t *peer, const msg_t *m)
{
    if (peer->address.role == ROLE_client) return;
    if (m->header.sequence > peer->heard) peer->heard = m->header.sequence;
    if (peer->heard - peer->told >= peer->mark / ACKNOWLEDGE_PER_MARK)
        peer_say_heartbeat(world, peer);
    if (m->type != MSG_heartbeat) return;
    u64 heard = m->heartbeat.heard;
    if (heard > peer->acknowledged && heard <= peer->sequence) peer->acknowledged = heard;
}

void peer_hear(actor_t *world, peer_t *peer, msg_t *m)
{
    bool is_client = peer->address.role == ROLE_client;
    m->header.from = peer->address;
    if (m->type == MSG_hello) {
        on_hello(world, peer, m);
        return;
    }
    if (is_client && (m->type == MSG_heartbeat || !is_client_welcome(world, peer, m))) return;
    if (is_client) peer->active_us = actor_now_us(world);
    bool is_foreign = m->header.to_epoch != 0 && m->header.to_epoch != world->epoch;
    bool is_known =
        peer->epoch != 0 && !peer->is_lost && (is_client || m->header.epoch == peer->epoch);
    if (is_foreign || !is_known) {
        if (m->type != MSG_heartbeat) count_stale(world);
        /* It still takes us for up, or we lost its hello: ask, but let the answer come before
         * asking again. */
        uint64_t now_us = actor_now_us(world);
        if (peer->epoch == 0 && now_us - peer->asked_us > dead_us(world) / 2)
            peer_say_hello(world, peer);
        return;
    }
    peer->heard_us = actor_now_us(world);
    note_sequence(world, peer, m);
    if (m->type == MSG_stop) stop_by_message(world, m);
    if (m->type != MSG_heartbeat) deliver(world, m);
}

/* ---- silence ---- */

static void beat(actor_t *world, peer_t *peer, uint64_t now_us)
{
    uint64_t interval_us = (uint64_t)world->config->timing.heartbeat_ms * 1000;
    bool is_silent = !peer->batch && now_us - peer->sent_us >= interval_us;
    if (!is_silent && peer->told == peer->heard) return;
    peer_say_heartbeat(world, peer);
}

static void watch(actor_t *world, peer_t *peer, uint64_t now_us)
{
    bool has_dealer = peer->channel->peer == peer;
    if (peer->owes_hello && peer->connected_us) peer_say_hello(world, peer);
    if (peer->epoch && !peer->is_lost) {
        if (now_us - peer->heard_us < dead_us(world)) {
            beat(world, peer, now_us);
            return;
        }
        actor_log(world, LOG_WARN, "WIRE-SILENT", "%s.%u was silent for %" PRIu64 " ms",
                  role_names[peer->address.role], peer->address.index,
                  (now_us - peer->heard_us) / 1000);
        peer_lose(world, peer);
        if (has_dealer) link_reopen(peer);
        return;
    }
    /* Connected, but our hello is not answered: the binder may still hold an older connection of
     * ours. */
    if (has_dealer && peer->connected_us && now_us - peer->connected_us > dead_us(world))
        link_reopen(peer);
}

/* One that takes nothing though its connection lives is cut, as a stream over HTTP is. */
static void watch_client(actor_t *world, peer_t *client, uint64_t now_us)
{
    uint64_t stall_us = (uint64_t)world->config->http.stream_stall_seconds * 1000000;
    if (client->stuck_us == 0 || now_us - client->stuck_us < stall_us) {
        beat(world, client, now_us);
        return;
    }
    actor_log(world, LOG_WARN, "WIRE-STALLED", "client.%u took nothing for %" PRIu64 " ms",
              client->address.index, (now_us - client->stuck_us) / 1000);
    peer_lose(world, client);
}

/* After a pause of our own (a stopped process) nobody was silent or stuck: we did not look. */
static void forgive(actor_t *world, uint64_t now_us)
{
    for (uint32_t i = 0; i < world->peer_count; i++) world->peers[i].heard_us = now_us;
    for (uint32_t i = 0; world->clients && i < CLIENTS_MAX; i++)
        if (world->clients[i].stuck_us) world->clients[i].stuck_us = now_us;
}

void peers_tick(actor_t *world)
{
    if (!world->is_linked) return;
    uint64_t now_us = actor_now_us(world);
    if (world->tick_us && now_us - world->tick_us > dead_us(world) / 2) forgive(world, now_us);
    world->tick_us = now_us;
    for (uint32_t i = 0; i < world->peer_count; i++) watch(world, &world->peers[i], now_us);
    for (uint32_t i = 0; world->clients && i < CLIENTS_MAX; i++) {
        peer_t *client = &world->clients[i];
        if (client->id_size && !client->is_lost) watch_client(world, client, now_us);
    }
}
