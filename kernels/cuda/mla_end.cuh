/* kernels/cuda/mla_end.cuh - the end of a unit of mla_decode: its two halves meet, rows of several
 * pieces add to their running total, results are written.
 *
 * Each warpgroup has 256 columns in two parts of 128.  Of its half of a shared unit it keeps one,
 * the one of its block's rank, and sends the other to the warpgroup of the other block that keeps
 * that.
 */
#ifndef KERNELS_CUDA_MLA_END_CUH
#define KERNELS_CUDA_MLA_END_CUH

#include "mla_products.cuh"

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

/* The sum of a row over its four lanes and both warpgroups.  A lane takes the other warpgroup's
 * half only: nothing orders what lanes of its own warp write. */
__device__ __forceinline__ void mla_sum_rows(mla_math_t &self, uint32_t half)
{
    float(*sum)[64] = self.shared->sum[self.sums & 1];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        self.sum[r] += __shfl_xor_sync(0xffffffff, self.sum[r], 1);
        self.sum[r] += __shfl_xor_sync(0xffffffff, self.sum[r], 2);
        if (self.thread % 4 == 0) sum[half][self.row + 8 * r] = self.sum[r];
    }
    barrier_arrive(&self.shared->sum_full[half]);
    barrier_wait(&self.shared->sum_full[half ^ 1], self.sums & 1);
#pragma unroll
    for (int r = 0; r < 2; r++) self.sum[r] += sum[half ^ 1][self.row + 8 * r];
    self.sums++;
}

/* Columns of `part` to the block that keeps them: fragments as they lie, so that every thread finds
 * its own. */
template <uint32_t part>
__device__ __forceinline__ void mla_send_sums(const mla_math_t &self, const float (&o)[128],
                                              uint32_t half)
{
    mla_shared_t *shared = self.shared;
    uint32_t full = cluster_address(&shared->peer_full[half], part),
             target = cluster_address(shared->keys[1] + half * MLA_QUARTER_BYTES, part) +
                      self.thread * 16;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const float *sums = &o[64 * part + 4 * i];
        store_async(target + i * 128 * 16, full,
                    uint4{ __float_as_uint(sums[0]), __float_as_uint(sums[1]),
                           __float_as_uint(sums[2]), __float_as_uint(sums[3]) });
    }
    /* Lane 4j has rows j and j + 8 of its warp. */
    if (self.thread % 4 == 0)
        store_async(cluster_address(&shared->peer[half][self.thread / 4], part), full,
                    uint4{ __float_as_uint(self.max[0]), __float_as_uint(self.max[1]),
                           __float_as_uint(self.sum[0]), __float_as_uint(self.sum[1]) });
}

/* Adds another partial result of the columns of `part`, in the order of this thread's fragments. */
template <uint32_t part, typename load_t>
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
        self.sum[r] = fmaf(other_sum[r], other[r], self.sum[r] * own[r]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float4 sums = load(i);
        float *own_sums = &o[64 * part + 4 * i];
        own_sums[0] = fmaf(sums.x, other[0], own_sums[0] * own[0]);
        own_sums[1] = fmaf(sums.y, other[0], own_sums[1] * own[0]);
        own_sums[2] = fmaf(sums.z, other[1], own_sums[2] * own[1]);
        own_sums[3] = fmaf(sums.w, other[1], own_sums[3] * own[1]);
    }
}

/* The two halves of a unit meet: the columns of `part`, this block's rank, are whole then. */
template <uint32_t part>
__device__ __forceinline__ void mla_exchange(mla_math_t &self, float (&o)[128], uint32_t half,
                                             uint32_t n)
{
    mla_shared_t *shared = self.shared;
    if (self.thread % 32 == 0) barrier_free_at(&shared->peer_ready[half], part ^ 1);
    if (self.thread == 0)
        barrier_arrive_expect(&shared->peer_full[half],
                              MLA_QUARTER_BYTES + sizeof shared->peer[half]);
    mla_sum_rows(self, half);
    barrier_wait_cluster(&shared->peer_ready[half], n & 1);
    mla_send_sums<part ^ 1>(self, o, half);
    barrier_wait_cluster(&shared->peer_full[half], n & 1);
    const float4 *sums = (const float4 *)(shared->keys[1] + half * MLA_QUARTER_BYTES) + self.thread;
    mla_add_sums<part>(self, o, shared->peer[half][self.thread / 4],
                       [&](int i) { return sums[i * 128]; });
    __syncwarp();
    if (self.thread % 32 == 0) barrier_arrive(&shared->end_free[half]);
}

/* Waits until the slot's total holds all pieces before this one: the counter says how many tiles
 * have had the slot (from bit 16 on) and how many quarters have been added to this one's. */
__device__ __forceinline__ void mla_wait_turn(const uint32_t *counter, uint32_t tiles,
                                              uint32_t quarters)
{
    uint32_t value;
    do {
        value = load_acquire(counter);
    } while (value >> 16 != tiles || (value & 0xffff) < quarters);
}

/* Adds to the row's running total the sums of this piece.  True for the last piece, which then has
 * the result. */
template <uint32_t part>
__device__ __forceinline__ bool mla_add_to_total(mla_math_t &self, float (&o)[128],
                                                 const mla_unit_t &unit,
                                                 const mla_arguments_t &arguments, uint32_t half)
{
    uint32_t slot = unit.tile % arguments.slots, barrier = NAMED_LEFT + half;
    uint32_t *counter = &arguments.counters[2 + slot];
    float4 *total = (float4 *)(arguments.scratch + (size_t)slot * MLA_TOTAL_BYTES +
                               (2 * half + part) * (MLA_TOTAL_BYTES / 4)) +
                    self.thread;
    float4 *rows = total + 16 * 128 - self.thread + self.thread / 4;
    bool is_last = unit.piece + 1 == unit.pieces;
    if (self.thread == 0) mla_wait_turn(counter, unit.tile / arguments.slots, 4 * unit.piece);
    named_barrier_wait(barrier, 128);
    if (unit.piece > 0)
        mla_add_sums<part>(self, o, __ldcg(rows), [&](int i) { return __ldcg(&total[i * 128]); });
    /* All have read what some overwrite: rows are shared by four lanes of a warp. */
    __syncwarp();
    if (!is_last) {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float *sums = &o[64 * part + 4 * i];
            __stcg(&total[i * 128], float4{ sums[0], sums[1], sums[2], sums[3] });
        }
        if (self.thread % 4 == 0)
            __stcg(rows, float4{ self.max[0], self.max[1], self.sum[0], self.sum[1] });
        __threadfence();
    }
    named_barrier_wait(barrier, 128);
    if (self.thread == 0) {
        uint32_t quarters = (atomicAdd(counter, 1) & 0xffff) + 1;
        if (quarters == 4 * unit.pieces) atomicAdd(counter, 0x10000 - quarters);
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

/* Divides by the sums of the rows and writes the columns of `part`: straight from registers, for
 * the buffer of keys is wanted for the next unit. */
template <uint32_t part>
__device__ __forceinline__ void mla_write(const mla_math_t &self, const float (&o)[128],
                                          const mla_arguments_t &arguments, uint32_t row,
                                          uint32_t group, uint32_t half)
{
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t head = group * MLA_TILE_HEADS + self.row + 8 * r;
        float factor = 1.0F / self.sum[r];
        __nv_bfloat16 *out = arguments.out + row * arguments.out_stride +
                             (size_t)head * MLA_LATENT + half * 256 + part * 128 +
                             self.thread % 4 * 8;
#pragma unroll
        for (uint32_t i = 0; i < 16; i += 4) {
            uint32_t words[4];
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                const float *sums = &o[64 * part + 4 * (i + k) + 2 * r];
                words[k] = mla_pack(sums[0] * factor, sums[1] * factor);
            }
            mla_transpose(words);
            if (head < arguments.heads)
                *(uint4 *)(out + 8 * i) = uint4{ words[0], words[1], words[2], words[3] };
        }
    }
}

template <uint32_t part>
__device__ __forceinline__ void mla_end_part(mla_math_t &self, float (&o)[128],
                                             const mla_unit_t &unit,
                                             const mla_arguments_t &arguments, uint32_t half)
{
    if (unit.pieces == 1 || mla_add_to_total<part>(self, o, unit, arguments, half))
        mla_write<part>(self, o, arguments, unit.row, unit.group, half);
}

template <int cluster>
__device__ __forceinline__ void
mla_end_unit(mla_math_t &self, float (&o)[128], const mla_unit_t &unit,
             const mla_arguments_t &arguments, uint32_t half, uint32_t rank, uint32_t n)
{
    if (cluster == 1) {
        mla_sum_rows(self, half);
        mla_math_t other = self; /* adding to a total changes maximum and sum of the rows */
        mla_end_part<0>(self, o, unit, arguments, half);
        mla_end_part<1>(other, o, unit, arguments, half);
    } else if (rank == 0) {
        mla_exchange<0>(self, o, half, n);
        mla_end_part<0>(self, o, unit, arguments, half);
    } else {
        mla_exchange<1>(self, o, half, n);
        mla_end_part<1>(self, o, unit, arguments, half);
    }
}

#endif
