/* kernels/cpu/table_avx2.c - the table for AVX2: F32 arithmetic, weights expanded on the way. */
#define NAME(op) avx2_##op
#include "fast_attention.h"
#include "fast_gemm.h"
#include "fast_rows.h"

const ops_t ops_avx2 = {
    .name = "avx2",
    .activation = DTYPE_F32,
    .carrier = DTYPE_BF16,
    .prepare_size = avx2_prepare_size,
    .prepare = avx2_prepare,
    .embed = judge_embed,
    .rmsnorm = avx2_rmsnorm,
    .add_rmsnorm = avx2_add_rmsnorm,
    .add = judge_add,
    .gemm = avx2_gemm,
    .grouped_gemm = avx2_grouped_gemm,
    .rope = judge_rope,
    .kv_write = judge_kv_write,
    .kv_gather = judge_kv_gather,
    .mha_prefill = avx2_mha_prefill,
    .absorb_query = avx2_absorb_query,
    .mla_decode = avx2_mla_decode,
    .absorb_value = avx2_absorb_value,
    .gate = avx2_gate,
    .silu_mul = avx2_silu_mul,
    .grouped_silu_mul = avx2_grouped_silu_mul,
    .route = judge_route,
    .gather_rows = judge_gather_rows,
    .combine = avx2_combine,
    .cast = judge_cast,
    .copy_blocks = judge_copy_blocks,
    .sample = judge_sample,
};
