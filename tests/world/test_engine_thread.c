/* tests/world/test_engine_thread.c - commands reach the engine in order and whole, and its answers
 * come back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <poll.h>

#include "runtime/engine/engine_ring.h"
#include "runtime/engine/engine_thread.h"
#include "runtime/engine/stub.h"

enum { SLOTS = 4, CONTEXT = 1024, BLOCKS = 64, PROMPT = 130 };

typedef struct {
    config_t *config;
    uint8_t *pool;
    engine_thread_t *thread;
    uint32_t vocab, end_token;
} scene_t;

static void scene_open(scene_t *self)
{
    self->config = calloc(1, sizeof *self->config);
    self->pool = calloc(BLOCKS, BLOCK_TOKENS * STUB_ENTRY_BYTES);
    assert_true(self->config && self->pool);
    engine_stub_vocabulary(self->config, &self->vocab, &self->end_token);
    const engine_core_options_t options = { .config = self->config,
                                            .self = { ROLE_decode_worker, 0 },
                                            .limits = { SLOTS, 256, 8, CONTEXT },
                                            .pool = self->pool,
                                            .blocks = BLOCKS,
                                            .block_bytes = BLOCK_TOKENS * STUB_ENTRY_BYTES,
                                            .directory = "" };
    self->thread = engine_thread_new(&engine_stub_class, &options);
    assert_non_null(self->thread);
}

static void scene_close(scene_t *self)
{
    engine_thread_destroy(&self->thread);
    assert_null(self->thread);
    free(self->config);
    free(self->pool);
}

static engine_news_t wait_news(scene_t *self)
{
    engine_news_t news;
    struct pollfd descriptor = { .fd = engine_thread_descriptor(self->thread), .events = POLLIN };
    while (!engine_thread_poll(self->thread, &news)) {
        uint64_t count;
        assert_int_equal(poll(&descriptor, 1, 20000), 1);
        assert_int_equal(read(descriptor.fd, &count, sizeof count), sizeof count);
    }
    engine_thread_accept(self->thread);
    return news;
}

/* If this failed, the tokens that clients see would not be those of their prompt and seed. */
static void test_engine_thread_sequence_gives_the_oracles_tokens(void **state)
{
    scene_t scene;
    uint32_t prompt[PROMPT], blocks[8] = { 9, 3, 17, 4, 21, 6, 30, 8 };
    sampling_t sampling = { .seed = 42 };
    scene_open(&scene);
    assert_true(wait_news(&scene).is_ready);
    for (uint32_t i = 0; i < PROMPT; i++) prompt[i] = 300 + i;
    for (uint32_t round = 0; round < 20; round++) {
        uint32_t slot = round % SLOTS;
        sampling.seed = 42 + round;
        const engine_open_t open = { .tokens = prompt,
                                     .token_count = PROMPT,
                                     .sampling = &sampling };
        assert_int_equal(engine_thread_start(scene.thread, slot, &open), ERR_OK);
        engine_thread_extend(scene.thread, slot, blocks, 8);
        for (uint32_t i = 0; i < 10; i++) {
            engine_row_t row = { slot, i ? PROMPT + i - 1 : 0, i ? 1 : PROMPT, 1 };
            assert_int_equal(engine_thread_step(scene.thread, i, &row, 1), ERR_OK);
            engine_news_t news = wait_news(&scene);
            assert_int_equal(news.error, ERR_OK);
            assert_int_equal(news.step, i);
            assert_int_equal(news.result_count, 1);
            assert_int_equal(news.results[0].token,
                             engine_stub_token(scene.vocab, scene.end_token, &sampling, i));
        }
        engine_thread_release(scene.thread, slot);
    }
    scene_close(&scene);
}

/* If this failed, a worker could run ahead of its engine without bound, or build on a step that
 * never happened. */
static void test_engine_thread_steps_behind_a_failed_one_fail_too(void **state)
{
    scene_t scene;
    uint32_t prompt[3] = { 300, 301, 302 }, block = 1;
    sampling_t sampling = { .seed = 1 };
    const engine_open_t open = { .tokens = prompt, .token_count = 3, .sampling = &sampling };
    engine_row_t wrong = { 0, 2, 5, 1 }, right = { 0, 0, 3, 1 };
    scene_open(&scene);
    scene.config->engine.stub_token_us = 2000;
    assert_true(wait_news(&scene).is_ready);
    assert_int_equal(engine_thread_start(scene.thread, 0, &open), ERR_OK);
    engine_thread_extend(scene.thread, 0, &block, 1);
    assert_int_equal(engine_thread_step(scene.thread, 1, &wrong, 0), ERR_INVALID);
    assert_int_equal(engine_thread_step(scene.thread, 1, &wrong, 1), ERR_OK);
    assert_int_equal(engine_thread_step(scene.thread, 2, &right, 1), ERR_OK);
    assert_int_equal(engine_thread_step(scene.thread, 3, &right, 1), ERR_OVERLOAD);
    assert_int_equal(wait_news(&scene).error, ERR_INVALID);
    engine_news_t second = wait_news(&scene);
    assert_int_equal(second.step, 2);
    assert_int_equal(second.error, ERR_INVALID);
    assert_int_equal(engine_thread_step(scene.thread, 4, &right, 1), ERR_OK);
    engine_news_t third = wait_news(&scene);
    assert_int_equal(third.error, ERR_OK);
    assert_int_equal(third.result_count, 1);
    scene_close(&scene);
}

/* If this failed, commands of a busy worker would overwrite each other or be read half-written. */
static void test_engine_ring_records_of_any_size_come_out_as_they_went_in(void **state)
{
    engine_ring_t ring;
    uint32_t seed = 7, in = 0, out = 0;
    size_t sizes[64];
    assert_true(engine_ring_init(&ring, 4096));
    for (int i = 0; i < 200000; i++) {
        seed = seed * 1664525u + 1013904223u;
        size_t size = (seed >> 8) % 900 + 1;
        uint8_t *record = (seed & 1) ? engine_ring_reserve(&ring, size) : NULL;
        if (record) {
            memset(record, (int)(in & 255), size);
            sizes[in++ % 64] = size;
            engine_ring_publish(&ring);
        } else {
            const uint8_t *oldest = engine_ring_peek(&ring);
            assert_int_equal(oldest != NULL, in != out);
            if (!oldest) continue;
            for (size_t j = 0; j < sizes[out % 64]; j++)
                assert_int_equal(oldest[j], (uint8_t)(out & 255));
            engine_ring_release(&ring);
            out++;
        }
    }
    assert_true(out > 50000);
    engine_ring_fini(&ring);
}

/* If this failed, a worker would wait for an engine that sleeps because it has nothing to do: every
 * request would take as long as that sleep. */
static void test_engine_ring_empty_takes_a_record_without_its_reader(void **state)
{
    engine_ring_t ring;
    uint32_t seed = 11;
    assert_true(engine_ring_init(&ring, 4096));
    for (int i = 0; i < 100000; i++) {
        seed = seed * 1664525u + 1013904223u;
        assert_non_null(engine_ring_reserve(&ring, (seed >> 8) % 1300 + 1));
        engine_ring_publish(&ring);
        assert_non_null(engine_ring_peek(&ring));
        engine_ring_release(&ring);
    }
    engine_ring_fini(&ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_thread_sequence_gives_the_oracles_tokens),
        cmocka_unit_test(test_engine_thread_steps_behind_a_failed_one_fail_too),
        cmocka_unit_test(test_engine_ring_records_of_any_size_come_out_as_they_went_in),
        cmocka_unit_test(test_engine_ring_empty_takes_a_record_without_its_reader),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
