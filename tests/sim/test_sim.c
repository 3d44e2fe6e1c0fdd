/* tests/sim/test_sim.c - the seeded world itself keeps its promises. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "../../runtime/sim/sim.h"

/* A toy pair: an ingress that submits numbered requests, a balancer that answers each with
 * `failed`. */

static const address_t caller_address = { ROLE_ingress, 0 };
static const address_t echo_address = { ROLE_prefill_lb, 0 };

typedef struct {
    uint32_t up, down, sent, lost, overload, answers;
    uint64_t last_epoch, next;
    bool is_ordered;
    uint32_t turns, wakes;
} caller_t;

static err_t init_caller(void *self, actor_t *world)
{
    ((caller_t *)self)->is_ordered = true;
    actor_wake_at(world, actor_now_us(world) + 10000);
    return actor_alloc(world, 4, 16) ? ERR_OK : ERR_NO_SPACE;
}

static void wake_caller(void *self, actor_t *world)
{
    caller_t *caller = self;
    caller->wakes++;
    msg_t m;
    msg_init(&m, MSG_cancel);
    m.header = (header_t){ .request = { 7, caller->sent }, .attempt = 1 };
    err_t error = actor_send(world, echo_address, &m);
    caller->sent += error == ERR_OK;
    caller->lost += error == ERR_LOST;
    caller->overload += error == ERR_OVERLOAD;
    actor_wake_at(world, actor_now_us(world) + 10000);
}

static void on_answer(void *self, actor_t *world, const msg_t *m)
{
    caller_t *caller = self;
    caller->answers++;
    caller->is_ordered = caller->is_ordered && m->header.request.lo >= caller->next;
    caller->next = m->header.request.lo + 1;
}

static void on_caller_up(void *self, actor_t *world, const msg_t *m)
{
    caller_t *caller = self;
    caller->up++;
    caller->last_epoch = m->peer_up.peer_epoch;
    assert_int_equal(actor_peer_epoch(world, echo_address), m->peer_up.peer_epoch);
}

static void on_caller_down(void *self, actor_t *world, const msg_t *m)
{
    ((caller_t *)self)->down++;
    assert_int_equal(actor_peer_epoch(world, echo_address), 0);
}

static void turn_caller(void *self, actor_t *world)
{
    ((caller_t *)self)->turns++;
}

static const actor_class_t caller_class = { .name = "ingress",
                                            .role = ROLE_ingress,
                                            .state_size = sizeof(caller_t),
                                            .init = init_caller,
                                            .wake = wake_caller,
                                            .turn = turn_caller,
                                            .on = { [MSG_failed] = on_answer,
                                                    [MSG_peer_up] = on_caller_up,
                                                    [MSG_peer_down] = on_caller_down } };

typedef struct {
    uint32_t heard;
} echo_t;

static void on_cancel(void *self, actor_t *world, const msg_t *m)
{
    ((echo_t *)self)->heard++;
    msg_t answer;
    msg_init(&answer, MSG_failed);
    answer.header = m->header;
    answer.failed.error = ERR_CANCELLED;
    (void)!actor_send(world, m->header.from, &answer);
}

static const actor_class_t echo_class = { .name = "prefill_lb",
                                          .role = ROLE_prefill_lb,
                                          .state_size = sizeof(echo_t),
                                          .on = { [MSG_cancel] = on_cancel } };

static config_t config_for_test(void)
{
    config_t config;
    memset(&config, 0, sizeof config);
    config.timing.heartbeat_ms = 200;
    config.timing.dead_ms = 1000;
    config.timing.lease_ms = 2000;
    return config;
}

static sim_t *world_for_test(uint64_t seed, const config_t *config)
{
    sim_options_t options = sim_options_default(seed, config);
    sim_t *sim = sim_new(&options);
    assert_int_equal(sim_add(sim, &caller_class, 0), ERR_OK);
    assert_int_equal(sim_add(sim, &echo_class, 0), ERR_OK);
    return sim;
}

static caller_t *caller_of(sim_t *sim)
{
    return sim_state(sim, caller_address);
}

/* Would be broken: messages of an undisturbed link get lost, doubled or reordered. */
static void test_sim_undisturbed_link_delivers_all_in_order(void **unused)
{
    config_t config = config_for_test();
    sim_t *sim = world_for_test(1, &config);
    assert_true(sim_run_until(sim, 5000000));
    caller_t *caller = caller_of(sim);
    assert_int_equal(caller->up, 1);
    assert_int_equal(caller->down, 0);
    assert_true(caller->sent > 300);
    assert_true(caller->sent - caller->answers <= 1);
    assert_true(caller->is_ordered);
    sim_destroy(&sim);
}

static uint64_t history(uint64_t seed)
{
    config_t config = config_for_test();
    sim_t *sim = world_for_test(seed, &config);
    assert_true(sim_run_until(sim, 3000000));
    sim_kill(sim, echo_address, false);
    assert_true(sim_run_until(sim, 6000000));
    sim_restart(sim, echo_address);
    assert_true(sim_run_until(sim, 9000000));
    uint64_t hash = sim_hash(sim);
    sim_destroy(&sim);
    return hash;
}

/* Would be broken: a failing seed could not be run again. */
static void test_sim_same_seed_gives_same_history(void **unused)
{
    assert_true(history(5) == history(5));
    assert_true(history(5) != history(6));
}

/* Would be broken: an actor never learns that a peer died in silence, or that a new life came. */
static void test_sim_killed_peer_is_down_after_the_bound_and_up_with_new_epoch(void **unused)
{
    config_t config = config_for_test();
    sim_t *sim = world_for_test(2, &config);
    assert_true(sim_run_until(sim, 3000000));
    sim_kill(sim, echo_address, false);
    assert_true(sim_run_until(sim, 3700000));
    assert_int_equal(caller_of(sim)->down, 0);
    assert_true(sim_run_until(sim, 4500000));
    assert_int_equal(caller_of(sim)->down, 1);
    assert_true(caller_of(sim)->lost > 0);
    sim_restart(sim, echo_address);
    assert_true(sim_run_until(sim, 5000000));
    assert_int_equal(caller_of(sim)->up, 2);
    assert_int_equal(caller_of(sim)->last_epoch, 2);
    sim_destroy(&sim);
}

/* Would be broken: what was sent to an old life reaches a new one. */
static void test_sim_message_for_old_life_is_fenced(void **unused)
{
    config_t config = config_for_test();
    uint64_t stale = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        sim_t *sim = world_for_test(seed, &config);
        assert_true(sim_run_until(sim, 3000000));
        sim_clog(sim, caller_address, echo_address, 500000); /* so that something is under way */
        assert_true(sim_run_until(sim, 3200000));
        uint32_t sent_before = caller_of(sim)->sent;
        sim_kill(sim, echo_address, false);
        sim_restart(sim, echo_address);
        assert_true(sim_run_until(sim, 3700000));
        stale += (uint64_t)sim_metric(sim, echo_address, METRIC_messages_stale_total);
        echo_t *echo = sim_state(sim, echo_address);
        assert_true(echo->heard <= caller_of(sim)->sent - sent_before);
        sim_destroy(&sim);
    }
    assert_true(stale > 0);
}

/* Would be broken: a stopped process looks alive, or loses its mail. */
static void test_sim_paused_peer_is_down_and_gets_its_mail_later(void **unused)
{
    config_t config = config_for_test();
    sim_t *sim = world_for_test(3, &config);
    assert_true(sim_run_until(sim, 3000000));
    sim_pause(sim, echo_address);
    assert_true(sim_run_until(sim, 6000000));
    assert_int_equal(caller_of(sim)->down, 1);
    echo_t *echo = sim_state(sim, echo_address);
    uint32_t heard = echo->heard;
    sim_resume(sim, echo_address);
    assert_true(sim_run_until(sim, 6500000));
    assert_true(echo->heard > heard);
    assert_int_equal(caller_of(sim)->up, 2);
    assert_int_equal(caller_of(sim)->last_epoch, 1);
    sim_destroy(&sim);
}

/* Would be broken: a full link swallows messages instead of pushing back. */
static void test_sim_high_water_mark_refuses(void **unused)
{
    config_t config = config_for_test();
    sim_t *sim = world_for_test(4, &config);
    assert_true(sim_run_until(sim, 2000000));
    sim_pause(sim, echo_address);
    actor_t *caller = sim_actor(sim, caller_address);
    msg_t m;
    msg_init(&m, MSG_cancel);
    m.header = (header_t){ .request = { 7, 1u << 20 } };
    uint32_t taken = 0;
    while (taken < 10000 && actor_send(caller, echo_address, &m) == ERR_OK) taken++;
    assert_in_range(taken, 4000, 4096);
    assert_int_equal(actor_send(caller, echo_address, &m), ERR_OVERLOAD);
    assert_int_equal(actor_send(caller, (address_t){ ROLE_kv_store, 0 }, &m), ERR_INVALID);
    sim_destroy(&sim);
}

/* Would be broken: a disconnection that loses nothing, or everything, proves nothing about retries.
 */
static void test_sim_disconnect_loses_a_part_and_keeps_order(void **unused)
{
    config_t config = config_for_test();
    uint32_t lost = 0, kept = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        sim_t *sim = world_for_test(seed, &config);
        assert_true(sim_run_until(sim, 3000000));
        sim_clog(sim, echo_address, caller_address, 200000);
        sim_clog(sim, caller_address, echo_address, 200000);
        assert_true(sim_run_until(sim, 3150000));
        sim_disconnect(sim, caller_address, echo_address, 100000);
        assert_true(sim_run_until(sim, 5000000));
        caller_t *caller = caller_of(sim);
        assert_true(caller->is_ordered);
        assert_int_equal(caller->up, caller->down + 1);
        lost += caller->answers + 1 < caller->sent;
        kept += caller->answers + 1 >= caller->sent;
        sim_destroy(&sim);
    }
    assert_true(lost > 0);
    assert_true(kept + lost == 40);
}

/* Would be broken: one direction that is stuck goes unnoticed, or never flows again. */
static void test_sim_clog_is_noticed_by_the_deaf_side_only(void **unused)
{
    config_t config = config_for_test();
    sim_t *sim = world_for_test(9, &config);
    assert_true(sim_run_until(sim, 3000000));
    uint32_t answers = caller_of(sim)->answers;
    sim_clog(sim, echo_address, caller_address, 2000000);
    assert_true(sim_run_until(sim, 4900000));
    assert_int_equal(caller_of(sim)->down, 1);
    assert_true(caller_of(sim)->answers <= answers + 1);
    assert_true(sim_run_until(sim, 6000000));
    assert_int_equal(caller_of(sim)->up, 2);
    assert_true(caller_of(sim)->answers > answers + 80);
    sim_destroy(&sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sim_undisturbed_link_delivers_all_in_order),
        cmocka_unit_test(test_sim_same_seed_gives_same_history),
        cmocka_unit_test(test_sim_killed_peer_is_down_after_the_bound_and_up_with_new_epoch),
        cmocka_unit_test(test_sim_message_for_old_life_is_fenced),
        cmocka_unit_test(test_sim_paused_peer_is_down_and_gets_its_mail_later),
        cmocka_unit_test(test_sim_high_water_mark_refuses),
        cmocka_unit_test(test_sim_disconnect_loses_a_part_and_keeps_order),
        cmocka_unit_test(test_sim_clog_is_noticed_by_the_deaf_side_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
