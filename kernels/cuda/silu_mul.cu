/* kernels/cuda/silu_mul.cu - silu_mul and grouped_silu_mul: checks and launches. */
#include "silu_mul.cuh"

#include "ops_cuda.h"

static bool is_valid(const tensor_t *out, const tensor_t *gate_up)
{
    return has_pieces(out) && has_pieces(gate_up) && gate_up->dtype != DTYPE_F8E4M3 &&
           gate_up->cols == 2 * out->cols && gate_up->rows == out->rows;
}

int cuda_silu_mul(queue_t *q, const tensor_t *out, const tensor_t *gate_up)
{
    if (!is_valid(out, gate_up)) return EINVAL;
    if (out->rows == 0) return 0;
    row_grid_t shape = row_grid(out->rows, out->cols, SILU_PIECES, SILU_THREADS);
    launch_t launch;
    launch_init(&launch, q, shape.grid, shape.block, 0, 0, true);
    if (gate_up->dtype == DTYPE_F32)
        cudaLaunchKernelEx(&launch.config, silu_mul<float>, *out, *gate_up);
    else
        cudaLaunchKernelEx(&launch.config, silu_mul<bf16_t>, *out, *gate_up);
    return launch_status();
}

int cuda_grouped_silu_mul(queue_t *q, const tensor_t *out, const tensor_t *gate_up,
                          const groups_t *groups)
{
    if (!is_valid(out, gate_up) || groups->count > SILU_GROUPS_MAX) return EINVAL;
    if (out->rows == 0 || groups->count == 0) return 0;
    row_grid_t shape = row_grid(out->rows, out->cols, SILU_PIECES, SILU_THREADS);
    uint32_t each = SILU_THREADS * SILU_BLOCKS / (shape.block.x * shape.block.y);
    uint32_t fitting = each * (uint32_t)q->sm_count;
    uint32_t share = (fitting + shape.grid.y - 1) / shape.grid.y;
    if (shape.grid.x > share) shape.grid.x = share;
    launch_t launch;
    launch_init(&launch, q, shape.grid, shape.block, 0, 0, true);
    if (gate_up->dtype == DTYPE_F32)
        cudaLaunchKernelEx(&launch.config, grouped_silu_mul<float>, *out, *gate_up, *groups);
    else
        cudaLaunchKernelEx(&launch.config, grouped_silu_mul<bf16_t>, *out, *gate_up, *groups);
    return launch_status();
}
