/* kernels/cuda/gemm_parts.h - the products that gemm and grouped_gemm choose from; all of them give
 * a row the same bits.
 *
 * Each returns 0, EINVAL for dtypes, shapes or alignments that it does not take, ENOMEM when it
 * finds too little scratch, or EIO; it launches on q->stream and does not wait.  Dense: x [M, k], w
 * [n, k], out [M, n].  Groups: w points at groups->count tensors of one shape, whose data and whose
 * scales follow one another without a gap.
 */
#ifndef KERNELS_CUDA_GEMM_PARTS_H
#define KERNELS_CUDA_GEMM_PARTS_H

#include "../ops.h"

/* F8E4M3 x F8E4M3 to BF16 or F32; groups NULL: dense.  few: weights are read once and rows are few
 * (a dense M up to about 256, groups of few rows); many: limited by arithmetic;
 * its callers have checked the arguments. */
int fp8_gemm_few(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                 const groups_t *groups);
int fp8_gemm_many(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                  const groups_t *groups);

/* BF16 x BF16 to BF16 or F32. */
int bf16_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w);

#endif
