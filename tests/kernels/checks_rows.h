/* tests/kernels/checks_rows.h - ops that work on rows against sums in double: norms, activations,
 * combine, gate. */
#ifndef TESTS_KERNELS_CHECKS_ROWS_H
#define TESTS_KERNELS_CHECKS_ROWS_H

#include "checks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Each byte is the nearest to value / scale, and each scale its block's amax / 448. */
static inline void expect_quantised(check_t *self, const char *what, const tensor_t *out,
                                    const double *wanted)
{
    for (uint32_t r = 0; r < out->rows; r++)
        for (uint32_t first = 0; first < out->cols; first += 128) {
            uint32_t end = first + 128 < out->cols ? first + 128 : out->cols;
            const double *values = wanted + (size_t)r * out->cols;
            double amax = 1e-4, worst = 0,
                   scale = (double)out->scales[r * out->scale_stride + first / 128];
            for (uint32_t c = first; c < end; c++) amax = fmax(amax, fabs(values[c]));
            for (uint32_t c = first; c < end; c++) {
                double allowed = fmax(fabs(values[c]) / 16, scale * 0x1p-10) * 1.0001;
                worst = fmax(worst, fabs(element_of(out, r, c, 0) - values[c]) / allowed);
            }
            expect(self, fabs(scale - amax / 448) <= 2e-6 * scale, what, scale, amax / 448);
            expect(self, worst <= 1, what, worst, 1);
        }
}

static inline void check_norms(check_t *self, uint32_t rows, uint32_t cols)
{
    tensor_t x = random_tensor(self, DTYPE_F32, rows, cols, 0),
             weight = random_tensor(self, DTYPE_BF16, 1, cols, 0);
    tensor_t residual = random_tensor(self, DTYPE_F32, rows, cols, 0),
             out = new_tensor(DTYPE_F32, rows, cols, 0);
    tensor_t quantised = new_tensor(DTYPE_F8E4M3, rows, cols, 0);
    double *wanted = calloc((size_t)rows * cols, sizeof *wanted),
           *sums = calloc((size_t)rows * cols, sizeof *sums);
    for (int is_added = 0; is_added < 2; is_added++) {
        for (uint32_t r = 0; r < rows; r++) {
            double squares = 0;
            for (uint32_t c = 0; c < cols; c++) {
                sums[(size_t)r * cols + c] =
                    element_of(&x, r, c, 0) + (is_added ? element_of(&residual, r, c, 0) : 0);
                squares += sums[(size_t)r * cols + c] * sums[(size_t)r * cols + c];
            }
            for (uint32_t c = 0; c < cols; c++)
                wanted[(size_t)r * cols + c] = sums[(size_t)r * cols + c] /
                                               sqrt(squares / cols + 1e-6) *
                                               element_of(&weight, 0, c, 0);
        }
        poison_scratch(self);
        if (is_added)
            expect(self,
                   self->ops->add_rmsnorm(self->q, &out, &quantised, &residual, &x, &weight,
                                          1e-6F) == 0,
                   "add_rmsnorm", 1, 0);
        else
            expect(self, self->ops->rmsnorm(self->q, &out, &x, &weight, 1e-6F) == 0, "rmsnorm", 1,
                   0);
        compare(self, "rmsnorm", &out, wanted, 1e-6);
    }
    compare(self, "add_rmsnorm's residual", &residual, sums, 1e-7);
    expect_quantised(self, "add_rmsnorm's bytes", &quantised, wanted);
    expect(self,
           self->ops->add_rmsnorm(self->q, NULL, &quantised, &residual, NULL, &weight, 1e-6F) == 0,
           "add_rmsnorm of nothing", 1, 0);
    compare(self, "add_rmsnorm of nothing leaves the residual", &residual, sums, 1e-7);
    expect_quantised(self, "add_rmsnorm's bytes alone", &quantised, wanted);
    free(wanted);
    free(sums);
    free_tensor(&x);
    free_tensor(&weight);
    free_tensor(&residual);
    free_tensor(&out);
    free_tensor(&quantised);
}

static inline void check_silu(check_t *self, uint32_t rows, uint32_t cols, dtype_t dtype)
{
    tensor_t both = random_tensor(self, dtype, rows, 2 * cols, 0),
             out = new_tensor(DTYPE_F32, rows, cols, 0);
    if (dtype == DTYPE_F32) {
        ((float *)both.data)[0] = -200.0F;
        ((float *)both.data)[cols / 2] = 90.0F;
    }
    double *wanted = calloc((size_t)rows * cols, sizeof *wanted);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < cols; c++) {
            double gate = element_of(&both, r, c, 0);
            wanted[(size_t)r * cols + c] =
                gate / (1 + exp(-gate)) * element_of(&both, r, cols + c, 0);
        }
    poison_scratch(self);
    expect(self, self->ops->silu_mul(self->q, &out, &both) == 0, "silu_mul", 1, 0);
    compare(self, "silu_mul", &out, wanted, 1e-6);
    free(wanted);
    free_tensor(&both);
    free_tensor(&out);
}

/* Groups far apart, one of them empty: each row is silu_mul's, and rows of no group stay. */
static inline void check_grouped_silu(check_t *self)
{
    enum { ROWS = 12, COLS = 70, GROUPS = 4 };
    static const uint32_t first[GROUPS + 1] = { 0, 4, 4, 8, ROWS }, counts[] = { 3, 0, 4, 1 };
    tensor_t both = random_tensor(self, DTYPE_F32, ROWS, 2 * COLS, 0),
             out = new_tensor(DTYPE_F32, ROWS, COLS, 0),
             plain = new_tensor(DTYPE_F32, ROWS, COLS, 0);
    groups_t groups = { .first = first, .rows = counts, .count = GROUPS };
    poison_scratch(self);
    expect(self, self->ops->grouped_silu_mul(self->q, &out, &both, &groups) == 0,
           "grouped_silu_mul", 1, 0);
    expect(self, self->ops->silu_mul(self->q, &plain, &both) == 0, "silu_mul", 1, 0);
    for (uint32_t g = 0; g < GROUPS; g++)
        for (uint32_t r = first[g]; r < first[g + 1]; r++) {
            tensor_t row = rows_between(&out, r, r + 1), wanted = rows_between(&plain, r, r + 1);
            int is_good = r < first[g] + counts[g] ? is_same_rows(&row, &wanted)
                                                   : isnan(element_of(&out, r, 0, 0));
            expect(self, is_good, "a row of grouped_silu_mul", r, g);
        }
    groups.rows = NULL;
    expect(self, self->ops->grouped_silu_mul(self->q, &out, &both, &groups) == 0,
           "grouped_silu_mul without counts", 1, 0);
    expect(self, is_same_rows(&out, &plain), "grouped_silu_mul of all rows", 1, 0);
    free_tensor(&both);
    free_tensor(&out);
    free_tensor(&plain);
}

static inline void check_combine(check_t *self, dtype_t dtype)
{
    enum { TOKENS = 5, TOP_K = 3, ROWS = 9, COLS = 133 };
    tensor_t rows = random_tensor(self, dtype, ROWS, COLS, 0),
             out = random_tensor(self, DTYPE_F32, TOKENS, COLS, 0);
    uint32_t index[TOKENS * TOP_K];
    float weights[TOKENS * TOP_K];
    double *wanted = calloc(TOKENS * COLS, sizeof *wanted);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t c = 0; c < COLS; c++) wanted[t * COLS + c] = element_of(&out, t, c, 0);
    for (uint32_t i = 0; i < TOKENS * TOP_K; i++) {
        index[i] = (i * 7 + 2) % ROWS;
        weights[i] = (float)uniform(self);
        if (i % 4 == 3) index[i] = NO_ROW;
        for (uint32_t c = 0; c < COLS && index[i] != NO_ROW; c++)
            wanted[i / TOP_K * COLS + c] += (double)weights[i] * element_of(&rows, index[i], c, 0);
    }
    poison_scratch(self);
    expect(self, self->ops->combine(self->q, &out, &rows, index, weights, TOP_K) == 0, "combine", 1,
           0);
    compare(self, "combine", &out, wanted, 1e-6);
    index[4] = ROWS;
    expect(self, self->ops->combine(self->q, &out, &rows, index, weights, TOP_K) != 0,
           "combine takes a row too far", 1, 0);
    free(wanted);
    free_tensor(&rows);
    free_tensor(&out);
}

/* The gate's choice must be the judge's: sums in F32 may only exchange experts whose scores agree
 * to six digits. */
static inline void check_gate(check_t *self, const gate_t *gate, uint32_t rows, uint32_t cols)
{
    tensor_t x = random_tensor(self, DTYPE_F32, rows, cols, 0),
             w = random_tensor(self, DTYPE_BF16, gate->experts, cols, 1);
    float *bias = calloc(gate->experts, sizeof *bias),
          *weights = calloc((size_t)rows * gate->top_k, sizeof *weights);
    float *judged = calloc((size_t)rows * gate->top_k, sizeof *judged),
          *alone = calloc(gate->top_k, sizeof *alone);
    uint32_t *ids = calloc((size_t)rows * gate->top_k, sizeof *ids),
             *judged_ids = calloc((size_t)rows * gate->top_k, sizeof *ids);
    for (uint32_t e = 0; e < gate->experts; e++) bias[e] = (float)uniform(self) * 0.1F;
    poison_scratch(self);
    expect(self, self->ops->gate(self->q, ids, weights, &x, &w, bias, gate) == 0, "gate", 1, 0);
    expect(self, ops_judge.gate(self->q, judged_ids, judged, &x, &w, bias, gate) == 0,
           "the judge's gate", 1, 0);
    hash_bytes(self, ids, (size_t)rows * gate->top_k * sizeof *ids);
    hash_bytes(self, weights, (size_t)rows * gate->top_k * sizeof *weights);
    for (uint32_t i = 0; i < rows * gate->top_k; i++)
        expect(self,
               ids[i] == judged_ids[i] &&
                   fabsf(weights[i] - judged[i]) <= 1e-5F * fabsf(judged[i]) + 1e-9F,
               "gate", (double)weights[i], (double)judged[i]);
    for (uint32_t r = 0; r < rows; r++) {
        tensor_t row = rows_between(&x, r, r + 1);
        expect(self, self->ops->gate(self->q, judged_ids, alone, &row, &w, bias, gate) == 0,
               "gate of one row", 1, 0);
        expect(self,
               memcmp(alone, weights + (size_t)r * gate->top_k, gate->top_k * sizeof *alone) == 0,
               "the gate of a row alone differs from its batch", r, 0);
    }
    free(bias);
    free(weights);
    free(judged);
    free(alone);
    free(ids);
    free(judged_ids);
    free_tensor(&x);
    free_tensor(&w);
}

static inline void check_rows(check_t *self)
{
    check_norms(self, 1, 256);
    check_norms(self, 5, 131);
    check_silu(self, 3, 130, DTYPE_F32);
    check_silu(self, 2, 64, DTYPE_BF16);
    check_grouped_silu(self);
    check_combine(self, DTYPE_F32);
    check_combine(self, DTYPE_BF16);
    check_combine(self, DTYPE_F8E4M3);
    check_gate(self,
               &(gate_t){ .experts = 32,
                          .top_k = 4,
                          .groups = 4,
                          .top_groups = 2,
                          .is_normalised = 1,
                          .scale = 2.5F },
               7, 250);
    check_gate(self,
               &(gate_t){ .experts = 15,
                          .top_k = 6,
                          .groups = 5,
                          .top_groups = 3,
                          .score = GATE_SOFTMAX,
                          .group_score = GATE_MAX,
                          .scale = 16.0F },
               6, 100);
}

#endif
