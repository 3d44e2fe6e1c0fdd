/* kernels/cpu/tile.h - the two inner loops of everything: outer-product tiles and dot-product
 * tiles, in registers.
 *
 * Each output is one chain of additions whose order is fixed by the depth alone, so neither the
 * number of rows in a tile nor the place of a row in it changes a bit of the row's result.
 */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include "../ops.h"
#include "vector.h"

/* c[rows][cols] (+)= a[rows][depth] b[depth][cols] scale; strides in elements. */
typedef struct {
    const float *a, *b;
    float *c;
    size_t a_stride, b_stride, c_stride;
    uint32_t depth;
    float scale;
    int is_first;     /* c is written, not added to */
    const char *next; /* memory to fetch meanwhile, `next_step` bytes per row of b; b itself where
                         nothing is due */
    size_t next_step;
} tile_t;

/* What a block of the depth adds to the sums so far. */
INLINE void add_sums(float *to, vector_t sums, vector_t scale, int is_first)
{
    vector_store(to, vector_fma(sums, scale, is_first ? vector_set(0) : vector_load(to)));
}

INLINE void multiply_tile(const tile_t *tile, const uint32_t rows, const uint32_t vectors)
{
    vector_t sums[TILE_VECTORS_MAX], scale = vector_set(tile->scale);
    UNROLL for (uint32_t i = 0; i < rows * vectors; i++) sums[i] = vector_set(0);
    const float *a = tile->a, *b = tile->b;
    const char *next = tile->next;
    for (uint32_t k = 0; k < tile->depth; k++, a++, b += tile->b_stride, next += tile->next_step) {
        _mm_prefetch(next, _MM_HINT_T1);
        vector_t columns[TILE_VECTORS_MAX];
        UNROLL for (uint32_t v = 0; v < vectors; v++) columns[v] = vector_load(b + v * LANES);
        UNROLL for (uint32_t r = 0; r < rows; r++)
        {
            vector_t factor = vector_set(a[r * tile->a_stride]);
            UNROLL for (uint32_t v = 0; v < vectors; v++) sums[r * vectors + v] =
                vector_fma(factor, columns[v], sums[r * vectors + v]);
        }
    }
    UNROLL for (uint32_t i = 0; i < rows * vectors; i++)
        add_sums(tile->c + i / vectors * tile->c_stride + i % vectors * LANES, sums[i], scale,
                 tile->is_first);
}

/* Rows in one tile, which is two vectors wide. */
enum { NARROW_VECTORS = 2, NARROW_ROWS = TILE_VECTORS_MAX / NARROW_VECTORS };

/* A tile of one or two rows waits for its own additions: seven or eight are split in the middle. */
INLINE int is_full_tile(uint32_t rows)
{
    return rows >= NARROW_ROWS && (NARROW_ROWS > 8 || rows == NARROW_ROWS || rows > 8);
}

/* Any number of rows, two vectors of columns. */
static inline void multiply_narrow(tile_t tile, uint32_t rows)
{
    for (; is_full_tile(rows); rows -= NARROW_ROWS) {
        multiply_tile(&tile, NARROW_ROWS, NARROW_VECTORS);
        tile.a += NARROW_ROWS * tile.a_stride;
        tile.c += NARROW_ROWS * tile.c_stride;
    }
    if (NARROW_ROWS > 8 && rows >= 8) {
        multiply_tile(&tile, NARROW_ROWS > 8 ? 8 : 1, NARROW_VECTORS);
        tile.a += 8 * tile.a_stride;
        tile.c += 8 * tile.c_stride;
        rows -= 8;
    }
    for (; rows >= 4; rows -= 4) {
        multiply_tile(&tile, 4, NARROW_VECTORS);
        tile.a += 4 * tile.a_stride;
        tile.c += 4 * tile.c_stride;
    }
    if (rows == 3) multiply_tile(&tile, 3, NARROW_VECTORS);
    if (rows == 2) multiply_tile(&tile, 2, NARROW_VECTORS);
    if (rows == 1) multiply_tile(&tile, 1, NARROW_VECTORS);
}

/* out[r][j] = a[r] . b[j] for up to four rows and DOT_COLUMNS columns of `depth` values. */
enum { DOT_ROWS = 4, DOT_COLUMNS = LANES == 16 ? 4 : 2, DOT_SUMS = DOT_ROWS * DOT_COLUMNS };

typedef struct {
    const float *a, *b[DOT_COLUMNS];
    size_t a_stride;
    uint32_t depth;
    float *out;
    size_t out_stride;
} dots_t;

INLINE void dot_vectors(const dots_t *dots, vector_t *sums, const uint32_t rows, uint32_t k,
                        uint32_t count)
{
    vector_t columns[DOT_COLUMNS];
    UNROLL for (uint32_t j = 0; j < DOT_COLUMNS; j++) columns[j] =
        count == LANES ? vector_load(dots->b[j] + k) : vector_load_some(dots->b[j] + k, count);
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        const float *a = dots->a + r * dots->a_stride + k;
        vector_t row = count == LANES ? vector_load(a) : vector_load_some(a, count);
        UNROLL for (uint32_t j = 0; j < DOT_COLUMNS; j++) sums[r * DOT_COLUMNS + j] =
            vector_fma(row, columns[j], sums[r * DOT_COLUMNS + j]);
    }
}

/* Missing rows are zeros in the trees of sums, so that a row's tree is always the same. */
INLINE void dot_tile(const dots_t *dots, const uint32_t rows)
{
    vector_t sums[DOT_SUMS];
    float totals[DOT_SUMS];
    UNROLL for (uint32_t i = 0; i < DOT_SUMS; i++) sums[i] = vector_set(0);
    uint32_t k = 0;
    for (; k + LANES <= dots->depth; k += LANES) dot_vectors(dots, sums, rows, k, LANES);
    if (k < dots->depth) dot_vectors(dots, sums, rows, k, dots->depth - k);
    UNROLL for (uint32_t i = 0; i < rows * DOT_COLUMNS; i += 8)
        vector_sum_eight(sums + i, totals + i);
    UNROLL for (uint32_t r = 0; r < rows; r++)
        memcpy(dots->out + r * dots->out_stride, totals + (size_t)r * DOT_COLUMNS,
               DOT_COLUMNS * sizeof(float));
}

/* The address of element `at` of data of this dtype. */
INLINE const void *element(const void *data, dtype_t dtype, size_t at)
{
    return (const char *)data + at * dtype_bytes(dtype);
}

/* out = from as F32; `scale` only counts for F8E4M3. */
static inline void expand(const void *from, dtype_t dtype, float scale, uint32_t count, float *out)
{
    uint32_t i = 0;
    switch (dtype) {
    case DTYPE_F32:
        memcpy(out, from, count * sizeof *out);
        return;
    case DTYPE_BF16:
        for (; i + LANES <= count; i += LANES)
            vector_store(out + i, vector_expand_bf16((const uint16_t *)from + i));
        for (; i < count; i++) out[i] = f32_from_bf16(((const uint16_t *)from)[i]);
        return;
    case DTYPE_F8E4M3:
        for (; i + LANES <= count; i += LANES)
            vector_store(out + i, vector_expand_e4m3((const uint8_t *)from + i) *
                                      vector_set(scale * 256.0F));
        for (; i < count; i++) out[i] = f32_from_e4m3(((const uint8_t *)from)[i]) * scale;
        return;
    }
}

/* A row of a tensor whose scales for this row begin at `scales`. */
static inline void expand_row(const tensor_t *x, uint32_t row, const float *scales, float *out)
{
    const char *from = element(x->data, x->dtype, (size_t)row * x->stride);
    if (x->dtype != DTYPE_F8E4M3) {
        expand(from, x->dtype, 1.0F, x->cols, out);
        return;
    }
    for (uint32_t k = 0; k < x->cols; k += BLOCK_COLS)
        expand(from + k, x->dtype, scales[k / BLOCK_COLS],
               x->cols - k < BLOCK_COLS ? x->cols - k : BLOCK_COLS, out + k);
}

static inline void expand_weight_row(const tensor_t *w, uint32_t row, float *out)
{
    expand_row(w, row, w->scales ? w->scales + (size_t)(row / BLOCK_COLS) * w->scale_stride : NULL,
               out);
}

static inline void expand_activation_row(const tensor_t *x, uint32_t row, float *out)
{
    expand_row(x, row, x->scales ? x->scales + (size_t)row * x->scale_stride : NULL, out);
}

#endif
