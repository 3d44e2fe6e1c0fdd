/* kernels/cuda/rmsnorm.cuh - rows added to the residual, normalised, rounded and quantised in one
 * pass. */
#ifndef KERNELS_CUDA_RMSNORM_CUH
#define KERNELS_CUDA_RMSNORM_CUH

#include "hopper.cuh"
#include "quantise.cuh"

struct norm_task_t {
    tensor_t residual; /* or the rows that rmsnorm reads */
    tensor_t x;        /* what is added */
    const bf16_t *weight;
    tensor_t out, quantised; /* data NULL: not wanted */
    float eps;
};

/* Of the threads that share this thread's row; the same order for every row of a width.  partial
 * has a line of warps for each row of the block. */
__device__ __forceinline__ float row_sum(float value, float (*partial)[32])
{
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffff, value, distance);
    if (warps == 1) return value;
    if (lane == 0) partial[threadIdx.y][warp] = value;
    __syncthreads();
    value = lane < warps ? partial[threadIdx.y][lane] : 0;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffff, value, distance);
    return value;
}

/* A row lies in `pieces` pieces of each of its threads, as row_grid says; every warp holds one row.
 *
 *   shared: sums of squares of the row's warps, a line per row of the block
 *   warps:  all alike: load, add, store the residual, sum, normalise, store
 *
 * x_t void: nothing is added and the residual is not written.  The sum is rounded to residual_t
 * before it is normalised, so that what is normalised is what the next layer will read. */
template <typename residual_t, typename x_t, int pieces>
__global__ void add_rmsnorm(const __grid_constant__ norm_task_t task)
{
    constexpr bool is_added = !std::is_void<x_t>::value;
    typedef typename std::conditional<is_added, x_t, bf16_t>::type added_t;
    __shared__ float partial[ROW_THREADS / 32][32];
    const tensor_t &residual = task.residual;
    uint32_t row = block_row(), count = residual.cols / PIECE;
    bool is_row = row < residual.rows;
    piece_t<bf16_t> weights[pieces];
    piece_t<residual_t> sums[pieces];
    piece_t<added_t> added[pieces];
#pragma unroll
    for (int i = 0; i < pieces; i++) {
        uint32_t piece = turn_piece(i, pieces);
        piece_clear(&weights[i]);
        if (piece < count) weights[i].bits = __ldg((const uint4 *)(task.weight + piece * PIECE));
    }
    wait_for_previous();
    let_next_start();
#pragma unroll
    for (int i = 0; i < pieces; i++) {
        uint32_t piece = turn_piece(i, pieces);
        piece_clear(&sums[i]);
        piece_clear(&added[i]);
        if (!is_row || piece >= count) continue;
        piece_load(&sums[i], piece_of<residual_t>(residual, row, piece));
        if (is_added) piece_load(&added[i], piece_of<added_t>(task.x, row, piece));
    }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < pieces; i++) {
        float values[PIECE], more[PIECE];
        piece_unpack(sums[i], values);
        if (is_added) {
            uint32_t piece = turn_piece(i, pieces);
            piece_unpack(added[i], more);
#pragma unroll
            for (int j = 0; j < PIECE; j++) values[j] += more[j];
            piece_pack(&sums[i], values);
            if (is_row && piece < count)
                piece_store(piece_of<residual_t>(residual, row, piece), sums[i]);
            piece_unpack(sums[i], values);
        }
#pragma unroll
        for (int j = 0; j < PIECE; j++) squares = fmaf(values[j], values[j], squares);
    }
    float mean = row_sum(squares, partial) / (float)residual.cols;
    float factor = __frcp_rn(__fsqrt_rn(mean + task.eps));
#pragma unroll
    for (int i = 0; i < pieces; i++) {
        uint32_t piece = turn_piece(i, pieces);
        bool is_inside = is_row && piece < count;
        float values[PIECE], weight[PIECE];
        piece_unpack(sums[i], values);
        piece_unpack(weights[i], weight);
#pragma unroll
        for (int j = 0; j < PIECE; j++) values[j] = values[j] * factor * weight[j];
        if (task.out.data) store_values(task.out, row, piece, is_inside, values);
        if (task.quantised.data) store_values(task.quantised, row, piece, is_inside, values);
    }
}

#endif
