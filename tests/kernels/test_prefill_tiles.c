/* tests/kernels/test_prefill_tiles.c - the order of mha_prefill's tiles: were it wrong, rows would
 * be left out, or computed twice, or long tiles would come last. */
#include "kernels/cuda/prefill_tiles.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { TILES_MAX = 40, HEADS_MAX = 128 };

static void test_prefill_place_every_tile_of_every_head_comes_once(void **state)
{
    (void)state;
    static const uint32_t heads[] = { 1, 3, 4, 5, 16, 128 }, groups[] = { 1, 4, 7, 128 };
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
            for (uint32_t tiles = 1; tiles <= TILES_MAX; tiles += 13) {
                char is_seen[TILES_MAX][HEADS_MAX] = { 0 };
                for (uint32_t i = 0; i < tiles * heads[h]; i++) {
                    prefill_place_t place = prefill_place(i, tiles, heads[h], groups[g]);
                    assert_true(place.tile < tiles && place.head < heads[h]);
                    assert_int_equal(is_seen[place.tile][place.head]++, 0);
                }
            }
}

static void test_prefill_place_within_a_group_tiles_descend(void **state)
{
    (void)state;
    uint32_t tiles = 9, heads = 22, group = 8;
    for (uint32_t i = 1; i < tiles * heads; i++) {
        prefill_place_t before = prefill_place(i - 1, tiles, heads, group);
        prefill_place_t place = prefill_place(i, tiles, heads, group);
        if (place.head / group == before.head / group)
            assert_true(place.tile == before.tile ? place.head == before.head + 1
                                                  : place.tile + 1 == before.tile);
        else
            assert_true(before.tile == 0 && place.tile == tiles - 1);
    }
}

static void test_prefill_sequence_empty_sequences_hold_no_tile(void **state)
{
    (void)state;
    static const uint32_t ends[] = { 0, 3, 3, 3, 4, 9, 9 },
                          wanted[] = { 1, 1, 1, 4, 5, 5, 5, 5, 5 };
    for (uint32_t tile = 0; tile < 9; tile++)
        assert_int_equal(prefill_sequence(ends, 7, tile), wanted[tile]);
    assert_int_equal(prefill_sequence(ends, 7, 9), 7);
    assert_int_equal(prefill_sequence(ends, 0, 0), 0);
}

static void test_prefill_blocks_last_row_sees_itself(void **state)
{
    (void)state;
    assert_int_equal(prefill_tiles(0), 0);
    assert_int_equal(prefill_tiles(1), 1);
    assert_int_equal(prefill_tiles(PREFILL_ROWS), 1);
    assert_int_equal(prefill_tiles(PREFILL_ROWS + 1), 2);
    assert_int_equal(prefill_blocks(0, 1, 128), 1);
    assert_int_equal(prefill_blocks(0, 128, 128), 1);
    assert_int_equal(prefill_blocks(1, 128, 128), 2);
    assert_int_equal(prefill_blocks(300, 5, 128), 3);
}

static void test_prefill_group_heads_keys_and_values_fit(void **state)
{
    (void)state;
    assert_int_equal(prefill_group_heads(128, 0), 128);
    assert_int_equal(prefill_group_heads(2, 4096), 2);
    assert_int_equal(prefill_group_heads(128, 1u << 30), 4);
    for (uint32_t keys = 100; keys < 8000; keys += 777) {
        uint32_t heads = prefill_group_heads(128, keys);
        assert_true(heads == 128 || heads * keys * PREFILL_KEY_BYTES <= PREFILL_GROUP_BYTES);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_place_every_tile_of_every_head_comes_once),
        cmocka_unit_test(test_prefill_place_within_a_group_tiles_descend),
        cmocka_unit_test(test_prefill_sequence_empty_sequences_hold_no_tile),
        cmocka_unit_test(test_prefill_blocks_last_row_sees_itself),
        cmocka_unit_test(test_prefill_group_heads_keys_and_values_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
