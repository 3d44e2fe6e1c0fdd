/* kernels/cpu/judge.c - the table of the judge. */
#include "judge.h"

/* clang-format off */
const ops_t ops_judge = {
    .name = "judge",
    .activation = DTYPE_F32,
    .carrier = DTYPE_F32,
#define OP(op, params, doc) .op = judge_##op,
#include "../ops.def"
#undef OP
};
/* clang-format on */
