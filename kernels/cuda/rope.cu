/* kernels/cuda/rope.cu - rope and kv_write: checks and launches. */
#include "rope.cuh"

#include "ops_cuda.h"

enum { ROPE_THREADS = 256, ROPE_PIECES_MAX = 32 };

int cuda_rope(queue_t *q, const tensor_t *x, uint32_t heads, uint32_t head_stride, uint32_t offset,
              uint32_t dim, const float *table, const uint32_t *positions)
{
    if (x->dtype != DTYPE_BF16 || !has_pieces(x) || heads == 0 || dim == 0 || dim % PIECE != 0 ||
        offset % PIECE != 0 || head_stride % PIECE != 0 || dim / PIECE > ROPE_PIECES_MAX ||
        (size_t)(heads - 1) * head_stride + offset + dim > x->cols || (uintptr_t)table % 16 != 0)
        return EINVAL;
    if (x->rows == 0) return 0;
    uint32_t pieces = dim / PIECE, turns = (heads + ROPE_HEADS - 1) / ROPE_HEADS;
    uint32_t high = turns < ROPE_THREADS / pieces ? turns : ROPE_THREADS / pieces;
    rope_task_t task = { *x, heads, head_stride, offset, pieces, table, positions };
    launch_t launch;
    launch_init(&launch, q, dim3(x->rows, (turns + high - 1) / high), dim3(pieces, high), 0, 0,
                true);
    cudaLaunchKernelEx(&launch.config, rope_rows, task);
    return launch_status();
}

int cuda_kv_write(queue_t *q, const cache_t *cache, const tensor_t *kv, const tensor_t *weight,
                  float eps, const float *table, const uint32_t *positions,
                  const sequence_t *sequences, uint32_t count)
{
    if (!cache_has_pieces(cache) || cache->latent == 0 || cache->latent > KV_LATENT_MAX ||
        cache->rope > 32 * PIECE || kv->dtype != DTYPE_BF16 || !has_pieces(kv) ||
        kv->cols != cache->latent + cache->rope || weight->dtype != DTYPE_BF16 ||
        weight->cols != cache->latent || (uintptr_t)weight->data % 16 != 0 ||
        (uintptr_t)table % 16 != 0)
        return EINVAL;
    if (kv->rows == 0 || count == 0) return 0;
    kv_task_t task = { *cache,    *kv,  (const bf16_t *)weight->data, eps, table, positions,
                       sequences, count };
    launch_t launch;
    launch_init(&launch, q, dim3((kv->rows + KV_WARPS - 1) / KV_WARPS), dim3(32, KV_WARPS), 0, 0,
                true);
    cudaLaunchKernelEx(&launch.config, kv_write_rows, task);
    return launch_status();
}
