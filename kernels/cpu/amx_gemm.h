/* kernels/cpu/amx_gemm.h - the matrix products on AMX: x as the sum of two numbers of bfloat16, FP8
 * weights without their scales inside the tiles, so that results are as good as those of F32.
 *
 * Packed weights: [panel][k / K_STEP][16 columns][k / 2][column][2], columns and k padded with
 * zeros; BF16 stays what it is, FP8 stays FP8, four tiles of a step in 2 KiB.  F32 is left to
 * AVX-512.
 *
 * For a group of panels, for each block of k, for each 32 rows of x, all panels of the group: the
 * rows stay in L1, the weights of the block and the sums of the group in L2.  While the tiles
 * multiply, the vector units add the products of the call before to the sums, fetch or decode a
 * share of the group's next block of weights.
 */
#include "fast.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"
#include "tile.h"

#include "amx_tiles.h"

#include <errno.h>

enum {
    ROWS_MAX = 256,       /* per pass over the weights: more would push x out of L2 */
    GROUP_PANELS = 8,     /* more: x is read less often, but sums leave L2 */
    GROUP_PANELS_FEW = 4, /* up to FEW_ROWS, where x stays in L2 anyway */
    FEW_ROWS = 128,
    FAR_BYTES = 2 << 20, /* of results that no cache would keep until they are read */
    BLOCK_ELEMENTS = FP8_BLOCK * PANEL, /* of one panel, decoded */
    SUMS_FLOATS = ROWS_MAX * PANEL,
    THREAD_BYTES =
        GROUP_PANELS * (SUMS_FLOATS * 4 + 2 * BLOCK_ELEMENTS * 2) + (2 * PRODUCTS + PANEL) * 4
};

INLINE uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

INLINE uint32_t round_up(uint32_t value, uint32_t step)
{
    return (value + step - 1) / step * step;
}

int amx_prepare_size(const tensor_t *w, size_t *bytes)
{
    if (w->dtype == DTYPE_F32) return avx512_prepare_size(w, bytes);
    size_t element_bytes = w->dtype == DTYPE_F8E4M3 ? 1 : 2;
    *bytes = (size_t)round_up(w->rows, PANEL) * round_up(w->cols, K_STEP) * element_bytes;
    return 0;
}

/* Where element i of a line of FP8 lies, which becomes two rows of a tile: the bytes that one
 * unpacking instruction joins are eight from each 16. */
INLINE uint32_t fp8_place(uint32_t i)
{
    return i % 32 / 8 * 16 + i / 32 * 8 + i % 8;
}

/* One step of k of one panel. */
static void pack_step(const tensor_t *w, uint32_t first_row, uint32_t first_col, void *packed)
{
    for (uint32_t i = 0; i < PANEL * K_STEP; i++) {
        uint32_t in_tile = i % TILE_ELEMENTS,
                 row = first_row + i / TILE_ELEMENTS * TILE_ROWS + in_tile % 32 / 2,
                 col = first_col + in_tile / 32 * 2 + i % 2;
        size_t at = (size_t)row * w->stride + col;
        int is_real = row < w->rows && col < w->cols;
        if (w->dtype == DTYPE_BF16)
            ((uint16_t *)packed)[i] = is_real ? ((const uint16_t *)w->data)[at] : 0;
        else
            ((uint8_t *)packed)[i / 64 * 64 + fp8_place(i % 64)] =
                is_real ? ((const uint8_t *)w->data)[at] : 0;
    }
}

int amx_prepare(const tensor_t *w, void *packed)
{
    if (w->dtype == DTYPE_F32) return avx512_prepare(w, packed);
    char *to = packed;
    for (uint32_t row = 0; row < w->rows; row += PANEL)
        for (uint32_t col = 0; col < w->cols; col += K_STEP) {
            pack_step(w, row, col, to);
            to += PANEL * K_STEP * (w->dtype == DTYPE_F8E4M3 ? 1 : 2);
        }
    return 0;
}

typedef struct {
    const tensor_t *out, *w, *in;
    uint16_t *x; /* [block of k][block of rows][step of k][X_STEP] */
    uint32_t depth, block, panels, first_row, rows; /* depth: k; block: of a block of k */
    uint32_t calls; /* of the inner loops for a block of k of a panel */
    int is_far;     /* results leave past the caches */
    char *scratch;  /* THREAD_BYTES per thread */
    fp8_table_t table;
} gemm_t;
_Static_assert((int)THREAD_BYTES <= (int)QUEUE_THREAD_BYTES, "what queues are made for");

INLINE uint32_t block_depth(const gemm_t *gemm, uint32_t k)
{
    return least(gemm->depth - k, gemm->block);
}

/* A block of k of a group of panels: first == last after the end. */
typedef struct {
    uint32_t first, last, k;
} stage_t;

/* What a thread knows while it goes through its panels. */
typedef struct {
    const gemm_t *gemm;
    uint32_t group_panels, last; /* of all its panels */
    uint32_t share;              /* of a panel's next block of weights that falls to one call */
    float *sums;                 /* [panel of the group][row][PANEL] */
    float *zeros;
    uint16_t *decoded[2]; /* weights of this stage and of the next one */
    float *products[2];   /* of this call and of the one before, in turn */
    stage_t stage, next, second;
    addition_t addition; /* of the call before; no rows: none */
    uint32_t turn, call_turn;
} worker_t;

static stage_t stage_after(const worker_t *self, stage_t stage)
{
    stage.k += block_depth(self->gemm, stage.k);
    if (stage.first == stage.last || stage.k < self->gemm->depth) return stage;
    uint32_t left = self->last - stage.last;
    stage.first = stage.last;
    stage.last += left < self->group_panels ? left : self->group_panels;
    stage.k = 0;
    return stage;
}

INLINE const char *packed_block(const gemm_t *gemm, uint32_t panel, uint32_t k)
{
    size_t element_bytes = gemm->w->dtype == DTYPE_F8E4M3 ? 1 : 2;
    return (const char *)gemm->w->packed +
           ((size_t)panel * gemm->depth + k) * PANEL * element_bytes;
}

/* The share of call number `call` of the weights that come next in the place of this panel: FP8 is
 * decoded one stage ahead and fetched two ahead, BF16 is fetched one ahead. */
INLINE void plan_weights(const worker_t *self, uint32_t panel, uint32_t call, beside_t *beside)
{
    const gemm_t *gemm = self->gemm;
    int is_fp8 = gemm->w->dtype == DTYPE_F8E4M3;
    uint32_t place = panel - self->stage.first;
    beside->lines = 0;
    if (place >= self->next.last - self->next.first) return;
    uint32_t lines = block_depth(gemm, self->next.k), first = call * self->share;
    if (first >= lines) return;
    beside->lines = least(lines - first, self->share);
    beside->ahead_bytes = is_fp8 ? 64 : 128;
    stage_t ahead = is_fp8 ? self->second : self->next;
    if (place >= ahead.last - ahead.first) ahead = self->next;
    beside->ahead =
        packed_block(gemm, ahead.first + place, ahead.k) + (size_t)first * beside->ahead_bytes;
    beside->fp8 = NULL;
    if (!is_fp8) return;
    beside->fp8 = (const uint8_t *)packed_block(gemm, self->next.first + place, self->next.k) +
                  (size_t)first * 64;
    beside->decoded = self->decoded[self->turn ^ 1] + (size_t)place * BLOCK_ELEMENTS + first * 64;
}

/* Where the products of a call go: to the sums, after the last block of k to the output itself
 * where that is F32 and whole. */
INLINE addition_t addition_of(const worker_t *self, uint32_t panel, uint32_t row, uint32_t col)
{
    const gemm_t *gemm = self->gemm;
    const tensor_t *w = gemm->w, *out = gemm->out;
    uint32_t k = self->stage.k, rows = least(gemm->rows - row, BLOCK_ROWS);
    float *sums =
        self->sums + (size_t)(panel - self->stage.first) * SUMS_FLOATS + (size_t)row * PANEL + col;
    addition_t addition = { .products = self->products[self->call_turn],
                            .from = k > 0 ? sums : self->zeros,
                            .from_stride = k > 0 ? PANEL : 0,
                            .to = sums,
                            .to_stride = PANEL,
                            .scale = 1.0F,
                            .rows = rows,
                            .cols = rows > TILE_ROWS ? HALF_PANEL : PANEL };
    if (w->dtype == DTYPE_F8E4M3)
        addition.scale =
            w->scales[(size_t)(panel * PANEL / BLOCK_COLS) * w->scale_stride + k / BLOCK_COLS];
    int is_last = k + block_depth(gemm, k) == gemm->depth;
    if (is_last && out->dtype == DTYPE_F32 && (panel + 1) * PANEL <= w->rows) {
        addition.to = row_f32(out, gemm->first_row + row) + panel * PANEL + col;
        addition.to_stride = out->stride;
        addition.is_far = gemm->is_far;
    }
    return addition;
}

/* The products of up to 32 rows from `row` on and one panel, or half of it, beside the addition of
 * those before. */
INLINE void run_call(worker_t *self, uint32_t panel, uint32_t row, uint32_t col, uint32_t call)
{
    const gemm_t *gemm = self->gemm;
    uint32_t k = self->stage.k, depth = block_depth(gemm, k), steps = depth / K_STEP;
    int is_narrow = gemm->rows - row > TILE_ROWS;
    call_t products = { .steps = steps, .products = self->products[self->call_turn] };
    products.x =
        gemm->x + (size_t)k * round_up(gemm->rows, BLOCK_ROWS) * 2 + (size_t)row * depth * 2;
    products.weights = (const uint16_t *)(const void *)packed_block(gemm, panel, k);
    if (gemm->w->dtype == DTYPE_F8E4M3)
        products.weights =
            self->decoded[self->turn] + (size_t)(panel - self->stage.first) * BLOCK_ELEMENTS;
    products.weights += (size_t)col / TILE_ROWS * TILE_ELEMENTS;
    beside_t beside = { .addition = self->addition };
    plan_weights(self, panel, call, &beside);
    uint32_t slots = 2 * steps;
    beside.addition.rows_per_slot = (beside.addition.rows + slots - 1) / slots;
    beside.lines_per_slot = (beside.lines + slots - 1) / slots;
    if (is_narrow)
        multiply_32_rows(&products, &beside, &gemm->table);
    else
        multiply_16_rows(&products, &beside, &gemm->table);
    self->addition = addition_of(self, panel, row, col);
    self->call_turn ^= 1;
}

/* All rows over one block of k of a group of panels. */
static void run_stage(worker_t *self)
{
    uint32_t call = 0;
    for (uint32_t row = 0; row < self->gemm->rows; row += BLOCK_ROWS) {
        int is_narrow = self->gemm->rows - row > TILE_ROWS;
        for (uint32_t panel = self->stage.first; panel < self->stage.last; panel++) {
            run_call(self, panel, row, 0, call);
            if (is_narrow) run_call(self, panel, row, HALF_PANEL, call + 1);
        }
        call += is_narrow ? 2 : 1;
    }
}

static void finish_addition(worker_t *self)
{
    beside_t beside = { .addition = self->addition };
    beside.addition.rows_per_slot = beside.addition.rows;
    work_beside(&beside, &self->gemm->table, 0);
    self->addition.rows = 0;
}

/* `cols` sums of one row, from column `col` on, to the output. */
static void store_row(const tensor_t *out, uint32_t row, uint32_t col, const float *sums,
                      uint32_t cols)
{
    size_t at = (size_t)row * out->stride + col;
    if (out->dtype == DTYPE_F32)
        memcpy((float *)out->data + at, sums, cols * sizeof *sums);
    else
        for (uint32_t i = 0; i < cols; i++)
            ((uint16_t *)out->data)[at + i] = bf16_from_f32(sums[i]);
}

/* Ends a group of panels: those whose sums could not be written in place are a last one that is
 * cut, or all for BF16. */
static void store_sums(worker_t *self)
{
    const gemm_t *gemm = self->gemm;
    finish_addition(self);
    for (uint32_t panel = self->stage.first; panel < self->stage.last; panel++) {
        uint32_t col = panel * PANEL, cols = least(gemm->w->rows - col, PANEL);
        if (cols == PANEL && gemm->out->dtype == DTYPE_F32) continue;
        const float *sums = self->sums + (size_t)(panel - self->stage.first) * SUMS_FLOATS;
        for (uint32_t row = 0; row < gemm->rows; row++, sums += PANEL)
            store_row(gemm->out, gemm->first_row + row, col, sums, cols);
    }
}

/* Nobody multiplies yet: the first stage is decoded by itself. */
static void decode_first_stage(worker_t *self)
{
    for (uint32_t panel = self->stage.first; panel < self->stage.last; panel++) {
        beside_t beside = { .lines = block_depth(self->gemm, 0) };
        beside.lines_per_slot = beside.lines;
        beside.fp8 = (const uint8_t *)packed_block(self->gemm, panel, 0);
        beside.ahead = (const char *)beside.fp8;
        beside.decoded = self->decoded[0] + (size_t)(panel - self->stage.first) * BLOCK_ELEMENTS;
        work_beside(&beside, &self->gemm->table, 0);
    }
}

static void gemm_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const gemm_t *gemm = context;
    worker_t self = { .gemm = gemm, .last = last };
    int are_few = gemm->rows <= FEW_ROWS;
    self.group_panels = gemm->rows <= TILE_ROWS ? 1 : are_few ? GROUP_PANELS_FEW : GROUP_PANELS;
    self.sums = (float *)(void *)(gemm->scratch + (size_t)thread * THREAD_BYTES);
    self.products[0] = self.sums + GROUP_PANELS * SUMS_FLOATS;
    /* In one place products are added in time as well; decoding for few rows wants that of L1. */
    self.products[1] = self.products[0] + (are_few ? 0 : PRODUCTS);
    self.zeros = self.products[0] + 2 * PRODUCTS;
    memset(self.zeros, 0, PANEL * sizeof *self.zeros);
    self.decoded[0] = (uint16_t *)(void *)(self.zeros + PANEL);
    self.decoded[1] = self.decoded[0] + GROUP_PANELS * BLOCK_ELEMENTS;
    self.stage = (stage_t){ .first = first, .last = first + self.group_panels };
    if (self.stage.last > last) self.stage.last = last;
    begin_tiles(gemm->rows);
    if (gemm->w->dtype == DTYPE_F8E4M3) decode_first_stage(&self);
    for (; self.stage.first < self.stage.last; self.stage = self.next, self.turn ^= 1) {
        self.next = stage_after(&self, self.stage);
        self.second = stage_after(&self, self.next);
        self.share = (block_depth(gemm, self.next.k) + gemm->calls - 1) / gemm->calls;
        order_memory();
        run_stage(&self);
        if (self.next.k == 0) store_sums(&self);
    }
    tile_release();
    _mm_sfence();
}

/* One step of k of one row as two parts, to where the inner loops look for it. */
INLINE void split_step(const gemm_t *gemm, uint32_t row, uint32_t k, uint16_t *to)
{
    const tensor_t *x = gemm->in;
    uint32_t count = least(x->cols - k, K_STEP), in_row = gemm->first_row + row;
    float values[K_STEP];
    const float *from = values;
    if (x->dtype == DTYPE_F32)
        from = row_f32(x, in_row) + k;
    else
        expand(element(x->data, x->dtype, (size_t)in_row * x->stride + k), x->dtype,
               x->scales ? x->scales[(size_t)in_row * x->scale_stride + k / BLOCK_COLS] : 1.0F,
               count, values);
    vector_t first = vector_load_some(from, least(count, LANES)),
             second = vector_load_some(from + LANES, count < LANES ? 0 : count - LANES);
    _mm512_storeu_si512(to, round_to_bf16(first, second));
    _mm512_storeu_si512(to + LOW, round_to_bf16(first - vector_expand_bf16(to),
                                                second - vector_expand_bf16(to + LANES)));
}

/* Blocks of k of blocks of rows, each in the order in which it is written. */
static void split_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const gemm_t *gemm = context;
    uint32_t row_blocks = round_up(gemm->rows, BLOCK_ROWS) / BLOCK_ROWS;
    for (uint32_t i = first; i < last; i++) {
        uint32_t block = i / row_blocks * gemm->block, depth = block_depth(gemm, block),
                 row = i % row_blocks * BLOCK_ROWS, rows = least(gemm->rows - row, BLOCK_ROWS);
        uint16_t *to =
            gemm->x + ((size_t)block * row_blocks * BLOCK_ROWS + (size_t)row * depth) * 2;
        for (uint32_t k = block; k < block + depth; k += K_STEP, to += X_STEP)
            for (uint32_t r = 0; r < rows; r++)
                split_step(gemm, row + r, k, to + (size_t)r * K_STEP);
    }
}

/* Rows per pass: as many as scratch has room for, the same number in every pass. */
static uint32_t rows_per_pass(uint32_t rows, size_t room)
{
    uint32_t most = room < ROWS_MAX ? (uint32_t)room / BLOCK_ROWS * BLOCK_ROWS : ROWS_MAX;
    if (most == 0) return 0;
    uint32_t passes = (rows + most - 1) / most;
    return round_up((rows + passes - 1) / passes, BLOCK_ROWS);
}

int amx_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    if (!w->packed || w->dtype == DTYPE_F32) return avx512_gemm(q, out, x, w);
    if (x->cols != w->cols || out->cols != w->rows || out->rows != x->rows ||
        out->dtype == DTYPE_F8E4M3)
        return EINVAL;
    if (x->rows == 0) return 0;
    queue_reset(q);
    uint32_t threads = queue_threads(q);
    gemm_t gemm = {
        .out = out, .w = w, .in = x, .depth = round_up(w->cols, K_STEP), .table = fp8_table()
    };
    gemm.block = w->dtype == DTYPE_F8E4M3 ? FP8_BLOCK : BF16_BLOCK;
    gemm.panels = round_up(w->rows, PANEL) / PANEL;
    gemm.scratch = queue_take(q, (size_t)threads * THREAD_BYTES);
    size_t row_bytes = (size_t)gemm.depth * 2 * sizeof *gemm.x;
    uint32_t step = rows_per_pass(x->rows, queue_left(q) / row_bytes);
    gemm.x = queue_take(q, step * row_bytes);
    if (!gemm.scratch || !gemm.x || step == 0) return ENOMEM;
    gemm.is_far = out->dtype == DTYPE_F32 && (size_t)out->rows * out->cols * 4 >= FAR_BYTES &&
                  out->stride % LANES == 0 && (uintptr_t)out->data % 64 == 0;
    /* Twice as many pieces as threads, so that the last ones do not wait long for each other. */
    uint32_t grain = least((gemm.panels + 2 * threads - 1) / (2 * threads), GROUP_PANELS);
    uint32_t k_blocks = round_up(gemm.depth, gemm.block) / gemm.block;
    for (uint32_t first = 0; first < x->rows; first += step) {
        gemm.first_row = first;
        gemm.rows = least(x->rows - first, step);
        gemm.calls = gemm.rows / BLOCK_ROWS * 2;
        uint32_t left = gemm.rows % BLOCK_ROWS;
        gemm.calls += left == 0 ? 0 : left <= TILE_ROWS ? 1 : 2;
        uint32_t pieces = k_blocks * (round_up(gemm.rows, BLOCK_ROWS) / BLOCK_ROWS);
        /* A few rows are not worth waking anybody. */
        queue_share(q, pieces, gemm.rows < TILE_ROWS ? pieces : 1, split_part, &gemm);
        queue_share(q, gemm.panels, grain, gemm_part, &gemm);
    }
    return 0;
}

int amx_grouped_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                     const groups_t *groups)
{
    return judge_gemm_each(q, out, x, w, groups, amx_gemm);
}
