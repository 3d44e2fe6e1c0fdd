/* runtime/zmq/world_internal.h - what ports inside an actor's loop (the HTTP server) may ask of
 * their world. */
#ifndef RUNTIME_ZMQ_WORLD_INTERNAL_H
#define RUNTIME_ZMQ_WORLD_INTERNAL_H

#include "../actor.h"

struct event_base;

/* The actor's loop.  Callbacks of events on it run between turns, never inside a handler; a turn
 * follows each round of callbacks.  The base lives until after every hook's close has run. */
struct event_base *world_event_base(actor_t *world);

/* Queue a local message (tag TAG_LOCAL or above) for the actor's next turn.  Everything is copied,
 * what BYTES fields point to included.  May be called from callbacks and from inside handlers; only
 * on the actor's own thread. */
void world_post(actor_t *world, const msg_t *m);

/* Where the HTTP port keeps its state; NULL at first. */
void **world_http_slot(actor_t *world);

/* What the HTTP port wants called, with the actor's own thread: `turn` at the end of every loop
 * turn, after the class's turn; `close` once at shutdown, after the class's fini and before the
 * loop is freed.  Either may be NULL. */
typedef struct {
    void (*turn)(actor_t *world);
    void (*close)(actor_t *world);
} world_hooks_t;
void world_http_hooks(actor_t *world, world_hooks_t hooks);

#endif
