/* runtime/engine/solo.h - the model alone, for `troupe run`: ids in, tokens and logits out, no
 * company.
 *
 * One sequence at a time, in the calling thread, with a KV cache of its own.
 */
#ifndef RUNTIME_ENGINE_SOLO_H
#define RUNTIME_ENGINE_SOLO_H

#include "../engine.h"
#include "../model/weights.h"

typedef struct solo solo_t;

typedef struct {
    const char *dir;
    const char *ops; /* as config.engine.ops: "auto", "judge"... */
    uint32_t threads;
    uint32_t context_max;          /* prompt and output; 0: what the model allows */
    weights_progress_fn *progress; /* while loading; may be NULL */
    void *progress_context;
} solo_options_t;

/* NULL: *why. */
solo_t *solo_new(const solo_options_t *options, error_text_t *why);
void solo_destroy(solo_t **self);

const model_config_t *solo_config(const solo_t *self);
const char *solo_ops(const solo_t *self);

/* One generated token, with the likeliest ones and their raw logits. */
typedef struct {
    uint32_t index; /* 0: the first after the prompt */
    uint32_t id;
    float logit;
    uint32_t top_count;
    uint32_t top_ids[TOP_LOGPROBS_MAX];
    float top_logits[TOP_LOGPROBS_MAX];
} solo_token_t;

/* Called for every token as it comes; false stops. */
typedef bool solo_token_fn(void *context, const solo_token_t *token);

typedef struct {
    const uint32_t *ids;
    uint32_t count, tokens_max;
    sampling_t sampling; /* top_logprobs says how many of the likeliest are told; ignore_eos: an end
                            token does not end */
    solo_token_fn *on_token;
    void *context;
} solo_request_t;

/* Generate until an end token (which is told too), tokens_max, the context's end or on_token's
 * word. ERR_INVALID: no ids, or one past the vocabulary; ERR_CONTEXT: the prompt does not fit; *why
 * says it for people. */
MUST_CHECK err_t solo_run(solo_t *self, const solo_request_t *request, error_text_t *why);

#endif
