/* kernels/cuda/absorb.cu - absorb_query and absorb_value: checks and launches. */
#include "absorb.cuh"
#include "ops_cuda.h"
#include "queue.cuh"
#include "tensor_map.cuh"

/* What both ask for: V3's dims of a head except rope's, BF16 activations; the alignment of x and
 * out is checked by their tensor maps. */
static bool is_supported(const tensor_t *out, const tensor_t *x, const tensor_t *kv_b,
                         const heads_t *heads)
{
    if (heads->nope != ABSORB_TILE || heads->value != ABSORB_TILE) return false;
    if (heads->latent != ABSORB_LATENT || heads->rope == 0 || heads->rope % 8 || heads->rope > 64)
        return false;
    if (heads->heads == 0 || heads->heads > 65535 || x->rows > 65535 * 64) return false;
    if (out->dtype != DTYPE_BF16 || x->dtype != DTYPE_BF16 || out->rows != x->rows) return false;
    if (kv_b->cols != heads->latent || kv_b->rows != heads->heads * 2 * ABSORB_TILE) return false;
    for (const tensor_t *tensor : { out, x })
        if ((uintptr_t)tensor->data % 16 || tensor->stride % 8) return false;
    size_t size = kv_b->dtype == DTYPE_F8E4M3 ? 1 : 2;
    return (kv_b->dtype == DTYPE_BF16 || (kv_b->dtype == DTYPE_F8E4M3 && kv_b->scales)) &&
           (uintptr_t)kv_b->data % 16 == 0 && kv_b->stride * size % 16 == 0;
}

/* Boxes of 64 rows x 64 columns. */
static int map_rows(CUtensorMap *map, const tensor_t *x)
{
    const tensor_view_t view = { x->data, x->dtype, x->cols, x->rows, 0,  x->stride,
                                 0,       64,       64,      0,       128 };
    return tensor_map_init(map, &view);
}

typedef void (*absorb_kernel_t)(CUtensorMap, CUtensorMap, absorb_t);

static int launch(queue_t *q, absorb_kernel_t kernel, dim3 grid, uint32_t shared,
                  const tensor_t *out, const tensor_t *x, const tensor_t *kv_b, uint32_t rope)
{
    CUtensorMap in_map, out_map;
    int status = map_rows(&in_map, x);
    if (status == 0) status = map_rows(&out_map, out);
    if (status == 0) status = allow_shared(kernel, shared);
    if (status != 0) return status;
    absorb_t args = {};
    args.weights = (const char *)kv_b->data;
    args.scales = kv_b->scales;
    args.weight_stride = kv_b->stride * (kv_b->dtype == DTYPE_F8E4M3 ? 1 : 2);
    args.scale_stride = kv_b->scale_stride;
    args.out = (__nv_bfloat16 *)out->data;
    args.query = (const __nv_bfloat16 *)x->data;
    args.out_stride = out->stride;
    args.query_stride = x->stride;
    args.tokens = x->rows;
    args.rope = rope;
    launch_t launch;
    launch_init(&launch, q, grid, dim3(ABSORB_THREADS), shared, 0, true);
    cudaLaunchKernelEx(&launch.config, kernel, in_map, out_map, args);
    return launch_status();
}

extern "C" int cuda_absorb_query(queue_t *q, const tensor_t *out, const tensor_t *query,
                                 const tensor_t *kv_b, const heads_t *heads)
{
    if (!is_supported(out, query, kv_b, heads) ||
        query->cols != heads->heads * (heads->nope + heads->rope) ||
        out->cols != heads->heads * (heads->latent + heads->rope))
        return EINVAL;
    if (query->rows == 0) return 0;
    absorb_kernel_t kernel =
        kv_b->dtype == DTYPE_F8E4M3 ? absorb_query_kernel<true> : absorb_query_kernel<false>;
    dim3 grid(ABSORB_BLOCKS / 2, heads->heads, (query->rows + 127) / 128);
    return launch(q, kernel, grid, ABSORB_QUERY_SHARED, out, query, kv_b, heads->rope);
}

extern "C" int cuda_absorb_value(queue_t *q, const tensor_t *out, const tensor_t *latent,
                                 const tensor_t *kv_b, const heads_t *heads)
{
    if (!is_supported(out, latent, kv_b, heads) || latent->cols != heads->heads * heads->latent ||
        out->cols != heads->heads * heads->value)
        return EINVAL;
    if (latent->rows == 0) return 0;
    absorb_kernel_t kernel =
        kv_b->dtype == DTYPE_F8E4M3 ? absorb_value_kernel<true> : absorb_value_kernel<false>;
    dim3 grid(heads->heads, (latent->rows + ABSORB_VALUE_TOKENS - 1) / ABSORB_VALUE_TOKENS);
    return launch(q, kernel, grid, ABSORB_VALUE_SHARED, out, latent, kv_b, heads->rope);
}
