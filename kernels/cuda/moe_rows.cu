/* kernels/cuda/moe_rows.cu - route, gather_rows and combine: checks and launches. */
#include "combine.cuh"
#include "gather_rows.cuh"
#include "route.cuh"

#include "ops_cuda.h"

/* ---- route ---- */

static void launch_route(queue_t *q, const route_task_t *task)
{
    launch_t launch;
    launch_init(&launch, q, dim3(1), dim3(ROUTE_THREADS), 0, 0, true);
    cudaLaunchKernelEx(&launch.config, route_choices<ROUTE_TURNS_MAX, false>, *task);
}

static int launch_route_split(queue_t *q, route_task_t *task)
{
    uint32_t blocks = (task->choices + ROUTE_PART - 1) / ROUTE_PART;
    if (q->scratch_bytes < (size_t)blocks * task->route.experts * sizeof(uint32_t)) return ENOMEM;
    task->counts = (uint32_t *)q->scratch;
    launch_t launch;
    launch_init(&launch, q, dim3(blocks), dim3(ROUTE_THREADS), 0, 0, true);
    cudaLaunchKernelEx(&launch.config, count_choices, *task);
    cudaLaunchKernelEx(&launch.config, route_choices<ROUTE_PART_TURNS, true>, *task);
    return 0;
}

int cuda_route(queue_t *q, uint32_t *first, uint32_t *rows, uint32_t *source, uint32_t *index,
               const uint32_t *ids, const route_t *route)
{
    uint64_t choices = (uint64_t)route->tokens * route->top_k;
    if (route->align == 0 || route->experts > ROUTE_EXPERTS_MAX || choices > INT32_MAX)
        return EINVAL;
    route_task_t task = { first, rows, source, index, ids, *route, (uint32_t)choices, nullptr };
    if (choices > ROUTE_TURNS_MAX * ROUTE_THREADS) {
        int status = launch_route_split(q, &task);
        if (status != 0) return status;
    } else {
        launch_route(q, &task);
    }
    return launch_status();
}

/* ---- gather_rows ---- */

enum { GATHER_THREADS = 512, GIVE_VALUES_MIN = 12 << 20 };

/* Turning the index around costs a few small kernels, about 6 us: worth it where the output is
 * large and takes each row of x twice or more. */
static bool is_shared(const tensor_t *out, const tensor_t *x)
{
    return x->dtype == DTYPE_BF16 && out->dtype != DTYPE_F32 && out->rows / 2 >= x->rows &&
           (size_t)out->rows * out->cols >= GIVE_VALUES_MIN;
}

/* Bytes of scratch that it takes. */
static size_t takers_init(takers_t *self, const queue_t *q, const tensor_t *out, const tensor_t *x)
{
    self->scale_stride = (out->cols + 4 * SCALE_COLS - 1) / (4 * SCALE_COLS) * 4;
    self->scales = (float *)q->scratch;
    self->takers = (uint32_t *)(self->scales + (size_t)x->rows * self->scale_stride);
    self->counts = self->takers + (size_t)x->rows * TAKERS_MAX;
    self->rest = self->counts + x->rows + 1;
    return (size_t)((char *)(self->rest + out->rows) - q->scratch);
}

static int give(queue_t *q, const takers_t *takers, const cast_task_t *task)
{
    uint32_t rows = task->x.rows, parts = (task->out.rows + LINK_THREADS - 1) / LINK_THREADS;
    launch_t launch;
    launch_init(&launch, q, dim3(rows / LINK_THREADS + 1), dim3(LINK_THREADS), 0, 0, true);
    cudaLaunchKernelEx(&launch.config, clear_takers, *takers, rows);
    launch.config.gridDim = dim3(parts);
    cudaLaunchKernelEx(&launch.config, link_takers, *takers, *task);
    row_grid_t shape = row_grid(rows, task->out.cols, CAST_PIECES, GATHER_THREADS);
    launch.config.gridDim = dim3(shape.grid.x + REST_BLOCKS, shape.grid.y);
    launch.config.blockDim = shape.block;
    if (task->out.dtype == DTYPE_BF16) {
        cudaLaunchKernelEx(&launch.config, give_rows<bf16_t, bf16_t>, *takers, *task);
        return launch_status();
    }
    cudaLaunchKernelEx(&launch.config, give_rows<bf16_t, e4m3_t>, *takers, *task);
    launch.config.gridDim = dim3(parts, takers->scale_stride / 4);
    launch.config.blockDim = dim3(LINK_THREADS);
    cudaLaunchKernelEx(&launch.config, spread_scales, *takers, *task);
    return launch_status();
}

int cuda_gather_rows(queue_t *q, const tensor_t *out, const tensor_t *x, const uint32_t *index)
{
    if (out->cols != x->cols || !has_pieces(out) || !has_pieces(x)) return EINVAL;
    cast_task_t task = { *out, *x, index, true };
    takers_t takers;
    if (is_shared(out, x) && takers_init(&takers, q, out, x) <= q->scratch_bytes)
        return give(q, &takers, &task);
    return launch_cast(q, &task);
}

/* ---- combine ---- */

template <typename out_t, typename rows_t>
static int combine(queue_t *q, const combine_task_t *task)
{
    row_grid_t shape = row_grid(task->out.rows, task->out.cols, 1, COMBINE_THREADS);
    launch_t launch;
    launch_init(&launch, q, shape.grid, shape.block, 0, 0, true);
    cudaLaunchKernelEx(&launch.config, combine_rows<out_t, rows_t>, *task);
    return launch_status();
}

template <typename out_t> static int combine_any(queue_t *q, const combine_task_t *task)
{
    if (task->rows.dtype == DTYPE_F32) return combine<out_t, float>(q, task);
    if (task->rows.dtype == DTYPE_BF16) return combine<out_t, bf16_t>(q, task);
    return combine<out_t, e4m3_t>(q, task);
}

int cuda_combine(queue_t *q, const tensor_t *out, const tensor_t *rows, const uint32_t *index,
                 const float *weights, uint32_t top_k)
{
    if (out->cols != rows->cols || !has_pieces(out) || !has_pieces(rows) ||
        out->dtype == DTYPE_F8E4M3)
        return EINVAL;
    if (out->rows == 0) return 0;
    combine_task_t task = { *out, *rows, index, weights, top_k };
    return out->dtype == DTYPE_F32 ? combine_any<float>(q, &task) : combine_any<bf16_t>(q, &task);
}
