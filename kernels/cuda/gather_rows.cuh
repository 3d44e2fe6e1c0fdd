/* kernels/cuda/gather_rows.cuh - rows that many rows of the output want are read and quantised
 * once.
 *
 * An index sorted by expert names each token up to top_k times, far apart: read in its own order, a
 * prompt's rows come from memory top_k times.  So the index is turned around first.
 */
#ifndef KERNELS_CUDA_GATHER_ROWS_CUH
#define KERNELS_CUDA_GATHER_ROWS_CUH

#include "cast.cuh"

enum { TAKERS_MAX = 16, LINK_THREADS = 256, REST_BLOCKS = 64 };

/* Who wants each row of x.  Rows wanted more than TAKERS_MAX times, or that x does not have, are
 * done one by one, as `rest`.  The order of takers is whatever the atomics give: each output row
 * has the same bytes in any order. */
struct takers_t {
    uint32_t *counts; /* [x.rows], then [1]: how many are in rest */
    uint32_t *takers; /* [x.rows][TAKERS_MAX] */
    uint32_t *rest;   /* [out.rows] */
    float *scales;    /* [x.rows][scale_stride]; F8E4M3 */
    uint32_t scale_stride;
};

static __global__ void clear_takers(const __grid_constant__ takers_t takers, uint32_t rows)
{
    wait_for_previous();
    let_next_start();
    uint32_t i = blockIdx.x * LINK_THREADS + threadIdx.x;
    if (i <= rows) takers.counts[i] = 0;
}

static __global__ void link_takers(const __grid_constant__ takers_t takers,
                                   const __grid_constant__ cast_task_t task)
{
    wait_for_previous();
    let_next_start();
    uint32_t row = blockIdx.x * LINK_THREADS + threadIdx.x;
    uint32_t from = row < task.out.rows ? task.index[row] : NO_ROW;
    if (from == NO_ROW) return;
    uint32_t slot = from < task.x.rows ? atomicAdd(&takers.counts[from], 1) : TAKERS_MAX;
    if (slot < TAKERS_MAX)
        takers.takers[from * TAKERS_MAX + slot] = row;
    else
        takers.rest[atomicAdd(&takers.counts[task.x.rows], 1)] = row;
}

/* One row of x to all its takers; codes and scales are made once.  The scales wait for
 * spread_scales: those of one row lie far apart in the output, and written from here each would
 * cost a sector. */
template <typename x_t, typename out_t>
__device__ __forceinline__ void give_row(const cast_task_t &task, const takers_t &takers,
                                         uint32_t from)
{
    uint32_t columns = task.out.cols / PIECE, wanted = min(takers.counts[from], TAKERS_MAX);
    const uint32_t *rows = takers.takers + from * TAKERS_MAX;
    piece_t<x_t> pieces[CAST_PIECES];
    piece_t<out_t> results[CAST_PIECES];
    float scales[CAST_PIECES];
    if (wanted == 0) return;
#pragma unroll
    for (int i = 0; i < CAST_PIECES; i++) {
        uint32_t piece = turn_piece(i, CAST_PIECES);
        piece_clear(&pieces[i]);
        if (piece < columns) piece_load(&pieces[i], piece_of<x_t>(task.x, from, piece));
    }
#pragma unroll
    for (int i = 0; i < CAST_PIECES; i++) {
        float values[PIECE];
        piece_unpack(pieces[i], values);
        if constexpr (std::is_same<out_t, e4m3_t>::value)
            results[i] = piece_quantise(values, &scales[i]);
        else
            piece_pack(&results[i], values);
    }
#pragma unroll
    for (int i = 0; i < CAST_PIECES; i++) {
        uint32_t piece = turn_piece(i, CAST_PIECES), block = piece / SCALE_PIECES;
        if (std::is_same<out_t, e4m3_t>::value && piece < columns && is_first_of_block(piece))
            takers.scales[(size_t)from * takers.scale_stride + block] = scales[i];
    }
    for (uint32_t taker = 0; taker < wanted; taker++) {
        uint32_t row = rows[taker];
#pragma unroll
        for (int i = 0; i < CAST_PIECES; i++) {
            uint32_t piece = turn_piece(i, CAST_PIECES);
            if (piece >= columns) continue;
            piece_store(piece_of<out_t>(task.out, row, piece), results[i]);
        }
    }
}

/* The first blocks: rows of x.  The last REST_BLOCKS: what link_takers left over. */
template <typename x_t, typename out_t>
__global__ void give_rows(const __grid_constant__ takers_t takers,
                          const __grid_constant__ cast_task_t task)
{
    wait_for_previous();
    let_next_start();
    uint32_t givers = gridDim.x - REST_BLOCKS;
    if (blockIdx.x < givers) {
        uint32_t from = block_row();
        if (from < task.x.rows) give_row<x_t, out_t>(task, takers, from);
        return;
    }
    uint32_t rest = takers.counts[task.x.rows], step = REST_BLOCKS * blockDim.y;
    for (uint32_t i = (blockIdx.x - givers) * blockDim.y + threadIdx.y; i < rest; i += step)
        cast_row<x_t>(task, takers.rest[i], task.index[takers.rest[i]]);
}

/* A thread per row of the output and four of its scales, so that neighbouring threads write
 * neighbours. */
static __global__ void spread_scales(const __grid_constant__ takers_t takers,
                                     const __grid_constant__ cast_task_t task)
{
    wait_for_previous();
    let_next_start();
    uint32_t row = blockIdx.x * LINK_THREADS + threadIdx.x, block = blockIdx.y * 4;
    uint32_t blocks = (task.out.cols + SCALE_COLS - 1) / SCALE_COLS;
    uint32_t from = row < task.out.rows ? task.index[row] : NO_ROW;
    if (from >= task.x.rows) return;
    const float *scales = takers.scales + (size_t)from * takers.scale_stride + block;
    float4 four = *(const float4 *)scales;
    float *target = task.out.scales + (size_t)block * task.out.scale_stride + row;
    target[0] = four.x;
    if (block + 1 < blocks) target[task.out.scale_stride] = four.y;
    if (block + 2 < blocks) target[(size_t)2 * task.out.scale_stride] = four.z;
    if (block + 3 < blocks) target[(size_t)3 * task.out.scale_stride] = four.w;
}

#endif
