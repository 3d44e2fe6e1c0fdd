/* tests/kernels/cuda/check_gemm.cu - checks and timings of FP8 products of many rows, dense and
 * grouped, and of how gemm and grouped_gemm choose. */
#include "families.h"
#include "harness.cuh"
#include "naive_gemm.cuh"

#include <errno.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

/* ---- one product ---- */

struct span_t {
    uint32_t first, rows;
};

struct product_t {
    tensor_t out, x;
    std::vector<tensor_t> w;
    std::vector<span_t> spans; /* empty: dense */
    groups_t groups;
};

static std::vector<span_t> spans_of(const product_t *p)
{
    return p->spans.empty() ? std::vector<span_t>{ { 0, p->x.rows } } : p->spans;
}

/* Weights of all groups in one array, as the contract asks. */
static std::vector<tensor_t> weights_new(harness_t *self, uint32_t count, uint32_t n, uint32_t k)
{
    uint32_t blocks = (n + 127) / 128;
    tensor_t all = tensor_random(self, DTYPE_F8E4M3, count * blocks * 128, k, true);
    std::vector<tensor_t> weights(count, all);
    for (uint32_t g = 0; g < count; g++) {
        weights[g].rows = n;
        weights[g].data = (char *)all.data + (size_t)g * n * k;
        weights[g].scales = all.scales + (size_t)g * blocks * all.scale_stride;
    }
    return weights;
}

struct sizes_t {
    uint32_t m, n, k;
};

/* `gap`: columns between the rows of out, and of x rounded up to 16. */
static product_t product_new(harness_t *self, sizes_t size, dtype_t dtype,
                             const std::vector<span_t> &spans, uint32_t gap)
{
    product_t p = {};
    p.spans = spans;
    p.x = tensor_random(self, DTYPE_F8E4M3, size.m, size.k + (gap ? 16 : 0), false);
    p.x.cols = size.k;
    p.w = weights_new(self, spans.empty() ? 1 : (uint32_t)spans.size(), size.n, size.k);
    p.out = tensor_new(dtype, size.m, size.n + gap, false);
    p.out.cols = size.n;
    std::vector<uint32_t> first, rows;
    for (const span_t &span : spans) first.push_back(span.first), rows.push_back(span.rows);
    if (spans.empty()) return p;
    p.groups.first = (const uint32_t *)memory_upload(first.data(), first.size() * 4);
    p.groups.rows = (const uint32_t *)memory_upload(rows.data(), rows.size() * 4);
    p.groups.count = (uint32_t)spans.size();
    return p;
}

static size_t out_bytes(const product_t *p)
{
    return (size_t)p->out.rows * p->out.stride * (p->out.dtype == DTYPE_F32 ? 4 : 2);
}

static int product_run(harness_t *self, const product_t *p)
{
    return p->spans.empty()
               ? self->ops->gemm(self->q, &p->out, &p->x, p->w.data())
               : self->ops->grouped_gemm(self->q, &p->out, &p->x, p->w.data(), &p->groups);
}

static bool product_fill(harness_t *self, const product_t *p, const char *what)
{
    memory_poison(p->out.data, out_bytes(p));
    CUDA(cudaDeviceSynchronize()); /* the queue's stream does not wait for the default one */
    int status = product_run(self, p);
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    return status == 0;
}

/* ---- comparing with the naive kernel ---- */

struct gemm_sums_t {
    double xx, yy, xy, dd;
};

__global__ static void add_differences(gemm_sums_t *sums, tensor_t out, const double *wanted,
                                       uint32_t first)
{
    uint32_t col = blockIdx.x * blockDim.x + threadIdx.x, row = first + blockIdx.y;
    if (col >= out.cols) return;
    double y = wanted[(size_t)blockIdx.y * out.cols + col];
    double x =
        out.dtype == DTYPE_F32
            ? (double)((const float *)out.data)[row * out.stride + col]
            : (double)__bfloat162float(((const __nv_bfloat16 *)out.data)[row * out.stride + col]);
    atomicAdd(&sums->xx, x * x);
    atomicAdd(&sums->yy, y * y);
    atomicAdd(&sums->xy, x * y);
    atomicAdd(&sums->dd, (x - y) * (x - y));
}

enum { SAMPLE_ROWS = 32, SAMPLES_MAX = 12 };

/* Stretches of rows of one group: its first ones, its last ones, and some between. */
static void add_group(gemm_sums_t *sums, double *wanted, const product_t *p, const tensor_t *w,
                      span_t span)
{
    uint32_t step = std::max<uint32_t>(SAMPLE_ROWS, span.rows / SAMPLES_MAX);
    for (uint32_t at = 0; at < span.rows; at += step) {
        uint32_t first = at + step < span.rows || span.rows < SAMPLE_ROWS
                             ? at
                             : std::max(at, span.rows - SAMPLE_ROWS);
        uint32_t count = std::min<uint32_t>(SAMPLE_ROWS, span.rows - first);
        dim3 grid((p->out.cols + 127) / 128, count);
        LAUNCH(naive_fp8_gemm, (grid, 128), wanted, p->x, *w, span.first + first);
        LAUNCH(add_differences, (grid, 128), sums, p->out, wanted, span.first + first);
        CUDA(cudaGetLastError());
    }
}

/* Poison that must be gone within the groups' rows and still there everywhere else. */
static void expect_written(harness_t *self, const product_t *p, const char *what)
{
    size_t size = p->out.dtype == DTYPE_F32 ? 4 : 2, missing = 0, touched = 0;
    std::vector<unsigned char> bytes(out_bytes(p));
    memory_download(bytes.data(), p->out.data, bytes.size());
    std::vector<char> is_owned(p->out.rows, 0);
    for (const span_t &span : spans_of(p))
        for (uint32_t r = 0; r < span.rows; r++) is_owned[span.first + r] = 1;
    for (size_t r = 0; r < p->out.rows; r++)
        for (size_t c = 0; c < p->out.stride; c++) {
            const unsigned char *at = &bytes[(r * p->out.stride + c) * size];
            bool is_poison = std::count(at, at + size, 0xff) == (long)size;
            bool is_result = is_owned[r] && c < p->out.cols;
            missing += is_result && is_poison;
            touched += !is_result && !is_poison;
        }
    char text[160];
    snprintf(text, sizeof text, "%s, results not written", what);
    expect(self, missing == 0, text, (double)missing, 0);
    snprintf(text, sizeof text, "%s, foreign elements written", what);
    expect(self, touched == 0, text, (double)touched, 0);
}

static void product_check(harness_t *self, const product_t *p, const char *what)
{
    if (!product_fill(self, p, what)) return;
    gemm_sums_t *sums = (gemm_sums_t *)memory_new(sizeof *sums), found;
    double *wanted = (double *)memory_new((size_t)SAMPLE_ROWS * p->out.cols * sizeof(double));
    CUDA(cudaMemset(sums, 0, sizeof *sums));
    std::vector<span_t> spans = spans_of(p);
    for (size_t g = 0; g < spans.size(); g++) add_group(sums, wanted, p, &p->w[g], spans[g]);
    memory_download(&found, sums, sizeof found);
    double relative = found.dd == 0 ? 0 : sqrt(found.dd / found.yy);
    double cosine = found.yy == 0 ? 0 : 1 - 2 * found.xy / (found.xx + found.yy);
    char text[160];
    snprintf(text, sizeof text, "%s, relative error", what);
    expect(self, relative < 3e-3, text, relative, 3e-3);
    snprintf(text, sizeof text, "%s, calc_diff", what);
    expect(self, cosine < 1e-3, text, cosine, 1e-3);
    expect_written(self, p, what);
}

/* ---- comparing with the judge, which also checks the naive kernel ---- */

static tensor_t host_rows(const tensor_t *x, span_t span)
{
    tensor_t part = *x;
    size_t size = dtype_bytes(x->dtype);
    part.data = (char *)x->data + span.first * x->stride * size;
    part.rows = span.rows;
    if (x->scales) part.scales = x->scales + (size_t)span.first * x->scale_stride;
    return part;
}

static void judge_check(harness_t *self, const product_t *p, const char *what)
{
    if (!product_fill(self, p, what)) return;
    tensor_t x = tensor_to_host(&p->x, false), out = tensor_to_host(&p->out, false);
    tensor_t wanted = tensor_host_new(DTYPE_F32, out.rows, out.cols);
    double *naive = (double *)memory_new((size_t)out.rows * out.cols * sizeof(double));
    std::vector<double> found((size_t)out.rows * out.cols);
    double worst = 0, naive_worst = 0, largest = 1e-30;
    std::vector<span_t> spans = spans_of(p);
    for (size_t g = 0; g < spans.size(); g++) {
        if (spans[g].rows == 0) continue;
        tensor_t w = tensor_to_host(&p->w[g], true);
        tensor_t part_x = host_rows(&x, spans[g]), part = host_rows(&wanted, spans[g]);
        expect(self, ops_judge.gemm(self->cpu, &part, &part_x, &w) == 0, what, 1, 0);
        dim3 grid((out.cols + 127) / 128, spans[g].rows);
        LAUNCH(naive_fp8_gemm, (grid, 128), naive, p->x, p->w[g], spans[g].first);
        memory_download(found.data(), naive, (size_t)spans[g].rows * out.cols * sizeof(double));
        tensor_t part_out = host_rows(&out, spans[g]);
        worst = std::max(worst, difference_relative(&part_out, &part));
        for (uint32_t r = 0; r < part.rows; r++)
            for (uint32_t c = 0; c < part.cols; c++) {
                double value = tensor_host_value(&part, r, c);
                largest = std::max(largest, fabs(value));
                naive_worst = std::max(naive_worst, fabs(found[(size_t)r * out.cols + c] - value));
            }
        tensor_host_free(&w);
    }
    expect(self, worst < 3e-3, what, worst, 3e-3);
    expect(self, naive_worst < 1e-6 * largest, "naive kernel against the judge", naive_worst,
           1e-6 * largest);
    expect_written(self, p, what);
    tensor_host_free(&x);
    tensor_host_free(&out);
    tensor_host_free(&wanted);
}

/* ---- a row's bits do not depend on the others ---- */

/* The first `rows` rows alone give what they gave among all. */
static void alone_check(harness_t *self, const product_t *p, uint32_t rows, const char *what)
{
    if (!product_fill(self, p, what)) return;
    product_t part = *p;
    part.x.rows = part.out.rows = rows;
    tensor_t all = tensor_to_host(&part.out, false);
    if (!product_fill(self, &part, what)) return;
    tensor_t alone = tensor_to_host(&part.out, false);
    char text[160];
    snprintf(text, sizeof text, "%s, first %u rows alone have the same bits", what, rows);
    expect(self, is_same_bits(&all, &alone), text, 0, 1);
    tensor_host_free(&all);
    tensor_host_free(&alone);
}

/* Groups' rows equal the rows of dense products with the group's weights. */
static void grouped_equals_dense(harness_t *self, const product_t *p, const char *what)
{
    if (!product_fill(self, p, what)) return;
    tensor_t grouped = tensor_to_host(&p->out, false);
    for (size_t g = 0; g < p->spans.size(); g++) {
        product_t dense = *p;
        dense.spans.clear();
        dense.w = { p->w[g] };
        if (!product_fill(self, &dense, what)) return;
        tensor_t all = tensor_to_host(&dense.out, false);
        tensor_t a = host_rows(&grouped, p->spans[g]), b = host_rows(&all, p->spans[g]);
        expect(self, is_same_bits(&a, &b), what, (double)g, 0);
        tensor_host_free(&all);
    }
    tensor_host_free(&grouped);
}

/* ---- what is refused ---- */

static void refused_check(harness_t *self)
{
    product_t good = product_new(self, { 256, 128, 256 }, DTYPE_BF16, {}, 0);
    struct {
        const char *what;
        product_t p;
    } cases[] = {
        { "k differs", good },    { "n differs", good },     { "rows differ", good },
        { "out FP8", good },      { "x unaligned", good },   { "scale_stride too small", good },
        { "mixed dtypes", good }, { "out unaligned", good },
    };
    cases[0].p.x.cols = 128;
    cases[1].p.out.cols = 120;
    cases[2].p.out.rows = 255;
    cases[3].p.out.dtype = DTYPE_F8E4M3;
    cases[4].p.x.data = (char *)good.x.data + 1;
    cases[5].p.x.scale_stride = 128;
    cases[6].p.w[0].dtype = DTYPE_BF16;
    cases[7].p.out.data = (char *)good.out.data + 2;
    for (const auto &it : cases)
        expect(self, product_run(self, &it.p) == EINVAL, it.what, 0, EINVAL);
    product_t grouped =
        product_new(self, { 256, 128, 256 }, DTYPE_BF16, { { 0, 128 }, { 128, 128 } }, 0);
    grouped.w[1].data = grouped.w[0].data;
    expect(self, product_run(self, &grouped) == EINVAL, "weights apart", 0, EINVAL);
    good.x.rows = good.out.rows = 0;
    expect(self, product_run(self, &good) == 0, "no rows", 0, 0);
}

void run_small_checks_gemm(harness_t *self)
{
    for (dtype_t dtype : { DTYPE_BF16, DTYPE_F32 }) {
        product_t p = product_new(self, { 300, 328, 336 }, dtype, {}, 8);
        judge_check(self, &p, "gemm 300x328x336");
        p = product_new(self, { 700, 264, 256 }, dtype,
                        { { 3, 7 }, { 10, 260 }, { 280, 0 }, { 281, 1 }, { 300, 384 } }, 8);
        judge_check(self, &p, "grouped_gemm, odd groups");
    }
    refused_check(self);
}

/* ---- full sizes ---- */

static const sizes_t v3_shapes[] = { { 4096, 2112, 7168 }, { 4096, 24576, 1536 },
                                     { 4096, 32768, 512 }, { 4096, 7168, 16384 },
                                     { 4096, 4096, 7168 }, { 4096, 7168, 2048 } };

static void dense_checks(harness_t *self)
{
    char text[96];
    for (const sizes_t &v3 : v3_shapes)
        for (uint32_t m : { v3.m, 777u }) {
            product_t p = product_new(self, { m, v3.n, v3.k }, DTYPE_BF16, {}, m == 777 ? 8 : 0);
            snprintf(text, sizeof text, "gemm %ux%ux%u", m, v3.n, v3.k);
            product_check(self, &p, text);
            for (uint32_t rows : { 1u, 64u, 300u }) alone_check(self, &p, rows, text);
            memory_free_all();
        }
    for (const sizes_t &tiny :
         { sizes_t{ 513, 256, 256 }, sizes_t{ 300, 88, 256 }, sizes_t{ 1030, 1040, 80 } })
        for (dtype_t dtype : { DTYPE_BF16, DTYPE_F32 }) {
            product_t p = product_new(self, tiny, dtype, {}, 24);
            snprintf(text, sizeof text, "gemm %ux%ux%u", tiny.m, tiny.n, tiny.k);
            judge_check(self, &p, text);
            memory_free_all();
        }
}

static std::vector<span_t> random_spans(harness_t *self, uint32_t count, uint32_t rows_max,
                                        uint32_t align)
{
    std::vector<span_t> spans;
    uint32_t next = align > 1 ? 0 : 5;
    for (uint32_t g = 0; g < count; g++) {
        uint32_t rows = random_below(self, 4) ? random_below(self, rows_max + 1) : g % 2;
        spans.push_back({ next, rows });
        next = (next + rows + align - 1) / align * align;
    }
    return spans;
}

static void grouped_checks(harness_t *self)
{
    struct {
        const char *what;
        std::vector<span_t> spans;
        uint32_t expected;
    } cases[] = {
        { "packed", random_spans(self, 9, 700, 1), 0 },
        { "aligned to 128", random_spans(self, 9, 700, 128), 512 },
        { "all rows in one group", { { 0, 0 }, { 0, 2000 }, { 2000, 0 } }, 600 },
        { "one row each", { { 0, 1 }, { 1, 1 }, { 2, 1 }, { 3, 1 } }, 512 },
        { "no rows at all", { { 0, 0 }, { 0, 0 } }, 512 },
        { "64 groups", random_spans(self, 64, 60, 1), 256 },
    };
    for (const sizes_t &size :
         { sizes_t{ 0, 4096, 7168 }, sizes_t{ 0, 7168, 2048 }, sizes_t{ 0, 264, 256 } })
        for (const auto &it : cases) {
            if (it.spans.size() > 9 && size.n > 4096) continue;
            uint32_t rows = it.spans.back().first + it.spans.back().rows + 70;
            product_t p = product_new(self, { rows, size.n, size.k }, DTYPE_BF16, it.spans, 8);
            p.groups.expected_rows = it.expected;
            char text[128];
            snprintf(text, sizeof text, "grouped_gemm %ux%u, %s", size.n, size.k, it.what);
            product_check(self, &p, text);
            if (size.n < 4096) grouped_equals_dense(self, &p, text);
            memory_free_all();
        }
}

void run_checks_gemm(harness_t *self)
{
    run_small_checks_gemm(self);
    memory_free_all();
    dense_checks(self);
    grouped_checks(self);
}

/* ---- timings ---- */

struct gemm_timed_t {
    harness_t *harness;
    std::vector<product_t> products;
};

static int timed_run(void *context, uint32_t variant)
{
    const gemm_timed_t *self = (const gemm_timed_t *)context;
    return product_run(self->harness, &self->products[variant]);
}

static void time_product(harness_t *self, const char *op, sizes_t size, uint32_t groups,
                         double anchor_us)
{
    std::vector<span_t> spans;
    for (uint32_t g = 0; g < groups; g++) spans.push_back({ g * size.m, size.m });
    uint32_t count = std::max(groups, 1u), rows = size.m * count;
    double bytes = (double)rows * size.k + (double)count * size.n * size.k + 2.0 * rows * size.n;
    gemm_timed_t timed = { self, {} };
    uint32_t variants = (uint32_t)std::min(6.0, 300e6 / bytes + 1);
    for (uint32_t v = 0; v < variants; v++) {
        timed.products.push_back(product_new(self, { rows, size.n, size.k }, DTYPE_BF16, spans, 0));
        timed.products.back().groups.expected_rows = size.m;
    }
    timing_t timing = {};
    timing.op = op;
    if (groups)
        snprintf(timing.shape, sizeof timing.shape, "%u x %ux%ux%u", groups, size.m, size.n,
                 size.k);
    else
        snprintf(timing.shape, sizeof timing.shape, "%ux%ux%u", size.m, size.n, size.k);
    timing.us = time_call(self, timed_run, &timed, variants);
    timing.bytes = bytes;
    timing.operations = 2.0 * rows * size.n * size.k;
    timing.anchor_us = anchor_us;
    timing.is_fp8 = true;
    report(self, &timing);
    memory_free_all();
}

void run_timings_gemm(harness_t *self)
{
    static const double dense_us[] = { 105, 264, 143, 740, 198, 104 };
    for (size_t i = 0; i < sizeof dense_us / sizeof *dense_us; i++)
        time_product(self, "gemm", v3_shapes[i], 0, dense_us[i]);
    struct {
        uint32_t groups;
        sizes_t size;
        double us;
    } grouped[] = {
        { 4, { 8192, 4096, 7168 }, 1433 }, { 4, { 8192, 7168, 2048 }, 780 },
        { 8, { 4096, 4096, 7168 }, 1487 }, { 8, { 4096, 7168, 2048 }, 753 },
        { 2, { 512, 4096, 7168 }, 51.8 },  { 2, { 512, 7168, 2048 }, 34.4 },
        { 4, { 256, 4096, 7168 }, 66.2 },  { 1, { 1024, 4096, 7168 }, 49.1 },
    };
    for (uint32_t m : { 256u, 512u, 1024u })
        for (const sizes_t &v3 : v3_shapes) time_product(self, "gemm", { m, v3.n, v3.k }, 0, 0);
    for (const auto &it : grouped) time_product(self, "grouped_gemm", it.size, it.groups, it.us);
}
