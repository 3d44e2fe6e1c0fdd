/* tests/kernels/test_mla_split.c - where attention over the paged cache is cut: every page once, by
 * the row's own length only, and nearly as evenly as FlashMLA cuts a whole batch. */
#include "../../kernels/cuda/mla_split.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdlib.h>

/* A page that no block or two blocks read would be a wrong answer for lengths nobody tried. */
static void test_mla_pieces_cover_every_page_once(void **state)
{
    for (uint32_t keys = 1; keys <= 163840; keys += keys < 20000 ? 1 : 61) {
        uint32_t next = 0, pieces = mla_piece_count(keys);
        for (uint32_t piece = 0; piece < pieces; piece++)
            for (uint32_t half = 0; half < 2; half++) {
                mla_pages_t pages = mla_half_pages(mla_piece_pages(keys, piece), half);
                assert_int_equal(pages.first, next);
                assert_true(pages.count <= MLA_PIECE_PAGES / 2);
                assert_true(half == 1 || pages.count > 0);
                next += pages.count;
            }
        assert_int_equal(next, mla_page_count(keys));
    }
}

/* A cluster that gets much longer pieces than the others would be waited for. */
static void test_mla_pieces_differ_by_one_page(void **state)
{
    for (uint32_t keys = 1; keys <= 163840; keys += 97) {
        uint32_t pieces = mla_piece_count(keys), least = mla_page_count(keys) / pieces;
        for (uint32_t piece = 0; piece < pieces; piece++) {
            uint32_t count = mla_piece_pages(keys, piece).count;
            assert_true(count == least || count == least + 1);
        }
    }
}

static void expect_parts(const uint32_t *keys, uint32_t count, const mla_part_t *expected,
                         uint32_t parts, const uint32_t *expected_splits)
{
    mla_part_t plan[8];
    uint32_t splits[8];
    mla_parts_plan(keys, count, plan, parts, splits);
    assert_memory_equal(plan, expected, parts * sizeof *plan);
    assert_memory_equal(splits, expected_splits, (count + 1) * sizeof *splits);
}

/* The yardstick would measure something else: FlashMLA's own numbers for two batches. */
static void test_mla_parts_as_flashmla(void **state)
{
    const uint32_t mixed[] = { 100, 5000, 64 }, mixed_splits[] = { 0, 1, 5, 6 };
    const mla_part_t mixed_parts[] = {
        { 0, 0, 1, 18 }, { 1, 18, 1, 43 }, { 1, 43, 1, 68 }, { 1, 68, 2, 1 }
    };
    expect_parts(mixed, 3, mixed_parts, 4, mixed_splits);
    const uint32_t even[] = { 4096, 4096, 4096, 4096 }, even_splits[] = { 0, 1, 3, 5, 6 };
    const mla_part_t even_parts[] = { { 0, 0, 1, 23 }, { 1, 23, 2, 46 }, { 2, 46, 3, 64 } };
    expect_parts(even, 4, even_parts, 3, even_splits);
}

enum { CLUSTERS = 66, GROUPS = 2 };

static int longest_first(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left < right ? 1 : left > right ? -1 : 0;
}

/* Pages of the busiest SM when each cluster takes the next longest piece. */
static uint32_t busiest_by_pieces(const uint32_t *keys, uint32_t count)
{
    uint32_t pieces[4096], found = 0, loads[CLUSTERS] = { 0 }, busiest = 0;
    for (uint32_t s = 0; s < count; s++)
        for (uint32_t i = 0; i < mla_piece_count(keys[s]) * GROUPS; i++)
            pieces[found++] = mla_half_pages(mla_piece_pages(keys[s], i / GROUPS), 0).count;
    qsort(pieces, found, sizeof *pieces, longest_first);
    for (uint32_t i = 0; i < found; i++) {
        uint32_t least = 0;
        for (uint32_t c = 1; c < CLUSTERS; c++)
            if (loads[c] < loads[least]) least = c;
        loads[least] += pieces[i];
    }
    for (uint32_t c = 0; c < CLUSTERS; c++)
        if (loads[c] > busiest) busiest = loads[c];
    return busiest;
}

/* A fixed split pays for its independence of the batch: a rule that pays more than an eighth of an
 * even share at the sizes we serve (128 heads, 32 to 128 sequences) would lose to FlashMLA. */
static void test_mla_pieces_are_balanced(void **state)
{
    static const uint32_t counts[] = { 32, 64, 128 }, lengths[] = { 4096, 4989, 8192 };
    uint32_t keys[128], random = 1;
    for (uint32_t c = 0; c < 3; c++)
        for (uint32_t l = 0; l < 4; l++) {
            uint32_t count = counts[c], total = 0;
            for (uint32_t s = 0; s < count; s++) {
                random = random * 1664525 + 1013904223;
                keys[s] = l < 3 ? lengths[l] : 500 + (random >> 16) % 8978;
                total += mla_page_count(keys[s]) * GROUPS;
            }
            double even = (double)total / (2 * CLUSTERS);
            /* Fewer random units than clusters: the longest decides. */
            if (l == 3 && count == 32) continue;
            assert_true(busiest_by_pieces(keys, count) < even * 1.125);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mla_pieces_cover_every_page_once),
        cmocka_unit_test(test_mla_pieces_differ_by_one_page),
        cmocka_unit_test(test_mla_parts_as_flashmla),
        cmocka_unit_test(test_mla_pieces_are_balanced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
