/* kernels/cuda/bf16_gemm.cu - which tile a product of BF16 takes. */
#include "bf16_gemm.cuh"
#include "gemm_parts.h"
#include "queue.cuh"
#include "tensor_map.cuh"

static int map_tile(CUtensorMap *map, const tensor_t *x, uint32_t box_rows)
{
    uint32_t box_cols = x->dtype == DTYPE_F32 ? 32 : 64;
    const tensor_view_t view = { x->data, x->dtype, x->cols,  x->rows, 0,  x->stride,
                                 0,       box_cols, box_rows, 0,       128 };
    return tensor_map_init(map, &view);
}

/* What copies need: 16 bytes. */
static bool is_aligned(const tensor_t *x)
{
    size_t size = x->dtype == DTYPE_F32 ? 4 : 2;
    return (uintptr_t)x->data % 16 == 0 && x->stride * size % 16 == 0;
}

static uint32_t divide_up(uint32_t count, uint32_t by)
{
    return (count + by - 1) / by;
}

template <int tile_m, int tile_n, int stages, int share, typename out_t>
static int launch_typed(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    constexpr uint32_t blocks = share == SHARE_NOTHING ? 1 : 2;
    constexpr uint32_t shared = bf16_gemm_shared<tile_m, tile_n, stages>();
    static_assert(shared <= 232448, "more than a block can have");
    auto kernel = bf16_gemm_kernel<tile_m, tile_n, stages, share, out_t>;
    CUtensorMap x_map, w_map, out_map;
    int status = map_tile(&x_map, x, tile_m / (share == SHARE_X ? 2 : 1));
    if (status == 0) status = map_tile(&w_map, w, tile_n / (share == SHARE_W ? 2 : 1));
    if (status == 0) status = map_tile(&out_map, out, 64);
    if (status == 0) status = allow_shared(kernel, shared);
    if (status != 0) return status;
    bf16_gemm_t args = {};
    args.out = out->data;
    args.out_stride = out->stride;
    args.rows = x->rows;
    args.cols = w->rows;
    args.is_ragged = w->rows * sizeof(out_t) % 16 != 0;
    args.k_blocks = divide_up(x->cols, BF16_GEMM_K);
    args.units_m = divide_up(x->rows, tile_m * (share == SHARE_W ? 2 : 1));
    args.units_n = divide_up(w->rows, tile_n * (share == SHARE_X ? 2 : 1));
    args.group_m = 8;
    uint64_t grid = (uint64_t)args.units_m * args.units_n * blocks;
    uint64_t most = (uint64_t)q->sm_count / blocks * blocks;
    launch_t launch;
    launch_init(&launch, q, dim3((unsigned)(grid < most ? grid : most)),
                dim3(bf16_gemm_threads<tile_m>()), shared, blocks > 1 ? blocks : 0, true);
    cudaLaunchKernelEx(&launch.config, kernel, x_map, w_map, out_map, args);
    return launch_status();
}

template <int tile_m, int tile_n, int stages, int share>
static int launch(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    return out->dtype == DTYPE_F32
               ? launch_typed<tile_m, tile_n, stages, share, float>(q, out, x, w)
               : launch_typed<tile_m, tile_n, stages, share, __nv_bfloat16>(q, out, x, w);
}

int bf16_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    if (x->dtype != DTYPE_BF16 || w->dtype != DTYPE_BF16) return EINVAL;
    if (out->dtype != DTYPE_F32 && out->dtype != DTYPE_BF16) return EINVAL;
    if (x->cols != w->cols || out->rows != x->rows || out->cols != w->rows) return EINVAL;
    if (!is_aligned(out) || !is_aligned(x) || !is_aligned(w)) return EINVAL;
    if (x->rows == 0 || w->rows == 0) return 0;
    bool is_wide = w->rows > (uint32_t)q->sm_count * 128;
    uint64_t tiles = (uint64_t)divide_up(x->rows, 128) * divide_up(w->rows, 256);
    if (x->rows > 128)
        return tiles > (uint32_t)q->sm_count / 2 ? launch<128, 256, 4, SHARE_W>(q, out, x, w)
                                                 : launch<128, 128, 6, SHARE_X>(q, out, x, w);
    if (x->rows > 64)
        return is_wide ? launch<128, 128, 6, SHARE_X>(q, out, x, w)
                       : launch<128, 64, 8, SHARE_X>(q, out, x, w);
    return is_wide ? launch<64, 128, 8, SHARE_NOTHING>(q, out, x, w)
                   : launch<64, 64, 12, SHARE_X>(q, out, x, w);
}
