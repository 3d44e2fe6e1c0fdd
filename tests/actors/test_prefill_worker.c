/* tests/actors/test_prefill_worker.c - prompts computed in chunks, handed to decode and store; and
 * what goes wrong. */
#include "tests/actors/worker_world.h"

#include "actors/prefill_worker.h"

static const address_t a_decode_worker = { ROLE_decode_worker, 1 };

static actor_t *worker(void)
{
    actor_t *world = world_new(&prefill_worker_class);
    engine_ready(world);
    return world;
}

typedef struct {
    uint32_t number, attempt, prompt_count, generated, max_tokens, store_blocks;
    bool has_prompt_logprobs;
} prompt_t;

static void assign(actor_t *world, prompt_t prompt)
{
    static uint32_t tokens[1024];
    static uint8_t keys[16 * KEY_BYTES];
    for (uint32_t i = 0; i < sizeof keys; i++) keys[i] = (uint8_t)(i / KEY_BYTES + 1);
    msg_t m = about(MSG_prefill_assign, prompt.number, prompt.attempt);
    m.prefill_assign.prompt_count = prompt.prompt_count;
    m.prefill_assign.generated = prompt.generated;
    m.prefill_assign.max_tokens = prompt.max_tokens;
    m.prefill_assign.store_blocks = prompt.store_blocks;
    m.prefill_assign.deadline_us = 60000000;
    m.prefill_assign.sampling =
        (sampling_t){ .temperature = 1, .top_p = 1, .repetition_penalty = 1 };
    m.prefill_assign.sampling.prompt_logprobs = prompt.has_prompt_logprobs;
    m.prefill_assign.tokens =
        (bytes_t){ tokens, ((size_t)prompt.prompt_count + prompt.generated) * 4 };
    m.prefill_assign.keys =
        (bytes_t){ keys, (size_t)prompt.prompt_count / BLOCK_TOKENS * KEY_BYTES };
    deliver(world, a_prefill_lb, &m);
}

static void place(actor_t *world, uint32_t number)
{
    msg_t m = about(MSG_decode_placed, number, 0);
    m.decode_placed.decode_worker = 1;
    m.decode_placed.decode_epoch = 101;
    deliver(world, a_decode_lb, &m);
}

static void land(actor_t *world, uint32_t number, uint32_t blocks)
{
    msg_t m = about(MSG_kv_landed, number, 0);
    m.kv_landed.blocks = blocks;
    deliver(world, a_decode_worker, &m);
}

static void answer_offers(actor_t *world)
{
    for (const msg_t *offer; (offer = take(world, MSG_store_offer, NULL)) != NULL;) {
        msg_t m;
        msg_init(&m, MSG_store_taken);
        m.store_taken.offer = offer->store_offer.offer;
        deliver(world, a_store, &m);
    }
}

/* At rest, with the ledger told exactly once. */
static void expect_done_once(actor_t *world, err_t error)
{
    answer_offers(world);
    const msg_t *done = take(world, MSG_prefill_done, NULL);
    assert_non_null(done);
    assert_int_equal(done->prefill_done.error, error);
    assert_null(take(world, MSG_prefill_done, NULL));
    assert_true(world->class->is_idle(world->state));
    assert_int_equal(world->started, world->closed);
    world_destroy(world);
}

/* Would be broken: the undisturbed path: chunk, blocks as they become final, first token, release.
 */
static void test_prefill_worker_prompt_is_chunked_offered_and_released(void **unused)
{
    actor_t *world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 150, .max_tokens = 10 });
    const msg_t *request = take(world, MSG_decode_request, NULL);
    assert_int_equal(request->decode_request.blocks, 3); /* 160 tokens */
    assert_int_equal(world->rows[0].count, 128);
    assert_int_equal(world->rows[0].is_last, 0);
    place(world, 1);
    assert_int_equal(take(world, MSG_kv_open, NULL)->kv_open.prompt_count, 150);
    finish_step(world, ERR_OK, 0);
    assert_int_equal(take(world, MSG_prefill_progress, NULL)->prefill_progress.computed, 0);
    assert_int_equal(take(world, MSG_prefill_progress, NULL)->prefill_progress.computed, 128);
    finish_job(world, ERR_OK); /* checksums of the two full blocks, while the next chunk runs */
    const msg_t *ready = take(world, MSG_kv_ready, NULL);
    assert_int_equal(ready->kv_ready.blocks_count, 2);
    assert_true(ready->kv_ready.checksums[0] == 1000 + ready->kv_ready.blocks[0]);
    assert_int_equal(world->rows[0].first, 128);
    assert_int_equal(world->rows[0].is_last, 1);
    finish_step(world, ERR_OK, 42);
    const msg_t *tokens = take(world, MSG_tokens, NULL);
    assert_int_equal(tokens->tokens.ids[0], 42);
    assert_null(take(world, MSG_prefilled, NULL)); /* its last block is not sealed yet */
    finish_job(world, ERR_OK);
    assert_int_equal(take(world, MSG_kv_ready, NULL)->kv_ready.first_block, 2);
    const msg_t *prefilled = take(world, MSG_prefilled, NULL);
    assert_int_equal(prefilled->prefilled.blocks, 3);
    assert_int_equal(prefilled->prefilled.token, 42);
    land(world, 1, 2);
    assert_null(take(world, MSG_prefill_done, NULL));
    land(world, 1, 3);
    expect_done_once(world, ERR_OK);
}

/* Would be broken: tokens that the client has would be computed as a prompt, with other bits; or be
 * told, or end the text, a second time. */
static void test_prefill_worker_resumed_request_is_prefilled_by_its_prompt_alone(void **unused)
{
    actor_t *world = worker();
    assign(world,
           (prompt_t){ .number = 1, .prompt_count = 100, .generated = 29, .max_tokens = 30 });
    assert_int_equal(take(world, MSG_decode_request, NULL)->decode_request.blocks, 3);
    assert_int_equal(world->opened.token_count, 100);
    assert_int_equal(world->opened.generated, 0);
    assert_int_equal(world->rows[0].count, 100);
    assert_int_equal(world->rows[0].is_last, 1);
    place(world, 1);
    const msg_t *open = take(world, MSG_kv_open, NULL);
    assert_int_equal(open->kv_open.prompt_count, 100);
    assert_int_equal(open->kv_open.generated, 29);
    assert_int_equal(open->kv_open.tokens.size, 129 * 4);
    finish_step(world, ERR_OK, END_TOKEN);
    finish_job(world, ERR_OK);
    assert_null(take(world, MSG_tokens, NULL));
    assert_null(take(world, MSG_finished, NULL));
    assert_int_equal(take(world, MSG_prefilled, NULL)->prefilled.blocks, 2);
    land(world, 1, 2);
    expect_done_once(world, ERR_OK);
}

/* Would be broken: the first token after a start would be lost because ingress had not greeted this
 * worker yet. */
static void test_prefill_worker_waits_for_ingress_to_greet(void **unused)
{
    actor_t *world = worker();
    world->deaf = an_ingress;
    world->deaf_answer = ERR_LOST;
    assign(world, (prompt_t){ .number = 1, .prompt_count = 10, .max_tokens = 1 });
    finish_step(world, ERR_OK, 42);
    finish_job(world, ERR_OK);
    pass(world, 400);
    assert_null(take(world, MSG_prefill_done, NULL));
    world->deaf_answer = ERR_OK;
    pass(world, 400);
    assert_int_equal(take(world, MSG_tokens, NULL)->tokens.ids[0], 42);
    assert_int_equal(take(world, MSG_finished, NULL)->finished.tokens, 1);
    expect_done_once(world, ERR_OK);
}

/* Would be broken: short prompts would each take a step of their own. */
static void test_prefill_worker_short_prompts_share_a_step(void **unused)
{
    actor_t *world = worker();
    assign(world,
           (prompt_t){ .number = 9, .prompt_count = 10, .max_tokens = 10 }); /* steps at once */
    assign(world, (prompt_t){ .number = 1, .prompt_count = 40, .max_tokens = 10 });
    assign(world, (prompt_t){ .number = 2, .prompt_count = 50, .max_tokens = 10 });
    assign(world, (prompt_t){ .number = 3, .prompt_count = 60, .max_tokens = 10 });
    finish_step(world, ERR_OK, 42);
    assert_int_equal(world->row_count, 3);
    assert_int_equal(world->rows[0].count, 40);
    assert_int_equal(world->rows[1].count, 50);
    assert_int_equal(world->rows[2].count, 38); /* what is left of 128 */
    world_destroy(world);
}

/* Would be broken: a text that ends with its first token would occupy a decode worker. */
static void test_prefill_worker_first_token_that_ends_finishes_here(void **unused)
{
    actor_t *world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 20, .max_tokens = 10 });
    place(world, 1);
    finish_step(world, ERR_OK, END_TOKEN);
    assert_non_null(take(world, MSG_tokens, NULL));
    const msg_t *finished = take(world, MSG_finished, NULL);
    assert_int_equal(finished->finished.reason, FINISH_STOP);
    assert_int_equal(finished->finished.tokens, 1);
    address_t to;
    assert_non_null(take(world, MSG_cancel, &to)); /* the place at decode */
    assert_int_equal(to.role, ROLE_decode_lb);
    finish_job(world, ERR_OK); /* the checksum that was under way */
    expect_done_once(world, ERR_OK);
    world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 20, .max_tokens = 1 });
    assert_null(take(world, MSG_decode_request, NULL)); /* one token needs no decode at all */
    finish_step(world, ERR_OK, 42);
    assert_int_equal(take(world, MSG_finished, NULL)->finished.reason, FINISH_LENGTH);
    finish_job(world, ERR_OK);
    expect_done_once(world, ERR_OK);
}

static void found(actor_t *world, uint32_t number, uint32_t blocks)
{
    msg_t m = about(MSG_store_found, number, 0);
    m.store_found.found = m.store_found.blocks_count = m.store_found.checksums_count = blocks;
    for (uint32_t i = 0; i < blocks; i++) m.store_found.blocks[i] = 40 + i;
    deliver(world, a_store, &m);
}

/* Would be broken: cached blocks would be computed again, or the last token not at all. */
static void test_prefill_worker_reuses_what_the_store_has(void **unused)
{
    actor_t *world = worker();
    assign(world,
           (prompt_t){ .number = 1, .prompt_count = 192, .max_tokens = 10, .store_blocks = 3 });
    const msg_t *ask = take(world, MSG_store_ask, NULL);
    assert_int_equal(ask->store_ask.keys.size, 2 * KEY_BYTES); /* not the block of the last token */
    assert_int_equal(world->row_count, 0);
    found(world, 1, 2);
    assert_int_equal(world->jobs[0].source[1], 41);
    finish_job(world, ERR_OK);
    assert_non_null(take(world, MSG_store_release, NULL));
    assert_int_equal(take(world, MSG_prefill_progress, NULL)->prefill_progress.reused, 128);
    assert_int_equal(world->rows[0].first, 128);
    assert_int_equal(world->rows[0].count, 64);
    place(world, 1);
    assert_int_equal(take(world, MSG_kv_open, NULL)->kv_open.reused, 128);
    assert_int_equal(take(world, MSG_kv_ready, NULL)->kv_ready.blocks_count, 2); /* at once */
    finish_step(world, ERR_OK, 42);
    assert_int_equal(take(world, MSG_tokens, NULL)->tokens.reused, 128);
    world_destroy(world);
}

/* Would be broken: a silent store, a lost pull or wrong bytes would stop the prompt or spoil it. */
static void test_prefill_worker_computes_what_the_store_fails_to_give(void **unused)
{
    actor_t *world = worker();
    assign(world,
           (prompt_t){ .number = 1, .prompt_count = 192, .max_tokens = 10, .store_blocks = 3 });
    pass(world, 1200);
    assert_int_equal(world->rows[0].first, 0);
    world_destroy(world);
    world = worker();
    assign(world,
           (prompt_t){ .number = 1, .prompt_count = 192, .max_tokens = 10, .store_blocks = 3 });
    found(world, 1, 2);
    finish_job(world, ERR_CHECKSUM);
    assert_int_equal(world->rows[0].first, 0);
    world_destroy(world);
    world = worker();
    assign(world, (prompt_t){ .number = 1,
                              .prompt_count = 192,
                              .max_tokens = 10,
                              .store_blocks = 3,
                              .has_prompt_logprobs = 1 });
    assert_null(take(world, MSG_store_ask, NULL)); /* every row's logits are wanted */
    world_destroy(world);
}

/* Would be broken: a cancelled prompt would be computed to its end, or its blocks reused under a
 * running step. */
static void test_prefill_worker_cancel_frees_within_one_chunk(void **unused)
{
    actor_t *world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 500, .max_tokens = 10 });
    cancel(world, a_prefill_lb, 1, 0);
    assert_null(take(world, MSG_prefill_done, NULL));
    finish_step(world, ERR_OK, 0);
    assert_int_equal(world->row_count, 0);
    expect_done_once(world, ERR_CANCELLED);
}

/* Would be broken: KV would be held for ever for a decode side that is gone. */
static void test_prefill_worker_lease_without_renewal_ends(void **unused)
{
    actor_t *world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 20, .max_tokens = 10 });
    assert_non_null(take(world, MSG_decode_request, NULL));
    pass(world, 1400);
    assert_non_null(
        take(world, MSG_decode_request, NULL)); /* asked again, for it may have been lost */
    pass(world, 1000);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_LEASE);
    finish_step(world, ERR_OK, 42);
    expect_done_once(world, ERR_LEASE);
}

/* Would be broken: a lost kv_landed would kill a request that is being decoded. */
static void test_prefill_worker_lost_landed_lets_go_in_silence(void **unused)
{
    actor_t *world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 20, .max_tokens = 10 });
    place(world, 1);
    finish_step(world, ERR_OK, 42);
    finish_job(world, ERR_OK);
    assert_non_null(take(world, MSG_prefilled, NULL));
    pass(world, 2400);
    assert_null(take(world, MSG_failed, NULL));
    assert_null(take(world, MSG_cancel, NULL));
    expect_done_once(world, ERR_LEASE);
}

/* Would be broken: one hiccup of another rank would kill the prompts, or a dead group would hang
 * them. */
static void test_prefill_worker_failed_step_is_repeated_then_given_up(void **unused)
{
    actor_t *world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 20, .max_tokens = 1 });
    for (int i = 0; i < 8; i++) {
        finish_step(world, ERR_EP_PEER, 0);
        assert_int_equal(world->row_count, 0);
        pass(world, 200);
        assert_int_equal(world->rows[0].first, 0);
        assert_int_equal(world->row_count, 1);
    }
    finish_step(world, ERR_EP_PEER, 0);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_EP_PEER);
    expect_done_once(world, ERR_EP_PEER);
    world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 20, .max_tokens = 1 });
    finish_step(world, ERR_ENGINE, 0);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_ENGINE);
    expect_done_once(world, ERR_ENGINE);
}

/* Would be broken: two half-admitted prompts would wait for each other's blocks. */
static void test_prefill_worker_prompt_waits_for_all_its_blocks(void **unused)
{
    actor_t *world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 384, .max_tokens = 10 });
    assign(world, (prompt_t){ .number = 2, .prompt_count = 320, .max_tokens = 10 });
    assign(world, (prompt_t){ .number = 3, .prompt_count = 20, .max_tokens = 10 });
    assert_int_equal(world->started, 1); /* the third would fit, but must not overtake */
    cancel(world, a_prefill_lb, 1, 0);
    finish_step(world, ERR_OK, 0);
    assert_int_equal(world->started, 3);
    world_destroy(world);
}

/* Would be broken: an old attempt's messages would move the new one. */
static void test_prefill_worker_new_attempt_replaces_the_old(void **unused)
{
    actor_t *world = worker();
    assign(world, (prompt_t){ .number = 1, .prompt_count = 20, .max_tokens = 10 });
    assign(world, (prompt_t){ .number = 1, .attempt = 1, .prompt_count = 20, .max_tokens = 1 });
    finish_step(world, ERR_OK, 42); /* of the old one */
    assert_null(take(world, MSG_tokens, NULL));
    assert_int_equal(take(world, MSG_prefill_done, NULL)->header.attempt, 0);
    place(world, 1);
    assign(world, (prompt_t){ .number = 1, .prompt_count = 20, .max_tokens = 10 });
    assert_int_equal(world->counters[METRIC_messages_stale_total], 2);
    finish_step(world, ERR_OK, 43);
    assert_int_equal(take(world, MSG_tokens, NULL)->header.attempt, 1);
    finish_job(world, ERR_OK);
    expect_done_once(world, ERR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_worker_prompt_is_chunked_offered_and_released),
        cmocka_unit_test(test_prefill_worker_resumed_request_is_prefilled_by_its_prompt_alone),
        cmocka_unit_test(test_prefill_worker_waits_for_ingress_to_greet),
        cmocka_unit_test(test_prefill_worker_short_prompts_share_a_step),
        cmocka_unit_test(test_prefill_worker_first_token_that_ends_finishes_here),
        cmocka_unit_test(test_prefill_worker_reuses_what_the_store_has),
        cmocka_unit_test(test_prefill_worker_computes_what_the_store_fails_to_give),
        cmocka_unit_test(test_prefill_worker_cancel_frees_within_one_chunk),
        cmocka_unit_test(test_prefill_worker_lease_without_renewal_ends),
        cmocka_unit_test(test_prefill_worker_lost_landed_lets_go_in_silence),
        cmocka_unit_test(test_prefill_worker_failed_step_is_repeated_then_given_up),
        cmocka_unit_test(test_prefill_worker_prompt_waits_for_all_its_blocks),
        cmocka_unit_test(test_prefill_worker_new_attempt_replaces_the_old),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
