/* tests/policy/test_policy.c - who joins a step, where a prompt goes, how speed is learnt. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "runtime/policy/batch.h"
#include "runtime/policy/placement.h"
#include "runtime/policy/speed.h"
#include "runtime/policy/step_time.h"

static uint64_t random_state = 7;

static uint32_t below(uint32_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % bound);
}

/* Would be broken: a long prompt would block a step's room, or a short one wait though there is
 * room. */
static void test_batch_shares_the_budget_in_order(void **unused)
{
    const batch_want_t wants[] = {
        { 4, 0, 100 }, { 2, 30, 60 }, { 9, 5, 5 }, { 1, 0, 1000 }, { 3, 0, 10 }
    };
    batch_part_t parts[5];
    assert_int_equal(batch_plan(wants, 5, 512, parts), 3);
    assert_int_equal(parts[0].slot, 4);
    assert_int_equal(parts[0].count, 100);
    assert_int_equal(parts[1].first, 30);
    assert_int_equal(parts[1].count, 30);
    assert_int_equal(parts[2].slot, 1);
    assert_int_equal(parts[2].count, 512 - 130);
    assert_int_equal(batch_plan(wants, 0, 512, parts), 0);
}

/* Would be broken: core attention would be misjudged, most of all for long prompts with a cached
 * prefix. Reference: counting row by row. */
static void test_placement_pairs_equal_a_count_of_rows(void **unused)
{
    for (uint32_t round = 0; round < 100; round++) {
        uint32_t first = below(2000), end = first + below(2000);
        uint64_t count = 0;
        for (uint32_t row = first; row < end; row++) count += row + 1;
        assert_true(placement_pairs(first, end) == count);
    }
    assert_true(placement_pairs(0, 262144) == UINT64_C(34359869440));
}

/* Would be broken: a prompt would not go where it is done first. */
static void test_placement_prefill_weighs_queue_cache_and_speed(void **unused)
{
    placement_prefill_t ranks[3] = { { true, 1000, 0, 1000, 0, 0 },
                                     { true, 2000, 0, 1000, 0, 0 },
                                     { true, 0, 0, 1000, 0, 0 } };
    assert_int_equal(placement_choose_prefill(ranks, 3, 4096), 2);
    ranks[2].is_open = false;
    assert_int_equal(placement_choose_prefill(ranks, 3, 4096), 0);
    ranks[1].cached_tokens = 2048; /* 1,000 more wait there, 2,048 fewer are to be computed */
    assert_int_equal(placement_choose_prefill(ranks, 3, 4096), 1);
    ranks[1].token_ns = 4000;
    assert_int_equal(placement_choose_prefill(ranks, 3, 4096), 0);
    ranks[0].waiting_pairs = 1000000000; /* core attention counts as well */
    ranks[0].pair_ps = 100000;
    assert_int_equal(placement_choose_prefill(ranks, 3, 4096), 1);
    ranks[0].is_open = ranks[1].is_open = false;
    assert_int_equal(placement_choose_prefill(ranks, 3, 4096), PLACEMENT_NONE);
}

/* Would be broken: one rank would get all requests while others idle.  A run of equal prompts
 * spreads evenly. */
static void test_placement_prefill_balances_equal_prompts(void **unused)
{
    placement_prefill_t ranks[4];
    for (int i = 0; i < 4; i++) ranks[i] = (placement_prefill_t){ true, 0, 0, 1000, 100, 0 };
    for (int i = 0; i < 40; i++) {
        uint32_t best = placement_choose_prefill(ranks, 4, 100);
        ranks[best].waiting_tokens += 100;
        ranks[best].waiting_pairs += placement_pairs(0, 100);
    }
    for (int i = 0; i < 4; i++) assert_int_equal(ranks[i].waiting_tokens, 1000);
}

/* Would be broken: decode would be over-committed, or fill one rank first.  Reference: brute force
 * over all ranks, in integers. */
static void test_placement_decode_never_overcommits_and_takes_the_least_full(void **unused)
{
    for (uint32_t round = 0; round < 5000; round++) {
        placement_decode_t ranks[5];
        uint32_t blocks = 1 + below(60), expected = PLACEMENT_NONE;
        uint64_t least = 0;
        for (uint32_t i = 0; i < 5; i++) {
            ranks[i] = (placement_decode_t){ below(3) * 64, below(140), 16, below(18) };
            if (ranks[i].blocks_total < ranks[i].blocks_used + blocks || ranks[i].requests >= 16)
                continue;
            uint64_t kv =
                (uint64_t)(ranks[i].blocks_used + blocks) * (ranks[i].blocks_total == 64 ? 2 : 1);
            uint64_t requests = (uint64_t)(ranks[i].requests + 1) * 8; /* both in parts of 128 */
            uint64_t full = kv > requests ? kv : requests;
            if (expected != PLACEMENT_NONE && full >= least) continue;
            expected = i;
            least = full;
        }
        assert_int_equal(placement_choose_decode(ranks, 5, 1, blocks), expected);
    }
}

/* Would be broken: requests would be given to ranks that cannot step, because another of their
 * group is away, and wait there for minutes. */
static void test_decode_rank_of_a_broken_group_gets_nothing(void **unused)
{
    const placement_decode_t ranks[4] = {
        { 64, 0, 4, 0 }, { 0 }, { 64, 32, 4, 0 }, { 64, 40, 4, 0 }
    };
    assert_int_equal(placement_choose_decode(ranks, 4, 1, 8), 0);
    assert_int_equal(placement_choose_decode(ranks, 4, 2, 8), 2);
    assert_int_equal(placement_choose_decode(ranks, 4, 4, 8), PLACEMENT_NONE);
}

/* Would be broken: predictions would use a wrong speed.  Steps made from known speeds give them
 * back. */
static void test_speed_finds_the_two_times_steps_were_made_of(void **unused)
{
    speed_t speed = { 0 };
    assert_int_equal(speed_token_ns(&speed), 0);
    for (int i = 0; i < 200; i++) {
        uint64_t tokens = 100 + below(400), pairs = tokens * (100 + below(5000));
        speed_observe(&speed, tokens, pairs, (tokens * 50000 + pairs * 2000 / 1000) / 1000);
    }
    assert_in_range(speed_token_ns(&speed), 49000, 51000);
    assert_in_range(speed_pair_ps(&speed), 1900, 2100);
}

/* Would be broken: equal steps, which cannot tell tokens from pairs, would give nonsense. */
static void test_speed_equal_steps_count_as_tokens(void **unused)
{
    speed_t speed = { 0 };
    for (int i = 0; i < 50; i++) speed_observe(&speed, 512, 131328, 512 * 30);
    assert_in_range(speed_token_ns(&speed), 29900, 30100);
    assert_in_range(speed_pair_ps(&speed), 0, 1);
}

/* Would be broken: the simulated machine would be faster or slower than the measured one. */
static void test_step_time_follows_straight_lines_between_measured_points(void **unused)
{
    step_table_t table = { 0 };
    assert_true(step_table_us(&table, 10, 10) == 0);
    assert_true(step_table_add(&table, (step_point_t){ 128, 1000, 300 }));
    assert_true(step_table_add(&table, (step_point_t){ 1, 1000, 100 }));
    assert_true(step_table_add(&table, (step_point_t){ 128, 3000, 500 }));
    assert_true(step_table_add(&table, (step_point_t){ 64, 1000, 200 }));
    assert_false(step_table_add(&table, (step_point_t){ 64, 1000, 201 }));
    assert_false(step_table_add(&table, (step_point_t){ 64, 0, 201 }));
    assert_int_equal(table.count, 4);
    assert_true(step_table_us(&table, 128, 1000) == 300);
    assert_true(step_table_us(&table, 128, 2000) == 400);
    assert_true(step_table_us(&table, 128, 5000) == 700); /* the line goes on */
    assert_true(step_table_us(&table, 96, 1000) == 250);
    assert_true(step_table_us(&table, 96, 3000) ==
                350); /* between 200, which has one point, and 500 */
    assert_true(step_table_us(&table, 192, 1000) == 400);
    assert_true(step_table_us(&table, 0, 1000) == 0);
    assert_true(step_table_us(&table, 128, -5000) == 100); /* never less than any measured step */
}

static void test_step_table_refuses_more_than_its_room(void **unused)
{
    step_table_t table = { 0 };
    for (uint32_t i = 0; i < STEP_POINTS_MAX; i++)
        assert_true(step_table_add(&table, (step_point_t){ 1 + below(1000), i + 1.0, 5 }));
    assert_false(step_table_add(&table, (step_point_t){ 2000, 1, 5 }));
    for (uint32_t i = 1; i < table.count; i++)
        assert_true(table.points[i - 1].rows <= table.points[i].rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_shares_the_budget_in_order),
        cmocka_unit_test(test_placement_pairs_equal_a_count_of_rows),
        cmocka_unit_test(test_placement_prefill_weighs_queue_cache_and_speed),
        cmocka_unit_test(test_placement_prefill_balances_equal_prompts),
        cmocka_unit_test(test_placement_decode_never_overcommits_and_takes_the_least_full),
        cmocka_unit_test(test_decode_rank_of_a_broken_group_gets_nothing),
        cmocka_unit_test(test_speed_finds_the_two_times_steps_were_made_of),
        cmocka_unit_test(test_speed_equal_steps_count_as_tokens),
        cmocka_unit_test(test_step_time_follows_straight_lines_between_measured_points),
        cmocka_unit_test(test_step_table_refuses_more_than_its_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
