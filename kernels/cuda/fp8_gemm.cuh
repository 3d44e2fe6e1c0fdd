/* kernels/cuda/fp8_gemm.cuh - FP8 products of many rows, dense and grouped: x [M, k] with a scale
 * per row and 128 of k, times w [n, k] with a scale per 128 x 128.
 *
 * A persistent block per multiprocessor.  One thread copies tiles of x and w, 128 of k at a time,
 * into a ring of stages; two warpgroups multiply half of the tile's rows each, in waves of 64 rows:
 * the tensor cores sum 128 of k, then fmaf adds the scaled sum to the result, so every tile shape
 * gives the same bits.  While one warpgroup adds, the other's products run.  Blocks of a cluster
 * share what they have in common: side by side the rows of x, one above the other the rows of w;
 * each copies its part to all.
 */
#ifndef KERNELS_CUDA_FP8_GEMM_CUH
#define KERNELS_CUDA_FP8_GEMM_CUH

#include "gemm_tiles.h"
#include "hopper.cuh"
#include "wgmma.cuh"

#include <cuda_bf16.h>

enum {
    FP8_GEMM_THREADS = 384,
    FP8_GEMM_SHARED = 232448, /* bytes of a block */
};

/* What a tile is: rows_ x cols_ of the result by one block, stages_ of 128 k in flight, clusters of
 * cluster_rows_ x cluster_cols_ tiles. */
template <int rows_, int cols_, int stages_, int cluster_rows_, int cluster_cols_>
struct fp8_gemm_shape {
    static constexpr int rows = rows_, cols = cols_, stages = stages_;
    static constexpr int cluster_rows = cluster_rows_, cluster_cols = cluster_cols_;
    static constexpr int cluster = cluster_rows * cluster_cols;
    static constexpr int waves = rows / 128; /* of 64 rows, per warpgroup */
    /* Blocks of 128 columns, each with its scale, that one tile touches at most. */
    static constexpr int blocks = 128 % cols == 0 ? 1 : cols <= 128 || cols == 192 ? 2 : 3;
    static constexpr int x_bytes = rows * 128, w_bytes = cols * 128;
    static constexpr int stage_bytes = x_bytes + w_bytes;
    /* Scales of x are copied from a multiple of 4 rows on, which bulk copies ask for: 4 more. */
    static constexpr int scale_box = rows / cluster_cols + 4;
    static constexpr int w_scales_at = rows * 4 + 16; /* 16 bytes for each block */
    static constexpr int scale_bytes = (w_scales_at + 16 * blocks + 127) / 128 * 128;
    static constexpr int load_bytes = stage_bytes + cluster_cols * scale_box * 4 + 16 * blocks;
    /* Columns / 8 from a tile's first one to the next block: a multiple of edge_min, at most 16. */
    static constexpr int edge_min = 128 % cols == 0 ? 16 : cols % 64 == 0 ? 8 : 2;
    /* A warp's 16 rows of a wave leave in chunks; odd multiples of 16 bytes need no swizzle. */
    static constexpr int chunk_cols = cols % 64 == 0 ? 64 : cols / 2;
    static constexpr bool is_swizzled = chunk_cols == 64;
    static constexpr int chunk_bytes = 16 * chunk_cols * 2, wave_bytes = 16 * cols * 2;
    /* shared memory: stages of x and w, stages of scales, barriers, tiles of groups, results */
    static constexpr int scales_at = stages * stage_bytes;
    static constexpr int barriers_at = scales_at + stages * scale_bytes;
    static constexpr int groups_at = barriers_at + 2 * stages * 8;
    static constexpr int results_at = (groups_at + (GEMM_GROUPS_MAX + 1) * 4 + 1023) / 1024 * 1024;
    static constexpr int shared_bytes = results_at + 8 * waves * wave_bytes;

    static_assert(rows == 128 || rows == 256, "two warpgroups of one or two waves");
    static_assert(waves * cols <= 256, "sums and one partial sum fit 232 registers");
    static_assert(cols % 16 == 0 && cols / cluster_rows % 8 == 0, "swizzles repeat after 8 rows");
    static_assert(is_swizzled || chunk_cols / 8 % 2 == 1, "stores of a chunk meet every bank once");
    static_assert(cluster <= 2 && shared_bytes <= FP8_GEMM_SHARED, "one block per multiprocessor");
};

struct fp8_gemm_t {
    const float *w_scales;
    uint32_t w_scale_stride;
    void *out;
    size_t out_stride;
    bool is_f32;
    uint32_t rows, cols, k_blocks;            /* of the result; of x and w */
    const uint32_t *group_first, *group_rows; /* group_first NULL: dense */
    uint32_t groups;
    uint32_t col_tiles, panel; /* cluster tiles: of all columns; of rows in a panel */
};

/* ---- tiles ---- */

struct fp8_tile_t {
    uint32_t row, col, left; /* first row in x and out; column; rows of the group from `row` on */
    uint32_t group;
    gemm_walk_t walk;
};

__device__ __forceinline__ uint32_t fp8_group_first(const fp8_gemm_t &args, uint32_t group)
{
    return args.group_first ? __ldg(args.group_first + group) : 0;
}

__device__ __forceinline__ uint32_t fp8_group_rows(const fp8_gemm_t &args, uint32_t group)
{
    if (!args.group_first) return args.rows;
    return args.group_rows ? __ldg(args.group_rows + group)
                           : __ldg(args.group_first + group + 1) - __ldg(args.group_first + group);
}

/* One warp: before[g] = cluster tiles of rows of the groups before g. */
template <typename shape>
__device__ __forceinline__ void fp8_count_tiles(const fp8_gemm_t &args, uint32_t *before)
{
    uint32_t lane = threadIdx.x % 32, total = 0;
    for (uint32_t first = 0; first < args.groups; first += 32) {
        uint32_t own = 0;
        if (first + lane < args.groups)
            own = gemm_tiles(fp8_group_rows(args, first + lane), shape::rows * shape::cluster_rows);
        for (uint32_t step = 1; step < 32; step *= 2) {
            uint32_t below = __shfl_up_sync(0xffffffff, own, step);
            if (lane >= step) own += below;
        }
        if (first + lane < args.groups) before[first + lane + 1] = total + own;
        total += __shfl_sync(0xffffffff, own, 31);
    }
    if (lane == 0) before[0] = 0;
}

/* Which tile `index` is, `tile` being an earlier one: groups and panels are found by going on from
 * there, and only one division is left.  False: there is none. */
template <typename shape>
__device__ __forceinline__ bool fp8_locate(const fp8_gemm_t &args, const uint32_t *before,
                                           uint32_t index, uint32_t rank, fp8_tile_t &tile)
{
    while (tile.group < args.groups && index >= before[tile.group + 1] * args.col_tiles) {
        tile.group++;
        tile.walk.panel = 0;
    }
    if (tile.group == args.groups) return false;
    gemm_place_t place =
        gemm_place(&tile.walk, index - before[tile.group] * args.col_tiles,
                   before[tile.group + 1] - before[tile.group], args.col_tiles, args.panel);
    uint32_t row = place.row_tile, col = place.col_tile;
    if (shape::cluster_rows > 1) row = row * shape::cluster_rows + rank;
    if (shape::cluster_cols > 1) col = col * shape::cluster_cols + rank;
    uint32_t rows = fp8_group_rows(args, tile.group);
    tile.row = fp8_group_first(args, tile.group) + row * shape::rows;
    tile.left = rows > row * shape::rows ? rows - row * shape::rows : 0;
    tile.col = col * shape::cols;
    return true;
}

/* ---- the ring of stages ---- */

template <typename shape> struct fp8_ring_t {
    char *shared;
    uint32_t stage, parity;

    __device__ __forceinline__ char *x() const
    {
        return shared + stage * shape::stage_bytes;
    }
    __device__ __forceinline__ char *w() const
    {
        return x() + shape::x_bytes;
    }
    __device__ __forceinline__ float *scales() const
    {
        return (float *)(shared + shape::scales_at + stage * shape::scale_bytes);
    }
    __device__ __forceinline__ float *w_scales() const
    {
        return scales() + shape::w_scales_at / 4;
    }
    __device__ __forceinline__ uint64_t *full() const
    {
        return (uint64_t *)(shared + shape::barriers_at) + stage;
    }
    __device__ __forceinline__ uint64_t *empty() const
    {
        return full() + shape::stages;
    }
    __device__ __forceinline__ void advance()
    {
        if (++stage < shape::stages) return;
        stage = 0;
        parity ^= 1;
    }
};

/* The scales of block i of the tile's columns; beyond the last block the last one's, for columns
 * that are not stored. */
__device__ __forceinline__ const float *fp8_w_scales(const fp8_gemm_t &args, const fp8_tile_t &tile,
                                                     uint32_t i)
{
    uint32_t rows = gemm_tiles(args.cols, 128), row = min(tile.col / 128 + i, rows - 1);
    return args.w_scales + (size_t)(tile.group * rows + row) * args.w_scale_stride;
}

/* One thread: 128 of k of w and its scales; this block's part of what the cluster shares.  Bulk
 * copies take 16 bytes from a multiple of 16 on; the scale is one of the four. */
template <typename shape>
__device__ __forceinline__ void fp8_load_w(const fp8_ring_t<shape> &ring, const fp8_gemm_t &args,
                                           const CUtensorMap *w_map, const fp8_tile_t &tile,
                                           uint32_t k_block, uint32_t rank)
{
    constexpr int part = shape::cols / shape::cluster_rows;
    int k = (int)k_block * 128, row = (int)(tile.group * args.cols + tile.col);
    barrier_arrive_expect(ring.full(), shape::load_bytes);
    if (shape::cluster_rows > 1) {
        int first = (int)rank * part;
        tensor_load_2d_multicast(ring.w() + first * 128, w_map, ring.full(), k, row + first, 3);
    } else {
        tensor_load_2d(ring.w(), w_map, ring.full(), k, row);
    }
#pragma unroll
    for (int i = 0; i < shape::blocks; i++) {
        uintptr_t from = (uintptr_t)(fp8_w_scales(args, tile, i) + k_block);
        bulk_load(ring.w_scales() + 4 * i, (const void *)(from & ~(uintptr_t)15), 16, ring.full());
    }
}

/* The same of x. */
template <typename shape>
__device__ __forceinline__ void fp8_load_x(const fp8_ring_t<shape> &ring, const CUtensorMap *x_map,
                                           const CUtensorMap *x_scale_map, const fp8_tile_t &tile,
                                           uint32_t k_block, uint32_t rank)
{
    constexpr int part = shape::rows / shape::cluster_cols;
    int k = (int)k_block * 128, scale_row = (int)tile.row & ~3;
    if (shape::cluster_cols > 1) {
        int first = (int)rank * part;
        tensor_load_2d_multicast(ring.x() + first * 128, x_map, ring.full(), k,
                                 (int)tile.row + first, 3);
        tensor_load_2d_multicast(ring.scales() + first, x_scale_map, ring.full(), scale_row + first,
                                 (int)k_block, 3);
    } else {
        tensor_load_2d(ring.x(), x_map, ring.full(), k, (int)tile.row);
        tensor_load_2d(ring.scales(), x_scale_map, ring.full(), scale_row, (int)k_block);
    }
}

/* One thread keeps the stages filled.  Weights do not depend on earlier kernels: those of the first
 * stages, where nothing else says which, are on their way before the wait. */
template <typename shape>
__device__ __forceinline__ void
fp8_load_tiles(const fp8_gemm_t &args, fp8_ring_t<shape> &ring, const CUtensorMap *x_map,
               const CUtensorMap *x_scale_map, const CUtensorMap *w_map, const uint32_t *before,
               uint32_t index, uint32_t step, uint32_t rank)
{
    fp8_tile_t tile = {};
    uint32_t early = 0;
    if (!args.group_first && fp8_locate<shape>(args, before, index, rank, tile)) {
        fp8_ring_t<shape> ahead = ring;
        for (; early < min(args.k_blocks, shape::stages); early++) {
            fp8_load_w<shape>(ahead, args, w_map, tile, early, rank);
            ahead.advance();
        }
    }
    wait_for_previous();
    for (; fp8_locate<shape>(args, before, index, rank, tile); index += step)
        for (uint32_t k_block = 0; k_block < args.k_blocks; k_block++) {
            barrier_wait(ring.empty(), ring.parity ^ 1);
            if (early)
                early--;
            else
                fp8_load_w<shape>(ring, args, w_map, tile, k_block, rank);
            fp8_load_x<shape>(ring, x_map, x_scale_map, tile, k_block, rank);
            ring.advance();
        }
}

/* ---- products ---- */

/* sums += partial * scales; the tile's columns from 8 * edge on belong to the next block of w's
 * scales, those from 8 * edge + 128 on to the one after it. */
template <typename shape, int edge>
__device__ __forceinline__ void fp8_promote(float (&sums)[shape::cols / 2],
                                            const float (&partial)[shape::cols / 2], float x_low,
                                            float x_high, const float (&w)[shape::blocks])
{
    float low[shape::blocks], high[shape::blocks];
#pragma unroll
    for (int i = 0; i < shape::blocks; i++) low[i] = x_low * w[i], high[i] = x_high * w[i];
#pragma unroll
    for (int j = 0; j < shape::cols / 8; j++) {
        int block = j < edge ? 0 : j < edge + 16 ? 1 : 2;
        float scale_low = low[block], scale_high = high[block];
        float *d = sums + 4 * j;
        const float *p = partial + 4 * j;
        d[0] = fmaf(p[0], scale_low, d[0]);
        d[1] = fmaf(p[1], scale_low, d[1]);
        d[2] = fmaf(p[2], scale_high, d[2]);
        d[3] = fmaf(p[3], scale_high, d[3]);
    }
}

/* partial = 64 rows of x times the tile's rows of w, over 128 of k; low words of operands. */
template <typename shape>
__device__ __forceinline__ void fp8_multiply(float (&partial)[shape::cols / 2], uint32_t x,
                                             uint32_t w)
{
    wgmma_hold(partial);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
        wgmma_e4m3<shape::cols>::multiply(partial, wgmma_operand_at(x + 2 * k),
                                          wgmma_operand_at(w + 2 * k), k > 0);
    wgmma_commit();
    wgmma_hold(partial);
    wgmma_wait<0>();
}

/* Where a warpgroup reads: addresses in shared memory of stage 0, low words of its operands there.
 * They stay in uniform registers; products follow one another without a gap only then. */
struct fp8_places_t {
    uint32_t full, scales, x, w;
};

template <typename shape>
__device__ __forceinline__ fp8_places_t fp8_places(const char *shared, uint32_t group)
{
    uint32_t x = (uint32_t)wgmma_operand(shared + group * shape::waves * 64 * 128),
             w = (uint32_t)wgmma_operand(shared + shape::x_bytes);
    fp8_places_t result = { warp_uniform(shared_address(shared + shape::barriers_at)),
                            warp_uniform(shared_address(shared + shape::scales_at)),
                            warp_uniform(x), warp_uniform(w) };
    return result;
}

/* Each warp tells every block of the cluster that it has read this stage. */
template <typename shape> __device__ __forceinline__ void fp8_free_stage(uint32_t full)
{
    uint32_t empty = full + shape::stages * 8, lane = threadIdx.x % 32;
    if (lane < shape::cluster) barrier_free_at(empty, lane);
}

/* One warpgroup's share of a tile.  Whether the next stage has come is asked before this one's sums
 * are added, for an answer takes as long as they. */
template <typename shape, int edge>
__device__ __forceinline__ void fp8_compute_tile(const fp8_gemm_t &args, fp8_ring_t<shape> &ring,
                                                 float (&sums)[shape::waves][shape::cols / 2],
                                                 const fp8_tile_t &tile, const fp8_places_t &places)
{
    uint32_t row = kept(threadIdx.x / 128 * shape::waves * 64 + threadIdx.x / 32 % 4 * 16 +
                        threadIdx.x % 32 / 4 + tile.row % 4);
    uint32_t shift[shape::blocks];
#pragma unroll
    for (int i = 0; i < shape::blocks; i++)
        shift[i] = kept((uint32_t)(uintptr_t)fp8_w_scales(args, tile, i) / 4);
#pragma unroll
    for (int wave = 0; wave < shape::waves; wave++)
#pragma unroll
        for (int i = 0; i < shape::cols / 2; i++) sums[wave][i] = 0;
    bool has_come = barrier_is_past(places.full + ring.stage * 8, ring.parity);
    for (uint32_t k_block = 0; k_block < args.k_blocks; k_block++) {
        uint32_t full = places.full + ring.stage * 8,
                 scales = places.scales + ring.stage * shape::scale_bytes,
                 x = places.x + ring.stage * (shape::stage_bytes / 16),
                 w = places.w + ring.stage * (shape::stage_bytes / 16);
        if (!has_come) barrier_wait(full, ring.parity);
        ring.advance();
        float w_scales[shape::blocks];
#pragma unroll
        for (int i = 0; i < shape::blocks; i++)
            w_scales[i] =
                shared_load(scales + shape::w_scales_at + 16 * i + (shift[i] + k_block) % 4 * 4);
#pragma unroll
        for (int wave = 0; wave < shape::waves; wave++) {
            float partial[shape::cols / 2];
            float low = shared_load(scales + (row + 64 * wave) * 4),
                  high = shared_load(scales + (row + 64 * wave + 8) * 4);
            fp8_multiply<shape>(partial, x + wave * 512, w);
            if (wave == shape::waves - 1) {
                fp8_free_stage<shape>(full);
                has_come = barrier_is_past(places.full + ring.stage * 8, ring.parity);
            }
            fp8_promote<shape, edge>(sums[wave], partial, low, high, w_scales);
        }
    }
}

/* The code differs in where the tile's columns pass from one scale of w to the next. */
template <typename shape, int edge = shape::edge_min>
__device__ __forceinline__ void fp8_compute_edge(const fp8_gemm_t &args, fp8_ring_t<shape> &ring,
                                                 float (&sums)[shape::waves][shape::cols / 2],
                                                 const fp8_tile_t &tile, const fp8_places_t &places)
{
    if constexpr (edge < 16) {
        if ((128 - tile.col % 128) / 8 != edge) {
            fp8_compute_edge<shape, edge + shape::edge_min>(args, ring, sums, tile, places);
            return;
        }
    }
    fp8_compute_tile<shape, edge>(args, ring, sums, tile, places);
}

/* A warpgroup none of whose rows belong to the group only lets the stages pass. */
template <typename shape>
__device__ __forceinline__ void fp8_skip_tile(const fp8_gemm_t &args, fp8_ring_t<shape> &ring,
                                              const fp8_places_t &places)
{
    for (uint32_t k_block = 0; k_block < args.k_blocks; k_block++) {
        uint32_t full = places.full + ring.stage * 8;
        barrier_wait(full, ring.parity);
        fp8_free_stage<shape>(full);
        ring.advance();
    }
}

/* ---- results ---- */

/* Where 8 results of a chunk lie. */
template <typename shape>
__device__ __forceinline__ uint32_t fp8_result_place(uint32_t row, uint32_t group)
{
    return shape::is_swizzled ? row * 128 + ((group ^ (row & 7)) << 4)
                              : row * shape::chunk_cols * 2 + (group << 4);
}

__device__ __forceinline__ uint32_t fp8_pack(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

/* F32: the two rows of a lane, straight from the sums.  Stores of 8 bytes would ask for sums in
 * even and odd registers as the partial sums are, and every fmaf would read one bank of them twice.
 */
template <typename shape>
__device__ __forceinline__ void fp8_store_f32(const fp8_gemm_t &args,
                                              const float (&sums)[shape::cols / 2],
                                              const fp8_tile_t &tile, uint32_t first)
{
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = first + lane / 4 + 8 * half;
        if (row >= tile.left) return;
        float *out = (float *)args.out + (tile.row + row) * args.out_stride;
#pragma unroll
        for (int j = 0; j < shape::cols / 8; j++) {
            uint32_t col = tile.col + 8 * j + 2 * (lane % 4);
            if (col >= args.cols) continue;
            out[col] = sums[4 * j + 2 * half];
            out[col + 1] = sums[4 * j + 2 * half + 1];
        }
    }
}

/* 16 rows of one warp as BF16 into shared memory, chunk after chunk. */
template <typename shape>
__device__ __forceinline__ void fp8_stage_results(char *results,
                                                  const float (&sums)[shape::cols / 2])
{
    constexpr int groups = shape::chunk_cols / 8;
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int chunk = 0; chunk < shape::cols / shape::chunk_cols; chunk++)
#pragma unroll
        for (int i = 0; i < (groups + 1) / 2; i++) {
            int j = 2 * i + 2 <= groups ? 2 * i : groups - 2;
            const float *d = sums + (chunk * groups + j) * 4;
            store_matrix_x4(results + chunk * shape::chunk_bytes +
                                fp8_result_place<shape>(lane % 16, j + lane / 16),
                            fp8_pack(d[0], d[1]), fp8_pack(d[2], d[3]), fp8_pack(d[4], d[5]),
                            fp8_pack(d[6], d[7]));
        }
}

/* The last rows of a group, 16 bytes at a time: what follows is not ours. */
template <typename shape>
__device__ __forceinline__ void fp8_copy_rows(const fp8_gemm_t &args, const char *results,
                                              const fp8_tile_t &tile, uint32_t first)
{
    constexpr uint32_t groups = shape::cols / 8, chunk_groups = shape::chunk_cols / 8;
    uint32_t count = min(tile.left - first, 16) * groups;
    __nv_bfloat16 *out =
        (__nv_bfloat16 *)args.out + (tile.row + first) * args.out_stride + tile.col;
#pragma unroll 1
    for (uint32_t i = threadIdx.x % 32; i < count; i += 32) {
        uint32_t row = i / groups, j = i % groups;
        if (tile.col + 8 * j >= args.cols) continue;
        *(uint4 *)(out + row * args.out_stride + 8 * j) =
            *(const uint4 *)(results + j / chunk_groups * shape::chunk_bytes +
                             fp8_result_place<shape>(row, j % chunk_groups));
    }
}

/* Each warp's rows go their own way: whole 16 rows by bulk copies, which end while the next tile is
 * computed. */
template <typename shape>
__device__ __forceinline__ void
fp8_store(const fp8_gemm_t &args, const CUtensorMap *out_map, char *results,
          const float (&sums)[shape::waves][shape::cols / 2], const fp8_tile_t &tile)
{
    uint32_t first =
        warp_uniform(threadIdx.x / 128 * (shape::rows / 2) + threadIdx.x / 32 % 4 * 16);
    if (args.is_f32) {
#pragma unroll
        for (int wave = 0; wave < shape::waves; wave++)
            fp8_store_f32<shape>(args, sums[wave], tile, first + 64 * wave);
        return;
    }
    if (is_elected()) store_wait_read<0>();
    __syncwarp();
#pragma unroll
    for (int wave = 0; wave < shape::waves; wave++)
        fp8_stage_results<shape>(results + wave * shape::wave_bytes, sums[wave]);
    fence_async_shared();
    __syncwarp();
    for (int wave = 0; wave < shape::waves; wave++) {
        uint32_t row = first + 64 * wave;
        const char *from = results + wave * shape::wave_bytes;
        if (row + 16 > tile.left) {
            if (row < tile.left) fp8_copy_rows<shape>(args, from, tile, row);
        } else if (is_elected()) {
            for (int chunk = 0; chunk < shape::cols / shape::chunk_cols; chunk++)
                tensor_store_2d(out_map, from + chunk * shape::chunk_bytes,
                                (int)tile.col + chunk * shape::chunk_cols, (int)(tile.row + row));
            store_commit();
        }
    }
    __syncwarp();
}

/* ---- the kernel ---- */

/* fp8_locate by a whole warp: nothing about a tile differs between lanes. */
template <typename shape>
__device__ __forceinline__ bool fp8_locate_uniform(const fp8_gemm_t &args, const uint32_t *before,
                                                   uint32_t index, uint32_t rank, fp8_tile_t &tile)
{
    bool is_found = fp8_locate<shape>(args, before, index, rank, tile);
    tile.row = warp_uniform(tile.row);
    tile.col = warp_uniform(tile.col);
    tile.left = warp_uniform(tile.left);
    tile.group = warp_uniform(tile.group);
    tile.walk.panel = warp_uniform(tile.walk.panel);
    return warp_uniform(is_found);
}

/* Tiles of one warpgroup. */
template <typename shape>
__device__ __forceinline__ void
fp8_compute_tiles(const fp8_gemm_t &args, fp8_ring_t<shape> &ring, const CUtensorMap *out_map,
                  const uint32_t *before, uint32_t index, uint32_t step, uint32_t rank)
{
    uint32_t warp = warp_uniform(threadIdx.x / 32), group = warp / 4;
    char *results = ring.shared + shape::results_at + warp * shape::waves * shape::wave_bytes;
    fp8_places_t places = fp8_places<shape>(ring.shared, group);
    fp8_tile_t tile = {};
    for (; fp8_locate_uniform<shape>(args, before, index, rank, tile); index += step) {
        if (tile.left <= group * (shape::rows / 2)) {
            fp8_skip_tile<shape>(args, ring, places);
            continue;
        }
        float sums[shape::waves][shape::cols / 2];
        fp8_compute_edge<shape>(args, ring, sums, tile, places);
        fp8_store<shape>(args, out_map, results, sums, tile);
    }
    store_wait_read<0>();
}

/*   warps 0-3, 4-7   multiply rows 0 .. and rows / 2 .. of the tile, then write them
 *   warp 8           one thread keeps the stages filled
 *   warps 9-11       nothing: a warpgroup gives registers back as a whole */
template <typename shape>
__global__ void __launch_bounds__(FP8_GEMM_THREADS, 1)
    fp8_gemm_kernel(const __grid_constant__ CUtensorMap x_map,
                    const __grid_constant__ CUtensorMap x_scale_map,
                    const __grid_constant__ CUtensorMap w_map,
                    const __grid_constant__ CUtensorMap out_map,
                    const __grid_constant__ fp8_gemm_t args)
{
    DYNAMIC_SHARED(char, shared, 1024);
    uint32_t *before = (uint32_t *)(shared + shape::groups_at);
    uint32_t warp = warp_uniform(threadIdx.x / 32), rank = shape::cluster > 1 ? cluster_rank() : 0;
    fp8_ring_t<shape> ring = { shared, 0, 0 };
    if (threadIdx.x == 0) {
        for (int i = 0; i < shape::stages; i++) {
            barrier_init(ring.full() + i, 1);
            barrier_init(ring.empty() + i, 8 * shape::cluster);
        }
        fence_barrier_init();
        tensor_prefetch(&x_map);
        tensor_prefetch(&x_scale_map);
        tensor_prefetch(&w_map);
        if (!args.is_f32) tensor_prefetch(&out_map);
    }
    let_next_start();
    if (args.group_first) wait_for_previous();
    if (warp == 0) fp8_count_tiles<shape>(args, before);
    if (shape::cluster > 1)
        cluster_sync();
    else
        __syncthreads();

    uint32_t step = gridDim.x / shape::cluster, index = blockIdx.x / shape::cluster;
    if (warp >= 8) {
        registers_decrease<40>();
        if (warp == 8 && is_elected())
            fp8_load_tiles<shape>(args, ring, &x_map, &x_scale_map, &w_map, before, index, step,
                                  rank);
        __syncwarp();
    } else {
        registers_increase<232>();
        wait_for_previous();
        fp8_compute_tiles<shape>(args, ring, &out_map, before, index, step, rank);
    }
    /* Nobody leaves while the other block may still write here or arrive at its barriers. */
    if (shape::cluster > 1) cluster_sync();
}

#endif
