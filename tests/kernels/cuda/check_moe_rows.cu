/* tests/kernels/cuda/check_moe_rows.cu - route, gather_rows and combine: checks and timings. */
#include "families.h"
#include "naive_rows.cuh"

#include <stdlib.h>
#include <string.h>

#include <vector>

enum { GAP = 16 };

static const tolerance_t exact = { 0, 0 }, quantised = { 2e-7f, 0 };

typedef std::vector<uint32_t> ids_t;

static uint32_t *upload(const ids_t &values)
{
    return (uint32_t *)memory_upload(values.data(), values.size() * sizeof(uint32_t));
}

static ids_t download(const uint32_t *device, size_t count)
{
    ids_t values(count);
    if (count) memory_download(values.data(), device, count * sizeof(uint32_t));
    return values;
}

/* What a gate chooses: top_k different experts of `experts` for each token. */
static ids_t random_choices(harness_t *self, uint32_t tokens, uint32_t top_k, uint32_t experts)
{
    ids_t ids(tokens * top_k);
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t k = 0; k < top_k; k++) {
            uint32_t id = random_below(self, experts);
            for (uint32_t i = 0; i < k; i++)
                if (ids[t * top_k + i] == id) {
                    id = (id + 1) % experts;
                    i = UINT32_MAX;
                }
            ids[t * top_k + k] = id;
        }
    return ids;
}

/* ---- route ---- */

/* Every number of the judge's; twice, because a race would show as a change. */
static void check_route_of(harness_t *self, const ids_t &ids, const route_t *route,
                           const char *what)
{
    char line[160];
    snprintf(line, sizeof line, "route %s: %u tokens, top %u, %u experts from %u, align %u, of %u",
             what, route->tokens, route->top_k, route->experts, route->first_expert, route->align,
             route->capacity);
    size_t work = (size_t)route->tokens * route->top_k;
    ids_t first(route->experts + 1), rows(route->experts), source(route->capacity), index(work);
    expect(self,
           ops_judge.route(self->cpu, first.data(), rows.data(), source.data(), index.data(),
                           ids.data(), route) == 0,
           line, 1, 0);
    uint32_t *device_ids = upload(ids);
    for (int round = 0; round < 2; round++) {
        uint32_t *device[] = { (uint32_t *)memory_new(first.size() * 4),
                               (uint32_t *)memory_new(rows.size() * 4),
                               (uint32_t *)memory_new(source.size() * 4),
                               (uint32_t *)memory_new(index.size() * 4) };
        int status = self->ops->route(self->q, device[0], device[1], device[2], device[3],
                                      device_ids, route);
        expect(self, status == 0, line, status, 0);
        queue_demand(self, line);
        expect(self, download(device[0], first.size()) == first, line, 0, round);
        expect(self, download(device[1], rows.size()) == rows, line, 1, round);
        expect(self, download(device[2], source.size()) == source, line, 2, round);
        expect(self, download(device[3], index.size()) == index, line, 3, round);
    }
    memory_free_all();
}

static void check_route(harness_t *self, route_t route, uint32_t routers)
{
    if (route.capacity == 0)
        route.capacity = route.tokens * route.top_k + route.experts * (route.align - 1) + 5;
    ids_t ids = random_choices(self, route.tokens, route.top_k, routers);
    check_route_of(self, ids, &route, "random");
    for (uint32_t &id : ids) id = route.first_expert;
    check_route_of(self, ids, &route, "all to one");
    for (uint32_t &id : ids) id = route.first_expert + route.experts;
    check_route_of(self, ids, &route, "none here");
    for (size_t i = 0; i < ids.size(); i++) ids[i] = (uint32_t)i % routers;
    check_route_of(self, ids, &route, "in turn");
}

static void check_small_routes(harness_t *self)
{
    check_route(self, { 1, 8, 0, 256, 1, 0 }, 256);
    check_route(self, { 7, 4, 8, 8, 16, 0 }, 32);
    check_route(self, { 128, 8, 0, 256, 1, 0 }, 256);
    check_route(self, { 128, 8, 64, 9, 128, 0 }, 256);
    check_route(self, { 37, 3, 0, 32, 4, 60 }, 32);
    check_route(self, { 50, 6, 0, 512, 8, 700 }, 512);
    check_route(self, { 0, 8, 0, 16, 1, 0 }, 256);
    check_route(self, { 1100, 8, 0, 32, 128, 0 }, 32);
}

static void check_large_routes(harness_t *self)
{
    check_route(self, { 256, 8, 0, 256, 1, 0 }, 256);
    check_route(self, { 257, 8, 0, 256, 1, 0 }, 256);
    check_route(self, { 4096, 8, 32, 32, 128, 0 }, 256);
    check_route(self, { 16384, 8, 0, 512, 64, 0 }, 512);
    check_route(self, { 16384, 8, 0, 9, 1, 100000 }, 16);
}

/* ---- gather_rows ---- */

/* Rows with NO_ROW stay as they are; an index beyond x gives NaN. */
static void check_gather(harness_t *self, const ids_t &index, uint32_t x_rows, uint32_t cols,
                         dtype_t dtype, dtype_t to)
{
    char what[96];
    snprintf(what, sizeof what, "gather_rows %zu of %u x %u, dtype %d to %d", index.size(), x_rows,
             cols, dtype, to);
    tensor_t x = strided_random(self, dtype, x_rows, cols, cols + 128);
    tensor_t out = strided_new(to, (uint32_t)index.size(), cols, cols + GAP);
    uint32_t *device = upload(index);
    int status = self->ops->gather_rows(self->q, &out, &x, device);
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    naive_t naive = naive_new(out.rows, cols);
    LAUNCH(naive_gather, NAIVE_LAUNCH(naive), naive, x, device, true);
    expect_wanted(self, &out, &naive, to == DTYPE_F8E4M3 ? quantised : exact, what);
    memory_free_all();
}

static ids_t random_index(harness_t *self, uint32_t rows, uint32_t x_rows)
{
    ids_t index(rows);
    for (uint32_t &from : index)
        from = random_below(self, 5) == 0 ? NO_ROW : random_below(self, x_rows);
    return index;
}

static void check_gathers(harness_t *self)
{
    static const dtype_t dtypes[] = { DTYPE_F32, DTYPE_BF16, DTYPE_F8E4M3 };
    for (dtype_t dtype : dtypes)
        for (dtype_t to : dtypes) {
            check_gather(self, random_index(self, 9, 4), 4, 264, dtype, to);
            check_gather(self, random_index(self, 3, 70), 70, 7168, dtype, to);
        }
    check_gather(self, { NO_ROW, 4, 0, 7 }, 4, 256, DTYPE_BF16, DTYPE_F8E4M3);
}

/* More takers than a row's list holds, rows that nobody wants, indices beyond x. */
static void check_crowded_gathers(harness_t *self, uint32_t rows, uint32_t cols)
{
    for (dtype_t to : { DTYPE_BF16, DTYPE_F8E4M3 }) {
        ids_t index = random_index(self, rows, rows / 4);
        for (uint32_t i = 0; i < 50; i++) index[i * (rows / 50)] = 3;
        index[1] = rows;
        index[rows - 1] = NO_ROW - 1;
        check_gather(self, index, rows / 4, cols, DTYPE_BF16, to);
        check_gather(self, ids_t(rows, NO_ROW), rows / 2, cols, DTYPE_BF16, to);
    }
}

/* ---- combine ---- */

struct combine_shape_t {
    uint32_t tokens, top_k, rows, cols;
    dtype_t out, from;
};

static void check_combine(harness_t *self, const combine_shape_t *s)
{
    char what[96];
    snprintf(what, sizeof what, "combine %u x %u, top %u, dtype %d to %d", s->tokens, s->cols,
             s->top_k, s->from, s->out);
    tensor_t rows = strided_random(self, s->from, s->rows, s->cols, s->cols + 128);
    tensor_t out = strided_random(self, s->out, s->tokens, s->cols, s->cols + GAP);
    size_t size = bytes_of_value(s->out);
    CUDA(cudaMemset2D((char *)out.data + s->cols * size, out.stride * size, 0xff,
                      (out.stride - s->cols) * size, s->tokens));
    tensor_t before = tensor_copy(&out);
    ids_t index = random_index(self, s->tokens * s->top_k, s->rows);
    if (s->tokens > 4) index[2 * s->top_k] = s->rows;
    tensor_t weights = tensor_random(self, DTYPE_F32, s->tokens, s->top_k, false);
    uint32_t *device = upload(index);
    int status = self->ops->combine(self->q, &out, &rows, device, (float *)weights.data, s->top_k);
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    naive_t naive = naive_new(s->tokens, s->cols);
    LAUNCH(naive_combine, NAIVE_LAUNCH(naive), naive, before, rows, device, (float *)weights.data,
           s->top_k);
    expect_wanted(self, &out, &naive, exact, what);
    if (s->tokens <= 4) {
        tensor_t judged = tensor_to_host(&before, false), host = tensor_to_host(&rows, false),
                 host_weights = tensor_to_host(&weights, false);
        expect(self,
               ops_judge.combine(self->cpu, &judged, &host, index.data(),
                                 (float *)host_weights.data, s->top_k) == 0,
               what, 1, 0);
        expect_judged(self, &out, &judged, 0, what);
        tensor_host_free(&judged);
        tensor_host_free(&host);
        tensor_host_free(&host_weights);
    }
    memory_free_all();
}

static void check_combines(harness_t *self, uint32_t tokens, uint32_t cols)
{
    for (dtype_t from : { DTYPE_F32, DTYPE_BF16, DTYPE_F8E4M3 })
        for (dtype_t out : { DTYPE_F32, DTYPE_BF16 })
            for (uint32_t top_k : { 1u, 6u, 8u, 11u }) {
                combine_shape_t shape = { tokens, top_k, tokens * 3, cols, out, from };
                check_combine(self, &shape);
            }
}

static void check_refusals(harness_t *self)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, 4, 256, false), narrow = x, empty = x;
    tensor_t bytes = tensor_new(DTYPE_F8E4M3, 4, 256, false);
    narrow.cols = 128;
    empty.rows = 0;
    route_t route = { 4, 2, 0, 513, 1, 100 };
    expect(self, self->ops->gather_rows(self->q, &narrow, &x, NULL) == EINVAL, "128 of 256", 1, 0);
    expect(self, self->ops->gather_rows(self->q, &empty, &x, NULL) == 0, "no rows", 1, 0);
    expect(self, self->ops->combine(self->q, &bytes, &x, NULL, NULL, 2) == EINVAL, "to F8", 1, 0);
    expect(self, self->ops->combine(self->q, &empty, &x, NULL, NULL, 2) == 0, "no tokens", 1, 0);
    expect(self, self->ops->route(self->q, NULL, NULL, NULL, NULL, NULL, &route) == EINVAL,
           "513 experts", 1, 0);
    memory_free_all();
}

void run_small_checks_moe_rows(harness_t *self)
{
    check_small_routes(self);
    check_gathers(self);
    check_crowded_gathers(self, 512, 136);
    check_combines(self, 4, 264);
    check_combines(self, 9, 128);
    check_refusals(self);
}

void run_checks_moe_rows(harness_t *self)
{
    run_small_checks_moe_rows(self);
    check_large_routes(self);
    check_crowded_gathers(self, 8192, 7168);
    check_crowded_gathers(self, 12288, 1032);
    check_combines(self, 257, 7168);
}

/* ---- timings ---- */

struct timed_moe_t {
    harness_t *harness;
    route_t route;
    uint32_t variants;
    std::vector<tensor_t> x, gathered, out;
    std::vector<uint32_t *> ids;
    uint32_t *first, *rows, *source, *index;
    float *weights;
};

static int run_route(void *context, uint32_t variant)
{
    timed_moe_t *self = (timed_moe_t *)context;
    return self->harness->ops->route(self->harness->q, self->first, self->rows, self->source,
                                     self->index, self->ids[variant], &self->route);
}

static int run_gather(void *context, uint32_t variant)
{
    timed_moe_t *self = (timed_moe_t *)context;
    return self->harness->ops->gather_rows(self->harness->q, &self->gathered[variant],
                                           &self->x[variant], self->source);
}

static int run_combine(void *context, uint32_t variant)
{
    timed_moe_t *self = (timed_moe_t *)context;
    return self->harness->ops->combine(self->harness->q, &self->out[variant],
                                       &self->gathered[variant], self->index, self->weights,
                                       self->route.top_k);
}

static void time_moe(timed_moe_t *timed, timed_call_t call, const char *op, const char *note,
                     double bytes)
{
    timing_t timing = {};
    timing.op = op;
    snprintf(timing.shape, sizeof timing.shape, "%u tokens x %u%s", timed->route.tokens,
             timed->route.top_k, note);
    timing.us = time_call(timed->harness, call, timed, timed->variants);
    timing.bytes = bytes;
    report(timed->harness, &timing);
}

static void time_tokens(harness_t *self, uint32_t tokens, uint32_t experts)
{
    enum { COLS = 7168 };
    timed_moe_t timed = {};
    uint32_t work = tokens * 8;
    double x_bytes = 2.0 * tokens * COLS;
    timed.harness = self;
    timed.route = route_t{ tokens, 8, 0, experts, 1, work };
    timed.variants = tokens > 1000 ? 2 : 8;
    for (uint32_t i = 0; i < timed.variants; i++) {
        timed.ids.push_back(upload(random_choices(self, tokens, 8, experts)));
        timed.x.push_back(tensor_random(self, DTYPE_BF16, tokens, COLS, false));
        timed.out.push_back(tensor_random(self, DTYPE_BF16, tokens, COLS, false));
        timed.gathered.push_back(tensor_new(DTYPE_F8E4M3, work, COLS, false));
    }
    timed.first = (uint32_t *)memory_new((experts + 1) * 4);
    timed.rows = (uint32_t *)memory_new(experts * 4);
    timed.source = (uint32_t *)memory_new(work * 4);
    timed.index = (uint32_t *)memory_new(work * 4);
    timed.weights = (float *)tensor_random(self, DTYPE_F32, tokens, 8, false).data;
    char note[32];
    snprintf(note, sizeof note, ", %u experts", experts);
    time_moe(&timed, run_route, "route", note, work * 12.0);
    expect(self, run_route(&timed, 0) == 0, "route", 1, 0);
    time_moe(&timed, run_gather, "gather_rows", " to F8E4M3",
             x_bytes + work * (COLS + COLS / 32.0));
    for (uint32_t i = 0; i < timed.variants; i++)
        timed.gathered[i] = tensor_random(self, DTYPE_BF16, work, COLS, false);
    time_moe(&timed, run_combine, "combine", "", 2 * x_bytes + work * 2.0 * COLS);
    time_moe(&timed, run_gather, "gather_rows", " BF16", x_bytes + work * 2.0 * COLS);
    memory_free_all();
}

void run_timings_moe_rows(harness_t *self)
{
    time_tokens(self, 128, 256);
    time_tokens(self, 256, 256);
    time_tokens(self, 512, 256);
    time_tokens(self, 1024, 256);
    time_tokens(self, 4096, 8);
    time_tokens(self, 4096, 256);
    time_tokens(self, 16384, 256);
}
