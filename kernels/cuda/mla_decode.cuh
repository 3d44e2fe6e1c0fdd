/* kernels/cuda/mla_decode.cuh - absorbed attention over the paged cache: 64 heads of one row
 * against up to 128 pages of 64 tokens by a cluster of two blocks.
 *
 * 64 x 512 sums in F32 are half of an SM's registers, so there is no second tile to hide softmax
 * behind. Instead two warpgroups hold the left and the right 256 columns, and take turns ("seesaw",
 * after FlashMLA): each multiplies the query by every other page and makes its softmax while the
 * other's products keep the tensor cores busy, and passes its probabilities to the other through
 * shared memory.
 *
 *   left warpgroup                              right warpgroup
 *   max of S0                   --max0-->       (S1 is there)
 *   P0, O_left += P0 V0_left                    max of S0 and S1
 *                               <--max1--       P1
 *   P0 to the common max        --P0----->      O_right += P0 V0_right
 *                               <--P1-----      O_right += P1 V1_right
 *   O_left += P1 V1_left                        S1 = Q K1 of the next pages
 *   S0 = Q K0 of the next pages
 *
 * Of units that two blocks share, one has the first half of the pages, the other the second; at the
 * end each sends half of its columns to the other, which adds them to its own and writes them.  A
 * block that works alone puts the sums of the first half by, in scratch that stays in the L2.  No
 * other partial result leaves the SMs unless a row has more than one piece (mla_split.h).
 */
#ifndef KERNELS_CUDA_MLA_DECODE_CUH
#define KERNELS_CUDA_MLA_DECODE_CUH

#include "mla_end.cuh"
#include "mla_load.cuh"

/* All pages of a unit, left half.  `o` is zero at first.  It is long: the steps of a fused
 * pipeline. */
__device__ __forceinline__ void mla_attend_left(mla_math_t &self, float (&o)[128],
                                                const mla_walk_t &walk, uint32_t last_keys)
{
    mla_shared_t *shared = self.shared;
    const float one[2] = { 1.0F, 1.0F };
    char *p0 = shared->keys[0] + 8 * MLA_CHUNK_BYTES;
    uint32_t p1 = mla_keys_operand(self, 1, 8);
    float s[32];
    uint32_t p[4][4], pairs = mla_walk_pairs(&walk);
    if (pairs > 0) mla_multiply<0, 1, 2, 3, 4>(self, s, 0, true);
    wgmma_wait<0>();
    wgmma_hold(s);
    self.parity[0] ^= pairs > 0;
#pragma unroll 1
    for (uint32_t pair = 0; pair < pairs; pair++) {
        bool has_odd = mla_walk_has_odd(&walk, pair), has_next = pair + 1 < pairs;
        if (!has_next) mla_free_query(self);
        if (!has_next && !has_odd && last_keys < 64) mla_mask(self, s, last_keys);
        float max[2], factor[2];
        mla_row_max(self, s, max);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            max[r] = mla_raise(self.max[r], max[r]);
            factor[r] = exp2_approximate(self.max[r] - max[r]);
            self.sum[r] *= factor[r];
            self.max[r] = max[r];
        }
        mla_publish_max(self, 0, max);
        named_barrier_arrive(NAMED_MAX0, 256);
        mla_exponentials(self, s, max);
#pragma unroll
        for (int k = 0; k < 4; k++) mla_pack_fragment(&s[8 * k], one, p[k]);
        mla_scale_rows(o, factor);
        if (!has_next && !has_odd && last_keys < 64) mla_clear_values(self, 0, 0, last_keys);
        wgmma_fence();
        mla_add_values(o, p, mla_values_operand(self, 0, 0));
        factor[0] = factor[1] = 1.0F;
        if (has_odd) {
            named_barrier_wait(NAMED_MAX1, 256);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                self.max[r] = shared->max[1][self.row + 8 * r];
                factor[r] = exp2_approximate(max[r] - self.max[r]);
                self.sum[r] *= factor[r];
            }
        }
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t words[4];
            mla_pack_fragment(&s[8 * k], factor, words);
            mla_store_fragment(self, p0, k, words);
        }
        fence_async_shared();
        named_barrier_arrive(NAMED_P0, 256);
        wgmma_wait<0>();
        wgmma_hold(o);
        mla_free_part(self, 0, 0);
        if (has_odd) {
            mla_scale_rows(o, factor);
            if (!has_next && last_keys < 64) mla_clear_values(self, 1, 0, last_keys);
            named_barrier_wait(NAMED_P1, 256);
            wgmma_fence();
            mla_add_values(o, p1, mla_values_operand(self, 1, 0));
        }
        if (has_next) {
            mla_multiply<0, 1>(self, s, 0, true);
            wgmma_wait<1>();
            if (has_odd) mla_free_part(self, 1, 0);
            mla_multiply<2, 3, 4>(self, s, 0, false);
            self.parity[0] ^= 1;
        }
        wgmma_wait<0>();
        wgmma_hold(o);
        wgmma_hold(s);
        if (mla_walk_is_halfway(&walk, pair)) mla_put_by(self, o, 0);
        if (has_odd && !has_next) mla_free_part(self, 1, 0);
    }
}

/* The right half.  It is long: the steps of a fused pipeline. */
__device__ __forceinline__ void mla_attend_right(mla_math_t &self, float (&o)[128],
                                                 const mla_walk_t &walk, uint32_t last_keys)
{
    mla_shared_t *shared = self.shared;
    const float one[2] = { 1.0F, 1.0F };
    char *p1 = shared->keys[1] + 8 * MLA_CHUNK_BYTES;
    uint32_t p0 = mla_keys_operand(self, 0, 8);
    float s[32];
    uint32_t p[4][4], pairs = mla_walk_pairs(&walk);
    bool has_odd = mla_walk_has_odd(&walk, 0);
    if (has_odd) mla_multiply<2, 3, 0, 1, 4>(self, s, 1, true);
    wgmma_wait<0>();
    wgmma_hold(s);
    self.parity[1] ^= has_odd;
#pragma unroll 1
    for (uint32_t pair = 0; pair < pairs; pair++) {
        bool is_last = pair + 1 == pairs, has_next_odd = mla_walk_has_odd(&walk, pair + 1);
        if (is_last) mla_free_query(self);
        float max[2] = { -INFINITY, -INFINITY }, factor[2];
        if (is_last && has_odd && last_keys < 64) mla_mask(self, s, last_keys);
        if (has_odd) mla_row_max(self, s, max);
        named_barrier_wait(NAMED_MAX0, 256);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            max[r] = mla_raise(shared->max[0][self.row + 8 * r], max[r]);
            factor[r] = exp2_approximate(self.max[r] - max[r]);
            self.sum[r] *= factor[r];
            self.max[r] = max[r];
        }
        if (has_odd) {
            mla_publish_max(self, 1, max);
            named_barrier_arrive(NAMED_MAX1, 256);
            mla_exponentials(self, s, max);
        }
        mla_scale_rows(o, factor);
        if (is_last && !has_odd && last_keys < 64) mla_clear_values(self, 0, 1, last_keys);
        named_barrier_wait(NAMED_P0, 256);
        wgmma_fence();
        mla_add_values(o, p0, mla_values_operand(self, 0, 1));
        if (has_odd) {
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                mla_pack_fragment(&s[8 * k], one, p[k]);
                mla_store_fragment(self, p1, k, p[k]);
            }
            if (is_last && last_keys < 64) mla_clear_values(self, 1, 1, last_keys);
            fence_async_shared();
            wgmma_fence();
            mla_add_values(o, p, mla_values_operand(self, 1, 1));
            named_barrier_arrive(NAMED_P1, 256);
            wgmma_wait<1>();
        } else {
            wgmma_wait<0>();
        }
        mla_free_part(self, 0, 1);
        wgmma_wait<0>();
        wgmma_hold(o);
        if (has_odd) mla_free_part(self, 1, 1);
        if (has_next_odd) {
            mla_multiply<2, 3, 0, 1, 4>(self, s, 1, true);
            self.parity[1] ^= 1;
        }
        wgmma_wait<0>();
        wgmma_hold(s);
        has_odd = has_next_odd;
        if (mla_walk_is_halfway(&walk, pair)) mla_put_by(self, o, 1);
    }
}

template <uint32_t half>
__device__ __forceinline__ void mla_attend(mla_shared_t *shared, const mla_arguments_t &arguments,
                                           uint32_t rank, bool is_shared)
{
    mla_math_t self;
    self.shared = shared;
    self.first_half = is_shared ? nullptr
                                : arguments.halves + (size_t)blockIdx.x * MLA_TOTAL_BYTES +
                                      half * (MLA_TOTAL_BYTES / 2);
    self.query = (uint32_t)wgmma_operand(shared->query);
    self.parity[0] = self.parity[1] = self.sums = 0;
    self.thread = threadIdx.x % 128;
    self.row = self.thread / 32 * 16 + self.thread % 32 / 4;
    self.scale = arguments.scale;
    for (uint32_t n = 0;; n++) {
        barrier_wait_cluster(&shared->unit_full[n & 1], (n >> 1) & 1);
        const mla_unit_t &unit = shared->units[n & 1];
        if (unit.pieces == 0) break;
        mla_walk_t walk = mla_walk(unit.pages, rank, is_shared);
        float o[128];
        mla_begin_sums(self, o);
        barrier_wait(&shared->query_full, n & 1);
        if (half == 0)
            mla_attend_left(self, o, walk, mla_last_keys(unit, walk));
        else
            mla_attend_right(self, o, walk, mla_last_keys(unit, walk));
        if (walk.counts[0] == 0) mla_free_query(self);
        bool is_whole = true;
        if (is_shared) {
            is_whole = mla_exchange(self, o, half, rank, n);
        } else {
            mla_sum_rows(self, half);
            if (walk.counts[1] > 0)
                mla_take_back(self, o);
            else
                mla_add_nothing(o);
        }
        if (is_whole && (unit.pieces == 1 || mla_add_to_total(self, o, unit, arguments, half)))
            mla_write(self, o, arguments, unit.row, unit.group, half);
        __syncwarp();
        if (self.thread % 32 == 0) barrier_free_at(&shared->unit_free[n & 1], is_shared ? 0 : rank);
    }
}

__device__ __forceinline__ void mla_barriers_init(mla_shared_t *shared)
{
    barrier_init(&shared->query_full, 1);
    barrier_init(&shared->query_free, 8);
    for (int buffer = 0; buffer < 2; buffer++) {
        for (int pair = 0; pair < MLA_PAIRS; pair++)
            barrier_init(&shared->keys_full[buffer][pair], 1);
        for (int part = 0; part < 2; part++) barrier_init(&shared->keys_free[buffer][part], 4);
    }
    barrier_init(&shared->peer_ready, 8);
    barrier_init(&shared->peer_full, 1);
    barrier_init(&shared->end_free, 1);
    for (int slot = 0; slot < 2; slot++) barrier_init(&shared->unit_full[slot], 1);
}

/* The last cluster leaves the counters as it found them. */
__device__ __forceinline__ void mla_reset_counters(const mla_arguments_t &arguments)
{
    bool is_last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicAdd(&arguments.counters[1], 1) + 1 == gridDim.x / MLA_CLUSTER;
    }
    if (!__syncthreads_or(is_last)) return;
    for (uint32_t i = threadIdx.x; i < 2 + arguments.slots; i += MLA_THREADS)
        arguments.counters[i] = 0;
}

/* Grid: clusters of two, as many as the GPU holds or fewer. */
__global__ void __launch_bounds__(MLA_THREADS, 1)
    mla_decode_kernel(const __grid_constant__ CUtensorMap query,
                      const __grid_constant__ CUtensorMap cache, const mla_arguments_t arguments)
{
    DYNAMIC_SHARED(char, shared_bytes, 1024);
    mla_shared_t *shared = (mla_shared_t *)shared_bytes;
    uint32_t rank = cluster_rank(), warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        tensor_prefetch(&query);
        tensor_prefetch(&cache);
        mla_barriers_init(shared);
    }
    wait_for_previous();
    mla_units_init<MLA_THREADS>(&shared->table, &shared->buckets, arguments.sequences,
                                arguments.count, arguments.groups);
    bool is_shared =
        !arguments.halves || mla_is_shared(shared->table.pages, shared->table.longest, gridDim.x);
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < 2; slot++)
            barrier_init(&shared->unit_free[slot], is_shared ? MLA_CLUSTER * 9 : 9);
        fence_barrier_init();
    }
    cluster_sync();
    if (warpgroup == 0) {
        registers_increase<232>();
        mla_attend<0>(shared, arguments, rank, is_shared);
    } else if (warpgroup == 1) {
        registers_increase<232>();
        mla_attend<1>(shared, arguments, rank, is_shared);
    } else {
        registers_decrease<40>();
        if (threadIdx.x / 32 == 8) mla_load(shared, &query, &cache, arguments, rank, is_shared);
        let_next_start();
    }
    cluster_sync();
    if (rank == 0) mla_reset_counters(arguments);
}

#endif
