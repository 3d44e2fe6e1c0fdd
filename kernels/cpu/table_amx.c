/* kernels/cpu/table_amx.c - the table for AMX: matrix products in tiles of 16 rows; all but those
 * is AVX-512's.
 *
 * Tiles: 0-3 sums, 4-5 rows of x, 6-7 weights, each 16 rows of 64 bytes.  Rows of x beyond the last
 * are zeros, so every row goes through the same instructions whatever the batch.
 */
#define NAME(op) amx_##op
#include "bf16.h"

enum { FEW_ROWS = 16, FEW_PANELS = 2, TILE_ROWS = 16, TILE_ROW_BYTES = 64 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config_t;

/* The tile instructions of some compilers do not tell that they touch memory. */
static inline void order_memory(void)
{
    __asm__ volatile("" ::: "memory");
}

static void begin_tiles(void)
{
    tile_config_t config = { .palette = 1 };
    for (uint32_t i = 0; i < 8; i++) {
        config.row_bytes[i] = TILE_ROW_BYTES;
        config.rows[i] = TILE_ROWS;
    }
    order_memory();
    _tile_loadconfig(&config);
    order_memory();
}

static void end_tiles(void)
{
    _tile_release();
}

/* Bytes between rows of a weight tile: a pair of k for a whole panel. */
enum { WEIGHT_STRIDE = 2 * PANEL * 2, HALF_PANEL = 2 * TILE_ROWS };

/* 32 rows, one panel: two tiles of x against two of weights. */
static void multiply_32_rows(const bf16_tile_t *tile)
{
    size_t x_bytes = tile->x_stride * sizeof(uint16_t),
           sums_bytes = tile->sums_stride * sizeof(float);
    float *low = tile->sums, *high = tile->sums + TILE_ROWS * tile->sums_stride;
    order_memory();
    if (tile->is_first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, low, sums_bytes);
        _tile_loadd(1, low + TILE_ROWS, sums_bytes);
        _tile_loadd(2, high, sums_bytes);
        _tile_loadd(3, high + TILE_ROWS, sums_bytes);
    }
    const uint16_t *x = tile->x, *b = tile->b;
    for (uint32_t k = 0; k < tile->depth; k += K_STEP, x += K_STEP, b += K_STEP * PANEL) {
        _tile_loadd(4, x, x_bytes);
        _tile_loadd(6, b, WEIGHT_STRIDE);
        _tile_loadd(7, b + HALF_PANEL, WEIGHT_STRIDE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + TILE_ROWS * tile->x_stride, x_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, low, sums_bytes);
    _tile_stored(1, low + TILE_ROWS, sums_bytes);
    _tile_stored(2, high, sums_bytes);
    _tile_stored(3, high + TILE_ROWS, sums_bytes);
    order_memory();
}

/* 16 rows, one panel. */
static void multiply_16_rows(const bf16_tile_t *tile)
{
    size_t x_bytes = tile->x_stride * sizeof(uint16_t),
           sums_bytes = tile->sums_stride * sizeof(float);
    order_memory();
    if (tile->is_first) {
        _tile_zero(0);
        _tile_zero(1);
    } else {
        _tile_loadd(0, tile->sums, sums_bytes);
        _tile_loadd(1, tile->sums + TILE_ROWS, sums_bytes);
    }
    const uint16_t *x = tile->x, *b = tile->b;
    for (uint32_t k = 0; k < tile->depth; k += K_STEP, x += K_STEP, b += K_STEP * PANEL) {
        _tile_loadd(4, x, x_bytes);
        _tile_loadd(6, b, WEIGHT_STRIDE);
        _tile_loadd(7, b + HALF_PANEL, WEIGHT_STRIDE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, tile->sums, sums_bytes);
    _tile_stored(1, tile->sums + TILE_ROWS, sums_bytes);
    order_memory();
}

/* 16 rows, two panels over the whole depth: four chains hide the latency of a product. */
static void multiply_two_panels(const bf16_tile_t *tile)
{
    size_t x_bytes = tile->x_stride * sizeof(uint16_t),
           sums_bytes = tile->sums_stride * sizeof(float);
    order_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const uint16_t *x = tile->x, *left = tile->b, *right = tile->b + tile->panel_stride;
    for (uint32_t k = 0; k < tile->depth; k += K_STEP) {
        _tile_loadd(4, x, x_bytes);
        _tile_loadd(6, left, WEIGHT_STRIDE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, left + HALF_PANEL, WEIGHT_STRIDE);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, right, WEIGHT_STRIDE);
        _tile_dpbf16ps(2, 4, 5);
        _tile_loadd(6, right + HALF_PANEL, WEIGHT_STRIDE);
        _tile_dpbf16ps(3, 4, 6);
        x += K_STEP;
        left += K_STEP * PANEL;
        right += K_STEP * PANEL;
    }
    _tile_stored(0, tile->sums, sums_bytes);
    _tile_stored(1, tile->sums + TILE_ROWS, sums_bytes);
    _tile_stored(2, tile->sums + PANEL, sums_bytes);
    _tile_stored(3, tile->sums + PANEL + TILE_ROWS, sums_bytes);
    order_memory();
}

static void multiply_panels(const bf16_tile_t *whole, uint32_t rows, uint32_t panels)
{
    bf16_tile_t tile = *whole;
    if (panels == FEW_PANELS) {
        multiply_two_panels(&tile);
        return;
    }
    for (; rows > TILE_ROWS; rows -= rows < 2 * TILE_ROWS ? rows : 2 * TILE_ROWS) {
        multiply_32_rows(&tile);
        tile.x += 2 * TILE_ROWS * tile.x_stride;
        tile.sums += 2 * TILE_ROWS * tile.sums_stride;
    }
    if (rows > 0) multiply_16_rows(&tile);
}

#include "bf16_gemm.h"

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
    .gather_rows = judge_gather_rows,
    .combine = avx512_combine,
    .cast = judge_cast,
    .copy_blocks = judge_copy_blocks,
};
