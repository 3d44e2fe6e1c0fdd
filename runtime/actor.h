/* runtime/actor.h - the contract between an actor and the world it lives in.
 *
 * An actor is a state struct and a table of handlers.  Handlers run one at a time, to completion,
 * on the actor's own thread.  They may touch only `self` and the calls below: no sockets, no clock,
 * no rand(), no blocking, no malloc.  That is the whole reason why the same object files run under
 * ZeroMQ (actor_zmq.c) and under the seeded simulator (actor_sim.c); CI checks their undefined
 * symbols against an allow-list.
 *
 * A loop turn: up to TURN_MESSAGES_MAX messages are handled, then `turn` runs once.  What was sent
 * in a turn to one peer leaves as one frame.
 */
#ifndef RUNTIME_ACTOR_H
#define RUNTIME_ACTOR_H

#include "../proto/config.h"
#include "../proto/messages.h"
#include "invariant.h"
#include "metrics.h"

typedef struct actor actor_t; /* opaque: the world, as this actor may see it */

/* ---- what every actor may call ---- */

/* Monotonic time; us.  Stands still during a handler in the simulator. */
uint64_t actor_now_us(const actor_t *world);

/* Who am I, and which life of it. */
address_t actor_self(const actor_t *world);
uint64_t actor_epoch(const actor_t *world);

/* The life of a peer; 0 while it is down or was never up. */
uint64_t actor_peer_epoch(const actor_t *world, address_t peer);

const config_t *actor_config(const actor_t *world);

/* Zeroed memory for the whole life of the actor.  Only inside init; anything later is an
 * invariant's failure. */
void *actor_alloc(actor_t *world, size_t count, size_t size);

/* Queue a copy of m for a peer.  The world fills in epochs, sequence and time; request and attempt
 * are m's. ERR_OVERLOAD: the link is at its high-water mark.  ERR_LOST: the peer is down.
 * ERR_INVALID: no such link. */
err_t actor_send(actor_t *world, address_t to, const msg_t *m);

/* Ask for `wake` at this time (monotonic; us).  One alarm per actor; a new call replaces the old
 * one; 0 removes it. */
void actor_wake_at(actor_t *world, uint64_t at_us);

/* Random bits, seeded in the simulator. */
uint64_t actor_random(actor_t *world);

typedef enum { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR } log_level_t;

/* One line: time, level, actor, id, text.  The id is stable and greppable ("DECODE-LB-STALE");
 * exact cause, no guesses, no `=`.  Never on the per-token path. */
void actor_log(actor_t *world, log_level_t level, const char *id, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* 32 hex digits and a NUL; for logs. */
typedef struct {
    char text[33];
} request_text_t;
request_text_t request_text(request_id_t request);

void actor_count(actor_t *world, metric_t counter, uint64_t by);
void actor_gauge(actor_t *world, metric_t gauge, double value);
void actor_observe(actor_t *world, metric_t histogram, double value);

/* ---- ports: work outside the handler, completions come back as messages ---- */
/* engine: runtime/engine.h (workers)   pool: runtime/pool.h (workers, kv_store)   http:
 * runtime/net/http.h (ingress) */

/* ---- the class ---- */

enum { TURN_MESSAGES_MAX = 256 };

typedef void actor_handler_fn(void *self, actor_t *world, const msg_t *m);

typedef struct {
    const char *name; /* as in roles.def */
    role_t role;
    size_t state_size;                         /* zeroed by the world */
    err_t (*init)(void *self, actor_t *world); /* allocate, open ports; may be NULL */
    void (*fini)(void *self, actor_t *world);  /* free what libraries hold; may be NULL */
    void (*turn)(void *self, actor_t *world);  /* end of a loop turn; may be NULL */
    void (*wake)(void *self, actor_t *world);  /* the alarm of actor_wake_at; may be NULL */
    void (*check)(const void *self); /* invariants; after every handler in tests, sampled else */
    bool (*is_idle)(
        const void *self); /* holds no request, block or lease: I6, and the end of a drain */
    actor_handler_fn *on[MSG_COUNT]; /* NULL: not for me; counted */
} actor_class_t;

#endif
