/* kernels/cuda/silu_mul.cuh - silu(gate) * up of rows [gate | up], rounded or quantised: of all
 * rows, or of those that groups hold. */
#ifndef KERNELS_CUDA_SILU_MUL_CUH
#define KERNELS_CUDA_SILU_MUL_CUH

#include "hopper.cuh"
#include "quantise.cuh"

/* Three blocks of SILU_THREADS, or as many smaller ones, fit a multiprocessor. */
enum { SILU_PIECES = 2, SILU_THREADS = 512, SILU_BLOCKS = 3, SILU_GROUPS_MAX = 512 };

/* Two of the special-function unit per value.  Where exp(-gate) overflows, the quotient is zero. */
__device__ __forceinline__ float silu(float gate)
{
    return __fdividef(gate, 1.0f + __expf(-gate));
}

/* The pieces of this thread's turn; a warp holds one row. */
template <typename x_t>
__device__ __forceinline__ void silu_mul_row(const tensor_t &out, const tensor_t &gate_up,
                                             uint32_t row, bool is_row)
{
    uint32_t count = out.cols / PIECE;
    piece_t<x_t> gates[SILU_PIECES], ups[SILU_PIECES];
#pragma unroll
    for (int i = 0; i < SILU_PIECES; i++) {
        uint32_t piece = turn_piece(i, SILU_PIECES);
        piece_clear(&gates[i]);
        piece_clear(&ups[i]);
        if (!is_row || piece >= count) continue;
        piece_load(&gates[i], piece_of<x_t>(gate_up, row, piece));
        piece_load(&ups[i], piece_of<x_t>(gate_up, row, piece + count));
    }
#pragma unroll
    for (int i = 0; i < SILU_PIECES; i++) {
        uint32_t piece = turn_piece(i, SILU_PIECES);
        float values[PIECE], up[PIECE];
        piece_unpack(gates[i], values);
        piece_unpack(ups[i], up);
#pragma unroll
        for (int j = 0; j < PIECE; j++) values[j] = silu(values[j]) * up[j];
        store_values(out, row, piece, is_row && piece < count, values);
    }
}

template <typename x_t>
__global__ void silu_mul(const __grid_constant__ tensor_t out,
                         const __grid_constant__ tensor_t gate_up)
{
    wait_for_previous();
    let_next_start();
    uint32_t row = block_row();
    silu_mul_row<x_t>(out, gate_up, row, row < out.rows);
}

/* ends[g]: rows of groups 0 .. g; by the first warp. */
__device__ __forceinline__ void sum_groups(const groups_t &groups, uint32_t *firsts, uint32_t *ends)
{
    uint32_t lane = threadIdx.x, before = 0;
    for (uint32_t base = 0; base < groups.count; base += 32) {
        uint32_t group = base + lane, first = 0, rows = 0;
        if (group < groups.count) {
            first = groups.first[group];
            rows = groups.rows ? groups.rows[group] : groups.first[group + 1] - first;
        }
        uint32_t sum = rows;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            uint32_t other = __shfl_up_sync(0xffffffff, sum, distance);
            if (lane >= distance) sum += other;
        }
        if (group < groups.count) {
            firsts[group] = first;
            ends[group] = before + sum;
        }
        before += __shfl_sync(0xffffffff, sum, 31);
    }
}

/* The row that is number `item` among the rows of all groups; the whole warp asks for one. */
__device__ __forceinline__ uint32_t row_of_item(const uint32_t *firsts, const uint32_t *ends,
                                                uint32_t count, uint32_t item)
{
    uint32_t group = 0;
    for (uint32_t base = 0; base < count; base += 32) {
        uint32_t index = base + threadIdx.x % 32;
        group += __popc(__ballot_sync(0xffffffff, index < count && ends[index] <= item));
    }
    return firsts[group] + item - (group ? ends[group - 1] : 0);
}

/* As many blocks as fit at once share the rows of all groups, so that empty and partly filled
 * groups cost nothing.  The next kernel is let in late: its blocks, waiting, would take the places
 * that this one's need.
 *
 *   shared: where each group begins, and how many rows the groups up to it have
 *   warps:  the first sums the groups; then all alike */
template <typename x_t>
__global__ void __launch_bounds__(SILU_THREADS, SILU_BLOCKS)
    grouped_silu_mul(const __grid_constant__ tensor_t out, const __grid_constant__ tensor_t gate_up,
                     const __grid_constant__ groups_t groups)
{
    __shared__ uint32_t firsts[SILU_GROUPS_MAX], ends[SILU_GROUPS_MAX];
    wait_for_previous();
    if (threadIdx.y == 0 && threadIdx.x < 32) sum_groups(groups, firsts, ends);
    __syncthreads();
    uint32_t items = ends[groups.count - 1];
    for (uint32_t item = block_row(); item < items; item += gridDim.x * blockDim.y) {
        uint32_t row = row_of_item(firsts, ends, groups.count, item);
        silu_mul_row<x_t>(out, gate_up, row, row < out.rows);
    }
    let_next_start();
}

#endif
