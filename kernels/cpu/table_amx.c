/* kernels/cpu/table_amx.c - the table for AMX: matrix products in tiles of 16 rows; all but those
 * is AVX-512's.
 *
 * Tiles: 0-3 sums, 4-5 rows of x, 6-7 weights, each 16 rows of 64 bytes.  A tile whose last rows
 * are not there computes with whatever lies in their place and drops it, so every row goes through
 * the same instructions whatever the batch.
 */
#define NAME(op) amx_##op
#include "bf16.h"

enum { BLOCK_ROWS = TILE_ROWS, LOOP_ROWS = 2 * TILE_ROWS, FEW_ROWS = TILE_ROWS, FEW_PANELS = 2 };

/* The tile instructions of some compilers do not tell that they touch memory. */
static inline void order_memory(void)
{
    __asm__ volatile("" ::: "memory");
}

static void begin_tiles(void)
{
    tile_config_t config = { .palette = 1 };
    for (uint32_t i = 0; i < TILE_COUNT; i++) {
        config.row_bytes[i] = TILE_ROW_BYTES;
        config.rows[i] = TILE_ROWS;
    }
    order_memory();
    tile_configure(&config);
    order_memory();
}

static void end_tiles(void)
{
    tile_release();
}

/* Bytes between rows of a weight tile, a pair of k for a whole panel; elements to the tile beside;
 * elements of x and of a panel that one step reads. */
enum {
    WEIGHT_STRIDE = 2 * PANEL * 2,
    HALF_PANEL = 2 * TILE_ROWS,
    X_STEP = TILE_ROWS * K_STEP,
    B_STEP = K_STEP * PANEL
};

/* Rows of `to`, two cache lines of each, shared out over the steps of k. */
static inline void fetch_target(const bf16_tile_t *tile, uint32_t k, uint32_t rows)
{
    uint32_t steps = tile->depth / K_STEP, count = (rows + steps - 1) / steps,
             first = k / K_STEP * count;
    for (uint32_t r = first; r < first + count && r < rows; r++) {
        __builtin_prefetch(tile->to + r * tile->to_stride, 1);
        __builtin_prefetch(tile->to + r * tile->to_stride + TILE_ROWS, 1);
    }
}

/* 32 rows, one panel: two tiles of x against two of weights. */
static void multiply_32_rows(const bf16_tile_t *tile)
{
    size_t to_bytes = tile->to_stride * sizeof(float),
           from_bytes = tile->from_stride * sizeof(float);
    float *low = tile->to, *high = tile->to + TILE_ROWS * tile->to_stride;
    order_memory();
    if (!tile->from) {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    } else {
        const float *from_high = tile->from + TILE_ROWS * tile->from_stride;
        tile_load(0, tile->from, from_bytes);
        tile_load(1, tile->from + TILE_ROWS, from_bytes);
        tile_load(2, from_high, from_bytes);
        tile_load(3, from_high + TILE_ROWS, from_bytes);
    }
    const uint16_t *x = tile->x, *x_high = tile->x + tile->x_block, *b = tile->b;
    const char *next = tile->next;
    for (uint32_t k = 0; k < tile->depth; k += K_STEP) {
        tile_load(4, x, TILE_ROW_BYTES);
        tile_load(6, b, WEIGHT_STRIDE);
        tile_load(7, b + HALF_PANEL, WEIGHT_STRIDE);
        tile_multiply(0, 4, 6);
        tile_multiply(1, 4, 7);
        tile_load(5, x_high, TILE_ROW_BYTES);
        tile_multiply(2, 5, 6);
        tile_multiply(3, 5, 7);
        next = fetch_lines(next, tile->next_lines);
        if (tile->is_far) fetch_target(tile, k, 2 * TILE_ROWS);
        x += X_STEP;
        x_high += X_STEP;
        b += B_STEP;
    }
    tile_store(0, low, to_bytes);
    tile_store(1, low + TILE_ROWS, to_bytes);
    tile_store(2, high, to_bytes);
    tile_store(3, high + TILE_ROWS, to_bytes);
    order_memory();
}

/* 16 rows, one panel. */
static void multiply_16_rows(const bf16_tile_t *tile)
{
    size_t to_bytes = tile->to_stride * sizeof(float),
           from_bytes = tile->from_stride * sizeof(float);
    order_memory();
    if (!tile->from) {
        tile_zero(0);
        tile_zero(1);
    } else {
        tile_load(0, tile->from, from_bytes);
        tile_load(1, tile->from + TILE_ROWS, from_bytes);
    }
    const uint16_t *x = tile->x, *b = tile->b;
    const char *next = tile->next;
    for (uint32_t k = 0; k < tile->depth; k += K_STEP) {
        tile_load(4, x, TILE_ROW_BYTES);
        tile_load(6, b, WEIGHT_STRIDE);
        tile_load(7, b + HALF_PANEL, WEIGHT_STRIDE);
        tile_multiply(0, 4, 6);
        tile_multiply(1, 4, 7);
        next = fetch_lines(next, tile->next_lines);
        if (tile->is_far) fetch_target(tile, k, TILE_ROWS);
        x += X_STEP;
        b += B_STEP;
    }
    tile_store(0, tile->to, to_bytes);
    tile_store(1, tile->to + TILE_ROWS, to_bytes);
    order_memory();
}

/* 16 rows, two panels: four chains hide the latency of a product. */
static void multiply_two_panels(const bf16_tile_t *tile)
{
    size_t to_bytes = tile->to_stride * sizeof(float),
           from_bytes = tile->from_stride * sizeof(float);
    order_memory();
    if (!tile->from) {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    } else {
        tile_load(0, tile->from, from_bytes);
        tile_load(1, tile->from + TILE_ROWS, from_bytes);
        tile_load(2, tile->from + PANEL, from_bytes);
        tile_load(3, tile->from + PANEL + TILE_ROWS, from_bytes);
    }
    const uint16_t *x = tile->x, *left = tile->b, *right = tile->b + tile->panel_stride;
    const char *next = tile->next, *next_right = tile->next + tile->next_stride;
    for (uint32_t k = 0; k < tile->depth; k += K_STEP) {
        tile_load(4, x, TILE_ROW_BYTES);
        tile_load(6, left, WEIGHT_STRIDE);
        tile_multiply(0, 4, 6);
        tile_load(7, left + HALF_PANEL, WEIGHT_STRIDE);
        tile_multiply(1, 4, 7);
        tile_load(5, right, WEIGHT_STRIDE);
        tile_multiply(2, 4, 5);
        tile_load(6, right + HALF_PANEL, WEIGHT_STRIDE);
        tile_multiply(3, 4, 6);
        next = fetch_lines(next, tile->next_lines);
        next_right = fetch_lines(next_right, tile->next_lines);
        x += X_STEP;
        left += B_STEP;
        right += B_STEP;
    }
    tile_store(0, tile->to, to_bytes);
    tile_store(1, tile->to + TILE_ROWS, to_bytes);
    tile_store(2, tile->to + PANEL, to_bytes);
    tile_store(3, tile->to + PANEL + TILE_ROWS, to_bytes);
    order_memory();
}

/* A last tile with rows missing goes to scratch, together with the whole one before it where that
 * makes a pair. */
static uint32_t whole_rows(uint32_t rows)
{
    return rows % TILE_ROWS == 0 ? rows : rows / LOOP_ROWS * LOOP_ROWS;
}

static void multiply_panels(const bf16_tile_t *whole, uint32_t rows, uint32_t panels)
{
    bf16_tile_t tile = *whole;
    if (panels == FEW_PANELS) {
        multiply_two_panels(&tile);
        return;
    }
    for (; rows > TILE_ROWS; rows -= rows < LOOP_ROWS ? rows : LOOP_ROWS) {
        multiply_32_rows(&tile);
        tile.x += 2 * tile.x_block;
        tile.to += LOOP_ROWS * tile.to_stride;
        if (tile.from) tile.from += LOOP_ROWS * tile.from_stride;
        tile.next += (size_t)tile.next_lines * (tile.depth / K_STEP) * 64;
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
