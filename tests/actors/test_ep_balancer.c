/* tests/actors/test_ep_balancer.c - how uneven the experts' load is, over all workers and recent
 * time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "actors/ep_balancer.h"
#include "tests/actors/fake_world.h"

enum { PERIOD_US = 10 * 1000 * 1000 };

static void tell_load(actor_t *world, uint32_t worker, uint32_t layer, const uint32_t counts[4])
{
    msg_t m;
    msg_init(&m, MSG_expert_load);
    m.expert_load.layer = layer;
    m.expert_load.counts_count = 4;
    memcpy(m.expert_load.counts, counts, 4 * sizeof *counts);
    fake_tell(world, (address_t){ ROLE_decode_worker, worker }, &m);
}

/* If it failed, the gauge would not be the busiest expert against the mean of its layer. */
static void test_ep_balancer_ratio_is_of_the_worst_layer_over_all_workers(void **state)
{
    actor_t *world = fake_new(&ep_balancer_class, NULL);
    tell_load(world, 0, 3, (uint32_t[]){ 1000, 1000, 1000, 1000 });
    tell_load(world, 0, 255, (uint32_t[]){ 100, 100, 100, 900 });
    tell_load(world, 1, 255, (uint32_t[]){ 500, 500, 500, 300 });
    fake_run(world, PERIOD_US);
    assert_true(world->metrics[METRIC_expert_load_ratio] == 1200.0 * 4 / 3000);
    fake_destroy(world);
}

/* If it failed, a load of an hour ago would count as that of now, or noise as a load. */
static void test_ep_balancer_old_loads_fade_and_few_tokens_are_no_load(void **state)
{
    actor_t *world = fake_new(&ep_balancer_class, NULL);
    tell_load(world, 0, 0, (uint32_t[]){ 4000, 0, 0, 0 });
    fake_run(world, PERIOD_US);
    assert_true(world->metrics[METRIC_expert_load_ratio] == 4);
    for (int i = 0; i < 10; i++) {
        tell_load(world, 0, 0, (uint32_t[]){ 0, 4000, 0, 0 });
        tell_load(world, 0, 0, (uint32_t[]){ 4000, 4000, 8000, 8000 });
        fake_run(world, PERIOD_US);
    }
    double ratio = world->metrics[METRIC_expert_load_ratio];
    assert_true(ratio > 1.14 && ratio < 1.16); /* 8000 of 28000 for each of three experts */
    assert_non_null(strstr(world->log, "EP-BALANCER-LOAD busiest is expert"));
    fake_run(world, 20 * PERIOD_US);
    assert_true(world->metrics[METRIC_expert_load_ratio] == 0);
    fake_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ep_balancer_ratio_is_of_the_worst_layer_over_all_workers),
        cmocka_unit_test(test_ep_balancer_old_loads_fade_and_few_tokens_are_no_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
