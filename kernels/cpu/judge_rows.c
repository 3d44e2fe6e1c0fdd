/* kernels/cpu/judge_rows.c - the judge's ops on rows: embedding, norms, additions, moves and
 * conversions. */
#include "judge.h"
#include "queue.h"
#include "rows.h"

#include <errno.h>
#include <math.h>
#include <string.h>

int judge_embed(queue_t *q, const tensor_t *out, const tensor_t *table, const uint32_t *ids)
{
    if (out->cols != table->cols) return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, out->cols * sizeof *row);
    if (!row) return ENOMEM;
    for (uint32_t t = 0; t < out->rows; t++) {
        if (ids[t] >= table->rows) return ERANGE;
        weight_load(table, ids[t], row);
        row_store(out, t, row);
    }
    return 0;
}

static void normalise(float *row, const float *weights, uint32_t count, float eps)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) sum += (double)row[i] * (double)row[i];
    double factor = 1.0 / sqrt(sum / count + (double)eps);
    for (uint32_t i = 0; i < count; i++)
        row[i] = (float)((double)row[i] * factor * (double)weights[i]);
}

int judge_rmsnorm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *weight,
                  float eps)
{
    if (out->cols != x->cols || weight->cols != x->cols || out->rows != x->rows) return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, x->cols * sizeof *row),
          *weights = queue_take(q, x->cols * sizeof *weights);
    if (!row || !weights) return ENOMEM;
    weight_load(weight, 0, weights);
    for (uint32_t r = 0; r < x->rows; r++) {
        row_load(x, r, row);
        normalise(row, weights, x->cols, eps);
        row_store(out, r, row);
    }
    return 0;
}

int judge_add(queue_t *q, const tensor_t *residual, const tensor_t *x)
{
    if (residual->cols != x->cols || residual->rows != x->rows) return EINVAL;
    queue_reset(q);
    float *sum = queue_take(q, x->cols * sizeof *sum), *row = queue_take(q, x->cols * sizeof *row);
    if (!sum || !row) return ENOMEM;
    for (uint32_t r = 0; r < x->rows; r++) {
        row_load(residual, r, sum);
        row_load(x, r, row);
        for (uint32_t i = 0; i < x->cols; i++) sum[i] += row[i];
        row_store(residual, r, sum);
    }
    return 0;
}

int judge_add_rmsnorm(queue_t *q, const tensor_t *out, const tensor_t *quantised,
                      const tensor_t *residual, const tensor_t *x, const tensor_t *weight,
                      float eps)
{
    int status = x ? judge_add(q, residual, x) : 0;
    if (status == 0 && out) status = judge_rmsnorm(q, out, residual, weight, eps);
    if (status == 0 && quantised) status = judge_rmsnorm(q, quantised, residual, weight, eps);
    return status;
}

int judge_silu_mul(queue_t *q, const tensor_t *out, const tensor_t *gate_up)
{
    if (gate_up->cols != 2 * out->cols || gate_up->rows != out->rows) return EINVAL;
    queue_reset(q);
    uint32_t count = out->cols;
    float *both = queue_take(q, gate_up->cols * sizeof *both);
    if (!both) return ENOMEM;
    for (uint32_t r = 0; r < out->rows; r++) {
        row_load(gate_up, r, both);
        for (uint32_t i = 0; i < count; i++) {
            double gate = (double)both[i];
            both[i] = (float)(gate / (1.0 + exp(-gate)) * (double)both[count + i]);
        }
        row_store(out, r, both);
    }
    return 0;
}

int judge_rows_each(queue_t *q, const tensor_t *out, const tensor_t *x, const groups_t *groups,
                    rows_op_t op)
{
    for (uint32_t g = 0; g < groups->count; g++) {
        uint32_t first = groups->first[g], end = group_end(groups, g);
        if (first == end) continue;
        tensor_t part_out = rows_slice(out, first, end), part_x = rows_slice(x, first, end);
        int status = op(q, &part_out, &part_x);
        if (status != 0) return status;
    }
    return 0;
}

int judge_grouped_silu_mul(queue_t *q, const tensor_t *out, const tensor_t *gate_up,
                           const groups_t *groups)
{
    return judge_rows_each(q, out, gate_up, groups, judge_silu_mul);
}

int judge_gather_rows(queue_t *q, const tensor_t *out, const tensor_t *x, const uint32_t *index)
{
    if (out->cols != x->cols) return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, x->cols * sizeof *row);
    if (!row) return ENOMEM;
    for (uint32_t r = 0; r < out->rows; r++) {
        if (index[r] == NO_ROW) continue;
        if (index[r] >= x->rows) return ERANGE;
        row_load(x, index[r], row);
        row_store(out, r, row);
    }
    return 0;
}

int judge_cast(queue_t *q, const tensor_t *out, const tensor_t *x)
{
    if (out->cols != x->cols || out->rows != x->rows) return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, x->cols * sizeof *row);
    if (!row) return ENOMEM;
    for (uint32_t r = 0; r < out->rows; r++) {
        row_load(x, r, row);
        row_store(out, r, row);
    }
    return 0;
}

/* Sums in F32 in the order of k: the sum of a token must not depend on which rank computed which
 * expert. */
int judge_combine(queue_t *q, const tensor_t *out, const tensor_t *rows, const uint32_t *index,
                  const float *weights, uint32_t top_k)
{
    if (out->cols != rows->cols) return EINVAL;
    queue_reset(q);
    float *sum = queue_take(q, out->cols * sizeof *sum),
          *row = queue_take(q, out->cols * sizeof *row);
    if (!sum || !row) return ENOMEM;
    for (uint32_t t = 0; t < out->rows; t++) {
        row_load(out, t, sum);
        for (uint32_t k = 0; k < top_k; k++) {
            uint32_t from = index[(size_t)t * top_k + k];
            float weight = weights[(size_t)t * top_k + k];
            if (from == NO_ROW) continue;
            if (from >= rows->rows) return ERANGE;
            row_load(rows, from, row);
            for (uint32_t i = 0; i < out->cols; i++) sum[i] += weight * row[i];
        }
        row_store(out, t, sum);
    }
    return 0;
}

int judge_copy_blocks(queue_t *q, void *target, const void *source, const uint32_t *target_blocks,
                      const uint32_t *source_blocks, uint32_t count, size_t block_bytes)
{
    for (uint32_t i = 0; i < count; i++)
        memmove((char *)target + target_blocks[i] * block_bytes,
                (const char *)source + source_blocks[i] * block_bytes, block_bytes);
    return 0;
}
