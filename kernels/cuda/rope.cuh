/* kernels/cuda/rope.cuh - rotary positions in place, and new tokens' rows of the paged cache. */
#ifndef KERNELS_CUDA_ROPE_CUH
#define KERNELS_CUDA_ROPE_CUH

#include "hopper.cuh"
#include "pieces.cuh"
#include "sequences.cuh"

/* Four interleaved pairs by four angles [cos, sin]. */
__device__ __forceinline__ void rotate(float *values, const float *angles)
{
#pragma unroll
    for (int i = 0; i < PIECE; i += 2) {
        float real = values[i], imaginary = values[i + 1];
        values[i] = fmaf(real, angles[i], -(imaginary * angles[i + 1]));
        values[i + 1] = fmaf(real, angles[i + 1], imaginary * angles[i]);
    }
}

__device__ __forceinline__ void load_angles(float *angles, const float *from)
{
    piece_t<float> both;
    both.low = __ldg((const uint4 *)from);
    both.high = __ldg((const uint4 *)from + 1);
    piece_unpack(both, angles);
}

struct rope_task_t {
    tensor_t x;
    uint32_t heads, head_stride, offset, pieces; /* pieces of one head's rotated columns */
    const float *table;
    const uint32_t *positions;
};

enum { ROPE_HEADS = 4 };

/* A thread turns the same columns of up to ROPE_HEADS heads, blockDim.y heads apart, with one load
 * of their angles.  blockIdx.y: which heads, where a row has more than a block holds. */
static __global__ void rope_rows(const __grid_constant__ rope_task_t task)
{
    wait_for_previous();
    let_next_start();
    uint32_t row = blockIdx.x, dim = task.pieces * PIECE;
    bf16_t *columns = piece_of<bf16_t>(task.x, row, threadIdx.x) + task.offset;
    piece_t<bf16_t> pieces[ROPE_HEADS];
    uint32_t first = blockIdx.y * ROPE_HEADS * blockDim.y + threadIdx.y;
#pragma unroll
    for (int i = 0; i < ROPE_HEADS; i++) {
        uint32_t head = first + i * blockDim.y;
        if (head < task.heads) piece_load(&pieces[i], columns + (size_t)head * task.head_stride);
    }
    float angles[PIECE];
    load_angles(angles, task.table + (size_t)task.positions[row] * dim + threadIdx.x * PIECE);
#pragma unroll
    for (int i = 0; i < ROPE_HEADS; i++) {
        uint32_t head = first + i * blockDim.y;
        float values[PIECE];
        if (head >= task.heads) continue;
        piece_unpack(pieces[i], values);
        rotate(values, angles);
        piece_pack(&pieces[i], values);
        piece_store(columns + (size_t)head * task.head_stride, pieces[i]);
    }
}

struct kv_task_t {
    cache_t cache;
    tensor_t kv;
    const bf16_t *weight;
    float eps;
    const float *table;
    const uint32_t *positions;
    const sequence_t *sequences;
    uint32_t count;
};

enum { KV_PIECES = 4, KV_WARPS = 4, KV_LATENT_MAX = KV_PIECES * 32 * PIECE };

/* A warp per token: its latent part is normalised, its rope part turned, and both go to the slot
 * that its sequence's block table names.  Tokens of no sequence are left out. */
static __global__ void __launch_bounds__(32 * KV_WARPS)
    kv_write_rows(const __grid_constant__ kv_task_t task)
{
    uint32_t lane = threadIdx.x, row = blockIdx.x * KV_WARPS + threadIdx.y;
    uint32_t latent = task.cache.latent / PIECE, rope = task.cache.rope / PIECE;
    piece_t<bf16_t> weights[KV_PIECES], pieces[KV_PIECES], turned;
#pragma unroll
    for (int i = 0; i < KV_PIECES; i++) {
        piece_clear(&weights[i]);
        if (lane + 32 * i < latent)
            weights[i].bits = __ldg((const uint4 *)task.weight + lane + 32 * i);
    }
    wait_for_previous();
    let_next_start();
    if (row >= task.kv.rows) return;
#pragma unroll
    for (int i = 0; i < KV_PIECES; i++) {
        piece_clear(&pieces[i]);
        if (lane + 32 * i < latent)
            piece_load(&pieces[i], piece_of<bf16_t>(task.kv, row, lane + 32 * i));
    }
    piece_clear(&turned);
    if (lane < rope) piece_load(&turned, piece_of<bf16_t>(task.kv, row, latent + lane));
    uint32_t position = task.positions[row];
    sequence_t sequence;
    if (!sequence_of_row(task.sequences, task.count, row, &sequence)) return;
    bf16_t *slot =
        cache_row(task.cache, sequence.blocks, sequence.first_position + row - sequence.first_row);
    float squares = 0, values[PIECE], more[PIECE];
#pragma unroll
    for (int i = 0; i < KV_PIECES; i++) {
        piece_unpack(pieces[i], values);
#pragma unroll
        for (int j = 0; j < PIECE; j++) squares = fmaf(values[j], values[j], squares);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        squares += __shfl_xor_sync(0xffffffff, squares, distance);
    float factor = __frcp_rn(__fsqrt_rn(squares / (float)task.cache.latent + task.eps));
#pragma unroll
    for (int i = 0; i < KV_PIECES; i++) {
        if (lane + 32 * i >= latent) continue;
        piece_unpack(pieces[i], values);
        piece_unpack(weights[i], more);
#pragma unroll
        for (int j = 0; j < PIECE; j++) values[j] = values[j] * factor * more[j];
        piece_pack(&pieces[i], values);
        piece_store(slot + (lane + 32 * i) * PIECE, pieces[i]);
    }
    if (lane >= rope) return;
    load_angles(more, task.table + (size_t)position * task.cache.rope + lane * PIECE);
    piece_unpack(turned, values);
    rotate(values, more);
    piece_pack(&turned, values);
    piece_store(slot + (latent + lane) * PIECE, turned);
}

#endif
