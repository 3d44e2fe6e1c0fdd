/* tests/kernels/checks_gemm.h - matrix products, plain and grouped, against sums in double. */
#ifndef TESTS_KERNELS_CHECKS_GEMM_H
#define TESTS_KERNELS_CHECKS_GEMM_H

#include "checks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint32_t m, n, k;
    dtype_t x, w, out;
} gemm_shape_t;

static inline double *wanted_product(const tensor_t *x, const tensor_t *w)
{
    double *wanted = calloc((size_t)x->rows * w->rows + 1, sizeof *wanted);
    for (uint32_t m = 0; m < x->rows; m++)
        for (uint32_t n = 0; n < w->rows; n++)
            for (uint32_t k = 0; k < x->cols; k++)
                wanted[(size_t)m * w->rows + n] += element_of(x, m, k, 0) * element_of(w, n, k, 1);
    return wanted;
}

static inline void check_gemm(check_t *self, const gemm_shape_t *shape)
{
    tensor_t x = random_tensor(self, shape->x, shape->m, shape->k, 0);
    tensor_t w = random_tensor(self, shape->w, shape->n, shape->k, 1);
    tensor_t out = new_tensor(shape->out, shape->m, shape->n, 0),
             alone = new_tensor(shape->out, 1, shape->n, 0);
    prepare_weights(self, &w);
    poison_scratch(self);
    char what[100];
    snprintf(what, sizeof what, "gemm m %u n %u k %u dtypes %d %d %d", shape->m, shape->n, shape->k,
             shape->x, shape->w, shape->out);
    expect(self, self->ops->gemm(self->q, &out, &x, &w) == 0, what, 1, 0);
    double *wanted = wanted_product(&x, &w);
    compare(self, what, &out, wanted, self->gemm_tolerance + (shape->out == DTYPE_BF16 ? 4e-3 : 0));
    for (uint32_t m = 0; m < shape->m; m += 1 + m / 3) {
        tensor_t row = rows_between(&x, m, m + 1), in_batch = rows_between(&out, m, m + 1);
        expect(self, self->ops->gemm(self->q, &alone, &row, &w) == 0, what, 1, 0);
        expect(self, is_same_rows(&alone, &in_batch),
               "a row alone differs from the row in its batch", m, 0);
    }
    free(wanted);
    free_tensor(&x);
    free_tensor(&w);
    free_tensor(&out);
    free_tensor(&alone);
}

/* Large enough for several passes over the rows and groups of columns, and for results that leave
 * past the caches: lines of 64 bytes, without gaps.  Bits are those of rows alone, and a row alone
 * is right in every column. */
static inline void check_large_gemm(check_t *self, dtype_t dtype)
{
    enum { ROWS = 490, COLS = 1088, DEPTH = 160 };
    tensor_t x = random_tensor(self, DTYPE_F32, ROWS, DEPTH, 0);
    tensor_t w = random_tensor(self, dtype, COLS, DEPTH, 1);
    tensor_t out = { .dtype = DTYPE_F32, .rows = ROWS, .cols = COLS, .stride = COLS },
             alone = new_tensor(DTYPE_F32, 1, COLS, 0);
    size_t bytes = sizeof(float) * ROWS * COLS;
    out.data = aligned_alloc(64, bytes);
    memset(out.data, 0xff, bytes);
    prepare_weights(self, &w);
    poison_scratch(self);
    expect(self, self->ops->gemm(self->q, &out, &x, &w) == 0, "a large gemm", 1, 0);
    for (uint32_t m = 0; m < ROWS; m += 1 + m / 3) {
        tensor_t row = rows_between(&x, m, m + 1), in_batch = rows_between(&out, m, m + 1);
        expect(self, self->ops->gemm(self->q, &alone, &row, &w) == 0, "a row of it", 1, 0);
        expect(self, is_same_rows(&alone, &in_batch),
               "a row alone differs from that of a large gemm", m, 0);
        if (m > 0) continue;
        double *wanted = wanted_product(&row, &w);
        compare(self, "a row of a large gemm", &alone, wanted, self->gemm_tolerance);
        free(wanted);
    }
    free_tensor(&x);
    free_tensor(&w);
    free_tensor(&out);
    free_tensor(&alone);
}

static inline void check_gemms(check_t *self)
{
    static const uint32_t sizes[][3] = { { 1, 3, 130 },    { 1, 1, 1 },      { 2, 256, 256 },
                                         { 3, 129, 96 },   { 37, 100, 65 },  { 13, 33, 300 },
                                         { 64, 288, 256 }, { 250, 70, 129 }, { 16, 64, 513 },
                                         { 17, 576, 520 }, { 530, 64, 288 }, { 31, 300, 600 } };
    static const dtype_t dtypes[] = { DTYPE_F32, DTYPE_BF16, DTYPE_F8E4M3 };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (size_t w = 0; w < 3; w++)
            check_gemm(self, &(gemm_shape_t){ sizes[i][0], sizes[i][1], sizes[i][2], DTYPE_F32,
                                              dtypes[w], DTYPE_F32 });
    /* Each number of few rows has a loop of its own; the last pair of k is half a pair. */
    for (uint32_t m = 1; m <= 14; m++)
        for (size_t w = 0; w < 3; w++)
            check_gemm(self, &(gemm_shape_t){ m, 168, 301, DTYPE_F32, dtypes[w], DTYPE_F32 });
    check_gemm(self, &(gemm_shape_t){ 5, 70, 200, DTYPE_BF16, DTYPE_F8E4M3, DTYPE_F32 });
    check_gemm(self, &(gemm_shape_t){ 35, 70, 200, DTYPE_F8E4M3, DTYPE_F8E4M3, DTYPE_BF16 });
    check_gemm(self, &(gemm_shape_t){ 35, 64, 256, DTYPE_F32, DTYPE_BF16, DTYPE_BF16 });
    for (size_t w = 0; w < 3; w++) check_large_gemm(self, dtypes[w]);
}

/* Groups: empty ones, one row, all rows in one; each must equal the plain product to the bit. */
static inline void check_grouped_gemm(check_t *self, const uint32_t *offsets, uint32_t groups)
{
    enum { N = 70, K = 136, GROUPS_MAX = 8 };
    uint32_t rows = offsets[groups];
    tensor_t x = random_tensor(self, DTYPE_F32, rows, K, 0),
             out = new_tensor(DTYPE_F32, rows, N, 0);
    tensor_t plain = new_tensor(DTYPE_F32, rows, N, 0), w[GROUPS_MAX];
    for (uint32_t g = 0; g < groups; g++) {
        w[g] = random_tensor(self, g % 2 ? DTYPE_F8E4M3 : DTYPE_BF16, N, K, 1);
        prepare_weights(self, &w[g]);
    }
    poison_scratch(self);
    groups_t ranges = { .first = offsets, .count = groups };
    expect(self, self->ops->grouped_gemm(self->q, &out, &x, w, &ranges) == 0, "grouped_gemm", 1, 0);
    for (uint32_t g = 0; g < groups; g++) {
        tensor_t part = rows_between(&x, offsets[g], offsets[g + 1]);
        tensor_t wanted = rows_between(&plain, offsets[g], offsets[g + 1]);
        expect(self, self->ops->gemm(self->q, &wanted, &part, &w[g]) == 0, "gemm of a group", 1, 0);
        free_tensor(&w[g]);
    }
    expect(self, is_same_rows(&out, &plain), "grouped_gemm differs from gemm", 1, 0);
    free_tensor(&x);
    free_tensor(&out);
    free_tensor(&plain);
}

static inline void check_grouped_gemms(check_t *self)
{
    check_grouped_gemm(self, (const uint32_t[]){ 0, 0, 1, 1, 18, 18 }, 5);
    check_grouped_gemm(self, (const uint32_t[]){ 0, 0, 40, 40 }, 3);
    check_grouped_gemm(self, (const uint32_t[]){ 0, 1, 2, 3, 4, 5, 6, 7, 8 }, 8);
    check_grouped_gemm(self, (const uint32_t[]){ 0, 0 }, 1);
}

#endif
