/* tests/model/test_sample.c - sampling against exact probabilities and plain filters in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs the four above first. */
#include <cmocka.h>

#include <math.h>

#include "kernels/cpu/queue.h"
#include "kernels/philox.h"
#include "kernels/weights.h"
#include "runtime/model/sample.h"

enum { VOCAB = 64, LARGE_VOCAB = 129280, DRAWS = 20000, TRIALS = 300 };

static uint64_t random_state = 7;
static double random_unit(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) * 0x1p-53;
}

static void fill_logits(float *logits, uint32_t vocab)
{
    for (uint32_t i = 0; i < vocab; i++) logits[i] = (float)(8 * random_unit() - 4);
}

/* Scratch full of ones: what the op has not written itself would show. */
static sampler_t sampler_new(uint32_t vocab)
{
    size_t bytes = (size_t)vocab * 24 + 512;
    sampler_t self = { &ops_judge, queue_new_cpu(bytes, 1), vocab };
    assert_non_null(self.queue);
    memset(queue_take(self.queue, bytes), 0xff, bytes);
    return self;
}

static void sampler_destroy(sampler_t *self)
{
    queue_destroy(&self->queue);
    assert_null(self->queue);
}

static sampling_t plain(void)
{
    return (sampling_t){ .temperature = 1, .top_p = 1, .repetition_penalty = 1 };
}

/* ---- random numbers ---- */

/* If it failed, a GPU or another build would draw other numbers than we do: resumed streams would
 * jump. */
static void test_philox_published_vectors_match(void **state)
{
    (void)state;
    /* Random123 1.09, examples/kat_vectors: philox4x32 10. */
    static const uint32_t vectors[3][10] = {
        { 0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
        { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
          0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
        { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
          0x94fdcceb, 0x5001e420, 0x24126ea1 },
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        philox(vectors[i], vectors[i] + 4, out);
        assert_memory_equal(out, vectors[i] + 6, sizeof out);
    }
}

/* If it failed, some seeds or indices would be biased towards likely or unlikely tokens. */
static void test_random_any_seed_is_uniform(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++) {
        double bins[32] = { 0 }, chi = 0;
        for (uint32_t i = 0; i < DRAWS; i++) {
            uint32_t value = random_bits(seed * 0x123456789abcdefu, i);
            assert_true(value < 1u << RANDOM_BITS);
            bins[value >> (RANDOM_BITS - 5)]++;
        }
        for (int i = 0; i < 32; i++) chi += pow(bins[i] - DRAWS / 32.0, 2) / (DRAWS / 32.0);
        assert_true(chi < 65); /* 31 degrees of freedom: one in 3,000 */
    }
    assert_true(random_bits(1, 0) != random_bits(2, 0));
    assert_true(random_bits(1, 0) != random_bits(1, 1));
    assert_true(random_bits(1, 0) != random_bits(1 + (1ull << 32), 0));
}

/* ---- weights ---- */

/* If two steps had one code, or the order broke, a filter would cut in the wrong place; if a weight
 * were off, likely tokens would come too often. */
static void test_weights_fall_with_every_step_and_equal_exp(void **state)
{
    (void)state;
    uint32_t last = weight_lack(0);
    assert_int_equal(last, 0);
    for (uint32_t fraction = 1; fraction < 1u << WEIGHT_STEP_BITS; fraction++) {
        uint32_t lack = weight_lack(fraction);
        assert_true(lack > last && lack < 1u << WEIGHT_CODE_BITS);
        last = lack;
    }
    float scale = weight_scale(1);
    for (int i = 0; i < 100000; i++) {
        float behind = (float)(27 * random_unit());
        double weight = (double)weight_of(weight_code(behind, scale)) * 0x1p-44,
               wanted = exp(-(double)behind);
        assert_true(fabs(weight - wanted) < 1.2e-6 * wanted + 0x1p-44);
    }
    assert_int_equal(weight_code(NAN, scale), WEIGHT_CODE_NONE);
    assert_int_equal(weight_code(INFINITY, scale), WEIGHT_CODE_NONE);
    assert_int_equal(weight_code(0, weight_scale(1e-38f)), 0);
}

/* If it failed, min_p would drop a token that is as likely as asked for, or keep a less likely one.
 */
static void test_weight_code_last_is_the_last_that_weighs_enough(void **state)
{
    (void)state;
    for (int i = 0; i < 100000; i++) {
        float min_p = (float)exp2(-50 * random_unit());
        uint64_t least = (uint64_t)((double)min_p * 0x1p44);
        uint32_t code = weight_code_last(min_p), lack = (1u << WEIGHT_CODE_BITS) - 1;
        assert_true(weight_of(code) >= least && code < WEIGHT_CODE_END);
        if ((code & lack) == lack) continue; /* the next one is half as much */
        assert_true(code + 1 == WEIGHT_CODE_END || weight_of(code + 1) < least);
    }
    assert_int_equal(weight_code_last(1), 0);
    assert_int_equal(weight_code_last(0), WEIGHT_CODE_END - 1);
}

/* ---- brute force ---- */

typedef struct {
    double probability;
    uint32_t id;
} entry_t;

static int compare_entries(const void *a, const void *b)
{
    const entry_t *left = a, *right = b;
    if (left->probability != right->probability)
        return left->probability > right->probability ? -1 : 1;
    return left->id < right->id ? -1 : 1;
}

static void change_logits(const float *logits, uint32_t vocab, const sample_context_t *context,
                          double *changed)
{
    const sampling_t *sampling = context->sampling;
    for (uint32_t i = 0; i < vocab; i++) changed[i] = (double)logits[i];
    for (uint32_t i = 0; i < context->bias_count; i++)
        changed[context->bias_ids[i]] += (double)context->bias_values[i];
    for (uint32_t id = 0; id < vocab; id++) {
        uint32_t seen = 0, generated = 0;
        for (uint32_t i = 0; i < context->token_count; i++) {
            seen += context->tokens[i] == id;
            generated += context->tokens[i] == id && i >= context->token_count - context->generated;
        }
        double penalty = (double)sampling->repetition_penalty;
        if (seen) changed[id] = changed[id] > 0 ? changed[id] / penalty : changed[id] * penalty;
        changed[id] -= (double)sampling->frequency_penalty * generated;
        changed[id] -= generated ? (double)sampling->presence_penalty : 0;
    }
}

/* The exact distribution: every filter applied to the sorted whole. */
static void exact(const float *logits, uint32_t vocab, const sample_context_t *context,
                  double *probability)
{
    static double changed[VOCAB];
    static entry_t entries[VOCAB];
    const sampling_t *sampling = context->sampling;
    double most = -INFINITY, sum = 0, mass = 0;
    change_logits(logits, vocab, context, changed);
    for (uint32_t i = 0; i < vocab; i++) most = fmax(most, changed[i]);
    for (uint32_t i = 0; i < vocab; i++)
        entries[i] = (entry_t){ exp((changed[i] - most) / (double)sampling->temperature), i };
    qsort(entries, vocab, sizeof *entries, compare_entries);
    uint32_t count = vocab;
    while (count > 1 && entries[count - 1].probability < (double)sampling->min_p) count--;
    if (sampling->top_k && count > sampling->top_k) count = sampling->top_k;
    for (uint32_t i = 0; i < count; i++) sum += entries[i].probability;
    uint32_t kept = 0;
    while (kept < count && (kept == 0 || mass < (double)sampling->top_p * sum))
        mass += entries[kept++].probability;
    memset(probability, 0, vocab * sizeof *probability);
    for (uint32_t i = 0; i < kept; i++) probability[entries[i].id] = entries[i].probability / mass;
}

/* Draw many times with one seed and rising indices; the counts must fit the exact distribution. */
static void check_distribution(const float *logits, sample_context_t context)
{
    double probability[VOCAB], counts[VOCAB] = { 0 }, chi = 0;
    uint32_t freedom = 0;
    exact(logits, VOCAB, &context, probability);
    sampler_t sampler = sampler_new(VOCAB);
    sampling_t sampling = *context.sampling;
    context.sampling = &sampling;
    for (uint32_t i = 0; i < DRAWS; i++) {
        engine_result_t out;
        sampling.seed = i;
        sample_token(&sampler, logits, &context, &out);
        counts[out.token]++;
    }
    double rest_expected = 0, rest_counted = 0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        double expected = probability[i] * DRAWS;
        if (probability[i] == 0) assert_true(counts[i] == 0);
        if (expected < 5) { /* too rare for the approximation: pooled */
            rest_expected += expected;
            rest_counted += counts[i];
            continue;
        }
        chi += pow(counts[i] - expected, 2) / expected;
        freedom++;
    }
    if (rest_expected >= 5) chi += pow(rest_counted - rest_expected, 2) / rest_expected;
    assert_true(chi < freedom + 5 * sqrt(2.0 * freedom) + 5);
    sampler_destroy(&sampler);
}

/* If it failed, temperature, penalties, bias or a filter would change texts in ways nobody asked
 * for. */
static void test_sample_every_option_draws_exact_distribution(void **state)
{
    (void)state;
    static const uint32_t tokens[] = { 3, 4, 5, 3, 9, 9, 9, 10 };
    static const uint32_t bias_ids[] = { 3, 20 };
    static const float bias_values[] = { -2, 3 };
    sampling_t options[9];
    for (int i = 0; i < 9; i++) options[i] = plain();
    options[1].temperature = 0.6f;
    options[2].top_k = 5;
    options[3].top_p = 0.8f;
    options[4].min_p = 0.1f;
    options[5].presence_penalty = 1.5f;
    options[6].frequency_penalty = 0.7f;
    options[7].repetition_penalty = 1.4f;
    options[8] = (sampling_t){ .temperature = 1.3f,
                               .top_p = 0.9f,
                               .top_k = 30,
                               .min_p = 0.02f,
                               .presence_penalty = 0.5f,
                               .frequency_penalty = -0.5f,
                               .repetition_penalty = 1.2f };
    for (int i = 0; i < 9; i++) {
        float logits[VOCAB];
        fill_logits(logits, VOCAB);
        sample_context_t context = {
            .sampling = &options[i], .tokens = tokens, .token_count = 8, .generated = 4
        };
        check_distribution(logits, context);
        context.bias_ids = bias_ids;
        context.bias_values = bias_values;
        context.bias_count = 2;
        check_distribution(logits, context);
    }
}

/* If it failed, a filter would let through a token that a plain sort would not, or lose one that it
 * keeps. */
static void test_sample_filters_keep_exactly_the_sorted_set(void **state)
{
    (void)state;
    sampler_t sampler = sampler_new(VOCAB);
    for (int trial = 0; trial < TRIALS; trial++) {
        float logits[VOCAB];
        double probability[VOCAB];
        sampling_t sampling = plain();
        fill_logits(logits, VOCAB);
        if (trial % 2) logits[trial % VOCAB] = logits[(trial * 7) % VOCAB]; /* a tie */
        sampling.temperature = (float)(0.2 + random_unit());
        sampling.top_k = trial % 3 ? (uint32_t)(1 + 20 * random_unit()) : 0;
        sampling.top_p = trial % 4 ? (float)random_unit() : 1;
        sampling.min_p = trial % 5 ? 0 : (float)(0.3 * random_unit());
        sample_context_t context = { .sampling = &sampling };
        exact(logits, VOCAB, &context, probability);
        for (uint64_t seed = 0; seed < 50; seed++) {
            engine_result_t out;
            sampling.seed = seed;
            sample_token(&sampler, logits, &context, &out);
            assert_true(probability[out.token] > 0);
        }
    }
    sampler_destroy(&sampler);
}

/* If it failed, a GPU, which adds up what was kept by ascending id, would draw another token. */
static void test_sample_draws_what_was_kept_by_ascending_id(void **state)
{
    (void)state;
    sampler_t sampler = sampler_new(VOCAB);
    for (uint32_t trial = 0; trial < 5000; trial++) {
        float logits[VOCAB];
        double probability[VOCAB], sum = 0;
        sampling_t sampling = plain();
        engine_result_t out;
        fill_logits(logits, VOCAB);
        sampling.top_k = trial % 3 ? 20 : 0;
        sampling.top_p = trial % 2 ? 0.8f : 1;
        sampling.seed = trial;
        sample_context_t context = { .sampling = &sampling };
        exact(logits, VOCAB, &context, probability);
        sample_token(&sampler, logits, &context, &out);
        double target = random_bits(trial, 0) * 0x1p-24;
        for (uint32_t i = 0; i < out.token; i++) sum += probability[i];
        assert_true(sum <= target + 1e-6 && target <= sum + probability[out.token] + 1e-6);
    }
    sampler_destroy(&sampler);
}

/* ---- greedy, ties, determinism ---- */

/* If it failed, temperature 0 would not be repeatable across machines that order equals
 * differently. */
static void test_sample_greedy_takes_lowest_id_of_equals(void **state)
{
    (void)state;
    float logits[VOCAB] = { 0 };
    engine_result_t out;
    sampling_t sampling = plain();
    sampling.temperature = 0;
    sample_context_t context = { .sampling = &sampling };
    sampler_t sampler = sampler_new(VOCAB);
    logits[17] = logits[40] = 2;
    sample_token(&sampler, logits, &context, &out);
    assert_int_equal(out.token, 17);
    sampling = plain();
    sampling.top_k = 1;
    for (sampling.seed = 0; sampling.seed < 20; sampling.seed++) {
        sample_token(&sampler, logits, &context, &out);
        assert_int_equal(out.token, 17);
    }
    sampling = plain();
    sampling.top_p = 0;
    sample_token(&sampler, logits, &context, &out);
    assert_int_equal(out.token, 17);
    sampler_destroy(&sampler);
}

/* If it failed, a stream resumed on another worker would not continue with the same words. */
static void test_sample_same_seed_and_index_gives_same_token(void **state)
{
    (void)state;
    static float logits[LARGE_VOCAB];
    static const uint32_t tokens[] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    sampling_t sampling = plain();
    sampler_t used = sampler_new(LARGE_VOCAB);
    uint32_t differing = 0, last = 0;
    fill_logits(logits, LARGE_VOCAB);
    sampling.top_p = 0.95f;
    sampling.repetition_penalty = 1.1f;
    for (uint32_t index = 0; index < 8; index++) {
        sampler_t fresh = sampler_new(LARGE_VOCAB);
        sample_context_t context = {
            .sampling = &sampling, .tokens = tokens, .token_count = 8, .generated = index
        };
        engine_result_t a, b;
        sample_token(&used, logits, &context, &a);
        sample_token(&fresh, logits, &context, &b);
        assert_int_equal(a.token, b.token);
        differing += index > 0 && a.token != last;
        last = a.token;
        sampler_destroy(&fresh);
    }
    assert_true(differing >= 5);
    sampler_destroy(&used);
}

/* If it failed, one NaN of a broken kernel would hang or crash the worker. */
static void test_sample_not_a_number_still_gives_a_token(void **state)
{
    (void)state;
    float logits[VOCAB];
    engine_result_t out;
    sampling_t sampling = plain();
    sample_context_t context = { .sampling = &sampling };
    sampler_t sampler = sampler_new(VOCAB);
    for (int i = 0; i < VOCAB; i++) logits[i] = i % 3 ? NAN : -INFINITY;
    sampling.top_p = 0.5f;
    sampling.logprobs = 1;
    sampling.top_logprobs = 20;
    sample_token(&sampler, logits, &context, &out);
    assert_true(out.token < VOCAB);
    sampler_destroy(&sampler);
}

/* ---- log probabilities ---- */

/* If it failed, logprobs shown to clients would be those of the filtered, not of the model's
 * distribution. */
static void test_sample_logprobs_are_those_of_raw_logits(void **state)
{
    (void)state;
    static float logits[LARGE_VOCAB];
    static const uint32_t tokens[] = { 11, 12 };
    sampler_t sampler = sampler_new(LARGE_VOCAB);
    sampling_t sampling = plain();
    sampling.logprobs = 1;
    sampling.top_logprobs = 20;
    sampling.temperature = 0.5f;
    sampling.presence_penalty = 2;
    sample_context_t context = {
        .sampling = &sampling, .tokens = tokens, .token_count = 2, .generated = 2
    };
    fill_logits(logits, LARGE_VOCAB);
    logits[500] = logits[400] = 5; /* a tie at the top */
    double sum = 0;
    for (uint32_t i = 0; i < LARGE_VOCAB; i++) sum += exp((double)logits[i]);
    engine_result_t out;
    sample_token(&sampler, logits, &context, &out);
    assert_true(fabs((double)out.logprob - ((double)logits[out.token] - log(sum))) < 1e-4);
    assert_int_equal(out.top_count, 20);
    assert_int_equal(out.top_ids[0], 400);
    assert_int_equal(out.top_ids[1], 500);
    for (uint32_t i = 0; i < 20; i++) {
        uint32_t better = 0;
        for (uint32_t j = 0; j < LARGE_VOCAB; j++)
            better += logits[j] > logits[out.top_ids[i]] ||
                      (logits[j] == logits[out.top_ids[i]] && j < out.top_ids[i]);
        assert_int_equal(better, i);
        assert_true(
            fabs((double)out.top_logprobs[i] - ((double)logits[out.top_ids[i]] - log(sum))) < 1e-4);
    }
    sampler_destroy(&sampler);
}

/* If it failed, asking for more likeliest tokens than there are would read past the end. */
static void test_sample_logprobs_tiny_vocab_reports_all(void **state)
{
    (void)state;
    const float logits[3] = { 1, 3, 2 };
    engine_result_t out;
    sampler_t sampler = sampler_new(3);
    sample_logprobs(&sampler, logits, 2, 20, &out);
    assert_int_equal(out.top_count, 3);
    assert_int_equal(out.top_ids[0], 1);
    assert_int_equal(out.top_ids[1], 2);
    assert_int_equal(out.top_ids[2], 0);
    sampler_destroy(&sampler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_published_vectors_match),
        cmocka_unit_test(test_random_any_seed_is_uniform),
        cmocka_unit_test(test_weights_fall_with_every_step_and_equal_exp),
        cmocka_unit_test(test_weight_code_last_is_the_last_that_weighs_enough),
        cmocka_unit_test(test_sample_every_option_draws_exact_distribution),
        cmocka_unit_test(test_sample_filters_keep_exactly_the_sorted_set),
        cmocka_unit_test(test_sample_draws_what_was_kept_by_ascending_id),
        cmocka_unit_test(test_sample_greedy_takes_lowest_id_of_equals),
        cmocka_unit_test(test_sample_same_seed_and_index_gives_same_token),
        cmocka_unit_test(test_sample_not_a_number_still_gives_a_token),
        cmocka_unit_test(test_sample_logprobs_are_those_of_raw_logits),
        cmocka_unit_test(test_sample_logprobs_tiny_vocab_reports_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
