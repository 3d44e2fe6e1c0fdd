/* runtime/sim/parts.h - what the files of the simulator share; nobody else includes it. */
#ifndef RUNTIME_SIM_PARTS_H
#define RUNTIME_SIM_PARTS_H

#include "../pool.h"
#include "../process.h"
#include "sim.h"

typedef struct direction direction_t;
typedef struct link link_t;

/* ---- the event queue (events.c) ------------------------------------------------------------- */

typedef enum {
    EVENT_TURN,    /* node: a loop turn, if there is anything to do */
    EVENT_TICK,    /* node: heartbeats and silence */
    EVENT_REPORT,  /* node: metrics to director */
    EVENT_ARRIVE,  /* direction: its oldest frame arrives */
    EVENT_CONNECT, /* link: the connection is made */
    EVENT_NOTICE,  /* link: both ends see that the connection ended */
    EVENT_ENGINE,  /* node: the engine's running step ends */
    EVENT_LOADED,  /* node: the engine is ready */
    EVENT_POOL,    /* node: its oldest pool job ends */
    EVENT_START,   /* node: a process starts */
    EVENT_STOP,    /* node: a process ends */
    EVENT_ACT,     /* the test's own */
} event_kind_t;

typedef struct {
    uint64_t at_us, sequence;
    event_kind_t kind;
    uint64_t
        stamp; /* of the subject when it was scheduled: another one means that the event is void */
    void *subject; /* actor_t, direction_t, link_t or the context of ACT */
    void (*act)(void *context, uint64_t argument);
    uint64_t argument;
} event_t;

typedef struct {
    event_t *events;
    size_t count, room;
    uint64_t sequence;
} event_queue_t;

void events_push(event_queue_t *self, event_t event);
bool events_pop(event_queue_t *self, uint64_t until_us, event_t *event);

/* ---- what was said (trace.c) ---------------------------------------------------------------- */

enum { TRACE_LINES = 50, TRACE_LINE_BYTES = 200 };

/* A line of the log, or a message, which is put into words only when somebody reads it. */
typedef struct {
    uint64_t at_us;
    const char *what; /* NULL: a line */
    address_t who;
    msg_type_t type;
    header_t header;
    char line[TRACE_LINE_BYTES];
} trace_record_t;

typedef struct {
    trace_record_t records[TRACE_LINES];
    uint64_t count;
    uint64_t hash;
    uint64_t events;
} trace_t;

void trace_line(sim_t *self, const char *format, ...) __attribute__((format(printf, 2, 3)));
void trace_hash(sim_t *self, const void *data, size_t size);
/* Hash and, where somebody looks, print a message that node handles. */
void trace_message(sim_t *self, const actor_t *node, const char *what, const msg_t *m);

/* ---- links (link.c, connect.c) -------------------------------------------------------------- */

/* Messages that travel or wait together; in flight first, then in the receiver's inbox. */
typedef struct frame {
    struct frame *next;
    direction_t *way; /* NULL: local */
    uint64_t due_us;
    uint32_t messages; /* not yet handled, heartbeats not counted */
    size_t size, used, room;
    msg_t *local; /* local: the message; its borrowed bytes lie in `bytes` */
    uint8_t *bytes;
} frame_t;

typedef struct {
    frame_t *head, *tail;
} frame_list_t;

void frames_push(frame_list_t *self, frame_t *frame);
frame_t *frames_pop(frame_list_t *self);
void frame_free(frame_t *frame);

/* One direction of a link, and what its receiver knows of its sender. */
struct direction {
    link_t *link;
    actor_t *from, *to;
    frame_list_t flight;
    frame_t *open; /* filled in this turn */
    uint64_t last_due_us, clogged_until_us, sent_us;
    uint64_t sequence, stamp;
    uint32_t queued; /* messages sent and not yet handled */
    bool is_dealer;  /* the sender connected */
    uint64_t heard_us;
    uint64_t epoch;      /* the sender's life as the receiver sees it; 0: down */
    uint64_t asked_us;   /* when the receiver last said hello */
    bool is_broken;      /* the receiver is to be told that the connection ended */
    uint64_t epoch_seen; /* highest ever seen in this life of the receiver */
};

typedef enum { NOTICE_NOBODY, NOTICE_CONNECTOR, NOTICE_BOTH } notice_t;

struct link {
    direction_t ways[2]; /* 0: connector to binder */
    uint32_t high_water;
    bool is_connected;
    notice_t notice;          /* who sees that the connection ended */
    uint64_t barred_until_us; /* no connection before */
    uint64_t stamp;
};

void link_make_all(sim_t *self, actor_t *node);
void link_connect_soon(sim_t *self, link_t *link);
void link_connect(sim_t *self, link_t *link);
void link_break(sim_t *self, link_t *link, notice_t notice);
void link_notice(sim_t *self, link_t *link);
/* Tell the actor of connections that ended. */
void link_mourn(sim_t *self, actor_t *node);
void link_forgive(sim_t *self, actor_t *node);
void link_arrive(sim_t *self, direction_t *way);
void link_schedule(sim_t *self, direction_t *way);
/* Append to the frame that leaves at the end of this turn. */
void link_write(sim_t *self, direction_t *way, const msg_t *m);
void link_flush(sim_t *self, actor_t *node);
void link_tick(sim_t *self, actor_t *node);
void link_hello(sim_t *self, direction_t *way);
/* A message has come in.  False: it belongs to a life that is over. */
bool link_hear(sim_t *self, direction_t *way, const msg_t *m);
void link_drop_flight(direction_t *way);
direction_t *link_way(sim_t *self, const actor_t *from, const actor_t *to);

/* ---- the engine port (port_engine.c) -------------------------------------------------------- */

typedef struct engine_port engine_port_t;
void engine_port_free(engine_port_t **self);
/* The core goes before the pool that it computes in. */
void engine_port_close(const sim_t *self, actor_t *node);
void engine_port_end_step(sim_t *self, actor_t *node);
void engine_port_loaded(sim_t *self, actor_t *node);
/* A rank of the same group went away: the running step ends with ERR_EP_PEER. */
void engine_port_lose_peer(sim_t *self, actor_t *node);

typedef struct pool_job {
    struct pool_job *next;
    uint64_t job, peer_epoch;
    address_t peer;
    bool is_checksum;
    uint32_t count;
    uint32_t source[BLOCKS_PER_MESSAGE_MAX], target[BLOCKS_PER_MESSAGE_MAX];
    uint64_t checksums[BLOCKS_PER_MESSAGE_MAX];
} pool_job_t;

typedef struct {
    uint8_t *bytes;
    uint32_t blocks;
    size_t block_bytes;
    pool_job_t *head, *tail;
    uint32_t jobs;
} pool_port_t;

void pool_port_free(pool_port_t *self);
void pool_port_end_job(sim_t *self, actor_t *node);

typedef struct {
    uint64_t number; /* 0: free */
    sim_http_client_t client;
    bool is_begun;
} exchange_t;

void http_port_drop(actor_t *node);

/* Tell the supervisor, if there is one, that this process ended. */
void process_port_exited(sim_t *self, const actor_t *node);

/* ---- an actor and its node (node.c) --------------------------------------------------------- */

typedef struct {
    void **items;
    uint32_t count, room;
} allocations_t;

struct actor {
    sim_t *sim;
    const actor_class_t *class;
    address_t address;
    uint32_t number;
    uint64_t epoch;
    bool is_alive, is_paused, is_in_init, is_stopping;
    bool is_turn_wanted;
    bool has_broken;
    uint64_t stamp; /* of this life */
    void *state;
    allocations_t allocations;
    uint64_t born_us, wake_us, random_state;
    uint64_t turn_at_us; /* the next scheduled turn; UINT64_MAX: none */
    uint32_t slow_us;
    metrics_t metrics;
    frame_list_t inbox;
    direction_t *to[SIM_NODES_MAX]; /* ways from here, by number of the other node */
    engine_port_t *engine;
    pool_port_t pool;
    bool is_listening;
    exchange_t *exchanges;
    uint32_t exchange_count;
};

struct sim {
    sim_options_t options;
    config_t config;
    uint64_t now_us, random_state;
    event_queue_t queue;
    trace_t trace;
    actor_t *nodes[SIM_NODES_MAX];
    uint32_t node_count;
    link_t **links;
    uint32_t link_count, link_room;
    uint64_t model_key, exchanges;
    size_t block_bytes;
    msg_t scratch;  /* the message being handled */
    msg_t outgoing; /* the message being sent */
    uint8_t *encode_buffer;
    frame_t *kept[64]; /* for sim_replay */
    uint32_t kept_count;
    bool is_failed;
    char failure[512];
};

actor_t *node_find(const sim_t *self, address_t who);
MUST_CHECK err_t node_start(sim_t *self, actor_t *node);
void node_end(sim_t *self, actor_t *node);
/* A loop turn soon. */
void node_want_turn(sim_t *self, actor_t *node);
void node_turn(sim_t *self, actor_t *node);
/* Put a local message, with the bytes it borrows, into the inbox. */
void node_tell(sim_t *self, actor_t *node, const msg_t *m, const void *bytes, size_t size);
/* Call the handler of m, then the checks. */
void node_handle(sim_t *self, actor_t *node, const msg_t *m);
void node_report(sim_t *self, actor_t *node);
void node_free_inbox(actor_t *node);

uint64_t random_next(uint64_t *state);
bool random_chance(sim_t *self, double rate);
/* 0 to below; 0 for 0. */
uint64_t random_below(sim_t *self, uint64_t below);
uint64_t random_exponential(sim_t *self, uint64_t mean);

#endif
