/* kernels/cuda/cast.cu - cast and embed: checks and launches. */
#include "cast.cuh"

#include "ops_cuda.h"

enum { CAST_THREADS = 512 };

/* Its tensors have been checked. */
int launch_cast(queue_t *q, const cast_task_t *task)
{
    if (task->out.rows == 0) return 0;
    row_grid_t shape = row_grid(task->out.rows, task->out.cols, CAST_PIECES, CAST_THREADS);
    launch_t launch;
    launch_init(&launch, q, shape.grid, shape.block, 0, 0, true);
    switch (task->x.dtype) {
    case DTYPE_F32:
        cudaLaunchKernelEx(&launch.config, cast_rows<float>, *task);
        break;
    case DTYPE_BF16:
        cudaLaunchKernelEx(&launch.config, cast_rows<bf16_t>, *task);
        break;
    case DTYPE_F8E4M3:
        cudaLaunchKernelEx(&launch.config, cast_rows<e4m3_t>, *task);
        break;
    }
    return launch_status();
}

int cuda_cast(queue_t *q, const tensor_t *out, const tensor_t *x)
{
    if (out->cols != x->cols || out->rows != x->rows || !has_pieces(out) || !has_pieces(x))
        return EINVAL;
    cast_task_t task = { *out, *x, nullptr, false };
    return launch_cast(q, &task);
}

/* A table in F8E4M3 would have the scales of weights; no model has one. */
int cuda_embed(queue_t *q, const tensor_t *out, const tensor_t *table, const uint32_t *ids)
{
    if (out->cols != table->cols || !has_pieces(out) || table->dtype == DTYPE_F8E4M3 ||
        !has_pieces(table))
        return EINVAL;
    cast_task_t task = { *out, *table, ids, false };
    return launch_cast(q, &task);
}
