/* kernels/cpu/fast_gemm.h - matrix products in F32: weights in panels of two vectors of columns,
 * expanded on the way.
 *
 * Layout of packed weights, in the weight's own dtype: [panel][k][PANEL], FP8 in pairs of k,
 * [panel][k / 2][PANEL][2], columns and k beyond the last are zero.  A block of k of one panel is
 * expanded to F32 (32 KiB at most, it stays in L1), then every row of x passes over it.  Few rows
 * wait for memory: for them weights become floats in registers only, fetched well before, and up to
 * three rows take several panels at a time, or the chains of additions would wait for each other.
 *
 * FP8 becomes floats without its scale, which all of a block share: the block's sums are scaled.
 */
#include "fast.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"
#include "tile.h"

#include <errno.h>

enum {
    PANEL = NARROW_VECTORS * LANES,
    K_BLOCK = 256,             /* in FP8 as many as share a scale */
    PASS_ROWS = NARROW_ROWS,   /* that share weights which are floats in registers only */
    FEW_ROWS = 12,             /* rows that do so, if need be in two passes */
    FEW_ROWS_E4M3 = PASS_ROWS, /* in FP8: expanding it twice costs more than a block */
    FEW_AHEAD = 1024,          /* bytes of a panel that are fetched ahead */
    WIDE_ROWS = 3,             /* that take several panels at a time */
    WIDE_VECTORS = TILE_VECTORS_MAX / WIDE_ROWS,
    WIDE_PANELS = WIDE_VECTORS / NARROW_VECTORS,
    GEMM_ROWS_MAX =
        240, /* rows of x per pass, a multiple of NARROW_ROWS: their part of x fits into L2 */
};

/* How many k of a column lie side by side. */
INLINE uint32_t k_together(dtype_t dtype)
{
    return dtype == DTYPE_F8E4M3 ? 2 : 1;
}

/* k of a packed panel. */
INLINE uint32_t packed_depth(const tensor_t *w)
{
    uint32_t together = k_together(w->dtype);
    return (w->cols + together - 1) / together * together;
}

int NAME(prepare_size)(const tensor_t *w, size_t *bytes)
{
    size_t panels = (w->rows + PANEL - 1) / PANEL;
    *bytes = panels * PANEL * packed_depth(w) * dtype_bytes(w->dtype);
    return 0;
}

static void pack_element(const tensor_t *w, uint32_t n, uint32_t k, void *packed, size_t to)
{
    size_t from = (size_t)n * w->stride + k;
    int is_real = n < w->rows && k < w->cols;
    switch (w->dtype) {
    case DTYPE_F32:
        ((float *)packed)[to] = is_real ? ((const float *)w->data)[from] : 0;
        break;
    case DTYPE_BF16:
        ((uint16_t *)packed)[to] = is_real ? ((const uint16_t *)w->data)[from] : 0;
        break;
    case DTYPE_F8E4M3:
        ((uint8_t *)packed)[to] = is_real ? ((const uint8_t *)w->data)[from] : 0;
        break;
    }
}

/* Where column i of a panel has its element k. */
INLINE size_t packed_place(dtype_t dtype, uint32_t k, uint32_t i)
{
    uint32_t together = k_together(dtype), odd = k % together;
    return (size_t)(k - odd) * PANEL + (size_t)i * together + odd;
}

int NAME(prepare)(const tensor_t *w, void *packed)
{
    uint32_t depth = packed_depth(w);
    for (uint32_t panel = 0; panel * PANEL < w->rows; panel++)
        for (uint32_t k = 0; k < depth; k++)
            for (uint32_t i = 0; i < PANEL; i++)
                pack_element(w, panel * PANEL + i, k, packed,
                             (size_t)panel * depth * PANEL + packed_place(w->dtype, k, i));
    return 0;
}

typedef struct {
    const tensor_t *out, *w;
    const float *x; /* the rows of this pass */
    size_t x_stride;
    uint32_t first_row, rows;
    char *scratch; /* per thread: an expanded block, then sums of panels that cannot be written in
                      place */
} gemm_t;

enum {
    BLOCK_FLOATS = K_BLOCK * PANEL,
    SUMS_FLOATS = GEMM_ROWS_MAX * PANEL,
    THREAD_BYTES = (BLOCK_FLOATS + SUMS_FLOATS) * 4
};
_Static_assert((int)THREAD_BYTES <= (int)QUEUE_THREAD_BYTES, "what queues are made for");

/* One k of a panel; FP8 from the first byte of its pairs, and as 2^-8 of what it is without scale.
 */
INLINE void expand_columns(const char *from, dtype_t dtype, const uint32_t odd, vector_t out[2])
{
    if (dtype == DTYPE_F8E4M3) {
        vector_expand_e4m3_pairs((const uint8_t *)from, odd, out);
        return;
    }
    UNROLL for (uint32_t v = 0; v < NARROW_VECTORS; v++) out[v] =
        dtype == DTYPE_F32 ? vector_load((const float *)(const void *)from + v * LANES)
                           : vector_expand_bf16((const uint16_t *)(const void *)from + v * LANES);
}

/* The bytes of a panel from k on, the first of those that lie together. */
INLINE const char *packed_row(const tensor_t *w, uint32_t panel, uint32_t k, const dtype_t dtype)
{
    return (const char *)w->packed +
           ((size_t)panel * packed_depth(w) + k) * PANEL * dtype_bytes(dtype);
}

/* A block of k from `first` on, and the number that its sums are multiplied by. */
typedef struct {
    uint32_t first, depth;
    float scale;
} block_t;

INLINE block_t block_at(const tensor_t *w, uint32_t panel, uint32_t k)
{
    uint32_t most = w->dtype == DTYPE_F8E4M3 ? (uint32_t)BLOCK_COLS : (uint32_t)K_BLOCK;
    block_t block = { k, w->cols - k < most ? w->cols - k : most, 1.0F };
    if (w->dtype == DTYPE_F8E4M3)
        block.scale =
            256.0F *
            w->scales[(size_t)(panel * PANEL / BLOCK_COLS) * w->scale_stride + k / BLOCK_COLS];
    return block;
}

INLINE void expand_typed(const tensor_t *w, uint32_t panel, const block_t *block, float *out,
                         const dtype_t dtype)
{
    const uint32_t step = k_together(dtype);
    for (uint32_t k = block->first; k < block->first + block->depth; k += step) {
        const char *from = packed_row(w, panel, k, dtype);
        UNROLL for (uint32_t i = 0; i < step; i++, out += PANEL)
        {
            vector_t columns[NARROW_VECTORS];
            expand_columns(from, dtype, i == 1, columns);
            vector_store(out, columns[0]);
            vector_store(out + LANES, columns[1]);
        }
    }
}

static void expand_block(const tensor_t *w, uint32_t panel, const block_t *block, float *out)
{
    if (w->dtype == DTYPE_F32) expand_typed(w, panel, block, out, DTYPE_F32);
    if (w->dtype == DTYPE_BF16) expand_typed(w, panel, block, out, DTYPE_BF16);
    if (w->dtype == DTYPE_F8E4M3) expand_typed(w, panel, block, out, DTYPE_F8E4M3);
}

static void store_sums(const gemm_t *gemm, uint32_t col, uint32_t cols, const float *sums,
                       size_t stride)
{
    if (col + cols > gemm->w->rows) cols = gemm->w->rows - col;
    for (uint32_t r = 0; r < gemm->rows; r++) {
        size_t at = (size_t)(gemm->first_row + r) * gemm->out->stride + col;
        if (gemm->out->dtype == DTYPE_F32) {
            memcpy((float *)gemm->out->data + at, sums + r * stride, cols * sizeof *sums);
            continue;
        }
        for (uint32_t i = 0; i < cols; i++)
            ((uint16_t *)gemm->out->data)[at + i] = bf16_from_f32(sums[r * stride + i]);
    }
}

/* Sums go to the output itself where it is F32 and whole. */
static int is_in_place(const gemm_t *gemm, uint32_t end)
{
    return gemm->out->dtype == DTYPE_F32 && end <= gemm->w->rows;
}

/* One panel for the rows of this pass. */
static void multiply_panel(const gemm_t *gemm, uint32_t panel, float *floats, float *sums)
{
    const tensor_t *w = gemm->w;
    uint32_t col = panel * PANEL;
    int is_direct = is_in_place(gemm, col + PANEL);
    tile_t tile = { .b = floats, .b_stride = PANEL, .a_stride = gemm->x_stride };
    tile.next_step = dtype_bytes(w->dtype) * PANEL;
    tile.c = is_direct ? row_f32(gemm->out, gemm->first_row) + col : sums;
    tile.c_stride = is_direct ? gemm->out->stride : PANEL;
    for (uint32_t k = 0; k < w->cols; k += tile.depth) {
        block_t block = block_at(w, panel, k);
        tile.depth = block.depth;
        tile.scale = block.scale;
        tile.is_first = k == 0;
        tile.a = gemm->x + k;
        expand_block(w, panel, &block, floats);
        /* The memory is idle while rows pass over the block: the next one follows this one. */
        tile.next = packed_row(w, panel, k + tile.depth, w->dtype);
        multiply_narrow(tile, gemm->rows);
    }
    if (!is_direct) store_sums(gemm, col, PANEL, sums, PANEL);
}

/* A few rows of x, and panels side by side that share their scales. */
typedef struct {
    const tensor_t *w;
    const float *x;
    float *out;
    size_t x_stride, out_stride;
    uint32_t panel;
} few_t;

/* What one k adds to the sums; from: its bytes in the first panel. */
INLINE void add_k(const few_t *few, uint32_t k, const char *from, vector_t *sums,
                  const uint32_t rows, const uint32_t vectors, const dtype_t dtype,
                  const uint32_t odd)
{
    size_t panel_bytes = (size_t)packed_depth(few->w) * PANEL * dtype_bytes(dtype);
    vector_t columns[WIDE_VECTORS];
    UNROLL for (uint32_t v = 0; v < vectors; v += NARROW_VECTORS)
    {
        const char *here = from + v / NARROW_VECTORS * panel_bytes;
        if (!odd) _mm_prefetch(here + FEW_AHEAD, _MM_HINT_T0);
        expand_columns(here, dtype, odd, columns + v);
    }
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        vector_t factor = vector_set(few->x[r * few->x_stride + k]);
        UNROLL for (uint32_t v = 0; v < vectors; v++) sums[r * vectors + v] =
            vector_fma(factor, columns[v], sums[r * vectors + v]);
    }
}

INLINE void multiply_typed(const few_t *few, const uint32_t rows, const uint32_t vectors,
                           const dtype_t dtype)
{
    const uint32_t step = k_together(dtype);
    const size_t step_bytes = step * PANEL * dtype_bytes(dtype);
    for (uint32_t begin = 0; begin < few->w->cols;) {
        block_t block = block_at(few->w, few->panel, begin);
        uint32_t end = begin + block.depth;
        const char *from = packed_row(few->w, few->panel, begin, dtype);
        vector_t sums[TILE_VECTORS_MAX], scale = vector_set(block.scale);
        UNROLL for (uint32_t i = 0; i < rows * vectors; i++) sums[i] = vector_set(0);
        for (uint32_t k = begin; k < end; k += step, from += step_bytes) {
            add_k(few, k, from, sums, rows, vectors, dtype, 0);
            if (step == 2) add_k(few, k + 1, from, sums, rows, vectors, dtype, 1);
        }
        UNROLL for (uint32_t i = 0; i < rows * vectors; i++)
            add_sums(few->out + i / vectors * few->out_stride + i % vectors * LANES, sums[i], scale,
                     begin == 0);
        begin = end;
    }
}

INLINE void multiply_rows(const few_t *few, const uint32_t rows, const uint32_t vectors)
{
    if (few->w->dtype == DTYPE_F32) multiply_typed(few, rows, vectors, DTYPE_F32);
    if (few->w->dtype == DTYPE_BF16) multiply_typed(few, rows, vectors, DTYPE_BF16);
    if (few->w->dtype == DTYPE_F8E4M3) multiply_typed(few, rows, vectors, DTYPE_F8E4M3);
}

static void multiply_few_wide(const few_t *few, uint32_t rows)
{
    if (rows == 1) multiply_rows(few, 1, WIDE_VECTORS);
    if (rows == 2) multiply_rows(few, 2, WIDE_VECTORS);
    if (rows == 3) multiply_rows(few, 3, WIDE_VECTORS);
}

INLINE void multiply_narrow_rows(const few_t *few, const uint32_t rows)
{
    multiply_rows(few, rows < PASS_ROWS ? rows : PASS_ROWS, NARROW_VECTORS);
}

static void multiply_pass(const few_t *few, uint32_t rows)
{
    if (rows == 1) multiply_narrow_rows(few, 1);
    if (rows == 2) multiply_narrow_rows(few, 2);
    if (rows == 3) multiply_narrow_rows(few, 3);
    if (rows == 4) multiply_narrow_rows(few, 4);
    if (rows == 5) multiply_narrow_rows(few, 5);
    if (rows == 6) multiply_narrow_rows(few, 6);
    if (PASS_ROWS == 6) return;
    if (rows == 7) multiply_narrow_rows(few, 7);
    if (rows == 8) multiply_narrow_rows(few, 8);
    if (rows == 9) multiply_narrow_rows(few, 9);
    if (rows == 10) multiply_narrow_rows(few, 10);
    if (rows == 11) multiply_narrow_rows(few, 11);
    if (rows == 12) multiply_narrow_rows(few, 12);
}
_Static_assert((int)PASS_ROWS == 6 || (int)PASS_ROWS == 12, "what multiply_pass knows");

static void multiply_few_narrow(few_t few, uint32_t rows)
{
    uint32_t second = rows > PASS_ROWS ? rows / 2 : 0, first = rows - second;
    multiply_pass(&few, first);
    few.x += first * few.x_stride;
    few.out += first * few.out_stride;
    multiply_pass(&few, second);
}

static void multiply_few(const gemm_t *gemm, uint32_t panel, uint32_t panels, float *sums)
{
    uint32_t width = panels * PANEL, col = panel * PANEL;
    int is_direct = is_in_place(gemm, col + width);
    few_t few = { .w = gemm->w, .x = gemm->x, .x_stride = gemm->x_stride, .panel = panel };
    few.out = is_direct ? row_f32(gemm->out, gemm->first_row) + col : sums;
    few.out_stride = is_direct ? gemm->out->stride : width;
    if (panels > 1)
        multiply_few_wide(&few, gemm->rows);
    else
        multiply_few_narrow(few, gemm->rows);
    if (!is_direct) store_sums(gemm, col, width, sums, width);
}

static void gemm_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const gemm_t *gemm = context;
    float *floats = (float *)(void *)(gemm->scratch + (size_t)thread * THREAD_BYTES);
    float *sums = floats + BLOCK_FLOATS;
    uint32_t panel = first, few = gemm->w->dtype == DTYPE_F8E4M3 ? FEW_ROWS_E4M3 : FEW_ROWS;
    if (gemm->rows <= WIDE_ROWS)
        for (; panel + WIDE_PANELS <= last; panel += WIDE_PANELS)
            multiply_few(gemm, panel, WIDE_PANELS, sums);
    for (; panel < last; panel++) {
        if (gemm->rows <= few)
            multiply_few(gemm, panel, 1, sums);
        else
            multiply_panel(gemm, panel, floats, sums);
    }
}

/* Copied rows lie a cache line further apart than they are long: a tile reads the same column of a
 * dozen rows, which for widths like 2048 would all fall into one set of L1. */
static size_t row_stride(uint32_t cols)
{
    return ((size_t)cols + LANES - 1) / LANES * LANES + 16;
}

int NAME(gemm)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    if (!w->packed) return judge_gemm(q, out, x, w);
    if (x->cols != w->cols || out->cols != w->rows || out->rows != x->rows ||
        out->dtype == DTYPE_F8E4M3)
        return EINVAL;
    queue_reset(q);
    gemm_t gemm = { .out = out, .w = w };
    gemm.scratch = queue_take(q, (size_t)queue_threads(q) * THREAD_BYTES);
    size_t step = x->rows < GEMM_ROWS_MAX ? x->rows : GEMM_ROWS_MAX, stride = row_stride(x->cols);
    float *rows = NULL;
    if (x->dtype != DTYPE_F32 || x->rows > WIDE_ROWS || packed_depth(w) > x->cols) {
        size_t room = queue_left(q) / (stride * sizeof *rows);
        if (room < step) step = room;
        rows = queue_take(q, step * stride * sizeof *rows);
    }
    if (!gemm.scratch || (step == 0 && x->rows != 0)) return ENOMEM;
    uint32_t panels = (w->rows + PANEL - 1) / PANEL;
    for (uint32_t first = 0; first < x->rows; first += (uint32_t)step) {
        gemm.first_row = first;
        gemm.rows = x->rows - first < step ? x->rows - first : (uint32_t)step;
        for (uint32_t r = 0; rows && r < gemm.rows; r++) {
            expand_activation_row(x, first + r, rows + r * stride);
            rows[r * stride + x->cols] = 0; /* the second of a last pair */
        }
        gemm.x = rows ? rows : row_f32(x, first);
        gemm.x_stride = rows ? stride : x->stride;
        queue_share(q, panels, WIDE_PANELS, gemm_part, &gemm);
    }
    return 0;
}

int NAME(grouped_gemm)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                       const groups_t *groups)
{
    return judge_gemm_each(q, out, x, w, groups, NAME(gemm));
}
