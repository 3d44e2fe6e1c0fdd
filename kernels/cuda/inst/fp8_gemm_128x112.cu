/* kernels/cuda/inst/fp8_gemm_128x112.cu - fp8_gemm with tiles of 128 x 128 results. */
#include "../fp8_gemm_launch.cuh"

int fp8_gemm_launch_128x112(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                            const groups_t *groups)
{
    return fp8_gemm_launch<fp8_gemm_128x112>(q, out, x, w, groups);
}
