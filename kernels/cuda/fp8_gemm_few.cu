/* kernels/cuda/fp8_gemm_few.cu - FP8 product of few rows: checks, the choice of tiles, tensor maps.
 */
#include "fp8_gemm_few.h"
#include "gemm_choose.h"
#include "gemm_parts.h"
#include "tensor_map.cuh"

#include <cuda_runtime.h>

#include <errno.h>

static uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static bool is_aligned(const void *pointer)
{
    return (uintptr_t)pointer % 16 == 0;
}

static bool is_supported(const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    if (x->dtype != DTYPE_F8E4M3 || w->dtype != DTYPE_F8E4M3 || out->dtype == DTYPE_F8E4M3)
        return false;
    if (x->cols != w->cols || out->cols != w->rows || out->rows != x->rows) return false;
    if (w->rows % 8 != 0 || w->cols == 0 || w->rows == 0) return false;
    if (x->stride % 16 != 0 || w->stride % 16 != 0 || out->stride % 8 != 0) return false;
    if (x->scale_stride % 4 != 0 || x->scale_stride < x->rows) return false;
    return is_aligned(x->data) && is_aligned(x->scales) && is_aligned(w->data) &&
           is_aligned(out->data) && w->scales;
}

/* Groups are read as one matrix of weights. */
static bool are_adjacent(const tensor_t *w, uint32_t count)
{
    size_t scales = (size_t)ceil_div(w->rows, 128) * w->scale_stride;
    if (count > 1 && w->stride != w->cols) return false;
    for (uint32_t g = 1; g < count; g++)
        if (w[g].rows != w->rows || w[g].cols != w->cols || w[g].stride != w->stride ||
            w[g].scale_stride != w->scale_stride || w[g].dtype != w->dtype ||
            w[g].data != (char *)w->data + (size_t)g * w->rows * w->cols ||
            w[g].scales != w->scales + g * scales)
            return false;
    return true;
}

static int make_maps(few_arguments_t *arguments, const few_plan_t *plan, const tensor_t *x,
                     const tensor_t *w)
{
    tensor_view_t rows = { x->data, DTYPE_F8E4M3, x->cols,          x->rows, 0,  x->stride,
                           0,       128,          arguments->x_box, 0,       128 };
    tensor_view_t scales = { x->scales,
                             DTYPE_F32,
                             x->rows,
                             arguments->k_blocks,
                             0,
                             x->scale_stride,
                             0,
                             arguments->x_scale_rows,
                             plan->kernel->depth,
                             0,
                             0 };
    tensor_view_t weights = { w->data,
                              DTYPE_F8E4M3,
                              w->cols,
                              (uint64_t)w->rows * arguments->group_count,
                              0,
                              w->stride,
                              0,
                              128,
                              plan->kernel->weights / plan->cluster_tokens,
                              0,
                              128 };
    int status = tensor_map_init(&arguments->x, &rows);
    if (status == 0) status = tensor_map_init(&arguments->x_scales, &scales);
    return status == 0 ? tensor_map_init(&arguments->w, &weights) : status;
}

/* Copies of x are as small as the rows expected in a tile, shared out over the cluster. */
static uint32_t box_of(const few_plan_t *plan, uint32_t rows)
{
    if (rows == 0 || rows > plan->kernel->tokens) rows = plan->kernel->tokens;
    uint32_t box = 8;
    while (box < 64 && box * plan->cluster_weights < rows) box *= 2;
    return box;
}

int fp8_gemm_few_by(const few_plan_t *plan, queue_t *q, const tensor_t *out, const tensor_t *x,
                    const tensor_t *w, const groups_t *groups)
{
    if (!is_supported(out, x, w)) return EINVAL;
    if (groups && (groups->count > FEW_GROUPS_MAX || !are_adjacent(w, groups->count)))
        return EINVAL;
    if (x->rows == 0 || (groups && groups->count == 0)) return 0;
    few_arguments_t arguments = {};
    arguments.w_scales = w->scales;
    arguments.out = out->data;
    arguments.first = groups ? groups->first : nullptr;
    arguments.rows = groups ? groups->rows : nullptr;
    arguments.out_stride = out->stride;
    arguments.group_count = groups ? groups->count : 1;
    arguments.all_rows = x->rows;
    arguments.weight_rows = w->rows;
    arguments.k_blocks = ceil_div(w->cols, 128);
    arguments.w_scale_rows = ceil_div(w->rows, 128);
    arguments.w_scale_stride = w->scale_stride;
    arguments.cluster_tokens = plan->cluster_tokens;
    arguments.cluster_weights = plan->cluster_weights;
    arguments.w_slots = plan->w_slots;
    arguments.x_slots = plan->x_slots;
    arguments.x_box = box_of(plan, groups ? groups->expected_rows : x->rows);
    arguments.x_scale_rows = plan->kernel->tokens + (groups ? FEW_SKEW : 0);
    arguments.is_f32 = out->dtype == DTYPE_F32;
    int status = make_maps(&arguments, plan, x, w);
    return status == 0 ? plan->kernel->launch(q, &arguments, plan) : status;
}

/* ---- the choice ---- */

/* The first that fits: rows of a product (of a group, as expected), weights for each SM (of all
 * groups), k.  Times are those by which the plans were chosen, on an H100, before copies of scales
 * grew by FEW_SKEW rows: kernels/NOTES.md.  Slots fill half of an SM's shared memory where the next
 * kernel's loading beside this one gains more than depth does. */
struct few_choice_t {
    uint32_t rows, weights, k;
    few_plan_t plan;
};

static const uint32_t more = UINT32_MAX; /* any number */

/* clang-format off */
static const few_choice_t choices[] = {
    /* rows weights k   kernel             cluster  w  x  blocks of an SM */
    {  64,  16, more, { &few_kernel_1_1_16_4,  1, 1, 5, 2, 1 } }, /*  64 x 2112 x 7168    9.9 us */
    {  64,  32, more, { &few_kernel_1_1_32_4,  1, 1, 5, 4, 1 } }, /*  64 x 4096 x 7168   12.4 us */
    {  64,  56, more, { &few_kernel_1_1_56_4,  1, 1, 4, 3, 1 } }, /*  64 x 7168 x 16384  41.1 us */
    {  64, more, 512, { &few_kernel_1_2_128_2, 1, 1, 2, 2, 1 } }, /*  64 x 32768 x 512    8.8 us */
    {  64, more, more, { &few_kernel_1_1_64_4, 1, 1, 3, 3, 1 } }, /*  64 x 24576 x 1536  14.1 us */
    {  64, more, more, { &few_kernel_1_1_64_1, 1, 1, 7, 5, 1 } }, /* any number of blocks of k */
    { more, 16, more, { &few_kernel_1_1_32_4,  1, 1, 3, 5, 1 } }, /* 128 x 2112 x 7168   10.4 us */
    { more, 32, more, { &few_kernel_1_1_64_4,  2, 1, 3, 3, 1 } }, /* 128 x 4096 x 7168   14.3 us */
    { more, 56, 4096, { &few_kernel_2_1_64_2,  1, 1, 5, 4, 1 } }, /* 128 x 7168 x 2048    8.7 us */
    { more, 56, more, { &few_kernel_2_1_56_2,  1, 1, 5, 4, 1 } }, /* 128 x 7168 x 16384  44.3 us */
    { more, 200, more, { &few_kernel_2_1_64_2, 1, 1, 5, 4, 1 } }, /* 128 x 24576 x 1536  18.7 us */
    { more, more, more, { &few_kernel_2_1_64_1, 1, 1, 6, 3, 2 } }, /* any number of blocks of k */
};
/* clang-format on */

enum { CHOICES = sizeof choices / sizeof choices[0] };

uint32_t few_plan_count(void)
{
    return CHOICES;
}

const few_plan_t *few_plan_at(uint32_t index)
{
    return &choices[index].plan;
}

bool few_plan_fits(const few_plan_t *plan, uint32_t k)
{
    return ceil_div(k, 128) % plan->kernel->depth == 0;
}

int fp8_gemm_few(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                 const groups_t *groups)
{
    gemm_size_t size = gemm_size(x, w, groups);
    uint32_t weights = gemm_weights(&size, (uint32_t)q->sm_count);
    for (const few_choice_t &it : choices)
        if (size.rows <= it.rows && weights <= it.weights && w->cols <= it.k &&
            few_plan_fits(&it.plan, w->cols))
            return fp8_gemm_few_by(&it.plan, q, out, x, w, groups);
    return EINVAL;
}
