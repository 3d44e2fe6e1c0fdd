/* tests/kernels/cuda/naive_absorb.cuh - the absorbed products in the obvious way, in double. */
#ifndef TESTS_KERNELS_CUDA_NAIVE_ABSORB_CUH
#define TESTS_KERNELS_CUDA_NAIVE_ABSORB_CUH

#include "../../../kernels/ops.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

__device__ static double naive_weight(const tensor_t &w, uint32_t row, uint32_t col)
{
    size_t at = row * w.stride + col;
    if (w.dtype == DTYPE_BF16) return (double)__bfloat162float(((__nv_bfloat16 *)w.data)[at]);
    return (double)(float)((__nv_fp8_e4m3 *)w.data)[at] *
           (double)w.scales[row / 128 * w.scale_stride + col / 128];
}

/* out [T, H * (latent + rope)] F32; grid [heads][tokens]. */
__global__ static void naive_absorb_query(float *out, const tensor_t query, const tensor_t kv_b,
                                          const heads_t heads)
{
    uint32_t h = blockIdx.x, t = blockIdx.y, cols = heads.latent + heads.rope;
    const __nv_bfloat16 *own =
        (__nv_bfloat16 *)query.data + t * query.stride + h * (heads.nope + heads.rope);
    for (uint32_t c = threadIdx.x; c < cols; c += blockDim.x) {
        double sum = 0;
        if (c >= heads.latent) sum = __bfloat162float(own[heads.nope + c - heads.latent]);
        for (uint32_t k = 0; k < heads.nope && c < heads.latent; k++)
            sum += (double)__bfloat162float(own[k]) *
                   naive_weight(kv_b, h * (heads.nope + heads.value) + k, c);
        out[(size_t)t * heads.heads * cols + h * cols + c] = (float)sum;
    }
}

/* out [T, H * value] F32; grid [heads][tokens]. */
__global__ static void naive_absorb_value(float *out, const tensor_t latent, const tensor_t kv_b,
                                          const heads_t heads)
{
    uint32_t h = blockIdx.x, t = blockIdx.y;
    const __nv_bfloat16 *own = (__nv_bfloat16 *)latent.data + t * latent.stride + h * heads.latent;
    for (uint32_t v = threadIdx.x; v < heads.value; v += blockDim.x) {
        double sum = 0;
        for (uint32_t k = 0; k < heads.latent; k++)
            sum += (double)__bfloat162float(own[k]) *
                   naive_weight(kv_b, h * (heads.nope + heads.value) + heads.nope + v, k);
        out[(size_t)t * heads.heads * heads.value + h * heads.value + v] = (float)sum;
    }
}

#endif
