/* kernels/cuda/ops_cuda.h - the ops of Hopper GPUs by name, and the products that gemm chooses
 * from. */
#ifndef KERNELS_CUDA_OPS_CUDA_H
#define KERNELS_CUDA_OPS_CUDA_H

#include "../ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#define OP(op, params, doc) int cuda_##op params;
#include "../ops.def"
#undef OP

#ifdef __cplusplus
}
#endif
#endif
