/* runtime/model/sample.c - from logits to the next token.
 *
 * Filters keep a set of candidates that only shrinks.  The vocabulary is walked a few times; only
 * what min_p and top_k leave is ever ordered, and top_p orders by taking from a heap until the mass
 * is reached.
 */
#include "sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../invariant.h"

/* ---- random numbers ---- */

/* Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: multipliers and Weyl
 * increments. */
static const uint32_t multipliers[2] = { 0xd2511f53, 0xcd9e8d57 };
static const uint32_t increments[2] = { 0x9e3779b9, 0xbb67ae85 };

void sample_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t x[4], k[2] = { key[0], key[1] };
    memcpy(x, counter, sizeof x);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)multipliers[0] * x[0], b = (uint64_t)multipliers[1] * x[2];
        uint32_t y[4] = { (uint32_t)(b >> 32) ^ x[1] ^ k[0], (uint32_t)b,
                          (uint32_t)(a >> 32) ^ x[3] ^ k[1], (uint32_t)a };
        memcpy(x, y, sizeof x);
        k[0] += increments[0];
        k[1] += increments[1];
    }
    memcpy(out, x, sizeof x);
}

float sample_random(uint64_t seed, uint32_t index)
{
    uint32_t out[4];
    sample_philox((uint32_t[]){ index, 0, 0, 0 },
                  (uint32_t[]){ (uint32_t)seed, (uint32_t)(seed >> 32) }, out);
    return (float)(out[0] >> 8) * 0x1p-24f;
}

/* ---- scratch ---- */

typedef struct {
    float logit;
    uint32_t id;
} candidate_t;

struct sample_scratch {
    uint32_t vocab;
    float *logits;           /* as changed by bias, penalties, temperature */
    candidate_t *candidates; /* what the filters left; a heap, likeliest first */
    uint32_t
        *marks; /* per token: MARK_PROMPT, and how often it was generated; zero between calls */
};

static const uint32_t mark_seen = 1u << 31;

sample_scratch_t *sample_scratch_new(uint32_t vocab)
{
    invariant(vocab > 0 && vocab <= VOCAB_MAX);
    sample_scratch_t *self = calloc(1, sizeof *self);
    invariant(self != NULL);
    self->vocab = vocab;
    self->logits = malloc(vocab * sizeof *self->logits);
    self->candidates = malloc(vocab * sizeof *self->candidates);
    self->marks = calloc(vocab, sizeof *self->marks);
    invariant(self->logits && self->candidates && self->marks);
    return self;
}

void sample_scratch_destroy(sample_scratch_t **self)
{
    if (!*self) return;
    free((*self)->logits);
    free((*self)->candidates);
    free((*self)->marks);
    free(*self);
    *self = NULL;
}

/* ---- order ---- */

/* Likelier first; of equals the lower id.  A total order, so every selection below has one answer.
 */
static bool is_before(candidate_t a, candidate_t b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Sixteen lanes, which compilers turn into vector instructions; NaN is never more than anything. */
static float largest(const float *logits, uint32_t vocab)
{
    enum { LANES = 16 };
    float lanes[LANES], most = -INFINITY;
    uint32_t at = 0;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = -INFINITY;
    for (; at + LANES <= vocab; at += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = logits[at + (uint32_t)lane] > lanes[lane] ? logits[at + (uint32_t)lane]
                                                                    : lanes[lane];
    for (int lane = 0; lane < LANES; lane++) most = lanes[lane] > most ? lanes[lane] : most;
    for (; at < vocab; at++) most = logits[at] > most ? logits[at] : most;
    return most;
}

/* The lowest id of those with the largest logit; 0 when none is a number. */
static uint32_t argmax(const float *logits, uint32_t vocab)
{
    float most = largest(logits, vocab);
    for (uint32_t i = 0; i < vocab; i++)
        if (logits[i] == most) return i;
    return 0;
}

/* Move heap[at] down; `sign` 1 keeps the first in order on top, -1 the last. */
static void sift_down(candidate_t *heap, uint32_t count, uint32_t at, int sign)
{
    candidate_t moved = heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && is_before(heap[child + 1], heap[child]) == (sign > 0)) child++;
        if (is_before(heap[child], moved) != (sign > 0)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

static void make_heap(candidate_t *heap, uint32_t count, int sign)
{
    for (uint32_t at = count / 2; at-- > 0;) sift_down(heap, count, at, sign);
}

/* The first `keep` in order move to the front, in any order: a heap of the kept whose worst is on
 * top. */
static uint32_t keep_first(candidate_t *candidates, uint32_t count, uint32_t keep)
{
    if (keep == 0 || keep >= count) return count;
    make_heap(candidates, keep, -1);
    for (uint32_t i = keep; i < count; i++) {
        if (!is_before(candidates[i], candidates[0])) continue;
        candidates[0] = candidates[i];
        sift_down(candidates, keep, 0, -1);
    }
    return keep;
}

/* Order the first `count` of them by taking from the heap's top; they end up at the array's front.
 */
static void sort_candidates(candidate_t *candidates, uint32_t count)
{
    make_heap(candidates, count, -1);
    for (uint32_t left = count; left > 1; left--) {
        candidate_t worst = candidates[0];
        candidates[0] = candidates[left - 1];
        sift_down(candidates, left - 1, 0, -1);
        candidates[left - 1] = worst;
    }
}

/* ---- log probabilities of the raw logits ---- */

static double log_sum_exp(const float *logits, uint32_t vocab, float most)
{
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++) sum += (double)expf(logits[i] - most);
    return (double)most + log(sum);
}

/* Fill top[0 .. keep), likeliest first, walking the vocabulary once. */
static void select_top(candidate_t *top, const float *logits, uint32_t vocab, uint32_t keep)
{
    for (uint32_t i = 0; i < keep; i++) top[i] = (candidate_t){ logits[i], i };
    make_heap(top, keep, -1);
    for (uint32_t i = keep; i < vocab; i++) {
        if (logits[i] <= top[0].logit) continue; /* an equal one has a higher id */
        top[0] = (candidate_t){ logits[i], i };
        sift_down(top, keep, 0, -1);
    }
    sort_candidates(top, keep);
}

void sample_logprobs(sample_scratch_t *scratch, const float *logits, uint32_t vocab, uint32_t token,
                     uint32_t top_logprobs, engine_result_t *out)
{
    invariant(vocab > 0 && vocab <= scratch->vocab && token < vocab &&
              top_logprobs <= TOP_LOGPROBS_MAX);
    candidate_t top[TOP_LOGPROBS_MAX];
    uint32_t keep = top_logprobs < vocab ? top_logprobs : vocab;
    double total = log_sum_exp(logits, vocab, largest(logits, vocab));
    out->token = token;
    out->logprob = (float)((double)logits[token] - total);
    out->top_count = keep;
    if (keep > 0) select_top(top, logits, vocab, keep);
    for (uint32_t i = 0; i < keep; i++) {
        out->top_ids[i] = top[i].id;
        out->top_logprobs[i] = (float)((double)top[i].logit - total);
    }
}

/* ---- bias, penalties ---- */

static void penalise(sample_scratch_t *scratch, const sampling_t *sampling, uint32_t token)
{
    uint32_t mark = scratch->marks[token], generated = mark & ~mark_seen;
    float *logit = &scratch->logits[token];
    scratch->marks[token] = 0;
    if (mark == 0) return; /* met before */
    *logit =
        *logit > 0 ? *logit / sampling->repetition_penalty : *logit * sampling->repetition_penalty;
    if (generated == 0) return;
    *logit -= sampling->frequency_penalty * (float)generated;
    *logit -= sampling->presence_penalty;
}

/* Repetition looks at prompt and output, the other two at the output alone, as vLLM does.  Two
 * walks over the tokens: one counts, one applies and clears, so that the marks never need clearing
 * as a whole. */
static void apply_penalties(sample_scratch_t *scratch, const sample_context_t *context)
{
    const sampling_t *sampling = context->sampling;
    if (sampling->repetition_penalty == 1 && sampling->frequency_penalty == 0 &&
        sampling->presence_penalty == 0)
        return;
    uint32_t prompt_count = context->token_count - context->generated;
    for (uint32_t i = 0; i < context->token_count; i++) {
        uint32_t token = context->tokens[i];
        if (token >= scratch->vocab) continue;
        scratch->marks[token] = (scratch->marks[token] | mark_seen) + (i >= prompt_count);
    }
    for (uint32_t i = 0; i < context->token_count; i++)
        if (context->tokens[i] < scratch->vocab) penalise(scratch, sampling, context->tokens[i]);
}

static void apply_bias(sample_scratch_t *scratch, uint32_t vocab, const sample_context_t *context)
{
    for (uint32_t i = 0; i < context->bias_count; i++)
        if (context->bias_ids[i] < vocab)
            scratch->logits[context->bias_ids[i]] += context->bias_values[i];
}

/* ---- filters ---- */

/* e^-40 of the best one's probability, times any vocabulary, is far below the 24 bits of the random
 * number. */
static const float hopeless = 40;

/* Candidates whose probability is at least min_p times the best one's, and not hopeless. */
static uint32_t collect(sample_scratch_t *scratch, uint32_t vocab, float most, float min_p)
{
    float least = fmaxf(most - hopeless, most + logf(min_p)); /* log 0 is -infinity: no minimum */
    uint32_t count = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        scratch->candidates[count] = (candidate_t){ scratch->logits[i], i };
        count += scratch->logits[i] >= least;
    }
    return count;
}

static double weight(candidate_t candidate, float most)
{
    return (double)expf(candidate.logit - most);
}

static double weight_sum(const candidate_t *candidates, uint32_t count, float most)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) sum += weight(candidates[i], most);
    return sum;
}

/* Move the likeliest to the array's end, one by one, until their mass reaches top_p of all. Returns
 * how many; they are candidates[count - 1] downwards. */
static uint32_t take_mass(candidate_t *candidates, uint32_t count, float most, float top_p)
{
    double wanted = (double)top_p * weight_sum(candidates, count, most), mass = 0;
    uint32_t taken = 0;
    make_heap(candidates, count, 1);
    while (taken < count) {
        candidate_t best = candidates[0];
        uint32_t left = count - ++taken;
        candidates[0] = candidates[left];
        if (left > 0) sift_down(candidates, left, 0, 1);
        candidates[left] = best;
        mass += weight(best, most);
        if (mass >= wanted) break;
    }
    return taken;
}

/* One of them, each as likely as its weight.  Their order is part of the result: it is made from
 * ids and logits alone, so the same logits give the same token. */
static uint32_t draw(const candidate_t *candidates, uint32_t count, float most, float random)
{
    double target = (double)random * weight_sum(candidates, count, most), sum = 0;
    uint32_t last = candidates[0].id;
    for (uint32_t i = 0; i < count; i++) {
        double each = weight(candidates[i], most);
        if (each > 0) last = candidates[i].id;
        sum += each;
        if (sum > target) break;
    }
    return last;
}

static uint32_t choose(sample_scratch_t *scratch, uint32_t vocab, const sample_context_t *context)
{
    const sampling_t *sampling = context->sampling;
    uint32_t best = argmax(scratch->logits, vocab);
    if (sampling->temperature == 0) return best;
    float most = scratch->logits[best] / sampling->temperature;
    for (uint32_t i = 0; i < vocab; i++) scratch->logits[i] /= sampling->temperature;
    candidate_t *candidates = scratch->candidates;
    uint32_t count = collect(scratch, vocab, most, sampling->min_p);
    if (count == 0 || !isfinite(most))
        return best; /* logits that are not numbers: nothing to choose by */
    count = keep_first(candidates, count, sampling->top_k);
    if (sampling->top_p < 1) {
        uint32_t taken = take_mass(candidates, count, most, sampling->top_p);
        candidates += count - taken;
        count = taken;
    }
    return draw(candidates, count, most, sample_random(sampling->seed, context->generated));
}

void sample_token(sample_scratch_t *scratch, const float *logits, uint32_t vocab,
                  const sample_context_t *context, engine_result_t *out)
{
    invariant(vocab > 0 && vocab <= scratch->vocab && context->generated <= context->token_count);
    memcpy(scratch->logits, logits, vocab * sizeof *logits);
    apply_bias(scratch, vocab, context);
    apply_penalties(scratch, context);
    uint32_t token = choose(scratch, vocab, context);
    out->token = token;
    out->logprob = 0;
    out->top_count = 0;
    if (context->sampling->logprobs)
        sample_logprobs(scratch, logits, vocab, token, context->sampling->top_logprobs, out);
}
