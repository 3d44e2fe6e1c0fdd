/* kernels/cuda/inst/fp8_gemm_few_2_2_128_2.cu - one instantiation of the product of few rows. */
#include "../fp8_gemm_few.cuh"

FEW_KERNEL(2, 2, 128, 2)
