/* runtime/model/sample.c - requests and contexts become rows of the op `sample`, its results those
 * of engines. */
#include "sample.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "../invariant.h"

static_assert((int)TOP_LOGPROBS_MAX == (int)SAMPLE_TOP_MAX, "a result holds what the op gives");

static void run(const sampler_t *self, const float *logits, const sample_row_t *row,
                engine_result_t *out)
{
    sample_result_t result;
    /* The op only reads; a tensor has no const. */
    const tensor_t tensor = { .data = (void *)(uintptr_t)logits,
                              .dtype = DTYPE_F32,
                              .rows = 1,
                              .cols = self->vocab,
                              .stride = self->vocab };
    invariant(self->ops->sample(self->queue, &result, &tensor, row) == 0);
    out->token = result.token;
    out->logprob = result.logprob;
    out->top_count = result.top_count;
    memcpy(out->top_ids, result.top_ids, sizeof out->top_ids);
    memcpy(out->top_logprobs, result.top_logprobs, sizeof out->top_logprobs);
}

void sample_token(const sampler_t *self, const float *logits, const sample_context_t *context,
                  engine_result_t *out)
{
    const sampling_t *sampling = context->sampling;
    invariant(context->generated <= context->token_count);
    const sample_row_t row = { .temperature = sampling->temperature,
                               .top_p = sampling->top_p,
                               .min_p = sampling->min_p,
                               .top_k = sampling->top_k,
                               .presence_penalty = sampling->presence_penalty,
                               .frequency_penalty = sampling->frequency_penalty,
                               .repetition_penalty = sampling->repetition_penalty,
                               .has_logprobs = sampling->logprobs,
                               .top_logprobs = sampling->top_logprobs,
                               .seed = sampling->seed,
                               .generated = context->generated,
                               .tokens = context->tokens,
                               .token_count = context->token_count,
                               .bias_ids = context->bias_ids,
                               .bias_values = context->bias_values,
                               .bias_count = context->bias_count };
    run(self, logits, &row, out);
}

/* A bias that no logit beats makes the op choose the given token; log probabilities are those of
 * the raw logits all the same.  A token that even so is not chosen has no probability. */
void sample_logprobs(const sampler_t *self, const float *logits, uint32_t token,
                     uint32_t top_logprobs, engine_result_t *out)
{
    static const float bias = FLT_MAX;
    invariant(token < self->vocab && top_logprobs <= TOP_LOGPROBS_MAX);
    const sample_row_t row = { .top_p = 1,
                               .repetition_penalty = 1,
                               .has_logprobs = 1,
                               .top_logprobs = top_logprobs,
                               .bias_ids = &token,
                               .bias_values = &bias,
                               .bias_count = 1 };
    run(self, logits, &row, out);
    if (out->token != token) out->logprob = -INFINITY;
    out->token = token;
}
