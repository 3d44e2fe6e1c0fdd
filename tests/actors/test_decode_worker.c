/* tests/actors/test_decode_worker.c - a request pulled, decoded and given back; and what is lost on
 * the way. */
#include "tests/actors/worker_world.h"

#include "actors/decode_worker.h"

enum { PROMPT = 100, GENERATED_MAX = 40 }; /* two blocks */

static const address_t a_prefill_worker = { ROLE_prefill_worker, 1 };

static actor_t *worker(void)
{
    actor_t *world = world_new(&decode_worker_class);
    engine_ready(world);
    return world;
}

static void assign(actor_t *world, uint32_t number, uint32_t attempt, uint32_t blocks)
{
    msg_t m = about(MSG_decode_assign, number, attempt);
    m.decode_assign.prefill_worker = 1;
    m.decode_assign.prefill_epoch = 101;
    m.decode_assign.blocks = blocks;
    deliver(world, a_decode_lb, &m);
}

/* With so many tokens that an earlier attempt generated. */
static void open_resumed(actor_t *world, uint32_t number, uint32_t attempt, uint32_t generated,
                         uint32_t max_tokens)
{
    static uint32_t tokens[PROMPT + GENERATED_MAX];
    static uint8_t key[KEY_BYTES] = { 1 };
    for (uint32_t i = 0; i < GENERATED_MAX; i++) tokens[PROMPT + i] = 50 + i;
    msg_t m = about(MSG_kv_open, number, attempt);
    m.kv_open.prompt_count = PROMPT;
    m.kv_open.generated = generated;
    m.kv_open.max_tokens = max_tokens;
    m.kv_open.reused = PROMPT / 2;
    m.kv_open.deadline_us = 60000000;
    m.kv_open.sampling = (sampling_t){ .temperature = 1, .top_p = 1, .repetition_penalty = 1 };
    m.kv_open.tokens = (bytes_t){ tokens, ((size_t)PROMPT + generated) * 4 };
    m.kv_open.keys = (bytes_t){ key, sizeof key };
    deliver(world, a_prefill_worker, &m);
}

static void open_kv(actor_t *world, uint32_t number, uint32_t attempt, uint32_t max_tokens)
{
    open_resumed(world, number, attempt, 0, max_tokens);
}

static void ready(actor_t *world, uint32_t number, uint32_t first, uint32_t count)
{
    msg_t m = about(MSG_kv_ready, number, 0);
    m.kv_ready.first_block = first;
    m.kv_ready.blocks_count = m.kv_ready.checksums_count = count;
    for (uint32_t i = 0; i < count; i++) m.kv_ready.blocks[i] = 5 + first + i;
    deliver(world, a_prefill_worker, &m);
}

static void prefilled(actor_t *world, uint32_t number, uint32_t token)
{
    msg_t m = about(MSG_prefilled, number, 0);
    m.prefilled.blocks = 2;
    m.prefilled.token = token;
    deliver(world, a_prefill_worker, &m);
}

/* Up to and with the first token in the batch. */
static actor_t *decoding(uint32_t max_tokens, uint32_t blocks)
{
    actor_t *world = worker();
    assign(world, 1, 0, blocks);
    open_kv(world, 1, 0, max_tokens);
    ready(world, 1, 0, 2);
    finish_job(world, ERR_OK);
    prefilled(world, 1, 50);
    return world;
}

/* Request 2, resumed after `generated` tokens, with the prompt's KV. */
static void resume(actor_t *world, uint32_t generated, uint32_t max_tokens)
{
    assign(world, 2, 0, 3);
    open_resumed(world, 2, 0, generated, max_tokens);
    ready(world, 2, 0, 2);
    finish_job(world, ERR_OK);
    prefilled(world, 2, 99);
}

static void expect_row(const actor_t *world, uint32_t at, uint32_t first, uint32_t count,
                       uint32_t is_last)
{
    assert_in_range(at, 0, world->row_count - 1);
    assert_int_equal(world->rows[at].first, first);
    assert_int_equal(world->rows[at].count, count);
    assert_int_equal(world->rows[at].is_last, is_last);
}

/* Request 1 as both sides have announced it, with none of its blocks. */
static actor_t *announced(void)
{
    actor_t *world = worker();
    assign(world, 1, 0, 2);
    open_kv(world, 1, 0, 3);
    return world;
}

static void expect_tokens(actor_t *world, uint32_t first_index, uint32_t token)
{
    address_t to;
    const msg_t *tokens = take(world, MSG_tokens, &to);
    assert_non_null(tokens);
    assert_int_equal(to.role, ROLE_ingress);
    assert_int_equal(tokens->tokens.first_index, first_index);
    assert_int_equal(tokens->tokens.ids_count, 1);
    assert_int_equal(tokens->tokens.ids[0], token);
    assert_int_equal(tokens->tokens.reused, PROMPT / 2);
}

/* At rest, with the ledger told exactly once. */
static void expect_done_once(actor_t *world)
{
    address_t to;
    const msg_t *done = take(world, MSG_decode_done, &to);
    assert_non_null(done);
    assert_int_equal(to.role, ROLE_decode_lb);
    assert_null(take(world, MSG_decode_done, NULL));
    assert_true(world->class->is_idle(world->state));
    assert_int_equal(world->started, world->closed);
    world_destroy(world);
}

/* Would be broken: the undisturbed path, in the order that two links may bring: kv_open before
 * decode_assign. */
static void test_decode_worker_request_is_pulled_decoded_and_finished(void **unused)
{
    actor_t *world = worker();
    open_kv(world, 1, 0, 3);
    ready(world, 1, 0, 1);
    assert_int_equal(world->job_count, 0);
    assign(world, 1, 0, 2);
    assert_int_equal(world->job_count, 1);
    assert_int_equal(world->jobs[0].source[0], 5);
    ready(world, 1, 1, 1);
    finish_job(world, ERR_OK);
    assert_int_equal(take(world, MSG_kv_landed, NULL)->kv_landed.blocks, 1);
    prefilled(world, 1, 50);
    assert_int_equal(world->row_count, 0); /* a block is missing */
    finish_job(world, ERR_OK);
    assert_int_equal(take(world, MSG_kv_landed, NULL)->kv_landed.blocks, 2);
    expect_tokens(world, 0, 50);
    assert_int_equal(world->rows[0].first, PROMPT);
    assert_int_equal(world->rows[0].count, 1);
    finish_step(world, ERR_OK, 51);
    expect_tokens(world, 1, 51);
    finish_step(world, ERR_OK, 52);
    expect_tokens(world, 2, 52);
    const msg_t *finished = take(world, MSG_finished, NULL);
    assert_int_equal(finished->finished.reason, FINISH_LENGTH);
    assert_int_equal(finished->finished.tokens, 3);
    expect_done_once(world);
}

/* Would be broken: a text would go on after its end token. */
static void test_decode_worker_end_token_stops(void **unused)
{
    actor_t *world = decoding(20, 2);
    finish_step(world, ERR_OK, END_TOKEN);
    const msg_t *finished = take(world, MSG_finished, NULL);
    assert_int_equal(finished->finished.reason, FINISH_STOP);
    assert_int_equal(finished->finished.tokens, 2);
    expect_done_once(world);
}

/* Would be broken: a resumed stream would go on with other bits than an undisturbed one, tell
 * tokens a second time, or take what prefill says for the token that the client has. */
static void test_decode_worker_resumed_stream_is_computed_again_and_goes_on(void **unused)
{
    actor_t *world = worker();
    resume(world, 6, 8);
    assert_int_equal(world->opened.token_count, PROMPT + 6);
    assert_int_equal(world->opened.generated, 6);
    assert_int_equal(world->appended, 0);
    expect_row(world, 0, PROMPT, 4, 0);
    finish_step(world, ERR_OK, 0);
    expect_row(world, 0, PROMPT + 4, 2, 1);
    assert_null(take(world, MSG_tokens, NULL));
    finish_step(world, ERR_OK, 71);
    expect_tokens(world, 6, 71);
    expect_row(world, 0, PROMPT + 6, 1, 1);
    finish_step(world, ERR_OK, 72);
    expect_tokens(world, 7, 72);
    assert_int_equal(take(world, MSG_finished, NULL)->finished.tokens, 8);
    expect_done_once(world);
}

/* Would be broken: streams beside a resumed one would stand still until it has caught up, or a step
 * would be larger than the engine allows. */
static void test_decode_worker_resumed_stream_takes_what_the_batch_leaves(void **unused)
{
    actor_t *world = decoding(20, 2);
    expect_tokens(world, 0, 50);
    resume(world, 6, 20);
    finish_step(world, ERR_OK, 51); /* that began without it */
    for (uint32_t at = 0; at < 2; at++) {
        expect_tokens(world, 1 + at, 51 + at);
        expect_row(world, 0, PROMPT + 1 + at, 1, 1);
        expect_row(world, 1, PROMPT + 3 * at, 3, at == 1);
        finish_step(world, ERR_OK, 52 + at);
    }
    assert_int_equal(take(world, MSG_tokens, NULL)->tokens.first_index, 3);
    assert_int_equal(take(world, MSG_tokens, NULL)->tokens.first_index, 6);
    world_destroy(world);
}

/* Would be broken: a step that failed would leave a hole in the KV, or one without a result would
 * count as a token. */
static void test_decode_worker_failed_step_of_a_resumed_stream_is_repeated(void **unused)
{
    actor_t *world = worker();
    resume(world, 6, 8);
    finish_step(world, ERR_EP_PEER, 0);
    pass(world, 200);
    expect_row(world, 0, PROMPT, 4, 0);
    finish_step(world, ERR_OK, 0);
    expect_row(world, 0, PROMPT + 4, 2, 1);
    finish_step(world, ERR_ENGINE, 0);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_ENGINE);
    expect_done_once(world);
}

/* Would be broken: a client that goes away while its stream is computed again would leave blocks
 * behind, or get tokens. */
static void test_decode_worker_cancel_ends_a_resumed_stream_after_the_step(void **unused)
{
    actor_t *world = worker();
    resume(world, 6, 8);
    cancel(world, an_ingress, 2, 0);
    assert_null(take(world, MSG_decode_done, NULL));
    finish_step(world, ERR_OK, 0);
    assert_null(take(world, MSG_tokens, NULL));
    expect_done_once(world);
}

/* Would be broken: blocks would be offered to the store before they are computed again, or under
 * another key than the first attempt's. */
static void test_decode_worker_resumed_blocks_are_offered_once_computed(void **unused)
{
    uint8_t keys[2][KEY_BYTES];
    for (int is_resumed = 0; is_resumed < 2; is_resumed++) {
        actor_t *world = is_resumed ? worker() : decoding(32, 3);
        if (is_resumed) resume(world, 30, 32);
        if (is_resumed) {
            for (uint32_t i = 0; i < 7; i++) finish_step(world, ERR_OK, 0);
            assert_int_equal(world->job_count, 1); /* 128 tokens have KV: the checksum */
        } else {
            for (uint32_t i = 1; i < 30; i++) finish_step(world, ERR_OK, 50 + i);
        }
        finish_job(world, ERR_OK);
        const msg_t *offer = take(world, MSG_store_offer, NULL);
        assert_int_equal(offer->store_offer.blocks_count, 1);
        memcpy(keys[is_resumed], offer->store_offer.keys.data, KEY_BYTES);
        world_destroy(world);
    }
    assert_memory_equal(keys[0], keys[1], KEY_BYTES);
}

/* Would be broken: a resumed stream would run past the blocks that were set aside for it. */
static void test_decode_worker_resumed_stream_without_room_fails(void **unused)
{
    actor_t *world = worker();
    assign(world, 1, 0, 2);
    open_resumed(world, 1, 0, 28, 30);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_INVALID);
    expect_done_once(world);
}

/* Would be broken: a cancelled request's blocks would be reused while a step still writes them, or
 * never. */
static void test_decode_worker_cancel_frees_after_the_step(void **unused)
{
    actor_t *world = decoding(20, 2);
    assert_int_equal(world->row_count, 1);
    cancel(world, an_ingress, 1, 0);
    assert_null(take(world, MSG_decode_done, NULL));
    finish_step(world, ERR_OK, 51);
    assert_null(take(world, MSG_finished, NULL));
    expect_done_once(world);
}

/* Would be broken: a cancel during a pull would let the pull write into another request's blocks.
 */
static void test_decode_worker_cancel_frees_after_the_pull(void **unused)
{
    actor_t *world = announced();
    ready(world, 1, 0, 2);
    cancel(world, a_decode_lb, 1, 0);
    assert_null(take(world, MSG_decode_done, NULL));
    finish_job(world, ERR_OK);
    expect_done_once(world);
}

/* Would be broken: a lost kv_ready would let decode begin on blocks that never came. */
static void test_decode_worker_gap_in_blocks_fails_the_attempt(void **unused)
{
    actor_t *world = announced();
    ready(world, 1, 1, 1);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_LOST);
    address_t to;
    assert_non_null(take(world, MSG_cancel, &to));
    assert_int_equal(to.role, ROLE_prefill_worker);
    expect_done_once(world);
}

/* Would be broken: bytes that do not match their checksum would be decoded upon. */
static void test_decode_worker_bad_checksum_fails_the_attempt(void **unused)
{
    actor_t *world = announced();
    ready(world, 1, 0, 2);
    finish_job(world, ERR_CHECKSUM);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_CHECKSUM);
    assert_int_equal(world->counters[METRIC_kv_checksum_errors_total], 1);
    expect_done_once(world);
}

/* Would be broken: a request of which only one side spoke, or whose prefill worker fell silent,
 * would be held for ever; and one that is renewed would be dropped. */
static void test_decode_worker_silent_prefill_side_ends_the_lease(void **unused)
{
    actor_t *world = announced();
    for (int i = 0; i < 4; i++) {
        pass(world, 1000);
        msg_t renew;
        msg_init(&renew, MSG_lease_renew);
        renew.lease_renew.ids_hi_count = renew.lease_renew.ids_lo_count =
            renew.lease_renew.attempts_count = 1;
        renew.lease_renew.ids_hi[0] = 1;
        renew.lease_renew.ids_lo[0] = 77;
        deliver(world, a_prefill_worker, &renew);
    }
    assert_null(take(world, MSG_failed, NULL));
    address_t to;
    assert_non_null(
        take(world, MSG_lease_renew, &to)); /* and we renew towards the prefill worker */
    assert_int_equal(to.role, ROLE_prefill_worker);
    pass(world, 2200);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_LEASE);
    assert_null(take(world, MSG_failed, NULL));
    expect_done_once(world);
}

/* Would be broken: a new attempt would be decoded with the old one's state, or the old one's ghosts
 * believed. */
static void test_decode_worker_new_attempt_replaces_the_old(void **unused)
{
    actor_t *world = decoding(20, 2);
    open_kv(world, 1, 1, 20);
    prefilled(world, 1, 50); /* of attempt 0 */
    assert_true(world->counters[METRIC_messages_stale_total] >= 1);
    finish_step(world, ERR_OK, 51);
    assert_int_equal(take(world, MSG_decode_done, NULL)->header.attempt, 0);
    assign(world, 1, 1, 2);
    cancel(world, an_ingress, 1, 1);
    expect_done_once(world);
}

/* Would be broken: tokens would be lost when ingress reads slowly. */
static void test_decode_worker_refused_tokens_are_kept_in_order(void **unused)
{
    actor_t *world = decoding(40, 3);
    expect_tokens(world, 0, 50);
    world->deaf = an_ingress;
    world->deaf_answer = ERR_OVERLOAD;
    for (uint32_t i = 0; i < TOKENS_PER_MESSAGE_MAX; i++) finish_step(world, ERR_OK, 60 + i);
    assert_int_equal(world->row_count, 0); /* it sits out */
    world->deaf_answer = ERR_OK;
    pass(world, 200);
    const msg_t *tokens = take(world, MSG_tokens, NULL);
    assert_int_equal(tokens->tokens.first_index, 1);
    assert_int_equal(tokens->tokens.ids_count, TOKENS_PER_MESSAGE_MAX);
    assert_int_equal(tokens->tokens.ids[7], 67);
    assert_int_equal(world->row_count, 1); /* and goes on */
    world_destroy(world);
}

/* Would be broken: the first requests after a start would lose their tokens because ingress had not
 * greeted this worker yet; or an ingress that never does would hold blocks for ever. */
static void test_decode_worker_waits_for_ingress_to_greet_but_not_for_ever(void **unused)
{
    for (int is_greeted = 0; is_greeted < 2; is_greeted++) {
        actor_t *world = decoding(3, 2);
        expect_tokens(world, 0, 50);
        world->deaf = an_ingress;
        world->deaf_answer = ERR_LOST;
        finish_step(world, ERR_OK, 60);
        finish_step(world, ERR_OK, 61);
        pass(world, 400);
        assert_null(take(world, MSG_decode_done, NULL));
        if (is_greeted) world->deaf_answer = ERR_OK;
        pass(world, 1200);
        assert_int_equal(take(world, MSG_tokens, NULL) != NULL, is_greeted);
        assert_int_equal(take(world, MSG_finished, NULL) != NULL, is_greeted);
        expect_done_once(world);
    }
}

/* Would be broken: one hiccup of another rank would kill the batch, or a dead group would hang it.
 */
static void test_decode_worker_failed_step_is_repeated_then_given_up(void **unused)
{
    actor_t *world = decoding(20, 2);
    for (int i = 0; i < 8; i++) {
        finish_step(world, ERR_EP_PEER, 0);
        assert_int_equal(world->row_count, 0);
        pass(world, 200);
        assert_int_equal(world->row_count, 1);
    }
    assert_null(take(world, MSG_failed, NULL));
    finish_step(world, ERR_EP_PEER, 0);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_EP_PEER);
    expect_done_once(world);
}

/* Would be broken: generated blocks would not be found again, or the request would not wait for the
 * store to read them, or wait too long. */
static void test_decode_worker_generated_block_is_offered_and_released(void **unused)
{
    for (int is_answered = 0; is_answered < 2; is_answered++) {
        actor_t *world = decoding(30, 3);
        for (uint32_t i = 0; i < 29; i++) finish_step(world, ERR_OK, 60 + i);
        assert_non_null(take(world, MSG_finished, NULL));
        finish_job(world, ERR_OK); /* the checksum of block 1: tokens 64 .. 127 */
        const msg_t *offer = take(world, MSG_store_offer, NULL);
        assert_non_null(offer);
        assert_int_equal(offer->store_offer.blocks_count, 1);
        assert_int_equal(((const uint8_t *)offer->store_offer.parents.data)[0], 1);
        msg_t taken;
        msg_init(&taken, MSG_store_taken);
        taken.store_taken.offer = offer->store_offer.offer;
        assert_null(take(world, MSG_decode_done, NULL));
        if (is_answered)
            deliver(world, a_store, &taken);
        else
            pass(world, 2200);
        expect_done_once(world);
    }
}

/* Would be broken: requests of a dead ingress would be decoded to their end; a dead prefill
 * worker's would wait. */
static void test_decode_worker_dead_peers_end_their_requests(void **unused)
{
    actor_t *world = decoding(20, 2);
    deliver_peer(world, MSG_peer_down, ROLE_prefill_worker, 1); /* all has landed: it goes on */
    assert_null(take(world, MSG_failed, NULL));
    deliver_peer(world, MSG_peer_down, ROLE_ingress, 0);
    finish_step(world, ERR_OK, 51);
    expect_done_once(world);
    world = worker();
    assign(world, 1, 0, 2);
    open_kv(world, 1, 0, 3);
    deliver_peer(world, MSG_peer_down, ROLE_prefill_worker, 1);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_LOST);
    expect_done_once(world);
}

/* Would be broken: a new decode_lb would not learn what is held here. */
static void test_decode_worker_tells_a_new_balancer_what_it_holds(void **unused)
{
    actor_t *world = decoding(20, 2);
    forget_sent(world);
    deliver_peer(world, MSG_peer_up, ROLE_decode_lb, 0);
    assert_int_equal(world->sent[0].m.type, MSG_held); /* before the report that opens the worker */
    assert_int_equal(world->sent[0].m.held.blocks, 2);
    assert_int_equal(world->sent[1].m.type, MSG_decode_load);
    assert_int_equal(world->sent[1].m.decode_load.blocks_held, 2);
    world_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode_worker_request_is_pulled_decoded_and_finished),
        cmocka_unit_test(test_decode_worker_end_token_stops),
        cmocka_unit_test(test_decode_worker_resumed_stream_is_computed_again_and_goes_on),
        cmocka_unit_test(test_decode_worker_resumed_stream_takes_what_the_batch_leaves),
        cmocka_unit_test(test_decode_worker_failed_step_of_a_resumed_stream_is_repeated),
        cmocka_unit_test(test_decode_worker_cancel_ends_a_resumed_stream_after_the_step),
        cmocka_unit_test(test_decode_worker_resumed_blocks_are_offered_once_computed),
        cmocka_unit_test(test_decode_worker_resumed_stream_without_room_fails),
        cmocka_unit_test(test_decode_worker_cancel_frees_after_the_step),
        cmocka_unit_test(test_decode_worker_cancel_frees_after_the_pull),
        cmocka_unit_test(test_decode_worker_gap_in_blocks_fails_the_attempt),
        cmocka_unit_test(test_decode_worker_bad_checksum_fails_the_attempt),
        cmocka_unit_test(test_decode_worker_silent_prefill_side_ends_the_lease),
        cmocka_unit_test(test_decode_worker_new_attempt_replaces_the_old),
        cmocka_unit_test(test_decode_worker_refused_tokens_are_kept_in_order),
        cmocka_unit_test(test_decode_worker_waits_for_ingress_to_greet_but_not_for_ever),
        cmocka_unit_test(test_decode_worker_failed_step_is_repeated_then_given_up),
        cmocka_unit_test(test_decode_worker_generated_block_is_offered_and_released),
        cmocka_unit_test(test_decode_worker_dead_peers_end_their_requests),
        cmocka_unit_test(test_decode_worker_tells_a_new_balancer_what_it_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
