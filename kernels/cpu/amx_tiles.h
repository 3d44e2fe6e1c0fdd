/* kernels/cpu/amx_tiles.h - the inner loops of the matrix products on AMX, and what vectors do
 * while tiles multiply.
 *
 * Tiles: 0-3 sums, 4-5 rows of x, 6-7 weights, each 16 rows of 64 bytes.  A row of x is the sum of
 * two rows of bfloat16, `high` and `low`, so every tile of weights is multiplied twice.  Per output
 * and block of k the products of a step of k are added in the order high, low, step after step,
 * whatever the loop; then sums = products * scale + sums in F32.  That addition waits until the
 * products of the next call run, for the tiles take 512 cycles or more there and the vector units
 * are idle.
 */
#ifndef KERNELS_CPU_AMX_TILES_H
#define KERNELS_CPU_AMX_TILES_H

#include "bf16_instructions.h"

/* Columns of a panel, and of one call of the loop for many rows; k of one step, and of one block:
 * in FP8 as many as share a scale, in BF16 as many as leave room for the rows of x in L1; rows of x
 * that lie together. */
enum {
    PANEL = 64,
    HALF_PANEL = PANEL / 2,
    K_STEP = 32,
    FP8_BLOCK = BLOCK_COLS,
    BF16_BLOCK = 256,
    BLOCK_ROWS = 2 * TILE_ROWS,
    TILE_ELEMENTS = TILE_ROWS * K_STEP,
    PRODUCTS = BLOCK_ROWS * HALF_PANEL /* of one call */
};

/* One step of a block of rows is four tiles: high and high of the second 16 rows, low and low.  One
 * step of a panel is four tiles as well, 16 columns each. */
enum { X_STEP = 4 * TILE_ELEMENTS, LOW = 2 * TILE_ELEMENTS, WEIGHT_STEP = 4 * TILE_ELEMENTS };

/* to[rows][cols] = from[rows][cols] + products[rows][cols] * scale; strides in elements. */
typedef struct {
    const float *products, *from;
    float *to;
    size_t from_stride, to_stride;
    float scale;
    uint32_t rows, rows_per_slot, cols; /* cols: HALF_PANEL or PANEL */
    int is_far;                         /* `to` is too large for the caches */
} addition_t;

/* Work for the vector units during one call: an addition, `lines` lines of weights to decode,
 * memory to fetch. */
typedef struct {
    addition_t addition;
    const uint8_t *fp8; /* NULL: nothing to decode */
    uint16_t *decoded;
    const char *ahead;
    uint32_t lines, lines_per_slot, ahead_bytes; /* fetched per line */
} beside_t;

/* bfloat16 of every magnitude of FP8, its low bytes and its high bytes. */
typedef struct {
    __m512i low[2], high[2];
} fp8_table_t;

/* x and weights of one call, `steps` steps of k; products go to `products`. */
typedef struct {
    const uint16_t *x, *weights;
    float *products;
    uint32_t steps;
} call_t;

/* The tile instructions of some compilers do not tell that they touch memory.
 */
static inline void order_memory(void)
{
    __asm__ volatile("" ::: "memory");
}

/* Tiles of x and of sums have as many rows as there are. */
static void begin_tiles(uint32_t rows)
{
    tile_config_t config = { .palette = 1 };
    for (uint32_t i = 0; i < TILE_COUNT; i++) {
        config.row_bytes[i] = TILE_ROW_BYTES;
        config.rows[i] = (uint8_t)(i < 6 && rows < TILE_ROWS ? rows : TILE_ROWS);
    }
    order_memory();
    tile_configure(&config);
    order_memory();
}

static fp8_table_t fp8_table(void)
{
    uint8_t low[128], high[128];
    for (uint32_t i = 0; i < 128; i++) {
        uint16_t exact = bf16_from_f32(e4m3_values[i]);
        low[i] = (uint8_t)exact;
        high[i] = (uint8_t)(exact >> 8);
    }
    fp8_table_t table;
    UNROLL for (uint32_t i = 0; i < 2; i++)
    {
        table.low[i] = _mm512_loadu_si512(low + (size_t)i * 64);
        table.high[i] = _mm512_loadu_si512(high + (size_t)i * 64);
    }
    return table;
}

/* Seven bits look both bytes up, the eighth is the sign. */
INLINE void decode_line(const fp8_table_t *table, const uint8_t *from, uint16_t *to)
{
    __m512i bytes = _mm512_loadu_si512(from),
            low = _mm512_permutex2var_epi8(table->low[0], bytes, table->low[1]),
            high = _mm512_permutex2var_epi8(table->high[0], bytes, table->high[1]);
    high = _mm512_or_si512(high, _mm512_and_si512(bytes, _mm512_set1_epi8(-128)));
    _mm512_storeu_si512(to, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(to + 2 * LANES, _mm512_unpackhi_epi8(low, high));
}

INLINE void add_rows(const addition_t *addition, uint32_t first, uint32_t last, const uint32_t cols,
                     const int is_far)
{
    const size_t from_stride = addition->from_stride, to_stride = addition->to_stride;
    const float *products = addition->products + (size_t)first * cols,
                *from = addition->from + first * from_stride;
    float *to = addition->to + first * to_stride;
    vector_t scale = vector_set(addition->scale);
    for (uint32_t r = first; r < last; r++) {
        UNROLL for (uint32_t c = 0; c < cols; c += LANES)
        {
            vector_t sums = vector_fma(vector_load(products + c), scale, vector_load(from + c));
            if (is_far)
                _mm512_stream_ps(to + c, sums);
            else
                vector_store(to + c, sums);
        }
        products += cols;
        from += from_stride;
        to += to_stride;
    }
}

/* A slot's share of the addition. */
INLINE void add_share(const addition_t *addition, uint32_t slot)
{
    uint32_t first = slot * addition->rows_per_slot, last = first + addition->rows_per_slot;
    if (last > addition->rows) last = addition->rows;
    if (first >= last) return;
    if (addition->cols == PANEL)
        add_rows(addition, first, last, PANEL, 0);
    else if (addition->is_far)
        add_rows(addition, first, last, HALF_PANEL, 1);
    else
        add_rows(addition, first, last, HALF_PANEL, 0);
}

/* What falls to this slot. */
INLINE void work_beside(const beside_t *beside, const fp8_table_t *table, uint32_t slot)
{
    add_share(&beside->addition, slot);
    uint32_t first = slot * beside->lines_per_slot;
    if (first >= beside->lines) return;
    uint32_t lines = beside->lines - first;
    if (lines > beside->lines_per_slot) lines = beside->lines_per_slot;
    const char *ahead = beside->ahead + (size_t)first * beside->ahead_bytes;
    if (!beside->fp8) {
        for (uint32_t line = 0; line < lines; line++, ahead += 128) {
            _mm_prefetch(ahead, _MM_HINT_T1);
            _mm_prefetch(ahead + 64, _MM_HINT_T1);
        }
        return;
    }
    const fp8_table_t values = *table;
    const uint8_t *from = beside->fp8 + (size_t)first * 64;
    uint16_t *to = beside->decoded + (size_t)first * 64;
    for (uint32_t line = 0; line < lines; line++, ahead += 64, from += 64, to += 64) {
        _mm_prefetch(ahead, _MM_HINT_T1);
        decode_line(&values, from, to);
    }
}

/* 32 rows, half a panel.  The first 16 rows are multiplied by both parts before the others are: so
 * while the sums of either leave their tiles, after the last step, the others' products go on. */
INLINE void multiply_32_rows(const call_t *call, const beside_t *beside, const fp8_table_t *table)
{
    const uint16_t *x = call->x, *weights = call->weights;
    order_memory();
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (uint32_t step = 0; step < call->steps; step++) {
        tile_load_once(6, weights, TILE_ROW_BYTES);
        tile_load(4, x, TILE_ROW_BYTES);
        tile_load_once(7, weights + TILE_ELEMENTS, TILE_ROW_BYTES);
        tile_multiply(0, 4, 6);
        tile_multiply(1, 4, 7);
        tile_load(5, x + LOW, TILE_ROW_BYTES);
        work_beside(beside, table, 2 * step);
        tile_multiply(0, 5, 6);
        tile_multiply(1, 5, 7);
        tile_load(4, x + TILE_ELEMENTS, TILE_ROW_BYTES);
        work_beside(beside, table, 2 * step + 1);
        tile_multiply(2, 4, 6);
        tile_multiply(3, 4, 7);
        tile_load(5, x + LOW + TILE_ELEMENTS, TILE_ROW_BYTES);
        tile_multiply(2, 5, 6);
        tile_multiply(3, 5, 7);
        x += X_STEP;
        weights += WEIGHT_STEP;
    }
    enum { STRIDE = HALF_PANEL, SECOND = TILE_ROWS * STRIDE };
    tile_store(0, call->products, STRIDE * sizeof(float));
    tile_store(1, call->products + LANES, STRIDE * sizeof(float));
    tile_store(2, call->products + SECOND, STRIDE * sizeof(float));
    tile_store(3, call->products + SECOND + LANES, STRIDE * sizeof(float));
    order_memory();
}

/* Up to 16 rows, a whole panel: four chains hide the latency of a product. */
INLINE void multiply_16_rows(const call_t *call, const beside_t *beside, const fp8_table_t *table)
{
    const uint16_t *x = call->x, *weights = call->weights;
    order_memory();
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (uint32_t step = 0; step < call->steps; step++) {
        tile_load(4, x, TILE_ROW_BYTES);
        tile_load(6, weights, TILE_ROW_BYTES);
        tile_multiply(0, 4, 6);
        tile_load(7, weights + TILE_ELEMENTS, TILE_ROW_BYTES);
        tile_multiply(1, 4, 7);
        tile_load(6, weights + 2 * TILE_ELEMENTS, TILE_ROW_BYTES);
        tile_multiply(2, 4, 6);
        tile_load(7, weights + 3 * TILE_ELEMENTS, TILE_ROW_BYTES);
        tile_multiply(3, 4, 7);
        work_beside(beside, table, 2 * step);
        tile_load(5, x + LOW, TILE_ROW_BYTES);
        tile_load(6, weights, TILE_ROW_BYTES);
        tile_multiply(0, 5, 6);
        tile_load(6, weights + TILE_ELEMENTS, TILE_ROW_BYTES);
        tile_multiply(1, 5, 6);
        tile_load(6, weights + 2 * TILE_ELEMENTS, TILE_ROW_BYTES);
        tile_multiply(2, 5, 6);
        tile_multiply(3, 5, 7);
        work_beside(beside, table, 2 * step + 1);
        x += X_STEP;
        weights += WEIGHT_STEP;
    }
    tile_store(0, call->products, PANEL * sizeof(float));
    tile_store(1, call->products + LANES, PANEL * sizeof(float));
    tile_store(2, call->products + 2 * LANES, PANEL * sizeof(float));
    tile_store(3, call->products + 3 * LANES, PANEL * sizeof(float));
    order_memory();
}

#endif
