/* kernels/cuda/mla_units.cuh - the queue of an mla_decode: what there is to do, longest first, and
 * who does what.
 *
 * A unit is one piece (mla_split.h) of the keys of one row, for 64 of its heads.  Lengths are known
 * on the device only, so every cluster makes the same table of all units when the kernel begins,
 * and then draws numbers from a counter until they are used up.  The units of one sequence follow
 * one another, so that pages which several heads or rows need meet in the L2.
 *
 * Rows of several pieces add them up in order, each unit its own to the running total in a slot of
 * scratch (mla_end.cuh).  A unit is drawn after all earlier pieces of its row, by a cluster that
 * runs: so waiting for them always ends.
 */
#ifndef KERNELS_CUDA_MLA_UNITS_CUH
#define KERNELS_CUDA_MLA_UNITS_CUH

#include "hopper.cuh"
#include "mla_split.h"
#include "queue.cuh"

enum { MLA_SEQUENCES_MAX = 1024, MLA_TILE_HEADS = 64 };

struct __align__(16) mla_unit_t
{
    const uint32_t *blocks; /* of the sequence, from its first page on */
    uint32_t row, group;    /* heads 64 * group .. of this row */
    uint32_t keys;          /* of the row */
    mla_pages_t pages;      /* of this piece */
    uint32_t piece, pieces; /* 0 pieces: there is nothing left to do */
    uint32_t tile;          /* numbers the tiles of several pieces */
};
static_assert(sizeof(mla_unit_t) == 48, "sent as three times 16 bytes");

enum { MLA_BUCKETS = 16 };

struct mla_units_t {
    uint32_t first_unit[MLA_SEQUENCES_MAX + 1]; /* by place in the order */
    uint16_t order[MLA_SEQUENCES_MAX];          /* which sequence has this place */
    uint16_t first_tile[MLA_SEQUENCES_MAX];
};

/* Needed while the table is made: bucket by bucket, how many of each 32 sequences are in it. */
struct mla_buckets_t {
    uint16_t counts[MLA_BUCKETS * MLA_SEQUENCES_MAX / 32];
};

/* Of a sequence's rows, the last ones have several pieces. */
__device__ __forceinline__ uint32_t mla_long_rows(const sequence_t &sequence)
{
    uint32_t keys = sequence.first_position + sequence.rows;
    const uint32_t limit = MLA_PIECE_PAGES * MLA_PAGE_KEYS;
    return keys <= limit ? 0 : min(keys - limit, sequence.rows);
}

__device__ __forceinline__ uint32_t mla_unit_count(const sequence_t &sequence, uint32_t groups)
{
    return sequence.rows * groups * mla_piece_count(sequence.first_position + sequence.rows);
}

/* Bucket 0 holds the longest pieces. */
__device__ __forceinline__ uint32_t mla_bucket(const sequence_t &sequence)
{
    if (sequence.rows == 0) return MLA_BUCKETS - 1;
    uint32_t keys = sequence.first_position + sequence.rows;
    uint32_t pages = mla_piece_pages(keys, mla_piece_count(keys) - 1).count;
    return MLA_BUCKETS - 1 - min(pages * MLA_BUCKETS / MLA_PIECE_PAGES, MLA_BUCKETS - 1u);
}

/* Inclusive sum over the warp. */
__device__ __forceinline__ uint32_t mla_scan(uint32_t value)
{
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint32_t below = __shfl_up_sync(0xffffffff, value, step);
        if (threadIdx.x % 32 >= step) value += below;
    }
    return value;
}

/* Counts become the place of the first of each bucket and 32 sequences. By one warp. */
__device__ __forceinline__ void mla_place_buckets(mla_buckets_t *self, uint32_t count)
{
    uint32_t before = 0;
    for (uint32_t first = 0; first < count; first += 32) {
        uint32_t i = first + threadIdx.x % 32, own = i < count ? self->counts[i] : 0,
                 sum = mla_scan(own);
        if (i < count) self->counts[i] = (uint16_t)(before + sum - own);
        before += __shfl_sync(0xffffffff, sum, 31);
    }
}

/* Counts of units and tiles become sums of those before. By one warp. */
__device__ __forceinline__ void mla_add_up(mla_units_t *self, uint32_t count)
{
    uint32_t units_before = 0, tiles_before = 0;
    for (uint32_t first = 0; first < count; first += 32) {
        uint32_t i = first + threadIdx.x % 32;
        uint32_t units = i < count ? self->first_unit[i] : 0,
                 tiles = i < count ? self->first_tile[i] : 0;
        uint32_t unit_sum = mla_scan(units), tile_sum = mla_scan(tiles);
        if (i < count) {
            self->first_unit[i] = units_before + unit_sum - units;
            self->first_tile[i] = (uint16_t)(tiles_before + tile_sum - tiles);
        }
        units_before += __shfl_sync(0xffffffff, unit_sum, 31);
        tiles_before += __shfl_sync(0xffffffff, tile_sum, 31);
    }
    if (threadIdx.x % 32 == 0) self->first_unit[count] = units_before;
}

/* Makes the table: sequences by bucket, inside a bucket as they came.  By the whole block of
 * `threads`; ends with a barrier. */
template <uint32_t threads>
__device__ __forceinline__ void mla_units_init(mla_units_t *self, mla_buckets_t *buckets,
                                               const sequence_t *sequences, uint32_t count,
                                               uint32_t groups)
{
    constexpr uint32_t rounds = (MLA_SEQUENCES_MAX + threads - 1) / threads;
    uint32_t chunks = (count + 31) / 32;
    uint32_t bucket[rounds], rank[rounds], units[rounds], tiles[rounds];
    for (uint32_t i = threadIdx.x; i < sizeof *buckets / 4; i += threads)
        ((uint32_t *)buckets)[i] = 0;
    __syncthreads();
#pragma unroll
    for (uint32_t round = 0; round < rounds; round++) {
        if (round * threads >= count) break;
        uint32_t s = round * threads + threadIdx.x;
        sequence_t sequence = {};
        if (s < count) sequence = sequences[s];
        bucket[round] = s < count ? mla_bucket(sequence) : (uint32_t)MLA_BUCKETS;
        units[round] = mla_unit_count(sequence, groups);
        tiles[round] = mla_long_rows(sequence) * groups;
        uint32_t alike = __match_any_sync(0xffffffff, bucket[round]);
        rank[round] = __popc(alike & ((1u << threadIdx.x % 32) - 1));
        if (s < count && rank[round] == 0)
            buckets->counts[bucket[round] * chunks + s / 32] = (uint16_t)__popc(alike);
    }
    __syncthreads();
    if (threadIdx.x < 32) mla_place_buckets(buckets, MLA_BUCKETS * chunks);
    __syncthreads();
#pragma unroll
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t s = round * threads + threadIdx.x;
        if (s >= count) break;
        uint32_t place = buckets->counts[bucket[round] * chunks + s / 32] + rank[round];
        self->order[place] = (uint16_t)s;
        self->first_unit[place] = units[round];
        self->first_tile[place] = (uint16_t)tiles[round];
    }
    __syncthreads();
    if (threadIdx.x < 32) mla_add_up(self, count);
    __syncthreads();
}

/* The place of the sequence that has this unit, which exists.  By a whole warp. */
__device__ __forceinline__ uint32_t mla_find_place(const mla_units_t *self, uint32_t count,
                                                   uint32_t unit)
{
    uint32_t first = 0;
    while (count > 1) {
        uint32_t step = (count + 31) / 32, probe = threadIdx.x % 32 * step;
        bool is_before = probe < count && self->first_unit[first + probe] <= unit;
        uint32_t skipped = (__popc(__ballot_sync(0xffffffff, is_before)) - 1) * step;
        first += skipped;
        count = count - skipped < step ? count - skipped : step;
    }
    return first;
}

/* The unit that lane 0 drew.  By a whole warp.  Rows of a sequence may have fewer pieces than its
 * last: such numbers name nothing, and another one is drawn. */
__device__ __forceinline__ mla_unit_t mla_units_next(const mla_units_t *self,
                                                     const sequence_t *sequences, uint32_t count,
                                                     uint32_t groups, uint32_t *counter,
                                                     uint32_t drawn)
{
    mla_unit_t unit = {};
    for (;; drawn = threadIdx.x % 32 == 0 ? atomicAdd(counter, 1) : 0) {
        uint32_t number = __shfl_sync(0xffffffff, drawn, 0);
        if (number >= self->first_unit[count]) break;
        uint32_t place = mla_find_place(self, count, number);
        sequence_t sequence = sequences[self->order[place]];
        uint32_t local = number - self->first_unit[place], pair = local / groups,
                 i = pair % sequence.rows, piece = pair / sequence.rows;
        uint32_t keys = sequence.first_position + i + 1, pieces = mla_piece_count(keys);
        if (piece >= pieces) continue;
        unit.blocks = sequence.blocks;
        unit.row = sequence.first_row + i;
        unit.group = local % groups;
        unit.keys = keys;
        unit.pages = mla_piece_pages(keys, piece);
        unit.piece = piece;
        unit.pieces = pieces;
        uint32_t short_rows = sequence.rows - mla_long_rows(sequence);
        unit.tile = self->first_tile[place] + (i - short_rows) * groups + unit.group;
        break;
    }
    return unit;
}

#endif
