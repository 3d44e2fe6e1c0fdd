/* tests/kernels/cuda/naive_gemm.cuh - the FP8 product as its definition reads: one thread per
 * result, sums in double. */
#ifndef TESTS_KERNELS_CUDA_NAIVE_GEMM_CUH
#define TESTS_KERNELS_CUDA_NAIVE_GEMM_CUH

#include "../../../kernels/ops.h"

#include <cuda_fp8.h>

/* out [rows, w.rows] of rows first .. first + rows - 1 of x. */
static __global__ void naive_fp8_gemm(double *out, tensor_t x, tensor_t w, uint32_t first)
{
    uint32_t col = blockIdx.x * blockDim.x + threadIdx.x, row = first + blockIdx.y;
    if (col >= w.rows) return;
    const __nv_fp8_e4m3 *a = (const __nv_fp8_e4m3 *)x.data + row * x.stride;
    const __nv_fp8_e4m3 *b = (const __nv_fp8_e4m3 *)w.data + col * w.stride;
    double sum = 0;
    for (uint32_t block = 0; block * 128 < x.cols; block++) {
        double scale = (double)x.scales[block * (size_t)x.scale_stride + row] *
                       (double)w.scales[col / 128 * (size_t)w.scale_stride + block];
        double part = 0;
        for (uint32_t k = block * 128; k < min(block * 128 + 128, x.cols); k++)
            part += (double)(float)a[k] * (double)(float)b[k];
        sum += part * scale;
    }
    out[(size_t)blockIdx.y * w.rows + col] = sum;
}

#endif
