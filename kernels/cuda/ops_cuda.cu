/* kernels/cuda/ops_cuda.cu - the table of Hopper GPUs. */
#include "ops_cuda.h"

/* clang-format off */
extern "C" const ops_t ops_cuda = {
    "cuda",
    DTYPE_BF16,
    DTYPE_F8E4M3,
#define OP(op, params, doc) cuda_##op,
#include "../ops.def"
#undef OP
};
/* clang-format on */
