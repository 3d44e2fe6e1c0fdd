/* tests/model/test_variants.c - four small checkpoints of the family: every gate, with and without
 * q_lora and YaRN. */
#include "reference.h"

#define VARIANTS SOURCE_DIR "/tests/golden/variants"

enum { CHUNK = 256, VOCAB = 512, LAYERS = 3, HIDDEN = 128 };

/* Below this the reference's own choice is a coin's toss. */
static const double margin_min = 0.05;

typedef struct {
    const char *name;
    const ops_t *ops;
    double tolerance, hidden_tolerance; /* relative L2 of logits and of each layer's output */
    int is_cache_f32;
} variant_t;

/* The reference has the last rows of the prompt only. */
static void check_prompt(bench_t *bench, const reference_t *reference, const variant_t *variant,
                         const reference_case_t *c, uint32_t index)
{
    static float hidden[(LAYERS + 1) * CHUNK * HIDDEN];
    char name[32];
    uint32_t rows = c->prompt_count < 8 ? c->prompt_count : 8;
    assert_int_equal(bench->model->config.hidden, HIDDEN);
    bench_step(bench, c->prompt, 0, c->prompt_count, false, hidden);
    snprintf(name, sizeof name, "logits.%u", index);
    double distance = reference_distance(reference, name, bench->logits, VOCAB);
    if (distance > variant->tolerance)
        fail_msg("%s is %.2e away, allowed %.0e", name, distance, variant->tolerance);
    for (uint32_t layer = 0; layer <= LAYERS; layer++) {
        const float *last = hidden + ((size_t)(layer + 1) * c->prompt_count - rows) * HIDDEN;
        snprintf(name, sizeof name, "hidden.%u.%u", index, layer);
        distance = reference_distance(reference, name, last, (size_t)rows * HIDDEN);
        if (distance > variant->hidden_tolerance)
            fail_msg("%s is %.2e away, allowed %.0e", name, distance, variant->hidden_tolerance);
    }
}

/* The reference's tokens are fed back, so that one coin's toss does not end the comparison. */
static uint32_t check_tokens(bench_t *bench, reference_case_t *c, uint32_t index)
{
    uint32_t compared = 0;
    for (uint32_t i = 0; i < c->greedy_count; i++) {
        uint32_t token = reference_argmax(bench->logits, VOCAB);
        if (c->margin[i] > margin_min) {
            compared++;
            if (token != c->greedy[i])
                fail_msg("case %u, token %u: %u, the reference says %u", index, i, token,
                         c->greedy[i]);
        }
        if (i + 1 == c->greedy_count) break;
        c->prompt[c->prompt_count++] = c->greedy[i];
        bench_step(bench, c->prompt, c->prompt_count - 1, 1, true, NULL);
    }
    return compared;
}

static void check_variant(const variant_t *variant)
{
    static reference_case_t c;
    char dir[1024];
    uint32_t compared = 0;
    snprintf(dir, sizeof dir, "%s/%s", VARIANTS, variant->name);
    reference_t reference = reference_open(dir);
    bench_t bench = bench_open(&(bench_options_t){ .dir = dir,
                                                   .ops = variant->ops,
                                                   .rows_max = CHUNK,
                                                   .is_cache_f32 = variant->is_cache_f32 });
    assert_int_equal(reference.count, 3);
    for (uint32_t i = 0; i < reference.count; i++) {
        reference_read(&reference, i, &c);
        check_prompt(&bench, &reference, variant, &c, i);
        compared += check_tokens(&bench, &c, i);
    }
    assert_true(compared > 30);
    bench_close(&bench);
    reference_close(&reference);
}

/* Twice with the reference's own precision in the cache, twice as it is served: BF16 latents alone
 * cost up to 4e-3. */
static void check_tables(const char *name)
{
    check_variant(&(variant_t){ name, &ops_judge, 2e-3, 5e-3, 1 });
    check_variant(&(variant_t){ name, ops_find("auto"), 1e-2, 5e-3, 1 });
    check_variant(&(variant_t){ name, &ops_judge, 1e-2, 5e-3, 0 });
    check_variant(&(variant_t){ name, ops_find("auto"), 1e-2, 1e-2, 0 });
}

/* If this failed, grouped sigmoid routing, YaRN or q_lora would be computed otherwise than
 * DeepSeek-V3 does. */
static void test_variants_v3_follows_the_reference(void **state)
{
    check_tables("v3");
}

/* If this failed, models without q_lora, with one group or several shared experts (Moonlight,
 * Kimi-K2) would break. */
static void test_variants_moonlight_follows_the_reference(void **state)
{
    check_tables("moonlight");
}

/* If this failed, the softmax gate whose groups are scored by their best would break. */
static void test_variants_v2_follows_the_reference(void **state)
{
    check_tables("v2");
}

/* If this failed, the softmax gate without groups or normalisation would break. */
static void test_variants_v2_lite_follows_the_reference(void **state)
{
    check_tables("v2_lite");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_variants_v3_follows_the_reference),
        cmocka_unit_test(test_variants_moonlight_follows_the_reference),
        cmocka_unit_test(test_variants_v2_follows_the_reference),
        cmocka_unit_test(test_variants_v2_lite_follows_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
