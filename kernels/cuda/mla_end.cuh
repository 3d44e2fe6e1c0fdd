/* kernels/cuda/mla_end.cuh - the end of a unit of mla_decode: its two halves meet, rows of several
 * pieces add to their running total, results are written. */
#ifndef KERNELS_CUDA_MLA_END_CUH
#define KERNELS_CUDA_MLA_END_CUH

#include "mla_products.cuh"

/* This half of the columns to the block that writes it: fragments as they lie, so that every thread
 * finds its own. */
__device__ __forceinline__ void mla_send_sums(const mla_math_t &self, const float (&o)[128],
                                              uint32_t peer)
{
    mla_shared_t *shared = self.shared;
    uint32_t full = cluster_address(&shared->peer_full, peer),
             target = cluster_address(shared->keys[1], peer) + self.thread * 16;
#pragma unroll
    for (int i = 0; i < 32; i++)
        store_async(target + i * 128 * 16, full,
                    uint4{ __float_as_uint(o[4 * i]), __float_as_uint(o[4 * i + 1]),
                           __float_as_uint(o[4 * i + 2]), __float_as_uint(o[4 * i + 3]) });
    /* Lane 4j has rows j and j + 8 of its warp. */
    if (self.thread % 4 == 0)
        store_async(cluster_address(&shared->peer[self.thread / 4], peer), full,
                    uint4{ __float_as_uint(self.max[0]), __float_as_uint(self.max[1]),
                           __float_as_uint(self.sum[0]), __float_as_uint(self.sum[1]) });
}

/* Adds another partial result, sums in the order of this thread's fragments.  Every rounding is
 * symmetric: it does not matter which of the two lies in registers. */
template <typename load_t>
__device__ __forceinline__ void mla_add_sums(mla_math_t &self, float (&o)[128], float4 rows,
                                             load_t load)
{
    float other_max[2] = { rows.x, rows.y }, other_sum[2] = { rows.z, rows.w }, own[2], other[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = fmaxf(self.max[r], other_max[r]);
        own[r] = exp2_approximate(self.max[r] - max);
        other[r] = exp2_approximate(other_max[r] - max);
        self.max[r] = max;
        self.sum[r] = __fadd_rn(__fmul_rn(other_sum[r], other[r]), __fmul_rn(self.sum[r], own[r]));
    }
#pragma unroll
    for (int i = 0; i < 32; i++) {
        if (i % 8 == 0) asm volatile("" ::: "memory"); /* loads further ahead would be spilled */
        float4 sums = load(i);
        const float others[4] = { sums.x, sums.y, sums.z, sums.w };
#pragma unroll
        for (int k = 0; k < 4; k++)
            o[4 * i + k] =
                __fadd_rn(__fmul_rn(others[k], other[k / 2]), __fmul_rn(o[4 * i + k], own[k / 2]));
    }
}

/* Waits until the slot's total holds all pieces before this one: the counter says how many tiles
 * have had the slot (from bit 8 on) and how many halves have been added to this one's. */
__device__ __forceinline__ void mla_wait_turn(const uint32_t *counter, uint32_t tiles,
                                              uint32_t halves)
{
    uint32_t value;
    do {
        value = load_acquire(counter);
    } while (value >> 8 != tiles || (value & 255) < halves);
}

/* Adds to the row's running total the sums of this piece.  True for the last piece, which then has
 * the result. */
__device__ __forceinline__ bool mla_add_to_total(mla_math_t &self, float (&o)[128],
                                                 const mla_unit_t &unit,
                                                 const mla_arguments_t &arguments, uint32_t half)
{
    uint32_t slot = unit.tile % arguments.slots, barrier = NAMED_LEFT + half;
    uint32_t *counter = &arguments.counters[2 + slot];
    float4 *total = (float4 *)(arguments.scratch + (size_t)slot * MLA_TOTAL_BYTES +
                               half * (MLA_TOTAL_BYTES / 2)) +
                    self.thread;
    float4 *rows = total + 32 * 128 - self.thread + self.thread / 4;
    bool is_last = unit.piece + 1 == unit.pieces;
    if (self.thread == 0) mla_wait_turn(counter, unit.tile / arguments.slots, 2 * unit.piece);
    named_barrier_wait(barrier, 128);
    if (unit.piece > 0)
        mla_add_sums(self, o, __ldcg(rows), [&](int i) { return __ldcg(&total[i * 128]); });
    /* All have read what some overwrite: rows are shared by four lanes of a warp. */
    __syncwarp();
    if (!is_last) {
#pragma unroll
        for (int i = 0; i < 32; i++)
            __stcg(&total[i * 128], float4{ o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3] });
        if (self.thread % 4 == 0)
            __stcg(rows, float4{ self.max[0], self.max[1], self.sum[0], self.sum[1] });
        __threadfence();
    }
    named_barrier_wait(barrier, 128);
    if (self.thread == 0) {
        uint32_t halves = (atomicAdd(counter, 1) & 255) + 1;
        if (halves == 2 * unit.pieces) atomicAdd(counter, 256 - halves);
    }
    return is_last;
}

/* Of four lanes with four words each, lane i gets word i of all. */
__device__ __forceinline__ void mla_transpose(uint32_t (&words)[4])
{
    uint32_t lane = threadIdx.x % 4;
#pragma unroll
    for (uint32_t step = 1; step <= 2; step *= 2)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            if (i & step) continue;
            uint32_t sent = lane & step ? words[i] : words[i + step];
            uint32_t found = __shfl_xor_sync(0xffffffff, sent, step);
            if (lane & step)
                words[i] = found;
            else
                words[i + step] = found;
        }
}

/* Divides by the sums of the rows and writes this half of the columns: straight from registers, for
 * the buffer of keys is wanted for the next unit. */
__device__ __forceinline__ void mla_write(const mla_math_t &self, const float (&o)[128],
                                          const mla_arguments_t &arguments, uint32_t row,
                                          uint32_t group, uint32_t half)
{
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t head = group * MLA_TILE_HEADS + self.row + 8 * r;
        float factor = 1.0F / self.sum[r];
        __nv_bfloat16 *out = arguments.out + row * arguments.out_stride +
                             (size_t)head * MLA_LATENT + half * 256 + self.thread % 4 * 8;
#pragma unroll
        for (uint32_t i = 0; i < 32; i += 4) {
            uint32_t words[4];
#pragma unroll
            for (uint32_t k = 0; k < 4; k++)
                words[k] =
                    mla_pack(o[4 * (i + k) + 2 * r] * factor, o[4 * (i + k) + 2 * r + 1] * factor);
            mla_transpose(words);
            if (head < arguments.heads)
                *(uint4 *)(out + 8 * i) = uint4{ words[0], words[1], words[2], words[3] };
        }
    }
}

/* The sum of a row over its four lanes and both warpgroups. */
__device__ __forceinline__ void mla_sum_rows(mla_math_t &self, uint32_t half)
{
    float(*sum)[64] = self.shared->sum[self.sums & 1];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        self.sum[r] += __shfl_xor_sync(0xffffffff, self.sum[r], 1);
        self.sum[r] += __shfl_xor_sync(0xffffffff, self.sum[r], 2);
        if (self.thread % 4 == 0) sum[half][self.row + 8 * r] = self.sum[r];
    }
    named_barrier_wait(NAMED_SUM, 256);
#pragma unroll
    for (int r = 0; r < 2; r++) self.sum[r] = sum[0][self.row + 8 * r] + sum[1][self.row + 8 * r];
    self.sums++;
}

/* Nothing has been added yet.  The maximum is finite: a difference of infinities is not a number.
 */
__device__ __forceinline__ void mla_begin_sums(mla_math_t &self, float (&o)[128])
{
#pragma unroll
    for (int i = 0; i < 128; i++) o[i] = 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        self.max[r] = -1e30F;
        self.sum[r] = 0;
    }
}

/* The first half of a unit that this block does alone waits in scratch (the L2) for the second. */
__device__ __forceinline__ void mla_put_by(mla_math_t &self, float (&o)[128], uint32_t half)
{
    float4 *sums = (float4 *)self.first_half + self.thread,
           *rows = (float4 *)(self.first_half + MLA_HALF_BYTES) + self.thread / 4;
#pragma unroll
    for (int i = 0; i < 32; i++)
        __stcg(&sums[i * 128], float4{ o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3] });
    mla_sum_rows(self, half);
    if (self.thread % 4 == 0)
        __stcg(rows, float4{ self.max[0], self.max[1], self.sum[0], self.sum[1] });
    mla_begin_sums(self, o);
}

/* A thread finds its own sums; rows are shared by four lanes, which have met since. */
__device__ __forceinline__ void mla_take_back(mla_math_t &self, float (&o)[128])
{
    const float4 *sums = (const float4 *)self.first_half + self.thread,
                 *rows = (const float4 *)(self.first_half + MLA_HALF_BYTES) + self.thread / 4;
    mla_add_sums(self, o, __ldcg(rows), [&](int i) { return __ldcg(&sums[i * 128]); });
}

/* What mla_add_sums makes of a half without pages: no zero is negative. */
__device__ __forceinline__ void mla_add_nothing(float (&o)[128])
{
#pragma unroll
    for (int i = 0; i < 128; i++) o[i] = __fadd_rn(o[i], 0.0F);
}

/* Sums of this half of the columns from the other block. */
__device__ __forceinline__ void mla_receive_sums(mla_math_t &self, float (&o)[128], uint32_t half,
                                                 uint32_t n)
{
    mla_shared_t *shared = self.shared;
    if (self.thread == 0)
        barrier_arrive_expect(&shared->peer_full, MLA_HALF_BYTES + sizeof shared->peer);
    barrier_wait_cluster(&shared->peer_full, n & 1);
    const float4 *sums = (const float4 *)shared->keys[1] + self.thread;
    mla_add_sums(self, o, shared->peer[self.thread / 4], [&](int i) { return sums[i * 128]; });
    named_barrier_wait(NAMED_LEFT + half, 128);
    if (self.thread == 0) barrier_arrive(&shared->end_free);
}

/* The two halves of a shared unit meet: left's columns in block 0, right's in block 1.  True where
 * they have. */
__device__ __forceinline__ bool mla_exchange(mla_math_t &self, float (&o)[128], uint32_t half,
                                             uint32_t rank, uint32_t n)
{
    if (self.thread % 32 == 0) barrier_free_at(&self.shared->peer_ready, rank ^ 1);
    mla_sum_rows(self, half);
    if (half == rank) {
        mla_receive_sums(self, o, half, n);
        return true;
    }
    barrier_wait_cluster(&self.shared->peer_ready, n & 1);
    mla_send_sums(self, o, rank ^ 1);
    return false;
}

#endif
