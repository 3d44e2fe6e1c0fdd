/* kernels/cpu/fast_rows.h - the ops on rows whose time matters: norms, SiLU, combine, the gate, the
 * absorbed products. */
#include "fast.h"
#include "gate.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"
#include "tile.h"

#include <errno.h>
#include <math.h>

static float sum_of_squares(const float *x, uint32_t count)
{
    vector_t sum = vector_set(0);
    for (uint32_t i = 0; i < count; i += LANES) {
        vector_t part = vector_load_some(x + i, count - i < LANES ? count - i : LANES);
        sum = vector_fma(part, part, sum);
    }
    return vector_sum(sum);
}

static void multiply_row(const float *x, float factor, const float *weights, uint32_t count,
                         float *out)
{
    for (uint32_t i = 0; i < count; i += LANES) {
        uint32_t lanes = count - i < LANES ? count - i : LANES;
        vector_t product = vector_load_some(x + i, lanes) * vector_set(factor) *
                           vector_load_some(weights + i, lanes);
        vector_store_some(out + i, product, lanes);
    }
}

int NAME(add_rmsnorm)(queue_t *q, const tensor_t *out, const tensor_t *quantised,
                      const tensor_t *residual, const tensor_t *x, const tensor_t *weight,
                      float eps)
{
    if (residual->dtype != DTYPE_F32)
        return judge_add_rmsnorm(q, out, quantised, residual, x, weight, eps);
    if (weight->cols != residual->cols) return EINVAL;
    if (out && (out->cols != residual->cols || out->rows != residual->rows)) return EINVAL;
    if (quantised && (quantised->cols != residual->cols || quantised->rows != residual->rows))
        return EINVAL;
    if (x && (x->cols != residual->cols || x->rows != residual->rows)) return EINVAL;
    queue_reset(q);
    uint32_t cols = residual->cols;
    float *row = queue_take(q, cols * sizeof *row),
          *weights = queue_take(q, cols * sizeof *weights);
    if (!row || !weights) return ENOMEM;
    expand_weight_row(weight, 0, weights);
    for (uint32_t r = 0; r < residual->rows; r++) {
        float *sums = row_f32(residual, r);
        if (x) {
            expand_activation_row(x, r, row);
            for (uint32_t i = 0; i < cols; i++) sums[i] += row[i];
        }
        float factor = 1.0F / sqrtf(sum_of_squares(sums, cols) / (float)cols + eps);
        multiply_row(sums, factor, weights, cols, row);
        if (out) row_store(out, r, row);
        if (quantised) row_store(quantised, r, row);
    }
    return 0;
}

int NAME(rmsnorm)(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *weight,
                  float eps)
{
    if (x->dtype != DTYPE_F32) return judge_rmsnorm(q, out, x, weight, eps);
    return NAME(add_rmsnorm)(q, out, NULL, x, NULL, weight, eps);
}

static void silu_mul_row(float *both, uint32_t count)
{
    for (uint32_t i = 0; i < count; i += LANES) {
        uint32_t lanes = count - i < LANES ? count - i : LANES;
        vector_t gate = vector_load_some(both + i, lanes),
                 up = vector_load_some(both + count + i, lanes);
        vector_t negative = vector_set(0) - vector_max(gate, vector_set(-87.0F));
        vector_store_some(both + i, gate / (vector_set(1.0F) + vector_exp(negative)) * up, lanes);
    }
}

int NAME(silu_mul)(queue_t *q, const tensor_t *out, const tensor_t *gate_up)
{
    if (gate_up->cols != 2 * out->cols || gate_up->rows != out->rows) return EINVAL;
    queue_reset(q);
    float *both = queue_take(q, gate_up->cols * sizeof *both);
    if (!both) return ENOMEM;
    for (uint32_t r = 0; r < out->rows; r++) {
        expand_activation_row(gate_up, r, both);
        silu_mul_row(both, out->cols);
        row_store(out, r, both);
    }
    return 0;
}

int NAME(grouped_silu_mul)(queue_t *q, const tensor_t *out, const tensor_t *gate_up,
                           const groups_t *groups)
{
    return judge_rows_each(q, out, gate_up, groups, NAME(silu_mul));
}

/* The same multiplications and additions as the judge's, so that the two agree to the bit. */
int NAME(combine)(queue_t *q, const tensor_t *out, const tensor_t *rows, const uint32_t *index,
                  const float *weights, uint32_t top_k)
{
    if (out->dtype != DTYPE_F32) return judge_combine(q, out, rows, index, weights, top_k);
    if (out->cols != rows->cols) return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, out->cols * sizeof *row);
    if (!row) return ENOMEM;
    for (uint32_t t = 0; t < out->rows; t++)
        for (uint32_t k = 0; k < top_k; k++) {
            uint32_t from = index[(size_t)t * top_k + k];
            if (from == NO_ROW) continue;
            if (from >= rows->rows) return ERANGE;
            expand_activation_row(rows, from, row);
            float *sum = row_f32(out, t), weight = weights[(size_t)t * top_k + k];
            uint32_t i = 0;
            for (; i + LANES <= out->cols; i += LANES)
                vector_store(sum + i,
                             vector_load(sum + i) + vector_set(weight) * vector_load(row + i));
            for (; i < out->cols; i++) sum[i] += weight * row[i];
        }
    return 0;
}

/* Four rows against a few rows of weights at a time; out[r][0..count) = a[r] . b[0..count). */
static void dot_rows(dots_t dots, uint32_t rows, const float *b, uint32_t count)
{
    float totals[DOT_SUMS];
    dots_t tile = dots;
    tile.out = totals;
    tile.out_stride = DOT_COLUMNS;
    for (uint32_t r = 0, done = 0; r < rows; r += done) {
        done = r + DOT_ROWS <= rows ? DOT_ROWS : 1;
        tile.a = dots.a + r * dots.a_stride;
        for (uint32_t n = 0; n < count; n += DOT_COLUMNS) {
            uint32_t width = count - n < DOT_COLUMNS ? count - n : DOT_COLUMNS;
            for (uint32_t j = 0; j < DOT_COLUMNS; j++)
                tile.b[j] = b + (size_t)(j < width ? n + j : n) * dots.depth;
            if (done == DOT_ROWS)
                dot_tile(&tile, DOT_ROWS);
            else
                dot_tile(&tile, 1);
            for (uint32_t i = 0; i < done; i++)
                memcpy(dots.out + (r + i) * dots.out_stride + n, totals + (size_t)i * DOT_COLUMNS,
                       width * sizeof(float));
        }
    }
}

enum { GATE_EXPERTS = 8 };

int NAME(gate)(queue_t *q, uint32_t *ids, float *weights, const tensor_t *x, const tensor_t *w,
               const float *bias, const gate_t *gate)
{
    if (x->dtype != DTYPE_F32) return judge_gate(q, ids, weights, x, w, bias, gate);
    if (!gate_is_valid(gate) || w->rows != gate->experts || x->cols != w->cols) return EINVAL;
    queue_reset(q);
    gate_room_t room;
    float *experts = queue_take(q, (size_t)GATE_EXPERTS * w->cols * sizeof *experts);
    float *logits = NULL;
    if (!experts || gate_room_take(q, gate, &room) != 0) return ENOMEM;
    size_t fit = queue_left(q) / (gate->experts * sizeof *logits + 64);
    uint32_t step = fit < x->rows ? (uint32_t)fit : x->rows;
    if (step == 0) return x->rows == 0 ? 0 : ENOMEM;
    logits = queue_take(q, (size_t)step * gate->experts * sizeof *logits);
    if (!logits) return ENOMEM;
    for (uint32_t first = 0; first < x->rows; first += step) {
        uint32_t rows = x->rows - first < step ? x->rows - first : step;
        for (uint32_t e = 0; e < gate->experts; e += GATE_EXPERTS) {
            uint32_t count = gate->experts - e < GATE_EXPERTS ? gate->experts - e : GATE_EXPERTS;
            for (uint32_t i = 0; i < count; i++)
                expand_weight_row(w, e + i, experts + (size_t)i * w->cols);
            dot_rows((dots_t){ .a = row_f32(x, first),
                               .a_stride = x->stride,
                               .depth = w->cols,
                               .out = logits + e,
                               .out_stride = gate->experts },
                     rows, experts, count);
        }
        for (uint32_t r = 0; r < rows; r++) {
            memcpy(room.logits, logits + (size_t)r * gate->experts, gate->experts * sizeof *logits);
            gate_choose(gate, &room, bias, ids + (size_t)(first + r) * gate->top_k,
                        weights + (size_t)(first + r) * gate->top_k);
        }
    }
    return 0;
}

typedef struct {
    const tensor_t *out, *in, *kv_b;
    const heads_t *heads;
    float *scratch; /* per thread: the expanded rows of one head */
    size_t scratch_floats;
} absorb_t;

/* Columns come in whole vectors, so the expanded rows are padded to whole panels. */
static size_t padded_latent(const heads_t *heads)
{
    return (heads->latent + NARROW_VECTORS * LANES - 1) / (NARROW_VECTORS * LANES) *
           (NARROW_VECTORS * LANES);
}

static void absorb_query_head(const absorb_t *self, uint32_t h, float *weights, float *sums)
{
    const heads_t *heads = self->heads;
    size_t stride = padded_latent(heads), from = heads->nope + heads->rope,
           to = heads->latent + heads->rope;
    for (uint32_t i = 0; i < heads->nope; i++)
        expand_weight_row(self->kv_b, h * (heads->nope + heads->value) + i, weights + i * stride);
    for (uint32_t t = 0; t < self->in->rows; t += NARROW_ROWS) {
        uint32_t rows = self->in->rows - t < NARROW_ROWS ? self->in->rows - t : NARROW_ROWS;
        tile_t tile = { .a = row_f32(self->in, t) + h * from,
                        .a_stride = self->in->stride,
                        .b_stride = stride,
                        .c = sums,
                        .c_stride = NARROW_VECTORS * LANES,
                        .depth = heads->nope,
                        .scale = 1.0F,
                        .is_first = 1 };
        for (uint32_t col = 0; col < heads->latent; col += NARROW_VECTORS * LANES) {
            uint32_t cols = heads->latent - col < NARROW_VECTORS * LANES ? heads->latent - col
                                                                         : NARROW_VECTORS * LANES;
            tile.b = weights + col;
            tile.next = (const char *)tile.b;
            multiply_narrow(tile, rows);
            for (uint32_t r = 0; r < rows; r++)
                memcpy(row_f32(self->out, t + r) + h * to + col,
                       sums + (size_t)r * NARROW_VECTORS * LANES, cols * sizeof *sums);
        }
        for (uint32_t r = 0; r < rows; r++)
            memcpy(row_f32(self->out, t + r) + h * to + heads->latent,
                   row_f32(self->in, t + r) + h * from + heads->nope, heads->rope * sizeof *sums);
    }
}

static void absorb_query_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const absorb_t *self = context;
    float *weights = self->scratch + thread * self->scratch_floats,
          sums[NARROW_ROWS * NARROW_VECTORS * LANES];
    memset(weights, 0, self->scratch_floats * sizeof *weights);
    for (uint32_t h = first; h < last; h++) absorb_query_head(self, h, weights, sums);
}

int NAME(absorb_query)(queue_t *q, const tensor_t *out, const tensor_t *query, const tensor_t *kv_b,
                       const heads_t *heads)
{
    if (query->dtype != DTYPE_F32 || out->dtype != DTYPE_F32)
        return judge_absorb_query(q, out, query, kv_b, heads);
    if (query->cols != heads->heads * (heads->nope + heads->rope) || kv_b->cols != heads->latent ||
        out->cols != heads->heads * (heads->latent + heads->rope) ||
        kv_b->rows != heads->heads * (heads->nope + heads->value))
        return EINVAL;
    queue_reset(q);
    absorb_t self = { .out = out, .in = query, .kv_b = kv_b, .heads = heads };
    self.scratch_floats = heads->nope * padded_latent(heads);
    self.scratch = queue_take(q, queue_threads(q) * self.scratch_floats * sizeof(float));
    if (!self.scratch) return ENOMEM;
    queue_share(q, heads->heads, 1, absorb_query_part, &self);
    return 0;
}

static void absorb_value_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const absorb_t *self = context;
    const heads_t *heads = self->heads;
    float *weights = self->scratch + thread * self->scratch_floats;
    for (uint32_t h = first; h < last; h++) {
        uint32_t row = h * (heads->nope + heads->value) + heads->nope;
        for (uint32_t v = 0; v < heads->value; v++)
            expand_weight_row(self->kv_b, row + v, weights + (size_t)v * heads->latent);
        dot_rows((dots_t){ .a = row_f32(self->in, 0) + (size_t)h * heads->latent,
                           .a_stride = self->in->stride,
                           .depth = heads->latent,
                           .out = row_f32(self->out, 0) + (size_t)h * heads->value,
                           .out_stride = self->out->stride },
                 self->in->rows, weights, heads->value);
    }
}

int NAME(absorb_value)(queue_t *q, const tensor_t *out, const tensor_t *latent,
                       const tensor_t *kv_b, const heads_t *heads)
{
    if (latent->dtype != DTYPE_F32 || out->dtype != DTYPE_F32)
        return judge_absorb_value(q, out, latent, kv_b, heads);
    if (latent->cols != heads->heads * heads->latent || out->cols != heads->heads * heads->value ||
        kv_b->cols != heads->latent || kv_b->rows != heads->heads * (heads->nope + heads->value))
        return EINVAL;
    queue_reset(q);
    absorb_t self = { .out = out, .in = latent, .kv_b = kv_b, .heads = heads };
    self.scratch_floats = (size_t)heads->value * heads->latent;
    self.scratch = queue_take(q, queue_threads(q) * self.scratch_floats * sizeof(float));
    if (!self.scratch) return ENOMEM;
    queue_share(q, heads->heads, 1, absorb_value_part, &self);
    return 0;
}
