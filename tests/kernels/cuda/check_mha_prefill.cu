/* tests/kernels/cuda/check_mha_prefill.cu - checks and timings of attention over prompts. */
#include "families.h"
#include "harness.cuh"
#include "naive_mha_prefill.cuh"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

static const float spread_scale = 0.08f; /* below: scores of random rows are about N(0, 1) */
static const float v3_scale = 0.1352f;   /* 192^-0.5 and YaRN's mscale squared */

/* ---- one step: its sequences, tensors on the device ---- */

struct piece_t {
    uint32_t rows, first_position;
};

struct step_t {
    std::vector<sequence_t> sequences;
    const sequence_t *device_sequences;
    tensor_t query, kv, k_rope, out;
    heads_t heads;
};

enum { GAP_ROWS = 3, GAP_COLS = 8 };

/* A tensor whose rows lie `gap` columns further apart than they are long. */
static tensor_t random_rows(harness_t *self, uint32_t rows, uint32_t cols, uint32_t gap)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, cols + gap, false);
    x.cols = cols;
    return x;
}

static void poison_rows(const tensor_t *x, uint32_t first, uint32_t count)
{
    if (count)
        CUDA(cudaMemset((char *)x->data + (size_t)first * x->stride * 2, 0xff,
                        (size_t)count * x->stride * 2));
}

static heads_t heads_of(uint32_t heads, float scale)
{
    heads_t result = { heads, 128, 64, 128, 512, scale, 0 };
    return result;
}

/* has_gaps: rows of no sequence between the sequences, NaN in query, kv and k_rope, and columns
 * between rows. */
static step_t step_new(harness_t *self, const std::vector<piece_t> &pieces, uint32_t heads,
                       float scale, bool has_gaps)
{
    step_t step = {};
    uint32_t gap = has_gaps ? GAP_ROWS : 0, rows = gap, keys = gap;
    uint32_t gap_cols = has_gaps ? GAP_COLS : 0;
    for (const piece_t &piece : pieces) {
        sequence_t sequence = { rows, piece.rows, piece.first_position, keys, nullptr };
        step.sequences.push_back(sequence);
        rows += piece.rows + gap;
        keys += piece.first_position + piece.rows + gap;
    }
    step.heads = heads_of(heads, scale);
    step.query = random_rows(self, rows, heads * 192, gap_cols);
    step.kv = random_rows(self, keys, heads * 256, gap_cols);
    step.k_rope = random_rows(self, keys, 64, gap_cols);
    step.out = tensor_new(DTYPE_BF16, rows, heads * 128 + gap_cols, false);
    step.out.cols = heads * 128;
    for (uint32_t s = 0; has_gaps && s <= pieces.size(); s++) {
        bool is_end = s == pieces.size();
        poison_rows(&step.query, (is_end ? rows : step.sequences[s].first_row) - gap, gap);
        poison_rows(&step.kv, (is_end ? keys : step.sequences[s].first_key) - gap, gap);
        poison_rows(&step.k_rope, (is_end ? keys : step.sequences[s].first_key) - gap, gap);
    }
    step.device_sequences = (const sequence_t *)memory_upload(
        step.sequences.data(), step.sequences.size() * sizeof(sequence_t));
    return step;
}

static void step_run(harness_t *self, const step_t *step, const char *what)
{
    int status = self->ops->mha_prefill(self->q, &step->out, &step->query, &step->kv, &step->k_rope,
                                        &step->heads, step->device_sequences,
                                        (uint32_t)step->sequences.size());
    expect(self, status == 0, what, status, 0);
    queue_demand(self, what);
}

/* ---- comparing ---- */

/* Rounding weights and results to BF16, 2^-8 each, costs at most 2^-7 of the sum of absolute
 * values. FlashMLA's limits hold for rows that average over many keys of like weight; they are
 * narrower there. */
struct mismatch_t {
    double bound, strict, xx, yy, xy;
};

static void mismatch_add(mismatch_t *self, double found, double wanted, double magnitude,
                         bool is_spread)
{
    double off = fabs(found - wanted);
    if (!isfinite(found)) off = INFINITY;
    self->bound = fmax(self->bound, off / (magnitude * 0x1p-7 + 1e-6));
    if (is_spread)
        self->strict = fmax(self->strict, fmin(off / 8e-4, off / fabs(wanted) / (2.01 / 128)));
    self->xx += found * found;
    self->yy += wanted * wanted;
    self->xy += found * wanted;
}

static void mismatch_expect(harness_t *self, const mismatch_t *mismatch, const char *what)
{
    double cosine = 1 - 2 * mismatch->xy / (mismatch->xx + mismatch->yy);
    char text[128];
    snprintf(text, sizeof text, "%s, error over 2^-7 of the magnitude", what);
    expect(self, mismatch->bound <= 1.02, text, mismatch->bound, 1.02);
    snprintf(text, sizeof text, "%s, error over FlashMLA's limits", what);
    expect(self, mismatch->strict <= 1, text, mismatch->strict, 1);
    snprintf(text, sizeof text, "%s, cosine", what);
    expect(self, cosine <= 5e-6, text, cosine, 5e-6);
}

/* At most `limit` rows of each sequence against the naive kernel: its first and last ones and some
 * between. */
static void compare_naive(harness_t *self, const step_t *step, uint32_t limit, const char *what)
{
    std::vector<naive_row_t> rows;
    uint32_t keys_max = 0, heads = step->heads.heads;
    for (const sequence_t &sequence : step->sequences) {
        uint32_t count = std::min(limit, sequence.rows);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t at = i;
            if (sequence.rows > limit && i >= limit / 4)
                at = i < limit / 2 ? sequence.rows - 1 - (i - limit / 4)
                                   : random_below(self, sequence.rows);
            uint32_t keys = sequence.first_position + at + 1;
            rows.push_back({ sequence.first_row + at, sequence.first_key, keys });
            keys_max = std::max(keys_max, keys);
        }
    }
    size_t count = rows.size() * heads * 128;
    float *wanted = (float *)memory_new(count * 4), *magnitude = (float *)memory_new(count * 4);
    naive_prefill_t x = { (__nv_bfloat16 *)step->query.data,
                          (__nv_bfloat16 *)step->kv.data,
                          (__nv_bfloat16 *)step->k_rope.data,
                          step->query.stride,
                          step->kv.stride,
                          step->k_rope.stride,
                          heads,
                          step->heads.scale };
    CUDA(cudaFuncSetAttribute(naive_mha_prefill, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              (int)(keys_max * sizeof(double))));
    LAUNCH(naive_mha_prefill, (dim3((unsigned)rows.size(), heads), 128, keys_max * sizeof(double)),
           x, (naive_row_t *)memory_upload(rows.data(), rows.size() * sizeof(naive_row_t)), wanted,
           magnitude);
    CUDA(cudaGetLastError());
    std::vector<float> host_wanted(count), host_magnitude(count);
    std::vector<__nv_bfloat16> found(heads * 128);
    memory_download(host_wanted.data(), wanted, count * 4);
    memory_download(host_magnitude.data(), magnitude, count * 4);
    mismatch_t mismatch = {};
    for (size_t r = 0; r < rows.size(); r++) {
        memory_download(found.data(),
                        (__nv_bfloat16 *)step->out.data + (size_t)rows[r].row * step->out.stride,
                        heads * 256);
        for (size_t i = 0; i < heads * 128; i++)
            mismatch_add(&mismatch, (double)__bfloat162float(found[i]),
                         (double)host_wanted[r * heads * 128 + i],
                         (double)host_magnitude[r * heads * 128 + i],
                         rows[r].keys >= 1024 && step->heads.scale < spread_scale);
    }
    mismatch_expect(self, &mismatch, what);
}

/* All rows against the judge; sequences lie in host memory for it. */
static void compare_judge(harness_t *self, const step_t *step, const char *what)
{
    tensor_t query = tensor_to_host(&step->query, false), kv = tensor_to_host(&step->kv, false),
             rope = tensor_to_host(&step->k_rope, false), out = tensor_to_host(&step->out, false),
             wanted = tensor_host_new(DTYPE_F32, step->out.rows, step->out.cols);
    int status = ops_judge.mha_prefill(self->cpu, &wanted, &query, &kv, &rope, &step->heads,
                                       step->sequences.data(), (uint32_t)step->sequences.size());
    expect(self, status == 0, "the judge's mha_prefill", status, 0);
    mismatch_t mismatch = {};
    for (const sequence_t &sequence : step->sequences)
        for (uint32_t i = 0; i < sequence.rows; i++)
            for (uint32_t c = 0; c < out.cols; c++)
                mismatch_add(&mismatch, (double)tensor_host_value(&out, sequence.first_row + i, c),
                             (double)tensor_host_value(&wanted, sequence.first_row + i, c), 3.0,
                             false);
    mismatch_expect(self, &mismatch, what);
    for (tensor_t *x : { &query, &kv, &rope, &out, &wanted }) tensor_host_free(x);
}

/* out was all NaN, and still is where no row of a sequence lies. */
static void expect_rest_untouched(harness_t *self, const step_t *step, const char *what)
{
    std::vector<uint16_t> out((size_t)step->out.rows * step->out.stride);
    std::vector<char> is_written(step->out.rows, 0);
    memory_download(out.data(), step->out.data, out.size() * 2);
    for (const sequence_t &sequence : step->sequences)
        for (uint32_t i = 0; i < sequence.rows; i++) is_written[sequence.first_row + i] = 1;
    size_t wrong = 0;
    for (uint32_t r = 0; r < step->out.rows; r++)
        for (uint32_t c = 0; c < step->out.stride; c++)
            if (!is_written[r] || c >= step->out.cols)
                wrong += out[r * step->out.stride + c] != 0xffff;
    expect(self, wrong == 0, what, (double)wrong, 0);
}

static tensor_t rows_of(const tensor_t *x, uint32_t first, uint32_t rows)
{
    tensor_t part = *x;
    part.data = (char *)x->data + (size_t)first * x->stride * 2;
    part.rows = rows;
    return part;
}

/* ---- checks ---- */

static void check_against_judge(harness_t *self, const std::vector<piece_t> &pieces, uint32_t heads,
                                float scale, bool has_gaps, const char *what)
{
    step_t step = step_new(self, pieces, heads, scale, has_gaps);
    step_run(self, &step, what);
    compare_judge(self, &step, what);
    compare_naive(self, &step, 8, what);
    expect_rest_untouched(self, &step, what);
    memory_free_all();
}

/* A prompt in one piece and cut into chunks, alone and among others, gives the same bits. */
static void check_cuts(harness_t *self, uint32_t heads, uint32_t rows, uint32_t prefix,
                       const std::vector<uint32_t> &cuts, const char *what)
{
    step_t step = step_new(self, { { 70, 200 }, { rows, prefix }, { 300, 1 } }, heads, 0.3f, true);
    step_run(self, &step, what);
    sequence_t whole = step.sequences[1];
    tensor_t wanted_part = rows_of(&step.out, whole.first_row, rows);
    tensor_t wanted = tensor_to_host(&wanted_part, false);
    std::vector<sequence_t> chunks;
    for (size_t i = 0; i <= cuts.size(); i++) {
        uint32_t begin = i ? cuts[i - 1] : 0, end = i < cuts.size() ? cuts[i] : rows;
        chunks.push_back(
            { whole.first_row + begin, end - begin, prefix + begin, whole.first_key, nullptr });
    }
    std::swap(chunks.front(), chunks.back());
    step.sequences = chunks;
    step.device_sequences =
        (const sequence_t *)memory_upload(chunks.data(), chunks.size() * sizeof(sequence_t));
    memory_poison(step.out.data, (size_t)step.out.rows * step.out.stride * 2);
    step_run(self, &step, what);
    tensor_t found = tensor_to_host(&wanted_part, false);
    expect(self, is_same_bits(&found, &wanted), what, 0, 0);
    expect_rest_untouched(self, &step, what);
    tensor_host_free(&found);
    tensor_host_free(&wanted);
    memory_free_all();
}

/* Scores grow along the keys, so that the reference of the weights must move again and again. */
static void check_growing(harness_t *self)
{
    step_t step = step_new(self, { { 1500, 0 } }, 4, 0.1f, true);
    tensor_t kv = tensor_to_host(&step.kv, false), query = tensor_to_host(&step.query, false);
    for (uint32_t r = 0; r < query.rows; r++)
        for (uint32_t h = 0; h < 4; h++)
            ((__nv_bfloat16 *)query.data)[(size_t)r * query.stride + h * 192] = 10.0f;
    for (uint32_t r = 0; r < kv.rows; r++)
        for (uint32_t h = 0; h < 4; h++)
            ((__nv_bfloat16 *)kv.data)[(size_t)r * kv.stride + h * 256] = (float)r * 0.2f;
    CUDA(cudaMemcpy2D(step.query.data, step.query.stride * 2, query.data, query.stride * 2,
                      query.cols * 2, query.rows, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy2D(step.kv.data, step.kv.stride * 2, kv.data, kv.stride * 2, kv.cols * 2,
                      kv.rows, cudaMemcpyHostToDevice));
    tensor_host_free(&kv);
    tensor_host_free(&query);
    step_run(self, &step, "growing scores");
    compare_naive(self, &step, 200, "growing scores");
    memory_free_all();
}

static void check_refusals(harness_t *self)
{
    step_t step = step_new(self, { { 4, 0 } }, 2, 0.1f, false);
    auto refused = [&](const step_t *x, const char *what) {
        int status = self->ops->mha_prefill(self->q, &x->out, &x->query, &x->kv, &x->k_rope,
                                            &x->heads, x->device_sequences, 1);
        expect(self, status == EINVAL, what, status, EINVAL);
    };
    step_t other = step;
    other.heads.nope = 64;
    refused(&other, "mha_prefill with other columns");
    other = step;
    other.query.dtype = DTYPE_F32;
    refused(&other, "mha_prefill of F32");
    other = step;
    other.kv.stride += 1;
    refused(&other, "mha_prefill of rows not aligned");
    other = step;
    other.out.rows -= 1;
    refused(&other, "mha_prefill with too few rows for results");
    other = step;
    other.query.rows = other.out.rows = 0;
    int status = self->ops->mha_prefill(self->q, &other.out, &other.query, &other.kv, &other.k_rope,
                                        &other.heads, other.device_sequences, 1);
    expect(self, status == 0, "mha_prefill of no rows", status, 0);
    memory_free_all();
}

void run_small_checks_mha_prefill(harness_t *self)
{
    check_against_judge(self, { { 130, 0 }, { 0, 3 }, { 7, 125 }, { 1, 0 } }, 2, v3_scale, true,
                        "mha_prefill, small");
}

void run_checks_mha_prefill(harness_t *self)
{
    run_small_checks_mha_prefill(self);
    check_refusals(self);
    for (uint32_t heads : { 1u, 4u, 5u })
        for (float scale : { v3_scale, 1.0f })
            check_against_judge(self,
                                { { 1, 0 },
                                  { 63, 0 },
                                  { 64, 5 },
                                  { 0, 64 },
                                  { 65, 64 },
                                  { 127, 1 },
                                  { 129, 300 },
                                  { 5, 77 },
                                  { 1, 511 },
                                  { 256, 128 } },
                                heads, scale, heads != 5, "mha_prefill, odd lengths");
    check_against_judge(self, std::vector<piece_t>(300, piece_t{ 1, 2 }), 2, v3_scale, true,
                        "mha_prefill, many sequences");
    check_cuts(self, 4, 1000, 0, { 1, 77, 205, 333, 640, 641, 999 }, "mha_prefill, cuts");
    check_cuts(self, 3, 700, 333, { 64, 128, 130, 500 }, "mha_prefill, cuts behind a prefix");
    check_growing(self);
    for (int round = 0; round < 2; round++) {
        step_t step = step_new(self, { { 4096, 0 }, { 1111, 2222 }, { 4096, 4096 }, { 100, 0 } },
                               128, round ? 0.0722f : v3_scale, round == 0);
        step_run(self, &step, "mha_prefill, V3");
        compare_naive(self, &step, 12, "mha_prefill, V3");
        expect_rest_untouched(self, &step, "mha_prefill, V3");
        memory_free_all();
    }
}

/* ---- timings ---- */

struct timed_step_t {
    harness_t *harness;
    std::vector<step_t> steps;
};

static int run_timed(void *context, uint32_t variant)
{
    timed_step_t *self = (timed_step_t *)context;
    const step_t *step = &self->steps[variant];
    return self->harness->ops->mha_prefill(self->harness->q, &step->out, &step->query, &step->kv,
                                           &step->k_rope, &step->heads, step->device_sequences,
                                           (uint32_t)step->sequences.size());
}

static void time_step(harness_t *self, const std::vector<piece_t> &pieces, uint32_t variants,
                      const char *shape, double anchor_us)
{
    timed_step_t context = { self, {} };
    for (uint32_t i = 0; i < variants; i++)
        context.steps.push_back(step_new(self, pieces, 128, v3_scale, false));
    double visible = 0, bytes = 0;
    for (const piece_t &piece : pieces) {
        double rows = piece.rows, keys = piece.first_position + rows;
        visible += rows * piece.first_position + rows * (rows + 1) / 2;
        bytes += 2 * (rows * 128 * (192 + 128) + keys * (128 * 256 + 64));
    }
    timing_t timing = {};
    timing.op = "mha_prefill";
    snprintf(timing.shape, sizeof timing.shape, "%s", shape);
    timing.us = time_call(self, run_timed, &context, variants);
    timing.bytes = bytes;
    timing.operations = 2.0 * 128 * (192 + 128) * visible;
    timing.anchor_us = anchor_us;
    report(self, &timing);
    memory_free_all();
}

void run_timings_mha_prefill(harness_t *self)
{
    time_step(self, std::vector<piece_t>(4, piece_t{ 4096, 0 }), 2, "4 x 4096 tokens", 4546);
    time_step(self, { { 16384, 0 } }, 2, "1 x 16384 tokens", 0);
    time_step(self, std::vector<piece_t>(16, piece_t{ 1024, 0 }), 2, "16 x 1024 tokens", 0);
    time_step(self, { { 2048, 14336 } }, 2, "2048 tokens behind 14336", 0);
    time_step(self,
              { { 300, 0 },
                { 4000, 0 },
                { 700, 1300 },
                { 1900, 0 },
                { 64, 8000 },
                { 3000, 1000 },
                { 129, 127 },
                { 6000, 0 } },
              2, "8 sequences, 16093 tokens", 0);
}
