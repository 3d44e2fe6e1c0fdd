/* kernels/cuda/gate_choose.cuh - from sums of logits to chosen experts, one warp per token.
 *
 * A token's work is short and its code runs once, so loops stay rolled where they can: fetching
 * instructions costs more than executing them.
 *
 * Values are compared as unsigned numbers of the same order, because redux works on those: NaN is
 * 1, below every number, what is taken or missing 0.
 */
#ifndef KERNELS_CUDA_GATE_CHOOSE_CUH
#define KERNELS_CUDA_GATE_CHOOSE_CUH

#include "hopper.cuh"

#include "../ops.h"

enum { GATE_CHOOSE_THREADS = 128, GATE_TOP_MAX = 32, GATE_GROUPS_MAX = 32 };

struct gate_choose_t {
    const float *sums;    /* [tokens][parts][stride] */
    uint32_t parts, half; /* parts of the first half */
    uint32_t stride;      /* experts, rounded up to whole 16 bytes */
    uint32_t tokens;
    const float *bias; /* may be NULL */
    uint32_t *ids;
    float *weights;
    uint32_t group_size, group_lanes; /* experts of a group, lanes that score it (a power of two) */
};

__device__ __forceinline__ uint32_t gate_key(float value)
{
    uint32_t bits = __float_as_uint(value);
    if (isnan(value)) return 1;
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

/* Experts lie 33 apart for every 32, so that lanes that read one expert of each group meet
 * different banks. */
__device__ __forceinline__ uint32_t gate_place(uint32_t expert)
{
    return expert + expert / 32;
}

/* The logit of one expert from a token's sums in shared memory, in gate.cuh's order. */
__device__ __forceinline__ float gate_add(const gate_choose_t &args, const float *sums)
{
    float halves[2] = { 0, 0 };
#pragma unroll 4
    for (uint32_t i = 0; i < args.half; i++) halves[0] += sums[i * args.stride];
#pragma unroll 4
    for (uint32_t i = args.half; i < args.parts; i++) halves[1] += sums[i * args.stride];
    return halves[0] + halves[1];
}

/* Logits in `scores` become scores there, and choices. */
__device__ __forceinline__ void gate_softmax(const gate_choose_t &args, uint32_t experts,
                                             uint32_t lane, float *scores, float *choices)
{
    float max = -INFINITY, sum = 0;
#pragma unroll 1
    for (uint32_t e = lane; e < experts; e += 32) max = fmaxf(max, scores[gate_place(e)]);
#pragma unroll 1
    for (int step = 16; step; step /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
#pragma unroll 1
    for (uint32_t e = lane; e < experts; e += 32) sum += expf(scores[gate_place(e)] - max);
#pragma unroll 1
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
#pragma unroll 1
    for (uint32_t e = lane; e < experts; e += 32) {
        float score = expf(scores[gate_place(e)] - max) / sum;
        scores[gate_place(e)] = score;
        choices[gate_place(e)] = score + (args.bias ? __ldg(args.bias + e) : 0.0f);
    }
    __syncwarp();
}

/* Several lanes score a group, each a run of its experts; then each group counts those before it,
 * and the lanes of one that is not kept mask their runs. */
__device__ __forceinline__ void gate_mask(const gate_choose_t &args, const gate_t &gate,
                                          uint32_t lane, float *choices)
{
    uint32_t lanes = args.group_lanes, group = lane / lanes, rank = 0;
    uint32_t run = (args.group_size + lanes - 1) / lanes;
    uint32_t from = min(lane % lanes * run, args.group_size);
    uint32_t to = group < gate.groups ? min(from + run, args.group_size) : from;
    float best = -INFINITY, second = -INFINITY;
#pragma unroll 4
    for (uint32_t i = from; i < to; i++) {
        float value = choices[gate_place(group * args.group_size + i)];
        if (isnan(value)) value = -INFINITY;
        second = fmaxf(second, fminf(best, value));
        best = fmaxf(best, value);
    }
#pragma unroll 1
    for (uint32_t step = 1; step < lanes; step *= 2) {
        float other = __shfl_xor_sync(~0u, best, step);
        second = fmaxf(fmaxf(second, __shfl_xor_sync(~0u, second, step)), fminf(best, other));
        best = fmaxf(best, other);
    }
    bool is_single = gate.group_score == GATE_MAX || args.group_size == 1;
    uint32_t key = gate_key(is_single ? best : best + second);
#pragma unroll 4
    for (uint32_t g = 0; g < gate.groups; g++) {
        uint32_t other = __shfl_sync(~0u, key, g * lanes);
        rank += other > key || (other == key && g < group);
    }
    if (rank >= gate.top_groups)
#pragma unroll 4
        for (uint32_t i = from; i < to; i++)
            choices[gate_place(group * args.group_size + i)] = -INFINITY;
    __syncwarp();
}

/* The index of the largest key of the warp, the lowest of equals; its owner's key becomes 0. */
template <int count>
__device__ __forceinline__ uint32_t gate_take(uint32_t (&keys)[count], uint32_t lane)
{
    uint32_t key = keys[0], index = lane;
#pragma unroll
    for (int i = 1; i < count; i++) {
        if (keys[i] > key) index = i * 32 + lane;
        key = max(key, keys[i]);
    }
    uint32_t best = __reduce_max_sync(~0u, key);
    uint32_t chosen = __reduce_min_sync(~0u, key == best ? index : ~0u);
#pragma unroll
    for (int i = 0; i < count; i++)
        if (i * 32 + lane == chosen) keys[i] = 0;
    return chosen;
}

/* All lanes of one warp, with scores (softmax: logits) and choices in shared memory. */
template <int count>
__device__ __forceinline__ void gate_choose_warp(const gate_choose_t &args, const gate_t &gate,
                                                 uint32_t token, uint32_t lane, float *scores,
                                                 float *choices)
{
    if (gate.score == GATE_SOFTMAX) gate_softmax(args, gate.experts, lane, scores, choices);
    if (gate.top_groups < gate.groups) gate_mask(args, gate, lane, choices);
    uint32_t keys[count], id = 0;
#pragma unroll
    for (int i = 0; i < count; i++) {
        uint32_t expert = i * 32 + lane;
        keys[i] = expert < gate.experts ? gate_key(choices[gate_place(expert)]) : 0;
    }
#pragma unroll 1
    for (uint32_t k = 0; k < gate.top_k; k++) {
        uint32_t chosen = gate_take<count>(keys, lane);
        if (lane == k) id = chosen;
    }
    bool is_chosen = lane < gate.top_k;
    float weight = is_chosen ? scores[gate_place(id)] : 0, sum = weight;
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (!is_chosen) return;
    size_t at = (size_t)token * gate.top_k + lane;
    args.ids[at] = id;
    args.weights[at] = weight * (gate.is_normalised ? gate.scale / (sum + 1e-20f) : gate.scale);
}

/* A token's warps add its logits, the first of them chooses.  count: experts per lane of that one;
 * warps: of a token, 1, or all 4 of the block where there are many sums to add.
 *
 *   shared memory: sums [tokens][parts][stride], one copy of memory as it is
 */
template <int count, int warps>
__global__ void __launch_bounds__(GATE_CHOOSE_THREADS)
    gate_choose_kernel(const gate_choose_t args, const gate_t gate)
{
    constexpr int tokens = GATE_CHOOSE_THREADS / 32 / warps, threads = 32 * warps;
    DYNAMIC_SHARED(float, sums, 128);
    __shared__ float scores[tokens][count * 33], choices[tokens][count * 33];
    __shared__ uint64_t barrier;
    uint32_t own = threadIdx.x / threads, thread = threadIdx.x % threads;
    uint32_t first = blockIdx.x * tokens, token = first + own;
    constexpr int adding = (count + warps - 1) / warps;
    float bias[adding];
#pragma unroll
    for (int i = 0; i < adding; i++) /* a parameter of the model: no need to wait */
        bias[i] = args.bias ? __ldg(args.bias + min(thread + i * threads, gate.experts - 1)) : 0;
    if (threadIdx.x == 0) {
        barrier_init(&barrier, 1);
        fence_barrier_init();
        let_next_start();
        wait_for_previous();
        uint32_t floats = args.parts * args.stride, left = min(args.tokens - first, tokens);
        barrier_arrive_expect(&barrier, left * floats * 4);
        bulk_load(sums, args.sums + (size_t)first * floats, left * floats * 4, &barrier);
    } else {
        wait_for_previous();
    }
    __syncthreads();
    barrier_wait(&barrier, 0);
#pragma unroll
    for (int i = 0; i < adding; i++) {
        uint32_t e = thread + i * threads;
        if (e >= gate.experts || token >= args.tokens) break;
        float logit = gate_add(args, sums + own * args.parts * args.stride + e);
        float score = __fdividef(1.0f, 1.0f + expf(-logit));
        scores[own][gate_place(e)] = gate.score == GATE_SIGMOID ? score : logit;
        choices[own][gate_place(e)] = score + bias[i];
    }
    __syncthreads();
    if (token < args.tokens && thread < 32)
        gate_choose_warp<count>(args, gate, token, thread, scores[own], choices[own]);
}

#endif
