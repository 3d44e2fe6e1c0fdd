/* kernels/cuda/mha_prefill.cu - checks the arguments of mha_prefill and launches it. */
#include "mha_prefill.cuh"
#include "ops_cuda.h"
#include "tensor_map.cuh"

#include <algorithm>

static const int block_keys = 128, stages = 2;

static bool is_matrix(const tensor_t *x, uint32_t cols)
{
    return x->dtype == DTYPE_BF16 && x->cols == cols && x->stride >= cols && x->stride % 8 == 0 &&
           (uintptr_t)x->data % 16 == 0;
}

/* Columns in planes of 64, so that one copy fills several swizzled tiles; box_planes 0: x has but
 * 64 columns. */
static int map_columns(CUtensorMap *map, const tensor_t *x, uint32_t box_rows, uint32_t box_planes)
{
    tensor_view_t view = {};
    view.data = x->data;
    view.dtype = DTYPE_BF16;
    view.cols = view.box_cols = 64;
    view.rows = x->rows;
    view.planes = box_planes ? x->cols / 64 : 0;
    view.row_stride = x->stride;
    view.plane_stride = 64;
    view.box_rows = box_rows;
    view.box_planes = box_planes;
    view.swizzle_bytes = 128;
    return tensor_map_init(map, &view);
}

int cuda_mha_prefill(queue_t *q, const tensor_t *out, const tensor_t *query, const tensor_t *kv,
                     const tensor_t *k_rope, const heads_t *heads, const sequence_t *sequences,
                     uint32_t count)
{
    if (heads->nope != 128 || heads->rope != 64 || heads->value != 128 || heads->heads == 0 ||
        !(heads->scale > 0) || count > PREFILL_SEQUENCES_MAX || k_rope->rows < kv->rows ||
        out->rows != query->rows || !is_matrix(query, heads->heads * 192) ||
        !is_matrix(kv, heads->heads * 256) || !is_matrix(k_rope, 64) ||
        !is_matrix(out, heads->heads * 128))
        return EINVAL;
    if (query->rows == 0 || kv->rows == 0 || count == 0) return 0;
    CUtensorMap query_map, kv_map, rope_map;
    if (map_columns(&query_map, query, 64, 3) != 0 ||
        map_columns(&kv_map, kv, block_keys, 2) != 0 ||
        map_columns(&rope_map, k_rope, block_keys, 0) != 0)
        return EINVAL;
    auto kernel = mha_prefill<block_keys, stages>;
    size_t shared_bytes = sizeof(prefill_shared_t<block_keys, stages>);
    if (allow_shared(kernel, shared_bytes) != 0) return EIO;
    prefill_task_t task = { sequences,
                            count,
                            heads->heads,
                            heads->scale * 1.44269504f,
                            (__nv_bfloat16 *)out->data,
                            out->stride,
                            q->counters };
    /* Each sequence adds at most one tile that is not full. */
    uint64_t tiles = ((uint64_t)query->rows / PREFILL_ROWS + count) * heads->heads;
    launch_t launch;
    launch_init(&launch, q, dim3((unsigned)std::min<uint64_t>(tiles, (uint64_t)q->sm_count)),
                dim3(PREFILL_THREADS), shared_bytes, 0, true);
    cudaLaunchKernelEx(&launch.config, kernel, query_map, kv_map, rope_map, task);
    return launch_status();
}
