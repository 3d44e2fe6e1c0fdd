/* kernels/cpu/fast_gemm.h - matrix products in F32: weights in panels of two vectors of columns,
 * expanded block by block.
 *
 * Layout of packed weights, in the weight's own dtype: [panel][k][PANEL], columns beyond the last
 * are zero.  A block of K_BLOCK rows of one panel is expanded to F32 (32 KiB, it stays in L1), then
 * every row of x passes over it.  Few rows take several panels at a time instead, or the chains of
 * additions would wait for each other.
 */
#include "fast.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"
#include "tile.h"

#include <errno.h>

enum {
    PANEL = NARROW_VECTORS * LANES,
    WIDE_PANELS = WIDE_VECTORS / NARROW_VECTORS,
    K_BLOCK = 256,
    K_BLOCK_WIDE = K_BLOCK / WIDE_PANELS,
    GEMM_ROWS_MAX =
        240, /* rows of x per pass, a multiple of NARROW_ROWS: their part of x fits into L2 */
};

int NAME(prepare_size)(const tensor_t *w, size_t *bytes)
{
    size_t panels = (w->rows + PANEL - 1) / PANEL;
    *bytes = panels * PANEL * w->cols *
             (w->dtype == DTYPE_F32    ? 4
              : w->dtype == DTYPE_BF16 ? 2
                                       : 1);
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

INLINE void expand_vectors(const tensor_t *w, size_t at, vector_t scale, float *out)
{
    UNROLL for (uint32_t v = 0; v < PANEL; v += LANES)
    {
        if (w->dtype == DTYPE_F32)
            vector_store(out + v, vector_load((const float *)w->packed + at + v));
        else if (w->dtype == DTYPE_BF16)
            vector_store(out + v, vector_expand_bf16((const uint16_t *)w->packed + at + v));
        else
            vector_store(out + v, vector_expand_e4m3((const uint8_t *)w->packed + at + v) * scale);
    }
}

/* Rows first .. first + depth of one panel, to `out` with `stride` floats from row to row. */
static void expand_panel(const tensor_t *w, uint32_t panel, uint32_t first, uint32_t depth,
                         float *out, size_t stride)
{
    const float *scales =
        w->scales ? w->scales + (size_t)(panel * PANEL / BLOCK_COLS) * w->scale_stride : NULL;
    size_t at = ((size_t)panel * w->cols + first) * PANEL;
    for (uint32_t k = first, end = first; k < first + depth;) {
        vector_t scale = vector_set(scales ? scales[k / BLOCK_COLS] * 256.0F : 1.0F);
        end = (k / BLOCK_COLS + 1) * BLOCK_COLS;
        if (end > first + depth) end = first + depth;
        for (; k < end; k++, at += PANEL, out += stride) expand_vectors(w, at, scale, out);
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

/* `panels` panels side by side for the rows of this pass; sums go to the output itself where it is
 * F32 and whole. */
static void multiply_panels(const gemm_t *gemm, uint32_t panel, uint32_t panels, float *block,
                            float *sums)
{
    uint32_t width = panels * PANEL, col = panel * PANEL,
             k_block = panels == 1 ? K_BLOCK : K_BLOCK_WIDE;
    int is_in_place = gemm->out->dtype == DTYPE_F32 && col + width <= gemm->w->rows;
    size_t weight_bytes = gemm->w->dtype == DTYPE_F32 ? 4 : gemm->w->dtype == DTYPE_BF16 ? 2 : 1;
    tile_t tile = { .b = block, .b_stride = width, .a_stride = gemm->x_stride };
    tile.c = is_in_place ? row_f32(gemm->out, gemm->first_row) + col : sums;
    tile.c_stride = is_in_place ? gemm->out->stride : width;
    for (uint32_t k = 0; k < gemm->w->cols; k += k_block) {
        tile.depth = gemm->w->cols - k < k_block ? gemm->w->cols - k : k_block;
        tile.is_first = k == 0;
        tile.a = gemm->x + k;
        size_t next_row = (size_t)panel * gemm->w->cols + k + tile.depth;
        for (uint32_t i = 0; i < panels; i++)
            expand_panel(gemm->w, panel + i, k, tile.depth, block + (size_t)i * PANEL, width);
        /* The memory is idle while rows pass over the block: the next block of a single panel
         * follows this one. */
        tile.next_step = panels == 1 ? weight_bytes * PANEL : 0;
        tile.next = panels == 1 ? (const char *)gemm->w->packed + next_row * weight_bytes * PANEL
                                : (const char *)block;
        if (panels == 1)
            multiply_narrow(tile, gemm->rows);
        else
            multiply_wide(&tile, gemm->rows);
    }
    if (!is_in_place) store_sums(gemm, col, width, sums, width);
}

static void gemm_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const gemm_t *gemm = context;
    float *block = (float *)(void *)(gemm->scratch + (size_t)thread * THREAD_BYTES);
    uint32_t panel = first;
    if (gemm->rows <= WIDE_ROWS)
        for (; panel + WIDE_PANELS <= last; panel += WIDE_PANELS)
            multiply_panels(gemm, panel, WIDE_PANELS, block, block + BLOCK_FLOATS);
    for (; panel < last; panel++) multiply_panels(gemm, panel, 1, block, block + BLOCK_FLOATS);
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
