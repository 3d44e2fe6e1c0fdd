/* kernels/cpu/table_avx512_bf16.c - the table for AVX-512 with BF16 dot products; all but the
 * matrix products is AVX-512's. */
#define NAME(op) avx512_bf16_##op
#include "bf16.h"

/* Three rows by eight vectors, or twelve by two, use 24 registers for sums. */
enum { FEW_ROWS = 3, FEW_PANELS = 4, ROWS_PER_TILE = 12 };

static void begin_tiles(void)
{
}

static void end_tiles(void)
{
}

INLINE __m512bh broadcast_pair(const uint16_t *pair)
{
    int32_t bits;
    memcpy(&bits, pair, sizeof bits);
    return (__m512bh)_mm512_set1_epi32(bits);
}

INLINE void multiply_tile(const bf16_tile_t *tile, const uint32_t rows, const uint32_t vectors)
{
    __m512 sums[TILE_VECTORS_MAX];
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        UNROLL for (uint32_t v = 0; v < vectors; v++) sums[r * vectors + v] =
            tile->is_first ? _mm512_setzero_ps()
                           : _mm512_loadu_ps(tile->sums + r * tile->sums_stride + v * LANES);
    }
    const uint16_t *x = tile->x, *b = tile->b;
    for (uint32_t k = 0; k < tile->depth; k += 2, x += 2, b += 2 * PANEL) {
        __m512bh columns[TILE_VECTORS_MAX];
        UNROLL for (uint32_t v = 0; v < vectors; v++) columns[v] =
            (__m512bh)_mm512_loadu_si512(b + v / 2 * tile->panel_stride + v % 2 * (2 * LANES));
        UNROLL for (uint32_t r = 0; r < rows; r++)
        {
            __m512bh factor = broadcast_pair(x + r * tile->x_stride);
            UNROLL for (uint32_t v = 0; v < vectors; v++) sums[r * vectors + v] =
                _mm512_dpbf16_ps(sums[r * vectors + v], factor, columns[v]);
        }
    }
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        UNROLL for (uint32_t v = 0; v < vectors; v++)
            _mm512_storeu_ps(tile->sums + r * tile->sums_stride + v * LANES, sums[r * vectors + v]);
    }
}

static void multiply_few(const bf16_tile_t *tile, uint32_t rows)
{
    if (rows == 1) multiply_tile(tile, 1, 2 * FEW_PANELS);
    if (rows == 2) multiply_tile(tile, 2, 2 * FEW_PANELS);
    if (rows == 3) multiply_tile(tile, 3, 2 * FEW_PANELS);
}

static void multiply_panels(const bf16_tile_t *whole, uint32_t rows, uint32_t panels)
{
    bf16_tile_t tile = *whole;
    if (panels == FEW_PANELS) {
        multiply_few(&tile, rows);
        return;
    }
    for (; rows >= ROWS_PER_TILE; rows -= ROWS_PER_TILE) {
        multiply_tile(&tile, ROWS_PER_TILE, 2);
        tile.x += ROWS_PER_TILE * tile.x_stride;
        tile.sums += ROWS_PER_TILE * tile.sums_stride;
    }
    for (; rows >= 4; rows -= 4) {
        multiply_tile(&tile, 4, 2);
        tile.x += 4 * tile.x_stride;
        tile.sums += 4 * tile.sums_stride;
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
    .gather_rows = judge_gather_rows,
    .combine = avx512_combine,
    .cast = judge_cast,
    .copy_blocks = judge_copy_blocks,
};
