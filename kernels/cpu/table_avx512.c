/* kernels/cpu/table_avx512.c - the table for AVX512: F32 arithmetic, weights expanded on the way.
 */
#define NAME(op) avx512_##op
#include "fast_attention.h"
#include "fast_gemm.h"
#include "fast_rows.h"

const ops_t ops_avx512 = {
    .name = "avx512",
    .activation = DTYPE_F32,
    .carrier = DTYPE_BF16,
    .prepare_size = avx512_prepare_size,
    .prepare = avx512_prepare,
    .embed = judge_embed,
    .rmsnorm = avx512_rmsnorm,
    .add_rmsnorm = avx512_add_rmsnorm,
    .add = judge_add,
    .gemm = avx512_gemm,
    .grouped_gemm = avx512_grouped_gemm,
    .rope = judge_rope,
    .kv_write = judge_kv_write,
    .kv_gather = judge_kv_gather,
    .mha_prefill = avx512_mha_prefill,
    .absorb_query = avx512_absorb_query,
    .mla_decode = avx512_mla_decode,
    .absorb_value = avx512_absorb_value,
    .gate = avx512_gate,
    .silu_mul = avx512_silu_mul,
    .grouped_silu_mul = avx512_grouped_silu_mul,
    .route = judge_route,
    .gather_rows = judge_gather_rows,
    .combine = avx512_combine,
    .cast = judge_cast,
    .copy_blocks = judge_copy_blocks,
    .sample = judge_sample,
};
