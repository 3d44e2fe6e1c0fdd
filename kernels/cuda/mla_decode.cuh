/* kernels/cuda/mla_decode.cuh - absorbed attention over the paged cache: 64 heads of one row
 * against up to 128 pages of 64 tokens by a cluster of two blocks.
 *
 * 64 x 512 sums in F32 are half of an SM's registers, so there is no second tile to hide softmax
 * behind. Instead two warpgroups hold the left and the right 256 columns, and take turns ("seesaw",
 * after FlashMLA): each multiplies the query by every other page and makes its softmax while the
 * other's products keep the tensor cores busy, and passes its probabilities to the other through
 * shared memory, with the maximum that they are relative to.
 *
 *   left warpgroup                              right warpgroup
 *   S0 = Q K0                                   S1 = Q K1
 *   P0                          --P0----->      O_right += P0 V0_right
 *   O_left += P0 V0_left                        P1
 *   O_left += P1 V1_left        <--P1-----      O_right += P1 V1_right
 *   S0 of the next pages                        S1 of the next pages
 *
 * Loading takes as long as multiplying, so what counts is how soon a page is done with: every
 * product is waited for where its part of the page can be given back, and nothing else waits.
 *
 * One block of a cluster has the first half of the pages, the other the second; at the end they
 * exchange sums, so that no partial result leaves the SMs unless a row has more than one piece
 * (mla_split.h).  Where results may follow the batch, clusters are of one block, which has all
 * pages.
 */
#ifndef KERNELS_CUDA_MLA_DECODE_CUH
#define KERNELS_CUDA_MLA_DECODE_CUH

#include "mla_end.cuh"
#include "mla_load.cuh"

/* All pages of a unit, left half.  `o` is zero at first. */
__device__ __forceinline__ void mla_attend_left(mla_math_t &self, float (&o)[128], uint32_t pages,
                                                uint32_t last_keys)
{
    uint32_t pairs = (pages + 1) / 2, p1 = mla_keys_operand(self, 1, 8);
    float s[32], max[2], factor[2];
    uint32_t p[4][4];
    if (pairs > 0) mla_multiply<0, 1, 2, 3, 4>(self, s, 0);
#pragma unroll 1
    for (uint32_t pair = 0; pair < pairs; pair++) {
        bool has_odd = 2 * pair + 1 < pages, is_last = pair + 1 == pairs;
        bool is_cut = is_last && last_keys < MLA_PAGE_KEYS;
        if (is_last) mla_free_query(self);
        if (is_cut && !has_odd) mla_mask(self, s, last_keys);
        mla_row_max(self, s, max);
        mla_raise(self, max, factor);
        mla_exponentials(self, s);
        mla_give_weights(self, s, p, 0);
        mla_scale_rows(o, factor);
        if (is_cut && !has_odd) mla_clear_values(self, 0, 0, last_keys);
        mla_add_values(o, p, mla_values_operand(self, 0, 0));
        mla_free_part(self, 0, 0);
        if (has_odd) {
            mla_take_weights(self, 1, factor);
            mla_scale_rows(o, factor);
            if (is_cut) mla_clear_values(self, 1, 0, last_keys);
            mla_add_values(o, p1, mla_values_operand(self, 1, 0));
            mla_free_part(self, 1, 0);
        }
        if (!is_last) mla_multiply<0, 1, 2, 3, 4>(self, s, 0);
    }
}

/* The right half. */
__device__ __forceinline__ void mla_attend_right(mla_math_t &self, float (&o)[128], uint32_t pages,
                                                 uint32_t last_keys)
{
    uint32_t pairs = (pages + 1) / 2, p0 = mla_keys_operand(self, 0, 8);
    float s[32], max[2], factor[2];
    uint32_t p[4][4];
    bool has_odd = pages > 1;
    if (has_odd) mla_multiply<2, 3, 0, 1, 4>(self, s, 1);
#pragma unroll 1
    for (uint32_t pair = 0; pair < pairs; pair++) {
        bool is_last = pair + 1 == pairs, is_cut = is_last && last_keys < MLA_PAGE_KEYS;
        if (is_last) mla_free_query(self);
        if (has_odd) {
            if (is_cut) mla_mask(self, s, last_keys);
            mla_row_max(self, s, max);
        }
        mla_take_weights(self, 0, factor);
        mla_scale_rows(o, factor);
        if (is_cut && !has_odd) mla_clear_values(self, 0, 1, last_keys);
        mla_begin_values(o, p0, mla_values_operand(self, 0, 1));
        if (has_odd) {
            mla_raise(self, max, factor);
            mla_exponentials(self, s);
        }
        mla_end_values(o);
        mla_free_part(self, 0, 1);
        if (has_odd) {
            mla_give_weights(self, s, p, 1);
            mla_scale_rows(o, factor);
            if (is_cut) mla_clear_values(self, 1, 1, last_keys);
            mla_add_values(o, p, mla_values_operand(self, 1, 1));
            mla_free_part(self, 1, 1);
        }
        has_odd = 2 * pair + 3 < pages;
        if (has_odd) mla_multiply<2, 3, 0, 1, 4>(self, s, 1);
    }
}

template <int cluster, uint32_t half>
__device__ __forceinline__ void mla_attend(mla_shared_t *shared, const mla_arguments_t &arguments,
                                           uint32_t rank)
{
    mla_math_t self;
    self.shared = shared;
    self.query = (uint32_t)wgmma_operand(shared->query);
    self.keys_parity[0] = self.keys_parity[1] = 0;
    self.weights_parity[0] = self.weights_parity[1] = self.sums = 0;
    self.thread = threadIdx.x % 128;
    self.row = self.thread / 32 * 16 + self.thread % 32 / 4;
    self.scale = arguments.scale;
    for (uint32_t n = 0;; n++) {
        barrier_wait_cluster(&shared->unit_full[n & 1], (n >> 1) & 1);
        const mla_unit_t &unit = shared->units[n & 1];
        if (unit.pieces == 0) break;
        mla_pages_t pages = mla_block_pages<cluster>(unit.pages, rank);
        float o[128];
        mla_begin_sums(self, o);
        barrier_wait(&shared->query_full, n & 1);
        if (half == 0)
            mla_attend_left(self, o, pages.count, mla_last_keys(unit, pages));
        else
            mla_attend_right(self, o, pages.count, mla_last_keys(unit, pages));
        if (pages.count == 0) mla_free_query(self);
        mla_end_unit<cluster>(self, o, unit, arguments, half, rank, n);
        __syncwarp();
        if (self.thread % 32 == 0) barrier_free_at(&shared->unit_free[n & 1], 0);
    }
}

template <int cluster> __device__ __forceinline__ void mla_barriers_init(mla_shared_t *shared)
{
    barrier_init(&shared->query_full, 1);
    barrier_init(&shared->query_free, 8);
    for (int buffer = 0; buffer < 2; buffer++) {
        for (int pair = 0; pair < MLA_PAIRS; pair++)
            barrier_init(&shared->keys_full[buffer][pair], 1);
        for (int part = 0; part < 2; part++) barrier_init(&shared->keys_free[buffer][part], 4);
    }
    for (int half = 0; half < 2; half++) {
        barrier_init(&shared->weights_full[half], 128);
        barrier_init(&shared->sum_full[half], 128);
        barrier_init(&shared->peer_ready[half], 4);
        barrier_init(&shared->peer_full[half], 1);
        barrier_init(&shared->end_free[half], 4);
    }
    for (int slot = 0; slot < 2; slot++) {
        barrier_init(&shared->unit_full[slot], 1);
        barrier_init(&shared->unit_free[slot], 9 * cluster);
    }
    fence_barrier_init();
}

/* The last cluster leaves the counters as it found them. */
template <int cluster>
__device__ __forceinline__ void mla_reset_counters(const mla_arguments_t &arguments)
{
    bool is_last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicAdd(&arguments.counters[1], 1) + 1 == gridDim.x / cluster;
    }
    if (!__syncthreads_or(is_last)) return;
    for (uint32_t i = threadIdx.x; i < 2 + arguments.slots; i += MLA_THREADS)
        arguments.counters[i] = 0;
}

/* Grid: clusters of two that share units, or of one; as many as the GPU holds or fewer. */
template <int cluster>
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
        mla_barriers_init<cluster>(shared);
    }
    cluster_sync();
    wait_for_previous();
    uint32_t first_unit = 0;
    if (threadIdx.x == MLA_LOADER && rank == 0) first_unit = atomicAdd(&arguments.counters[0], 1);
    mla_units_init<MLA_THREADS>(&shared->table, &shared->buckets, arguments.sequences,
                                arguments.count, arguments.groups);
    if (warpgroup == 0) {
        registers_increase<232>();
        mla_attend<cluster, 0>(shared, arguments, rank);
    } else if (warpgroup == 1) {
        registers_increase<232>();
        mla_attend<cluster, 1>(shared, arguments, rank);
    } else {
        registers_decrease<40>();
        if (threadIdx.x / 32 == MLA_LOADER / 32)
            mla_load<cluster>(shared, &query, &cache, arguments, rank, first_unit);
        let_next_start();
    }
    cluster_sync();
    if (rank == 0) mla_reset_counters<cluster>(arguments);
}

#endif
