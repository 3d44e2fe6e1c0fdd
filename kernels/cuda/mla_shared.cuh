/* kernels/cuda/mla_shared.cuh - what the warps of mla_decode share: sizes, roles, shared memory. */
#ifndef KERNELS_CUDA_MLA_SHARED_CUH
#define KERNELS_CUDA_MLA_SHARED_CUH

#include "mla_units.cuh"

#include <cuda_bf16.h>

enum {
    MLA_COLS = 576,
    MLA_LATENT = 512,
    MLA_CHUNK_BYTES = 64 * 64 * 2, /* 64 tokens or heads x 64 columns, rows swizzled */
    MLA_CHUNKS = MLA_COLS / 64,
    MLA_PAIRS = (MLA_CHUNKS + 1) / 2, /* two chunks are waited for together */
    MLA_MATRIX_BYTES = MLA_CHUNKS * MLA_CHUNK_BYTES,
    MLA_QUARTER_BYTES = 64 * 128 * 4, /* a quarter of the sums of a tile */
    MLA_THREADS = 3 * 128,
    MLA_LOADER = 2 * 128 /* first thread of the loading warp */
};

/* A running total in scratch: for each quarter of the columns the sums, then max and sum of rows.
 */
enum { MLA_TOTAL_BYTES = 4 * (MLA_QUARTER_BYTES + 64 * 8), MLA_SLOTS_MAX = 256 };

struct mla_arguments_t {
    const sequence_t *sequences;
    uint32_t count, groups, heads; /* groups of 64 heads */
    float scale;                   /* of the scores, for powers of two */
    __nv_bfloat16 *out;
    size_t out_stride; /* from row to row */
    char *scratch;
    uint32_t slots;
    uint32_t *counters; /* units drawn, clusters that are done, then one per slot */
};

/*  warps   registers  role
 *  0 - 3   232        left warpgroup: S of even pages, columns 0..255
 *  4 - 7   232        right warpgroup: S of odd pages, columns 256..511
 *  8       40         draws units (in block 0), loads queries and pages
 *  9 - 11  40         none: a warpgroup's registers are set together
 */
enum { NAMED_LEFT = 1, NAMED_RIGHT }; /* one warpgroup */

/* P1 overwrites the rope columns of its page, chunk 8, when S1 is done, and P0 those of page 0:
 * pages are freed in parts, by the one who reads them last. */
struct __align__(1024) mla_shared_t
{
    char query[MLA_MATRIX_BYTES];
    char keys[2][MLA_MATRIX_BYTES]; /* at the end of a unit [1] takes the other block's sums */
    float max[2][64];               /* what P0, P1 are relative to, by row */
    union {
        float sum[2][2][64]; /* in turn, of left, of right */
        mla_buckets_t buckets;
    };
    /* Of the other block, from left, from right: max, max, sum, sum of the two rows of four lanes.
     */
    float4 peer[2][32];
    uint64_t query_full, query_free;
    uint64_t keys_full[2][MLA_PAIRS];
    uint64_t keys_free[2][2]; /* chunks 0-3 (of [1] also 8) by left; 4-7 (of [0] also 8) by right */
    uint64_t weights_full[2]; /* P0 and its maxima, P1 */
    uint64_t sum_full[2];     /* of left, of right */
    uint64_t peer_ready[2], peer_full[2], end_free[2]; /* of left's, of right's columns */
    uint64_t unit_full[2], unit_free[2];
    mla_unit_t units[2];
    mla_units_t table;
};
static_assert(sizeof(mla_shared_t) <= 227 * 1024, "one block's shared memory");

__device__ __forceinline__ uint32_t mla_pack(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

/* What a thread of a warpgroup knows: its rows are row and row + 8 of the tile; max in powers of
 * two of the scaled scores, sum over its own columns only. */
struct mla_math_t {
    mla_shared_t *shared;
    uint32_t query; /* low word of its operand for wgmma; others lie at fixed distances */
    uint32_t thread, row, keys_parity[2], weights_parity[2];
    uint32_t sums; /* row sums taken so far */
    float scale, max[2], sum[2];
};

/* What a block has of a unit's pages: all, or its half. */
template <int cluster>
__device__ __forceinline__ mla_pages_t mla_block_pages(mla_pages_t pages, uint32_t rank)
{
    return cluster == 1 ? pages : mla_half_pages(pages, rank);
}

#endif
