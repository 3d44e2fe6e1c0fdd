/* tests/kernels/checks.h - what the checks of ops are made of: random tensors, comparison with sums
 * in double, a count of failures. */
#ifndef TESTS_KERNELS_CHECKS_H
#define TESTS_KERNELS_CHECKS_H

#include "kernels/cpu/number.h"
#include "kernels/cpu/queue.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a run of the checks has found; `hash` covers the bits of every output. */
typedef struct {
    const ops_t *ops;
    queue_t *q;
    double gemm_tolerance; /* relative L2 error of matrix products */
    uint64_t random, hash;
    int failures, checks;
} check_t;

static inline double uniform(check_t *self)
{
    self->random += 0x9e3779b97f4a7c15U;
    uint64_t z = self->random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53 * 2 - 1;
}

static inline void expect(check_t *self, int is_good, const char *what, double found,
                          double allowed)
{
    self->checks++;
    if (is_good) return;
    self->failures++;
    printf("FAILED %s: %s: found %g, allowed %g\n", self->ops->name, what, found, allowed);
}

static inline void hash_bytes(check_t *self, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        self->hash = (self->hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3U;
}

/* Scratch full of NaN: an op that reads what it has not written shows it. */
static inline void poison_scratch(check_t *self)
{
    queue_reset(self->q);
    size_t bytes = queue_left(self->q);
    memset(queue_take(self->q, bytes), 0xff, bytes);
    queue_reset(self->q);
}

enum { EXTRA_COLS = 5 };

static inline size_t bytes_of(dtype_t dtype)
{
    return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_BF16 ? 2 : 1;
}

/* A tensor on the heap, all NaN, rows EXTRA_COLS apart; weights have scales per 128 x 128,
 * activations per row. */
static inline tensor_t new_tensor(dtype_t dtype, uint32_t rows, uint32_t cols, int is_weight)
{
    tensor_t x = { .dtype = dtype, .rows = rows, .cols = cols, .stride = cols + EXTRA_COLS };
    size_t bytes = ((size_t)rows * x.stride + 1) * bytes_of(dtype);
    x.data = malloc(bytes);
    memset(x.data, 0xff, bytes);
    if (dtype == DTYPE_F8E4M3) {
        x.scale_stride = (cols + 127) / 128;
        uint32_t scale_rows = is_weight ? (rows + 127) / 128 : rows;
        x.scales = malloc(((size_t)scale_rows * x.scale_stride + 1) * sizeof(float));
    }
    return x;
}

static inline void free_tensor(tensor_t *x)
{
    free(x->data);
    free(x->scales);
    free((void *)(uintptr_t)x->packed);
    *x = (tensor_t){ 0 };
}

/* The value of an element; `is_weight` says how scales lie. */
static inline double element_of(const tensor_t *x, uint32_t row, uint32_t col, int is_weight)
{
    size_t at = (size_t)row * x->stride + col;
    if (x->dtype == DTYPE_F32) return (double)((const float *)x->data)[at];
    if (x->dtype == DTYPE_BF16) return (double)f32_from_bf16(((const uint16_t *)x->data)[at]);
    uint32_t bits = ((const uint8_t *)x->data)[at], exponent = bits >> 3 & 15;
    double value = exponent ? ldexp(8 + (bits & 7), (int)exponent - 10) : ldexp(bits & 7, -9);
    double scale =
        (double)x->scales[(size_t)(is_weight ? row / 128 : row) * x->scale_stride + col / 128];
    return (bits & 0x80 ? -value : value) * scale;
}

static inline tensor_t random_tensor(check_t *self, dtype_t dtype, uint32_t rows, uint32_t cols,
                                     int is_weight)
{
    tensor_t x = new_tensor(dtype, rows, cols, is_weight);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < cols; c++) {
            size_t at = (size_t)r * x.stride + c;
            float value = (float)(uniform(self) + uniform(self));
            if (dtype == DTYPE_F32) ((float *)x.data)[at] = value;
            if (dtype == DTYPE_BF16) ((uint16_t *)x.data)[at] = bf16_from_f32(value);
            if (dtype == DTYPE_F8E4M3) ((uint8_t *)x.data)[at] = e4m3_from_f32(value * 200);
        }
    if (dtype != DTYPE_F8E4M3) return x;
    for (uint32_t i = 0; i < (is_weight ? (rows + 127) / 128 : rows) * x.scale_stride; i++)
        x.scales[i] = (float)(0.004 + 0.003 * uniform(self));
    return x;
}

static inline void prepare_weights(const check_t *self, tensor_t *w)
{
    size_t bytes = 0;
    if (self->ops->prepare_size(w, &bytes) != 0 || bytes == 0) return;
    void *packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(packed, 0xff, bytes);
    if (self->ops->prepare(w, packed) != 0) abort();
    w->packed = packed;
}

/* Compares an output with what it should be, and that nothing between its rows was touched. */
static inline void compare(check_t *self, const char *what, const tensor_t *out,
                           const double *wanted, double tolerance)
{
    double error = 0, size = 0;
    int is_clean = 1;
    for (uint32_t r = 0; r < out->rows; r++) {
        for (uint32_t c = 0; c < out->cols; c++) {
            double target = wanted[(size_t)r * out->cols + c],
                   difference = element_of(out, r, c, 0) - target;
            error += difference * difference;
            size += target * target;
        }
        const uint8_t *gap = (const uint8_t *)out->data +
                             ((size_t)r * out->stride + out->cols) * bytes_of(out->dtype);
        for (size_t i = 0; i < EXTRA_COLS * bytes_of(out->dtype); i++) is_clean &= gap[i] == 0xff;
        hash_bytes(self,
                   (const uint8_t *)out->data + (size_t)r * out->stride * bytes_of(out->dtype),
                   out->cols * bytes_of(out->dtype));
    }
    double relative = size > 0 ? sqrt(error / size) : sqrt(error);
    expect(self, relative <= tolerance, what, relative, tolerance);
    expect(self, is_clean, "written beyond the columns of a row", 1, 0);
}

static inline tensor_t rows_between(const tensor_t *x, uint32_t first, uint32_t last)
{
    tensor_t part = *x;
    part.data = (char *)x->data + (size_t)first * x->stride * bytes_of(x->dtype);
    part.rows = last - first;
    if (x->scales) part.scales = x->scales + (size_t)first * x->scale_stride;
    return part;
}

static inline int is_same_rows(const tensor_t *a, const tensor_t *b)
{
    for (uint32_t r = 0; r < a->rows; r++)
        if (memcmp((char *)a->data + (size_t)r * a->stride * bytes_of(a->dtype),
                   (char *)b->data + (size_t)r * b->stride * bytes_of(b->dtype),
                   a->cols * bytes_of(a->dtype)) != 0)
            return 0;
    return 1;
}

#endif
