/* runtime/model/sample.h - the op `sample` in the words of requests and engines.
 *
 * What sampling means is said by kernels/cpu/judge_sample.c.  Random numbers are counter-based
 * (kernels/philox.h) from (seed, token index): a resumed or repeated stream draws the same numbers,
 * on every device.
 */
#ifndef RUNTIME_MODEL_SAMPLE_H
#define RUNTIME_MODEL_SAMPLE_H

#include "../../kernels/ops.h"
#include "../engine.h"

typedef struct {
    const ops_t *ops;
    queue_t *queue; /* its scratch holds a vocabulary five times: a failure of the op is an
                       invariant's */
    uint32_t vocab;
} sampler_t;

typedef struct {
    const sampling_t *sampling;
    const uint32_t *tokens; /* prompt and generated tokens so far */
    uint32_t token_count, generated;
    const uint32_t *bias_ids;
    const float *bias_values;
    uint32_t bias_count;
} sample_context_t;

/* Choose the next token.  Order as in vLLM: bias, penalties, temperature, min_p, top_k, top_p.
 * Penalties as in vLLM: repetition over prompt and output, presence and frequency over the output.
 * Log probabilities are those of the raw logits, before any of these, and only made when sampling
 * asks for them. Ties go to the lower id.  Fills all of *out but slot, position and is_prompt. */
void sample_token(const sampler_t *self, const float *logits, const sample_context_t *context,
                  engine_result_t *out);

/* Log probability and the likeliest tokens of a given token (prompt_logprobs). */
void sample_logprobs(const sampler_t *self, const float *logits, uint32_t token,
                     uint32_t top_logprobs, engine_result_t *out);

#endif
