/* tests/kernels/cuda/check_sample.cu - sampling on the device against the judge: tokens must be
 * equal, whatever the logits and the settings, because all sums are of the same integers. */
#include "families.h"
#include "harness.cuh"

#include "../../../kernels/philox.h"
#include "../../../kernels/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

namespace
{

enum : uint32_t { VOCAB = 129280, ROWS = 128, GAP = 8 };

/* ---- rows ---- */

enum kind_t { PEAKED, BROAD, EQUAL, TIED, NARROW, BROKEN, HOPELESS, INFINITE, ENORMOUS, KINDS };

float logit_of(harness_t *self, kind_t kind, uint32_t id)
{
    float normal = random_normal(self);
    switch (kind) {
    case PEAKED:
        return 3.5f * normal + (id % 9973 == 0 ? 12.0f : 0.0f);
    case BROAD:
        return normal;
    case EQUAL:
        return 1.5f;
    case TIED:
        return rintf(2 * normal);
    case NARROW:
        return 20 + 1e-5f * normal;
    case BROKEN:
        return id % 5 == 1 ? NAN : id % 7 == 2 ? -INFINITY : 3 * normal;
    case HOPELESS:
        return id % 3 ? NAN : -INFINITY;
    case INFINITE:
        return id % 1000 == 777 ? INFINITY : normal;
    default:
        return 1e30f * normal;
    }
}

sample_row_t plain(float temperature)
{
    sample_row_t row = {};
    row.temperature = temperature;
    row.top_p = 1;
    row.repetition_penalty = 1;
    return row;
}

/* Rows of one call: the same in host memory, for the judge, and on the device. */
struct sample_batch_t {
    std::vector<sample_row_t> host, device;
    const sample_row_t *rows;

    void add(const sample_row_t &row)
    {
        host.push_back(row);
        sample_row_t copy = row;
        if (row.token_count)
            copy.tokens = (uint32_t *)memory_upload(row.tokens, row.token_count * 4);
        if (row.bias_count) {
            copy.bias_ids = (uint32_t *)memory_upload(row.bias_ids, row.bias_count * 4);
            copy.bias_values = (float *)memory_upload(row.bias_values, row.bias_count * 4);
        }
        device.push_back(copy);
    }

    void finish()
    {
        rows = (sample_row_t *)memory_upload(device.data(), device.size() * sizeof(sample_row_t));
    }
};

/* Tokens so far: low ids often, some past the vocabulary. */
std::vector<uint32_t> context_new(harness_t *self, uint32_t vocab, uint32_t count)
{
    std::vector<uint32_t> tokens(count);
    for (uint32_t &token : tokens) {
        double unit = random_below(self, 1u << 24) * 0x1p-24;
        token = (uint32_t)(unit * unit * unit * (vocab + 2));
    }
    return tokens;
}

struct settings_t {
    float temperature, top_p, min_p;
    uint32_t top_k, has_penalties, has_bias, has_logprobs, top_logprobs;
};

const settings_t settings[] = {
    { 0, 1, 0, 0, 0, 0, 0, 0 },         { 1, 1, 0, 0, 0, 0, 0, 0 },
    { 0.6f, 0.95f, 0, 0, 0, 0, 0, 0 },  { 1, 1, 0, 50, 0, 0, 0, 0 },
    { 1, 1, 0.05f, 0, 0, 0, 0, 0 },     { 0, 1, 0, 0, 1, 1, 1, 20 },
    { 0.8f, 0.9f, 0, 0, 1, 0, 1, 5 },   { 1.3f, 0.9f, 0.02f, 30, 1, 1, 0, 0 },
    { 1, 0, 0, 0, 0, 0, 1, 0 },         { 2, 0.9999f, 0, 0, 0, 1, 0, 0 },
    { 1, 1, 0, 1, 0, 0, 0, 0 },         { 1, 0.7f, 0, 1000, 0, 0, 1, 20 },
    { 1e-3f, 0.5f, 0, 3, 0, 0, 0, 0 },  { 1e-38f, 0.99f, 1e-6f, 0, 0, 0, 0, 0 },
    { 1, 0.3f, 1, 100000, 1, 0, 0, 0 }, { 1, 1, 0, 100000, 0, 0, 0, 0 },
};
enum : uint32_t { SETTINGS = sizeof settings / sizeof *settings };

/* ---- checks ---- */

struct inputs_t {
    std::vector<std::vector<uint32_t>> contexts;
    std::vector<std::vector<float>> biases;
    sample_batch_t batch;
    tensor_t logits, host; /* the same values */
};

void add_row(harness_t *self, inputs_t *inputs, const settings_t &wanted, uint32_t vocab)
{
    sample_row_t row = plain(wanted.temperature);
    row.top_p = wanted.top_p;
    row.min_p = wanted.min_p;
    row.top_k = wanted.top_k;
    row.has_logprobs = wanted.has_logprobs;
    row.top_logprobs = wanted.top_logprobs;
    row.seed = ((uint64_t)random_below(self, UINT32_MAX) << 32) + random_below(self, UINT32_MAX);
    inputs->contexts.push_back(context_new(self, vocab, random_below(self, 3000)));
    row.tokens = inputs->contexts.back().data();
    row.token_count = (uint32_t)inputs->contexts.back().size();
    row.generated = random_below(self, row.token_count + 1);
    if (wanted.has_penalties) {
        row.repetition_penalty = 1.2f;
        row.frequency_penalty = random_below(self, 2) ? 0.3f : -0.1f;
        row.presence_penalty = 0.7f;
    }
    if (wanted.has_bias) {
        row.bias_count = 40;
        inputs->contexts.push_back(context_new(self, vocab, row.bias_count));
        inputs->biases.push_back(std::vector<float>(row.bias_count));
        for (float &bias : inputs->biases.back()) bias = 2 * random_normal(self);
        row.bias_ids = inputs->contexts.back().data();
        row.bias_values = inputs->biases.back().data();
    }
    inputs->batch.add(row);
}

/* Row r has settings r % SETTINGS and logits of kind r / SETTINGS. */
void make_inputs(harness_t *self, inputs_t *inputs, uint32_t rows, uint32_t vocab, uint32_t stride)
{
    inputs->contexts.reserve(2 * rows);
    inputs->biases.reserve(rows);
    inputs->host = tensor_host_new(DTYPE_F32, rows, stride);
    inputs->host.cols = vocab;
    float *values = (float *)inputs->host.data;
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < stride; i++)
            values[(size_t)r * stride + i] =
                i < vocab ? logit_of(self, (kind_t)(r / SETTINGS % KINDS), i) : INFINITY;
        add_row(self, inputs, settings[r % SETTINGS], vocab);
    }
    inputs->batch.finish();
    inputs->logits = inputs->host;
    inputs->logits.data = memory_upload(values, (size_t)rows * stride * sizeof *values);
}

std::vector<sample_result_t> run(harness_t *self, const tensor_t *logits, const sample_row_t *rows)
{
    size_t bytes = logits->rows * sizeof(sample_result_t);
    sample_result_t *results = (sample_result_t *)memory_new(bytes);
    std::vector<sample_result_t> host(logits->rows);
    int status = self->ops->sample(self->q, results, logits, rows);
    expect(self, status == 0, "sample is accepted", status, 0);
    queue_demand(self, "sample");
    memory_download(host.data(), results, bytes);
    return host;
}

bool is_close(float x, float y)
{
    return (isnan(x) && isnan(y)) || x == y || fabsf(x - y) < 1e-5f * fmaxf(1, fabsf(y));
}

void compare(harness_t *self, const char *what, const sample_result_t &found,
             const sample_result_t &wanted)
{
    char name[96];
    snprintf(name, sizeof name, "%s: token", what);
    expect(self, found.token == wanted.token, name, found.token, wanted.token);
    snprintf(name, sizeof name, "%s: log probability", what);
    expect(self, is_close(found.logprob, wanted.logprob), name, found.logprob, wanted.logprob);
    uint32_t differing = found.top_count != wanted.top_count;
    for (uint32_t i = 0; i < SAMPLE_TOP_MAX; i++)
        differing += found.top_ids[i] != wanted.top_ids[i] ||
                     !is_close(found.top_logprobs[i], wanted.top_logprobs[i]);
    snprintf(name, sizeof name, "%s: likeliest tokens that differ", what);
    expect(self, differing == 0, name, differing, 0);
}

/* Every row of a mixed batch as the judge says; some rows alone give the same bits. */
void check_batch(harness_t *self, uint32_t rows, uint32_t vocab, uint32_t gap, uint32_t alone)
{
    inputs_t inputs;
    make_inputs(self, &inputs, rows, vocab, (vocab + 3) / 4 * 4 + gap);
    std::vector<sample_result_t> found = run(self, &inputs.logits, inputs.batch.rows), wanted(rows);
    int status = ops_judge.sample(self->cpu, wanted.data(), &inputs.host, inputs.batch.host.data());
    expect(self, status == 0, "the judge accepts", status, 0);
    for (uint32_t r = 0; r < rows; r++) {
        char what[64];
        snprintf(what, sizeof what, "sample %u, kind %u, settings %u", vocab, r / SETTINGS % KINDS,
                 r % SETTINGS);
        compare(self, what, found[r], wanted[r]);
    }
    for (uint32_t i = 0; i < alone; i++) {
        uint32_t r = random_below(self, rows);
        tensor_t one = inputs.logits;
        one.rows = 1;
        one.data = (float *)one.data + (size_t)r * one.stride;
        std::vector<sample_result_t> again = run(self, &one, inputs.batch.rows + r);
        expect(self, memcmp(&again[0], &found[r], sizeof found[r]) == 0, "sample: a row alone", r,
               0);
    }
    tensor_host_free(&inputs.host);
    memory_free_all();
}

/* One row drawn many times is the plain inverse of the distribution: the numbers are the CPU's. */
void check_draws(harness_t *self, uint32_t rows)
{
    const uint32_t vocab = 512;
    std::vector<float> logits((size_t)rows * vocab);
    std::vector<sample_result_t> wanted(rows);
    sample_batch_t batch;
    for (float &logit : logits) logit = 2 * random_normal(self);
    for (uint32_t r = 0; r < rows; r++) {
        memcpy(&logits[(size_t)r * vocab], logits.data(), vocab * sizeof(float));
        sample_row_t row = plain(1);
        row.seed = 99;
        row.generated = r;
        batch.add(row);
    }
    batch.finish();
    tensor_t device = { memory_upload(logits.data(), logits.size() * sizeof(float)),
                        DTYPE_F32,
                        rows,
                        vocab,
                        vocab,
                        nullptr,
                        0,
                        nullptr };
    std::vector<sample_result_t> found = run(self, &device, batch.rows);
    for (uint32_t r = 0; r < rows; r++) {
        uint64_t mass = 0, sum = 0;
        float most = -INFINITY, scale = weight_scale(1);
        for (uint32_t i = 0; i < vocab; i++) most = fmaxf(most, logits[i]);
        for (uint32_t i = 0; i < vocab; i++)
            mass += weight_of(weight_code(most - logits[i], scale));
        uint64_t target = weight_target(mass, random_bits(99, r));
        uint32_t token = 0;
        for (; token < vocab; token++)
            if ((sum += weight_of(weight_code(most - logits[token], scale))) > target) break;
        expect(self, found[r].token == token, "sample: the draw", found[r].token, token);
    }
    memory_free_all();
}

void check_refusals(harness_t *self)
{
    tensor_t logits = { memory_new(4096), DTYPE_F32, 1, 100, 100, nullptr, 0, nullptr };
    sample_result_t *results = (sample_result_t *)memory_new(sizeof *results);
    sample_row_t row = plain(0), *rows = (sample_row_t *)memory_upload(&row, sizeof row);
    tensor_t wrong = logits;
    wrong.dtype = DTYPE_BF16;
    expect(self, self->ops->sample(self->q, results, &wrong, rows) == EINVAL, "sample: BF16", 0, 0);
    wrong = logits;
    wrong.stride = 101;
    expect(self, self->ops->sample(self->q, results, &wrong, rows) == EINVAL, "sample: stride", 0,
           0);
    wrong = logits;
    wrong.cols = 1u << 20;
    wrong.stride = 1u << 20;
    expect(self, self->ops->sample(self->q, results, &wrong, rows) == EINVAL, "sample: vocab", 0,
           0);
    wrong = logits;
    wrong.rows = 0;
    expect(self, self->ops->sample(self->q, results, &wrong, rows) == 0, "sample: no rows", 0, 0);
    memory_free_all();
}

/* ---- timings ---- */

struct timed_t {
    harness_t *harness;
    tensor_t logits[3];
    const sample_row_t *rows;
    sample_result_t *results;
};

int call(void *context, uint32_t variant)
{
    timed_t *self = (timed_t *)context;
    return self->harness->ops->sample(self->harness->q, self->results, &self->logits[variant],
                                      self->rows);
}

void time_settings(timed_t *timed, uint32_t rows, const char *name, const settings_t &wanted,
                   uint32_t tokens)
{
    harness_t *self = timed->harness;
    inputs_t inputs;
    inputs.contexts.reserve(2 * rows);
    inputs.biases.reserve(rows);
    std::vector<uint32_t> context = context_new(self, VOCAB, tokens);
    for (uint32_t r = 0; r < rows; r++) {
        sample_row_t row = plain(wanted.temperature);
        row.top_p = wanted.top_p;
        row.min_p = wanted.min_p;
        row.top_k = wanted.top_k;
        row.has_logprobs = wanted.has_logprobs;
        row.top_logprobs = wanted.top_logprobs;
        row.seed = r;
        if (wanted.has_penalties) row.frequency_penalty = 0.1f;
        row.tokens = context.data();
        row.token_count = tokens;
        row.generated = tokens / 2;
        inputs.batch.add(row);
    }
    inputs.batch.finish();
    timed->rows = inputs.batch.rows;
    for (tensor_t &logits : timed->logits) logits.rows = rows;
    timing_t timing = {};
    timing.op = "sample";
    snprintf(timing.shape, sizeof timing.shape, "%u x %u %s", rows, (uint32_t)VOCAB, name);
    timing.us = time_call(self, call, timed, 3);
    timing.bytes = (double)rows * (VOCAB * 4.0 + tokens * 4.0);
    timing.rows = rows;
    report(self, &timing);
}

/* Logits of one kind, made once for a few rows and repeated. */
void make_logits(timed_t *timed, kind_t kind)
{
    const uint32_t made = 8;
    std::vector<float> values((size_t)made * VOCAB);
    for (size_t i = 0; i < values.size(); i++)
        values[i] = logit_of(timed->harness, kind, (uint32_t)(i % VOCAB));
    for (tensor_t &logits : timed->logits) {
        logits = {
            memory_new((size_t)ROWS * VOCAB * 4), DTYPE_F32, ROWS, VOCAB, VOCAB, nullptr, 0, nullptr
        };
        for (uint32_t r = 0; r < ROWS; r += made)
            CUDA(cudaMemcpy((float *)logits.data + (size_t)r * VOCAB, values.data(),
                            values.size() * 4, cudaMemcpyHostToDevice));
    }
}

} // namespace

void run_small_checks_sample(harness_t *self)
{
    check_batch(self, SETTINGS * 2, 1000, 0, 2);
    check_batch(self, 7, 4096, GAP, 1);
}

void run_checks_sample(harness_t *self)
{
    check_refusals(self);
    check_draws(self, 2000);
    check_batch(self, SETTINGS * KINDS, 4096, 0, 20);
    check_batch(self, SETTINGS * KINDS, 1, GAP, 1);
    check_batch(self, SETTINGS * KINDS, 31, 0, 3);
    check_batch(self, SETTINGS * KINDS, 4101, GAP, 3);
    check_batch(self, SETTINGS * KINDS, VOCAB, 0, 20);
    check_batch(self, SETTINGS * 2, 200003, GAP, 2);
}

void run_timings_sample(harness_t *self)
{
    timed_t timed = {};
    timed.harness = self;
    for (kind_t kind : { PEAKED, BROAD }) {
        make_logits(&timed, kind);
        timed.results = (sample_result_t *)memory_new(ROWS * sizeof(sample_result_t));
        bool is_peaked = kind == PEAKED;
        const char *top_p = is_peaked ? "top_p peaked" : "top_p broad";
        time_settings(&timed, ROWS, "greedy", { 0, 1, 0, 0, 0, 0, 0, 0 }, 0);
        time_settings(&timed, ROWS, "temperature", { 1, 1, 0, 0, 0, 0, 0, 0 }, 0);
        time_settings(&timed, ROWS, top_p, { 0.6f, 0.95f, 0, 0, 0, 0, 0, 0 }, 0);
        time_settings(&timed, 1, top_p, { 0.6f, 0.95f, 0, 0, 0, 0, 0, 0 }, 0);
        time_settings(&timed, 32, top_p, { 0.6f, 0.95f, 0, 0, 0, 0, 0, 0 }, 0);
        time_settings(&timed, ROWS, "top_k 50", { 1, 1, 0, 50, 0, 0, 0, 0 }, 0);
        time_settings(&timed, ROWS, "top_k 50 top_p", { 1, 0.9f, 0, 50, 0, 0, 0, 0 }, 0);
        time_settings(&timed, ROWS, "min_p", { 1, 1, 0.05f, 0, 0, 0, 0, 0 }, 0);
        time_settings(&timed, ROWS, "greedy logprobs 20", { 0, 1, 0, 0, 0, 0, 1, 20 }, 0);
        if (is_peaked) {
            time_settings(&timed, ROWS, "greedy penalties 5k", { 0, 1, 0, 0, 1, 0, 0, 0 }, 5000);
            time_settings(&timed, ROWS, "greedy penalties 164k", { 0, 1, 0, 0, 1, 0, 0, 0 },
                          163840);
        }
        memory_free_all();
    }
}
