/* tests/kernels/cuda/check_kv.cu - rope, kv_write, kv_gather and copy_blocks: checks and timings.
 */
#include "families.h"
#include "naive_rows.cuh"

#include <stdlib.h>
#include <string.h>

#include <vector>

enum { BLOCK_TOKENS = 64, GAP = 16 };

static const tolerance_t turn_tolerance = { 0, 1.5e-6f }, kv_tolerance = { 6e-7f, 1.5e-6f };

static float *rope_table(uint32_t positions, uint32_t dim)
{
    std::vector<float> table((size_t)positions * dim);
    for (uint32_t p = 0; p < positions; p++)
        for (uint32_t i = 0; i < dim / 2; i++) {
            double angle = p * pow(10000, -2.0 * i / dim);
            table[(size_t)p * dim + 2 * i] = (float)cos(angle);
            table[(size_t)p * dim + 2 * i + 1] = (float)sin(angle);
        }
    return (float *)memory_upload(table.data(), table.size() * sizeof(float));
}

static uint32_t *upload(const std::vector<uint32_t> &values)
{
    return (uint32_t *)memory_upload(values.data(), values.size() * sizeof(uint32_t));
}

/* ---- rope ---- */

struct rope_shape_t {
    uint32_t rows, heads, head_stride, offset, dim;
};

static void check_rope(harness_t *self, const rope_shape_t *s)
{
    enum { POSITIONS = 500 };
    char what[96];
    snprintf(what, sizeof what, "rope %u rows, %u heads of %u, %u..%u", s->rows, s->heads,
             s->head_stride, s->offset, s->offset + s->dim);
    uint32_t cols = s->heads * s->head_stride;
    tensor_t x = strided_random(self, DTYPE_BF16, s->rows, cols, cols + GAP);
    CUDA(cudaMemset2D((char *)x.data + cols * 2, x.stride * 2, 0xff, (x.stride - cols) * 2,
                      s->rows));
    tensor_t before = tensor_copy(&x), host = tensor_to_host(&x, false);
    std::vector<uint32_t> positions(s->rows);
    for (uint32_t &position : positions) position = random_below(self, POSITIONS);
    float *table = rope_table(POSITIONS, s->dim);
    int status = self->ops->rope(self->q, &x, s->heads, s->head_stride, s->offset, s->dim, table,
                                 upload(positions));
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
    naive_t naive = naive_new(s->rows, cols);
    LAUNCH(naive_rope, NAIVE_LAUNCH(naive), naive, before, s->heads, s->head_stride, s->offset,
           s->dim, table, upload(positions));
    expect_wanted(self, &x, &naive, turn_tolerance, what);
    if (s->rows * cols <= 1 << 18) {
        std::vector<float> host_table((size_t)POSITIONS * s->dim);
        memory_download(host_table.data(), table, host_table.size() * sizeof(float));
        expect(self,
               ops_judge.rope(self->cpu, &host, s->heads, s->head_stride, s->offset, s->dim,
                              host_table.data(), positions.data()) == 0,
               what, 1, 0);
        tensor_t found = tensor_to_host(&x, false);
        double error = difference_relative(&found, &host);
        expect(self, error < 1e-4, "rope unlike the judge's", error, 1e-4);
        tensor_host_free(&found);
    }
    tensor_host_free(&host);
    memory_free_all();
}

/* ---- the cache ---- */

/* Sequences with their pages scattered over a pool. */
struct paged_t {
    cache_t cache;
    uint32_t rows, keys, count;
    std::vector<sequence_t> host;
    std::vector<uint32_t> positions, table;
    sequence_t *sequences; /* on the device */
};

/* shapes: {rows, first_position} of each sequence. */
static paged_t paged_new(harness_t *self, const std::vector<std::vector<uint32_t>> &shapes,
                         uint32_t latent, uint32_t rope)
{
    paged_t paged = {};
    std::vector<uint32_t> pages(1, 0);
    paged.count = (uint32_t)shapes.size();
    for (const std::vector<uint32_t> &shape : shapes)
        pages.push_back(pages.back() + (shape[0] + shape[1]) / BLOCK_TOKENS + 1);
    uint32_t blocks = pages.back();
    tensor_t pool =
        tensor_random(self, DTYPE_BF16, blocks * 2 * BLOCK_TOKENS, latent + rope, false);
    paged.cache =
        cache_t{ pool.data,    DTYPE_BF16, 2,    1,
                 BLOCK_TOKENS, latent,     rope, (size_t)2 * BLOCK_TOKENS * (latent + rope) };
    for (uint32_t i = 0; i < blocks; i++) paged.table.push_back(blocks - 1 - i);
    for (uint32_t i = 1; i < blocks; i++)
        std::swap(paged.table[i], paged.table[random_below(self, i + 1)]);
    uint32_t *device_table = upload(paged.table);
    for (uint32_t s = 0; s < paged.count; s++) {
        uint32_t rows = shapes[s][0], first = shapes[s][1];
        paged.host.push_back(
            sequence_t{ paged.rows, rows, first, paged.keys, device_table + pages[s] });
        for (uint32_t i = 0; i < rows; i++) paged.positions.push_back(first + i);
        paged.rows += rows;
        paged.keys += rows + first;
    }
    paged.sequences =
        (sequence_t *)memory_upload(paged.host.data(), paged.count * sizeof(sequence_t));
    return paged;
}

static size_t pool_bytes(const paged_t *paged)
{
    return paged->table.size() * paged->cache.block_stride * 2;
}

/* How many values of the pool differ from before. */
static size_t changed_values(const paged_t *paged, const std::vector<uint16_t> &before)
{
    std::vector<uint16_t> after(before.size());
    memory_download(after.data(), paged->cache.data, pool_bytes(paged));
    size_t changed = 0;
    for (size_t i = 0; i < before.size(); i++) changed += before[i] != after[i];
    return changed;
}

/* kv is part of wider rows, as the product of q_a and kv_a leaves it; `extra` rows belong to
 * nobody. */
static void check_kv_write(harness_t *self, const std::vector<std::vector<uint32_t>> &shapes,
                           uint32_t latent, uint32_t rope, uint32_t extra)
{
    uint32_t cols = latent + rope;
    paged_t paged = paged_new(self, shapes, latent, rope);
    tensor_t wide = tensor_random(self, DTYPE_BF16, paged.rows + extra, cols + 96, false),
             kv = wide;
    kv.data = (char *)wide.data + 96 * 2;
    kv.cols = cols;
    tensor_t weight = tensor_random(self, DTYPE_BF16, 1, latent, false);
    uint32_t longest = 1;
    for (uint32_t &position : paged.positions) longest = std::max(longest, position += 3);
    std::vector<uint32_t> positions = paged.positions;
    positions.resize(paged.rows + extra, 0);
    float *table = rope_table(longest + 1, rope);
    std::vector<uint16_t> before(pool_bytes(&paged) / 2);
    memory_download(before.data(), paged.cache.data, pool_bytes(&paged));
    int status = self->ops->kv_write(self->q, &paged.cache, &kv, &weight, 1e-6f, table,
                                     upload(positions), paged.sequences, paged.count);
    expect(self, status == 0, "kv_write", status, 0);
    queue_demand(self, "kv_write");
    tensor_t found = tensor_new(DTYPE_BF16, paged.rows, cols, false), latents = kv;
    latents.cols = latent;
    kv.rows = latents.rows = paged.rows;
    naive_t naive = naive_new(paged.rows, cols);
    double *factors = (double *)memory_new((paged.rows + 1) * sizeof *factors);
    LAUNCH(naive_cache_rows, (paged.count, 256), found, paged.cache, paged.sequences, true);
    LAUNCH(naive_factors, (paged.rows / 64 + 1, 64), factors, latents, 1e-6f);
    LAUNCH(naive_kv, NAIVE_LAUNCH(naive), naive, factors, kv, weight, table, upload(positions));
    expect_wanted(self, &found, &naive, kv_tolerance, "kv_write");
    size_t changed = changed_values(&paged, before);
    expect(self, changed <= (size_t)paged.rows * cols, "kv_write beyond its rows", (double)changed,
           (double)paged.rows * cols);
    memory_free_all();
}

static void check_kv_gather(harness_t *self, const std::vector<std::vector<uint32_t>> &shapes,
                            uint32_t latent, uint32_t rope, bool is_sharing)
{
    paged_t paged = paged_new(self, shapes, latent, rope);
    if (is_sharing) { /* the second sequence is an earlier chunk of the first */
        paged.host[1] = paged.host[0];
        paged.host[1].rows = 1;
        CUDA(cudaMemcpy(paged.sequences, paged.host.data(), paged.count * sizeof(sequence_t),
                        cudaMemcpyHostToDevice));
    }
    tensor_t latents = strided_new(DTYPE_BF16, paged.keys + 2, latent, latent + GAP);
    tensor_t ropes = strided_new(DTYPE_BF16, paged.keys + 2, rope, rope + GAP);
    tensor_t wanted = tensor_new(DTYPE_BF16, paged.keys + 2, latent + rope, false);
    int status =
        self->ops->kv_gather(self->q, &latents, &ropes, &paged.cache, paged.sequences, paged.count);
    expect(self, status == 0, "kv_gather", status, 0);
    queue_demand(self, "kv_gather");
    LAUNCH(naive_cache_rows, (paged.count, 256), wanted, paged.cache, paged.sequences, false);
    CUDA(cudaGetLastError());
    tensor_t wanted_latents = wanted, wanted_ropes = wanted;
    wanted_latents.cols = latent;
    wanted_ropes.cols = rope;
    wanted_ropes.data = (char *)wanted.data + latent * 2;
    expect(self, is_same_on_device(&latents, &wanted_latents), "kv_gather: latent", latent, 0);
    expect(self, is_same_on_device(&ropes, &wanted_ropes), "kv_gather: rope", rope, 0);
    memory_free_all();
}

static void check_copy_blocks(harness_t *self, uint32_t blocks, size_t block_bytes, uint32_t count)
{
    tensor_t pool = tensor_random(self, DTYPE_F32, 2 * blocks, (uint32_t)block_bytes / 4, false);
    char *target = (char *)memory_new(blocks * block_bytes);
    std::vector<uint32_t> from, to;
    for (uint32_t i = 0; i < count; i++) {
        from.push_back((i * 7 + 3) % (2 * blocks));
        to.push_back(blocks - 1 - i);
    }
    int status = self->ops->copy_blocks(self->q, target, pool.data, upload(to), upload(from), count,
                                        block_bytes);
    expect(self, status == 0, "copy_blocks", status, 0);
    queue_demand(self, "copy_blocks");
    std::vector<char> source(2 * blocks * block_bytes), found(blocks * block_bytes),
        wanted(blocks * block_bytes, (char)0xff);
    memory_download(source.data(), pool.data, source.size());
    memory_download(found.data(), target, found.size());
    for (uint32_t i = 0; i < count; i++)
        memcpy(wanted.data() + to[i] * block_bytes, source.data() + from[i] * block_bytes,
               block_bytes);
    expect(self, found == wanted, "copy_blocks", count, (double)block_bytes);
    memory_free_all();
}

static void check_refusals(harness_t *self)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, 2, 64, false), f32 = x;
    f32.dtype = DTYPE_F32;
    float *table = rope_table(2, 64);
    std::vector<uint32_t> positions(2, 0);
    expect(self, self->ops->rope(self->q, &x, 1, 64, 4, 16, table, upload(positions)) == EINVAL,
           "rope at an odd offset", 1, 0);
    expect(self, self->ops->rope(self->q, &x, 2, 64, 0, 64, table, upload(positions)) == EINVAL,
           "rope beyond the row", 1, 0);
    expect(self, self->ops->rope(self->q, &f32, 1, 64, 0, 64, table, upload(positions)) == EINVAL,
           "rope of F32", 1, 0);
    expect(self, self->ops->copy_blocks(self->q, table, table, NULL, NULL, 1, 24) == EINVAL,
           "copy_blocks of odd blocks", 1, 0);
    expect(self, self->ops->copy_blocks(self->q, table, table, NULL, NULL, 0, 32) == 0,
           "copy_blocks of none", 1, 0);
    memory_free_all();
}

void run_small_checks_kv(harness_t *self)
{
    static const rope_shape_t shapes[] = {
        { 1, 1, 64, 0, 64 }, { 5, 4, 192, 128, 64 }, { 3, 19, 24, 8, 16 }, { 2, 128, 192, 128, 64 }
    };
    for (const rope_shape_t &shape : shapes) check_rope(self, &shape);
    check_kv_write(self, { { 1, 0 } }, 512, 64, 0);
    check_kv_write(self, { { 1, 63 }, { 3, 126 }, { 1, 290 } }, 512, 64, 2);
    check_kv_write(self, { { 70, 60 }, { 0, 5 }, { 2, 0 } }, 64, 16, 1);
    check_kv_write(self, std::vector<std::vector<uint32_t>>(40, { 1, 9 }), 128, 64, 0);
    check_kv_gather(self, { { 1, 0 } }, 512, 64, false);
    check_kv_gather(self, { { 3, 126 }, { 1, 290 }, { 64, 0 } }, 512, 64, false);
    check_kv_gather(self, { { 20, 100 }, { 0, 0 }, { 5, 5 } }, 64, 16, true);
    check_copy_blocks(self, 5, 96, 4);
    check_copy_blocks(self, 3, 64 * 576 * 2, 3);
    check_refusals(self);
}

void run_checks_kv(harness_t *self)
{
    run_small_checks_kv(self);
    rope_shape_t shape = { 777, 128, 192, 128, 64 };
    check_rope(self, &shape);
    std::vector<std::vector<uint32_t>> many;
    for (uint32_t i = 0; i < 1100; i++)
        many.push_back({ random_below(self, 4), random_below(self, 200) });
    check_kv_write(self, many, 512, 64, 5);
    check_kv_gather(self, many, 512, 64, false);
    check_kv_write(self, { { 4096, 0 }, { 1000, 3000 } }, 512, 64, 0);
    check_kv_gather(self, { { 4096, 0 }, { 1000, 3000 } }, 512, 64, false);
    check_copy_blocks(self, 8, 61 * 64 * 576 * 2, 8);
}

/* ---- timings ---- */

struct timed_kv_t {
    harness_t *harness;
    paged_t paged;
    std::vector<tensor_t> x;
    tensor_t weight, latent, rope;
    float *table;
    uint32_t *positions, *from, *to;
    char *target;
    uint32_t blocks, variants;
};

static int run_rope(void *context, uint32_t variant)
{
    timed_kv_t *self = (timed_kv_t *)context;
    return self->harness->ops->rope(self->harness->q, &self->x[variant], 128, 192, 128, 64,
                                    self->table, self->positions);
}

static int run_kv_write(void *context, uint32_t variant)
{
    timed_kv_t *self = (timed_kv_t *)context;
    tensor_t kv = self->x[variant];
    kv.cols = 576;
    return self->harness->ops->kv_write(self->harness->q, &self->paged.cache, &kv, &self->weight,
                                        1e-6f, self->table, self->positions, self->paged.sequences,
                                        self->paged.count);
}

static int run_kv_gather(void *context, uint32_t variant)
{
    timed_kv_t *self = (timed_kv_t *)context;
    return self->harness->ops->kv_gather(self->harness->q, &self->latent, &self->rope,
                                         &self->paged.cache, self->paged.sequences,
                                         self->paged.count);
}

static int run_copy_blocks(void *context, uint32_t variant)
{
    timed_kv_t *self = (timed_kv_t *)context;
    return self->harness->ops->copy_blocks(self->harness->q, self->target, self->paged.cache.data,
                                           self->to, self->from, self->blocks,
                                           self->paged.cache.block_stride * 2);
}

static void time_kv(timed_kv_t *timed, timed_call_t call, const char *op, const char *shape,
                    double bytes)
{
    timing_t timing = {};
    timing.op = op;
    snprintf(timing.shape, sizeof timing.shape, "%s", shape);
    timing.us = time_call(timed->harness, call, timed, timed->variants);
    timing.bytes = bytes;
    report(timed->harness, &timing);
}

static void time_rows(harness_t *self, uint32_t sequences, uint32_t rows, uint32_t context)
{
    timed_kv_t timed = {};
    timed.harness = self;
    timed.paged = paged_new(
        self, std::vector<std::vector<uint32_t>>(sequences, { rows, context - rows }), 512, 64);
    uint32_t total = sequences * rows;
    timed.variants = total > 2000 ? 2 : 12;
    for (uint32_t i = 0; i < timed.variants; i++)
        timed.x.push_back(tensor_random(self, DTYPE_BF16, total, 128 * 192, false));
    timed.weight = tensor_random(self, DTYPE_BF16, 1, 512, false);
    timed.table = rope_table(context, 64);
    timed.positions = upload(timed.paged.positions);
    char shape[48];
    snprintf(shape, sizeof shape, "%u x 128 heads of 192", total);
    time_kv(&timed, run_rope, "rope", shape, total * 128.0 * 64 * 4);
    snprintf(shape, sizeof shape, "%u sequences of %u rows", sequences, rows);
    time_kv(&timed, run_kv_write, "kv_write", shape, total * 576.0 * 4);
    memory_free_all();
}

static void time_copies(harness_t *self)
{
    timed_kv_t timed = {};
    timed.harness = self;
    timed.variants = 1;
    timed.paged = paged_new(self, std::vector<std::vector<uint32_t>>(8, { 4096, 12288 }), 512, 64);
    timed.latent = tensor_new(DTYPE_BF16, timed.paged.keys, 512, false);
    timed.rope = tensor_new(DTYPE_BF16, timed.paged.keys, 64, false);
    time_kv(&timed, run_kv_gather, "kv_gather", "8 sequences of 16384 keys",
            timed.paged.keys * 576.0 * 4);
    memory_free_all();
    timed.paged = paged_new(self, std::vector<std::vector<uint32_t>>(4, { 4096, 0 }), 512, 64);
    timed.latent = tensor_new(DTYPE_BF16, timed.paged.keys, 512, false);
    timed.rope = tensor_new(DTYPE_BF16, timed.paged.keys, 64, false);
    time_kv(&timed, run_kv_gather, "kv_gather", "4 sequences of 4096 keys",
            timed.paged.keys * 576.0 * 4);
    memory_free_all();
    tensor_t pool = tensor_random(self, DTYPE_BF16, 64 * 61 * 64, 576, false);
    timed.paged.cache.data = pool.data;
    timed.paged.cache.block_stride = 61 * 64 * 576;
    timed.blocks = 64;
    std::vector<uint32_t> from, to;
    for (uint32_t i = 0; i < 64; i++) {
        from.push_back(i);
        to.push_back((i * 5 + 3) % 64);
    }
    timed.from = upload(from);
    timed.to = upload(to);
    timed.target = (char *)memory_new((size_t)64 * 61 * 64 * 576 * 2);
    time_kv(&timed, run_copy_blocks, "copy_blocks", "64 blocks of 4.5 MB",
            64.0 * 61 * 64 * 576 * 4);
    memory_free_all();
}

void run_timings_kv(harness_t *self)
{
    time_rows(self, 128, 1, 4989);
    time_rows(self, 4, 4096, 4096);
    time_copies(self);
}
