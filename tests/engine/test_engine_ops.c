/* tests/engine/test_engine_ops.c - the model behind the engine's calls: alone, and as ranks of a
 * group. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "kernels/ops.h"
#include "runtime/base/config.h"
#include "runtime/engine/core.h"

enum { SLOTS = 8, ROWS_MAX = 64, CONTEXT = 8192, BLOCKS = 64, IDS_MAX = 1024, CASES = 6 };

/* In rank bodies instead of cmocka's: a child must end, not go on with the parent's tests. */
#define demand(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* ---- what the reference says ---- */

typedef struct {
    uint32_t prompt[IDS_MAX], greedy[64], prompt_count, greedy_count;
} case_t;

static case_t cases[CASES];
static char directory[64];

static uint32_t read_ids(const cJSON *list, uint32_t *out, uint32_t max)
{
    uint32_t count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        assert_true(count < max);
        out[count++] = (uint32_t)item->valuedouble;
    }
    return count;
}

static int read_cases(void **state)
{
    const char *path = SOURCE_DIR "/tests/golden/tiny/reference.json";
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is missing", path);
    char *text = malloc(1 << 20);
    size_t size = fread(text, 1, 1 << 20, file);
    fclose(file);
    cJSON *root = cJSON_ParseWithLength(text, size);
    assert_non_null(root);
    free(text);
    for (int i = 0; i < CASES; i++) {
        const cJSON *item = cJSON_GetArrayItem(root, i * 2 + 7);
        cases[i].prompt_count =
            read_ids(cJSON_GetObjectItem(item, "prompt_ids"), cases[i].prompt, IDS_MAX);
        cases[i].greedy_count =
            read_ids(cJSON_GetObjectItem(item, "greedy_ids"), cases[i].greedy, 64);
    }
    cJSON_Delete(root);
    snprintf(directory, sizeof directory, "/tmp/troupe-test-engine-XXXXXX");
    assert_non_null(mkdtemp(directory));
    return 0;
}

static int remove_directory(void **state)
{
    char path[128];
    snprintf(path, sizeof path, "%s/ep-decode-0", directory);
    unlink(path);
    return rmdir(directory);
}

/* ---- an engine ---- */

typedef struct {
    config_t config;
    const engine_class_t *class;
    void *core;
    char *pool;
    uint32_t next_block;
    uint32_t known[SLOTS]; /* tokens of each slot */
} engine_t;

static config_t make_config(int64_t ranks, const char *ops, int dispatch)
{
    static config_loaded_t loaded;
    char assignment[64];
    config_init(&loaded);
    snprintf(assignment, sizeof assignment, "engine.ops=%s", ops);
    demand(config_set(&loaded, assignment) == ERR_OK);
    config_t config = loaded.config;
    snprintf(config.model.path, sizeof config.model.path, "%s", SOURCE_DIR "/models/tiny");
    config.company.decode_ep = config.company.decode_workers = ranks;
    config.engine.dispatch = dispatch;
    config.timing.ep_wait_ms = 20000;
    return config;
}

static void open_engine(engine_t *self, const config_t *config, uint32_t rank)
{
    error_text_t why;
    *self = (engine_t){ .config = *config, .class = &engine_ops_class };
    size_t block_bytes = self->class->block_bytes(config, &why);
    demand(block_bytes > 0);
    self->pool = malloc(block_bytes * BLOCKS);
    demand(self->pool);
    engine_core_options_t options = {
        .config = &self->config,
        .self = { ROLE_decode_worker, rank },
        .limits = { .slots = SLOTS,
                    .rows_max = ROWS_MAX,
                    .sequences_max = SLOTS * 2,
                    .context_max = CONTEXT },
        .pool = self->pool,
        .blocks = BLOCKS,
        .block_bytes = block_bytes,
        .directory = directory,
    };
    err_t error = self->class->open(&self->core, &options, &why);
    if (error) fprintf(stderr, "%s\n", why.text);
    demand(!error);
}

static void close_engine(engine_t *self)
{
    self->class->close(&self->core);
    demand(!self->core);
    free(self->pool);
}

static void give_blocks(engine_t *self, uint32_t slot, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = self->next_block++ * 29 % BLOCKS;
        self->class->extend(self->core, slot, &block, 1);
    }
}

static void start(engine_t *self, uint32_t slot, const case_t *c, const sampling_t *sampling)
{
    engine_open_t sequence = { .tokens = c->prompt,
                               .token_count = c->prompt_count,
                               .sampling = sampling };
    demand(self->class->start(self->core, slot, &sequence) == ERR_OK);
    give_blocks(self, slot, (c->prompt_count + c->greedy_count) / BLOCK_TOKENS + 1);
    self->known[slot] = c->prompt_count;
}

static uint32_t run(engine_t *self, const engine_row_t *rows, uint32_t count,
                    engine_result_t *results)
{
    uint32_t result_count = 0;
    uint64_t model_us;
    demand(self->class->step(self->core, rows, count, results, ROWS_MAX + SLOTS * 2, &result_count,
                             &model_us) == ERR_OK);
    return result_count;
}

static sampling_t greedy(void)
{
    sampling_t sampling = sampling_default;
    sampling.temperature = 0;
    return sampling;
}

/* All slots together as a worker would: prompts in chunks of at most `chunk`, decoding sequences in
 * the same steps. */
typedef struct {
    uint32_t first, count, chunk; /* which cases, in slots 0.. */
} batch_t;

static void run_batch(engine_t *self, batch_t batch)
{
    static engine_result_t results[ROWS_MAX + SLOTS * 2];
    uint32_t done[SLOTS] = { 0 }, got[SLOTS] = { 0 };
    sampling_t sampling = greedy();
    for (uint32_t i = 0; i < batch.count; i++) start(self, i, &cases[batch.first + i], &sampling);
    for (;;) {
        engine_row_t rows[SLOTS];
        uint32_t count = 0, room = ROWS_MAX - SLOTS;
        for (uint32_t i = 0; i < batch.count; i++) {
            const case_t *c = &cases[batch.first + i];
            if (got[i] == c->greedy_count) continue;
            uint32_t left = self->known[i] - done[i];
            uint32_t now = left < batch.chunk ? left : batch.chunk;
            if (left > 1 && now > room) now = room;
            if (!now) continue;
            if (left > 1) room -= now;
            rows[count++] = (engine_row_t){ i, done[i], now, now == left };
            done[i] += now;
        }
        if (!count) break;
        uint32_t result_count = run(self, rows, count, results);
        for (uint32_t r = 0; r < result_count; r++) {
            uint32_t slot = results[r].slot;
            demand(results[r].position == self->known[slot] && !results[r].is_prompt);
            demand(results[r].token == cases[batch.first + slot].greedy[got[slot]]);
            self->known[slot]++;
            got[slot]++;
        }
    }
    for (uint32_t i = 0; i < batch.count; i++) {
        demand(got[i] == cases[batch.first + i].greedy_count);
        self->class->release(self->core, i);
    }
}

/* ---- alone ---- */

/* If this failed, a worker would serve other tokens than the model's: mixed steps, chunks and slots
 * all play a part. */
static void test_engine_ops_mixed_steps_give_the_references_tokens(void **state)
{
    engine_t engine;
    config_t config = make_config(1, "auto", 0);
    open_engine(&engine, &config, 0);
    run_batch(&engine, (batch_t){ 0, CASES, 20 });
    run_batch(&engine, (batch_t){ 0, 1, 7 });
    close_engine(&engine);
}

/* If this failed, an unsound step would read blocks that a sequence does not have, or change what
 * it knows. */
/* Every thread has scratch of its own, however small the model's is. */
static void test_engine_ops_many_threads_give_the_references_tokens(void **state)
{
    engine_t engine;
    config_t config = make_config(1, "auto", 0);
    config.engine.threads = 128;
    open_engine(&engine, &config, 0);
    run_batch(&engine, (batch_t){ 0, 2, 7 });
    close_engine(&engine);
}

static void test_engine_ops_unsound_rows_are_refused_whole(void **state)
{
    engine_t engine;
    engine_result_t results[4];
    uint32_t count;
    uint64_t model_us;
    sampling_t sampling = greedy();
    config_t config = make_config(1, "auto", 0);
    open_engine(&engine, &config, 0);
    start(&engine, 0, &cases[0], &sampling);
    uint32_t known = cases[0].prompt_count;
    engine_open_t resumed = {
        .tokens = cases[0].prompt, .token_count = known, .generated = 3, .sampling = &sampling
    };
    assert_int_equal(engine.class->start(engine.core, 2, &resumed), ERR_OK);
    give_blocks(&engine, 2, 2);
    const engine_row_t bad[] = {
        { 2, 0, known, 1 },     /* prompt and generated tokens in one part */
        { 1, 0, 1, 0 },         /* no such sequence */
        { 0, 0, 0, 0 },         /* no rows */
        { 0, 0, known + 1, 0 }, /* more tokens than there are */
        { 0, 0, known - 1, 1 }, /* not the last */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(engine.class->step(engine.core, &bad[i], 1, results, 4, &count, &model_us),
                         ERR_INVALID);
    engine_row_t whole = { 0, 0, known, 1 };
    assert_int_equal(run(&engine, &whole, 1, results), 1);
    assert_int_equal(results[0].token, cases[0].greedy[0]);
    engine.class->release(engine.core, 0);
    close_engine(&engine);
}

/* If this failed, a client's out-of-range token id would read past the embedding table. */
static void test_engine_ops_unknown_token_fails_its_own_steps_only(void **state)
{
    engine_t engine;
    engine_result_t results[4];
    uint32_t count;
    uint64_t model_us;
    case_t strange = { .prompt = { 0, 4096, 5 }, .prompt_count = 3 };
    sampling_t sampling = greedy();
    config_t config = make_config(1, "auto", 0);
    open_engine(&engine, &config, 0);
    start(&engine, 0, &strange, &sampling);
    engine_row_t row = { 0, 0, 3, 1 };
    assert_int_equal(engine.class->step(engine.core, &row, 1, results, 4, &count, &model_us),
                     ERR_INVALID);
    engine.class->release(engine.core, 0);
    run_batch(&engine, (batch_t){ 1, 1, 64 });
    close_engine(&engine);
}

/* If this failed, a pool with room for more than the model's context would let positions run past
 * the rope table. */
static void test_engine_ops_sequence_past_the_models_context_fails_its_own_steps_only(void **state)
{
    static uint32_t ids[CONTEXT];
    engine_t engine;
    engine_result_t results[4];
    uint32_t count;
    uint64_t model_us;
    sampling_t sampling = greedy();
    config_t config = make_config(1, "auto", 0);
    open_engine(&engine, &config, 0);
    engine_open_t sequence = { .tokens = ids, .token_count = 4097, .sampling = &sampling };
    assert_int_equal(engine.class->start(engine.core, 0, &sequence), ERR_OK);
    give_blocks(&engine, 0, 65);
    engine_row_t row = { 0, 4090, 7, 1 };
    assert_int_equal(engine.class->step(engine.core, &row, 1, results, 4, &count, &model_us),
                     ERR_INVALID);
    engine.class->release(engine.core, 0);
    run_batch(&engine, (batch_t){ 1, 1, 64 });
    close_engine(&engine);
}

/* If this failed, `echo` with logprobs would report other tokens' probabilities, or depend on the
 * chunks. */
static void test_engine_ops_prompt_logprobs_cover_the_prompt_once(void **state)
{
    static engine_result_t whole[ROWS_MAX + SLOTS * 2], chunk[ROWS_MAX + SLOTS * 2];
    engine_t engine;
    sampling_t sampling = greedy();
    sampling.prompt_logprobs = sampling.logprobs = 1;
    sampling.top_logprobs = 3;
    config_t config = make_config(1, "auto", 0);
    open_engine(&engine, &config, 0);
    const case_t *c = &cases[0];
    assert_true(c->prompt_count <= ROWS_MAX && c->prompt_count > 12);
    start(&engine, 0, c, &sampling);
    engine_row_t all = { 0, 0, c->prompt_count, 1 };
    assert_int_equal(run(&engine, &all, 1, whole), c->prompt_count);
    for (uint32_t i = 0; i + 1 < c->prompt_count; i++) {
        assert_true(whole[i].is_prompt && whole[i].position == i + 1 &&
                    whole[i].token == c->prompt[i + 1]);
        assert_true(whole[i].logprob <= 0 && whole[i].top_count == 3 &&
                    whole[i].top_logprobs[0] >= whole[i].logprob);
    }
    const engine_result_t *last = &whole[c->prompt_count - 1];
    assert_true(!last->is_prompt && last->token == c->greedy[0] && last->top_ids[0] == last->token);
    start(&engine, 1, c, &sampling);
    uint32_t seen = 0;
    for (uint32_t first = 0; first < c->prompt_count; first += 11) {
        uint32_t left = c->prompt_count - first, now = left < 11 ? left : 11;
        engine_row_t part = { 1, first, now, now == left };
        uint32_t count = run(&engine, &part, 1, chunk);
        for (uint32_t i = 0; i < count; i++, seen++) {
            chunk[i].slot = 0;
            assert_memory_equal(&chunk[i], &whole[seen], sizeof chunk[i]);
        }
    }
    assert_int_equal(seen, c->prompt_count);
    close_engine(&engine);
}

enum { RESUMED_AT = 9, RESUMED_TOKENS = 13 };

/* Slot 1 resumes what slot 0 has generated: the prompt, the generated tokens in parts of `chunk`
 * rows beside another sequence's, then the rest.  Every bit is the undisturbed stream's. */
static void resume(engine_t *self, const case_t *c, const sampling_t *sampling,
                   const engine_result_t *undisturbed, uint32_t chunk)
{
    static engine_result_t results[ROWS_MAX + SLOTS * 2];
    engine_open_t resumed = { .tokens = c->prompt,
                              .token_count = c->prompt_count + RESUMED_AT,
                              .generated = RESUMED_AT,
                              .sampling = sampling };
    demand(self->class->start(self->core, 1, &resumed) == ERR_OK);
    give_blocks(self, 1, 3);
    engine_row_t row = { 1, 0, c->prompt_count, 0 };
    assert_int_equal(run(self, &row, 1, results), 0);
    for (uint32_t at = 0; at < RESUMED_TOKENS - 1; at += row.count) {
        uint32_t left = at < RESUMED_AT ? RESUMED_AT - at : 1, first = c->prompt_count + at;
        row = (engine_row_t){ 1, first, left < chunk ? left : chunk, left <= chunk };
        const engine_row_t rows[] = { { 0, c->prompt_count + 3, 2, 0 }, row };
        assert_int_equal(run(self, rows, 2, results), row.is_last);
        if (!row.is_last) continue;
        results[0].slot = 0;
        assert_memory_equal(&results[0], &undisturbed[at + row.count], sizeof results[0]);
    }
    self->class->release(self->core, 1);
}

static void check_resumed(const char *ops)
{
    engine_t engine;
    engine_result_t undisturbed[RESUMED_TOKENS];
    sampling_t sampling = sampling_default;
    sampling.seed = 12345;
    sampling.temperature = 2.0f;
    sampling.frequency_penalty = 0.5f;
    sampling.repetition_penalty = 1.1f;
    sampling.logprobs = 1;
    sampling.top_logprobs = 3;
    config_t config = make_config(1, ops, 0);
    if (!ops_find(ops)) return;
    open_engine(&engine, &config, 0);
    case_t c = cases[1];
    start(&engine, 0, &c, &sampling);
    for (uint32_t i = 0; i < RESUMED_TOKENS; i++) {
        engine_row_t row = { 0, i ? engine.known[0] - 1 : 0, i ? 1 : c.prompt_count, 1 };
        assert_int_equal(run(&engine, &row, 1, &undisturbed[i]), 1);
        c.prompt[c.prompt_count + i] = undisturbed[i].token;
        engine.known[0]++;
    }
    for (uint32_t chunk = 1; chunk <= 16; chunk *= 4)
        resume(&engine, &c, &sampling, undisturbed, chunk);
    close_engine(&engine);
}

/* If this failed, a stream that another worker continues would jump to other random numbers, or go
 * on from logits that differ in their last bits. */
static void test_engine_ops_resumed_stream_goes_on_with_the_same_bits(void **state)
{
    static const char *const tables[] = { "judge", "avx2", "avx512", "avx512_bf16", "amx" };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) check_resumed(tables[i]);
}

/* ---- as a group ---- */

typedef struct {
    uint32_t ranks;
    int dispatch;
    const char *ops;
} group_t;

/* Each rank has its own cases, prompts and decode steps at its own pace, and is idle in between and
 * at the end. */
static void run_member(const group_t *group, uint32_t rank, int done_pipe)
{
    engine_t engine;
    const uint32_t word = 1;
    config_t config = make_config(group->ranks, group->ops, group->dispatch);
    open_engine(&engine, &config, rank);
    for (uint32_t i = rank; i < CASES; i += group->ranks)
        run_batch(&engine, (batch_t){ i, 1, 10 + rank * 7 });
    demand(write(done_pipe, "x", 1) == 1);
    for (;;) engine.class->idle(engine.core, &word, 1, 100000);
}

static void check_group(const group_t *group)
{
    int ends[2];
    char byte;
    pid_t children[8];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    for (uint32_t rank = 0; rank < group->ranks; rank++) {
        children[rank] = fork();
        assert_true(children[rank] >= 0);
        if (!children[rank]) run_member(group, rank, ends[1]);
    }
    close(ends[1]);
    for (uint32_t rank = 0; rank < group->ranks; rank++)
        if (read(ends[0], &byte, 1) != 1) fail_msg("a rank of %u failed", group->ranks);
    close(ends[0]);
    for (uint32_t rank = 0; rank < group->ranks; rank++) {
        kill(children[rank], SIGKILL);
        waitpid(children[rank], NULL, 0);
    }
}

/* If this failed, two or four ranks would say something else than one, or wait for each other for
 * ever. */
static void test_engine_ops_two_and_four_ranks_give_the_references_tokens(void **state)
{
    check_group(&(group_t){ 2, 0, "auto" });
    check_group(&(group_t){ 4, 0, "auto" });
}

/* If this failed, dispatch in FP8 would lose more than the tiny model's margins. */
static void test_engine_ops_fp8_dispatch_gives_the_references_tokens(void **state)
{
    check_group(&(group_t){ 2, 1, "auto" });
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_ops_mixed_steps_give_the_references_tokens),
        cmocka_unit_test(test_engine_ops_many_threads_give_the_references_tokens),
        cmocka_unit_test(test_engine_ops_unsound_rows_are_refused_whole),
        cmocka_unit_test(test_engine_ops_unknown_token_fails_its_own_steps_only),
        cmocka_unit_test(test_engine_ops_sequence_past_the_models_context_fails_its_own_steps_only),
        cmocka_unit_test(test_engine_ops_prompt_logprobs_cover_the_prompt_once),
        cmocka_unit_test(test_engine_ops_resumed_stream_goes_on_with_the_same_bits),
        cmocka_unit_test(test_engine_ops_two_and_four_ranks_give_the_references_tokens),
        cmocka_unit_test(test_engine_ops_fp8_dispatch_gives_the_references_tokens),
    };
    return cmocka_run_group_tests(tests, read_cases, remove_directory);
}
