/* kernels/cpu/judge_gemm.c - the judge's matrix products, sums in double. */
#include "judge.h"
#include "queue.h"
#include "rows.h"

#include <errno.h>

int judge_prepare_size(const tensor_t *w, size_t *bytes)
{
    *bytes = 0;
    return 0;
}

int judge_prepare(const tensor_t *w, void *packed)
{
    return 0;
}

/* Eight partial sums, so that the loop is not one long chain of additions. */
static double dot(const float *a, const float *b, uint32_t count)
{
    double sums[8] = { 0 };
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (uint32_t lane = 0; lane < 8; lane++)
            sums[lane] += (double)a[i + lane] * (double)b[i + lane];
    for (; i < count; i++) sums[i % 8] += (double)a[i] * (double)b[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

static void store_element(const tensor_t *out, uint32_t row, uint32_t col, float value)
{
    tensor_t element = *out;
    element.cols = 1;
    element.data =
        (char *)out->data + col * (out->dtype == DTYPE_F32 ? sizeof(float) : sizeof(uint16_t));
    row_store(&element, row, &value);
}

int judge_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w)
{
    if (x->cols != w->cols || out->cols != w->rows || out->rows != x->rows) return EINVAL;
    if (out->dtype == DTYPE_F8E4M3) return EINVAL;
    queue_reset(q);
    float *weights = queue_take(q, w->cols * sizeof *weights);
    size_t room_rows = queue_left(q) / (w->cols * sizeof *weights + 1);
    uint32_t step = room_rows < x->rows ? (uint32_t)room_rows : x->rows;
    float *rows = queue_take(q, (size_t)step * w->cols * sizeof *rows);
    if (!weights || !rows || (step == 0 && x->rows != 0)) return ENOMEM;
    for (uint32_t first = 0; first < x->rows; first += step) {
        uint32_t count = x->rows - first < step ? x->rows - first : step;
        for (uint32_t m = 0; m < count; m++) row_load(x, first + m, rows + (size_t)m * x->cols);
        for (uint32_t n = 0; n < w->rows; n++) {
            weight_load(w, n, weights);
            for (uint32_t m = 0; m < count; m++)
                store_element(out, first + m, n,
                              (float)dot(rows + (size_t)m * x->cols, weights, x->cols));
        }
    }
    return 0;
}

int judge_gemm_each(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                    const groups_t *groups, gemm_op_t multiply)
{
    for (uint32_t g = 0; g < groups->count; g++) {
        uint32_t first = groups->first[g], end = group_end(groups, g);
        if (first == end) continue;
        tensor_t part_out = rows_slice(out, first, end), part_x = rows_slice(x, first, end);
        int status = multiply(q, &part_out, &part_x, &w[g]);
        if (status != 0) return status;
    }
    return 0;
}

int judge_grouped_gemm(queue_t *q, const tensor_t *out, const tensor_t *x, const tensor_t *w,
                       const groups_t *groups)
{
    return judge_gemm_each(q, out, x, w, groups, judge_gemm);
}
