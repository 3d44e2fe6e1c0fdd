/* tests/kernels/cuda/check_norms.cu - rmsnorm, add_rmsnorm, add, silu_mul, grouped_silu_mul, cast
 * and embed: checks and timings. */
#include "families.h"
#include "naive_rows.cuh"

#include <stdlib.h>
#include <string.h>

#include <vector>

enum { GAP = 16 };

static const float eps = 1e-6f;
static const tolerance_t norm_tolerance = { 6e-7f, 0 }, silu_tolerance = { 3e-6f, 1e-36f },
                         exact = { 0, 0 };

static const char *name_of(dtype_t dtype)
{
    return dtype == DTYPE_F32 ? "F32" : dtype == DTYPE_BF16 ? "BF16" : "F8E4M3";
}

/* ---- norms ---- */

struct norm_shape_t {
    uint32_t rows, cols;
    dtype_t residual, x, out;
    bool is_added, is_quantised;
};

/* The rows of a batch, one by one, must have the batch's bits. */
static void check_norm_alone(harness_t *self, const tensor_t *before, const tensor_t *x,
                             const tensor_t *weight, const tensor_t *out, const char *what)
{
    for (uint32_t r = 0; r < out->rows; r += 1 + r) {
        tensor_t residual = rows_of(before, r, 1), added = x ? rows_of(x, r, 1) : tensor_t{};
        tensor_t copy = tensor_copy(&residual), alone = tensor_new(out->dtype, 1, out->cols, false);
        tensor_t in_batch = rows_of(out, r, 1);
        int status = self->ops->add_rmsnorm(self->q, out->dtype == DTYPE_F8E4M3 ? NULL : &alone,
                                            out->dtype == DTYPE_F8E4M3 ? &alone : NULL, &copy,
                                            x ? &added : NULL, weight, eps);
        expect(self, status == 0 && is_same_on_device(&alone, &in_batch), what, r, 0);
    }
}

/* The residual rounds where its dtype says so, and what is normalised is the rounded one. */
static void check_add_rmsnorm(harness_t *self, const norm_shape_t *shape)
{
    uint32_t rows = shape->rows, cols = shape->cols, stride = cols + GAP;
    char what[96];
    snprintf(what, sizeof what, "add_rmsnorm %u x %u, residual %s, x %s, out %s%s", rows, cols,
             name_of(shape->residual), shape->is_added ? name_of(shape->x) : "none",
             name_of(shape->out), shape->is_quantised ? " and F8E4M3" : "");
    tensor_t residual = strided_random(self, shape->residual, rows, cols, stride);
    tensor_t x = strided_random(self, shape->x, rows, cols, stride + GAP);
    tensor_t weight = tensor_random(self, DTYPE_BF16, 1, cols, false);
    tensor_t out = strided_new(shape->out, rows, cols, stride);
    tensor_t quantised = strided_new(DTYPE_F8E4M3, rows, cols, stride);
    tensor_t before = tensor_copy(&residual), expected = tensor_copy(&residual);
    const tensor_t *added = shape->is_added ? &x : NULL;
    int status = self->ops->add_rmsnorm(self->q, &out, shape->is_quantised ? &quantised : NULL,
                                        &residual, added, &weight, eps);
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    naive_t naive = naive_new(rows, cols);
    double *factors = (double *)memory_new(rows * sizeof *factors);
    if (added) LAUNCH(naive_add, NAIVE_LAUNCH(naive), naive, expected, x);
    LAUNCH(naive_factors, (rows / 64 + 1, 64), factors, expected, eps);
    LAUNCH(naive_norm, NAIVE_LAUNCH(naive), naive, factors, expected, weight);
    CUDA(cudaGetLastError());
    expect_wanted(self, &out, &naive, norm_tolerance, what);
    if (shape->is_quantised) expect_wanted(self, &quantised, &naive, norm_tolerance, what);
    expect(self, is_same_on_device(&residual, &expected), "the residual after add_rmsnorm", 1, 0);
    check_norm_alone(self, &before, added, &weight, &out, what);
    memory_free_all();
}

static void check_rmsnorm(harness_t *self, uint32_t rows, uint32_t cols, dtype_t dtype, dtype_t to)
{
    char what[96];
    snprintf(what, sizeof what, "rmsnorm %u x %u, %s to %s", rows, cols, name_of(dtype),
             name_of(to));
    tensor_t x = strided_random(self, dtype, rows, cols, cols + 576);
    tensor_t weight = tensor_random(self, DTYPE_BF16, 1, cols, false);
    tensor_t out = strided_new(to, rows, cols, cols + GAP);
    int status = self->ops->rmsnorm(self->q, &out, &x, &weight, eps);
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    naive_t naive = naive_new(rows, cols);
    double *factors = (double *)memory_new(rows * sizeof *factors);
    LAUNCH(naive_factors, (rows / 64 + 1, 64), factors, x, eps);
    LAUNCH(naive_norm, NAIVE_LAUNCH(naive), naive, factors, x, weight);
    expect_wanted(self, &out, &naive, norm_tolerance, what);
    memory_free_all();
}

static void check_norm_judge(harness_t *self, uint32_t rows, uint32_t cols)
{
    tensor_t residual = tensor_random(self, DTYPE_BF16, rows, cols, false);
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, cols, false);
    tensor_t weight = tensor_random(self, DTYPE_BF16, 1, cols, false);
    tensor_t out = tensor_new(DTYPE_BF16, rows, cols, false);
    tensor_t quantised = tensor_new(DTYPE_F8E4M3, rows, cols, false);
    tensor_t host_residual = tensor_to_host(&residual, false), host_x = tensor_to_host(&x, false),
             host_weight = tensor_to_host(&weight, false), host_out = tensor_to_host(&out, false),
             host_quantised = tensor_to_host(&quantised, false);
    expect(self,
           self->ops->add_rmsnorm(self->q, &out, &quantised, &residual, &x, &weight, eps) == 0 &&
               ops_judge.add_rmsnorm(self->cpu, &host_out, &host_quantised, &host_residual, &host_x,
                                     &host_weight, eps) == 0,
           "add_rmsnorm and the judge's", 1, 0);
    queue_demand(self, "add_rmsnorm");
    expect_judged(self, &residual, &host_residual, 0, "add_rmsnorm's residual");
    expect_judged(self, &out, &host_out, 1, "add_rmsnorm");
    expect_judged(self, &quantised, &host_quantised, 1, "add_rmsnorm's bytes");
    tensor_t *hosts[] = { &host_residual, &host_x, &host_weight, &host_out, &host_quantised };
    for (tensor_t *host : hosts) tensor_host_free(host);
    memory_free_all();
}

static void check_add(harness_t *self, uint32_t rows, uint32_t cols, dtype_t dtype, dtype_t x_dtype)
{
    tensor_t residual = strided_random(self, dtype, rows, cols, cols + GAP);
    tensor_t x = strided_random(self, x_dtype, rows, cols, cols + GAP);
    tensor_t expected = tensor_copy(&residual);
    expect(self, self->ops->add(self->q, &residual, &x) == 0, "add", 1, 0);
    queue_demand(self, "add");
    naive_t naive = { NULL, rows, cols };
    LAUNCH(naive_add, NAIVE_LAUNCH(naive), naive, expected, x);
    expect(self, is_same_on_device(&residual, &expected), "add", rows, cols);
    memory_free_all();
}

/* ---- silu ---- */

static void check_silu(harness_t *self, uint32_t rows, uint32_t cols, dtype_t dtype, dtype_t to)
{
    char what[96];
    snprintf(what, sizeof what, "silu_mul %u x %u, %s to %s", rows, cols, name_of(dtype),
             name_of(to));
    tensor_t x = strided_random(self, dtype, rows, 2 * cols, 2 * cols + GAP);
    tensor_t out = strided_new(to, rows, cols, cols + GAP);
    if (dtype == DTYPE_F32) {
        const float extremes[] = { -200, 90, -88.5f, 0 };
        CUDA(cudaMemcpy(x.data, extremes, sizeof extremes, cudaMemcpyHostToDevice));
    }
    int status = self->ops->silu_mul(self->q, &out, &x);
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    naive_t naive = naive_new(rows, cols);
    LAUNCH(naive_silu, NAIVE_LAUNCH(naive), naive, x);
    expect_wanted(self, &out, &naive, silu_tolerance, what);
    for (uint32_t r = 0; r < rows; r += 1 + 2 * r) {
        tensor_t row = rows_of(&x, r, 1), in_batch = rows_of(&out, r, 1);
        tensor_t alone = strided_new(to, 1, cols, cols);
        status = self->ops->silu_mul(self->q, &alone, &row);
        expect(self, status == 0 && is_same_on_device(&alone, &in_batch), what, r, 0);
    }
    memory_free_all();
}

/* Groups as route leaves them: `counts` rows each, the next group at a multiple of align. Rows of
 * no group must stay as they are, and the others be silu_mul's. */
static void check_grouped(harness_t *self, const std::vector<uint32_t> &counts, uint32_t align,
                          uint32_t cols, dtype_t to)
{
    uint32_t groups = (uint32_t)counts.size();
    std::vector<uint32_t> firsts(groups + 1, 0);
    for (uint32_t g = 0; g < groups; g++)
        firsts[g + 1] = firsts[g] + (counts[g] + align - 1) / align * align;
    uint32_t rows = firsts[groups] + 3;
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, 2 * cols, false);
    tensor_t out = strided_new(to, rows, cols, cols + GAP),
             plain = tensor_new(to, rows, cols, false);
    groups_t ranges = {};
    ranges.first = (uint32_t *)memory_upload(firsts.data(), firsts.size() * sizeof(uint32_t));
    ranges.rows = (uint32_t *)memory_upload(counts.data(), counts.size() * sizeof(uint32_t));
    ranges.count = groups;
    if (align == 1) ranges.rows = NULL;
    int status = self->ops->grouped_silu_mul(self->q, &out, &x, &ranges);
    expect(self, status == 0, "grouped_silu_mul", status, 0);
    expect(self, self->ops->silu_mul(self->q, &plain, &x) == 0, "silu_mul", 1, 0);
    queue_demand(self, "grouped_silu_mul");
    tensor_t found = tensor_to_host(&out, false), wanted = tensor_to_host(&plain, false);
    size_t size = bytes_of_value(to), bytes = cols * size;
    uint32_t bad = 0, touched = 0;
    for (uint32_t g = 0, r = 0; r < rows; r++) {
        while (g < groups && r >= firsts[g + 1]) g++;
        const char *row = (char *)found.data + r * bytes;
        if (g < groups && r - firsts[g] < counts[g])
            bad += memcmp(row, (char *)wanted.data + r * bytes, bytes) != 0;
        else
            for (size_t i = 0; i < bytes; i++) touched += row[i] != (char)0xff;
    }
    expect(self, bad == 0, "grouped_silu_mul: rows unlike silu_mul's", bad, 0);
    expect(self, touched == 0, "grouped_silu_mul: bytes written that are in no group", touched, 0);
    tensor_host_free(&found);
    tensor_host_free(&wanted);
    memory_free_all();
}

/* ---- casts ---- */

static void check_cast(harness_t *self, uint32_t rows, uint32_t cols, dtype_t dtype, dtype_t to)
{
    char what[96];
    snprintf(what, sizeof what, "cast %u x %u, %s to %s", rows, cols, name_of(dtype), name_of(to));
    tensor_t x = strided_random(self, dtype, rows, cols, cols + 128);
    tensor_t out = strided_new(to, rows, cols, cols + GAP);
    int status = self->ops->cast(self->q, &out, &x);
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    naive_t naive = naive_new(rows, cols);
    LAUNCH(naive_gather, NAIVE_LAUNCH(naive), naive, x, NULL, false);
    tolerance_t tolerance = to == DTYPE_F8E4M3 ? tolerance_t{ 2e-7f, 0 } : exact;
    expect_wanted(self, &out, &naive, tolerance, what);
    if (rows * cols <= 1 << 16) {
        tensor_t host = tensor_to_host(&x, false), judged = tensor_host_new(to, rows, cols);
        expect(self, ops_judge.cast(self->cpu, &judged, &host) == 0, what, 1, 0);
        expect_judged(self, &out, &judged, 0, what);
        tensor_host_free(&host);
        tensor_host_free(&judged);
    }
    memory_free_all();
}

/* Zeros, and values far below the least amax: no division by zero, no NaN. */
static void check_cast_of_nothing(harness_t *self)
{
    enum { ROWS = 3, COLS = 200 };
    std::vector<float> values(ROWS * COLS, 0.0f);
    for (int i = 0; i < COLS; i++) values[COLS + i] = 1e-30f * (float)i;
    for (int i = 0; i < COLS; i++) values[2 * COLS + i] = i == 7 ? 1e30f : 1e-3f;
    tensor_t x = tensor_new(DTYPE_F32, ROWS, COLS, false);
    CUDA(cudaMemcpy(x.data, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
    tensor_t out = strided_new(DTYPE_F8E4M3, ROWS, COLS, 208);
    tensor_t host = tensor_to_host(&x, false), judged = tensor_host_new(DTYPE_F8E4M3, ROWS, COLS);
    expect(self, self->ops->cast(self->q, &out, &x) == 0, "cast", 1, 0);
    queue_demand(self, "cast");
    expect(self, ops_judge.cast(self->cpu, &judged, &host) == 0, "the judge's cast", 1, 0);
    expect_judged(self, &out, &judged, 0, "cast of very small values");
    tensor_host_free(&host);
    tensor_host_free(&judged);
    memory_free_all();
}

static void check_embed(harness_t *self, uint32_t rows, uint32_t cols, dtype_t to)
{
    uint32_t vocabulary = 1000;
    tensor_t table = tensor_random(self, DTYPE_BF16, vocabulary, cols, false);
    tensor_t out = strided_new(to, rows, cols, cols + GAP);
    std::vector<uint32_t> ids(rows);
    for (uint32_t &id : ids) id = random_below(self, vocabulary);
    ids[rows / 2] = rows > 1 ? vocabulary : 0;
    ids[0] = rows > 2 ? NO_ROW : ids[0];
    uint32_t *device = (uint32_t *)memory_upload(ids.data(), rows * sizeof(uint32_t));
    expect(self, self->ops->embed(self->q, &out, &table, device) == 0, "embed", 1, 0);
    queue_demand(self, "embed");
    naive_t naive = naive_new(rows, cols);
    LAUNCH(naive_gather, NAIVE_LAUNCH(naive), naive, table, device, false);
    expect_wanted(self, &out, &naive, exact, "embed");
    memory_free_all();
}

/* ---- what must be refused ---- */

static void check_refusals(harness_t *self)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, 4, 256, false), odd = x, out = x, narrow = x;
    tensor_t weight = tensor_random(self, DTYPE_BF16, 1, 256, false);
    tensor_t bytes = tensor_new(DTYPE_F8E4M3, 4, 256, false), empty = x, no_bytes = bytes;
    odd.data = (char *)x.data + 2;
    narrow.cols = 250;
    empty.rows = no_bytes.rows = 0;
    expect(self, self->ops->rmsnorm(self->q, &out, &odd, &weight, eps) == EINVAL, "odd", 1, 0);
    expect(self, self->ops->rmsnorm(self->q, &narrow, &narrow, &weight, eps) == EINVAL, "250", 1,
           0);
    expect(self, self->ops->rmsnorm(self->q, &out, &bytes, &weight, eps) == EINVAL, "F8", 1, 0);
    expect(self, self->ops->cast(self->q, &bytes, &odd) == EINVAL, "odd cast", 1, 0);
    expect(self, self->ops->silu_mul(self->q, &out, &x) == EINVAL, "silu_mul of one half", 1, 0);
    expect(self, self->ops->cast(self->q, &no_bytes, &empty) == 0, "cast of no rows", 1, 0);
    expect(self, self->ops->rmsnorm(self->q, &empty, &empty, &weight, eps) == 0, "no rows", 1, 0);
    expect(self, self->ops->add(self->q, &empty, &empty) == 0, "add of no rows", 1, 0);
    queue_demand(self, "refusals");
    memory_free_all();
}

static void check_shapes(harness_t *self, const uint32_t (*shapes)[2], size_t count)
{
    static const dtype_t dtypes[] = { DTYPE_F32, DTYPE_BF16, DTYPE_F8E4M3 };
    for (size_t i = 0; i < count; i++) {
        uint32_t rows = shapes[i][0], cols = shapes[i][1];
        for (int d = 0; d < 2; d++) {
            dtype_t residual = dtypes[d], x = dtypes[(i + d) % 2];
            norm_shape_t added = { rows, cols, residual, x, DTYPE_BF16, true, true },
                         plain = { rows, cols, residual, x, DTYPE_F32, false, true };
            check_add_rmsnorm(self, &added);
            check_add_rmsnorm(self, &plain);
            check_add(self, rows, cols, residual, x);
            for (dtype_t to : dtypes) {
                check_rmsnorm(self, rows, cols, residual, to);
                check_silu(self, rows, cols, residual, to);
                check_cast(self, rows, cols, residual, to);
            }
        }
        for (dtype_t to : dtypes) check_cast(self, rows, cols, DTYPE_F8E4M3, to);
        check_embed(self, rows, cols, DTYPE_BF16);
        check_embed(self, rows, cols, DTYPE_F32);
    }
}

void run_small_checks_norms(harness_t *self)
{
    static const uint32_t shapes[][2] = { { 1, 256 },  { 3, 128 },  { 5, 40 },
                                          { 6, 1536 }, { 2, 2056 }, { 9, 512 } };
    check_shapes(self, shapes, sizeof shapes / sizeof shapes[0]);
    check_norm_judge(self, 5, 256);
    check_norm_judge(self, 3, 7168);
    check_cast_of_nothing(self);
    check_grouped(self, { 0, 3, 0, 8, 1, 0 }, 8, 256, DTYPE_F8E4M3);
    check_grouped(self, { 5 }, 1, 136, DTYPE_BF16);
    check_grouped(self, { 0, 0 }, 4, 64, DTYPE_F32);
    check_grouped(self, std::vector<uint32_t>(300, 1), 1, 128, DTYPE_F8E4M3);
    check_refusals(self);
}

void run_checks_norms(harness_t *self)
{
    static const uint32_t shapes[][2] = { { 129, 7168 }, { 300, 16384 }, { 1031, 1536 } };
    run_small_checks_norms(self);
    check_shapes(self, shapes, sizeof shapes / sizeof shapes[0]);
    check_norm_judge(self, 64, 7168);
    check_grouped(self, { 700, 0, 129, 4, 1030 }, 128, 2048, DTYPE_F8E4M3);
    std::vector<uint32_t> many(512);
    for (uint32_t &count : many) count = random_below(self, 5);
    check_grouped(self, many, 1, 2048, DTYPE_F8E4M3);
}

/* ---- timings ---- */

struct timed_norms_t {
    harness_t *harness;
    uint32_t variants;
    std::vector<tensor_t> residual, x, out, quantised;
    tensor_t weight;
    groups_t groups;
};

static uint32_t variants_for(double bytes)
{
    double needed = 150e6 / bytes + 1;
    return needed > 24 ? 24 : (uint32_t)needed;
}

static timed_norms_t timed_new(harness_t *self, uint32_t rows, uint32_t cols, uint32_t x_cols,
                               bool has_residual, bool has_out)
{
    timed_norms_t timed = {};
    timed.harness = self;
    timed.variants = variants_for((double)rows * x_cols * 4);
    timed.weight = tensor_random(self, DTYPE_BF16, 1, cols, false);
    for (uint32_t i = 0; i < timed.variants; i++) {
        if (has_residual)
            timed.residual.push_back(tensor_random(self, DTYPE_BF16, rows, cols, false));
        timed.x.push_back(tensor_random(self, DTYPE_BF16, rows, x_cols, false));
        if (has_out) timed.out.push_back(tensor_new(DTYPE_BF16, rows, cols, false));
        timed.quantised.push_back(tensor_new(DTYPE_F8E4M3, rows, cols, false));
    }
    return timed;
}

static int run_add_rmsnorm(void *context, uint32_t variant)
{
    timed_norms_t *self = (timed_norms_t *)context;
    return self->harness->ops->add_rmsnorm(
        self->harness->q, self->out.empty() ? NULL : &self->out[variant], &self->quantised[variant],
        &self->residual[variant], &self->x[variant], &self->weight, eps);
}

static int run_rmsnorm(void *context, uint32_t variant)
{
    timed_norms_t *self = (timed_norms_t *)context;
    tensor_t x = self->x[variant];
    x.cols = self->weight.cols;
    return self->harness->ops->rmsnorm(self->harness->q, &self->quantised[variant], &x,
                                       &self->weight, eps);
}

static int run_silu(void *context, uint32_t variant)
{
    timed_norms_t *self = (timed_norms_t *)context;
    return self->harness->ops->silu_mul(self->harness->q, &self->quantised[variant],
                                        &self->x[variant]);
}

static int run_grouped(void *context, uint32_t variant)
{
    timed_norms_t *self = (timed_norms_t *)context;
    return self->harness->ops->grouped_silu_mul(self->harness->q, &self->quantised[variant],
                                                &self->x[variant], &self->groups);
}

static int run_cast(void *context, uint32_t variant)
{
    timed_norms_t *self = (timed_norms_t *)context;
    return self->harness->ops->cast(self->harness->q, &self->quantised[variant], &self->x[variant]);
}

static int run_add(void *context, uint32_t variant)
{
    timed_norms_t *self = (timed_norms_t *)context;
    return self->harness->ops->add(self->harness->q, &self->residual[variant], &self->x[variant]);
}

/* bytes_per_value: read and written, of a column of the output. */
static void time_rows(timed_norms_t *timed, timed_call_t call, const char *op, uint32_t rows,
                      uint32_t cols, double bytes_per_value, const char *note)
{
    timing_t timing = {};
    timing.op = op;
    snprintf(timing.shape, sizeof timing.shape, "%u x %u%s", rows, cols, note);
    timing.us = time_call(timed->harness, call, timed, timed->variants);
    timing.bytes = bytes_per_value * rows * cols;
    report(timed->harness, &timing);
}

static void time_grouped(harness_t *self, uint32_t groups, uint32_t capacity, uint32_t filled)
{
    uint32_t rows = groups * capacity;
    timed_norms_t timed = timed_new(self, rows, 2048, 4096, false, false);
    std::vector<uint32_t> first(groups), counts(groups, filled);
    for (uint32_t g = 0; g < groups; g++) first[g] = g * capacity;
    counts[0] = 0;
    timed.groups.first = (uint32_t *)memory_upload(first.data(), groups * sizeof(uint32_t));
    timed.groups.rows = (uint32_t *)memory_upload(counts.data(), groups * sizeof(uint32_t));
    timed.groups.count = groups;
    char note[32];
    snprintf(note, sizeof note, ", %u of %u", groups - 1, capacity);
    time_rows(&timed, run_grouped, "grouped_silu_mul", (groups - 1) * filled, 2048, 5 + 4.0 / 128,
              note);
    memory_free_all();
}

void run_timings_norms(harness_t *self)
{
    static const uint32_t rows[] = { 128, 4096, 16384 };
    const double scale = 4.0 / 128;
    for (uint32_t r : rows) {
        timed_norms_t timed = timed_new(self, r, 7168, 7168, true, true);
        time_rows(&timed, run_add_rmsnorm, "add_rmsnorm", r, 7168, 9 + scale, " + F8E4M3");
        timed.out.clear();
        time_rows(&timed, run_add_rmsnorm, "add_rmsnorm", r, 7168, 7 + scale, " F8E4M3 only");
        time_rows(&timed, run_add, "add", r, 7168, 6, "");
        time_rows(&timed, run_cast, "cast", r, 7168, 3 + scale, " to F8E4M3");
        memory_free_all();
        timed = timed_new(self, r, 1536, 2112, false, false);
        time_rows(&timed, run_rmsnorm, "rmsnorm", r, 1536, 3 + scale, " of 2112");
        memory_free_all();
        timed = timed_new(self, r, 2048, 4096, false, false);
        time_rows(&timed, run_silu, "silu_mul", r, 2048, 5 + scale, "");
        memory_free_all();
    }
    time_grouped(self, 9, 4096, 4096);
    time_grouped(self, 9, 4096, 1000);
    time_grouped(self, 9, 128, 128);
    time_grouped(self, 33, 128, 4);
}
