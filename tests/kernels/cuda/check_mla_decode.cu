/* tests/kernels/cuda/check_mla_decode.cu - checks and timings of absorbed attention over the paged
 * cache. */
#include "families.h"
#include "harness.cuh"
#include "naive_mla_decode.cuh"

#include "../../../kernels/cuda/mla_split.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

/* V3's, YaRN included: scores of about N(0, 3.2) for random inputs. */
static const float scale = 0.13523378F;

/* Tolerances of FlashMLA's tests, whose values are a tenth of ours: an element is good when either
 * holds. */
static const double absolute_max = 8e-3, relative_max = 2.01 / 128, cosine_max = 5e-6;

struct length_t {
    uint32_t rows, first_position;
};

/* A batch on the device, and what the host needs to know of it. */
struct batch_t {
    std::vector<sequence_t> sequences; /* blocks: on the device */
    std::vector<std::vector<uint32_t>> tables;
    sequence_t *device_sequences;
    tensor_t query, out;
    cache_t cache;
    size_t cache_elements;
    heads_t heads;
    uint32_t key_max;
};

struct shape_t {
    uint32_t heads, layers, gap; /* elements between rows */
};

/* Like tensor_random, with a gap of NaN between rows. */
static tensor_t rows_random(harness_t *self, uint32_t rows, uint32_t cols, uint32_t gap)
{
    tensor_t x = tensor_new(DTYPE_BF16, rows, cols + gap, false),
             values = tensor_random(self, DTYPE_BF16, rows, cols, false);
    if (rows)
        CUDA(cudaMemcpy2D(x.data, (cols + gap) * 2, values.data, cols * 2, cols * 2, rows,
                          cudaMemcpyDeviceToDevice));
    x.cols = cols;
    return x;
}

static void poison_out(batch_t *batch)
{
    memory_poison(batch->out.data, (size_t)batch->out.rows * batch->out.stride * 2);
}

/* Blocks of the pool in random order; what no sequence reaches is NaN. */
static void fill_tables(harness_t *self, batch_t *batch, uint32_t block_count)
{
    std::vector<uint32_t> free(block_count);
    for (uint32_t i = 0; i < block_count; i++) free[i] = i;
    for (uint32_t i = block_count; i > 1; i--) std::swap(free[i - 1], free[random_below(self, i)]);
    uint32_t next = 0;
    for (sequence_t &sequence : batch->sequences) {
        uint32_t keys = sequence.rows ? sequence.first_position + sequence.rows : 0;
        std::vector<uint32_t> table(free.begin() + next,
                                    free.begin() + next + mla_page_count(keys));
        next += mla_page_count(keys);
        if (keys % 64 != 0)
            CUDA(cudaMemset((char *)batch->cache.data +
                                (table.back() * batch->cache.block_stride +
                                 (size_t)(batch->cache.layer * 64 + keys % 64) * 576) *
                                    2,
                            0xff, (64 - keys % 64) * 576 * 2));
        sequence.blocks =
            table.empty() ? nullptr : (uint32_t *)memory_upload(table.data(), table.size() * 4);
        batch->tables.push_back(table);
    }
}

static batch_t batch_new(harness_t *self, const shape_t *shape,
                         const std::vector<length_t> &lengths)
{
    batch_t batch = {};
    batch.heads = { shape->heads, 128, 64, 128, 512, scale, 0 };
    uint32_t rows = 0, blocks = 2;
    for (const length_t &length : lengths) {
        sequence_t sequence = { rows, length.rows, length.first_position, 0, nullptr };
        batch.sequences.push_back(sequence);
        rows += length.rows;
        if (length.rows == 0) continue;
        blocks += mla_page_count(length.first_position + length.rows);
        batch.key_max = std::max(batch.key_max, length.first_position + length.rows);
    }
    uint32_t block_cols = shape->layers * 64 * 576;
    tensor_t pool = tensor_random(self, DTYPE_BF16, blocks, block_cols, false);
    batch.cache = {
        pool.data, DTYPE_BF16, shape->layers, shape->layers - 1, 64, 512, 64, block_cols
    };
    batch.cache_elements = (size_t)blocks * block_cols;
    fill_tables(self, &batch, blocks);
    batch.device_sequences = (sequence_t *)memory_upload(
        batch.sequences.data(), batch.sequences.size() * sizeof(sequence_t));
    batch.query = rows_random(self, rows, shape->heads * 576, shape->gap);
    batch.out = tensor_new(DTYPE_BF16, rows, shape->heads * 512 + shape->gap, false);
    batch.out.cols = shape->heads * 512;
    return batch;
}

static int call(harness_t *self, const batch_t *batch)
{
    return self->ops->mla_decode(self->q, &batch->out, &batch->query, &batch->cache, &batch->heads,
                                 batch->device_sequences, (uint32_t)batch->sequences.size());
}

static void run(harness_t *self, batch_t *batch, const char *what)
{
    poison_out(batch);
    expect(self, call(self, batch) == 0, what, 1, 0);
    queue_demand(self, what);
}

/* What lies between rows is still poison. */
static void check_gaps(harness_t *self, const batch_t *batch, const char *what)
{
    tensor_t all = batch->out;
    all.cols = (uint32_t)all.stride;
    tensor_t host = tensor_to_host(&all, false);
    uint32_t touched = 0;
    for (uint32_t r = 0; r < host.rows; r++)
        for (uint32_t c = batch->out.cols; c < host.cols; c++)
            touched += ((uint16_t *)host.data)[(size_t)r * host.cols + c] != 0xffff;
    expect(self, touched == 0, what, touched, 0);
    tensor_host_free(&host);
}

/* FlashMLA's measures against the truth, in F32. */
static void check_close(harness_t *self, const tensor_t *found, const tensor_t *truth,
                        const char *what)
{
    double worst = 0;
    for (uint32_t r = 0; r < truth->rows; r++)
        for (uint32_t c = 0; c < truth->cols; c++) {
            double x = tensor_host_value(found, r, c), y = tensor_host_value(truth, r, c);
            double error = fabs(x - y);
            double share = std::min(error / absolute_max, error / (fabs(y) * relative_max + 1e-30));
            if (!(share <= worst)) worst = isnan(share) ? INFINITY : share;
        }
    char text[128];
    snprintf(text, sizeof text, "%s: worst element", what);
    expect(self, worst <= 1, text, worst, 1);
    /* With our wide scores one key may have most of a head's weight, which BF16 rounds by up to
     * 2^-9; FlashMLA's bound is a mean over many heads. */
    double allowed = truth->rows * truth->cols < 32 * 512 ? 2 * cosine_max : cosine_max;
    double cosine = difference_cosine(found, truth);
    snprintf(text, sizeof text, "%s: cosine", what);
    expect(self, cosine <= allowed, text, cosine, allowed);
}

static tensor_t naive(batch_t *batch)
{
    tensor_t truth = tensor_new(DTYPE_F32, batch->out.rows, batch->out.cols, false);
    uint32_t count = (uint32_t)batch->sequences.size();
    double *scores = nullptr;
    CUDA(cudaMalloc((void **)&scores,
                    (size_t)count * batch->heads.heads * batch->key_max * sizeof(double)));
    LAUNCH(naive_mla_decode, (dim3(batch->heads.heads, count), NAIVE_MLA_THREADS), truth,
           batch->query, batch->cache, batch->heads.scale, batch->device_sequences, scores,
           batch->key_max);
    CUDA(cudaGetLastError());
    tensor_t host = tensor_to_host(&truth, false);
    CUDA(cudaFree(scores));
    return host;
}

static tensor_t judge(harness_t *self, const batch_t *batch)
{
    tensor_t query = tensor_to_host(&batch->query, false),
             truth = tensor_host_new(DTYPE_F32, batch->out.rows, batch->out.cols);
    std::vector<uint16_t> pool(batch->cache_elements);
    memory_download(pool.data(), batch->cache.data, pool.size() * 2);
    cache_t cache = batch->cache;
    cache.data = pool.data();
    std::vector<sequence_t> sequences;
    for (size_t s = 0; s < batch->sequences.size(); s++) {
        if (batch->sequences[s].rows == 0) continue;
        sequences.push_back(batch->sequences[s]);
        sequences.back().blocks = batch->tables[s].data();
    }
    expect(self,
           ops_judge.mla_decode(self->cpu, &truth, &query, &cache, &batch->heads, sequences.data(),
                                (uint32_t)sequences.size()) == 0,
           "judge", 1, 0);
    tensor_host_free(&query);
    return truth;
}

/* Room for three totals: rows of several pieces wait for one another. */
static const size_t little_scratch = 400000;

/* One batch against a truth, thrice: the second call finds what the first left in scratch and
 * counters, the third has little scratch, and both must give the same bits. */
static void check_batch(harness_t *self, const shape_t *shape, const std::vector<length_t> &lengths,
                        bool has_judge, const char *what)
{
    batch_t batch = batch_new(self, shape, lengths);
    run(self, &batch, what);
    tensor_t found = tensor_to_host(&batch.out, false), truth = naive(&batch);
    check_close(self, &found, &truth, what);
    if (has_judge) {
        tensor_t judged = judge(self, &batch);
        check_close(self, &truth, &judged, "naive by the judge");
        tensor_host_free(&judged);
    }
    if (shape->gap) check_gaps(self, &batch, what);
    run(self, &batch, what);
    tensor_t again = tensor_to_host(&batch.out, false);
    char text[128];
    snprintf(text, sizeof text, "%s: second call differs", what);
    expect(self, is_same_bits(&found, &again), text, 1, 0);
    tensor_host_free(&again);
    size_t scratch = self->q->scratch_bytes;
    self->q->scratch_bytes = little_scratch;
    run(self, &batch, what);
    self->q->scratch_bytes = scratch;
    again = tensor_to_host(&batch.out, false);
    snprintf(text, sizeof text, "%s: with little scratch differs", what);
    expect(self, is_same_bits(&found, &again), text, 1, 0);
    tensor_host_free(&found);
    tensor_host_free(&again);
    tensor_host_free(&truth);
    memory_free_all();
}

/* With leave to follow the batch: blocks that do not share units, where rows are many.  Sums then
 * have another order, so of thousands of results some have other bits. */
static void check_following(harness_t *self, const shape_t *shape,
                            const std::vector<length_t> &lengths, const char *what)
{
    batch_t batch = batch_new(self, shape, lengths);
    batch.heads.may_follow_batch = 1;
    run(self, &batch, what);
    tensor_t found = tensor_to_host(&batch.out, false), truth = naive(&batch);
    check_close(self, &found, &truth, what);
    run(self, &batch, what);
    tensor_t again = tensor_to_host(&batch.out, false);
    char text[128];
    snprintf(text, sizeof text, "%s: second call differs", what);
    expect(self, is_same_bits(&found, &again), text, 1, 0);
    batch.heads.may_follow_batch = 0;
    run(self, &batch, what);
    tensor_t alone = tensor_to_host(&batch.out, false);
    uint64_t units = batch.query.rows * (uint64_t)((batch.heads.heads + 63) / 64);
    int are_many = units * 10 >= (uint64_t)self->q->sm_count * 9;
    snprintf(text, sizeof text, "%s: the flag %s", what,
             are_many ? "does nothing" : "changes bits");
    expect(self, is_same_bits(&found, &alone) != are_many, text, are_many, 0);
    tensor_host_free(&alone);
    tensor_host_free(&found);
    tensor_host_free(&again);
    tensor_host_free(&truth);
    memory_free_all();
}

/* Each row alone in its own call gives the same bits as in the batch. */
static void check_alone(harness_t *self, const shape_t *shape, const std::vector<length_t> &lengths)
{
    batch_t batch = batch_new(self, shape, lengths);
    run(self, &batch, "batch of rows");
    tensor_t together = tensor_to_host(&batch.out, false);
    for (const sequence_t &sequence : batch.sequences)
        for (uint32_t i = 0; i < sequence.rows; i++) {
            sequence_t own = sequence;
            own.first_row += i;
            own.first_position += i;
            own.rows = 1;
            poison_out(&batch);
            CUDA(cudaMemcpy(batch.device_sequences, &own, sizeof own, cudaMemcpyHostToDevice));
            expect(self,
                   self->ops->mla_decode(self->q, &batch.out, &batch.query, &batch.cache,
                                         &batch.heads, batch.device_sequences, 1) == 0,
                   "row alone", 1, 0);
            queue_demand(self, "row alone");
            tensor_t alone = tensor_to_host(&batch.out, false);
            size_t at = (size_t)own.first_row * alone.cols * 2;
            expect(self,
                   memcmp((char *)alone.data + at, (char *)together.data + at, alone.cols * 2) == 0,
                   "row alone has other bits", own.first_position, 0);
            tensor_host_free(&alone);
        }
    tensor_host_free(&together);
    memory_free_all();
}

static void check_refusals(harness_t *self)
{
    const shape_t shape = { 4, 1, 0 };
    batch_t batch = batch_new(self, &shape, { { 1, 10 } }), changed = batch;
    changed.cache.block_tokens = 32;
    expect(self, call(self, &changed) == EINVAL, "blocks of 32", 0, EINVAL);
    changed = batch;
    changed.query.dtype = DTYPE_F32;
    expect(self, call(self, &changed) == EINVAL, "query in F32", 0, EINVAL);
    changed = batch;
    changed.query.stride += 4;
    expect(self, call(self, &changed) == EINVAL, "rows not aligned", 0, EINVAL);
    changed = batch;
    changed.out.rows = changed.query.rows = 0;
    expect(self, call(self, &changed) == 0, "no rows", 1, 0);
    memory_free_all();
}

void run_small_checks_mla_decode(harness_t *self)
{
    const shape_t tiny = { 4, 2, 64 };
    check_refusals(self);
    check_batch(self, &tiny, { { 1, 0 }, { 0, 0 }, { 2, 63 }, { 1, 128 }, { 1, 300 } }, true,
                "tiny, small");
    check_following(self, &tiny, { { 1, 0 }, { 2, 640 }, { 1, 63 }, { 4, 127 }, { 1, 575 } },
                    "tiny, following its batch");
    check_alone(self, &tiny,
                { { 1, 700 }, { 2, 640 }, { 1, 63 }, { 2, 577 }, { 1, 575 }, { 2, 800 } });
}

/* Random lengths up to key_max; every fourth sequence is padding. */
static std::vector<length_t> random_lengths(harness_t *self, uint32_t count, uint32_t row_max,
                                            uint32_t key_max)
{
    std::vector<length_t> lengths;
    for (uint32_t s = 0; s < count; s++)
        lengths.push_back({ s % 4 == 3 ? 0 : 1 + random_below(self, row_max),
                            random_below(self, key_max - row_max) });
    return lengths;
}

void run_checks_mla_decode(harness_t *self)
{
    run_small_checks_mla_decode(self);
    const shape_t tiny = { 4, 2, 0 }, tp8 = { 16, 1, 8 }, half = { 64, 1, 0 }, odd = { 100, 1, 32 },
                  v3 = { 128, 1, 0 };
    check_batch(self, &tiny, { { 1, 1000 }, { 4, 130 }, { 1, 127 }, { 1, 191 } }, true, "tiny");
    check_batch(self, &tp8, random_lengths(self, 30, 4, 2000), true, "16 heads");
    check_batch(self, &half, random_lengths(self, 150, 2, 1500), false, "64 heads");
    check_batch(self, &odd, random_lengths(self, 9, 3, 3000), false, "100 heads");
    check_batch(self, &v3, random_lengths(self, 100, 2, 5000), false, "V3, random lengths");
    check_batch(self, &v3, std::vector<length_t>(32, { 1, 4095 }), false, "V3, 32 x 4096");
    /* Rows of several pieces, one of which crosses from one to two. */
    check_batch(self, &v3, { { 1, 40000 }, { 2, 8191 }, { 1, 20000 }, { 4, 8190 }, { 1, 5 } },
                false, "V3, long");
    check_batch(self, &tiny, { { 1, 163839 }, { 2, 100000 } }, false, "tiny, longest");
    check_batch(self, &tiny, std::vector<length_t>(1024, { 1, 70 }), false, "tiny, 1024 sequences");
    check_following(self, &v3, random_lengths(self, 120, 2, 5000), "V3, following its batch");
    check_following(self, &v3, random_lengths(self, 90, 2, 20000), "V3, long, following its batch");
    std::vector<length_t> many = random_lengths(self, 120, 2, 9000);
    many.push_back({ 1, 8700 });
    check_alone(self, &v3, many);
    check_alone(self, &v3,
                { { 1, 20000 }, { 2, 8191 }, { 1, 0 }, { 1, 4989 }, { 1, 64 }, { 2, 777 } });
}

/* ---- timings ---- */

struct rotation_t {
    harness_t *self;
    std::vector<batch_t> batches;
};

static int timed_call(void *context, uint32_t variant)
{
    rotation_t *rotation = (rotation_t *)context;
    return call(rotation->self, &rotation->batches[variant]);
}

static void time_batch(harness_t *self, const char *shape, const std::vector<length_t> &lengths,
                       double anchor_us, int may_follow_batch)
{
    const shape_t v3 = { 128, 1, 0 };
    rotation_t rotation = { self, {} };
    for (int i = 0; i < 2; i++) rotation.batches.push_back(batch_new(self, &v3, lengths));
    for (batch_t &batch : rotation.batches) batch.heads.may_follow_batch = may_follow_batch;
    timing_t timing = {};
    timing.op = may_follow_batch ? "mla_decode*" : "mla_decode";
    snprintf(timing.shape, sizeof timing.shape, "%s", shape);
    timing.anchor_us = anchor_us;
    for (const length_t &length : lengths) {
        double keys = length.first_position + length.rows;
        timing.bytes += keys * 1152 + length.rows * 128.0 * (576 + 512) * 2;
        timing.operations += 2.0 * 128 * length.rows * keys * (576 + 512);
    }
    timing.us = time_call(self, timed_call, &rotation, 2);
    report(self, &timing);
    memory_free_all();
}

void run_timings_mla_decode(harness_t *self)
{
    static const struct {
        uint32_t count, rows, keys;
        double anchor_us;
    } table[] = {
        { 32, 1, 4096, 75.6 }, { 64, 1, 4096, 127 },  { 128, 1, 4096, 251 }, { 64, 2, 4096, 220 },
        { 128, 2, 4096, 448 }, { 32, 1, 4989, 91 },   { 64, 1, 4989, 153 },  { 128, 1, 4989, 300 },
        { 64, 2, 4989, 265 },  { 128, 2, 4989, 537 }, { 32, 1, 8192, 135 },  { 64, 1, 8192, 244 },
        { 128, 1, 8192, 519 }, { 64, 2, 8192, 437 },  { 128, 2, 8192, 853 },
    };
    for (const auto &line : table) {
        char shape[64];
        snprintf(shape, sizeof shape, "%u x %u rows, %u keys", line.count, line.rows, line.keys);
        for (int may_follow_batch = 0; may_follow_batch < 2; may_follow_batch++)
            time_batch(self, shape,
                       std::vector<length_t>(line.count, { line.rows, line.keys - line.rows }),
                       line.anchor_us, may_follow_batch);
    }
    time_batch(self, "1 x 1 rows, 4096 keys", { { 1, 4095 } }, 0, 0);
    time_batch(self, "1 x 1 rows, 163840 keys", { { 1, 163839 } }, 0, 0);
    std::vector<length_t> lengths;
    for (int s = 0; s < 128; s++) lengths.push_back({ 1, 500 + random_below(self, 8978) });
    for (int may_follow_batch = 0; may_follow_batch < 2; may_follow_batch++)
        time_batch(self, "128 x 1 rows, 500..9477 keys", lengths, 0, may_follow_batch);
}
