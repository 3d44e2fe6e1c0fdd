/* runtime/zmq/links.c - the sockets of an actor: one ROUTER for those who connect, one DEALER for
 * each peer it connects to. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "state.h"

/* ---- events: they only say that something may be there; the turn looks ---- */

static void on_socket(evutil_socket_t descriptor, short what, void *arg)
{
    channel_t *channel = arg;
    channel->may_read = true;
}

static void on_monitor(evutil_socket_t descriptor, short what, void *arg)
{
    channel_t *channel = arg;
    channel->may_monitor = true;
}

static struct event *watch_socket(actor_t *world, void *socket, event_callback_fn callback,
                                  void *arg)
{
    int descriptor = -1;
    size_t size = sizeof descriptor;
    if (zmq_getsockopt(socket, ZMQ_FD, &descriptor, &size)) return NULL;
    struct event *event =
        event_new(world->base, descriptor, EV_READ | EV_PERSIST | EV_ET, callback, arg);
    if (event && event_add(event, NULL)) {
        event_free(event);
        return NULL;
    }
    return event;
}

/* ---- opening ---- */

static void set_int(void *socket, int option, int value)
{
    invariant(zmq_setsockopt(socket, option, &value, sizeof value) == 0);
}

static int frames_mark(uint32_t mark)
{
    uint32_t frames = mark / FRAMES_PER_MARK;
    return (int)(frames < FRAMES_MARK_MIN ? FRAMES_MARK_MIN : frames);
}

static void set_options(const actor_t *world, void *socket, uint32_t mark, bool is_connecting)
{
    int64_t largest = LARGE_BYTES;
    int dead_ms = (int)world->config->timing.dead_ms;
    set_int(socket, ZMQ_LINGER, 0);
    set_int(socket, ZMQ_SNDHWM, frames_mark(mark));
    set_int(socket, ZMQ_RCVHWM, frames_mark(mark));
    /* Whoever connects sends ZMTP's heartbeats, for both sides.  A ROUTER that sent them would be
     * ended by an assertion of libzmq 4.3.4 when a peer closes while its input waits. */
    if (is_connecting) {
        set_int(socket, ZMQ_HEARTBEAT_IVL, dead_ms / 2);
        set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, dead_ms);
        set_int(socket, ZMQ_HEARTBEAT_TTL, dead_ms);
    }
    set_int(socket, ZMQ_HANDSHAKE_IVL, 5000);
    invariant(zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &largest, sizeof largest) == 0);
}

/* The largest mark of those who connect to us: ZeroMQ has one value for the whole socket. */
static uint32_t router_mark(const actor_t *world)
{
    uint32_t mark = 0;
    for (role_t role = 0; role < ROLES_MAX; role++) {
        const link_t *link = link_between(role, world->self.role);
        if (link && link->binder == world->self.role && link->mark > mark) mark = link->mark;
    }
    return mark;
}

static err_t refuse(actor_t *world, const char *what, const char *endpoint)
{
    actor_log(world, LOG_ERROR, "WIRE-SOCKET", "%s %s: %s", what, endpoint, zmq_strerror(errno));
    return ERR_IO;
}

static err_t router_open(actor_t *world, uint32_t mark)
{
    char endpoint[PATH_BYTES];
    channel_t *channel = &world->channels[0];
    if (world_endpoint(world->config, world->self, endpoint, sizeof endpoint) == 0)
        return ERR_CONFIG;
    channel->world = world;
    channel->socket = zmq_socket(world->context, ZMQ_ROUTER);
    if (!channel->socket) return refuse(world, "socket for", endpoint);
    set_options(world, channel->socket, mark, false);
    set_int(channel->socket, ZMQ_ROUTER_MANDATORY, 1);
    set_int(channel->socket, ZMQ_BACKLOG, 1024);
    err_t error = curve_bind(world, channel->socket);
    if (error) return error;
    if (zmq_bind(channel->socket, endpoint)) return refuse(world, "cannot bind", endpoint);
    channel->event = watch_socket(world, channel->socket, on_socket, channel);
    channel->may_read = true;
    return channel->event ? ERR_OK : ERR_IO;
}

/* The path of an ipc endpoint; NULL: another carrier's. */
static const char *path_of(const char *endpoint)
{
    static const char ipc[] = "ipc://";
    return strncmp(endpoint, ipc, sizeof ipc - 1) == 0 ? endpoint + sizeof ipc - 1 : NULL;
}

/* The old name stays bound, for libzmq would remove the new one when it lets go of it. */
void links_keep(actor_t *world)
{
    char endpoint[PATH_BYTES];
    void *socket = world->channels[0].socket;
    if (!socket || world_endpoint(world->config, world->self, endpoint, sizeof endpoint) == 0)
        return;
    const char *path = path_of(endpoint);
    if (!path || access(path, F_OK) == 0 || errno != ENOENT) return;
    if (zmq_bind(socket, endpoint)) {
        world_fail(world, refuse(world, "cannot bind", endpoint));
        return;
    }
    actor_log(world, LOG_WARN, "WIRE-NAME", "somebody deleted %s; it is back", path);
}

/* Tells of connections made and ended.  Each opening has an endpoint of its own, for the old one
 * may linger. */
static err_t monitor_open(channel_t *channel)
{
    char endpoint[64];
    actor_t *world = channel->world;
    (void)snprintf(endpoint, sizeof endpoint, "inproc://monitor-%u-%u",
                   (unsigned)(channel - world->channels), channel->openings++);
    int events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED |
                 ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL;
    if (zmq_socket_monitor(channel->socket, endpoint, events)) return ERR_IO;
    channel->monitor = zmq_socket(world->context, ZMQ_PAIR);
    if (!channel->monitor || zmq_connect(channel->monitor, endpoint)) return ERR_IO;
    channel->monitor_event = watch_socket(world, channel->monitor, on_monitor, channel);
    channel->may_monitor = true;
    return channel->monitor_event ? ERR_OK : ERR_IO;
}

static err_t dealer_open(actor_t *world, channel_t *channel)
{
    char endpoint[PATH_BYTES], id[64];
    peer_t *peer = channel->peer;
    channel->world = world;
    if (world_endpoint(world->config, peer->address, endpoint, sizeof endpoint) == 0)
        return ERR_CONFIG;
    channel->socket = zmq_socket(world->context, ZMQ_DEALER);
    if (!channel->socket) return refuse(world, "socket for", endpoint);
    set_options(world, channel->socket, peer->mark, true);
    int size = snprintf(id, sizeof id, "%s.%u", role_names[world->self.role], world->self.index);
    invariant(zmq_setsockopt(channel->socket, ZMQ_ROUTING_ID, id, (size_t)size) == 0);
    set_int(channel->socket, ZMQ_IMMEDIATE,
            1); /* what was queued for a dead peer dies with its connection */
    set_int(channel->socket, ZMQ_RECONNECT_IVL, 20);
    set_int(channel->socket, ZMQ_RECONNECT_IVL_MAX, 200);
    err_t error = curve_connect(world, channel->socket, peer->address);
    if (!error) error = monitor_open(channel);
    if (error) return error;
    if (zmq_connect(channel->socket, endpoint)) return refuse(world, "cannot connect to", endpoint);
    channel->event = watch_socket(world, channel->socket, on_socket, channel);
    channel->may_read = true;
    return channel->event ? ERR_OK : ERR_IO;
}

static void channel_close(channel_t *channel)
{
    if (channel->has_frame) (void)zmq_msg_close(&channel->frame);
    if (channel->event) event_free(channel->event);
    if (channel->monitor_event) event_free(channel->monitor_event);
    if (channel->monitor) {
        int linger_ms = 0;
        (void)zmq_socket_monitor(channel->socket, NULL, 0);
        (void)zmq_setsockopt(channel->monitor, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
        (void)zmq_close(channel->monitor);
    }
    if (channel->socket) (void)zmq_close(channel->socket);
    channel->event = channel->monitor_event = NULL;
    channel->socket = channel->monitor = NULL;
    channel->has_frame = false;
}

err_t links_open(actor_t *world)
{
    uint32_t mark = router_mark(world);
    (void)zmq_ctx_set(world->context, ZMQ_MAX_SOCKETS, (int)(world->channel_count * 3 + 64));
    err_t error = mark ? router_open(world, mark) : ERR_OK;
    for (uint32_t i = 1; i < world->channel_count && !error; i++)
        error = dealer_open(world, &world->channels[i]);
    return error;
}

void links_close(actor_t *world)
{
    for (uint32_t i = 0; i < world->channel_count; i++) {
        channel_t *channel = &world->channels[i];
        if (channel->socket && !world->is_failed && world->is_stopping) {
            int linger_ms = STOP_LINGER_MS;
            (void)zmq_setsockopt(channel->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
        }
        channel_close(channel);
    }
}

void link_reopen(peer_t *peer)
{
    channel_t *channel = peer->channel;
    actor_t *world = channel->world;
    invariant(channel->peer == peer);
    channel_close(channel);
    peer->connected_us = 0;
    if (dealer_open(world, channel))
        actor_log(world, LOG_ERROR, "WIRE-REOPEN", "the link to %s.%u is lost for good",
                  role_names[peer->address.role], peer->address.index);
}

/* ---- receiving ---- */

/* Messages of the current frame until it or the budget ends. */
static void frame_handle(channel_t *channel, uint32_t *budget)
{
    actor_t *world = channel->world;
    while (channel->has_frame && *budget > 0) {
        const uint8_t *bytes = zmq_msg_data(&channel->frame);
        size_t left = zmq_msg_size(&channel->frame) - channel->frame_used, used = 0;
        if (left > 0 && msg_decode(&world->incoming, bytes + channel->frame_used, left, &used)) {
            metrics_count(&world->metrics, METRIC_frames_refused_total, 1);
            left = 0;
        }
        if (left == 0) {
            (void)zmq_msg_close(&channel->frame);
            channel->has_frame = false;
            return;
        }
        channel->frame_used += used;
        --*budget;
        peer_hear(world, channel->frame_peer, &world->incoming);
    }
}

/* What follows in a message of more parts than we send. */
static bool drop_rest(channel_t *channel, zmq_msg_t *part)
{
    bool has_more = zmq_msg_more(part);
    while (zmq_msg_more(part))
        if (zmq_msg_recv(part, channel->socket, ZMQ_DONTWAIT) < 0) break;
    return has_more;
}

/* The sender of what comes next at the ROUTER, from the routing id before it; false: nothing was
 * there. */
static bool receive_id(channel_t *channel, uint8_t *id, size_t *id_size)
{
    int size = zmq_recv(channel->socket, id, ROUTING_ID_MAX, ZMQ_DONTWAIT);
    if (size < 0) return false;
    *id_size = (size_t)size;
    return true;
}

/* One frame into channel->frame; false: none was there. */
static bool frame_receive(channel_t *channel)
{
    actor_t *world = channel->world;
    uint8_t id[ROUTING_ID_MAX];
    size_t id_size = 0;
    bool is_router = channel->peer == NULL;
    if (is_router && !receive_id(channel, id, &id_size)) return false;
    (void)zmq_msg_init(&channel->frame);
    if (zmq_msg_recv(&channel->frame, channel->socket, ZMQ_DONTWAIT) < 0) {
        (void)zmq_msg_close(&channel->frame);
        return false;
    }
    /* ZeroMQ gives the real size of a routing id that it had to cut. */
    bool is_refused = drop_rest(channel, &channel->frame) || id_size > ROUTING_ID_MAX;
    channel->frame_peer = channel->peer;
    if (is_router && !is_refused && curve_agrees(world, &channel->frame, id, id_size))
        channel->frame_peer = peer_of_id(world, id, id_size);
    channel->frame_used = 0;
    channel->has_frame = !is_refused && channel->frame_peer && zmq_msg_size(&channel->frame) > 0;
    if (!channel->has_frame) {
        metrics_count(&world->metrics, METRIC_frames_refused_total, 1);
        (void)zmq_msg_close(&channel->frame);
    }
    return true;
}

/* At most FRAMES_PER_ROUND frames, so that one loud peer does not keep the others waiting. */
enum { FRAMES_PER_ROUND = 16 };

static void channel_receive(channel_t *channel, uint32_t *budget)
{
    for (int frames = 0; frames<FRAMES_PER_ROUND && * budget> 0; frames++) {
        if (!channel->has_frame && !frame_receive(channel)) {
            channel->may_read = false;
            return;
        }
        frame_handle(channel, budget);
    }
}

static void on_connected(channel_t *channel)
{
    peer_t *peer = channel->peer;
    peer_lose(channel->world, peer); /* whatever was up belonged to the connection before */
    peers_deliver_lost(channel->world);
    peer->connected_us = actor_now_us(channel->world);
    peer_say_hello(channel->world, peer);
}

static void monitor_receive(channel_t *channel)
{
    uint8_t head[6];
    uint16_t event;
    while (zmq_recv(channel->monitor, head, sizeof head, ZMQ_DONTWAIT) == (int)sizeof head) {
        zmq_msg_t address;
        (void)zmq_msg_init(&address);
        (void)zmq_msg_recv(&address, channel->monitor, ZMQ_DONTWAIT);
        (void)zmq_msg_close(&address);
        memcpy(&event, head, sizeof event);
        if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
            on_connected(channel);
        else
            peer_lose(channel->world, channel->peer);
    }
    channel->may_monitor = false;
}

void links_receive(actor_t *world, uint32_t *budget)
{
    for (uint32_t i = 0; i<world->channel_count && * budget> 0; i++) {
        channel_t *channel = &world->channels[i];
        if (!channel->socket) continue;
        if (channel->may_read || channel->has_frame) channel_receive(channel, budget);
        /* What a peer said before it went away comes first. */
        if (channel->may_monitor && !channel->may_read && !channel->has_frame)
            monitor_receive(channel);
    }
}

bool links_have_more(actor_t *world)
{
    bool has_more = false;
    for (uint32_t i = 0; i < world->channel_count; i++) {
        channel_t *channel = &world->channels[i];
        if (!channel->socket) continue;
        if (channel->may_read && !channel->has_frame) {
            int events = 0;
            size_t size = sizeof events;
            (void)zmq_getsockopt(channel->socket, ZMQ_EVENTS, &events, &size);
            channel->may_read = (events & ZMQ_POLLIN) != 0;
        }
        has_more = has_more || channel->may_read || channel->has_frame || channel->may_monitor;
    }
    return has_more;
}
