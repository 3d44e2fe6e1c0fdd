/* kernels/cuda/inst/fp8_gemm_few_2_1_64_2.cu - one instantiation of the product of few rows. */
#include "../fp8_gemm_few.cuh"

FEW_KERNEL(2, 1, 64, 2)
