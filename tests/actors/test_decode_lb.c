/* tests/actors/test_decode_lb.c - the ledger of decode: placing, order, and every way to lose
 * something. */
#include "tests/actors/worker_world.h"

#include "actors/decode_lb.h"

static void report(actor_t *world, uint32_t worker)
{
    msg_t m;
    msg_init(&m, MSG_decode_load);
    m.decode_load.blocks_total = 8;
    m.decode_load.requests_max = 4;
    deliver(world, (address_t){ ROLE_decode_worker, worker }, &m);
}

static actor_t *company(void)
{
    actor_t *world = world_new(&decode_lb_class);
    for (uint32_t i = 0; i < 2; i++) deliver_peer(world, MSG_peer_up, ROLE_prefill_worker, i);
    for (uint32_t i = 0; i < 2; i++) {
        deliver_peer(world, MSG_peer_up, ROLE_decode_worker, i);
        report(world, i);
    }
    return world;
}

static void request(actor_t *world, uint32_t number, uint32_t attempt, uint32_t blocks)
{
    msg_t m = about(MSG_decode_request, number, attempt);
    m.decode_request.blocks = blocks;
    m.decode_request.prompt_count = 64;
    deliver(world, (address_t){ ROLE_prefill_worker, 0 }, &m);
}

static void done(actor_t *world, uint32_t number, uint32_t attempt, uint32_t worker)
{
    msg_t m = about(MSG_decode_done, number, attempt);
    deliver(world, (address_t){ ROLE_decode_worker, worker }, &m);
}

static void hold(actor_t *world, uint32_t number, uint32_t attempt, uint32_t worker,
                 uint32_t blocks)
{
    msg_t m = about(MSG_held, number, attempt);
    m.held.blocks = blocks;
    m.held.prompt_count = 64;
    deliver(world, (address_t){ ROLE_decode_worker, worker }, &m);
}

/* Would be broken: both sides would not learn of each other, or one worker would get all. */
static void test_decode_lb_request_is_assigned_and_placed_in_turn(void **unused)
{
    actor_t *world = company();
    for (uint32_t i = 0; i < 4; i++) {
        address_t to;
        request(world, i, 0, 2);
        const msg_t *assign = take(world, MSG_decode_assign, &to);
        assert_non_null(assign);
        assert_int_equal(to.index, i % 2);
        assert_int_equal(assign->decode_assign.blocks, 2);
        assert_int_equal(assign->decode_assign.prefill_epoch, 100);
        const msg_t *placed = take(world, MSG_decode_placed, &to);
        assert_int_equal(placed->decode_placed.decode_worker, i % 2);
        assert_int_equal(placed->decode_placed.decode_epoch, 100 + i % 2);
    }
    world_destroy(world);
}

/* Would be broken: a worker that has not said what it has would get work. */
static void test_decode_lb_silent_worker_gets_nothing(void **unused)
{
    actor_t *world = world_new(&decode_lb_class);
    deliver_peer(world, MSG_peer_up, ROLE_decode_worker, 0);
    request(world, 1, 0, 2);
    assert_null(take(world, MSG_decode_assign, NULL));
    report(world, 0);
    assert_non_null(take(world, MSG_decode_assign, NULL));
    world_destroy(world);
}

/* Would be broken: short prompts would overtake a long one for ever. */
static void test_decode_lb_long_request_is_not_overtaken(void **unused)
{
    actor_t *world = company();
    request(world, 1, 0, 8);
    request(world, 2, 0, 4);
    request(world, 3, 0, 8);
    request(world, 4, 0, 1);
    assert_non_null(take(world, MSG_decode_assign, NULL));
    assert_non_null(take(world, MSG_decode_assign, NULL));
    assert_null(take(world, MSG_decode_assign, NULL));
    done(world, 2, 0, 1);
    assert_int_equal(take(world, MSG_decode_assign, NULL)->header.request.hi, 3);
    assert_null(take(world, MSG_decode_assign, NULL));
    done(world, 1, 0, 0);
    assert_int_equal(take(world, MSG_decode_assign, NULL)->header.request.hi, 4);
    world_destroy(world);
}

/* Would be broken: a full queue would lose a request in silence. */
static void test_decode_lb_full_queue_refuses(void **unused)
{
    actor_t *world = company();
    for (uint32_t i = 0; i < 6; i++) request(world, i, 0, 8);
    assert_null(take(world, MSG_failed, NULL));
    request(world, 9, 0, 8);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_OVERLOAD);
    address_t to;
    assert_non_null(take(world, MSG_cancel, &to));
    assert_int_equal(to.role, ROLE_prefill_worker);
    request(world, 10, 0, 9); /* more than any worker has */
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_UNPROCESSABLE);
    world_destroy(world);
}

/* Would be broken: a late message of an old attempt would free blocks of the new one. */
static void test_decode_lb_old_attempt_changes_nothing(void **unused)
{
    actor_t *world = company();
    request(world, 1, 0, 8);
    request(world, 1, 1, 8);
    address_t to;
    assert_non_null(take(world, MSG_cancel, &to)); /* the old attempt, at its worker */
    assert_int_equal(to.role, ROLE_decode_worker);
    done(world, 1, 0, 0);
    request(world, 1, 0, 8);
    cancel(world, an_ingress, 1, 0);
    assert_null(take(world, MSG_cancel, NULL));
    assert_true(is_held(world, 1, 1));
    assert_false(is_held(world, 1, 0));
    assert_int_equal(world->counters[METRIC_messages_stale_total], 3);
    world_destroy(world);
}

/* Would be broken: ingress would wait for a dead worker's tokens, and its blocks stay in the
 * ledger. */
static void test_decode_lb_dead_worker_fails_its_requests(void **unused)
{
    actor_t *world = company();
    request(world, 1, 0, 8);
    request(world, 2, 0, 8);
    deliver_peer(world, MSG_peer_down, ROLE_decode_worker, 0);
    const msg_t *failed = take(world, MSG_failed, NULL);
    assert_int_equal(failed->failed.error, ERR_LOST);
    assert_int_equal(failed->header.request.hi, 1);
    assert_null(take(world, MSG_failed, NULL));
    while (take(world, MSG_decode_assign, NULL) != NULL) continue;
    request(world, 3, 0, 1);
    assert_null(take(world, MSG_decode_assign, NULL)); /* I7 */
    world_destroy(world);
}

/* Would be broken: after a restart the ledger would be empty and blocks be given away twice. */
static void test_decode_lb_new_life_rebuilds_from_held(void **unused)
{
    actor_t *world = world_new(&decode_lb_class);
    deliver_peer(world, MSG_peer_up, ROLE_decode_worker, 0);
    hold(world, 1, 0, 0, 5);
    report(world, 0);
    request(world, 2, 0, 4);
    assert_null(take(world, MSG_decode_assign, NULL));
    assert_true(is_held(world, 1, 0));
    done(world, 1, 0, 0);
    assert_non_null(take(world, MSG_decode_assign, NULL));
    world_destroy(world);
}

/* Would be broken: a lost decode_done would leak blocks for ever, or a live request's be freed. */
static void test_decode_lb_unmentioned_request_expires_mentioned_stays(void **unused)
{
    actor_t *world = company();
    request(world, 1, 0, 3);
    request(world, 2, 0, 3);
    for (int i = 0; i < 4; i++) {
        pass(world, 1000);
        hold(world, 2, 0, 1, 3);
    }
    assert_false(is_held(world, 1, 0));
    assert_true(is_held(world, 2, 0));
    done(world, 2, 0, 1);
    assert_true(world->class->is_idle(world->state));
    world_destroy(world);
}

/* Would be broken: a lost placement would leave the prefill worker waiting. */
static void test_decode_lb_repeated_request_is_answered_again(void **unused)
{
    actor_t *world = company();
    request(world, 1, 0, 3);
    forget_sent(world);
    request(world, 1, 0, 3);
    assert_non_null(take(world, MSG_decode_assign, NULL));
    assert_non_null(take(world, MSG_decode_placed, NULL));
    assert_null(take(world, MSG_decode_placed, NULL));
    world_destroy(world);
}

/* Would be broken: KV of a queued prompt would be released while it waits here. */
static void test_decode_lb_queued_requests_are_renewed(void **unused)
{
    actor_t *world = company();
    for (uint32_t i = 0; i < 3; i++) request(world, i, 0, 8);
    pass(world, 200);
    address_t to;
    const msg_t *renew = take(world, MSG_lease_renew, &to);
    assert_int_equal(to.role, ROLE_prefill_worker);
    assert_int_equal(renew->lease_renew.ids_hi_count, 1);
    assert_int_equal(renew->lease_renew.ids_hi[0], 2);
    deliver_peer(world, MSG_peer_down, ROLE_prefill_worker, 0);
    assert_int_equal(take(world, MSG_failed, NULL)->failed.error, ERR_LOST);
    assert_false(is_held(world, 2, 0));
    world_destroy(world);
}

/* Would be broken: under any sequence of events a worker would be promised more than it has
 * (check() and the assertion here count). */
static void test_decode_lb_random_load_never_overcommits(void **unused)
{
    actor_t *world = company();
    uint32_t blocks_of[200] = { 0 }, worker_of[200], used[2] = { 0 };
    uint64_t random_state = 3;
    for (uint32_t number = 0; number < 200; number++) {
        random_state = random_state * 6364136223846793005u + 1442695040888963407u;
        request(world, number, 0, 1 + (uint32_t)(random_state >> 40) % 8);
        address_t to;
        for (const msg_t *m; (m = take(world, MSG_decode_assign, &to)) != NULL;) {
            uint32_t of = (uint32_t)m->header.request.hi;
            blocks_of[of] = m->decode_assign.blocks;
            worker_of[of] = to.index;
            used[to.index] += blocks_of[of];
            assert_true(used[to.index] <= 8);
        }
        forget_sent(world);
        uint32_t victim = (uint32_t)(random_state >> 20) % (number + 1);
        if (blocks_of[victim] == 0) continue;
        used[worker_of[victim]] -= blocks_of[victim];
        blocks_of[victim] = 0;
        done(world, victim, 0, worker_of[victim]);
        for (const msg_t *m; (m = take(world, MSG_decode_assign, &to)) != NULL;) {
            uint32_t of = (uint32_t)m->header.request.hi;
            blocks_of[of] = m->decode_assign.blocks;
            worker_of[of] = to.index;
            used[to.index] += blocks_of[of];
            assert_true(used[to.index] <= 8);
        }
    }
    world_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode_lb_request_is_assigned_and_placed_in_turn),
        cmocka_unit_test(test_decode_lb_silent_worker_gets_nothing),
        cmocka_unit_test(test_decode_lb_long_request_is_not_overtaken),
        cmocka_unit_test(test_decode_lb_full_queue_refuses),
        cmocka_unit_test(test_decode_lb_old_attempt_changes_nothing),
        cmocka_unit_test(test_decode_lb_dead_worker_fails_its_requests),
        cmocka_unit_test(test_decode_lb_new_life_rebuilds_from_held),
        cmocka_unit_test(test_decode_lb_unmentioned_request_expires_mentioned_stays),
        cmocka_unit_test(test_decode_lb_repeated_request_is_answered_again),
        cmocka_unit_test(test_decode_lb_queued_requests_are_renewed),
        cmocka_unit_test(test_decode_lb_random_load_never_overcommits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
