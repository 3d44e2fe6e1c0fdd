/* tests/kv/test_kv.c - keys, tables, blocks, rings, prefixes, offers and transfers of runtime/kv.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/kv/block.h"
#include "runtime/kv/cache.h"
#include "runtime/kv/job.h"
#include "runtime/kv/key.h"
#include "runtime/kv/lease.h"
#include "runtime/kv/offer.h"
#include "runtime/kv/prefix.h"
#include "runtime/kv/ring.h"
#include "runtime/kv/table.h"
#include "runtime/kv/transfer.h"

static uint64_t random_state = 42;

static uint32_t below(uint32_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % bound);
}

static void from_hex(const char *hex, uint8_t *bytes)
{
    for (int i = 0; i < KEY_BYTES; i++)
        bytes[i] = (uint8_t)strtoul((char[]){ hex[2 * i], hex[2 * i + 1], 0 }, NULL, 16);
}

/* Would be broken: two builds of ours, or a client that makes keys itself, would disagree on a
 * block's name.  Reference: Python's hashlib. */
static void test_key_chain_is_sha256_of_parent_and_tokens(void **unused)
{
    uint8_t root[KEY_BYTES], first[KEY_BYTES], second[KEY_BYTES], keys[2 * KEY_BYTES];
    uint32_t tokens[130];
    for (uint32_t i = 0; i < 130; i++) tokens[i] = i;
    from_hex("2eaa54ca0935498ee381aa51ef289c06", root);
    from_hex("8684d6201a23dbb1b235399c8eb9ca8a", first);
    from_hex("a49557b42906631506e4126c9bdb7200", second);
    key_maker_t *maker = key_maker_new();
    assert_non_null(maker);
    block_key_t key = key_maker_root(maker, 0x0123456789abcdef);
    assert_memory_equal(&key, root, KEY_BYTES);
    assert_int_equal(key_maker_prompt(maker, 0x0123456789abcdef, tokens, 130, keys), 2);
    assert_memory_equal(keys, first, KEY_BYTES);
    assert_memory_equal(keys + KEY_BYTES, second, KEY_BYTES);
    key = key_maker_next(maker, block_key_load(first, 0), tokens + 64);
    assert_memory_equal(&key, second, KEY_BYTES);
    key_maker_destroy(&maker);
    assert_null(maker);
}

/* Would be broken: blocks of another model, or after another beginning, would be taken for ours. */
static void test_key_differs_with_model_and_history(void **unused)
{
    uint32_t tokens[128] = { 0 };
    uint8_t keys[2 * KEY_BYTES], others[2 * KEY_BYTES];
    key_maker_t *maker = key_maker_new();
    key_maker_prompt(maker, 1, tokens, 128, keys);
    assert_memory_not_equal(keys, keys + KEY_BYTES, KEY_BYTES);
    key_maker_prompt(maker, 2, tokens, 128, others);
    assert_memory_not_equal(keys, others, KEY_BYTES);
    tokens[0] = 1;
    key_maker_prompt(maker, 1, tokens, 128, others);
    assert_memory_not_equal(keys + KEY_BYTES, others + KEY_BYTES, KEY_BYTES);
    assert_int_equal(key_maker_prompt(maker, 1, tokens, 63, others), 0);
    key_maker_destroy(&maker);
}

/* Would be broken: a deletion would hide an entry behind it, so that a held request is not found.
 * Reference: a plain array.  Few names and equal homes make long runs. */
static void test_table_random_operations_agree_with_an_array(void **unused)
{
    enum { CAPACITY = 24, NAMES = 64 };
    table_cell_t *cells = calloc(table_cells(CAPACITY), sizeof *cells);
    uint32_t expected[NAMES];
    table_t table;
    table_init(&table, cells, CAPACITY);
    for (int i = 0; i < NAMES; i++) expected[i] = TABLE_NONE;
    for (uint32_t round = 0; round < 20000; round++) {
        uint32_t name = below(NAMES);
        if (expected[name] != TABLE_NONE) {
            table_remove(&table, name % 4, name);
            expected[name] = TABLE_NONE;
        } else if (table.count < CAPACITY) {
            table_insert(&table, name % 4, name, round);
            expected[name] = round;
        }
        for (uint32_t i = 0; i < NAMES; i++)
            assert_int_equal(table_find(&table, i % 4, i), expected[i]);
    }
    free(cells);
}

/* Would be broken: a block would be given to two requests, or never come back. */
static void test_block_pool_frees_with_the_last_reference(void **unused)
{
    uint32_t free_list[4], references[4], blocks[4];
    block_pool_t pool;
    block_pool_init(&pool, free_list, references, 4);
    assert_true(block_pool_take(&pool, 3, blocks));
    assert_int_equal(blocks[0], 0);
    assert_false(block_pool_take(&pool, 2, blocks + 3));
    assert_int_equal(block_pool_used(&pool), 3);
    block_pool_keep(&pool, blocks[1]);
    for (int i = 0; i < 3; i++) block_pool_release(&pool, blocks[i]);
    assert_int_equal(block_pool_used(&pool), 1);
    block_pool_check(&pool);
    block_pool_release(&pool, blocks[1]);
    assert_int_equal(block_pool_used(&pool), 0);
    block_pool_check(&pool);
}

/* Would be broken: a queued prompt would be overwritten by a later one.  Records of random size,
 * dropped in random order, keep their bytes; and the ring is whole again when all are gone. */
static void test_ring_random_records_keep_their_bytes(void **unused)
{
    enum { RECORDS = 16, BYTES = 4096 };
    uint8_t *bytes = aligned_alloc(16, BYTES);
    struct {
        uint8_t *data;
        uint32_t size;
        uint8_t mark;
    } live[RECORDS] = { 0 };
    uint32_t refused = 0;
    ring_t ring;
    ring_init(&ring, bytes, BYTES);
    for (uint32_t round = 0; round < 20000; round++) {
        uint32_t at = below(RECORDS);
        if (live[at].data != NULL) {
            for (uint32_t i = 0; i < live[at].size; i++)
                assert_int_equal(live[at].data[i], live[at].mark);
            ring_drop(&ring, live[at].data);
            live[at].data = NULL;
            continue;
        }
        live[at].size = 1 + below(900);
        live[at].mark = (uint8_t)round;
        live[at].data = ring_put(&ring, live[at].size);
        if (live[at].data != NULL) memset(live[at].data, live[at].mark, live[at].size);
        refused += live[at].data == NULL;
    }
    for (int i = 0; i < RECORDS; i++)
        if (live[i].data != NULL) ring_drop(&ring, live[i].data);
    assert_int_equal(ring.records, 0);
    assert_true(refused > 0);
    void *whole = ring_put(&ring, BYTES - 16);
    assert_non_null(whole);
    assert_null(ring_put(&ring, 1));
    free(bytes);
}

/* Would be broken: prefill_lb would send prompts to ranks without their prefix.  Reference: a count
 * from the front. */
static void test_prefix_depth_is_the_longest_held_prefix(void **unused)
{
    enum { KEYS = 100, HOLDERS = 70 };
    uint8_t keys[KEYS * KEY_BYTES];
    uint32_t depths[HOLDERS];
    prefix_memory_t memory = { .cells = calloc(table_cells(KEYS), sizeof(table_cell_t)),
                               .keys = calloc(KEYS, sizeof(block_key_t)),
                               .holders = calloc((size_t)KEYS * prefix_words(HOLDERS), 8),
                               .free_list = calloc(KEYS, 4) };
    prefix_t prefix;
    prefix_init(&prefix, &memory, KEYS, HOLDERS);
    for (uint32_t i = 0; i < KEYS; i++) block_key_store(keys, i, (block_key_t){ i * 7 + 1, i });
    for (uint32_t holder = 0; holder < HOLDERS; holder++) {
        depths[holder] = below(KEYS + 1);
        for (uint32_t i = 0; i < depths[holder]; i++)
            assert_true(prefix_add(&prefix, block_key_load(keys, i), holder));
    }
    for (uint32_t holder = 0; holder < HOLDERS; holder++)
        assert_int_equal(prefix_depth(&prefix, keys, KEYS, holder), depths[holder]);
    for (uint32_t holder = 0; holder < HOLDERS; holder += 2) prefix_forget(&prefix, holder);
    for (uint32_t holder = 0; holder < HOLDERS; holder++)
        assert_int_equal(prefix_depth(&prefix, keys, KEYS, holder),
                         holder % 2 ? depths[holder] : 0);
    if (depths[1] > 0) prefix_remove(&prefix, block_key_load(keys, depths[1] - 1), 1);
    assert_int_equal(prefix_depth(&prefix, keys, KEYS, 1), depths[1] > 0 ? depths[1] - 1 : 0);
    for (uint32_t holder = 1; holder < HOLDERS; holder += 2) prefix_forget(&prefix, holder);
    assert_int_equal(prefix.table.count, 0);
    assert_int_equal(prefix.free_count, KEYS);
    free(memory.cells);
    free(memory.keys);
    free(memory.holders);
    free(memory.free_list);
}

/* Would be broken: a full index would refuse service instead of forgetting. */
static void test_prefix_full_index_forgets_additions(void **unused)
{
    table_cell_t cells[4];
    block_key_t keys[1];
    uint64_t holders[1];
    uint32_t free_list[1];
    prefix_memory_t memory = { cells, keys, holders, free_list };
    prefix_t prefix;
    assert_int_equal(table_cells(1), 4);
    prefix_init(&prefix, &memory, 1, 2);
    assert_true(prefix_add(&prefix, (block_key_t){ 1, 1 }, 0));
    assert_false(prefix_add(&prefix, (block_key_t){ 2, 2 }, 0));
    assert_true(prefix_add(&prefix, (block_key_t){ 1, 1 }, 1));
}

static block_key_t name(uint32_t chain, uint32_t depth)
{
    return (block_key_t){ chain + 1, depth + 1 };
}

/* Would be broken: the store would evict a block whose children it keeps (unreachable for ever), or
 * one that somebody was told to pull. */
static void test_cache_evicts_ends_of_old_chains_and_nothing_pinned(void **unused)
{
    cache_entry_t entries[4];
    table_cell_t cells[8];
    block_key_t evicted;
    cache_t cache;
    assert_int_equal(table_cells(4), 8);
    cache_init(&cache, entries, cells, 4);
    uint32_t parent = cache_add(&cache, name(0, 0), CACHE_NONE, &evicted);
    uint32_t child = cache_add(&cache, name(0, 1), parent, &evicted);
    uint32_t other = cache_add(&cache, name(1, 0), CACHE_NONE, &evicted);
    uint32_t last = cache_add(&cache, name(2, 0), CACHE_NONE, &evicted);
    assert_true(block_key_is_zero(evicted));
    assert_int_equal(cache_add(&cache, name(3, 0), CACHE_NONE, &evicted),
                     CACHE_NONE); /* all are being pulled */
    cache_hold(&cache, parent, 1, 10);
    cache_hold(&cache, child, 1, 10);
    cache_hold(&cache, other, 1, 20);
    cache_hold(&cache, last, 1, 30);
    cache_check(&cache);
    cache_pin(&cache, other);
    uint32_t added = cache_add(&cache, name(3, 0), CACHE_NONE, &evicted);
    assert_true(block_key_equal(evicted, name(0, 1))); /* the child, though the parent is as old */
    cache_hold(&cache, added, 1, 40);
    added = cache_add(&cache, name(3, 1), added, &evicted);
    assert_true(block_key_equal(evicted, name(0, 0))); /* now the parent, for `other` is pinned */
    cache_hold(&cache, added, 1, 50);
    added = cache_add(&cache, name(3, 2), added, &evicted);
    assert_true(block_key_equal(evicted, name(2, 0)));
    cache_hold(&cache, added, 1, 60);
    cache_unpin(&cache, other);
    cache_check(&cache);
    (void)cache_add(&cache, name(4, 0), CACHE_NONE, &evicted);
    assert_true(block_key_equal(evicted, name(1, 0)));
    cache_check(&cache);
}

/* Would be broken: under any order of additions, uses and pins a chain could lose its middle. */
static void test_cache_random_chains_stay_prefixes(void **unused)
{
    enum { CAPACITY = 12, CHAINS = 5, DEPTH = 6 };
    cache_entry_t entries[CAPACITY];
    table_cell_t cells[32];
    uint8_t keys[CHAINS][DEPTH * KEY_BYTES];
    cache_t cache;
    assert_int_equal(table_cells(CAPACITY), 32);
    cache_init(&cache, entries, cells, CAPACITY);
    for (uint32_t c = 0; c < CHAINS; c++)
        for (uint32_t d = 0; d < DEPTH; d++) block_key_store(keys[c], d, name(c, d));
    for (uint32_t round = 1; round < 20000; round++) {
        uint32_t chain = below(CHAINS), last;
        uint32_t depth = cache_depth(&cache, keys[chain], DEPTH, &last);
        for (uint32_t d = depth; d < DEPTH; d++)
            assert_int_equal(cache_find(&cache, name(chain, d)), CACHE_NONE);
        if (depth == DEPTH || (depth > 0 && below(3) == 0)) {
            cache_touch(&cache, last, round);
            continue;
        }
        block_key_t evicted;
        uint32_t entry = cache_add(&cache, name(chain, depth), last, &evicted);
        if (entry != CACHE_NONE && below(10) == 0)
            cache_remove(&cache, entry); /* its pull failed */
        if (entry != CACHE_NONE && entries[entry].state == CACHE_PULLING)
            cache_hold(&cache, entry, 1, round);
        cache_check(&cache);
    }
    assert_in_range(cache.used, CAPACITY - 1, CAPACITY); /* the last pull may have failed */
}

/* Would be broken: a lost store_taken would keep a worker's blocks for ever, or free them twice. */
static void test_offers_end_once_by_answer_or_by_time(void **unused)
{
    uint32_t free_list[4], references[4], blocks[4];
    offer_t *table = calloc(2, sizeof *table);
    block_pool_t pool;
    offers_t offers;
    block_pool_init(&pool, free_list, references, 4);
    offers_init(&offers, table, 2);
    assert_true(block_pool_take(&pool, 4, blocks));
    uint64_t first = offers_open(&offers, &pool, blocks, 2)->id;
    uint64_t second = offers_open(&offers, &pool, blocks + 2, 2)->id;
    assert_null(offers_open(&offers, &pool, blocks, 1));
    offers_bind(&offers, first, 7, 100);
    offers_bind(&offers, second, 8, 200);
    for (int i = 0; i < 4; i++) block_pool_release(&pool, blocks[i]);
    assert_int_equal(block_pool_used(&pool), 4);
    assert_int_equal(offers_owner(&offers, first), 7);
    assert_int_equal(offers_owner(&offers, second), 8);
    assert_true(offers_close(&offers, &pool, first));
    assert_false(offers_close(&offers, &pool, first));
    assert_int_equal(block_pool_used(&pool), 2);
    assert_int_equal(offers_expire(&offers, &pool, 199), 0);
    assert_int_equal(offers_expire(&offers, &pool, 200), 1);
    assert_int_equal(block_pool_used(&pool), 0);
    assert_int_equal(offers_owner(&offers, second), UINT32_MAX);
    free(table);
}

/* Would be broken: a late completion would be taken for another job's. */
static void test_jobs_close_once_and_only_their_own(void **unused)
{
    static jobs_t jobs;
    job_t job = { .kind = JOB_SEAL, .slot = 3, .first = 4, .count = 5 };
    uint64_t first = jobs_open(&jobs, &job);
    for (int i = 1; i < JOBS_MAX; i++) assert_true(jobs_open(&jobs, &job) != 0);
    assert_int_equal(jobs_open(&jobs, &job), 0);
    job_t closed = jobs_close(&jobs, first);
    assert_int_equal(closed.slot, 3);
    assert_int_equal(closed.first, 4);
    assert_int_equal(jobs_close(&jobs, first).id, 0);
    uint64_t again = jobs_open(&jobs, &job);
    assert_true(again != first && again != 0);
    assert_int_equal(jobs_close(&jobs, first).id, 0);
}

/* Would be broken: a batch of renewals would lose one, or a peer's crooked lists be read past their
 * end. */
static void test_lease_batch_holds_what_was_added(void **unused)
{
    static msg_lease_renew_t batch;
    request_id_t request;
    uint32_t attempt;
    for (uint32_t i = 0; i < RENEW_MAX; i++)
        assert_int_equal(lease_batch_add(&batch, (request_id_t){ i, i + 1 }, i + 2),
                         i + 1 == RENEW_MAX);
    assert_true(lease_batch_get(&batch, 9, &request, &attempt));
    assert_true(request.hi == 9 && request.lo == 10 && attempt == 11);
    assert_false(lease_batch_get(&batch, RENEW_MAX, &request, &attempt));
    batch.attempts_count = 3;
    assert_false(lease_batch_get(&batch, 0, &request, &attempt));
}

/* Would be broken: a transfer could go a way that transfer_states.def does not draw. */
static void test_transfer_walks_the_drawn_way(void **unused)
{
    static const transfer_state_t way[] = { TRANSFER_ANNOUNCED, TRANSFER_PULLING, TRANSFER_DECODING,
                                            TRANSFER_ENDING,    TRANSFER_CLOSING, TRANSFER_FREE };
    transfer_t transfer = { TRANSFER_FREE };
    for (size_t i = 0; i < sizeof way / sizeof *way; i++) {
        transfer_move(&transfer, way[i]);
        assert_int_equal(transfer.state, way[i]);
    }
    assert_string_equal(transfer_state_name(TRANSFER_PULLING), "PULLING");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_chain_is_sha256_of_parent_and_tokens),
        cmocka_unit_test(test_key_differs_with_model_and_history),
        cmocka_unit_test(test_table_random_operations_agree_with_an_array),
        cmocka_unit_test(test_block_pool_frees_with_the_last_reference),
        cmocka_unit_test(test_ring_random_records_keep_their_bytes),
        cmocka_unit_test(test_prefix_depth_is_the_longest_held_prefix),
        cmocka_unit_test(test_prefix_full_index_forgets_additions),
        cmocka_unit_test(test_cache_evicts_ends_of_old_chains_and_nothing_pinned),
        cmocka_unit_test(test_cache_random_chains_stay_prefixes),
        cmocka_unit_test(test_offers_end_once_by_answer_or_by_time),
        cmocka_unit_test(test_jobs_close_once_and_only_their_own),
        cmocka_unit_test(test_lease_batch_holds_what_was_added),
        cmocka_unit_test(test_transfer_walks_the_drawn_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
