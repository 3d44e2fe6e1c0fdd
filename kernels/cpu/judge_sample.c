/* kernels/cpu/judge_sample.c - from logits to the next token.
 *
 * Filters keep the tokens that come first in the order of codes and ids (kernels/weights.h), so all
 * of them together are one place to cut.  The vocabulary is walked a few times; only what min_p and
 * top_k leave is ever ordered, and top_p orders by taking from a heap until the mass is reached.
 * The token is then drawn from what was kept by ascending id.
 */
#include "../philox.h"
#include "../weights.h"
#include "judge.h"
#include "queue.h"

#include <errno.h>
#include <math.h>

typedef struct {
    uint32_t code, id;
} candidate_t;

typedef struct {
    uint32_t vocab;
    float *values;           /* logits as changed by bias and penalties */
    uint32_t *codes;         /* of values at the row's temperature */
    candidate_t *candidates; /* what min_p left, then a heap */
    uint32_t *marks; /* per token: mark_seen, and how often it was generated; zero between rows */
} sampler_t;

static const uint32_t mark_seen = 1u << 31;

/* ---- order ---- */

/* Likelier first; of equals the lower id.  A total order, so every selection below has one answer.
 */
static int is_before(candidate_t a, candidate_t b)
{
    return a.code < b.code || (a.code == b.code && a.id < b.id);
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

/* The first `keep` in order move to the front: a heap of the kept whose last is on top. */
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

/* ---- weights ---- */

/* In groups of sixteen, as in `largest`. */
static void find_codes(uint32_t *restrict codes, const float *restrict values, uint32_t vocab,
                       float most, float scale)
{
    enum { LANES = 16 };
    for (; vocab >= LANES; vocab -= LANES, codes += LANES, values += LANES)
        for (int lane = 0; lane < LANES; lane++)
            codes[lane] = weight_code(most - values[lane], scale);
    for (uint32_t i = 0; i < vocab; i++) codes[i] = weight_code(most - values[i], scale);
}

/* ---- log probabilities of the raw logits ---- */

/* The sum of weights at temperature 1, as a logarithm that belongs to the logits. */
static double log_sum_exp(const sampler_t *self, const float *logits)
{
    float most = largest(logits, self->vocab);
    uint64_t sum = 0;
    find_codes(self->codes, logits, self->vocab, most, weight_scale(1));
    for (uint32_t i = 0; i < self->vocab; i++)
        if (self->codes[i] < WEIGHT_CODE_END) sum += weight_of(self->codes[i]);
    return (double)most + log((double)sum * 0x1p-44);
}

/* Among the likeliest, what is not a number counts as minus infinity. */
static float number(float logit)
{
    return logit == logit ? logit : -INFINITY;
}

/* Fill ids[0 .. keep), likeliest first; few enough to be kept in order as the walk goes, and an
 * equal one that comes later has the higher id. */
static void select_top(uint32_t *ids, const float *logits, uint32_t vocab, uint32_t keep)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        float here = number(logits[i]);
        if (count == keep && here <= number(logits[ids[keep - 1]])) continue;
        uint32_t at = count < keep ? count++ : keep - 1;
        for (; at > 0 && here > number(logits[ids[at - 1]]); at--) ids[at] = ids[at - 1];
        ids[at] = i;
    }
}

static void report(const sampler_t *self, const float *logits, uint32_t top,
                   sample_result_t *result)
{
    double total = log_sum_exp(self, logits);
    uint32_t keep = top < SAMPLE_TOP_MAX ? top : SAMPLE_TOP_MAX;
    keep = keep < self->vocab ? keep : self->vocab;
    result->logprob = (float)((double)logits[result->token] - total);
    result->top_count = keep;
    if (keep > 0) select_top(result->top_ids, logits, self->vocab, keep);
    for (uint32_t i = 0; i < keep; i++)
        result->top_logprobs[i] = (float)((double)logits[result->top_ids[i]] - total);
}

/* ---- bias, penalties ---- */

static void apply_bias(const sampler_t *self, const sample_row_t *row)
{
    for (uint32_t i = 0; i < row->bias_count; i++)
        if (row->bias_ids[i] < self->vocab) self->values[row->bias_ids[i]] += row->bias_values[i];
}

static void penalise(const sampler_t *self, const sample_row_t *row, uint32_t token)
{
    uint32_t mark = self->marks[token], generated = mark & ~mark_seen;
    float *value = &self->values[token];
    self->marks[token] = 0;
    if (mark == 0) return; /* met before */
    *value = *value > 0 ? *value / row->repetition_penalty : *value * row->repetition_penalty;
    if (generated == 0) return;
    *value -= row->frequency_penalty * (float)generated;
    *value -= row->presence_penalty;
}

/* Repetition looks at prompt and output, the other two at the output alone, as vLLM does.  Two
 * walks over the tokens: one counts, one applies and clears, so that the marks never need clearing
 * as a whole. */
static void apply_penalties(const sampler_t *self, const sample_row_t *row)
{
    if (row->repetition_penalty == 1 && row->frequency_penalty == 0 && row->presence_penalty == 0)
        return;
    uint32_t generated = row->generated < row->token_count ? row->generated : row->token_count;
    uint32_t prompt_count = row->token_count - generated;
    for (uint32_t i = 0; i < row->token_count; i++) {
        uint32_t token = row->tokens[i];
        if (token >= self->vocab) continue;
        self->marks[token] = (self->marks[token] | mark_seen) + (i >= prompt_count);
    }
    for (uint32_t i = 0; i < row->token_count; i++)
        if (row->tokens[i] < self->vocab) penalise(self, row, row->tokens[i]);
}

/* ---- filters ---- */

/* Candidates up to this code; the others lose theirs. */
static uint32_t collect(const sampler_t *self, uint32_t last)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < self->vocab; i++) {
        self->candidates[count] = (candidate_t){ self->codes[i], i };
        count += self->codes[i] <= last;
    }
    return count;
}

static uint64_t weight_sum(const candidate_t *candidates, uint32_t count)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < count; i++) sum += weight_of(candidates[i].code);
    return sum;
}

/* Take the likeliest, one by one, until their mass reaches top_p of all: the last one taken. */
static candidate_t take_mass(candidate_t *candidates, uint32_t count, float top_p)
{
    uint64_t wanted = weight_share(weight_sum(candidates, count), top_p), mass = 0;
    make_heap(candidates, count, 1);
    for (;;) {
        candidate_t best = candidates[0];
        mass += weight_of(best.code);
        if (mass >= wanted || count == 1) return best;
        candidates[0] = candidates[--count];
        sift_down(candidates, count, 0, 1);
    }
}

/* The last of the kept. */
static candidate_t find_cut(const sampler_t *self, const sample_row_t *row)
{
    const candidate_t all = { weight_code_last(row->min_p), UINT32_MAX };
    if (row->top_k == 0 && row->top_p >= 1) return all;
    uint32_t count = collect(self, all.code);
    uint32_t kept = keep_first(self->candidates, count, row->top_k);
    if (row->top_p < 1) return take_mass(self->candidates, kept, row->top_p);
    return kept < count ? self->candidates[0] : all;
}

static int is_kept(const sampler_t *self, uint32_t id, candidate_t cut)
{
    return self->codes[id] < cut.code || (self->codes[id] == cut.code && id <= cut.id);
}

static uint32_t draw(const sampler_t *self, candidate_t cut, uint32_t random)
{
    uint64_t mass = 0, sum = 0;
    for (uint32_t i = 0; i < self->vocab; i++)
        if (is_kept(self, i, cut)) mass += weight_of(self->codes[i]);
    uint64_t target = weight_target(mass, random);
    for (uint32_t i = 0; i < self->vocab; i++) {
        if (is_kept(self, i, cut)) sum += weight_of(self->codes[i]);
        if (sum > target) return i;
    }
    return 0;
}

static uint32_t choose(const sampler_t *self, const sample_row_t *row)
{
    uint32_t best = argmax(self->values, self->vocab);
    float most = self->values[best];
    /* Logits that are not numbers: nothing to choose by. */
    if (row->temperature == 0 || !isfinite(most)) return best;
    find_codes(self->codes, self->values, self->vocab, most, weight_scale(row->temperature));
    return draw(self, find_cut(self, row), random_bits(row->seed, row->generated));
}

static int take_scratch(sampler_t *self, queue_t *q, uint32_t vocab)
{
    queue_reset(q);
    *self = (sampler_t){ .vocab = vocab,
                         .values = queue_take(q, vocab * sizeof(float)),
                         .codes = queue_take(q, vocab * sizeof(uint32_t)),
                         .candidates = queue_take(q, (vocab + (size_t)1) * sizeof(candidate_t)),
                         .marks = queue_take(q, vocab * sizeof(uint32_t)) };
    if (!self->values || !self->codes || !self->candidates || !self->marks) return ENOMEM;
    memset(self->marks, 0, vocab * sizeof *self->marks);
    return 0;
}

int judge_sample(queue_t *q, sample_result_t *results, const tensor_t *logits,
                 const sample_row_t *rows)
{
    sampler_t self;
    uint32_t vocab = logits->cols;
    if (logits->dtype != DTYPE_F32 || vocab == 0) return EINVAL;
    int error = take_scratch(&self, q, vocab);
    for (uint32_t r = 0; r < logits->rows && !error; r++) {
        const float *raw = (const float *)logits->data + r * logits->stride;
        memcpy(self.values, raw, vocab * sizeof *raw);
        apply_bias(&self, &rows[r]);
        apply_penalties(&self, &rows[r]);
        results[r] = (sample_result_t){ .token = choose(&self, &rows[r]) };
        if (rows[r].has_logprobs) report(&self, raw, rows[r].top_logprobs, &results[r]);
    }
    return error;
}
