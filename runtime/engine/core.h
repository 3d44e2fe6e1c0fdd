/* runtime/engine/core.h - what an engine must do, called from one thread; the worlds put it behind
 * the port.
 *
 * actor_zmq.c gives each core a thread and a command ring (engine_thread.c); actor_sim.c calls the
 * stub directly and lets *model_us pass in virtual time.
 */
#ifndef RUNTIME_ENGINE_CORE_H
#define RUNTIME_ENGINE_CORE_H

#include "../engine.h"
#include "../model/weights.h"

typedef struct {
    const config_t *config;
    address_t self; /* prefill_worker or decode_worker; gives rank and EP group */
    engine_limits_t limits;
    void *pool; /* the KV blocks, block_bytes each */
    uint32_t blocks;
    size_t block_bytes;
    const char *directory;         /* wire.directory, resolved: where the EP group's region lives */
    weights_progress_fn *progress; /* while loading; NULL: the log tells it now and then */
    void *progress_context;
} engine_core_options_t;

typedef struct {
    const char *name;
    /* Bytes of one KV block with this configuration; 0 with *why when the model cannot be read. */
    size_t (*block_bytes)(const config_t *config, error_text_t *why);
    /* Load weights; may take seconds.  On success *core is owned by the caller until close. */
    err_t (*open)(void **core, const engine_core_options_t *options, error_text_t *why);
    void (*close)(void **core);
    /* As the calls of runtime/engine.h. */
    err_t (*start)(void *core, uint32_t slot, const engine_open_t *sequence);
    void (*extend)(void *core, uint32_t slot, const uint32_t *blocks, uint32_t count);
    void (*append)(void *core, uint32_t slot, uint32_t token);
    void (*release)(void *core, uint32_t slot);
    /* Run a step to its end.  results has room for results_max entries.  *model_us: how long the
     * step takes on the modelled machine (stub), or took (ops).  On an error nothing of the step
     * counts. */
    err_t (*step)(void *core, const engine_row_t *rows, uint32_t row_count,
                  engine_result_t *results, uint32_t results_max, uint32_t *result_count,
                  uint64_t *model_us);
    /* How long the step would take on the modelled machine; us.  NULL: not known before it ran. */
    uint64_t (*step_us)(const void *core, const engine_row_t *rows, uint32_t row_count);
    /* Nothing to do: take part in steps of the other ranks, until *word differs from `seen` or
     * wait_us have passed. */
    void (*idle)(void *core, const uint32_t *word, uint32_t seen, uint64_t wait_us);
    uint32_t (*end_tokens)(const void *core, const uint32_t **ids);
} engine_class_t;

extern const engine_class_t engine_ops_class;  /* the model */
extern const engine_class_t engine_stub_class; /* token = hash of seed and index */

#endif
