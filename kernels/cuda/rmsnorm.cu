/* kernels/cuda/rmsnorm.cu - rmsnorm, add_rmsnorm and add: checks and launches. */
#include "rmsnorm.cuh"

#include "ops_cuda.h"

/* Pieces of a thread: DeepSeek-V3's 7,168 columns are 448 threads, several such blocks on a
 * multiprocessor, so that one loads while another sums; 1,536 columns are 96, two rows in a block.
 */
enum { NORM_PIECES = 2, NORM_COLS_MAX = NORM_PIECES * 1024 * PIECE };

static bool is_activation(const tensor_t *x)
{
    return (x->dtype == DTYPE_BF16 || x->dtype == DTYPE_F32) && has_pieces(x);
}

static bool is_like(const tensor_t *x, const tensor_t *model)
{
    return x->rows == model->rows && x->cols == model->cols && has_pieces(x);
}

template <typename residual_t, typename x_t> static int launch(queue_t *q, const norm_task_t *task)
{
    if (task->residual.rows == 0) return 0;
    row_grid_t shape = row_grid(task->residual.rows, task->residual.cols, NORM_PIECES, 1024);
    launch_t launch;
    launch_init(&launch, q, shape.grid, shape.block, 0, 0, true);
    cudaLaunchKernelEx(&launch.config, add_rmsnorm<residual_t, x_t, NORM_PIECES>, *task);
    return launch_status();
}

static bool is_valid(const norm_task_t *task, const tensor_t *weight)
{
    const tensor_t *residual = &task->residual;
    return is_activation(residual) && residual->cols <= NORM_COLS_MAX &&
           weight->dtype == DTYPE_BF16 && weight->cols == residual->cols &&
           (uintptr_t)weight->data % 16 == 0 &&
           (!task->out.data || is_like(&task->out, residual)) &&
           (!task->quantised.data || is_like(&task->quantised, residual));
}

int cuda_rmsnorm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *weight,
                 float eps)
{
    norm_task_t task = { *x, {}, (const bf16_t *)weight->data, *out, {}, eps };
    if (!out->data && x->rows > 0) return EINVAL;
    if (out->rows != x->rows || !is_valid(&task, weight)) return EINVAL;
    return x->dtype == DTYPE_F32 ? launch<float, void>(q, &task) : launch<bf16_t, void>(q, &task);
}

int cuda_add_rmsnorm(queue_t *q, const tensor_t *out, const tensor_t *quantised,
                     const tensor_t *residual, const tensor_t *x, const tensor_t *weight, float eps)
{
    norm_task_t task = { *residual, {}, (const bf16_t *)weight->data, {}, {}, eps };
    if (out) task.out = *out;
    if (quantised) task.quantised = *quantised;
    if (quantised && quantised->dtype != DTYPE_F8E4M3) return EINVAL;
    if (!is_valid(&task, weight)) return EINVAL;
    bool is_f32 = residual->dtype == DTYPE_F32;
    if (!x) return is_f32 ? launch<float, void>(q, &task) : launch<bf16_t, void>(q, &task);
    task.x = *x;
    if (!is_activation(x) || !is_like(x, residual)) return EINVAL;
    if (x->dtype == DTYPE_F32)
        return is_f32 ? launch<float, float>(q, &task) : launch<bf16_t, float>(q, &task);
    return is_f32 ? launch<float, bf16_t>(q, &task) : launch<bf16_t, bf16_t>(q, &task);
}

/* ---- add ---- */

enum { ADD_PIECES = 2 };

template <typename residual_t, typename x_t>
static __global__ void add_rows(const __grid_constant__ tensor_t residual,
                                const __grid_constant__ tensor_t x)
{
    wait_for_previous();
    let_next_start();
    uint32_t row = block_row(), count = residual.cols / PIECE;
    if (row >= residual.rows) return;
    piece_t<residual_t> sums[ADD_PIECES];
    piece_t<x_t> added[ADD_PIECES];
#pragma unroll
    for (int i = 0; i < ADD_PIECES; i++) {
        uint32_t piece = turn_piece(i, ADD_PIECES);
        if (piece >= count) continue;
        piece_load(&sums[i], piece_of<residual_t>(residual, row, piece));
        piece_load(&added[i], piece_of<x_t>(x, row, piece));
    }
#pragma unroll
    for (int i = 0; i < ADD_PIECES; i++) {
        uint32_t piece = turn_piece(i, ADD_PIECES);
        if (piece >= count) continue;
        float values[PIECE], more[PIECE];
        piece_unpack(sums[i], values);
        piece_unpack(added[i], more);
#pragma unroll
        for (int j = 0; j < PIECE; j++) values[j] += more[j];
        piece_pack(&sums[i], values);
        piece_store(piece_of<residual_t>(residual, row, piece), sums[i]);
    }
}

template <typename residual_t, typename x_t>
static int launch_add(queue_t *q, const tensor_t *residual, const tensor_t *x)
{
    row_grid_t shape = row_grid(residual->rows, residual->cols, ADD_PIECES, 512);
    launch_t launch;
    launch_init(&launch, q, shape.grid, shape.block, 0, 0, true);
    cudaLaunchKernelEx(&launch.config, add_rows<residual_t, x_t>, *residual, *x);
    return launch_status();
}

int cuda_add(queue_t *q, const tensor_t *residual, const tensor_t *x)
{
    if (!is_activation(residual) || !is_activation(x) || !is_like(x, residual)) return EINVAL;
    if (residual->rows == 0) return 0;
    bool is_f32 = residual->dtype == DTYPE_F32;
    if (x->dtype == DTYPE_F32)
        return is_f32 ? launch_add<float, float>(q, residual, x)
                      : launch_add<bf16_t, float>(q, residual, x);
    return is_f32 ? launch_add<float, bf16_t>(q, residual, x)
                  : launch_add<bf16_t, bf16_t>(q, residual, x);
}
