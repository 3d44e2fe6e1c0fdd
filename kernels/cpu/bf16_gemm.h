/* kernels/cpu/bf16_gemm.h - the matrix products on bfloat16 around a table's own inner loop.
 *
 * The including file has defined NAME, FEW_ROWS and FEW_PANELS (up to FEW_ROWS rows take FEW_PANELS
 * panels at a time, over the whole depth), begin_tiles, end_tiles and multiply_panels(tile, rows,
 * panels).
 */
#include "bf16.h"

#include <errno.h>

/* With more rows a panel's block of K_BLOCK stays in L1 (32 KiB) while the rows pass over it. */
enum { K_BLOCK = 512, SUMS_FLOATS = GEMM_ROWS_MAX * PANEL };

int NAME(prepare_size)(const tensor_t *w, size_t *bytes)
{
    *bytes = (size_t)round_up(w->rows, PANEL) * round_up(w->cols, K_STEP) * sizeof(uint16_t);
    return 0;
}

static uint16_t weight_element(const tensor_t *w, uint32_t n, uint32_t k)
{
    size_t at = (size_t)n * w->stride + k;
    if (w->dtype == DTYPE_BF16) return ((const uint16_t *)w->data)[at];
    if (w->dtype == DTYPE_F32) return bf16_from_f32(((const float *)w->data)[at]);
    float scale = w->scales[(size_t)(n / BLOCK_COLS) * w->scale_stride + k / BLOCK_COLS];
    return bf16_from_f32(f32_from_e4m3(((const uint8_t *)w->data)[at]) * scale);
}

int NAME(prepare)(const tensor_t *w, void *packed)
{
    uint16_t *to = packed;
    uint32_t depth = round_up(w->cols, K_STEP);
    for (uint32_t panel = 0; panel < w->rows; panel += PANEL)
        for (uint32_t k = 0; k < depth; k += 2)
            for (uint32_t i = 0; i < 2 * PANEL; i++) {
                uint32_t n = panel + i / 2, pair = k + i % 2;
                *to++ = n < w->rows && pair < w->cols ? weight_element(w, n, pair) : 0;
            }
    return 0;
}

typedef struct {
    const tensor_t *out, *w;
    const uint16_t *x;
    uint32_t depth, first_row, rows;
    float *scratch; /* per thread: sums */
} gemm_t;

static void store_sums(const gemm_t *gemm, uint32_t col, const float *sums, uint32_t stride)
{
    uint32_t cols = gemm->w->rows - col < stride ? gemm->w->rows - col : stride;
    for (uint32_t r = 0; r < gemm->rows; r++) {
        size_t at = (size_t)(gemm->first_row + r) * gemm->out->stride + col;
        if (gemm->out->dtype == DTYPE_F32) {
            memcpy((float *)gemm->out->data + at, sums + (size_t)r * stride, cols * sizeof *sums);
            continue;
        }
        for (uint32_t i = 0; i < cols; i++)
            ((uint16_t *)gemm->out->data)[at + i] = bf16_from_f32(sums[(size_t)r * stride + i]);
    }
}

static void gemm_panels(const gemm_t *gemm, uint32_t panel, uint32_t panels, float *sums)
{
    uint32_t block = gemm->rows <= FEW_ROWS ? gemm->depth : K_BLOCK;
    bf16_tile_t tile = { .x_stride = gemm->depth,
                         .panel_stride = (size_t)PANEL * gemm->depth,
                         .sums = sums,
                         .sums_stride = (size_t)panels * PANEL };
    for (uint32_t k = 0; k < gemm->depth; k += block) {
        tile.depth = gemm->depth - k < block ? gemm->depth - k : block;
        tile.is_first = k == 0;
        tile.x = gemm->x + k;
        tile.b = (const uint16_t *)gemm->w->packed + panel * tile.panel_stride + (size_t)k * PANEL;
        multiply_panels(&tile, gemm->rows, panels);
    }
    store_sums(gemm, panel * PANEL, sums, panels * PANEL);
}

static void gemm_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const gemm_t *gemm = context;
    float *sums = gemm->scratch + (size_t)thread * SUMS_FLOATS;
    uint32_t panel = first;
    begin_tiles();
    if (gemm->rows <= FEW_ROWS)
        for (; panel + FEW_PANELS <= last; panel += FEW_PANELS)
            gemm_panels(gemm, panel, FEW_PANELS, sums);
    for (; panel < last; panel++) gemm_panels(gemm, panel, 1, sums);
    end_tiles();
}

static void round_f32_row(const float *from, uint32_t count, uint16_t *to)
{
    for (uint32_t i = 0; i < count; i += LANES) {
        uint32_t lanes = count - i < LANES ? count - i : LANES;
        __m256i rounded = (__m256i)_mm512_cvtneps_pbh(vector_load_some(from + i, lanes));
        _mm256_mask_storeu_epi16(to + i, (__mmask16)((1U << lanes) - 1U), rounded);
    }
}

static void round_row(const tensor_t *x, uint32_t row, uint32_t depth, float *values, uint16_t *to)
{
    if (x->dtype == DTYPE_BF16) {
        memcpy(to, (const uint16_t *)x->data + (size_t)row * x->stride, x->cols * sizeof *to);
    } else if (x->dtype == DTYPE_F32) {
        round_f32_row(row_f32(x, row), x->cols, to);
    } else {
        row_load(x, row, values);
        round_f32_row(values, x->cols, to);
    }
    memset(to + x->cols, 0, (depth - x->cols) * sizeof *to);
}

int NAME(gemm)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    if (!w->packed) return judge_gemm(q, out, x, w);
    if (x->cols != w->cols || out->cols != w->rows || out->rows != x->rows ||
        out->dtype == DTYPE_F8E4M3)
        return EINVAL;
    queue_reset(q);
    gemm_t gemm = { .out = out, .w = w, .depth = round_up(w->cols, K_STEP) };
    gemm.scratch = queue_take(q, (size_t)queue_threads(q) * SUMS_FLOATS * sizeof(float));
    float *values = queue_take(q, x->cols * sizeof *values);
    size_t fit = queue_left(q) / (gemm.depth * sizeof(uint16_t)) / ROWS_STEP * ROWS_STEP;
    uint32_t step = round_up(x->rows, ROWS_STEP);
    if (step > GEMM_ROWS_MAX) step = GEMM_ROWS_MAX;
    if (step > fit) step = (uint32_t)fit;
    uint16_t *rows = queue_take(q, (size_t)step * gemm.depth * sizeof *rows);
    if (!gemm.scratch || !values || !rows || (step == 0 && x->rows != 0)) return ENOMEM;
    gemm.x = rows;
    for (uint32_t first = 0; first < x->rows; first += step) {
        gemm.first_row = first;
        gemm.rows = x->rows - first < step ? x->rows - first : step;
        for (uint32_t r = 0; r < gemm.rows; r++)
            round_row(x, first + r, gemm.depth, values, rows + (size_t)r * gemm.depth);
        uint32_t padding = round_up(gemm.rows, ROWS_STEP) - gemm.rows;
        memset(rows + (size_t)gemm.rows * gemm.depth, 0,
               (size_t)padding * gemm.depth * sizeof *rows);
        queue_share(q, round_up(w->rows, PANEL) / PANEL, FEW_PANELS, gemm_part, &gemm);
    }
    return 0;
}

static tensor_t rows_of(const tensor_t *x, uint32_t first, uint32_t last)
{
    tensor_t part = *x;
    part.data = (char *)x->data + (size_t)first * x->stride *
                                      (x->dtype == DTYPE_F32    ? 4
                                       : x->dtype == DTYPE_BF16 ? 2
                                                                : 1);
    part.rows = last - first;
    if (x->scales) part.scales = x->scales + (size_t)first * x->scale_stride;
    return part;
}

int NAME(grouped_gemm)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                       const uint32_t *offsets, uint32_t groups)
{
    for (uint32_t g = 0; g < groups; g++) {
        if (offsets[g] == offsets[g + 1]) continue;
        tensor_t part_out = rows_of(out, offsets[g], offsets[g + 1]),
                 part_x = rows_of(x, offsets[g], offsets[g + 1]);
        int status = NAME(gemm)(q, &part_out, &part_x, &w[g]);
        if (status != 0) return status;
    }
    return 0;
}
