/* tests/model/test_graph.c - the tiny model says what the reference implementation says. */
#include "reference.h"

#define MODEL  SOURCE_DIR "/models/tiny"
#define GOLDEN SOURCE_DIR "/tests/golden/tiny"

enum { CHUNK = 512, GREEDY_MAX = 64 };

/* Teacher-free: each token is fed back as this model chose it. */
static void check_greedy(bench_t *bench, reference_case_t *c, uint32_t index)
{
    for (uint32_t i = 0; i < c->greedy_count; i++) {
        uint32_t token = reference_argmax(bench->logits, bench->model->config.vocab);
        if (token != c->greedy[i])
            fail_msg("case %u, token %u: %u, the reference says %u", index, i, token, c->greedy[i]);
        if (i + 1 == c->greedy_count) break;
        c->prompt[c->prompt_count++] = token;
        bench_step(bench, c->prompt, c->prompt_count - 1, 1, true, NULL);
    }
}

/* In this prompt two experts are so nearly equal that BF16 anywhere tips the choice: the logits
 * move by 1.0e-2, the tokens do not.  In F32 throughout (the judge's strict run) it is as near as
 * all others. */
enum { TIE_CASE = 10 };
static const double tie_tolerance = 1.2e-2;

typedef struct {
    const ops_t *ops;
    double tolerance;    /* of the logits after the prompt; relative L2 */
    uint32_t prompt_max; /* longer prompts are left to another test */
    uint32_t cases;      /* so many are checked */
    int is_cache_f32;
} check_t;

static void check_cases(const check_t *check)
{
    static reference_case_t c;
    reference_t reference = reference_open(GOLDEN);
    bench_t bench = bench_open(&(bench_options_t){
        .dir = MODEL, .ops = check->ops, .rows_max = CHUNK, .is_cache_f32 = check->is_cache_f32 });
    double worst = 0;
    uint32_t checked = 0;
    for (uint32_t i = 0; i < reference.count; i++) {
        char name[32];
        reference_read(&reference, i, &c);
        if (c.prompt_count > check->prompt_max) continue;
        bench_prefill(&bench, c.prompt, c.prompt_count, CHUNK);
        snprintf(name, sizeof name, "logits.%u", i);
        double distance =
            reference_distance(&reference, name, bench.logits, bench.model->config.vocab);
        if (distance > worst) worst = distance;
        bool is_strict = check->ops == &ops_judge && check->is_cache_f32;
        double allowed = i == TIE_CASE && !is_strict ? tie_tolerance : check->tolerance;
        if (distance > allowed)
            fail_msg("case %u: logits are %.2e away, allowed %.1e", i, distance, allowed);
        check_greedy(&bench, &c, i);
        checked++;
    }
    print_message("%s, %s cache: %u cases, worst distance of logits %.2e\n", check->ops->name,
                  check->is_cache_f32 ? "F32" : "BF16", checked, worst);
    assert_int_equal(checked, check->cases);
    bench_close(&bench);
    reference_close(&reference);
}

/* If this failed, the loader, the op order or the judge would compute another model.  With the
 * reference's own precision in the cache nothing but the order of sums differs. */
static void test_graph_judge_gives_the_references_logits(void **state)
{
    check_cases(&(check_t){ &ops_judge, 1e-5, 100, 18, 1 });
}

/* If this failed, the cache as it is served from would change what the model says.  BF16 latents
 * alone move the logits by 5e-4; in two of the 22 prompts they also tip a near tie of two experts,
 * which moves them by up to 1e-2. */
static void test_graph_judge_gives_the_references_tokens(void **state)
{
    check_cases(&(check_t){ &ops_judge, 1e-2, 100, 18, 0 });
}

/* If this failed, an older machine's table would say something else. */
static void test_graph_every_table_gives_the_references_tokens(void **state)
{
    for (size_t i = 0; i < ops_cpu_choice_count; i++)
        if (ops_cpu_choices[i].is_supported() && ops_cpu_choices[i].ops != &ops_judge)
            check_cases(&(check_t){ ops_cpu_choices[i].ops, 1e-2, 400, 20, 0 });
}

/* If this failed, long prompts (32 blocks, YaRN's slowed pairs, several chunks) would break where
 * short ones do not. */
static void test_graph_fast_gives_the_references_tokens(void **state)
{
    check_cases(&(check_t){ ops_find("auto"), 1e-2, REFERENCE_IDS_MAX, 22, 1 });
    check_cases(&(check_t){ ops_find("auto"), 1e-2, REFERENCE_IDS_MAX, 22, 0 });
}

static void check_hidden(bench_t *bench, const reference_t *reference, uint32_t index)
{
    static reference_case_t c;
    static float hidden[6 * 64 * 256];
    const model_config_t *config = &bench->model->config;
    reference_read(reference, index, &c);
    assert_true(c.prompt_count <= 64 && config->hidden == 256 && config->layers == 5);
    bench_step(bench, c.prompt, 0, c.prompt_count, false, hidden);
    size_t values = (size_t)c.prompt_count * config->hidden;
    for (uint32_t layer = 0; layer <= config->layers; layer++) {
        char name[32];
        snprintf(name, sizeof name, "hidden.%u.%u", index, layer);
        double distance = reference_distance(reference, name, hidden + layer * values, values);
        if (distance > 5e-3) fail_msg("%s is %.2e away, allowed 5e-3", name, distance);
    }
}

/* If this failed, an error inside a layer could hide behind a confident head. */
static void test_graph_hidden_states_follow_the_reference(void **state)
{
    const ops_t *tables[] = { &ops_judge, ops_find("auto") };
    reference_t reference = reference_open(GOLDEN);
    for (int i = 0; i < 2; i++) {
        bench_t bench =
            bench_open(&(bench_options_t){ .dir = MODEL, .ops = tables[i], .rows_max = CHUNK });
        check_hidden(&bench, &reference, 0);
        check_hidden(&bench, &reference, 2);
        bench_close(&bench);
    }
    reference_close(&reference);
}

static void check_chunking(const ops_t *ops)
{
    static reference_case_t c;
    static float whole[4096];
    reference_t reference = reference_open(GOLDEN);
    bench_t bench = bench_open(&(bench_options_t){ .dir = MODEL, .ops = ops, .rows_max = CHUNK });
    reference_read(&reference, 18, &c);
    assert_true(c.prompt_count > 300);
    bench_prefill(&bench, c.prompt, c.prompt_count, CHUNK);
    memcpy(whole, bench.logits, sizeof whole);
    const uint32_t chunks[] = { 64, 100, 257 };
    for (int i = 0; i < 3; i++) {
        bench_prefill(&bench, c.prompt, c.prompt_count, chunks[i]);
        assert_memory_equal(whole, bench.logits, sizeof whole);
    }
    bench_close(&bench);
    reference_close(&reference);
}

/* If this failed, a replayed prompt could give other tokens than the first time. */
static void test_graph_chunking_does_not_show(void **state)
{
    check_chunking(ops_find("auto"));
}

/* Three sequences in one decode step, their KV written one by one before. */
static void decode_together(bench_t *bench, const reference_t *reference, float *alone,
                            float *together)
{
    static reference_case_t c[3];
    uint32_t vocab = bench->model->config.vocab, ids[3], rows[3] = { 0, 1, 2 };
    sequence_t sequences[3];
    for (uint32_t i = 0; i < 3; i++) {
        reference_read(reference, 6 + i, &c[i]);
        sequences[i] = (sequence_t){ .first_row = i,
                                     .rows = 1,
                                     .first_position = c[i].prompt_count - 1,
                                     .blocks = bench->blocks + (size_t)i * 8 };
        ids[i] = c[i].prompt[c[i].prompt_count - 1];
        sequence_t prefill = { .rows = c[i].prompt_count - 1, .blocks = sequences[i].blocks };
        graph_step_t step = { .ids = c[i].prompt,
                              .sequences = &prefill,
                              .sequence_count = 1,
                              .row_count = prefill.rows };
        assert_int_equal(graph_step(bench->graph, &step), ERR_OK);
        sequence_t single = sequences[i];
        single.first_row = 0;
        step = (graph_step_t){ .ids = &ids[i],
                               .sequences = &single,
                               .sequence_count = 1,
                               .row_count = 1,
                               .is_decode = 1,
                               .logit_rows = rows,
                               .logit_row_count = 1,
                               .logits = alone + (size_t)i * vocab };
        assert_int_equal(graph_step(bench->graph, &step), ERR_OK);
    }
    graph_step_t step = { .ids = ids,
                          .sequences = sequences,
                          .sequence_count = 3,
                          .row_count = 3,
                          .is_decode = 1,
                          .logit_rows = rows,
                          .logit_row_count = 3,
                          .logits = together };
    assert_int_equal(graph_step(bench->graph, &step), ERR_OK);
}

/* If this failed, a request's text would depend on who else is served at the moment. */
static void test_graph_batch_neighbours_do_not_show(void **state)
{
    static float alone[3 * 4096], together[3 * 4096];
    reference_t reference = reference_open(GOLDEN);
    bench_t bench =
        bench_open(&(bench_options_t){ .dir = MODEL, .ops = ops_find("auto"), .rows_max = CHUNK });
    decode_together(&bench, &reference, alone, together);
    assert_memory_equal(alone, together, sizeof alone);
    bench_close(&bench);
    reference_close(&reference);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_graph_judge_gives_the_references_logits),
        cmocka_unit_test(test_graph_judge_gives_the_references_tokens),
        cmocka_unit_test(test_graph_every_table_gives_the_references_tokens),
        cmocka_unit_test(test_graph_fast_gives_the_references_tokens),
        cmocka_unit_test(test_graph_hidden_states_follow_the_reference),
        cmocka_unit_test(test_graph_chunking_does_not_show),
        cmocka_unit_test(test_graph_batch_neighbours_do_not_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
