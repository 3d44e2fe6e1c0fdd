/* tests/kernels/cuda/naive_bf16_gemm.cuh - the product of two BF16 matrices in the obvious way,
 * sums in double. */
#ifndef TESTS_KERNELS_CUDA_NAIVE_BF16_GEMM_CUH
#define TESTS_KERNELS_CUDA_NAIVE_BF16_GEMM_CUH

#include <cuda_bf16.h>
#include <stdint.h>

/* out [M, n] F32, one thread an element; grid [n / 128][M]. */
__global__ static void naive_bf16_gemm(float *out, const __nv_bfloat16 *x, size_t x_stride,
                                       const __nv_bfloat16 *w, size_t w_stride, uint32_t cols,
                                       uint32_t depth)
{
    uint32_t col = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (col >= cols) return;
    double sum = 0;
    for (uint32_t k = 0; k < depth; k++)
        sum += (double)__bfloat162float(x[row * x_stride + k]) *
               (double)__bfloat162float(w[col * w_stride + k]);
    out[(size_t)row * cols + col] = (float)sum;
}

#endif
