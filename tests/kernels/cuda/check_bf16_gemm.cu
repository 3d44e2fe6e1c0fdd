/* tests/kernels/cuda/check_bf16_gemm.cu - checks and timings of products of BF16. */
#include "families.h"
#include "harness.cuh"
#include "naive_bf16_gemm.cuh"

#include "../../../kernels/cuda/gemm_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows lie further apart than they are long: what is between must stay. */
static tensor_t with_gap(dtype_t dtype, uint32_t rows, uint32_t cols)
{
    tensor_t x = tensor_new(dtype, rows, (cols + 15) / 8 * 8, false);
    x.cols = cols;
    return x;
}

static bool is_gap_untouched(const tensor_t *x)
{
    size_t size = x->dtype == DTYPE_F32 ? 4 : 2, gap = (x->stride - x->cols) * size;
    unsigned char *rows = (unsigned char *)malloc(x->rows * x->stride * size + 1);
    bool is_good = true;
    memory_download(rows, x->data, x->rows * x->stride * size);
    for (uint32_t r = 0; r < x->rows; r++)
        for (size_t i = 0; i < gap; i++)
            is_good &= rows[(r * x->stride + x->cols) * size + i] == 0xff;
    free(rows);
    return is_good;
}

static tensor_t slice(const tensor_t *x, uint32_t row, uint32_t rows)
{
    tensor_t part = *x;
    part.data = (char *)x->data + row * x->stride * (x->dtype == DTYPE_F32 ? 4 : 2);
    part.rows = rows;
    return part;
}

static void check_naive(harness_t *self, dtype_t dtype, const tensor_t *x, const tensor_t *w)
{
    char what[96];
    snprintf(what, sizeof what, "bf16_gemm %ux%ux%u to %s", x->rows, w->rows, x->cols,
             dtype == DTYPE_F32 ? "F32" : "BF16");
    tensor_t out = with_gap(dtype, x->rows, w->rows);
    tensor_t naive = tensor_new(DTYPE_F32, x->rows, w->rows, false);
    expect(self, bf16_gemm(self->q, &out, x, w) == 0, what, 1, 0);
    queue_demand(self, what);
    LAUNCH(naive_bf16_gemm, (dim3((w->rows + 127) / 128, x->rows), 128), (float *)naive.data,
           (const __nv_bfloat16 *)x->data, x->stride, (const __nv_bfloat16 *)w->data, w->stride,
           w->rows, x->cols);
    CUDA(cudaGetLastError());
    tensor_t found = tensor_to_host(&out, false), wanted = tensor_to_host(&naive, false);
    double allowed = dtype == DTYPE_F32 ? 2e-5 : 3e-3;
    double error = difference_relative(&found, &wanted);
    expect(self, error < allowed, what, error, allowed);
    expect(self, is_gap_untouched(&out), "bf16_gemm leaves gaps alone", 1, 0);
    tensor_host_free(&found);
    tensor_host_free(&wanted);
}

static void check_judge(harness_t *self, uint32_t rows, uint32_t cols, uint32_t depth)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, depth, false);
    tensor_t w = tensor_random(self, DTYPE_BF16, cols, depth, true);
    tensor_t out = tensor_new(DTYPE_F32, rows, cols, false);
    expect(self, bf16_gemm(self->q, &out, &x, &w) == 0, "bf16_gemm accepts", 1, 0);
    queue_demand(self, "bf16_gemm");
    tensor_t host_x = tensor_to_host(&x, false), host_w = tensor_to_host(&w, true);
    tensor_t found = tensor_to_host(&out, false), wanted = tensor_host_new(DTYPE_F32, rows, cols);
    expect(self, ops_judge.gemm(self->cpu, &wanted, &host_x, &host_w) == 0, "judge", 1, 0);
    double error = difference_relative(&found, &wanted);
    expect(self, error < 2e-5, "bf16_gemm against the judge", error, 2e-5);
    for (tensor_t *tensor : { &host_x, &host_w, &found, &wanted }) tensor_host_free(tensor);
}

/* Every row by itself, and the batch cut anywhere, gives the bits of the whole batch: across tile
 * shapes too, which change at 64 and 128 rows. */
static void check_invariance(harness_t *self, uint32_t cols, uint32_t depth)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, 300, depth, false);
    tensor_t w = tensor_random(self, DTYPE_BF16, cols, depth, true);
    tensor_t whole = tensor_new(DTYPE_F32, 300, cols, false);
    expect(self, bf16_gemm(self->q, &whole, &x, &w) == 0, "bf16_gemm accepts", 1, 0);
    queue_demand(self, "bf16_gemm");
    tensor_t wanted = tensor_to_host(&whole, false);
    static const uint32_t cuts[][2] = { { 0, 1 }, { 299, 1 }, { 77, 8 }, { 130, 64 }, { 5, 100 } };
    for (const uint32_t *cut : cuts) {
        tensor_t own_x = slice(&x, cut[0], cut[1]),
                 out = tensor_new(DTYPE_F32, cut[1], cols, false);
        expect(self, bf16_gemm(self->q, &out, &own_x, &w) == 0, "bf16_gemm accepts", 1, 0);
        queue_demand(self, "bf16_gemm");
        tensor_t found = tensor_to_host(&out, false), own_wanted = slice(&wanted, cut[0], cut[1]);
        expect(self, is_same_bits(&found, &own_wanted), "bf16_gemm of a part of the batch", cut[1],
               0);
        tensor_host_free(&found);
    }
    tensor_host_free(&wanted);
}

static void check_refusals(harness_t *self)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, 4, 256, false);
    tensor_t w = tensor_random(self, DTYPE_BF16, 64, 256, true);
    tensor_t out = tensor_new(DTYPE_F32, 4, 64, false), bad = x;
    bad.cols = 128;
    expect(self, bf16_gemm(self->q, &out, &bad, &w) == EINVAL, "bf16_gemm refuses another k", 1, 0);
    bad = x;
    bad.stride = 257;
    expect(self, bf16_gemm(self->q, &out, &bad, &w) == EINVAL, "bf16_gemm refuses bad rows", 1, 0);
    bad = slice(&x, 0, 0);
    tensor_t none = slice(&out, 0, 0);
    expect(self, bf16_gemm(self->q, &none, &bad, &w) == 0, "bf16_gemm of no rows", 1, 0);
}

static void check_shape(harness_t *self, uint32_t rows, uint32_t cols, uint32_t depth)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, depth, false);
    tensor_t w = tensor_random(self, DTYPE_BF16, cols, depth, true);
    check_naive(self, DTYPE_F32, &x, &w);
    check_naive(self, DTYPE_BF16, &x, &w);
}

void run_small_checks_bf16_gemm(harness_t *self)
{
    check_refusals(self);
    check_shape(self, 1, 72, 64);
    check_shape(self, 65, 130, 200);
    check_shape(self, 130, 40, 72);
    check_judge(self, 3, 256, 256);
}

void run_checks_bf16_gemm(harness_t *self)
{
    run_small_checks_bf16_gemm(self);
    static const uint32_t rows[] = { 1, 8, 63, 64, 65, 128, 129, 300 };
    for (uint32_t count : rows) {
        check_shape(self, count, 4096, 256);
        check_shape(self, count, 1001, 264);
        check_shape(self, count, 7168, 1024);
        check_shape(self, count, 33000, 128);
        memory_free_all();
    }
    check_invariance(self, 4096, 256);
    check_invariance(self, 20000, 7168);
    memory_free_all();
    check_shape(self, 3, 129280, 7168);
    memory_free_all();
    check_shape(self, 66, 7168, 14336);
    check_shape(self, 1024, 2112, 7168);
    check_judge(self, 2, 4096, 256);
}

struct bf16_product_t {
    harness_t *harness;
    tensor_t out, x, w[16];
};

static int multiply(void *context, uint32_t variant)
{
    bf16_product_t *self = (bf16_product_t *)context;
    return bf16_gemm(self->harness->q, &self->out, &self->x, &self->w[variant]);
}

static void time_shape(harness_t *self, uint32_t rows, uint32_t cols, uint32_t depth, double anchor)
{
    bf16_product_t context = { self,
                               tensor_new(DTYPE_F32, rows, cols, false),
                               tensor_random(self, DTYPE_BF16, rows, depth, false),
                               {} };
    double bytes = 2.0 * cols * depth;
    uint32_t variants = bytes > 200e6 ? 1 : bytes > 40e6 ? 3 : 12;
    for (uint32_t i = 0; i < variants; i++)
        context.w[i] = tensor_random(self, DTYPE_BF16, cols, depth, true);
    timing_t timing = { "bf16_gemm",
                        "",
                        time_call(self, multiply, &context, variants),
                        bytes + 2.0 * rows * depth + 4.0 * rows * cols,
                        2.0 * rows * cols * depth,
                        anchor,
                        false };
    snprintf(timing.shape, sizeof timing.shape, "%ux%ux%u", rows, cols, depth);
    report(self, &timing);
    memory_free_all();
}

void run_timings_bf16_gemm(harness_t *self)
{
    static const uint32_t rows[] = { 1, 16, 64, 128 };
    for (uint32_t count : rows) time_shape(self, count, 129280, 7168, 0);
    time_shape(self, 64, 7168, 14336, 0);
    time_shape(self, 128, 7168, 14336, 0);
    time_shape(self, 128, 4096, 256, 0);
    time_shape(self, 4096, 7168, 2048, 2.0 * 4096 * 7168 * 2048 / 667e6);
    time_shape(self, 8192, 8192, 8192, 2.0 * 8192 * 8192 * 8192 / 781e6);
    time_shape(self, 4096, 129280, 7168, 2.0 * 4096 * 129280 * 7168 / 781e6);
}
