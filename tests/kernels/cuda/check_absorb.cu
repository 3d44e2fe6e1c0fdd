/* tests/kernels/cuda/check_absorb.cu - checks and timings of the products of absorbed attention. */
#include "families.h"
#include "harness.cuh"
#include "naive_absorb.cuh"

#include <stdlib.h>
#include <string.h>

static const heads_t v3 = { 128, 128, 64, 128, 512, 1, 0 }, tiny = { 4, 128, 64, 128, 512, 1, 0 };
static const uint32_t gap = 16; /* elements between rows of results */

typedef int (*absorb_call_t)(queue_t *, const tensor_t *, const tensor_t *, const tensor_t *,
                             const heads_t *);

struct absorb_case_t {
    const char *name;
    absorb_call_t call, judge;
    uint32_t in_cols, out_cols;
    bool is_query;
};

static absorb_case_t make_case(harness_t *self, const heads_t *heads, bool is_query)
{
    if (is_query)
        return { "absorb_query",
                 self->ops->absorb_query,
                 ops_judge.absorb_query,
                 heads->heads * (heads->nope + heads->rope),
                 heads->heads * (heads->latent + heads->rope),
                 true };
    return { "absorb_value",
             self->ops->absorb_value,
             ops_judge.absorb_value,
             heads->heads * heads->latent,
             heads->heads * heads->value,
             false };
}

static tensor_t random_kv_b(harness_t *self, const heads_t *heads, dtype_t dtype)
{
    return tensor_random(self, dtype, heads->heads * (heads->nope + heads->value), heads->latent,
                         true);
}

static bool is_gap_untouched(const tensor_t *x)
{
    unsigned char *rows = (unsigned char *)malloc(x->rows * x->stride * 2);
    bool is_good = true;
    memory_download(rows, x->data, x->rows * x->stride * 2);
    for (uint32_t r = 0; r < x->rows; r++)
        for (uint32_t i = 0; i < 2 * gap; i++)
            is_good &= rows[(r * x->stride + x->cols) * 2 + i] == 0xff;
    free(rows);
    return is_good;
}

static tensor_t run(harness_t *self, const absorb_case_t *one, const tensor_t *x,
                    const tensor_t *kv_b, const heads_t *heads)
{
    tensor_t out = tensor_new(DTYPE_BF16, x->rows, one->out_cols + gap, false);
    out.cols = one->out_cols;
    expect(self, one->call(self->q, &out, x, kv_b, heads) == 0, one->name, 1, 0);
    queue_demand(self, one->name);
    expect(self, is_gap_untouched(&out), "absorb leaves gaps alone", 1, 0);
    return tensor_to_host(&out, false);
}

static void check_naive(harness_t *self, const heads_t *heads, bool is_query, dtype_t dtype,
                        uint32_t rows)
{
    absorb_case_t one = make_case(self, heads, is_query);
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, one.in_cols, false);
    tensor_t kv_b = random_kv_b(self, heads, dtype);
    tensor_t naive = tensor_new(DTYPE_F32, rows, one.out_cols, false);
    tensor_t found = run(self, &one, &x, &kv_b, heads);
    dim3 grid(heads->heads, rows);
    if (is_query)
        LAUNCH(naive_absorb_query, (grid, 192), (float *)naive.data, x, kv_b, *heads);
    else
        LAUNCH(naive_absorb_value, (grid, 128), (float *)naive.data, x, kv_b, *heads);
    CUDA(cudaGetLastError());
    tensor_t wanted = tensor_to_host(&naive, false);
    char what[96];
    snprintf(what, sizeof what, "%s, %u heads, %u rows, weights %s", one.name, heads->heads, rows,
             dtype == DTYPE_BF16 ? "BF16" : "F8E4M3");
    double error = difference_relative(&found, &wanted);
    expect(self, error < 2e-3, what, error, 2e-3);
    tensor_host_free(&found);
    tensor_host_free(&wanted);
}

static void check_judge(harness_t *self, bool is_query, dtype_t dtype, uint32_t rows)
{
    absorb_case_t one = make_case(self, &tiny, is_query);
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, one.in_cols, false);
    tensor_t kv_b = random_kv_b(self, &tiny, dtype);
    tensor_t found = run(self, &one, &x, &kv_b, &tiny);
    tensor_t host_x = tensor_to_host(&x, false), host_w = tensor_to_host(&kv_b, true);
    tensor_t wanted = tensor_host_new(DTYPE_F32, rows, one.out_cols);
    expect(self, one.judge(self->cpu, &wanted, &host_x, &host_w, &tiny) == 0, "judge", 1, 0);
    double error = difference_relative(&found, &wanted);
    expect(self, error < 2e-3, one.name, error, 2e-3);
    for (tensor_t *tensor : { &found, &host_x, &host_w, &wanted }) tensor_host_free(tensor);
}

static void check_invariance(harness_t *self, bool is_query)
{
    absorb_case_t one = make_case(self, &v3, is_query);
    tensor_t x = tensor_random(self, DTYPE_BF16, 200, one.in_cols, false);
    tensor_t kv_b = random_kv_b(self, &v3, DTYPE_F8E4M3);
    tensor_t whole = run(self, &one, &x, &kv_b, &v3);
    static const uint32_t cuts[][2] = { { 0, 1 }, { 199, 1 }, { 70, 9 }, { 60, 129 } };
    for (const uint32_t *cut : cuts) {
        tensor_t own_x = x, own_wanted = whole;
        own_x.rows = own_wanted.rows = cut[1];
        own_x.data = (char *)x.data + cut[0] * x.stride * 2;
        own_wanted.data = (char *)whole.data + cut[0] * whole.stride * 2;
        tensor_t found = run(self, &one, &own_x, &kv_b, &v3);
        expect(self, is_same_bits(&found, &own_wanted), "absorb of a part of the batch", cut[1], 0);
        tensor_host_free(&found);
    }
    tensor_host_free(&whole);
}

static void check_refusals(harness_t *self)
{
    absorb_case_t one = make_case(self, &tiny, true);
    tensor_t x = tensor_random(self, DTYPE_BF16, 2, one.in_cols, false), none = x;
    tensor_t kv_b = random_kv_b(self, &tiny, DTYPE_BF16);
    tensor_t out = tensor_new(DTYPE_BF16, 2, one.out_cols, false), none_out = out;
    heads_t other = tiny;
    other.nope = 64;
    expect(self, one.call(self->q, &out, &x, &kv_b, &other) == EINVAL, "64 dims refused", 1, 0);
    none.rows = none_out.rows = 0;
    expect(self, one.call(self->q, &none_out, &none, &kv_b, &tiny) == 0, "no rows", 1, 0);
}

void run_small_checks_absorb(harness_t *self)
{
    check_refusals(self);
    for (int is_query = 0; is_query < 2; is_query++)
        for (dtype_t dtype : { DTYPE_BF16, DTYPE_F8E4M3 }) {
            check_judge(self, is_query, dtype, 1);
            check_judge(self, is_query, dtype, 5);
            check_naive(self, &tiny, is_query, dtype, 70);
        }
}

void run_checks_absorb(harness_t *self)
{
    static const uint32_t rows[] = { 1, 2, 17, 64, 65, 127, 128, 129, 256, 300 };
    run_small_checks_absorb(self);
    for (int is_query = 0; is_query < 2; is_query++) {
        for (uint32_t count : rows) {
            check_naive(self, &v3, is_query, DTYPE_F8E4M3, count);
            check_naive(self, &tiny, is_query, DTYPE_F8E4M3, count);
            memory_free_all();
        }
        check_naive(self, &v3, is_query, DTYPE_BF16, 128);
        check_invariance(self, is_query);
        memory_free_all();
    }
}

enum { VARIANTS = 6 };

struct absorb_turns_t {
    harness_t *harness;
    absorb_case_t one;
    tensor_t out[VARIANTS], x[VARIANTS], kv_b[VARIANTS];
};

static int turn(void *context, uint32_t variant)
{
    absorb_turns_t *self = (absorb_turns_t *)context;
    return self->one.call(self->harness->q, &self->out[variant], &self->x[variant],
                          &self->kv_b[variant], &v3);
}

static void time_case(harness_t *self, bool is_query, dtype_t dtype, uint32_t rows, double anchor)
{
    absorb_turns_t context = { self, make_case(self, &v3, is_query), {}, {}, {} };
    for (uint32_t i = 0; i < VARIANTS; i++) {
        context.out[i] = tensor_new(DTYPE_BF16, rows, context.one.out_cols, false);
        context.x[i] = tensor_random(self, DTYPE_BF16, rows, context.one.in_cols, false);
        context.kv_b[i] = random_kv_b(self, &v3, dtype);
    }
    double weights = 128.0 * 128 * 512;
    timing_t timing = { context.one.name,
                        "",
                        time_call(self, turn, &context, VARIANTS),
                        weights * (dtype == DTYPE_BF16 ? 2 : 1) +
                            2.0 * rows * (context.one.in_cols + context.one.out_cols),
                        2.0 * rows * weights,
                        anchor,
                        false };
    snprintf(timing.shape, sizeof timing.shape, "%u tokens, %s", rows,
             dtype == DTYPE_BF16 ? "BF16" : "F8E4M3");
    report(self, &timing);
    memory_free_all();
}

void run_timings_absorb(harness_t *self)
{
    for (int is_query = 1; is_query >= 0; is_query--) {
        time_case(self, is_query, DTYPE_F8E4M3, 1, 0);
        time_case(self, is_query, DTYPE_F8E4M3, 32, 0);
        time_case(self, is_query, DTYPE_F8E4M3, 128, 12.5);
        time_case(self, is_query, DTYPE_F8E4M3, 256, 0);
        time_case(self, is_query, DTYPE_BF16, 128, 12.5);
    }
}
