/* kernels/cuda/cast.cuh - rows become rows of another dtype: all of them, or those that an index
 * names. */
#ifndef KERNELS_CUDA_CAST_CUH
#define KERNELS_CUDA_CAST_CUH

#include "hopper.cuh"
#include "quantise.cuh"

enum { CAST_PIECES = 2 };

struct cast_task_t {
    tensor_t out, x;
    const uint32_t *index; /* the row of x for each row of out; NULL: the same row */
    bool is_partial;       /* rows with NO_ROW are left alone */
};

template <typename x_t>
__device__ __forceinline__ void values_of(const tensor_t &x, uint32_t row, uint32_t piece,
                                          const piece_t<x_t> &from, float *values)
{
    piece_unpack(from, values);
    if (dtype_of<x_t>::dtype != DTYPE_F8E4M3) return;
    float scale = *scale_of(x, row, piece);
#pragma unroll
    for (int j = 0; j < PIECE; j++) values[j] *= scale;
}

/* Row `row` of out from row `from` of x; the pieces of this thread's turn.  An index beyond x gives
 * NaN: there is nobody to tell. */
template <typename x_t>
__device__ __forceinline__ void cast_row(const cast_task_t &task, uint32_t row, uint32_t from)
{
    uint32_t count = task.out.cols / PIECE;
    bool is_known = from < task.x.rows;
    piece_t<x_t> pieces[CAST_PIECES];
#pragma unroll
    for (int i = 0; i < CAST_PIECES; i++) {
        uint32_t piece = turn_piece(i, CAST_PIECES);
        piece_clear(&pieces[i]);
        if (is_known && piece < count) piece_load(&pieces[i], piece_of<x_t>(task.x, from, piece));
    }
#pragma unroll
    for (int i = 0; i < CAST_PIECES; i++) {
        uint32_t piece = turn_piece(i, CAST_PIECES);
        float values[PIECE];
#pragma unroll
        for (int j = 0; j < PIECE; j++) values[j] = is_known ? 0 : __int_as_float(0x7fffffff);
        if (is_known && piece < count) values_of<x_t>(task.x, from, piece, pieces[i], values);
        store_values(task.out, row, piece, piece < count, values);
    }
}

template <typename x_t> __global__ void cast_rows(const __grid_constant__ cast_task_t task)
{
    wait_for_previous();
    let_next_start();
    uint32_t row = block_row();
    if (row >= task.out.rows) return;
    uint32_t from = task.index ? task.index[row] : row;
    if (task.is_partial && from == NO_ROW) return;
    cast_row<x_t>(task, row, from);
}

int launch_cast(queue_t *q, const cast_task_t *task);

#endif
