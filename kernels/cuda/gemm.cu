/* kernels/cuda/gemm.cu - matrix products on Hopper: checks arguments and chooses the kernel. */
#include "fp8_gemm.h"
#include "gemm_choose.h"
#include "gemm_parts.h"
#include "gemm_tiles.h"
#include "ops_cuda.h"
#include "queue.cuh"

int cuda_prepare_size(const tensor_t *w, size_t *bytes)
{
    *bytes = 0;
    return 0;
}

int cuda_prepare(const tensor_t *w, void *packed)
{
    return 0;
}

/* ---- what all products ask for ---- */

static bool is_aligned(const void *data, size_t stride_bytes)
{
    return ((uintptr_t)data | stride_bytes) % 16 == 0;
}

static bool is_fp8_operand(const tensor_t *x)
{
    return x->dtype == DTYPE_F8E4M3 && x->scales && x->cols % 16 == 0 && x->cols <= x->stride &&
           is_aligned(x->data, x->stride);
}

static bool is_result(const tensor_t *out)
{
    size_t size = out->dtype == DTYPE_F32 ? 4 : 2;
    return (out->dtype == DTYPE_F32 || out->dtype == DTYPE_BF16) && out->cols <= out->stride &&
           out->cols % 8 == 0 && is_aligned(out->data, out->stride * size);
}

static bool is_shape(const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    return x->cols == w->cols && out->cols == w->rows && out->rows == x->rows;
}

static bool is_fp8_product(const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    return is_shape(out, x, w) && is_result(out) && is_fp8_operand(x) && is_fp8_operand(w) &&
           x->scale_stride % 4 == 0 && x->scale_stride >= x->rows && is_aligned(x->scales, 0) &&
           w->scale_stride >= gemm_tiles(w->cols, 128);
}

/* Weights of all groups are one array, so that one tensor map reaches them. */
static bool is_one_array(const tensor_t *w, uint32_t count)
{
    if (count > 1 && w->stride != w->cols) return false;
    size_t bytes = (size_t)w->rows * w->cols;
    size_t scales = (size_t)gemm_tiles(w->rows, 128) * w->scale_stride;
    for (uint32_t g = 1; g < count; g++)
        if (w[g].data != (char *)w->data + g * bytes || w[g].scales != w->scales + g * scales ||
            w[g].dtype != w->dtype || w[g].rows != w->rows || w[g].cols != w->cols ||
            w[g].stride != w->stride || w[g].scale_stride != w->scale_stride)
            return false;
    return true;
}

/* ---- many rows: which tile ---- */

typedef int (*fp8_launch_t)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                            const groups_t *groups);

/* clang-format off */
static const fp8_launch_t launches[] = {
#define FP8_GEMM_SHAPE(rows, cols, stages, cluster_rows, cluster_cols, block_ns, tile_ns) \
    fp8_gemm_launch_##rows##x##cols,
#include "fp8_gemm.def"
#undef FP8_GEMM_SHAPE
};
/* clang-format on */

int fp8_gemm_many(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                  const groups_t *groups)
{
    gemm_size_t size = gemm_size(x, w, groups);
    return launches[gemm_choose(&size, (uint32_t)q->sm_count)](q, out, x, w, groups);
}

static int fp8_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                    const groups_t *groups)
{
    gemm_size_t size = gemm_size(x, w, groups);
    return gemm_is_few(&size, (uint32_t)q->sm_count) ? fp8_gemm_few(q, out, x, w, groups)
                                                     : fp8_gemm_many(q, out, x, w, groups);
}

/* ---- the ops ---- */

int cuda_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    if (x->dtype == DTYPE_BF16 && w->dtype == DTYPE_BF16) return bf16_gemm(q, out, x, w);
    if (!is_fp8_product(out, x, w)) return EINVAL;
    if (x->rows == 0) return 0;
    return fp8_gemm(q, out, x, w, nullptr);
}

int cuda_grouped_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                      const groups_t *groups)
{
    if (groups->count == 0 || x->rows == 0) return 0;
    if (!is_fp8_product(out, x, w) || !is_one_array(w, groups->count)) return EINVAL;
    if (groups->count > GEMM_GROUPS_MAX || !groups->first) return EINVAL;
    return fp8_gemm(q, out, x, w, groups);
}
