/* tests/actors/test_kv_store.c - what the store takes, gives, keeps and forgets. */
#include "tests/actors/worker_world.h"

#include "actors/kv_store.h"

static const address_t a_prefill_worker = { ROLE_prefill_worker, 1 };
static uint8_t keys[64 * KEY_BYTES];

/* Keys of block `depth` of chain `chain`, KEY_BYTES of the same digit. */
static uint8_t *make_keys(uint32_t chain, uint32_t first, uint32_t count)
{
    memset(keys, 0, sizeof keys);
    for (uint32_t i = 0; i < count; i++) {
        keys[i * KEY_BYTES] = (uint8_t)(chain + 1);
        keys[i * KEY_BYTES + 1] = (uint8_t)(first + i + 1);
    }
    return keys;
}

static void offer(actor_t *world, uint64_t id, uint32_t chain, uint32_t first, uint32_t count)
{
    uint8_t parents[64 * KEY_BYTES] = { 0 };
    if (first > 0) memcpy(parents, make_keys(chain, first - 1, count), (size_t)count * KEY_BYTES);
    if (first == 0)
        memcpy(parents + KEY_BYTES, make_keys(chain, 0, count), (size_t)(count - 1) * KEY_BYTES);
    msg_t m;
    msg_init(&m, MSG_store_offer);
    m.store_offer.offer = id;
    m.store_offer.blocks_count = m.store_offer.checksums_count = count;
    for (uint32_t i = 0; i < count; i++) {
        m.store_offer.blocks[i] = 20 + i;
        m.store_offer.checksums[i] = 500 + i;
    }
    m.store_offer.keys = (bytes_t){ make_keys(chain, first, count), (size_t)count * KEY_BYTES };
    m.store_offer.parents = (bytes_t){ parents, (size_t)count * KEY_BYTES };
    deliver(world, a_prefill_worker, &m);
}

static void hold(actor_t *world, uint32_t chain, uint32_t count)
{
    offer(world, 1000 + chain, chain, 0, count);
    finish_job(world, ERR_OK);
    world->now_us += 1000;
}

static uint32_t ask(actor_t *world, uint32_t number, uint32_t chain, uint32_t count)
{
    msg_t m = about(MSG_store_ask, number, 0);
    m.store_ask.keys = (bytes_t){ make_keys(chain, 0, count), (size_t)count * KEY_BYTES };
    deliver(world, a_prefill_worker, &m);
    return take(world, MSG_store_found, NULL)->store_found.found;
}

static void release(actor_t *world, uint32_t number)
{
    msg_t m = about(MSG_store_release, number, 0);
    deliver(world, a_prefill_worker, &m);
}

/* Would be broken: offered blocks would not be pulled, announced or found; or before they are
 * verified. */
static void test_kv_store_offer_is_pulled_announced_and_found(void **unused)
{
    actor_t *world = world_new(&kv_store_class);
    offer(world, 7, 0, 0, 3);
    assert_int_equal(world->jobs[0].count, 3);
    assert_int_equal(world->jobs[0].source[2], 22);
    assert_int_equal(ask(world, 1, 0, 3), 0); /* on its way, not here */
    assert_null(take(world, MSG_store_taken, NULL));
    finish_job(world, ERR_OK);
    assert_true(take(world, MSG_store_taken, NULL)->store_taken.offer == 7);
    const msg_t *added = take(world, MSG_prefix_added, NULL);
    assert_true(added->prefix_added.version == 1);
    assert_int_equal(added->prefix_added.keys.size, 3 * KEY_BYTES);
    assert_int_equal(ask(world, 2, 0, 5), 3);
    assert_false(world->class->is_idle(world->state));
    release(world, 2);
    assert_true(world->class->is_idle(world->state));
    world_destroy(world);
}

/* Would be broken: known blocks would be pulled again. */
static void test_kv_store_known_blocks_are_acknowledged_at_once(void **unused)
{
    actor_t *world = world_new(&kv_store_class);
    hold(world, 0, 3);
    forget_sent(world);
    offer(world, 9, 0, 1, 2);
    assert_int_equal(world->job_count, 0);
    assert_true(take(world, MSG_store_taken, NULL)->store_taken.offer == 9);
    world_destroy(world);
}

/* Would be broken: bytes other than the offered ones would be served (I9). */
static void test_kv_store_bad_checksum_is_not_held(void **unused)
{
    actor_t *world = world_new(&kv_store_class);
    offer(world, 7, 0, 0, 3);
    finish_job(world, ERR_CHECKSUM);
    assert_non_null(take(world, MSG_store_taken, NULL));
    assert_null(take(world, MSG_prefix_added, NULL));
    assert_int_equal(ask(world, 1, 0, 3), 0);
    hold(world, 0, 3); /* it may be offered again */
    assert_int_equal(ask(world, 2, 0, 3), 3);
    world_destroy(world);
}

/* Would be broken: a block whose ancestors are not here would take room that nobody can use. */
static void test_kv_store_orphans_are_not_taken(void **unused)
{
    actor_t *world = world_new(&kv_store_class);
    offer(world, 7, 0, 2, 2);
    assert_int_equal(world->job_count, 0);
    assert_non_null(take(world, MSG_store_taken, NULL));
    world_destroy(world);
}

/* Would be broken: leased blocks would be overwritten while they are pulled; or prefill_lb be told
 * wrong things. */
static void test_kv_store_evicts_old_ends_but_nothing_leased(void **unused)
{
    actor_t *world = world_new(&kv_store_class);
    hold(world, 0, 4);
    hold(world, 1, 4); /* the store is full */
    assert_int_equal(ask(world, 1, 0, 4), 4);
    forget_sent(world);
    hold(world, 2, 3);
    const msg_t *removed = take(world, MSG_prefix_removed, NULL);
    assert_true(removed->prefix_removed.version == 3);
    assert_int_equal(removed->prefix_removed.keys.size, 3 * KEY_BYTES);
    const uint8_t *gone = removed->prefix_removed.keys.data;
    assert_int_equal(gone[0], 2); /* of chain 1, though it is newer: chain 0 is leased */
    assert_int_equal(gone[1], 4); /* its last block first */
    assert_true(take(world, MSG_prefix_added, NULL)->prefix_added.version == 4);
    pass(world, 2200); /* the lease ends unreleased */
    assert_true(world->class->is_idle(world->state));
    assert_int_equal(world->counters[METRIC_kv_leases_expired_total], 1);
    world_destroy(world);
}

/* Would be broken: a balancer that is new, or missed a message, would never learn what is held. */
static void test_kv_store_sync_tells_all_from_version_one(void **unused)
{
    actor_t *world = world_new(&kv_store_class);
    msg_t m;
    msg_init(&m, MSG_prefix_sync);
    deliver(world, a_prefill_lb, &m);
    const msg_t *added = take(world, MSG_prefix_added, NULL); /* empty, but an answer */
    assert_true(added->prefix_added.version == 1 && added->prefix_added.keys.size == 0);
    hold(world, 0, 4);
    hold(world, 1, 2);
    forget_sent(world);
    msg_init(&m, MSG_prefix_sync);
    deliver(world, a_prefill_lb, &m);
    added = take(world, MSG_prefix_added, NULL);
    assert_true(added->prefix_added.version == 1);
    assert_int_equal(added->prefix_added.keys.size, 6 * KEY_BYTES);
    world_destroy(world);
}

/* Would be broken: offers of a dead worker would be pulled from its successor's memory; its leases
 * stay. */
static void test_kv_store_dead_workers_offers_and_leases_are_dropped(void **unused)
{
    actor_t *world = world_new(&kv_store_class);
    hold(world, 0, 2);
    assert_int_equal(ask(world, 1, 0, 2), 2);
    offer(world, 7, 1, 0, 2);
    offer(world, 8, 2, 0, 2); /* waits behind it */
    forget_sent(world);
    world->deaf = a_prefill_worker;
    world->deaf_answer = ERR_LOST;
    deliver_peer(world, MSG_peer_down, ROLE_prefill_worker, 1);
    finish_job(world, ERR_LOST);
    assert_int_equal(world->job_count, 0);
    assert_null(take(world, MSG_store_taken, NULL));
    assert_true(world->class->is_idle(world->state));
    world_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_store_offer_is_pulled_announced_and_found),
        cmocka_unit_test(test_kv_store_known_blocks_are_acknowledged_at_once),
        cmocka_unit_test(test_kv_store_bad_checksum_is_not_held),
        cmocka_unit_test(test_kv_store_orphans_are_not_taken),
        cmocka_unit_test(test_kv_store_evicts_old_ends_but_nothing_leased),
        cmocka_unit_test(test_kv_store_sync_tells_all_from_version_one),
        cmocka_unit_test(test_kv_store_dead_workers_offers_and_leases_are_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
