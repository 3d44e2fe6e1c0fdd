/* tests/kernels/test_rows.c - the ops that move and convert rows: embedding, rope, the paged cache,
 * casts, gathers, copies. */
#include "checks_attention.h"

#include <complex.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static int make(void **state)
{
    check_t *self = calloc(1, sizeof *self);
    *self = (check_t){ .ops = ops_find("auto"), .q = queue_new_cpu(1 << 20, 1), .random = 11 };
    *state = self;
    return 0;
}

static int drop(void **state)
{
    check_t *self = *state;
    queue_destroy(&self->q);
    free(self);
    return 0;
}

enum { DIM = 8, POSITIONS = 300 };

/* table[position][pair] = e^(i position / 10^pair), as cosine and sine. */
static float *new_rope_table(void)
{
    float *table = malloc(POSITIONS * DIM * sizeof *table);
    for (uint32_t p = 0; p < POSITIONS; p++)
        for (uint32_t i = 0; i < DIM / 2; i++) {
            table[p * DIM + 2 * i] = (float)cos(p * pow(10, -(double)i));
            table[p * DIM + 2 * i + 1] = (float)sin(p * pow(10, -(double)i));
        }
    return table;
}

static double complex rotated(double real, double imaginary, uint32_t position, uint32_t pair)
{
    return (real + imaginary * I) * cexp(I * (double)position * pow(10, -(double)pair));
}

/* Halves instead of interleaved pairs, or the sine's sign the other way, would lose every position.
 */
static void test_rope_equals_complex_multiplication(void **state)
{
    enum { ROWS = 4, HEADS = 3, STRIDE = 13, OFFSET = 5 };
    check_t *self = *state;
    float *table = new_rope_table();
    tensor_t x = random_tensor(self, DTYPE_F32, ROWS, HEADS * STRIDE, 0);
    tensor_t before = new_tensor(DTYPE_F32, ROWS, HEADS * STRIDE, 0);
    memcpy(before.data, x.data, ROWS * x.stride * sizeof(float));
    const uint32_t positions[ROWS] = { 0, 1, 299, 17 };
    assert_int_equal(self->ops->rope(self->q, &x, HEADS, STRIDE, OFFSET, DIM, table, positions), 0);
    for (uint32_t t = 0; t < ROWS; t++)
        for (uint32_t c = 0; c < x.cols; c++) {
            double wanted = element_of(&before, t, c, 0);
            if (c % STRIDE >= OFFSET) {
                uint32_t pair = (c % STRIDE - OFFSET) / 2, even = c - (c % STRIDE - OFFSET) % 2;
                double complex turned =
                    rotated(element_of(&before, t, even, 0), element_of(&before, t, even + 1, 0),
                            positions[t], pair);
                wanted = even == c ? creal(turned) : cimag(turned);
            }
            assert_true(fabs(element_of(&x, t, c, 0) - wanted) < 1e-5);
        }
    free(table);
    free_tensor(&x);
    free_tensor(&before);
}

/* A row written to the wrong page or slot would be another token's memory. */
static void test_kv_write_then_gather_gives_normed_and_rotated_rows(void **state)
{
    enum { LATENT = 20, ROWS = 70, FIRST = 60, FIRST_KEY = 3, KEYS = FIRST_KEY + FIRST + ROWS };
    check_t *self = *state;
    static const uint32_t blocks[] = { 5, 0, 9 };
    const heads_t heads = { .latent = LATENT, .rope = DIM };
    cache_t cache = new_cache(self, &heads, DTYPE_F32);
    size_t pool_bytes = POOL_BLOCKS * cache.block_stride * sizeof(float);
    float *table = new_rope_table(), *before = malloc(pool_bytes);
    memcpy(before, cache.data, pool_bytes);
    tensor_t kv = random_tensor(self, DTYPE_F32, ROWS, LATENT + DIM, 0),
             weight = random_tensor(self, DTYPE_BF16, 1, LATENT, 0);
    tensor_t keys = new_tensor(DTYPE_F32, KEYS, LATENT, 0),
             ropes = new_tensor(DTYPE_F32, KEYS, DIM, 0);
    tensor_t latent = rows_between(&keys, FIRST_KEY + FIRST, KEYS),
             rope = rows_between(&ropes, FIRST_KEY + FIRST, KEYS);
    uint32_t positions[ROWS];
    for (uint32_t t = 0; t < ROWS; t++) positions[t] = FIRST + t;
    sequence_t sequence = {
        .rows = ROWS, .first_position = FIRST, .first_key = FIRST_KEY, .blocks = blocks
    };
    assert_int_equal(
        self->ops->kv_write(self->q, &cache, &kv, &weight, 1e-6F, table, positions, &sequence, 1),
        0);
    assert_int_equal(self->ops->kv_gather(self->q, &keys, &ropes, &cache, &sequence, 1), 0);
    for (uint32_t t = 0; t < ROWS; t++) {
        double squares = 0;
        for (uint32_t c = 0; c < LATENT; c++) squares += pow(element_of(&kv, t, c, 0), 2);
        for (uint32_t c = 0; c < LATENT; c++) {
            double wanted = element_of(&kv, t, c, 0) / sqrt(squares / LATENT + 1e-6) *
                            element_of(&weight, 0, c, 0);
            assert_true(fabs(element_of(&latent, t, c, 0) - wanted) < 1e-5);
            assert_true(cache_element(&cache, &sequence, FIRST + t, c) ==
                        element_of(&latent, t, c, 0));
        }
        for (uint32_t c = 0; c < DIM; c += 2) {
            double complex turned =
                rotated(element_of(&kv, t, LATENT + c, 0), element_of(&kv, t, LATENT + c + 1, 0),
                        FIRST + t, c / 2);
            assert_true(fabs(element_of(&rope, t, c, 0) - creal(turned)) < 1e-5);
            assert_true(fabs(element_of(&rope, t, c + 1, 0) - cimag(turned)) < 1e-5);
        }
    }
    for (uint32_t t = 0; t < FIRST; t++)
        assert_true(cache_element(&cache, &sequence, t, 0) ==
                    element_of(&keys, FIRST_KEY + t, 0, 0));
    size_t changed = 0;
    for (size_t i = 0; i < pool_bytes / sizeof(float); i++)
        changed += before[i] != ((float *)cache.data)[i];
    assert_true(changed <= (size_t)ROWS * (LATENT + DIM));
    free(table);
    free(before);
    free(cache.data);
    free_tensor(&kv);
    free_tensor(&weight);
    free_tensor(&keys);
    free_tensor(&ropes);
}

/* The quantised row must be the nearest codes of x / scale with scale = max(amax, 1e-4) / 448,
 * block by block. */
static void test_cast_to_e4m3_quantises_per_128_columns(void **state)
{
    enum { ROWS = 3, COLS = 300 };
    check_t *self = *state;
    tensor_t x = random_tensor(self, DTYPE_F32, ROWS, COLS, 0),
             out = new_tensor(DTYPE_F8E4M3, ROWS, COLS, 0);
    memset(x.data, 0, 128 * sizeof(float));
    assert_int_equal(self->ops->cast(self->q, &out, &x), 0);
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t first = 0; first < COLS; first += 128) {
            uint32_t last = first + 128 < COLS ? first + 128 : COLS;
            double amax = 1e-4;
            for (uint32_t c = first; c < last; c++)
                amax = fmax(amax, fabs(element_of(&x, r, c, 0)));
            double scale = (double)out.scales[r * out.scale_stride + first / 128];
            assert_true(fabs(scale - amax / 448) <= 1e-6 * scale);
            for (uint32_t c = first; c < last; c++)
                assert_true(fabs(element_of(&out, r, c, 0) - element_of(&x, r, c, 0)) <=
                            fmax(fabs(element_of(&x, r, c, 0)) / 16, scale * 0x1p-10) * 1.0001);
        }
    free_tensor(&x);
    free_tensor(&out);
}

/* A token's row from the table, any dtype; an id beyond the vocabulary must not read beyond the
 * table. */
static void test_embed_takes_rows_and_refuses_unknown_ids(void **state)
{
    check_t *self = *state;
    tensor_t table = random_tensor(self, DTYPE_BF16, 10, 33, 1),
             out = new_tensor(DTYPE_F32, 3, 33, 0);
    const uint32_t ids[] = { 9, 0, 4 }, wrong[] = { 0, 10, 0 };
    assert_int_equal(self->ops->embed(self->q, &out, &table, ids), 0);
    for (uint32_t t = 0; t < 3; t++)
        for (uint32_t c = 0; c < 33; c++)
            assert_true(element_of(&out, t, c, 0) == element_of(&table, ids[t], c, 1));
    assert_int_not_equal(self->ops->embed(self->q, &out, &table, wrong), 0);
    free_tensor(&table);
    free_tensor(&out);
}

/* Expert by expert over all choices, where the tables go choice by choice. */
static void check_route(check_t *self, const route_t *route, uint32_t routers)
{
    uint32_t work = route->tokens * route->top_k, row = 0;
    uint32_t *ids = calloc(work + 1, sizeof *ids), *index = calloc(work + 1, sizeof *index),
             *source = calloc(route->capacity, sizeof *source),
             *first = calloc(route->experts + 1, sizeof *first),
             *rows = calloc(route->experts, sizeof *rows);
    for (uint32_t i = 0; i < work; i++)
        ids[i] = (uint32_t)((uniform(self) + 1) / 2 * (double)routers);
    assert_int_equal(self->ops->route(self->q, first, rows, source, index, ids, route), 0);
    for (uint32_t e = 0; e < route->experts; e++) {
        uint32_t count = 0;
        row = (row + route->align - 1) / route->align * route->align;
        uint32_t begin = row < route->capacity ? row : route->capacity;
        assert_int_equal(first[e], begin);
        for (uint32_t i = 0; i < work; i++) {
            if (ids[i] != route->first_expert + e) continue;
            int is_inside = row < route->capacity;
            assert_int_equal(index[i], is_inside ? row : NO_ROW);
            if (is_inside) assert_int_equal(source[row], i / route->top_k);
            count += (uint32_t)is_inside;
            row++;
        }
        assert_int_equal(rows[e], count);
        for (uint32_t r = begin + count; r < first[e + 1]; r++) assert_int_equal(source[r], NO_ROW);
    }
    for (uint32_t i = 0; i < work; i++)
        if (ids[i] - route->first_expert >= route->experts) assert_int_equal(index[i], NO_ROW);
    for (uint32_t r = first[route->experts]; r < route->capacity; r++)
        assert_int_equal(source[r], NO_ROW);
    free(ids);
    free(index);
    free(source);
    free(first);
    free(rows);
}

/* A token that went to the wrong expert's rows, or two to one row, would be another token's answer.
 */
static void test_route_orders_choices_by_expert(void **state)
{
    check_t *self = *state;
    for (size_t i = 0; i < ops_cpu_choice_count; i++) {
        if (!ops_cpu_choices[i].is_supported()) continue;
        self->ops = ops_cpu_choices[i].ops;
        check_route(self, &(route_t){ 30, 4, 0, 16, 1, 120 }, 16);
        check_route(self, &(route_t){ 25, 3, 8, 5, 16, 200 }, 20);
        check_route(self, &(route_t){ 40, 2, 0, 8, 4, 50 }, 8);
        check_route(self, &(route_t){ 0, 2, 0, 8, 4, 9 }, 8);
    }
}

/* Rows that travel to an expert must be the chosen token's, in the carrier's dtype; padding is left
 * alone. */
static void test_gather_rows_converts_the_chosen_rows(void **state)
{
    check_t *self = *state;
    tensor_t x = random_tensor(self, DTYPE_F32, 6, 140, 0), out = new_tensor(DTYPE_BF16, 4, 140, 0);
    const uint32_t index[] = { 5, 5, NO_ROW, 2 }, wrong[] = { 0, 1, 6, 2 };
    assert_int_equal(self->ops->gather_rows(self->q, &out, &x, index), 0);
    for (uint32_t r = 0; r < 4; r++)
        for (uint32_t c = 0; c < 140; c++)
            assert_int_equal(
                ((uint16_t *)out.data)[r * out.stride + c],
                index[r] == NO_ROW ? 0xffff : bf16_from_f32((float)element_of(&x, index[r], c, 0)));
    assert_int_not_equal(self->ops->gather_rows(self->q, &out, &x, wrong), 0);
    free_tensor(&x);
    free_tensor(&out);
}

/* The residual stream is the sum of everything: an addition that lost its target would forget the
 * prompt. */
static void test_add_sums_into_the_residual(void **state)
{
    check_t *self = *state;
    tensor_t x = random_tensor(self, DTYPE_BF16, 3, 19, 0),
             residual = random_tensor(self, DTYPE_F32, 3, 19, 0);
    double wanted[3 * 19];
    for (uint32_t i = 0; i < 3 * 19; i++)
        wanted[i] = element_of(&x, i / 19, i % 19, 0) + element_of(&residual, i / 19, i % 19, 0);
    assert_int_equal(self->ops->add(self->q, &residual, &x), 0);
    compare(self, "add", &residual, wanted, 1e-7);
    assert_int_equal(self->failures, 0);
    free_tensor(&x);
    free_tensor(&residual);
}

/* KV blocks move between pools whole: one block too few is a hole in a conversation. */
static void test_copy_blocks_moves_the_named_blocks_only(void **state)
{
    enum { BYTES = 96, BLOCKS = 6 };
    check_t *self = *state;
    uint8_t source[BLOCKS * BYTES], target[BLOCKS * BYTES];
    for (uint32_t i = 0; i < sizeof source; i++) {
        source[i] = (uint8_t)(i / BYTES + 1);
        target[i] = 0xee;
    }
    const uint32_t to[] = { 4, 1 }, from[] = { 0, 5 };
    assert_int_equal(self->ops->copy_blocks(self->q, target, source, to, from, 2, BYTES), 0);
    for (uint32_t i = 0; i < sizeof target; i++)
        assert_int_equal(target[i], i / BYTES == 4 ? 1 : i / BYTES == 1 ? 6 : 0xee);
}

/* Too little scratch must be said, not written beyond. */
static void test_ops_without_scratch_report_no_memory(void **state)
{
    check_t *self = *state;
    queue_t *small = queue_new_cpu(64, 1);
    tensor_t x = random_tensor(self, DTYPE_F32, 2, 100, 0),
             weight = random_tensor(self, DTYPE_BF16, 1, 100, 0);
    tensor_t w = random_tensor(self, DTYPE_F8E4M3, 40, 100, 1),
             out = new_tensor(DTYPE_F32, 2, 40, 0);
    assert_int_not_equal(self->ops->rmsnorm(small, &x, &x, &weight, 1e-6F), 0);
    assert_int_not_equal(ops_judge.gemm(small, &out, &x, &w), 0);
    prepare_weights(self, &w);
    assert_int_not_equal(self->ops->gemm(small, &out, &x, &w), 0);
    free_tensor(&x);
    free_tensor(&weight);
    free_tensor(&w);
    free_tensor(&out);
    queue_destroy(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rope_equals_complex_multiplication, make, drop),
        cmocka_unit_test_setup_teardown(test_kv_write_then_gather_gives_normed_and_rotated_rows,
                                        make, drop),
        cmocka_unit_test_setup_teardown(test_cast_to_e4m3_quantises_per_128_columns, make, drop),
        cmocka_unit_test_setup_teardown(test_embed_takes_rows_and_refuses_unknown_ids, make, drop),
        cmocka_unit_test_setup_teardown(test_route_orders_choices_by_expert, make, drop),
        cmocka_unit_test_setup_teardown(test_gather_rows_converts_the_chosen_rows, make, drop),
        cmocka_unit_test_setup_teardown(test_add_sums_into_the_residual, make, drop),
        cmocka_unit_test_setup_teardown(test_copy_blocks_moves_the_named_blocks_only, make, drop),
        cmocka_unit_test_setup_teardown(test_ops_without_scratch_report_no_memory, make, drop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
