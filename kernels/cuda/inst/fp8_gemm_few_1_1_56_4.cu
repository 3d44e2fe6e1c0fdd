/* kernels/cuda/inst/fp8_gemm_few_1_1_56_4.cu - one instantiation of the product of few rows. */
#include "../fp8_gemm_few.cuh"

FEW_KERNEL(1, 1, 56, 4)
