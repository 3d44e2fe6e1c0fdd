/* runtime/model/sample.h - from logits to the next token.
 *
 * Random numbers are counter-based (Philox 4x32-10, Salmon et al. 2011) from (seed, token index): a
 * resumed or repeated stream draws the same numbers, on every device.
 */
#ifndef RUNTIME_MODEL_SAMPLE_H
#define RUNTIME_MODEL_SAMPLE_H

#include "../engine.h"

/* The generator itself, checked against Random123's published vectors. */
void sample_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Uniform in [0, 1) with 24 bits for token `index` of a stream with this seed. */
float sample_random(uint64_t seed, uint32_t index);

typedef struct {
    const sampling_t *sampling;
    const uint32_t *tokens; /* prompt and generated tokens so far */
    uint32_t token_count, generated;
    const uint32_t *bias_ids;
    const float *bias_values;
    uint32_t bias_count;
} sample_context_t;

typedef struct sample_scratch sample_scratch_t;
/* For at most this many logits.  Nothing is allocated later; no memory is an invariant's failure.
 */
sample_scratch_t *sample_scratch_new(uint32_t vocab);
void sample_scratch_destroy(sample_scratch_t **self);

/* Choose the next token.  Order as in vLLM: bias, penalties, temperature, min_p, top_k, top_p.
 * Penalties as in vLLM: repetition over prompt and output, presence and frequency over the output.
 * Log probabilities are those of the raw logits, before any of these, and only made when sampling
 * asks for them. Ties go to the lower id.  Fills all of *out but slot, position and is_prompt. */
void sample_token(sample_scratch_t *scratch, const float *logits, uint32_t vocab,
                  const sample_context_t *context, engine_result_t *out);

/* Log probability and the likeliest tokens of a given token (prompt_logprobs). */
void sample_logprobs(sample_scratch_t *scratch, const float *logits, uint32_t vocab, uint32_t token,
                     uint32_t top_logprobs, engine_result_t *out);

#endif
