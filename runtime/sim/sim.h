/* runtime/sim/sim.h - a seeded world: a whole company in one thread under a virtual clock.
 *
 * The same classes that run over ZeroMQ run here; only the functions of runtime/actor.h, engine.h,
 * pool.h, net/http.h and process.h are others.  Everything that happens is an event of one queue,
 * ordered by time and then by sequence number; every choice is drawn from the seed; so one seed is
 * one history, and sim_hash proves it.
 *
 * Links behave as ZeroMQ's do: first in, first out; nothing is lost inside a live connection; a
 * connection that ends loses a part of what was under way in both directions, and what still lay in
 * a DEALER's queue is delivered after the reconnection (a ROUTER's is dropped); past the high-water
 * mark actor_send answers ERR_OVERLOAD, towards a peer that is down ERR_LOST.  Peers notice each
 * other by hello and heartbeat.
 */
#ifndef RUNTIME_SIM_SIM_H
#define RUNTIME_SIM_SIM_H

#include <stdio.h>

#include "../actor.h"
#include "../engine/core.h"
#include "../net/http.h"

typedef struct sim sim_t;

enum { SIM_NODES_MAX = 64 };

/* What a test may watch.  Every member may be NULL. */
typedef struct {
    void *context;
    /* An actor has sent: what the world answered.  m as the actor wrote it. */
    void (*on_send)(void *context, address_t from, address_t to, const msg_t *m, err_t answer);
    /* A message, local ones included, is about to be handled; header filled in. */
    void (*on_deliver)(void *context, address_t to, const msg_t *m);
    /* Also a message that the world fenced off (an old epoch) instead of delivering it. */
    void (*on_fenced)(void *context, address_t to, const msg_t *m);
    /* The life of an actor ended; its state can still be read. */
    void (*on_death)(void *context, address_t who);
} sim_observer_t;

/* Rates are probabilities per occasion, 0 to 1. */
typedef struct {
    uint64_t seed;
    const config_t *config;       /* must outlive the sim */
    const engine_class_t *engine; /* behind the engine port; NULL: no actor opens one */
    sim_observer_t observer;
    uint32_t delay_least_us;    /* one way of a frame */
    uint32_t delay_mean_us;     /* added on top, exponential */
    uint32_t turn_us;           /* an actor's loop turn takes up to this long to begin */
    double engine_failure_rate; /* steps that end with ERR_ENGINE or ERR_EP_PEER */
    double engine_slow_rate;    /* steps that take up to 50 times as long */
    double pull_lost_rate;      /* pulls that end with ERR_LOST */
    double pull_corrupt_rate;   /* pulls of which a bit flips */
    double duplicate_rate;      /* messages kept, to be replayed by sim_replay */
    bool is_verbose;            /* print every event to standard error */
} sim_options_t;

/* Options with mild delays and no faults. */
sim_options_t sim_options_default(uint64_t seed, const config_t *config);

sim_t *sim_new(const sim_options_t *options);
void sim_destroy(sim_t **self);

/* ---- who lives here ------------------------------------------------------------------------- */

/* An actor and its links to all others that links.def allows; it starts at once, with epoch 1. */
MUST_CHECK err_t sim_add(sim_t *self, const actor_class_t *class, uint32_t index);

/* The state of a live actor, NULL when it is down.  For checkers and scripted parties. */
void *sim_state(sim_t *self, address_t who);

/* The world of a live actor, for a scripted party that acts from outside a handler; what it sends
 * leaves with its next turn, which this call asks for.  NULL when it is down or paused. */
actor_t *sim_actor(sim_t *self, address_t who);

const actor_class_t *sim_class(const sim_t *self, address_t who);
bool sim_is_alive(const sim_t *self, address_t who); /* has a life, paused or not */
bool sim_is_paused(const sim_t *self, address_t who);
uint64_t sim_epoch(const sim_t *self, address_t who); /* of its last life */

/* Value of a counter or gauge of the present life; 0 when it is down. */
double sim_metric(const sim_t *self, address_t who, metric_t metric);

/* Every actor ever added, in order. */
uint32_t sim_count(const sim_t *self);
address_t sim_address(const sim_t *self, uint32_t number);

/* ---- time ----------------------------------------------------------------------------------- */

uint64_t sim_now_us(const sim_t *self);

/* Handle every event up to this time.  False when the sim has failed (see sim_fail). */
bool sim_run_until(sim_t *self, uint64_t at_us);

/* Until is_over says so (asked every millisecond) or the time has come.  True when is_over said so.
 */
bool sim_run_while(sim_t *self, uint64_t at_us, bool (*is_over)(void *context), void *context);

/* Call `act` at this time, outside of every actor. */
void sim_at(sim_t *self, uint64_t at_us, void (*act)(void *context, uint64_t argument),
            void *context, uint64_t argument);

/* Draw from the sim's own stream; for schedules and scripted parties. */
uint64_t sim_random(sim_t *self);

/* ---- faults --------------------------------------------------------------------------------- */

/* The process is gone: state, pool and engine with it, and a part of what it had under way.
 * is_noticed: its connections end at once; otherwise peers find out by silence.  No-op when it is
 * down. */
void sim_kill(sim_t *self, address_t who, bool is_noticed);

/* A new life with a higher epoch.  No-op when it is up. */
void sim_restart(sim_t *self, address_t who);

/* SIGSTOP and SIGCONT: messages pile up, timers are late, peers see it down after timing.dead_ms.
 */
void sim_pause(sim_t *self, address_t who);
void sim_resume(sim_t *self, address_t who);

/* The connection of two actors ends and is made again after for_us. */
void sim_disconnect(sim_t *self, address_t a, address_t b, uint64_t for_us);

/* Nothing arrives from a at b for so long; later it does. */
void sim_clog(sim_t *self, address_t a, address_t b, uint64_t for_us);

/* Loop turns of this actor begin up to turn_us late, from now on. */
void sim_slow(sim_t *self, address_t who, uint32_t turn_us);

/* Faults that were drawn by rate stop; those in force end: clogs, disconnections, pauses, slowness.
 */
void sim_heal(sim_t *self);

/* Deliver again a message that was kept (duplicate_rate) and that `is_wanted` agrees to: a late
 * ghost of an old attempt or of an old life.  False when there was none. */
bool sim_replay(sim_t *self, bool (*is_wanted)(void *context, address_t to, const msg_t *m),
                void *context);

/* ---- HTTP clients --------------------------------------------------------------------------- */

/* A client's side of one exchange; members may be NULL.  on_lost: ingress died or closed without an
 * end. */
typedef struct {
    void *context;
    void (*on_answer)(void *context, const http_answer_t *answer, const void *body, size_t size);
    void (*on_begin)(void *context, const http_answer_t *answer);
    void (*on_data)(void *context, const void *data, size_t size);
    void (*on_end)(void *context);
    void (*on_lost)(void *context);
} sim_http_client_t;

typedef struct {
    const char *method, *path, *authorization; /* authorization may be NULL */
    const void *body;
    size_t body_size;
} sim_http_t;

/* A request arrives at this ingress.  Returns the exchange, 0 when nobody listens. */
uint64_t sim_http_request(sim_t *self, uint32_t ingress, const sim_http_t *request,
                          const sim_http_client_t *client);

/* The client goes away. */
void sim_http_close(sim_t *self, uint32_t ingress, uint64_t exchange);

/* ---- what happened -------------------------------------------------------------------------- */

/* Hash of everything that was delivered so far: times, actors, bytes. */
uint64_t sim_hash(const sim_t *self);
uint64_t sim_event_count(const sim_t *self);

/* A checker's verdict: the first one is kept, and running stops. */
void sim_fail(sim_t *self, const char *invariant_id, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
const char *sim_failure(const sim_t *self); /* NULL: none */

/* A line of the test's own for the event log. */
void sim_note(sim_t *self, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The last events, oldest first. */
void sim_print_tail(const sim_t *self, FILE *out);

#endif
