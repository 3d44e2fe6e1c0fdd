/* tests/engine/test_engine_stub.c - the stub is the oracle of all other tests, and the judge of KV.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../runtime/engine/stub.h"
#include "../../runtime/engine/timings.h"

enum { BLOCKS = 16, SLOTS = 4, ROWS = 256, BYTES = BLOCK_TOKENS * STUB_ENTRY_BYTES };

typedef struct {
    config_t config;
    uint8_t *pool;
    void *core;
    engine_result_t results[ROWS + SLOTS];
    uint32_t count;
    uint64_t model_us;
} bench_t;

static bench_t *bench_new(void)
{
    bench_t *bench = calloc(1, sizeof *bench);
    bench->pool = calloc(BLOCKS, BYTES);
    error_text_t why;
    assert_int_equal(engine_stub_class.block_bytes(&bench->config, &why), BYTES);
    engine_core_options_t options = { .config = &bench->config,
                                      .self = { ROLE_decode_worker, 0 },
                                      .limits = { SLOTS, ROWS, SLOTS, 512 },
                                      .pool = bench->pool,
                                      .blocks = BLOCKS,
                                      .block_bytes = BYTES,
                                      .directory = "" };
    assert_int_equal(engine_stub_class.open(&bench->core, &options, &why), ERR_OK);
    return bench;
}

static void bench_destroy(bench_t *bench)
{
    engine_stub_class.close(&bench->core);
    assert_null(bench->core);
    free(bench->pool);
    free(bench);
}

static void open_slot(bench_t *bench, uint32_t slot, const uint32_t *tokens, uint32_t count,
                      uint64_t seed)
{
    sampling_t sampling;
    memset(&sampling, 0, sizeof sampling);
    sampling.seed = seed;
    engine_open_t open = { .tokens = tokens, .token_count = count, .sampling = &sampling };
    assert_int_equal(engine_stub_class.start(bench->core, slot, &open), ERR_OK);
}

static err_t step(bench_t *bench, engine_row_t row)
{
    return engine_stub_class.step(bench->core, &row, 1, bench->results, ROWS + SLOTS, &bench->count,
                                  &bench->model_us);
}

static uint32_t expected(uint64_t seed, uint32_t index)
{
    sampling_t sampling;
    memset(&sampling, 0, sizeof sampling);
    sampling.seed = seed;
    return engine_stub_token(STUB_VOCAB_DEFAULT, 1, &sampling, index);
}

/* Would be broken: a stream of prefill chunks and decode rows gives other tokens than the oracle
 * says. */
static void test_engine_stub_chunks_and_decode_rows_give_the_oracle(void **unused)
{
    bench_t *bench = bench_new();
    uint32_t tokens[100], blocks[] = { 3, 9 };
    for (uint32_t i = 0; i < 100; i++) tokens[i] = 300 + i;
    open_slot(bench, 1, tokens, 100, 77);
    engine_stub_class.extend(bench->core, 1, blocks, 2);
    assert_int_equal(step(bench, (engine_row_t){ 1, 0, 70, 0 }), ERR_OK);
    assert_int_equal(bench->count, 0);
    assert_int_equal(step(bench, (engine_row_t){ 1, 70, 30, 1 }), ERR_OK);
    for (uint32_t index = 0; index < 20; index++) {
        assert_int_equal(bench->count, 1);
        assert_int_equal(bench->results[0].token, expected(77, index));
        assert_int_equal(bench->results[0].position, 100 + index);
        assert_in_range(bench->results[0].token, 256, STUB_VOCAB_DEFAULT - 257);
        assert_int_equal(step(bench, (engine_row_t){ 1, 100 + index, 1, 1 }), ERR_OK);
    }
    assert_int_equal(engine_stub_violations(bench->core), 0);
    bench_destroy(bench);
}

/* Would be broken: a resumed request goes on with other tokens, or with KV that prefill made of
 * what decode had generated, and nobody notices. */
static void test_engine_stub_resumed_sequence_continues_at_its_index(void **unused)
{
    bench_t *bench = bench_new();
    uint32_t tokens[11] = { 500 }, blocks[] = { 0 };
    sampling_t sampling;
    memset(&sampling, 0, sizeof sampling);
    sampling.seed = 5;
    engine_open_t open = {
        .tokens = tokens, .token_count = 10, .generated = 4, .sampling = &sampling
    };
    assert_int_equal(engine_stub_class.start(bench->core, 0, &open), ERR_OK);
    engine_stub_class.extend(bench->core, 0, blocks, 1);
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 10, 1 }), ERR_INVALID); /* two kinds */
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 6, 0 }), ERR_OK);
    assert_int_equal(step(bench, (engine_row_t){ 0, 6, 3, 0 }), ERR_OK);
    assert_int_equal(bench->count, 0);
    assert_int_equal(step(bench, (engine_row_t){ 0, 9, 1, 1 }), ERR_OK);
    assert_int_equal(bench->results[0].token, expected(5, 4));
    tokens[10] = expected(5, 4);
    open_slot(bench, 1, tokens, 11, 5); /* an answer in a chat's next prompt: decode's KV will do */
    engine_stub_class.extend(bench->core, 1, blocks, 1);
    assert_int_equal(step(bench, (engine_row_t){ 1, 10, 1, 1 }), ERR_OK);
    assert_int_equal(step(bench, (engine_row_t){ 1, 0, 10, 0 }), ERR_OK); /* prefill's over it */
    assert_int_equal(step(bench, (engine_row_t){ 0, 10, 1, 1 }), ERR_ENGINE);
    assert_int_equal(engine_stub_violations(bench->core), 1);
    bench_destroy(bench);
}

/* Would be broken: a worker decodes on KV that is missing, stale, or of another prompt, and nobody
 * notices. */
static void test_engine_stub_wrong_kv_is_a_violation(void **unused)
{
    bench_t *bench = bench_new();
    uint32_t tokens[65] = { 0 }, blocks[] = { 2, 4 };
    for (uint32_t i = 0; i < 65; i++) tokens[i] = 1000 + i;
    open_slot(bench, 0, tokens, 65, 1);
    engine_stub_class.extend(bench->core, 0, blocks, 2);
    assert_int_equal(step(bench, (engine_row_t){ 0, 64, 1, 1 }), ERR_ENGINE);
    assert_int_equal(engine_stub_violations(bench->core), 1);
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 65, 1 }), ERR_OK);
    uint32_t other[65], other_blocks[] = { 2, 5 };
    memcpy(other, tokens, sizeof other);
    other[3] = 7; /* shares no KV after position 3 */
    open_slot(bench, 1, other, 65, 1);
    engine_stub_class.extend(bench->core, 1, other_blocks, 2);
    assert_int_equal(step(bench, (engine_row_t){ 1, 3, 62, 1 }), ERR_OK);
    assert_int_equal(step(bench, (engine_row_t){ 0, 65, 1, 1 }), ERR_ENGINE);
    assert_int_equal(engine_stub_violations(bench->core), 2);
    bench_destroy(bench);
}

/* Would be broken: equal prompts could not share blocks. */
static void test_engine_stub_equal_prefix_has_equal_kv(void **unused)
{
    bench_t *bench = bench_new();
    uint32_t tokens[80], first[] = { 0, 1 }, second[] = { 0, 2 };
    for (uint32_t i = 0; i < 80; i++) tokens[i] = 600 + i;
    open_slot(bench, 0, tokens, 80, 1);
    engine_stub_class.extend(bench->core, 0, first, 2);
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 80, 1 }), ERR_OK);
    open_slot(bench, 1, tokens, 70, 2);
    engine_stub_class.extend(bench->core, 1, second, 2);
    assert_int_equal(step(bench, (engine_row_t){ 1, 64, 6, 1 }), ERR_OK);
    bench_destroy(bench);
}

/* Would be broken: an impossible row passes, or half of a refused step counts. */
static void test_engine_stub_impossible_rows_are_refused_whole(void **unused)
{
    bench_t *bench = bench_new();
    uint32_t tokens[10] = { 0 }, blocks[] = { 0 };
    open_slot(bench, 0, tokens, 10, 1);
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 10, 1 }), ERR_INVALID); /* no block */
    engine_stub_class.extend(bench->core, 0, blocks, 1);
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 11, 1 }), ERR_INVALID); /* unknown token */
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 9, 1 }), ERR_INVALID);  /* not the last */
    assert_int_equal(step(bench, (engine_row_t){ 1, 0, 1, 1 }), ERR_INVALID);  /* not open */
    engine_row_t rows[] = { { 0, 0, 10, 1 }, { 1, 0, 1, 1 } };
    assert_int_equal(engine_stub_class.step(bench->core, rows, 2, bench->results, ROWS,
                                            &bench->count, &bench->model_us),
                     ERR_INVALID);
    static const uint8_t zeros[BYTES];
    assert_memory_equal(bench->pool, zeros, BYTES);
    assert_int_equal(engine_stub_violations(bench->core), 0);
    engine_stub_class.release(bench->core, 0);
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 10, 1 }), ERR_INVALID);
    bench_destroy(bench);
}

/* Would be broken: texts end although nobody asked for it, or never end when they should. */
static void test_engine_stub_only_ending_seeds_end(void **unused)
{
    sampling_t sampling;
    memset(&sampling, 0, sizeof sampling);
    uint32_t ends = 0;
    for (uint32_t i = 0; i < 20000; i++) {
        sampling.seed = i;
        assert_int_not_equal(engine_stub_token(4096, 1, &sampling, i), 1);
        sampling.seed = STUB_ENDING_SEED | i;
        ends += engine_stub_token(4096, 1, &sampling, i) == 1;
        sampling.ignore_eos = 1;
        assert_int_not_equal(engine_stub_token(4096, 1, &sampling, i), 1);
        sampling.ignore_eos = 0;
    }
    assert_in_range(ends, 20000 / STUB_ENDING_ONE_IN * 8 / 10,
                    20000 / STUB_ENDING_ONE_IN * 12 / 10);
}

/* Would be broken: log probabilities of a prompt, or the likeliest tokens, are missing. */
static void test_engine_stub_logprobs_are_reported_as_asked(void **unused)
{
    bench_t *bench = bench_new();
    uint32_t tokens[12] = { 0 }, blocks[] = { 0 };
    sampling_t sampling;
    memset(&sampling, 0, sizeof sampling);
    sampling.prompt_logprobs = 1;
    sampling.top_logprobs = 3;
    engine_open_t open = { .tokens = tokens, .token_count = 12, .sampling = &sampling };
    assert_int_equal(engine_stub_class.start(bench->core, 2, &open), ERR_OK);
    engine_stub_class.extend(bench->core, 2, blocks, 1);
    assert_int_equal(step(bench, (engine_row_t){ 2, 0, 12, 1 }), ERR_OK);
    assert_int_equal(bench->count, 12); /* positions 1 to 11 of the prompt, and the new token */
    for (uint32_t i = 0; i < 12; i++) {
        assert_int_equal(bench->results[i].slot, 2);
        assert_int_equal(bench->results[i].position, i + 1);
        assert_int_equal(bench->results[i].is_prompt, i < 11);
        assert_int_equal(bench->results[i].top_count, 3);
        assert_true(bench->results[i].logprob <= 0);
    }
    bench_destroy(bench);
}

/* Would be broken: modelled times do not follow the configuration. */
static void test_engine_stub_times_follow_the_configuration(void **unused)
{
    bench_t *bench = bench_new();
    bench->config.engine.stub_token_us = 300;
    bench->config.engine.stub_prefill_token_ns = 2000;
    uint32_t tokens[10] = { 0 }, blocks[] = { 0 };
    open_slot(bench, 0, tokens, 10, 1);
    engine_stub_class.extend(bench->core, 0, blocks, 1);
    assert_int_equal(step(bench, (engine_row_t){ 0, 0, 10, 1 }), ERR_OK);
    assert_int_equal(bench->model_us, 20);
    assert_int_equal(step(bench, (engine_row_t){ 0, 10, 1, 1 }), ERR_OK);
    assert_int_equal(bench->model_us, 300);
    bench_destroy(bench);
}

/* Would be broken: an engine thread without work spins, or sleeps through new work. */
static void test_engine_stub_idle_returns_at_once_when_the_word_has_changed(void **unused)
{
    bench_t *bench = bench_new();
    uint32_t word = 4;
    engine_stub_class.idle(bench->core, &word, 3,
                           (uint64_t)3600 * 1000000);    /* else the test times out */
    engine_stub_class.idle(bench->core, &word, 4, 2000); /* nothing changes: it gives up */
    assert_int_equal(word, 4);
    bench_destroy(bench);
}

static const char timings_path[] = "test_engine_stub.csv"; /* removed by each test */

static const char *write_timings(const char *text)
{
    FILE *file = fopen(timings_path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    return timings_path;
}

/* Would be broken: a planner's simulated machine would not take the times that were measured. */
static void test_timings_give_a_step_its_time(void **unused)
{
    bench_t bench = { .pool = calloc(BLOCKS, BYTES) };
    error_text_t why;
    engine_core_options_t options = { .config = &bench.config,
                                      .self = { ROLE_decode_worker, 0 },
                                      .limits = { SLOTS, ROWS, SLOTS, 512 },
                                      .pool = bench.pool,
                                      .blocks = BLOCKS,
                                      .block_bytes = BYTES,
                                      .directory = "" };
    bench.config.engine.stub_layers = 10;
    snprintf(bench.config.engine.stub_timings, sizeof bench.config.engine.stub_timings, "%s",
             write_timings("op,shape,rows,keys,us,bytes,operations,anchor_us\n"
                           "gemm,\"64x64, x\",0,0,3.5,1,1,0\n"
                           "layer_decode,\"rows 1, context 100\",1,100,20,1,1,0\n"
                           "layer_decode,\"rows 1, context 300\",1,300,40,1,1,0\n"
                           "layer_prefill,\"rows 50\",50,50,1000,1,1,0\n"));
    assert_int_equal(engine_stub_class.open(&bench.core, &options, &why), ERR_OK);
    static const uint32_t tokens[199];
    open_slot(&bench, 0, tokens, 199, 1);
    open_slot(&bench, 1, tokens, 50, 1);
    const engine_row_t rows[] = { { .slot = 0, .first = 199, .count = 1 },
                                  { .slot = 1, .first = 0, .count = 50 } };
    assert_int_equal(engine_stub_class.step_us(bench.core, rows, 1), 10 * 30);
    assert_int_equal(engine_stub_class.step_us(bench.core, rows + 1, 1), 10 * 1000);
    assert_int_equal(engine_stub_class.step_us(bench.core, rows, 2), 10 * 1030);
    engine_stub_class.close(&bench.core);
    free(bench.pool);
    remove(timings_path);
}

static void test_timings_that_are_none_are_refused_with_their_line(void **unused)
{
    static const char *cases[][2] = {
        { "layer_decode,\"x\",1,100,20,\n", "of layer_prefill" },
        { "layer_decode,\"x\",1,100\n", ":1:" },
        { "op\nlayer_decode,\"x\",1,-3,20,\n", ":2:" },
        { "layer_decode,\"x\",1,abc,20,\n", ":1:" },
        { "layer_other,\"x\",1,1,20,\n", "layer_other" },
        { "layer_decode,\"x,1,100,20\n", ":1:" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        timings_t timings;
        error_text_t why = { "" };
        assert_int_equal(timings_read(&timings, write_timings(cases[i][0]), &why), ERR_MODEL);
        assert_non_null(strstr(why.text, cases[i][1]));
    }
    timings_t timings;
    error_text_t why = { "" };
    assert_int_equal(timings_read(&timings, "nowhere.csv", &why), ERR_MODEL);
    assert_non_null(strstr(why.text, "nowhere.csv"));
    remove(timings_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_stub_chunks_and_decode_rows_give_the_oracle),
        cmocka_unit_test(test_engine_stub_resumed_sequence_continues_at_its_index),
        cmocka_unit_test(test_engine_stub_wrong_kv_is_a_violation),
        cmocka_unit_test(test_engine_stub_equal_prefix_has_equal_kv),
        cmocka_unit_test(test_engine_stub_impossible_rows_are_refused_whole),
        cmocka_unit_test(test_engine_stub_only_ending_seeds_end),
        cmocka_unit_test(test_engine_stub_logprobs_are_reported_as_asked),
        cmocka_unit_test(test_engine_stub_times_follow_the_configuration),
        cmocka_unit_test(test_engine_stub_idle_returns_at_once_when_the_word_has_changed),
        cmocka_unit_test(test_timings_give_a_step_its_time),
        cmocka_unit_test(test_timings_that_are_none_are_refused_with_their_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
