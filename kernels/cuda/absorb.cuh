/* kernels/cuda/absorb.cuh - the two products of absorbed attention, head by head: queries through
 * W_UK into the latent space, latents through W_UV back to values.
 *
 * A block of threads turns blocks of 128 x 128 of kv_b into BF16 in shared memory, one after the
 * other. F8E4M3 becomes BF16 without rounding; each such block has one scale, which F32 sums are
 * multiplied by: W_UK's are columns of the result, W_UV's are ranges of its k, added in ascending
 * order.
 *
 * Both are bound by memory, so what counts is that every multiprocessor has its reads in flight at
 * once: all of x, and weights in registers, since they must pass through them anyway.  Weights are
 * read before earlier kernels have ended.  Two blocks of threads fit a multiprocessor: one stores
 * while the other loads.
 */
#ifndef KERNELS_CUDA_ABSORB_CUH
#define KERNELS_CUDA_ABSORB_CUH

#include "hopper.cuh"
#include "wgmma.cuh"

#include <cuda_bf16.h>

enum {
    ABSORB_TILE = 128, /* dims of a head, rows and columns of a block of weights */
    ABSORB_LATENT = 512,
    ABSORB_BLOCKS = ABSORB_LATENT / ABSORB_TILE,
    ABSORB_THREADS = 256, /* two warpgroups */
    ABSORB_HALF = 16384,  /* bytes of 128 rows of 64 BF16, swizzled */
    ABSORB_VALUE_TOKENS = 64,
    ABSORB_QUERY_SHARED = 6 * ABSORB_HALF + 16,
    ABSORB_VALUE_SHARED = 6 * ABSORB_HALF + ABSORB_BLOCKS * 8,
};

struct absorb_t {
    const char *weights;                /* kv_b */
    const float *scales;                /* F8E4M3 only */
    size_t weight_stride, scale_stride; /* bytes; elements */
    __nv_bfloat16 *out;                 /* absorb_query's copy of rope */
    const __nv_bfloat16 *query;
    size_t out_stride, query_stride;
    uint32_t tokens, rope;
};

/* Where 16 bytes of a swizzled half tile lie. */
__device__ __forceinline__ uint32_t absorb_place(uint32_t row, uint32_t chunk)
{
    return row * 128 + ((chunk ^ (row & 7)) << 4);
}

/* Two e4m3 bytes (of a prmt that put them in the upper halves of 16 bits) as BF16, exactly: the
 * bits of exponent and mantissa move into place, and 2^120 makes up for the difference of the
 * biases. */
__device__ __forceinline__ uint32_t absorb_widen_pair(uint32_t bytes)
{
    return multiply_bf16_pair((bytes & 0x80008000) | ((bytes & 0x7f007f00) >> 4), 0x7b807b80);
}

__device__ __forceinline__ uint4 absorb_widen(uint32_t low, uint32_t high)
{
    return make_uint4(absorb_widen_pair(__byte_perm(low, 0, 0x1404)),
                      absorb_widen_pair(__byte_perm(low, 0, 0x3424)),
                      absorb_widen_pair(__byte_perm(high, 0, 0x1404)),
                      absorb_widen_pair(__byte_perm(high, 0, 0x3424)));
}

/* A thread's share of a block of weights: 16 bytes of every 32nd row (F8E4M3) or 16th row (BF16).
 */
template <bool is_fp8> struct absorb_share_t {
    static const int count = is_fp8 ? 4 : 8;
    static const uint32_t chunks = is_fp8 ? 8 : 16, rows = ABSORB_THREADS / chunks;
    uint4 words[count];

    __device__ __forceinline__ void load(const absorb_t &args, uint32_t block_row, uint32_t block)
    {
        uint32_t row = threadIdx.x / chunks, chunk = threadIdx.x % chunks;
        const char *from = args.weights +
                           ((size_t)block_row * ABSORB_TILE + row) * args.weight_stride +
                           (block * chunks + chunk) * 16;
#pragma unroll
        for (int i = 0; i < count; i++)
            words[i] = __ldg((const uint4 *)(from + (size_t)i * rows * args.weight_stride));
    }

    /* As BF16 into shared memory.  Lanes of the second half write their two chunks in the other
     * order, so that eight lanes always meet 32 different banks. */
    __device__ __forceinline__ void widen(char *tile) const
    {
        uint32_t chunk = threadIdx.x % chunks, place = chunk % (chunks / 2);
        char *half = tile + chunk / (chunks / 2) * ABSORB_HALF;
#pragma unroll
        for (int i = 0; i < count; i++) {
            uint32_t row = threadIdx.x / chunks + i * rows;
            if (is_fp8) {
                uint32_t is_second = chunk / 4;
                uint2 low = make_uint2(words[i].x, words[i].y);
                uint2 high = make_uint2(words[i].z, words[i].w);
                uint2 first = is_second ? high : low, second = is_second ? low : high;
                *(uint4 *)(half + absorb_place(row, 2 * place + is_second)) =
                    absorb_widen(first.x, first.y);
                *(uint4 *)(half + absorb_place(row, 2 * place + 1 - is_second)) =
                    absorb_widen(second.x, second.y);
            } else {
                *(uint4 *)(half + absorb_place(row, place)) = words[i];
            }
        }
    }
};

template <bool is_fp8>
__device__ __forceinline__ float absorb_scale(const absorb_t &args, uint32_t block_row,
                                              uint32_t block)
{
    return is_fp8 ? __ldg(args.scales + block_row * args.scale_stride + block) : 1.0f;
}

__device__ __forceinline__ uint32_t absorb_pack(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

/* This warpgroup's 64 tokens x 2 * count columns as BF16 into halves of 64 columns. */
template <int count>
__device__ __forceinline__ void absorb_pass(char *halves, const float (&sums)[count], float scale)
{
    uint32_t row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 16;
#pragma unroll
    for (int j = 0; j < count / 4; j += 2) {
        uint32_t chunk = j % 8 + threadIdx.x % 32 / 16;
        const float *d = sums + 4 * j;
        store_matrix_x4(
            halves + j / 8 * ABSORB_HALF + absorb_place(row, chunk),
            absorb_pack(d[0] * scale, d[1] * scale), absorb_pack(d[2] * scale, d[3] * scale),
            absorb_pack(d[4] * scale, d[5] * scale), absorb_pack(d[6] * scale, d[7] * scale));
    }
    fence_async_shared();
    named_barrier_wait(1 + threadIdx.x / 128, 128);
}

/* The dims that rope has turned follow unchanged: 64 tokens of this block of threads.  They wait in
 * registers while weights are widened. */
struct absorb_rope_t {
    uint4 words[2];

    /* The row of word i, or tokens when there is none. */
    __device__ __forceinline__ uint32_t row(const absorb_t &args, uint32_t token, int i) const
    {
        uint32_t inside = (threadIdx.x + i * ABSORB_THREADS) / (args.rope / 8);
        return inside < 64 ? token + inside : args.tokens;
    }

    __device__ __forceinline__ uint32_t col(const absorb_t &args, int i) const
    {
        return (threadIdx.x + i * ABSORB_THREADS) % (args.rope / 8) * 8;
    }

    __device__ __forceinline__ void load(const absorb_t &args, uint32_t head, uint32_t token)
    {
        uint32_t from = head * (ABSORB_TILE + args.rope) + ABSORB_TILE;
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (row(args, token, i) < args.tokens)
                words[i] = *(const uint4 *)(args.query + row(args, token, i) * args.query_stride +
                                            from + col(args, i));
    }

    __device__ __forceinline__ void store(const absorb_t &args, uint32_t head, uint32_t token) const
    {
        uint32_t to = head * (ABSORB_LATENT + args.rope) + ABSORB_LATENT;
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (row(args, token, i) < args.tokens)
                *(uint4 *)(args.out + row(args, token, i) * args.out_stride + to + col(args, i)) =
                    words[i];
    }
};

/* 64 tokens x 128 columns of a warpgroup; rows of the block of weights are k. */
__device__ __forceinline__ void absorb_multiply_query(float (&sums)[64], const char *tokens,
                                                      const char *weights)
{
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; k++)
        wgmma_bf16<128, 1>::multiply(sums, wgmma_operand(tokens + k / 4 * ABSORB_HALF) + k % 4 * 2,
                                     wgmma_operand(weights + k * 2048, ABSORB_HALF), k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sums);
}

/* Grid [2 halves of the latent][heads][128 tokens]: a warpgroup has 64 tokens, and two blocks of
 * weights follow each other.
 *
 *   shared memory: tokens [2 halves][128][64], weights [2][128][64], results [2][128][64], a
 * barrier of each warpgroup
 */
template <bool is_fp8>
__global__ void __launch_bounds__(ABSORB_THREADS, 2)
    absorb_query_kernel(const __grid_constant__ CUtensorMap in_map,
                        const __grid_constant__ CUtensorMap out_map, const absorb_t args)
{
    constexpr int ahead = is_fp8 ? 2 : 1; /* as many as registers hold */
    DYNAMIC_SHARED(char, shared, 1024);
    char *weights = shared + 2 * ABSORB_HALF, *results = shared + 4 * ABSORB_HALF;
    uint64_t *barriers = (uint64_t *)(shared + 6 * ABSORB_HALF);
    uint32_t first = blockIdx.x * 2, head = blockIdx.y, token = blockIdx.z * 128;
    uint32_t group = threadIdx.x / 128, own = group * 64 * 128;
    absorb_share_t<is_fp8> shares[ahead];
    float scales[2];
#pragma unroll
    for (int i = 0; i < ahead; i++) shares[i].load(args, 2 * head, first + i);
#pragma unroll
    for (int i = 0; i < 2; i++) scales[i] = absorb_scale<is_fp8>(args, 2 * head, first + i);
    if (threadIdx.x == 0) {
        barrier_init(&barriers[0], 1);
        barrier_init(&barriers[1], 1);
        fence_barrier_init();
    }
    __syncthreads();
    let_next_start();
    wait_for_previous();
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_arrive_expect(&barriers[i], ABSORB_HALF);
            for (int half = 0; half < 2; half++)
                tensor_load_2d(shared + half * ABSORB_HALF + i * 64 * 128, &in_map, &barriers[i],
                               (int)(head * (ABSORB_TILE + args.rope) + 64 * half),
                               (int)(token + 64 * i));
        }
    }
    absorb_rope_t turned;
    turned.load(args, head, token + blockIdx.x * 64);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        shares[i % ahead].widen(weights);
        if (i + ahead < 2) shares[i % ahead].load(args, 2 * head, first + i + ahead);
        fence_async_shared();
        __syncthreads();
        if (i == 0) {
            turned.store(args, head, token + blockIdx.x * 64);
            barrier_wait(&barriers[group], 0);
        }
        if (token + 64 * group < args.tokens) {
            float sums[64];
            absorb_multiply_query(sums, shared + own, weights);
            absorb_pass(results + own, sums, scales[i]);
            if (threadIdx.x % 128 == 0) {
                uint32_t col = head * (ABSORB_LATENT + args.rope) + (first + i) * ABSORB_TILE;
                for (int half = 0; half < 2; half++)
                    tensor_store_2d(&out_map, results + own + half * ABSORB_HALF,
                                    (int)(col + 64 * half), (int)(token + 64 * group));
                store_commit();
                store_wait_read<0>();
            }
        }
        if (i == 0) __syncthreads();
    }
}

/* 64 tokens x 64 columns of a warpgroup; rows of the block of weights are columns. */
__device__ __forceinline__ void absorb_multiply_value(float (&sums)[32], const char *tokens,
                                                      const char *weights)
{
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; k++)
        wgmma_bf16<64, 0>::multiply(
            sums, wgmma_operand(tokens + k / 4 * (ABSORB_HALF / 2)) + k % 4 * 2,
            wgmma_operand(weights + k / 4 * ABSORB_HALF) + k % 4 * 2, k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sums);
}

/* Grid [heads][64 tokens]: a warpgroup has 64 of the 128 columns.
 *
 *   shared memory: tokens [4 blocks of k][2 halves][64][64], weights [2 halves][128][64], barriers
 * [4]; results [2 halves][64][64] replace the first block of tokens
 */
template <bool is_fp8>
__global__ void __launch_bounds__(ABSORB_THREADS, 2)
    absorb_value_kernel(const __grid_constant__ CUtensorMap in_map,
                        const __grid_constant__ CUtensorMap out_map, const absorb_t args)
{
    constexpr int ahead = is_fp8 ? 3 : 1; /* as many as registers hold */
    DYNAMIC_SHARED(char, shared, 1024);
    char *weights = shared + 4 * ABSORB_HALF;
    uint64_t *barriers = (uint64_t *)(shared + 6 * ABSORB_HALF);
    uint32_t head = blockIdx.x, token = blockIdx.y * ABSORB_VALUE_TOKENS;
    uint32_t group = threadIdx.x / 128;
    absorb_share_t<is_fp8> shares[ahead];
    float scales[ABSORB_BLOCKS], total[32];
#pragma unroll
    for (int b = 0; b < ahead; b++) shares[b].load(args, 2 * head + 1, b);
#pragma unroll
    for (int b = 0; b < ABSORB_BLOCKS; b++) scales[b] = absorb_scale<is_fp8>(args, 2 * head + 1, b);
    if (threadIdx.x == 0) {
        for (int b = 0; b < ABSORB_BLOCKS; b++) barrier_init(&barriers[b], 1);
        fence_barrier_init();
    }
    __syncthreads();
    let_next_start();
    wait_for_previous();
    if (threadIdx.x == 0) {
        for (int b = 0; b < ABSORB_BLOCKS; b++) {
            barrier_arrive_expect(&barriers[b], ABSORB_HALF);
            for (int half = 0; half < 2; half++)
                tensor_load_2d(shared + (2 * b + half) * (ABSORB_HALF / 2), &in_map, &barriers[b],
                               (int)(head * ABSORB_LATENT + b * ABSORB_TILE + 64 * half),
                               (int)token);
        }
    }
#pragma unroll
    for (int i = 0; i < 32; i++) total[i] = 0;
#pragma unroll
    for (int b = 0; b < ABSORB_BLOCKS; b++) {
        if (b > 0) __syncthreads();
        shares[b % ahead].widen(weights);
        if (b + ahead < ABSORB_BLOCKS) shares[b % ahead].load(args, 2 * head + 1, b + ahead);
        fence_async_shared();
        __syncthreads();
        barrier_wait(&barriers[b], 0);
        float sums[32];
        absorb_multiply_value(sums, shared + b * ABSORB_HALF, weights + group * 64 * 128);
#pragma unroll
        for (int i = 0; i < 32; i++) total[i] = fmaf(sums[i], scales[b], total[i]);
    }
    char *results = shared + group * (ABSORB_HALF / 2);
    absorb_pass(results, total, 1.0f);
    if (threadIdx.x % 128 != 0) return;
    tensor_store_2d(&out_map, results, (int)(head * ABSORB_TILE + 64 * group), (int)token);
    store_commit();
    store_wait_read<0>();
}

#endif
