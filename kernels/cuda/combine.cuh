/* kernels/cuda/combine.cuh - the experts' rows of each token, weighted and added to its row. */
#ifndef KERNELS_CUDA_COMBINE_CUH
#define KERNELS_CUDA_COMBINE_CUH

#include "cast.cuh"

/* Rows under way per thread: DeepSeek-V3's top_k. */
enum { COMBINE_ROWS = 8, COMBINE_THREADS = 256, COMBINE_BLOCKS = 3 };

struct combine_task_t {
    tensor_t out, rows;
    const uint32_t *index;
    const float *weights;
    uint32_t top_k;
};

/* A warp holds columns of one token; each lane knows one of the rows that are under way, and its
 * weight. A product and a sum, each rounded, in the order of k: the judge's bits.  An index beyond
 * the rows gives NaN. */
template <typename out_t, typename rows_t>
__global__ void __launch_bounds__(COMBINE_THREADS, COMBINE_BLOCKS)
    combine_rows(const __grid_constant__ combine_task_t task)
{
    constexpr int turns = sizeof(rows_t) > 2 ? COMBINE_ROWS / 2 : COMBINE_ROWS;
    wait_for_previous();
    let_next_start();
    uint32_t token = block_row(), piece = turn_piece(0, 1), lane = threadIdx.x % 32;
    bool is_inside = token < task.out.rows && piece < task.out.cols / PIECE;
    piece_t<out_t> own;
    piece_clear(&own);
    if (is_inside) piece_load(&own, piece_of<out_t>(task.out, token, piece));
    float sums[PIECE], values[PIECE];
    for (uint32_t first = 0; first < task.top_k; first += turns) {
        uint32_t known = NO_ROW;
        float factor = 0;
        if (lane < turns && first + lane < task.top_k && token < task.out.rows) {
            size_t at = (size_t)token * task.top_k + first + lane;
            known = task.index[at];
            factor = known < task.rows.rows ? task.weights[at] : __int_as_float(0x7fffffff);
        }
        piece_t<rows_t> pieces[turns];
#pragma unroll
        for (int i = 0; i < turns; i++) {
            uint32_t from = __shfl_sync(0xffffffff, known, i);
            piece_clear(&pieces[i]);
            if (is_inside && from < task.rows.rows)
                piece_load(&pieces[i], piece_of<rows_t>(task.rows, from, piece));
        }
        if (first == 0) piece_unpack(own, sums);
#pragma unroll
        for (int i = 0; i < turns; i++) {
            uint32_t from = __shfl_sync(0xffffffff, known, i);
            float weight = __shfl_sync(0xffffffff, factor, i);
            if (from == NO_ROW) continue;
            piece_unpack(pieces[i], values);
            if (dtype_of<rows_t>::dtype == DTYPE_F8E4M3 && is_inside && from < task.rows.rows) {
                float scale = *scale_of(task.rows, from, piece);
#pragma unroll
                for (int j = 0; j < PIECE; j++) values[j] *= scale;
            }
#pragma unroll
            for (int j = 0; j < PIECE; j++)
                sums[j] = __fadd_rn(sums[j], __fmul_rn(weight, values[j]));
        }
    }
    if (!is_inside || task.top_k == 0) return;
    piece_pack(&own, sums);
    piece_store(piece_of<out_t>(task.out, token, piece), own);
}

#endif
