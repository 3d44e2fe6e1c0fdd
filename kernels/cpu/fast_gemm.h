/* kernels/cpu/fast_gemm.h - matrix products in F32: weights in panels of two vectors of columns,
 * expanded on the way.
 *
 * Layout of packed weights, in the weight's own dtype: [panel][k][PANEL], columns beyond the last
 * are zero.  A block of K_BLOCK rows of one panel is expanded to F32 (32 KiB, it stays in L1), then
 * every row of x passes over it.  Few rows wait for memory: for them weights become floats in
 * registers only, fetched well before, and up to three rows take several panels at a time, or the
 * chains of additions would wait for each other.
 */
#include "fast.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"
#include "tile.h"

#include <errno.h>

enum {
    PANEL = NARROW_VECTORS * LANES,
    K_BLOCK = 256,
    PASS_ROWS = NARROW_ROWS,   /* that share weights which are floats in registers only */
    FEW_ROWS = 12,             /* rows that do so, if need be in two passes */
    FEW_ROWS_E4M3 = PASS_ROWS, /* ...but expanding twice costs more than a block */
    FEW_AHEAD = 1024,          /* bytes of a panel that are fetched ahead */
    WIDE_ROWS = 3,             /* that take several panels at a time */
    WIDE_VECTORS = TILE_VECTORS_MAX / WIDE_ROWS,
    WIDE_PANELS = WIDE_VECTORS / NARROW_VECTORS,
    GEMM_ROWS_MAX =
        240, /* rows of x per pass, a multiple of NARROW_ROWS: their part of x fits into L2 */
};

int NAME(prepare_size)(const tensor_t *w, size_t *bytes)
{
    size_t panels = (w->rows + PANEL - 1) / PANEL;
    *bytes = panels * PANEL * w->cols * dtype_bytes(w->dtype);
    return 0;
}

static void pack_element(const tensor_t *w, uint32_t n, uint32_t k, void *packed, size_t to)
{
    size_t from = (size_t)n * w->stride + k;
    int is_real = n < w->rows;
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

int NAME(prepare)(const tensor_t *w, void *packed)
{
    for (uint32_t panel = 0; panel * PANEL < w->rows; panel++)
        for (uint32_t k = 0; k < w->cols; k++)
            for (uint32_t i = 0; i < PANEL; i++)
                pack_element(w, panel * PANEL + i, k, packed,
                             ((size_t)panel * w->cols + k) * PANEL + i);
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

INLINE vector_t expand_vector(const void *packed, dtype_t dtype, size_t at, vector_t scale)
{
    if (dtype == DTYPE_F32) return vector_load((const float *)packed + at);
    if (dtype == DTYPE_BF16) return vector_expand_bf16((const uint16_t *)packed + at);
    return vector_expand_e4m3((const uint8_t *)packed + at) * scale;
}

INLINE void expand_vectors(const tensor_t *w, size_t at, vector_t scale, float *out)
{
    UNROLL for (uint32_t v = 0; v < PANEL; v += LANES)
        vector_store(out + v, expand_vector(w->packed, w->dtype, at + v, scale));
}

/* Rows first .. first + depth of one panel. */
static void expand_panel(const tensor_t *w, uint32_t panel, uint32_t first, uint32_t depth,
                         float *out)
{
    const float *scales =
        w->scales ? w->scales + (size_t)(panel * PANEL / BLOCK_COLS) * w->scale_stride : NULL;
    size_t at = ((size_t)panel * w->cols + first) * PANEL;
    for (uint32_t k = first, end = first; k < first + depth;) {
        vector_t scale = vector_set(scales ? scales[k / BLOCK_COLS] * 256.0F : 1.0F);
        end = (k / BLOCK_COLS + 1) * BLOCK_COLS;
        if (end > first + depth) end = first + depth;
        for (; k < end; k++, at += PANEL, out += PANEL) expand_vectors(w, at, scale, out);
    }
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
static void multiply_panel(const gemm_t *gemm, uint32_t panel, float *block, float *sums)
{
    uint32_t col = panel * PANEL;
    int is_direct = is_in_place(gemm, col + PANEL);
    size_t step = dtype_bytes(gemm->w->dtype) * PANEL;
    tile_t tile = { .b = block, .b_stride = PANEL, .a_stride = gemm->x_stride, .next_step = step };
    tile.c = is_direct ? row_f32(gemm->out, gemm->first_row) + col : sums;
    tile.c_stride = is_direct ? gemm->out->stride : PANEL;
    for (uint32_t k = 0; k < gemm->w->cols; k += K_BLOCK) {
        tile.depth = gemm->w->cols - k < K_BLOCK ? gemm->w->cols - k : K_BLOCK;
        tile.is_first = k == 0;
        tile.a = gemm->x + k;
        expand_panel(gemm->w, panel, k, tile.depth, block);
        /* The memory is idle while rows pass over the block: the next one follows this one. */
        size_t next_row = (size_t)panel * gemm->w->cols + k + tile.depth;
        tile.next = (const char *)gemm->w->packed + next_row * step;
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

/* What k from first to end, which share a scale, add to the sums. */
INLINE void add_few(const few_t *few, uint32_t first, uint32_t end, vector_t scale, vector_t *sums,
                    const uint32_t rows, const uint32_t vectors, const dtype_t dtype)
{
    const tensor_t *w = few->w;
    size_t panel_size = (size_t)w->cols * PANEL, at = few->panel * panel_size + first * PANEL;
    for (uint32_t k = first; k < end; k++, at += PANEL) {
        vector_t columns[WIDE_VECTORS];
        UNROLL for (uint32_t v = 0; v < vectors; v++)
        {
            size_t here = at + v / NARROW_VECTORS * panel_size + v % NARROW_VECTORS * LANES;
            const char *byte = (const char *)w->packed + here * dtype_bytes(dtype);
            if (v % NARROW_VECTORS == 0) _mm_prefetch(byte + FEW_AHEAD, _MM_HINT_T0);
            columns[v] = expand_vector(w->packed, dtype, here, scale);
        }
        UNROLL for (uint32_t r = 0; r < rows; r++)
        {
            vector_t factor = vector_set(few->x[r * few->x_stride + k]);
            UNROLL for (uint32_t v = 0; v < vectors; v++) sums[r * vectors + v] =
                vector_fma(factor, columns[v], sums[r * vectors + v]);
        }
    }
}

INLINE void multiply_typed(const few_t *few, const uint32_t rows, const uint32_t vectors,
                           const dtype_t dtype)
{
    const tensor_t *w = few->w;
    const float *scales =
        w->scales ? w->scales + (size_t)(few->panel * PANEL / BLOCK_COLS) * w->scale_stride : NULL;
    vector_t sums[TILE_VECTORS_MAX];
    UNROLL for (uint32_t i = 0; i < rows * vectors; i++) sums[i] = vector_set(0);
    for (uint32_t k = 0; k < w->cols; k += BLOCK_COLS) {
        uint32_t end = w->cols - k < BLOCK_COLS ? w->cols : k + BLOCK_COLS;
        vector_t scale = vector_set(scales ? scales[k / BLOCK_COLS] * 256.0F : 1.0F);
        add_few(few, k, end, scale, sums, rows, vectors, dtype);
    }
    UNROLL for (uint32_t i = 0; i < rows * vectors; i++)
        vector_store(few->out + i / vectors * few->out_stride + i % vectors * LANES, sums[i]);
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
    float *block = (float *)(void *)(gemm->scratch + (size_t)thread * THREAD_BYTES);
    float *sums = block + BLOCK_FLOATS;
    uint32_t panel = first, few = gemm->w->dtype == DTYPE_F8E4M3 ? FEW_ROWS_E4M3 : FEW_ROWS;
    if (gemm->rows <= WIDE_ROWS)
        for (; panel + WIDE_PANELS <= last; panel += WIDE_PANELS)
            multiply_few(gemm, panel, WIDE_PANELS, sums);
    for (; panel < last; panel++) {
        if (gemm->rows <= few)
            multiply_few(gemm, panel, 1, sums);
        else
            multiply_panel(gemm, panel, block, sums);
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
    if (x->dtype != DTYPE_F32 || x->rows > WIDE_ROWS) {
        size_t room = queue_left(q) / (stride * sizeof *rows);
        if (room < step) step = room;
        rows = queue_take(q, step * stride * sizeof *rows);
    }
    if (!gemm.scratch || (step == 0 && x->rows != 0)) return ENOMEM;
    uint32_t panels = (w->rows + PANEL - 1) / PANEL;
    for (uint32_t first = 0; first < x->rows; first += (uint32_t)step) {
        gemm.first_row = first;
        gemm.rows = x->rows - first < step ? x->rows - first : (uint32_t)step;
        for (uint32_t r = 0; rows && r < gemm.rows; r++)
            expand_activation_row(x, first + r, rows + r * stride);
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
