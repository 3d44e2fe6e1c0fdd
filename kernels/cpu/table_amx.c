/* kernels/cpu/table_amx.c - the table for AMX: its own matrix products; all but those is
 * AVX-512's. */
#include "amx_gemm.h"

const ops_t ops_amx = {
    .name = "amx",
    .activation = DTYPE_F32,
    .carrier = DTYPE_BF16,
    .prepare_size = amx_prepare_size,
    .prepare = amx_prepare,
    .embed = judge_embed,
    .rmsnorm = avx512_rmsnorm,
    .add_rmsnorm = avx512_add_rmsnorm,
    .add = judge_add,
    .gemm = amx_gemm,
    .grouped_gemm = amx_grouped_gemm,
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
