/* kernels/cpu/judge.h - the judge's ops by name: plain loops, sums in double, every dtype that a
 * tensor can have.
 *
 * Fast tables use the judge's version of an op wherever its time does not matter.
 */
#ifndef KERNELS_CPU_JUDGE_H
#define KERNELS_CPU_JUDGE_H

#include "../ops.h"

#define OP(op, params, doc) int judge_##op params;
#include "../ops.def"
#undef OP

/* One sequence of mha_prefill: query rows are its tokens first_position.., kv and k_rope all that
 * they see. */
typedef struct {
    tensor_t out, query, kv, k_rope;
    const heads_t *heads;
    uint32_t first_position;
} prefill_call_t;

typedef int (*prefill_attend_t)(queue_t *q, const prefill_call_t *sequence);

/* Checks the step's tensors and calls `attend` for each sequence's part of them. */
int judge_prefill_each(queue_t *q, const prefill_call_t *step, const sequence_t *sequences,
                       uint32_t count, prefill_attend_t attend);

/* Calls `multiply`, which is a gemm, or `op`, for the rows of each group that has some. */
typedef int (*gemm_op_t)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w);
int judge_gemm_each(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                    const groups_t *groups, gemm_op_t multiply);

typedef int (*rows_op_t)(queue_t *q, const tensor_t *out, const tensor_t *x);
int judge_rows_each(queue_t *q, const tensor_t *out, const tensor_t *x, const groups_t *groups,
                    rows_op_t op);

#endif
