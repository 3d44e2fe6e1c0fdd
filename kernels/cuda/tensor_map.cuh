/* kernels/cuda/tensor_map.cuh - tensor maps for bulk copies, made on the host, passed to kernels by
 * value (const __grid_constant__ CUtensorMap). */
#ifndef KERNELS_CUDA_TENSOR_MAP_CUH
#define KERNELS_CUDA_TENSOR_MAP_CUH

#include "../ops.h"

#include <cuda.h>

/* A view of memory as [planes][rows][cols] of `dtype`, of which a copy moves one box; what lies
 * outside the view reads as zero and is not written.  planes 0: two dimensions. */
struct tensor_view_t {
    const void *data; /* aligned to 16 bytes */
    dtype_t dtype;
    uint64_t cols, rows, planes;
    uint64_t row_stride, plane_stride;       /* elements; bytes are multiples of 16 */
    uint32_t box_cols, box_rows, box_planes; /* at most 256 each; box_planes 0: 1 */
    uint32_t swizzle_bytes; /* 0, 32, 64 or 128: also the most bytes of a box's row */
    bool is_fetched_short;  /* misses of the L2 fetch 128 bytes, not 256 */
};

/* 0, or EINVAL: not aligned, or a box that the hardware cannot copy. */
int tensor_map_init(CUtensorMap *map, const tensor_view_t *view);

#endif
