/* tests/actors/test_prefill_lb.c - the ledger of prefill: placing by time and cache, order,
 * push-back, loss. */
#include "tests/actors/worker_world.h"

#include "actors/prefill_lb.h"

static void report(actor_t *world, uint32_t worker)
{
    msg_t m;
    msg_init(&m, MSG_prefill_load);
    m.prefill_load.blocks_total = 8;
    m.prefill_load.requests_max = 4;
    deliver(world, (address_t){ ROLE_prefill_worker, worker }, &m);
}

static actor_t *company(void)
{
    actor_t *world = world_new(&prefill_lb_class);
    for (uint32_t i = 0; i < 2; i++) {
        deliver_peer(world, MSG_peer_up, ROLE_prefill_worker, i);
        report(world, i);
    }
    return world;
}

typedef struct {
    uint32_t number, attempt, prompt_count, generated;
    uint64_t deadline_us;
} prompt_t;

static uint8_t keys[16 * KEY_BYTES];

static void submit(actor_t *world, prompt_t prompt)
{
    static uint32_t tokens[1024];
    for (uint32_t i = 0; i < 1024; i++) tokens[i] = prompt.number * 1000 + i;
    for (uint32_t i = 0; i < sizeof keys; i++) keys[i] = (uint8_t)(i / KEY_BYTES + 1);
    msg_t m = about(MSG_submit, prompt.number, prompt.attempt);
    m.submit.prompt_count = prompt.prompt_count;
    m.submit.generated = prompt.generated;
    m.submit.max_tokens = prompt.generated + 10;
    m.submit.deadline_us = prompt.deadline_us ? prompt.deadline_us : 60000000;
    m.submit.sampling = (sampling_t){ .temperature = 1, .top_p = 1, .repetition_penalty = 1 };
    m.submit.tokens = (bytes_t){ tokens, ((size_t)prompt.prompt_count + prompt.generated) * 4 };
    m.submit.keys = (bytes_t){ keys, (size_t)prompt.prompt_count / BLOCK_TOKENS * KEY_BYTES };
    deliver(world, an_ingress, &m);
}

static void done(actor_t *world, uint32_t number, uint32_t attempt, uint32_t worker)
{
    msg_t m = about(MSG_prefill_done, number, attempt);
    deliver(world, (address_t){ ROLE_prefill_worker, worker }, &m);
}

static void store_says(actor_t *world, msg_type_t type, uint64_t version, uint32_t first,
                       uint32_t count)
{
    for (uint32_t i = 0; i < sizeof keys; i++) keys[i] = (uint8_t)(i / KEY_BYTES + 1);
    msg_t m;
    msg_init(&m, type);
    m.prefix_added.version = version; /* prefix_removed has the same fields */
    m.prefix_added.keys = (bytes_t){ keys + first * KEY_BYTES, (size_t)count * KEY_BYTES };
    deliver(world, a_store, &m);
}

/* Would be broken: prompts would pile up on one rank, or lose tokens on their way through the
 * queue. */
static void test_prefill_lb_prompts_go_where_least_waits(void **unused)
{
    actor_t *world = company();
    static const uint32_t expected[] = { 0, 1, 1, 1, 0 };
    static const uint32_t lengths[] = { 300, 100, 90, 80, 20 };
    for (uint32_t i = 0; i < 5; i++) {
        address_t to;
        submit(world, (prompt_t){ .number = i, .prompt_count = lengths[i] });
        const msg_t *assign = take(world, MSG_prefill_assign, &to);
        assert_non_null(assign);
        if (i < 4) assert_int_equal(to.index, expected[i]);
        assert_int_equal(assign->prefill_assign.prompt_count, lengths[i]);
        uint32_t last;
        memcpy(&last, (const uint8_t *)assign->prefill_assign.tokens.data + (lengths[i] - 1) * 4,
               4);
        assert_int_equal(last, i * 1000 + lengths[i] - 1);
    }
    world_destroy(world);
}

/* Would be broken: a resumed request would count, or be refused, for tokens that only decode
 * computes; or lose them on the way. */
static void test_prefill_lb_resumed_request_weighs_as_its_prompt(void **unused)
{
    actor_t *world = company();
    address_t to;
    submit(world, (prompt_t){ .number = 1, .attempt = 1, .prompt_count = 100, .generated = 900 });
    const msg_t *assign = take(world, MSG_prefill_assign, NULL);
    assert_int_equal(assign->prefill_assign.prompt_count, 100);
    assert_int_equal(assign->prefill_assign.generated, 900);
    assert_int_equal(assign->prefill_assign.tokens.size, 4000);
    submit(world, (prompt_t){ .number = 2, .prompt_count = 300 });
    submit(world, (prompt_t){ .number = 3, .prompt_count = 20 });
    (void)take(world, MSG_prefill_assign, NULL);
    assert_non_null(take(world, MSG_prefill_assign, &to));
    assert_int_equal(to.index, 0);
    world_destroy(world);
}

/* Would be broken: prompts would be given to a rank that cannot step, because another of its group
 * is away, and fail there a minute later. */
static void test_prefill_lb_rank_of_a_broken_group_gets_nothing(void **unused)
{
    ranks_per_group = 2;
    actor_t *world = company();
    ranks_per_group = 1;
    deliver_peer(world, MSG_peer_down, ROLE_prefill_worker, 1);
    submit(world, (prompt_t){ .number = 1, .prompt_count = 100 });
    pass(world, 400);
    assert_null(take(world, MSG_prefill_assign, NULL));
    deliver_peer(world, MSG_peer_up, ROLE_prefill_worker, 1);
    report(world, 1);
    assert_non_null(take(world, MSG_prefill_assign, NULL));
    world_destroy(world);
}

/* Would be broken: work that is done would still count, so that the idle rank looks busy. */
static void test_prefill_lb_progress_makes_room_in_time(void **unused)
{
    actor_t *world = company();
    submit(world, (prompt_t){ .number = 1, .prompt_count = 200 });
    submit(world, (prompt_t){ .number = 2, .prompt_count = 100 });
    msg_t m = about(MSG_prefill_progress, 1, 0);
    m.prefill_progress.computed = 199;
    deliver(world, (address_t){ ROLE_prefill_worker, 0 }, &m);
    forget_sent(world);
    address_t to;
    submit(world, (prompt_t){ .number = 3, .prompt_count = 50 });
    assert_non_null(take(world, MSG_prefill_assign, &to));
    assert_int_equal(to.index, 0);
    world_destroy(world);
}

/* Would be broken: a full company would lose prompts, reorder them, or take more than the queue
 * allows. */
static void test_prefill_lb_queue_keeps_order_and_refuses_when_full(void **unused)
{
    actor_t *world = company();
    for (uint32_t i = 0; i < 6; i++)
        submit(world, (prompt_t){ .number = i, .prompt_count = i == 2 ? 512 : 400 });
    assert_null(take(world, MSG_failed, NULL));
    submit(world, (prompt_t){ .number = 6, .prompt_count = 10 });
    const msg_t *failed = take(world, MSG_failed, NULL);
    assert_int_equal(failed->failed.error, ERR_OVERLOAD);
    assert_int_equal(failed->header.request.hi, 6);
    forget_sent(world);
    for (uint32_t i = 2; i < 6; i++) {
        done(world, i - 2, 0, (i - 2) % 2);
        const msg_t *assign = take(world, MSG_prefill_assign, NULL);
        assert_int_equal(assign->header.request.hi, i);
        uint32_t first;
        memcpy(&first, assign->prefill_assign.tokens.data, 4);
        assert_int_equal(first, i * 1000);
        assert_null(take(world, MSG_prefill_assign, NULL));
    }
    submit(world, (prompt_t){ .number = 9, .prompt_count = 600 }); /* ten blocks; nobody has them */
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_UNPROCESSABLE);
    world_destroy(world);
}

/* Would be broken: a prompt could wait past its deadline, and a cancelled one be computed. */
static void test_prefill_lb_queued_prompts_end_by_deadline_or_cancel(void **unused)
{
    actor_t *world = world_new(&prefill_lb_class);
    submit(world, (prompt_t){ .number = 1, .prompt_count = 100, .deadline_us = 500000 });
    submit(world, (prompt_t){ .number = 2, .prompt_count = 100 });
    pass(world, 600);
    const msg_t *failed = take(world, MSG_failed, NULL);
    assert_int_equal(failed->failed.error, ERR_DEADLINE);
    assert_int_equal(failed->header.request.hi, 1);
    assert_true(is_held(world, 2, 0));
    cancel(world, an_ingress, 2, 0);
    assert_true(world->class->is_idle(world->state));
    world_destroy(world);
}

/* Would be broken: cached prefixes would be ignored or believed beyond what the store holds. */
static void test_prefill_lb_tells_how_much_the_store_has(void **unused)
{
    actor_t *world = company();
    deliver_peer(world, MSG_peer_up, ROLE_kv_store, 0);
    assert_non_null(take(world, MSG_prefix_sync, NULL));
    store_says(world, MSG_prefix_added, 5, 0, 3); /* said before it heard us */
    store_says(world, MSG_prefix_added, 1, 0, 3);
    submit(world, (prompt_t){ .number = 1, .prompt_count = 200 });
    assert_int_equal(take(world, MSG_prefill_assign, NULL)->prefill_assign.store_blocks, 3);
    submit(world,
           (prompt_t){ .number = 2, .prompt_count = 192 }); /* the last block is always computed */
    assert_int_equal(take(world, MSG_prefill_assign, NULL)->prefill_assign.store_blocks, 2);
    store_says(world, MSG_prefix_removed, 2, 1, 1);
    submit(world, (prompt_t){ .number = 3, .prompt_count = 100 });
    assert_int_equal(take(world, MSG_prefill_assign, NULL)->prefill_assign.store_blocks, 1);
    store_says(world, MSG_prefix_added, 4, 1, 1); /* 3 was lost */
    assert_non_null(take(world, MSG_prefix_sync, NULL));
    submit(world, (prompt_t){ .number = 4, .prompt_count = 100 });
    assert_int_equal(take(world, MSG_prefill_assign, NULL)->prefill_assign.store_blocks, 0);
    pass(world, 2200); /* no answer: asked again */
    assert_non_null(take(world, MSG_prefix_sync, NULL));
    world_destroy(world);
}

/* Would be broken: ingress would wait for a dead worker; or a prompt that went on to decode be
 * started anew. */
static void test_prefill_lb_dead_worker_fails_what_was_not_computed(void **unused)
{
    actor_t *world = company();
    submit(world, (prompt_t){ .number = 1, .prompt_count = 100 });
    submit(world, (prompt_t){ .number = 2, .prompt_count = 120 });
    submit(world, (prompt_t){ .number = 3, .prompt_count = 30 });
    msg_t m = about(MSG_prefill_progress, 3, 0);
    m.prefill_progress.computed = 30;
    deliver(world, (address_t){ ROLE_prefill_worker, 0 }, &m);
    deliver_peer(world, MSG_peer_down, ROLE_prefill_worker, 0);
    const msg_t *failed = take(world, MSG_failed, NULL);
    assert_int_equal(failed->header.request.hi, 1);
    assert_int_equal(failed->failed.error, ERR_LOST);
    assert_null(take(world, MSG_failed, NULL));
    assert_false(is_held(world, 1, 0));
    assert_false(is_held(world, 3, 0));
    assert_true(is_held(world, 2, 0));
    world_destroy(world);
}

/* Would be broken: the messages of an old attempt would move the new one (I8). */
static void test_prefill_lb_new_attempt_replaces_the_old(void **unused)
{
    actor_t *world = company();
    submit(world, (prompt_t){ .number = 1, .prompt_count = 100 });
    submit(world, (prompt_t){ .number = 1, .attempt = 1, .prompt_count = 101 });
    const msg_t *cancel = take(world, MSG_cancel, NULL);
    assert_int_equal(cancel->header.attempt, 0);
    done(world, 1, 0, 0);
    submit(world, (prompt_t){ .number = 1, .attempt = 0, .prompt_count = 100 });
    assert_true(is_held(world, 1, 1));
    assert_false(is_held(world, 1, 0));
    done(world, 1, 1, 0);
    assert_true(world->class->is_idle(world->state));
    world_destroy(world);
}

/* Would be broken: a new life would over-fill workers; a lost prefill_done would occupy a place for
 * ever. */
static void test_prefill_lb_ledger_follows_what_workers_hold(void **unused)
{
    actor_t *world = world_new(&prefill_lb_class);
    deliver_peer(world, MSG_peer_up, ROLE_prefill_worker, 0);
    msg_t held = about(MSG_held, 1, 0);
    held.held.prompt_count = 400;
    held.held.blocks = 7;
    deliver(world, (address_t){ ROLE_prefill_worker, 0 }, &held);
    submit(world, (prompt_t){ .number = 2, .prompt_count = 100 });
    assert_null(take(world, MSG_prefill_assign, NULL)); /* no load report yet */
    report(world, 0);
    assert_null(take(world, MSG_prefill_assign, NULL)); /* one block is free, two are needed */
    pass(world, 2200);
    assert_non_null(take(world, MSG_prefill_assign, NULL));
    assert_false(is_held(world, 1, 0));
    world_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_lb_prompts_go_where_least_waits),
        cmocka_unit_test(test_prefill_lb_resumed_request_weighs_as_its_prompt),
        cmocka_unit_test(test_prefill_lb_rank_of_a_broken_group_gets_nothing),
        cmocka_unit_test(test_prefill_lb_progress_makes_room_in_time),
        cmocka_unit_test(test_prefill_lb_queue_keeps_order_and_refuses_when_full),
        cmocka_unit_test(test_prefill_lb_queued_prompts_end_by_deadline_or_cancel),
        cmocka_unit_test(test_prefill_lb_tells_how_much_the_store_has),
        cmocka_unit_test(test_prefill_lb_dead_worker_fails_what_was_not_computed),
        cmocka_unit_test(test_prefill_lb_new_attempt_replaces_the_old),
        cmocka_unit_test(test_prefill_lb_ledger_follows_what_workers_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
