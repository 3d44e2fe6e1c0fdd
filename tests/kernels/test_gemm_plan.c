/* tests/kernels/test_gemm_plan.c - how FP8 products of many rows are cut into tiles on CUDA: were
 * an order of tiles wrong, results would be missing or computed twice, on the GPU only. */
#include "../../kernels/cuda/gemm_choose.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SM_COUNT = 132 };

/* Every tile of every grid comes exactly once. */
static void test_gemm_tiles_every_tile_comes_once(void **state)
{
    for (uint32_t rows = 1; rows < 40; rows++)
        for (uint32_t cols = 1; cols < 20; cols++)
            for (uint32_t panel = 1; panel < 18; panel += 5) {
                unsigned char seen[40][20] = { { 0 } };
                gemm_walk_t walk = { 0 };
                for (uint32_t index = 0; index < rows * cols; index++) {
                    gemm_place_t place = gemm_place(&walk, index, rows, cols, panel);
                    assert_true(place.row_tile < rows && place.col_tile < cols);
                    assert_int_equal(seen[place.row_tile][place.col_tile]++, 0);
                }
            }
}

/* A block takes every 66th tile and finds the same places as one that takes all. */
static void test_gemm_tiles_skipping_finds_the_same_places(void **state)
{
    enum { ROWS = 37, COLS = 28, PANEL = 8 };
    for (uint32_t begin = 0; begin < 66; begin++) {
        gemm_walk_t walk = { 0 };
        for (uint32_t index = begin; index < ROWS * COLS; index += 66) {
            gemm_walk_t fresh = { 0 };
            gemm_place_t place = gemm_place(&walk, index, ROWS, COLS, PANEL);
            gemm_place_t wanted = gemm_place(&fresh, index, ROWS, COLS, PANEL);
            assert_int_equal(place.row_tile, wanted.row_tile);
            assert_int_equal(place.col_tile, wanted.col_tile);
        }
    }
}

/* The tiles that run at one time read few rows and columns between them, or the L2 cache is missed.
 */
static void test_gemm_tiles_what_runs_at_one_time_is_compact(void **state)
{
    enum { ROWS = 16, COLS = 28, PANEL = 8, RUNNING = 66 };
    for (uint32_t begin = 0; begin + RUNNING <= ROWS * COLS; begin += RUNNING) {
        unsigned char has_row[ROWS] = { 0 }, has_col[COLS] = { 0 };
        uint32_t rows = 0, cols = 0;
        gemm_walk_t walk = { 0 };
        for (uint32_t index = begin; index < begin + RUNNING; index++) {
            gemm_place_t place = gemm_place(&walk, index, ROWS, COLS, PANEL);
            rows += !has_row[place.row_tile];
            cols += !has_col[place.col_tile];
            has_row[place.row_tile] = has_col[place.col_tile] = 1;
        }
        assert_true(rows + cols <= 26);
    }
}

static gemm_shape_t chosen(uint32_t rows, uint32_t cols, uint32_t k, uint32_t groups)
{
    gemm_size_t size = { rows, cols, k, groups };
    return gemm_shapes[gemm_choose(&size, SM_COUNT)];
}

/* Nothing chosen is slower, by the table's own figures, than another shape. */
static void test_gemm_choose_takes_the_cheapest(void **state)
{
    for (uint32_t rows = 1; rows < 9000; rows = rows * 3 / 2 + 1)
        for (uint32_t cols = 8; cols < 40000; cols = cols * 2 + 8) {
            gemm_size_t size = { rows, cols, 7168, 3 };
            const gemm_shape_t *best = &gemm_shapes[gemm_choose(&size, SM_COUNT)];
            for (size_t i = 0; i < sizeof gemm_shapes / sizeof *gemm_shapes; i++)
                assert_true(gemm_time(best, &size, SM_COUNT) <=
                            gemm_time(&gemm_shapes[i], &size, SM_COUNT));
        }
}

/* Large products take the largest tile; few rows do not leave most multiprocessors idle. */
static void test_gemm_choose_knows_large_and_small(void **state)
{
    assert_int_equal(chosen(4096, 7168, 16384, 1).rows, 256);
    assert_int_equal(chosen(8192, 4096, 7168, 4).rows, 256);
    assert_int_equal(chosen(256, 2112, 7168, 1).rows, 128);
}

/* The tiles that were fastest where groups of 128 rows are bound by memory, see kernels/NOTES.md.
 */
static void test_gemm_choose_knows_groups_of_a_tile(void **state)
{
    assert_int_equal(chosen(128, 4096, 7168, 9).cols, 112);
    assert_int_equal(chosen(128, 7168, 2048, 9).cols, 128);
    assert_int_equal(chosen(128, 4096, 7168, 4).cols, 128);
    assert_int_equal(chosen(128, 7168, 2048, 2).cols, 128);
    assert_int_equal(chosen(128, 32768, 512, 1).cols, 128);
}

static int is_few(uint32_t rows, uint32_t cols, uint32_t groups)
{
    gemm_size_t size = { rows, cols, 7168, groups };
    return gemm_is_few(&size, SM_COUNT);
}

/* Where the kernel for few rows was the faster one, see kernels/NOTES.md. */
static void test_gemm_choose_knows_few_rows(void **state)
{
    assert_true(is_few(1, 32768, 1));
    assert_true(is_few(64, 7168, 9));
    assert_true(is_few(65, 7168, 1));
    assert_true(is_few(128, 24576, 1));
    assert_false(is_few(128, 32768, 1));
    assert_true(is_few(128, 4096, 2));
    assert_false(is_few(128, 7168, 2));
    assert_false(is_few(129, 2112, 1));
}

/* Groups whose rows nobody told have as many as there are on average, and never none. */
static void test_gemm_choose_sizes_groups(void **state)
{
    tensor_t x = { .rows = 1024, .cols = 512 }, w = { .rows = 4096, .cols = 512 };
    groups_t groups = { .count = 8 };
    gemm_size_t size = gemm_size(&x, &w, &groups);
    assert_int_equal(size.rows, 128);
    assert_int_equal(size.cols, 4096);
    assert_int_equal(size.k, 512);
    assert_int_equal(size.groups, 8);
    groups.expected_rows = 7;
    assert_int_equal(gemm_size(&x, &w, &groups).rows, 7);
    groups = (groups_t){ .count = 2048 };
    assert_int_equal(gemm_size(&x, &w, &groups).rows, 1);
    assert_int_equal(gemm_size(&x, &w, NULL).rows, 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm_tiles_every_tile_comes_once),
        cmocka_unit_test(test_gemm_tiles_skipping_finds_the_same_places),
        cmocka_unit_test(test_gemm_tiles_what_runs_at_one_time_is_compact),
        cmocka_unit_test(test_gemm_choose_takes_the_cheapest),
        cmocka_unit_test(test_gemm_choose_knows_large_and_small),
        cmocka_unit_test(test_gemm_choose_knows_groups_of_a_tile),
        cmocka_unit_test(test_gemm_choose_knows_few_rows),
        cmocka_unit_test(test_gemm_choose_sizes_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
