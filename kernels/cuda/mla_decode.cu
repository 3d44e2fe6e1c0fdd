/* kernels/cuda/mla_decode.cu - checks and launches absorbed attention over the paged cache. */
#include "mla_decode.cuh"
#include "ops_cuda.h"
#include "tensor_map.cuh"

static const float log2_e = 1.44269504F;

/* Rows of heads, in chunks of 64 heads x 64 columns. */
static int map_query(CUtensorMap *map, const tensor_t *x, uint32_t heads)
{
    tensor_view_t view = { x->data,   DTYPE_BF16, MLA_COLS,       heads, x->rows, MLA_COLS,
                           x->stride, 64,         MLA_TILE_HEADS, 1,     128 };
    return tensor_map_init(map, &view);
}

/* Pages of this layer; how many blocks there are nobody says, so the map has no end. */
static int map_pages(CUtensorMap *map, const cache_t *cache)
{
    const char *first =
        (const char *)cache->data + (size_t)cache->layer * MLA_PAGE_KEYS * MLA_COLS * 2;
    tensor_view_t view = {
        first, DTYPE_BF16,    MLA_COLS, MLA_PAGE_KEYS, INT32_MAX, MLA_COLS, cache->block_stride,
        64,    MLA_PAGE_KEYS, 1,        128,           true
    };
    return tensor_map_init(map, &view);
}

static bool is_aligned(const void *data, size_t stride)
{
    return (uintptr_t)data % 16 == 0 && stride % 8 == 0;
}

static bool is_supported(const tensor_t *out, const tensor_t *query, const cache_t *cache,
                         const heads_t *heads, uint32_t count)
{
    uint64_t groups = (heads->heads + MLA_TILE_HEADS - 1) / MLA_TILE_HEADS;
    return query->dtype == DTYPE_BF16 && out->dtype == DTYPE_BF16 && cache->dtype == DTYPE_BF16 &&
           heads->latent == MLA_LATENT && heads->latent + heads->rope == MLA_COLS &&
           cache->latent == heads->latent && cache->rope == heads->rope &&
           cache->block_tokens == MLA_PAGE_KEYS && cache->layer < cache->layers &&
           is_aligned(query->data, query->stride) && is_aligned(out->data, out->stride) &&
           is_aligned(cache->data, cache->block_stride) && heads->heads > 0 && heads->scale > 0 &&
           out->rows == query->rows && query->cols == (uint64_t)heads->heads * MLA_COLS &&
           out->cols == (uint64_t)heads->heads * MLA_LATENT && count <= MLA_SEQUENCES_MAX &&
           query->rows * groups <= UINT16_MAX;
}

int cuda_mla_decode(queue_t *q, const tensor_t *out, const tensor_t *query, const cache_t *cache,
                    const heads_t *heads, const sequence_t *sequences, uint32_t count)
{
    if (!is_supported(out, query, cache, heads, count)) return EINVAL;
    if (query->rows == 0 || count == 0) return 0;
    if (q->scratch_bytes < MLA_TOTAL_BYTES) return ENOMEM;
    CUtensorMap query_map, cache_map;
    if (map_query(&query_map, query, heads->heads) != 0 || map_pages(&cache_map, cache) != 0)
        return EINVAL;
    size_t slots = q->scratch_bytes / MLA_TOTAL_BYTES;
    mla_arguments_t arguments = { sequences,
                                  count,
                                  (heads->heads + MLA_TILE_HEADS - 1) / MLA_TILE_HEADS,
                                  heads->heads,
                                  heads->scale * log2_e,
                                  (__nv_bfloat16 *)out->data,
                                  out->stride,
                                  q->scratch,
                                  slots < MLA_SLOTS_MAX ? (uint32_t)slots : (uint32_t)MLA_SLOTS_MAX,
                                  q->counters };
    /* Alone, a block sums a row's keys in another order than two that share it. */
    uint64_t units = (uint64_t)query->rows * arguments.groups;
    bool is_alone = heads->may_follow_batch && units * 10 >= (uint64_t)q->sm_count * 9;
    int cluster = is_alone ? 1 : 2;
    auto kernel = is_alone ? mla_decode_kernel<1> : mla_decode_kernel<2>;
    int status = allow_shared(kernel, sizeof(mla_shared_t));
    if (status != 0) return status;
    launch_t launch;
    launch_init(&launch, q, dim3((unsigned)(q->sm_count / cluster * cluster)), MLA_THREADS,
                sizeof(mla_shared_t), (unsigned)cluster, true);
    cudaLaunchKernelEx(&launch.config, kernel, query_map, cache_map, arguments);
    return launch_status();
}
