/* kernels/cuda/fp8_gemm.h - one launcher per tile shape of fp8_gemm.def.
 *
 * Arguments as fp8_gemm_many's, already checked; 0, EINVAL where a tensor map cannot be made, or
 * EIO.
 */
#ifndef KERNELS_CUDA_FP8_GEMM_H
#define KERNELS_CUDA_FP8_GEMM_H

#include "../ops.h"

/* clang-format off */
#define FP8_GEMM_SHAPE(rows, cols, stages, cluster_rows, cluster_cols, block_ns, tile_ns)  \
    int fp8_gemm_launch_##rows##x##cols(queue_t *q, const tensor_t *out, const tensor_t *x,        \
                                        const tensor_t *w, const groups_t *groups);
#include "fp8_gemm.def"
#undef FP8_GEMM_SHAPE
/* clang-format on */

#endif
