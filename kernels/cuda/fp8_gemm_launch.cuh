/* kernels/cuda/fp8_gemm_launch.cuh - tensor maps and launch of one tile shape of fp8_gemm; included
 * where a shape is instantiated. */
#ifndef KERNELS_CUDA_FP8_GEMM_LAUNCH_CUH
#define KERNELS_CUDA_FP8_GEMM_LAUNCH_CUH

#include "fp8_gemm.cuh"
#include "fp8_gemm.h"
#include "queue.cuh"
#include "tensor_map.cuh"

/* clang-format off */
#define FP8_GEMM_SHAPE(rows, cols, stages, cluster_rows, cluster_cols, block_ns, tile_ns) \
    using fp8_gemm_##rows##x##cols = \
        fp8_gemm_shape<rows, cols, stages, cluster_rows, cluster_cols>;
#include "fp8_gemm.def"
#undef FP8_GEMM_SHAPE
/* clang-format on */

struct fp8_gemm_maps_t {
    CUtensorMap x, x_scales, w, out;
};

template <typename shape>
int fp8_gemm_make_maps(fp8_gemm_maps_t *maps, const tensor_t *out, const tensor_t *x,
                       const tensor_t *w, uint32_t groups)
{
    tensor_view_t view = {};
    view.data = x->data;
    view.dtype = DTYPE_F8E4M3;
    view.cols = x->cols;
    view.rows = x->rows;
    view.row_stride = x->stride;
    view.box_cols = view.swizzle_bytes = 128;
    view.box_rows = shape::rows / shape::cluster_cols;
    int status = tensor_map_init(&maps->x, &view);
    view.data = w->data;
    view.rows = (uint64_t)groups * w->rows;
    view.row_stride = w->stride;
    view.box_rows = shape::cols / shape::cluster_rows;
    if (status == 0) status = tensor_map_init(&maps->w, &view);
    view = {};
    view.data = x->scales;
    view.dtype = DTYPE_F32;
    view.cols = x->rows;
    view.rows = gemm_tiles(x->cols, 128);
    view.row_stride = x->scale_stride;
    view.box_cols = shape::scale_box;
    view.box_rows = 1;
    if (status == 0) status = tensor_map_init(&maps->x_scales, &view);
    if (out->dtype == DTYPE_F32) return status;
    view.data = out->data;
    view.dtype = DTYPE_BF16;
    view.cols = out->cols;
    view.rows = out->rows;
    view.row_stride = out->stride;
    view.box_cols = shape::chunk_cols;
    view.box_rows = 16;
    view.swizzle_bytes = shape::is_swizzled ? 128 : 0;
    return status == 0 ? tensor_map_init(&maps->out, &view) : status;
}

template <typename shape>
fp8_gemm_t fp8_gemm_arguments(const tensor_t *out, const tensor_t *x, const tensor_t *w,
                              const groups_t *groups)
{
    fp8_gemm_t args = {};
    args.w_scales = w->scales;
    args.w_scale_stride = w->scale_stride;
    args.out = out->data;
    args.out_stride = out->stride;
    args.is_f32 = out->dtype == DTYPE_F32;
    args.rows = x->rows;
    args.cols = w->rows;
    args.k_blocks = gemm_tiles(x->cols, 128);
    args.group_first = groups ? groups->first : nullptr;
    args.group_rows = groups ? groups->rows : nullptr;
    args.groups = groups ? groups->count : 1;
    args.col_tiles = gemm_tiles(args.cols, shape::cols * shape::cluster_cols);
    args.panel = 2048 / (shape::rows * shape::cluster_rows);
    return args;
}

/* Arguments were checked. */
template <typename shape>
int fp8_gemm_launch(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                    const groups_t *groups)
{
    fp8_gemm_t args = fp8_gemm_arguments<shape>(out, x, w, groups);
    fp8_gemm_maps_t maps = {};
    int status = fp8_gemm_make_maps<shape>(&maps, out, x, w, args.groups);
    auto kernel = fp8_gemm_kernel<shape>;
    if (status == 0) status = allow_shared(kernel, shape::shared_bytes);
    if (status != 0) return status;
    uint32_t clusters = (uint32_t)q->sm_count / shape::cluster;
    if (!groups) {
        uint32_t row_tiles = gemm_tiles(args.rows, shape::rows * shape::cluster_rows);
        if (row_tiles * args.col_tiles < clusters) clusters = row_tiles * args.col_tiles;
    }
    launch_t launch;
    launch_init(&launch, q, dim3(clusters * shape::cluster), dim3(FP8_GEMM_THREADS),
                shape::shared_bytes, shape::cluster, true);
    cudaLaunchKernelEx(&launch.config, kernel, maps.x, maps.x_scales, maps.w, maps.out, args);
    return launch_status();
}

#endif
