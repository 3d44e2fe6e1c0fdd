/* kernels/cpu/bf16_gemm.h - the matrix products on bfloat16 around a table's own inner loop.
 *
 * The including file has defined NAME; BLOCK_ROWS, the rows of x that lie together; LOOP_ROWS, the
 * rows that one inner loop takes; FEW_ROWS and FEW_PANELS (up to FEW_ROWS rows take FEW_PANELS
 * panels at a time); multiply_panels(tile, rows, panels).
 *
 * Many rows: for a group of panels, for each K_BLOCK, for each panel, all rows.  The block of the
 * panel stays in L1; this block's part of x and the sums of the group stay in L2; weights come from
 * memory once, fetched while rows pass over the block before.  Sums between two blocks are F32 in
 * memory as they were in registers: an output is one chain over k, wherever it is cut.
 */
#include "bf16.h"

#include <errno.h>

enum {
    ROWS_MAX = GEMM_ROWS_MAX / BLOCK_ROWS * BLOCK_ROWS,
    SUMS_FLOATS = GEMM_ROWS_MAX * PANEL,           /* of one panel */
    BLOCK_ELEMENTS = FEW_PANELS * PANEL * K_BLOCK, /* of rounded FP8 weights */
    THREAD_BYTES = GROUP_PANELS * SUMS_FLOATS * 4 + BLOCK_ELEMENTS * 2,
    LINE_BYTES = 64
};
_Static_assert((int)THREAD_BYTES <= (int)QUEUE_THREAD_BYTES, "what queues are made for");

INLINE size_t packed_element_bytes(const tensor_t *w)
{
    return w->dtype == DTYPE_F8E4M3 ? 1 : 2;
}

int NAME(prepare_size)(const tensor_t *w, size_t *bytes)
{
    *bytes = (size_t)round_up(w->rows, PANEL) * round_up(w->cols, K_STEP) * packed_element_bytes(w);
    return 0;
}

/* Where element i of a row of PANEL pairs of FP8 lies: the bytes that one unpacking instruction
 * joins are eight from each 16. */
INLINE uint32_t fp8_place(uint32_t i)
{
    return i % PANEL / 8 * 16 + i / PANEL * 8 + i % 8;
}

static void pack_element(const tensor_t *w, uint32_t n, uint32_t k, void *packed, size_t to)
{
    size_t at = (size_t)n * w->stride + k;
    int is_real = n < w->rows && k < w->cols;
    uint16_t value = 0;
    if (w->dtype == DTYPE_F8E4M3) {
        size_t row = to / (2 * PANEL) * (2 * PANEL);
        ((uint8_t *)packed)[row + fp8_place((uint32_t)(to - row))] =
            is_real ? ((const uint8_t *)w->data)[at] : 0;
        return;
    }
    if (is_real)
        value = w->dtype == DTYPE_BF16 ? ((const uint16_t *)w->data)[at]
                                       : bf16_from_f32(((const float *)w->data)[at]);
    ((uint16_t *)packed)[to] = value;
}

int NAME(prepare)(const tensor_t *w, void *packed)
{
    uint32_t depth = round_up(w->cols, K_STEP);
    size_t to = 0;
    for (uint32_t panel = 0; panel < w->rows; panel += PANEL)
        for (uint32_t k = 0; k < depth; k += 2)
            for (uint32_t i = 0; i < 2 * PANEL; i++)
                pack_element(w, panel + i / 2, k + i % 2, packed, to++);
    return 0;
}

typedef struct {
    const tensor_t *out, *w, *in;
    uint16_t *x;
    uint32_t depth, panels, first_row, rows, padded_rows, grain;
    char *scratch; /* THREAD_BYTES per thread: sums, then rounded weights */
    float *values; /* a row of x per thread */
} gemm_t;

INLINE uint32_t block_depth(const gemm_t *gemm, uint32_t k)
{
    return gemm->depth - k < K_BLOCK ? gemm->depth - k : K_BLOCK;
}

/* bfloat16 of every magnitude of FP8 times a scale, its low bytes and its high bytes. */
typedef struct {
    __m512i low[2], high[2];
} fp8_table_t;

static fp8_table_t fp8_table(float scale)
{
    uint8_t magnitudes[128];
    __m256i low[4], high[4];
    for (uint32_t i = 0; i < sizeof magnitudes; i++) magnitudes[i] = (uint8_t)i;
    vector_t factor = vector_set(scale * 256.0F);
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        const uint8_t *from = magnitudes + (size_t)i * 2 * LANES;
        __m512i rounded = round_to_bf16(vector_expand_e4m3(from) * factor,
                                        vector_expand_e4m3(from + LANES) * factor);
        low[i] = _mm512_cvtepi16_epi8(rounded);
        high[i] = _mm512_cvtepi16_epi8(_mm512_srli_epi16(rounded, 8));
    }
    fp8_table_t table;
    UNROLL for (uint32_t i = 0; i < 2; i++)
    {
        table.low[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low[2 * i]), low[2 * i + 1], 1);
        table.high[i] = _mm512_inserti64x4(_mm512_castsi256_si512(high[2 * i]), high[2 * i + 1], 1);
    }
    return table;
}

/* Of FP8: depth x PANEL values in pairs of k, which share a scale per 128 of k.  Seven bits look
 * both bytes up, the eighth is the sign. */
static void expand_block(const tensor_t *w, uint32_t panel, uint32_t k, uint32_t depth,
                         uint16_t *to)
{
    const uint8_t *from =
        (const uint8_t *)w->packed + ((size_t)panel * round_up(w->cols, K_STEP) + k) * PANEL;
    const float *scales = w->scales + (size_t)(panel * PANEL / BLOCK_COLS) * w->scale_stride;
    for (uint32_t pair = 0; pair < depth;) {
        const fp8_table_t table = fp8_table(scales[(k + pair) / BLOCK_COLS]);
        uint32_t end = pair + BLOCK_COLS < depth ? pair + BLOCK_COLS : depth;
        for (; pair < end; pair += 2, from += 2 * PANEL, to += 2 * PANEL) {
            __m512i bytes = _mm512_loadu_si512(from),
                    low = _mm512_permutex2var_epi8(table.low[0], bytes, table.low[1]),
                    high = _mm512_permutex2var_epi8(table.high[0], bytes, table.high[1]);
            high = _mm512_or_si512(high, _mm512_and_si512(bytes, _mm512_set1_epi8(-128)));
            _mm512_storeu_si512(to, _mm512_unpacklo_epi8(low, high));
            _mm512_storeu_si512(to + PANEL, _mm512_unpackhi_epi8(low, high));
        }
    }
}

static void store_rows(const gemm_t *gemm, uint32_t col, const float *sums, uint32_t stride)
{
    uint32_t cols = gemm->w->rows - col < stride ? gemm->w->rows - col : stride;
    for (uint32_t r = 0; r < gemm->rows; r++) {
        size_t at = (size_t)(gemm->first_row + r) * gemm->out->stride + col;
        const float *from = sums + (size_t)r * stride;
        if (gemm->out->dtype == DTYPE_F32) {
            memcpy((float *)gemm->out->data + at, from, cols * sizeof *from);
            continue;
        }
        for (uint32_t i = 0; i < cols; i++)
            ((uint16_t *)gemm->out->data)[at + i] = bf16_from_f32(from[i]);
    }
}

/* Panels first..last; `wide` of them at a time. */
typedef struct {
    uint32_t first, last, wide;
    float *sums;
    uint16_t *weights;
} group_t;

/* The block of weights that comes after this one, and how much of it to fetch per step. */
static void plan_fetching(const gemm_t *gemm, const group_t *group, uint32_t panel, uint32_t k,
                          bf16_tile_t *tile)
{
    uint32_t loops = (gemm->rows + LOOP_ROWS - 1) / LOOP_ROWS;
    size_t bytes = packed_element_bytes(gemm->w);
    panel += group->wide;
    if (panel >= group->last) {
        k += tile->depth;
        panel = k < gemm->depth ? group->first : group->last;
        if (k >= gemm->depth) k = 0;
    }
    if (panel >= gemm->panels) panel = 0;
    tile->next = (const char *)gemm->w->packed + ((size_t)panel * gemm->depth + k) * PANEL * bytes;
    tile->next_stride = (size_t)gemm->depth * PANEL * bytes;
    tile->next_lines = ((uint32_t)bytes * K_STEP * PANEL / LINE_BYTES + loops - 1) / loops;
}

/* The rows of this pass over one block of group->wide panels. */
static void multiply_block(const gemm_t *gemm, const group_t *group, uint32_t panel, uint32_t k)
{
    uint32_t width = group->wide * PANEL, col = panel * PANEL;
    float *sums = group->sums + (size_t)(panel - group->first) * SUMS_FLOATS;
    bf16_tile_t tile = { .depth = block_depth(gemm, k), .to = sums, .to_stride = width };
    plan_fetching(gemm, group, panel, k, &tile);
    tile.x = gemm->x + (size_t)k * gemm->padded_rows;
    tile.x_block = (size_t)BLOCK_ROWS * tile.depth;
    tile.b = (const uint16_t *)gemm->w->packed + ((size_t)panel * gemm->depth + k) * PANEL;
    tile.panel_stride = (size_t)gemm->depth * PANEL;
    if (gemm->w->dtype == DTYPE_F8E4M3) {
        tile.b = group->weights;
        tile.panel_stride = (size_t)K_BLOCK * PANEL;
        for (uint32_t i = 0; i < group->wide; i++)
            expand_block(gemm->w, panel + i, k, tile.depth, group->weights + i * tile.panel_stride);
    }
    tile.from = k > 0 ? sums : NULL;
    tile.from_stride = width;
    int is_last = k + tile.depth == gemm->depth;
    int is_direct = is_last && gemm->out->dtype == DTYPE_F32 && col + width <= gemm->w->rows;
    if (is_direct) {
        tile.to = row_f32(gemm->out, gemm->first_row) + col;
        tile.to_stride = gemm->out->stride;
    }
    multiply_panels(&tile, gemm->rows, group->wide);
    if (is_last && !is_direct) store_rows(gemm, col, sums, width);
}

static void gemm_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const gemm_t *gemm = context;
    int is_few = gemm->rows <= FEW_ROWS;
    group_t group = { .last = first };
    group.sums = (float *)(void *)(gemm->scratch + (size_t)thread * THREAD_BYTES);
    group.weights = (uint16_t *)(void *)(group.sums + GROUP_PANELS * SUMS_FLOATS);
    while (group.last < last) {
        group.first = group.last;
        uint32_t left = last - group.first;
        group.wide = is_few && left >= FEW_PANELS ? FEW_PANELS : 1;
        uint32_t most = is_few ? group.wide : GROUP_PANELS;
        group.last = group.first + (left < most ? left : most);
        for (uint32_t k = 0; k < gemm->depth; k += K_BLOCK)
            for (uint32_t panel = group.first; panel < group.last; panel += group.wide)
                multiply_block(gemm, &group, panel, k);
    }
}

/* One row, K_STEP values at a time, to where the inner loops look for it. */
static void round_row(const gemm_t *gemm, uint32_t row, float *values)
{
    const tensor_t *x = gemm->in;
    const uint16_t *halves =
        (const uint16_t *)x->data + (size_t)(gemm->first_row + row) * x->stride;
    const float *from = values;
    if (x->dtype == DTYPE_F32) from = row_f32(x, gemm->first_row + row);
    if (x->dtype == DTYPE_F8E4M3) row_load(x, gemm->first_row + row, values);
    for (uint32_t k = 0; k < gemm->depth; k += K_STEP) {
        uint32_t block = k / K_BLOCK * K_BLOCK, count = x->cols - k < K_STEP ? x->cols - k : K_STEP;
        uint16_t *to = gemm->x + (size_t)block * gemm->padded_rows +
                       (size_t)(row / BLOCK_ROWS) * BLOCK_ROWS * block_depth(gemm, block) +
                       (size_t)(k - block) * BLOCK_ROWS + (size_t)(row % BLOCK_ROWS) * K_STEP;
        if (x->dtype == DTYPE_BF16)
            _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(
                                        (__mmask32)(0xffffffffU >> (K_STEP - count)), halves + k));
        else if (count == K_STEP)
            _mm512_storeu_si512(
                to, round_to_bf16(vector_load(from + k), vector_load(from + k + LANES)));
        else
            _mm512_storeu_si512(
                to, round_to_bf16(
                        vector_load_some(from + k, count < LANES ? count : LANES),
                        vector_load_some(from + k + LANES, count < LANES ? 0 : count - LANES)));
    }
}

static void round_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const gemm_t *gemm = context;
    for (uint32_t row = first; row < last; row++)
        round_row(gemm, row, gemm->values + (size_t)thread * gemm->in->cols);
}

/* Rows per pass: as many as scratch has room for, the same number in every pass. */
static uint32_t rows_per_pass(uint32_t rows, size_t room)
{
    uint32_t most = room < ROWS_MAX ? (uint32_t)room / BLOCK_ROWS * BLOCK_ROWS : ROWS_MAX;
    if (most == 0) return 0;
    uint32_t passes = (rows + most - 1) / most;
    return passes == 0 ? 0 : round_up((rows + passes - 1) / passes, BLOCK_ROWS);
}

int NAME(gemm)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    if (!w->packed) return judge_gemm(q, out, x, w);
    if (x->cols != w->cols || out->cols != w->rows || out->rows != x->rows ||
        out->dtype == DTYPE_F8E4M3)
        return EINVAL;
    if (x->rows == 0) return 0;
    queue_reset(q);
    uint32_t threads = queue_threads(q);
    gemm_t gemm = { .out = out, .w = w, .in = x, .depth = round_up(w->cols, K_STEP) };
    gemm.panels = round_up(w->rows, PANEL) / PANEL;
    gemm.scratch = queue_take(q, (size_t)threads * THREAD_BYTES);
    gemm.values = queue_take(q, (size_t)threads * x->cols * sizeof *gemm.values);
    uint32_t step = rows_per_pass(x->rows, queue_left(q) / (gemm.depth * sizeof *gemm.x));
    gemm.x = queue_take(q, (size_t)step * gemm.depth * sizeof *gemm.x);
    if (!gemm.scratch || !gemm.values || !gemm.x || step == 0) return ENOMEM;
    /* Twice as many pieces as threads, so that the last ones do not wait long for each other. */
    uint32_t grain = (gemm.panels + 2 * threads - 1) / (2 * threads);
    if (grain > GROUP_PANELS) grain = GROUP_PANELS;
    for (uint32_t first = 0; first < x->rows; first += step) {
        gemm.first_row = first;
        gemm.rows = x->rows - first < step ? x->rows - first : step;
        gemm.padded_rows = round_up(gemm.rows, BLOCK_ROWS);
        queue_share(q, gemm.rows, BLOCK_ROWS, round_part, &gemm);
        queue_share(q, gemm.panels, gemm.rows <= FEW_ROWS ? FEW_PANELS : grain, gemm_part, &gemm);
    }
    return 0;
}

int NAME(grouped_gemm)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                       const groups_t *groups)
{
    return judge_gemm_each(q, out, x, w, groups, NAME(gemm));
}
