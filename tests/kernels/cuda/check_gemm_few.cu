/* tests/kernels/cuda/check_gemm_few.cu - checks and timings of FP8 products of few rows: every tile
 * gives the same bits, and they are right. */
#include "../../../kernels/cuda/fp8_gemm_few.h"
#include "../../../kernels/cuda/gemm_parts.h"
#include "families.h"
#include "harness.cuh"
#include "naive_gemm.cuh"

#include <errno.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

struct few_size_t {
    uint32_t rows, n, k;
};

/* Groups begin at multiples of `slots` rows; none: dense. */
struct few_product_t {
    tensor_t out, x;
    std::vector<tensor_t> w;
    std::vector<uint32_t> rows;
    uint32_t slots;
    groups_t groups;
};

static const groups_t *groups_of(const few_product_t *p)
{
    return p->rows.empty() ? nullptr : &p->groups;
}

/* Weights and their scales of all groups are one array each, as the contract asks. */
static few_product_t product_new(harness_t *self, few_size_t size, dtype_t dtype,
                                 const std::vector<uint32_t> &rows, uint32_t slots, uint32_t gap)
{
    few_product_t p = {};
    uint32_t count = rows.empty() ? 1 : (uint32_t)rows.size(), blocks = (size.n + 127) / 128;
    p.rows = rows;
    p.slots = slots;
    p.x = tensor_random(self, DTYPE_F8E4M3, rows.empty() ? size.rows : count * slots,
                        size.k + (gap ? 16 : 0), false);
    p.x.cols = size.k;
    p.out = tensor_new(dtype, p.x.rows, size.n + gap, false);
    p.out.cols = size.n;
    tensor_t all = tensor_random(self, DTYPE_F8E4M3, count * blocks * 128, size.k, true);
    p.w.assign(count, all);
    std::vector<uint32_t> first;
    for (uint32_t g = 0; g < count; g++) {
        p.w[g].rows = size.n;
        p.w[g].data = (char *)all.data + (size_t)g * size.n * size.k;
        p.w[g].scales = all.scales + (size_t)g * blocks * all.scale_stride;
        first.push_back(g * slots);
    }
    if (rows.empty()) return p;
    p.groups = { (const uint32_t *)memory_upload(first.data(), count * sizeof(uint32_t)),
                 (const uint32_t *)memory_upload(rows.data(), count * sizeof(uint32_t)), count,
                 *std::max_element(rows.begin(), rows.end()) };
    return p;
}

static size_t out_bytes(const few_product_t *p)
{
    return (size_t)p->out.rows * p->out.stride * (p->out.dtype == DTYPE_F32 ? 4 : 2);
}

/* By the plan, or by the choice of fp8_gemm_few; the whole buffer, poison included. */
static std::vector<unsigned char> product_bytes(harness_t *self, const few_product_t *p,
                                                const few_plan_t *plan, const char *what)
{
    std::vector<unsigned char> bytes(out_bytes(p));
    memory_poison(p->out.data, bytes.size());
    int status = plan ? fp8_gemm_few_by(plan, self->q, &p->out, &p->x, p->w.data(), groups_of(p))
                      : fp8_gemm_few(self->q, &p->out, &p->x, p->w.data(), groups_of(p));
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    memory_download(bytes.data(), p->out.data, bytes.size());
    return bytes;
}

static bool is_result(const few_product_t *p, uint32_t row, uint32_t col)
{
    if (col >= p->out.cols) return false;
    return p->rows.empty() || row % p->slots < p->rows[row / p->slots];
}

static double value_of(const few_product_t *p, const std::vector<unsigned char> &bytes, size_t at)
{
    if (p->out.dtype == DTYPE_F32) return ((const float *)bytes.data())[at];
    return __bfloat162float(((const __nv_bfloat16 *)bytes.data())[at]);
}

/* Against sums in double; everything outside of results keeps its poison. */
static void expect_right(harness_t *self, const few_product_t *p,
                         const std::vector<unsigned char> &bytes, const char *what)
{
    size_t count = (size_t)p->out.rows * p->out.cols, foreign = 0;
    double *naive = (double *)memory_new(count * sizeof(double));
    std::vector<double> wanted(count);
    for (uint32_t g = 0; g < p->w.size(); g++) {
        uint32_t first = g * p->slots, rows = p->rows.empty() ? p->x.rows : p->rows[g];
        if (rows == 0) continue;
        LAUNCH(naive_fp8_gemm, (dim3((p->out.cols + 127) / 128, rows), 128),
               naive + (size_t)first * p->out.cols, p->x, p->w[g], first);
    }
    memory_download(wanted.data(), naive, count * sizeof(double));
    double dd = 0, yy = 1e-300, xy = 0, xx = 0;
    size_t size = p->out.dtype == DTYPE_F32 ? 4 : 2;
    for (uint32_t r = 0; r < p->out.rows; r++)
        for (uint32_t c = 0; c < p->out.stride; c++) {
            size_t at = r * p->out.stride + c;
            if (!is_result(p, r, c)) {
                for (size_t i = 0; i < size; i++) foreign += bytes[at * size + i] != 0xff;
                continue;
            }
            double x = value_of(p, bytes, at), y = wanted[(size_t)r * p->out.cols + c];
            dd += (x - y) * (x - y);
            xx += x * x;
            yy += y * y;
            xy += x * y;
        }
    double relative = sqrt(dd / yy), cosine = yy > 1e-299 ? 1 - 2 * xy / (xx + yy) : 0;
    expect(self, relative < 3e-3, what, relative, 3e-3);
    expect(self, cosine < 1e-3, what, cosine, 1e-3);
    expect(self, foreign == 0, what, (double)foreign, 0);
}

/* All plans give the same bytes, and those are right. */
static void check_plans(harness_t *self, const few_product_t *p, const char *what)
{
    std::vector<unsigned char> wanted = product_bytes(self, p, nullptr, what);
    expect_right(self, p, wanted, what);
    for (uint32_t i = 0; i < few_plan_count(); i++) {
        const few_plan_t *plan = few_plan_at(i);
        if (!few_plan_fits(plan, p->x.cols)) continue;
        char text[160];
        snprintf(text, sizeof text, "%s, plan %u (%u tokens, %u weights)", what, i,
                 plan->kernel->tokens, plan->kernel->weights);
        expect(self, product_bytes(self, p, plan, text) == wanted, text, 0, 1);
    }
}

/* The first rows alone have the bits that they have among all. */
static void check_alone(harness_t *self, const few_product_t *p, uint32_t rows, const char *what)
{
    std::vector<unsigned char> all = product_bytes(self, p, nullptr, what);
    few_product_t part = *p;
    part.x.rows = part.out.rows = rows;
    std::vector<unsigned char> alone = product_bytes(self, &part, nullptr, what);
    char text[160];
    snprintf(text, sizeof text, "%s, first %u rows alone", what, rows);
    expect(self, memcmp(all.data(), alone.data(), alone.size()) == 0, text, 0, 1);
}

/* The kernels of many rows give the same bits. */
static void check_many(harness_t *self, const few_product_t *p, const char *what)
{
    std::vector<unsigned char> few = product_bytes(self, p, nullptr, what), many(few.size());
    memory_poison(p->out.data, many.size());
    int status = fp8_gemm_many(self->q, &p->out, &p->x, p->w.data(), groups_of(p));
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    memory_download(many.data(), p->out.data, many.size());
    expect(self, few == many, what, 0, 1);
}

/* The judge on copies of small products; it checks the naive kernel, too. */
static void check_judge(harness_t *self, const few_product_t *p, const char *what)
{
    product_bytes(self, p, nullptr, what);
    tensor_t out = tensor_to_host(&p->out, false), x = tensor_to_host(&p->x, false);
    tensor_t w = tensor_to_host(&p->w[0], true);
    tensor_t wanted = tensor_host_new(DTYPE_F32, out.rows, out.cols);
    expect(self, ops_judge.gemm(self->cpu, &wanted, &x, &w) == 0, what, 0, 0);
    double relative = difference_relative(&out, &wanted);
    expect(self, relative < 3e-3, what, relative, 3e-3);
    for (tensor_t *tensor : { &out, &x, &w, &wanted }) tensor_host_free(tensor);
}

static void check_refused(harness_t *self)
{
    few_product_t good = product_new(self, { 8, 128, 256 }, DTYPE_BF16, {}, 0, 0);
    few_product_t bad = good;
    bad.out.cols = 120;
    expect(self, fp8_gemm_few(self->q, &bad.out, &bad.x, bad.w.data(), nullptr) == EINVAL,
           "n differs", 0, EINVAL);
    bad = good;
    bad.x.data = (char *)good.x.data + 1;
    expect(self, fp8_gemm_few(self->q, &bad.out, &bad.x, bad.w.data(), nullptr) == EINVAL,
           "x not aligned", 0, EINVAL);
    bad = product_new(self, { 0, 128, 256 }, DTYPE_BF16, { 8, 8 }, 8, 0);
    bad.w[1].data = bad.w[0].data;
    expect(self, fp8_gemm_few(self->q, &bad.out, &bad.x, bad.w.data(), &bad.groups) == EINVAL,
           "weights apart", 0, EINVAL);
    good.x.rows = good.out.rows = 0;
    expect(self, fp8_gemm_few(self->q, &good.out, &good.x, good.w.data(), nullptr) == 0, "no rows",
           0, 0);
}

void run_small_checks_gemm_few(harness_t *self)
{
    static const few_size_t sizes[] = {
        { 1, 8, 16 }, { 3, 200, 144 }, { 17, 328, 256 }, { 65, 136, 512 }, { 130, 264, 384 }
    };
    for (few_size_t size : sizes)
        for (dtype_t dtype : { DTYPE_BF16, DTYPE_F32 }) {
            char text[96];
            snprintf(text, sizeof text, "few rows %ux%ux%u", size.rows, size.n, size.k);
            few_product_t p = product_new(self, size, dtype, {}, 0, 8);
            check_judge(self, &p, text);
            check_plans(self, &p, text);
            memory_free_all();
        }
    few_product_t p =
        product_new(self, { 0, 264, 512 }, DTYPE_BF16, { 0, 1, 130, 64, 0, 33 }, 144, 8);
    check_plans(self, &p, "few rows, groups");
    memory_free_all();
    /* Groups that follow one another without a gap begin at any row. */
    for (uint32_t slots : { 1u, 7u })
        for (uint32_t k : { 128u, 256u, 512u }) {
            std::vector<uint32_t> rows(32);
            for (uint32_t &count : rows) count = random_below(self, slots + 1);
            rows[0] = rows[1] = slots;
            p = product_new(self, { 0, 256, k }, DTYPE_BF16, rows, slots, 0);
            check_plans(self, &p, "few rows, groups at odd rows");
            memory_free_all();
        }
    check_refused(self);
}

/* ---- full sizes ---- */

struct few_anchor_t {
    uint32_t n, k;
    double us_64, us_128;
};

/* The faster of DeepGEMM and cuBLASLt, on an H100 on 2026-11-21 (kernels/NOTES.md). */
static const few_anchor_t dense_anchors[] = {
    { 2112, 7168, 9.8, 10.6 },   { 24576, 1536, 18.3, 19.6 }, { 32768, 512, 10.1, 10.3 },
    { 7168, 16384, 44.8, 47.0 }, { 4096, 7168, 14.0, 14.6 },  { 7168, 2048, 8.6, 9.7 }
};

void run_checks_gemm_few(harness_t *self)
{
    run_small_checks_gemm_few(self);
    char text[96];
    for (const few_anchor_t &shape : dense_anchors)
        for (uint32_t rows : { 128u, 77u }) {
            snprintf(text, sizeof text, "few rows %ux%ux%u", rows, shape.n, shape.k);
            few_product_t p = product_new(self, { rows, shape.n, shape.k }, DTYPE_BF16, {}, 0, 0);
            check_plans(self, &p, text);
            for (uint32_t part : { 1u, 16u, 64u }) check_alone(self, &p, part, text);
            check_many(self, &p, text);
            memory_free_all();
        }
    static const std::vector<uint32_t> rows[] = { { 128, 0 },
                                                  { 1, 0, 64, 128 },
                                                  { 32, 31, 33, 0, 128, 65, 64, 1, 7 } };
    for (const std::vector<uint32_t> &it : rows)
        for (few_size_t size : { few_size_t{ 0, 4096, 7168 }, few_size_t{ 0, 7168, 2048 } }) {
            snprintf(text, sizeof text, "few rows, %zu groups %ux%u", it.size(), size.n, size.k);
            few_product_t p = product_new(self, size, DTYPE_BF16, it, 128, 0);
            check_plans(self, &p, text);
            check_many(self, &p, text);
            memory_free_all();
        }
}

/* ---- timings ---- */

struct few_timed_t {
    harness_t *self;
    std::vector<few_product_t> products;
};

static int timed(void *context, uint32_t variant)
{
    few_timed_t *it = (few_timed_t *)context;
    const few_product_t *p = &it->products[variant];
    const ops_t *ops = it->self->ops;
    return groups_of(p) ? ops->grouped_gemm(it->self->q, &p->out, &p->x, p->w.data(), groups_of(p))
                        : ops->gemm(it->self->q, &p->out, &p->x, p->w.data());
}

/* Over more weights than L2 holds. */
static void time_product(harness_t *self, few_size_t size, uint32_t groups, double anchor_us)
{
    few_timed_t context = { self, {} };
    uint32_t count = groups ? groups : 1;
    double weights = (double)size.n * size.k * count;
    uint32_t variants = 2 + (uint32_t)(150e6 / weights);
    for (uint32_t i = 0; i < variants; i++)
        context.products.push_back(
            product_new(self, size, DTYPE_BF16, std::vector<uint32_t>(groups, size.rows), 128, 0));
    timing_t timing = {};
    timing.op = groups ? "grouped_gemm" : "gemm";
    if (groups)
        snprintf(timing.shape, sizeof timing.shape, "%u groups x %u, %ux%u", groups, size.rows,
                 size.n, size.k);
    else
        snprintf(timing.shape, sizeof timing.shape, "%ux%ux%u", size.rows, size.n, size.k);
    timing.us = time_call(self, timed, &context, variants);
    timing.bytes = weights + (double)size.rows * count * (size.k + 2.0 * size.n);
    timing.operations = 2 * weights * size.rows;
    timing.anchor_us = anchor_us;
    timing.is_fp8 = true;
    report(self, &timing);
    memory_free_all();
}

void run_timings_gemm_few(harness_t *self)
{
    for (const few_anchor_t &it : dense_anchors) {
        for (uint32_t rows : { 1u, 8u, 16u, 32u }) time_product(self, { rows, it.n, it.k }, 0, 0);
        time_product(self, { 64, it.n, it.k }, 0, it.us_64);
        time_product(self, { 128, it.n, it.k }, 0, it.us_128);
    }
    static const struct {
        uint32_t groups;
        double up_us, down_us;
    } anchors[] = { { 2, 25, 15.5 }, { 4, 46, 27 }, { 9, 100, 55 } };
    for (const auto &it : anchors)
        for (uint32_t rows : { 32u, 64u, 128u }) {
            time_product(self, { rows, 4096, 7168 }, it.groups, it.up_us);
            time_product(self, { rows, 7168, 2048 }, it.groups, it.down_us);
        }
}
