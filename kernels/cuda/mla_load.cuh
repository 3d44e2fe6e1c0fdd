/* kernels/cuda/mla_load.cuh - the loading warp of mla_decode: draws units, loads queries and pages.
 */
#ifndef KERNELS_CUDA_MLA_LOAD_CUH
#define KERNELS_CUDA_MLA_LOAD_CUH

#include "mla_shared.cuh"

struct mla_loader_t {
    mla_shared_t *shared;
    const CUtensorMap *cache;
    uint32_t uses[2]; /* pages loaded into each buffer */
    uint32_t unit_number;
    bool is_end_awaited; /* the end of the last unit may still need keys[1] */
};

/* Left: chunks 0..3, right: 4..7; P0 lies in the chunk that right frees, P1 in the one of left. */
__device__ __forceinline__ void mla_load_part(const mla_loader_t *self, uint32_t buffer,
                                              uint32_t part, uint32_t block)
{
    mla_shared_t *shared = self->shared;
    barrier_wait(&shared->keys_free[buffer][part], (self->uses[buffer] & 1) ^ 1);
    if (threadIdx.x % 32 != 0) return;
    uint32_t first = part * 4, count = buffer != part ? 5 : 4;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t chunk = i < 4 ? first + i : 8;
        uint64_t *full = &shared->keys_full[buffer][chunk / 2];
        if (chunk % 2 == 0)
            barrier_arrive_expect(full, chunk == 8 ? MLA_CHUNK_BYTES : 2 * MLA_CHUNK_BYTES);
        tensor_load_3d(shared->keys[buffer] + chunk * MLA_CHUNK_BYTES, self->cache, full,
                       (int)chunk * 64, 0, (int)block, cache_evict_first);
    }
}

/* Two pages, parts in the order in which they become free. */
__device__ __forceinline__ void mla_load_pair(mla_loader_t *self, const uint32_t (&blocks)[2],
                                              bool has_odd)
{
    mla_load_part(self, 0, 0, blocks[0]);
    mla_load_part(self, 0, 1, blocks[0]);
    if (has_odd) {
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t part = i ^ 1;
            if (self->is_end_awaited)
                barrier_wait(&self->shared->end_free[part], (self->unit_number & 1) ^ 1);
            mla_load_part(self, 1, part, blocks[1]);
        }
        self->is_end_awaited = false;
    }
    self->uses[0]++;
    self->uses[1] += has_odd;
}

/* To the units of both blocks: six lanes send 16 bytes each. */
__device__ __forceinline__ void mla_send_unit(mla_shared_t *shared, const mla_unit_t &unit,
                                              uint32_t slot)
{
    uint32_t lane = threadIdx.x % 32, part = lane % 3;
    uint64_t blocks = (uint64_t)unit.blocks;
    uint4 words = { (uint32_t)blocks, (uint32_t)(blocks >> 32), unit.row, unit.group };
    if (part == 1) words = { unit.keys, unit.pages.first, unit.pages.count, unit.piece };
    if (part == 2) words = { unit.pieces, unit.tile, 0, 0 };
    if (lane < 6)
        store_async(cluster_address((char *)&shared->units[slot] + part * 16, lane / 3),
                    cluster_address(&shared->unit_full[slot], lane / 3), words);
}

/* Finds unit n of this cluster, from the number that lane 0 has drawn on, and tells its blocks.  By
 * block 0. */
template <int cluster>
__device__ __forceinline__ void
mla_offer_unit(mla_shared_t *shared, const mla_arguments_t &arguments, uint32_t n, uint32_t number)
{
    uint32_t slot = n & 1;
    barrier_wait_cluster(&shared->unit_free[slot], ((n >> 1) & 1) ^ 1);
    mla_unit_t unit = mla_units_next(&shared->table, arguments.sequences, arguments.count,
                                     arguments.groups, &arguments.counters[0], number);
    if (cluster == 1) {
        if (threadIdx.x == MLA_LOADER) {
            shared->units[slot] = unit;
            barrier_arrive(&shared->unit_full[slot]);
        }
        return;
    }
    if (threadIdx.x == MLA_LOADER)
        barrier_arrive_expect(&shared->unit_full[slot], sizeof(mla_unit_t));
    mla_send_unit(shared, unit, slot);
}

__device__ __forceinline__ void mla_load_query(mla_shared_t *shared, const CUtensorMap *query,
                                               const mla_unit_t &unit, uint32_t number)
{
    barrier_wait(&shared->query_free, (number & 1) ^ 1);
    if (threadIdx.x % 32 != 0) return;
    barrier_arrive_expect(&shared->query_full, MLA_MATRIX_BYTES);
    for (int chunk = 0; chunk < MLA_CHUNKS; chunk++)
        tensor_load_3d(shared->query + chunk * MLA_CHUNK_BYTES, query, &shared->query_full,
                       chunk * 64, (int)unit.group * MLA_TILE_HEADS, (int)unit.row,
                       cache_evict_first);
}

/* The next unit is drawn as late as its loads allow: just before those of this one's last pages,
 * which wait for room anyway. */
template <int cluster>
__device__ __forceinline__ void mla_load(mla_shared_t *shared, const CUtensorMap *query,
                                         const CUtensorMap *cache, const mla_arguments_t &arguments,
                                         uint32_t rank, uint32_t first_unit)
{
    mla_loader_t loader = { shared, cache, { 0, 0 }, 0, false };
    if (rank == 0) mla_offer_unit<cluster>(shared, arguments, 0, first_unit);
    for (uint32_t n = 0;; n++) {
        if (rank == 1 && threadIdx.x % 32 == 0)
            barrier_arrive_expect(&shared->unit_full[n & 1], sizeof(mla_unit_t));
        barrier_wait_cluster(&shared->unit_full[n & 1], (n >> 1) & 1);
        const mla_unit_t unit = shared->units[n & 1];
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_free_at(&shared->unit_free[n & 1], 0);
        if (unit.pieces == 0) break;
        mla_load_query(shared, query, unit, n);
        mla_pages_t pages = mla_block_pages<cluster>(unit.pages, rank);
        const uint32_t *blocks = unit.blocks + pages.first;
        loader.unit_number = n;
        loader.is_end_awaited = cluster > 1;
        uint32_t next[2] = { 0, 0 };
        if (pages.count > 0) next[0] = blocks[0];
        if (pages.count > 1) next[1] = blocks[1];
        for (uint32_t i = 0; i < pages.count; i += 2) {
            const uint32_t pair[2] = { next[0], next[1] };
            if (i + 2 < pages.count) next[0] = blocks[i + 2];
            if (i + 3 < pages.count) next[1] = blocks[i + 3];
            bool is_last = i + 2 >= pages.count && rank == 0;
            uint32_t number = 0;
            if (is_last && threadIdx.x == MLA_LOADER) number = atomicAdd(&arguments.counters[0], 1);
            if (is_last && i > 0) mla_offer_unit<cluster>(shared, arguments, n + 1, number);
            mla_load_pair(&loader, pair, i + 1 < pages.count);
            if (is_last && i == 0) mla_offer_unit<cluster>(shared, arguments, n + 1, number);
        }
    }
}

#endif
