/* kernels/cuda/tensor_map.cu - tensor maps through the driver's encoder, found at run time so that
 * nothing links libcuda. */
#include "tensor_map.cuh"

#include <cudaTypedefs.h>

#include <cuda_runtime.h>

#include <errno.h>

static PFN_cuTensorMapEncodeTiled_v12000 encoder(void);

int tensor_map_init(CUtensorMap *map, const tensor_view_t *view)
{
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = encoder();
    static const uint32_t sizes[] = { 4, 2, 1 }; /* by dtype_t */
    static const CUtensorMapDataType types[] = { CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                                 CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                                 CU_TENSOR_MAP_DATA_TYPE_UINT8 };
    if (!encode) return EIO;
    uint32_t rank = view->planes ? 3 : 2, size = sizes[view->dtype];
    cuuint64_t shape[3] = { view->cols, view->rows, view->planes };
    cuuint64_t strides[2] = { view->row_stride * size, view->plane_stride * size };
    cuuint32_t box[3] = { view->box_cols, view->box_rows, view->box_planes ? view->box_planes : 1 };
    cuuint32_t steps[3] = { 1, 1, 1 };
    CUtensorMapSwizzle swizzle = view->swizzle_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                 : view->swizzle_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                 : view->swizzle_bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                             : CU_TENSOR_MAP_SWIZZLE_NONE;
    CUtensorMapL2promotion promotion = view->is_fetched_short ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B
                                                              : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    CUresult result = encode(map, types[view->dtype], rank, (void *)view->data, shape, strides, box,
                             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion,
                             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? 0 : EINVAL;
}

static PFN_cuTensorMapEncodeTiled_v12000 encoder(void)
{
    void *found = nullptr;
    cudaDriverEntryPointQueryResult status;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                         &status) != cudaSuccess ||
        status != cudaDriverEntryPointSuccess)
        return nullptr;
    return (PFN_cuTensorMapEncodeTiled_v12000)found;
}
