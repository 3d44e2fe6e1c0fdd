/* kernels/cuda/inst/fp8_gemm_few_1_2_128_2.cu - one instantiation of the product of few rows. */
#include "../fp8_gemm_few.cuh"

FEW_KERNEL(1, 2, 128, 2)
