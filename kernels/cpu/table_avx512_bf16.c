/* kernels/cpu/table_avx512_bf16.c - the table for AVX-512 with BF16 dot products; all but the
 * matrix products is AVX-512's. */
#define NAME(op) avx512_bf16_##op
#include "bf16.h"

/* Three rows by eight vectors, or twelve by two, use 24 registers for sums. */
enum { BLOCK_ROWS = 12, LOOP_ROWS = BLOCK_ROWS, FEW_ROWS = 3, FEW_PANELS = 4 };

INLINE __m512i broadcast_pair(const uint16_t *pair)
{
    int32_t bits;
    memcpy(&bits, pair, sizeof bits);
    return _mm512_set1_epi32(bits);
}

INLINE void multiply_pair(__m512 *sums, const uint16_t *x, const uint16_t *b, size_t panel_stride,
                          const uint32_t rows, const uint32_t vectors)
{
    __m512i columns[TILE_VECTORS_MAX];
    UNROLL for (uint32_t v = 0; v < vectors; v++) columns[v] =
        _mm512_loadu_si512(b + v / 2 * panel_stride + v % 2 * (2 * LANES));
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        __m512i factor = broadcast_pair(x + r * K_STEP);
        UNROLL for (uint32_t v = 0; v < vectors; v++) sums[r * vectors + v] =
            dot_pairs(sums[r * vectors + v], factor, columns[v]);
    }
}

INLINE void multiply_tile(const bf16_tile_t *tile, const uint32_t rows, const uint32_t vectors)
{
    __m512 sums[TILE_VECTORS_MAX];
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        UNROLL for (uint32_t v = 0; v < vectors; v++) sums[r * vectors + v] =
            tile->from ? vector_load(tile->from + r * tile->from_stride + v * LANES)
                       : vector_set(0);
    }
    const uint16_t *x = tile->x, *b = tile->b;
    const char *next[TILE_VECTORS_MAX / 2];
    UNROLL for (uint32_t v = 0; v < vectors / 2; v++) next[v] = tile->next + v * tile->next_stride;
    for (uint32_t k = 0; k < tile->depth; k += K_STEP, x += BLOCK_ROWS * K_STEP) {
        UNROLL for (uint32_t v = 0; v < vectors / 2; v++) next[v] =
            fetch_lines(next[v], tile->next_lines);
        for (uint32_t pair = 0; pair < K_STEP; pair += 2, b += 2 * PANEL)
            multiply_pair(sums, x + pair, b, tile->panel_stride, rows, vectors);
    }
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        UNROLL for (uint32_t v = 0; v < vectors; v++)
            vector_store(tile->to + r * tile->to_stride + v * LANES, sums[r * vectors + v]);
    }
}

static void multiply_few(const bf16_tile_t *tile, uint32_t rows)
{
    if (rows == 1) multiply_tile(tile, 1, 2 * FEW_PANELS);
    if (rows == 2) multiply_tile(tile, 2, 2 * FEW_PANELS);
    if (rows == 3) multiply_tile(tile, 3, 2 * FEW_PANELS);
}

/* Within a block of rows the next ones are `rows` K_STEPs further. */
static void pass_rows(bf16_tile_t *tile, uint32_t rows)
{
    tile->x += rows == BLOCK_ROWS ? tile->x_block : (size_t)rows * K_STEP;
    tile->to += rows * tile->to_stride;
    if (tile->from) tile->from += rows * tile->from_stride;
    tile->next += (size_t)tile->next_lines * (tile->depth / K_STEP) * 64;
}

static void multiply_panels(const bf16_tile_t *whole, uint32_t rows, uint32_t panels)
{
    bf16_tile_t tile = *whole;
    if (panels == FEW_PANELS) {
        multiply_few(&tile, rows);
        return;
    }
    for (; rows >= BLOCK_ROWS; rows -= BLOCK_ROWS) {
        multiply_tile(&tile, BLOCK_ROWS, 2);
        pass_rows(&tile, BLOCK_ROWS);
    }
    for (; rows >= 4; rows -= 4) {
        multiply_tile(&tile, 4, 2);
        pass_rows(&tile, 4);
    }
    if (rows == 1) multiply_tile(&tile, 1, 2);
    if (rows == 2) multiply_tile(&tile, 2, 2);
    if (rows == 3) multiply_tile(&tile, 3, 2);
}

#include "bf16_gemm.h"

const ops_t ops_avx512_bf16 = {
    .name = "avx512_bf16",
    .activation = DTYPE_F32,
    .carrier = DTYPE_BF16,
    .prepare_size = avx512_bf16_prepare_size,
    .prepare = avx512_bf16_prepare,
    .embed = judge_embed,
    .rmsnorm = avx512_rmsnorm,
    .add_rmsnorm = avx512_add_rmsnorm,
    .add = judge_add,
    .gemm = avx512_bf16_gemm,
    .grouped_gemm = avx512_bf16_grouped_gemm,
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
