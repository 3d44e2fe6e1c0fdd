/* tests/kernels/cuda/naive_mla_decode.cuh - absorbed attention over the paged cache, one block of
 * threads a row and head, sums in double: what the fast kernel is held against at full size. */
#ifndef TESTS_KERNELS_CUDA_NAIVE_MLA_DECODE_CUH
#define TESTS_KERNELS_CUDA_NAIVE_MLA_DECODE_CUH

#include "../../../kernels/ops.h"

#include <cuda_bf16.h>

enum { NAIVE_MLA_THREADS = 256 };

/* Of a block; every thread gets the result. */
template <typename combine_t>
__device__ double naive_mla_reduce(double *room, double x, combine_t combine)
{
    __syncthreads();
    room[threadIdx.x] = x;
    __syncthreads();
    for (int step = NAIVE_MLA_THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step)
            room[threadIdx.x] = combine(room[threadIdx.x], room[threadIdx.x + step]);
        __syncthreads();
    }
    return room[0];
}

__device__ static const __nv_bfloat16 *naive_mla_token(const cache_t &cache, const uint32_t *blocks,
                                                       uint32_t position)
{
    uint32_t block = blocks[position / cache.block_tokens], slot = position % cache.block_tokens;
    return (const __nv_bfloat16 *)cache.data + (size_t)block * cache.block_stride +
           ((size_t)cache.layer * cache.block_tokens + slot) * 576;
}

/* Block (head, sequence) does the sequence's rows one after another.  scores: key_max for each
 * block. */
__global__ static void naive_mla_decode(tensor_t out, tensor_t query, cache_t cache, float scale,
                                        const sequence_t *sequences, double *scores,
                                        uint32_t key_max)
{
    __shared__ double room[NAIVE_MLA_THREADS];
    sequence_t sequence = sequences[blockIdx.y];
    uint32_t head = blockIdx.x;
    scores += ((size_t)blockIdx.y * gridDim.x + head) * key_max;
    for (uint32_t i = 0; i < sequence.rows; i++) {
        uint32_t row = sequence.first_row + i, keys = sequence.first_position + i + 1;
        const __nv_bfloat16 *q =
            (const __nv_bfloat16 *)query.data + row * query.stride + head * 576;
        double max = -INFINITY, total = 0;
        for (uint32_t key = threadIdx.x; key < keys; key += NAIVE_MLA_THREADS) {
            const __nv_bfloat16 *k = naive_mla_token(cache, sequence.blocks, key);
            double sum = 0;
            for (int c = 0; c < 576; c++)
                sum += (double)__bfloat162float(q[c]) * (double)__bfloat162float(k[c]);
            scores[key] = sum * (double)scale;
            max = fmax(max, scores[key]);
        }
        max = naive_mla_reduce(room, max, [](double a, double b) { return fmax(a, b); });
        for (uint32_t key = threadIdx.x; key < keys; key += NAIVE_MLA_THREADS) {
            scores[key] = exp(scores[key] - max);
            total += scores[key];
        }
        total = naive_mla_reduce(room, total, [](double a, double b) { return a + b; });
        double sums[512 / NAIVE_MLA_THREADS] = {};
        for (uint32_t key = 0; key < keys; key++) {
            const __nv_bfloat16 *v = naive_mla_token(cache, sequence.blocks, key);
            for (int c = 0; c < 512 / NAIVE_MLA_THREADS; c++)
                sums[c] +=
                    scores[key] * (double)__bfloat162float(v[c * NAIVE_MLA_THREADS + threadIdx.x]);
        }
        float *o = (float *)out.data + row * out.stride + head * 512;
        for (int c = 0; c < 512 / NAIVE_MLA_THREADS; c++)
            o[c * NAIVE_MLA_THREADS + threadIdx.x] = (float)(sums[c] / total);
        __syncthreads();
    }
}

#endif
