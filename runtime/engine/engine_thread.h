/* runtime/engine/engine_thread.h - an engine core on a thread of its own: commands go in through a
 * ring, finished steps come back.
 *
 * One thread commands, one computes; neither ever waits for a lock of the other.  Everything is
 * copied at the call.  A step that was submitted before the failure of an earlier one was told
 * fails with it, unrun.
 */
#ifndef RUNTIME_ENGINE_ENGINE_THREAD_H
#define RUNTIME_ENGINE_ENGINE_THREAD_H

#include "core.h"

typedef struct engine_thread engine_thread_t;

/* Start the thread, which opens the core (loads weights).  The options' pointers must outlive it.
 * NULL: no memory or thread is left. */
engine_thread_t *engine_thread_new(const engine_class_t *class,
                                   const engine_core_options_t *options);

/* Ends after the step that runs, closes the core and waits for the thread. */
void engine_thread_destroy(engine_thread_t **self);

/* An eventfd: readable when engine_thread_poll has something.  The caller reads it. */
int engine_thread_descriptor(const engine_thread_t *self);

/* As the calls of runtime/engine.h.  When the ring is full, which takes more commands than every
 * slot's sequence twice, they wait for the running step. */
err_t engine_thread_start(engine_thread_t *self, uint32_t slot, const engine_open_t *sequence);
void engine_thread_extend(engine_thread_t *self, uint32_t slot, const uint32_t *blocks,
                          uint32_t count);
void engine_thread_append(engine_thread_t *self, uint32_t slot, uint32_t token);
err_t engine_thread_step(engine_thread_t *self, uint64_t step, const engine_row_t *rows,
                         uint32_t count);
void engine_thread_release(engine_thread_t *self, uint32_t slot);

/* What the engine has to say. */
typedef struct {
    bool is_ready; /* the core is open, or never will be; else a step is over */
    err_t error;
    const char *why; /* of a core that could not be opened */
    uint64_t step, elapsed_us;
    const engine_result_t *results; /* valid until the next engine_thread_poll */
    uint32_t result_count;
} engine_news_t;

/* The oldest news, if there is any.  Accept it before the next step is submitted: it is outstanding
 * until then. */
bool engine_thread_poll(engine_thread_t *self, engine_news_t *news);
void engine_thread_accept(engine_thread_t *self);

#endif
