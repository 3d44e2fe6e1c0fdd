/* tests/kernels/cuda/naive_mha_prefill.cuh - causal attention of chosen rows, one block of threads
 * a row and head, sums in double: what the fast kernel is held against at full size. */
#ifndef TESTS_KERNELS_CUDA_NAIVE_MHA_PREFILL_CUH
#define TESTS_KERNELS_CUDA_NAIVE_MHA_PREFILL_CUH

#include "../../../kernels/cuda/hopper.cuh"
#include "../../../kernels/ops.h"

#include <cuda_bf16.h>

/* One chosen row: where it lies and what it sees. */
struct naive_row_t {
    uint32_t row, first_key, keys;
};

struct naive_prefill_t {
    const __nv_bfloat16 *query, *kv, *k_rope;
    size_t query_stride, kv_stride, rope_stride;
    uint32_t heads;
    float scale;
};

/* Of a block of 128 threads; every thread gets the result. */
template <typename combine_t>
__device__ double naive_reduce(double *room, double x, combine_t combine)
{
    __syncthreads();
    room[threadIdx.x] = x;
    __syncthreads();
    for (int step = 64; step > 0; step /= 2) {
        if (threadIdx.x < step)
            room[threadIdx.x] = combine(room[threadIdx.x], room[threadIdx.x + step]);
        __syncthreads();
    }
    return room[0];
}

/* out, magnitude [gridDim.x][heads * 128]: the result, and the same sum of absolute values, by
 * which errors of rounding are measured.  Shared memory: a double for each key. */
__global__ static void naive_mha_prefill(naive_prefill_t x, const naive_row_t *rows, float *out,
                                         float *magnitude)
{
    DYNAMIC_SHARED(double, naive_scores, 16);
    __shared__ double room[128];
    naive_row_t row = rows[blockIdx.x];
    uint32_t head = blockIdx.y;
    const __nv_bfloat16 *query = x.query + row.row * x.query_stride + head * 192;
    const __nv_bfloat16 *kv = x.kv + row.first_key * x.kv_stride + head * 256;
    const __nv_bfloat16 *rope = x.k_rope + row.first_key * x.rope_stride;
    double max = -INFINITY;
    for (uint32_t key = threadIdx.x; key < row.keys; key += 128) {
        double sum = 0;
        for (int i = 0; i < 128; i++)
            sum += (double)__bfloat162float(query[i]) *
                   (double)__bfloat162float(kv[key * x.kv_stride + i]);
        for (int i = 0; i < 64; i++)
            sum += (double)__bfloat162float(query[128 + i]) *
                   (double)__bfloat162float(rope[key * x.rope_stride + i]);
        naive_scores[key] = sum * (double)x.scale;
        max = fmax(max, naive_scores[key]);
    }
    max = naive_reduce(room, max, [](double a, double b) { return fmax(a, b); });
    double total = 0;
    for (uint32_t key = threadIdx.x; key < row.keys; key += 128) {
        naive_scores[key] = exp(naive_scores[key] - max);
        total += naive_scores[key];
    }
    total = naive_reduce(room, total, [](double a, double b) { return a + b; });
    double sum = 0, absolute = 0;
    for (uint32_t key = 0; key < row.keys; key++) {
        double term =
            naive_scores[key] * (double)__bfloat162float(kv[key * x.kv_stride + 128 + threadIdx.x]);
        sum += term;
        absolute += fabs(term);
    }
    size_t at = ((size_t)blockIdx.x * x.heads + head) * 128 + threadIdx.x;
    out[at] = (float)(sum / total);
    magnitude[at] = (float)(absolute / total);
}

#endif
