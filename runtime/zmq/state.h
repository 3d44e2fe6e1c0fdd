/* runtime/zmq/state.h - one actor's world from the inside: its links, its peers, its loop. */
#ifndef RUNTIME_ZMQ_STATE_H
#define RUNTIME_ZMQ_STATE_H

#include <event2/event.h>
#include <limits.h>
#include <zmq.h>

#include "../world.h"
#include "world_internal.h"

enum {
    CLIENTS_MAX = 1024,   /* ZeroMQ clients of one actor at once */
    IDLE_BOUNDS = 10,     /* idle for so many detection bounds a client makes room for another */
    ROUTING_ID_MAX = 255, /* ZMTP's own limit */
    ACKNOWLEDGE_PER_MARK =
        4, /* what was handled is told to the sender after a mark divided by this */
    BATCH_BYTES = 256 * 1024,                /* messages to one peer that leave as one frame */
    LARGE_BYTES = MESSAGE_BYTES_MAX + 65536, /* one message that fits no batch */
    FRAMES_PER_MARK = 16,  /* ZeroMQ counts frames: its marks are links.def's divided by this... */
    FRAMES_MARK_MIN = 16,  /* ...but at least this */
    TICK_MS = 20,          /* how often silence and unsent batches are looked at */
    STOP_DRAIN_MS = 10000, /* for running requests after SIGTERM */
    STOP_AGAIN_MS = 500,   /* a second signal this much later ends the drain */
    STOP_LINGER_MS = 500,  /* for the last frames to leave */
    CHECK_EVERY = 1024,    /* handlers between two runs of class->check outside of tests */
    PATH_BYTES = 256,
    ACTOR_PATH_BYTES = PATH_BYTES + 64, /* of a file in the directory that bears an actor's name */
};

/* One row of links.def. */
typedef struct {
    role_t connector, binder;
    uint32_t mark;
} link_t;

/* Messages waiting for the end of the turn, encoded behind each other. */
typedef struct batch {
    struct batch *next; /* in the free list */
    size_t size;
    uint32_t count;
    uint8_t bytes[BATCH_BYTES];
} batch_t;

typedef struct channel channel_t;

/*   DOWN --hello--> UP --silence, disconnect, failed send--> LOST --peer_down delivered--> DOWN
 * UP is epoch != 0.  LOST (is_lost) exists because a send may fail inside a handler and peer_down
 * cannot be delivered there. */
typedef struct {
    address_t address;
    channel_t *channel; /* a DEALER of its own, or the one ROUTER */
    uint32_t mark;
    uint32_t id_size; /* ROUTER: its routing id */
    uint8_t id[ROUTING_ID_MAX];
    bool is_lost;
    bool is_dirty;         /* in the list of those with unsent messages */
    bool owes_hello;       /* DEALER: connected, and hello could not be sent yet */
    bool is_refused;       /* said once in the log, until it is up again */
    uint64_t epoch;        /* its life; 0: down */
    uint64_t last_epoch;   /* its latest life, also after it went down */
    uint64_t sequence;     /* of our last message to it */
    uint64_t acknowledged; /* of our last message that it says it has handled */
    uint64_t heard, told;  /* of its last message that we have handled, and have told it so */
    uint64_t sent_us, heard_us, asked_us, connected_us;
    uint64_t stuck_us;  /* since when ZeroMQ refuses its batch; 0: it does not */
    uint64_t active_us; /* of the last message from or to a client, heartbeats apart */
    batch_t *batch;
    int32_t next_client; /* hash chain and free list of clients; -1 ends it */
} peer_t;

/* One socket, with what of its current frame is not yet handled. */
struct channel {
    actor_t *world;
    void *socket, *monitor;
    struct event *event, *monitor_event;
    peer_t *peer;  /* NULL: the ROUTER */
    bool may_read; /* ZMQ_FD is edge-triggered: true until a receive said EAGAIN */
    bool may_monitor;
    uint32_t openings; /* names the monitor's endpoint */
    bool has_frame;
    zmq_msg_t frame;
    size_t frame_used;
    peer_t *frame_peer;
};

/* A local message on its way to the next turn. */
typedef struct posted {
    struct posted *next;
    msg_t message;
    uint8_t bytes[];
} posted_t;

typedef struct memory {
    struct memory *next;
    max_align_t data[];
} memory_t;

/* Ports keep their state here; a program that uses none of a port's calls does not link it. */
typedef enum { PORT_HTTP, PORT_ENGINE, PORT_POOL, PORT_PROCESS, PORTS_MAX } port_name_t;

typedef struct {
    void *state;
    world_hooks_t hooks;
} port_t;

enum { RANDOM_WORDS = 32 };

struct actor {
    world_options_t options;
    const actor_class_t *class;
    const config_t *config;
    address_t self;
    uint64_t epoch, started_us, model_key;
    void *state;
    char directory[PATH_BYTES];
    int lock_descriptor;

    struct event_base *base;
    struct event *tick, *alarm, *stop_events[3];
    uint64_t alarm_us, tick_us;
    bool is_in_init, is_alarm_due, is_check_always, is_failed;
    bool is_loading; /* its engine; until then it has no links, and nobody takes it for up */
    bool is_linked;
    err_t failure;    /* what world_run returns when is_failed */
    world_why_t why;  /* the latest error that was logged */
    uint32_t handled; /* since the last check */
    bool is_stopping;
    uint32_t stop_signals;
    uint64_t stop_signal_us;
    uint64_t stop_deadline_us;

    void *context; /* libzmq's; one for each actor, so that nothing is shared between threads */
    channel_t *channels; /* [0] is the ROUTER, socket NULL where the role binds nothing */
    uint32_t channel_count;
    peer_t *peers;
    uint32_t peer_count;
    uint32_t first_peer[ROLES_MAX], role_peers[ROLES_MAX];
    peer_t **dirty;
    uint32_t dirty_count;
    bool has_lost;
    peer_t *clients; /* NULL: the role has no clients */
    int32_t client_buckets[CLIENTS_MAX];
    int32_t client_free_first, client_free_last;

    batch_t *batch_free;
    uint32_t batches_used; /* the others were never taken: no page of theirs is resident */
    void *batch_memory;
    size_t batch_memory_bytes;
    uint8_t *large;
    uint64_t large_bytes;
    msg_t outgoing, incoming;
    void *curve; /* certificates and the ZAP handler, see curve.c */

    metrics_t metrics;
    uint64_t reported_us;
    uint32_t reports;
    posted_t *posted_first, *posted_last;
    memory_t *memory;
    uint64_t random[RANDOM_WORDS];
    uint32_t random_left;
    port_t ports[PORTS_MAX];
};

/* ---- table.c: who is there by configuration ---- */
const link_t *link_between(role_t a, role_t b);
/* Descriptors that an actor of this role may need, HTTP connections and clients aside. */
uint32_t role_descriptors(const config_t *config, role_t role);

/* ---- links.c: sockets ---- */
MUST_CHECK err_t links_open(actor_t *world);
void links_close(actor_t *world);
/* Receive and handle what has come; at most *budget messages, which is lowered. */
void links_receive(actor_t *world, uint32_t *budget);
/* Look at ZMQ_EVENTS again, after sends; true when something waits to be received. */
bool links_have_more(actor_t *world);
/* Those who connect find us by a socket's name, which somebody may have deleted: put it back. */
void links_keep(actor_t *world);
/* Close the peer's DEALER and open it anew: ends whatever state the old connection was stuck in. */
void link_reopen(peer_t *peer);

/* ---- send.c: batches ---- */
/* Queue m for the peer, whatever its state; fills in the header.  ERR_OVERLOAD: as many messages as
 * the link's mark are under way; hello and heartbeat are not counted. */
err_t peer_queue(actor_t *world, peer_t *peer, const msg_t *m);
void peer_drop_batch(actor_t *world, peer_t *peer);
/* Give all batches to ZeroMQ; what it refuses stays. */
void batches_flush(actor_t *world);
MUST_CHECK err_t batches_open(actor_t *world);
void batches_close(actor_t *world);

/* ---- peers.c: who is up ---- */
MUST_CHECK err_t peers_open(actor_t *world);
void peers_close(actor_t *world);
peer_t *peer_find(const actor_t *world, address_t who);
void peer_init(actor_t *world, peer_t *peer, address_t who, uint32_t mark);
/* The peer behind a routing id at our ROUTER; an unknown id becomes a client.  NULL: refused. */
peer_t *peer_of_id(actor_t *world, const uint8_t *id, size_t size);
/* Whether a routing id names an actor of the company, so that no client may use it. */
bool is_actor_id(const uint8_t *id, size_t size);
/* Also tells what we have handled. */
void peer_say_heartbeat(actor_t *world, peer_t *peer);
void peer_say_hello(actor_t *world, peer_t *peer);
/* A message of a peer has come: hello, heartbeat, old lives are dealt with here, the rest is
 * delivered. */
void peer_hear(actor_t *world, peer_t *peer, msg_t *m);
/* The connection ended or a send failed: peer_down follows in the next turn. */
void peer_lose(actor_t *world, peer_t *peer);
void peers_deliver_lost(actor_t *world);
void peers_tick(actor_t *world);

/* ---- clients.c ---- */
MUST_CHECK err_t clients_open(actor_t *world);
/* Its place may be given to another client. */
void client_release(actor_t *world, peer_t *client);

/* ---- curve.c: keys ---- */
/* Prepare a socket before bind or connect; server is the binder's address, for connectors.
 * ERR_CONFIG: no such key. */
MUST_CHECK err_t curve_open(actor_t *world);
MUST_CHECK err_t curve_bind(actor_t *world, void *socket);
MUST_CHECK err_t curve_connect(actor_t *world, void *socket, address_t server);
/* True when the frame's sender proved to be who its routing id says; always true without CURVE. */
bool curve_agrees(const actor_t *world, zmq_msg_t *frame, const uint8_t *id, size_t size);
void curve_close(actor_t *world);

/* ---- directory.c ---- */
/* Hold the identity while we live.  ERR_CONFIG: another process holds it. */
MUST_CHECK err_t identity_lock(actor_t *world);
void identity_unlock(actor_t *world);
/* Remove what actors that are gone left in the directory; nothing while any but us lives. */
void directory_sweep(const actor_t *world);
/* Leave the reason of our end for the supervisor; take that of a child, empty when it left none. */
void why_leave(const actor_t *world);
void why_take(const actor_t *world, address_t who, world_why_t *why);

/* ---- report.c ---- */
void report_send(actor_t *world);

/* ---- actor_zmq.c ---- */
/* A stop from the company (not from a client, which the director passes on) stops this actor too.
 */
void stop_by_message(actor_t *world, const msg_t *m);
/* The world ends after this turn, without draining; world_run returns the error. */
void world_fail(actor_t *world, err_t error);

/* ---- deliver.c: into the actor ---- */
void deliver(actor_t *world, const msg_t *m);
/* Hand over what was posted; at most *budget messages, which is lowered. */
void posted_deliver(actor_t *world, uint32_t *budget);
void posted_drop(actor_t *world);

#endif
