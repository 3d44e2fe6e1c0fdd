/* kernels/cuda/kv_copy.cu - kv_gather and copy_blocks: checks and launches. */
#include "kv_copy.cuh"

#include "ops_cuda.h"

enum { GATHER_THREADS = 288, GATHER_BLOCKS = 7, GRID_Y_MAX = 65535 };

static bool is_target(const tensor_t *x, uint32_t cols)
{
    return x->dtype == DTYPE_BF16 && has_pieces(x) && x->cols == cols;
}

/* How many keys there are is known on the device only: blocks in proportion to what the targets can
 * hold, up to what the GPU runs at once. */
int cuda_kv_gather(queue_t *q, const tensor_t *latent, const tensor_t *rope, const cache_t *cache,
                   const sequence_t *sequences, uint32_t count)
{
    uint32_t pieces = (cache->latent + cache->rope) / PIECE;
    if (!cache_has_pieces(cache) || !is_target(latent, cache->latent) ||
        !is_target(rope, cache->rope) || pieces == 0 || pieces > 1024 || count > GRID_Y_MAX)
        return EINVAL;
    if (count == 0 || latent->rows == 0) return 0;
    uint32_t high = pieces < GATHER_THREADS ? GATHER_THREADS / pieces : 1;
    uint32_t parts = (latent->rows + GATHER_TURNS * high - 1) / (GATHER_TURNS * high);
    uint32_t fitting = (GATHER_BLOCKS * (uint32_t)q->sm_count + count - 1) / count;
    gather_task_t task = { *latent, *rope, *cache, sequences };
    launch_t launch;
    launch_init(&launch, q, dim3(parts < fitting ? parts : fitting, count), dim3(pieces, high), 0,
                0, true);
    cudaLaunchKernelEx(&launch.config, gather_keys, task);
    return launch_status();
}

int cuda_copy_blocks(queue_t *q, void *target, const void *source, const uint32_t *target_blocks,
                     const uint32_t *source_blocks, uint32_t count, size_t block_bytes)
{
    if (block_bytes % 16 != 0 || (uintptr_t)target % 16 != 0 || (uintptr_t)source % 16 != 0 ||
        count > GRID_Y_MAX)
        return EINVAL;
    if (count == 0 || block_bytes == 0) return 0;
    copy_task_t task = { (char *)target, (const char *)source, target_blocks, source_blocks,
                         block_bytes };
    launch_t launch;
    launch_init(&launch, q, dim3((unsigned)((block_bytes + COPY_BYTES - 1) / COPY_BYTES), count),
                dim3(COPY_THREADS), 0, 0, true);
    cudaLaunchKernelEx(&launch.config, copy_parts, task);
    return launch_status();
}
