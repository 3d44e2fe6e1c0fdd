/* tests/kernels/cuda/check_gate.cu - checks and timings of the gate. */
#include "families.h"
#include "harness.cuh"
#include "naive_gate.cuh"

#include <math.h>
#include <string.h>

static const gate_t v3 = { 256, 8, 8, 4, GATE_SIGMOID, GATE_TOP2_SUM, 1, 2.5F };
static const gate_t tiny = { 32, 4, 4, 2, GATE_SIGMOID, GATE_TOP2_SUM, 1, 2.5F };
static const gate_t v2 = { 160, 6, 8, 3, GATE_SOFTMAX, GATE_MAX, 0, 16.0F };
static const gate_t v2_lite = { 64, 6, 1, 1, GATE_SOFTMAX, GATE_MAX, 0, 1.0F };
static const gate_t wide = { 384, 16, 12, 5, GATE_SIGMOID, GATE_TOP2_SUM, 1, 1.0F };
static const gate_t odd = { 35, 3, 7, 2, GATE_SOFTMAX, GATE_TOP2_SUM, 1, 1.0F };

static const double tie_max = 1e-5; /* closer choices may fall either way */

struct gate_inputs_t {
    tensor_t x, w;
    float *bias, *host_bias;
};

/* Logits about N(0, 1.5), as a trained gate's. */
static tensor_t random_gate(harness_t *self, uint32_t experts, uint32_t cols)
{
    std::vector<__nv_bfloat16> values((size_t)experts * cols);
    for (__nv_bfloat16 &value : values)
        value = __float2bfloat16(random_normal(self) * 1.5F / sqrtf((float)cols));
    tensor_t w = tensor_new(DTYPE_BF16, experts, cols, true);
    CUDA(cudaMemcpy(w.data, values.data(), values.size() * 2, cudaMemcpyHostToDevice));
    return w;
}

static std::vector<float> random_bias(harness_t *self, uint32_t experts)
{
    std::vector<float> bias(experts);
    for (float &value : bias) value = 0.1F * random_normal(self);
    return bias;
}

struct gate_choice_t {
    std::vector<uint32_t> ids;
    std::vector<float> weights;
};

static gate_choice_t run(harness_t *self, const tensor_t *x, const tensor_t *w, const float *bias,
                         const gate_t *gate)
{
    size_t count = (size_t)x->rows * gate->top_k;
    gate_choice_t found = { std::vector<uint32_t>(count), std::vector<float>(count) };
    uint32_t *ids = (uint32_t *)memory_new(count * 4);
    float *weights = (float *)memory_new(count * 4);
    expect(self, self->ops->gate(self->q, ids, weights, x, w, bias, gate) == 0, "gate", 1, 0);
    queue_demand(self, "gate");
    memory_download(found.ids.data(), ids, count * 4);
    memory_download(found.weights.data(), weights, count * 4);
    return found;
}

static void check_naive(harness_t *self, const gate_t *gate, uint32_t rows, uint32_t cols,
                        bool has_bias)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, cols, false);
    tensor_t w = random_gate(self, gate->experts, cols);
    std::vector<float> bias = random_bias(self, gate->experts);
    float *device_bias = has_bias ? (float *)memory_upload(bias.data(), bias.size() * 4) : nullptr;
    gate_choice_t found = run(self, &x, &w, device_bias, gate);
    std::vector<double> logits((size_t)rows * gate->experts);
    double *device_logits = (double *)memory_new(logits.size() * 8);
    LAUNCH(naive_logits, (dim3(rows, gate->experts), 32), device_logits, x, w);
    CUDA(cudaGetLastError());
    memory_download(logits.data(), device_logits, logits.size() * 8);
    uint32_t wrong = 0, ties = 0;
    double error = 0;
    for (uint32_t t = 0; t < rows; t++) {
        naive_choice_t wanted = naive_choose(&logits[(size_t)t * gate->experts],
                                             has_bias ? bias.data() : nullptr, gate);
        if (memcmp(wanted.ids.data(), &found.ids[(size_t)t * gate->top_k], gate->top_k * 4) != 0) {
            if (wanted.margin < tie_max)
                ties++;
            else
                wrong++;
            continue;
        }
        for (uint32_t k = 0; k < gate->top_k; k++) {
            double weight = found.weights[(size_t)t * gate->top_k + k];
            error = fmax(error, fabs(weight / wanted.weights[k] - 1));
            if (isnan(weight)) error = INFINITY;
        }
    }
    char what[96];
    snprintf(what, sizeof what, "gate, %u of %u experts, %u x %u", gate->top_k, gate->experts, rows,
             cols);
    expect(self, wrong == 0, what, wrong, 0);
    expect(self, ties <= 2 + rows / 50, what, ties, 2 + rows / 50);
    expect(self, error < 5e-5, what, error, 5e-5);
}

static void check_judge(harness_t *self, const gate_t *gate, uint32_t rows, uint32_t cols)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, rows, cols, false);
    tensor_t w = random_gate(self, gate->experts, cols);
    std::vector<float> bias = random_bias(self, gate->experts);
    gate_choice_t found =
        run(self, &x, &w, (float *)memory_upload(bias.data(), bias.size() * 4), gate);
    tensor_t host_x = tensor_to_host(&x, false), host_w = tensor_to_host(&w, true);
    gate_choice_t wanted = found;
    expect(self,
           ops_judge.gate(self->cpu, wanted.ids.data(), wanted.weights.data(), &host_x, &host_w,
                          bias.data(), gate) == 0,
           "judge", 1, 0);
    uint32_t wrong = 0;
    double error = 0;
    for (size_t i = 0; i < found.ids.size(); i++) {
        wrong += found.ids[i] != wanted.ids[i];
        error = fmax(error, fabs((double)found.weights[i] / (double)wanted.weights[i] - 1));
    }
    expect(self, wrong <= 2, "gate against the judge: ids", wrong, 2);
    expect(self, wrong || error < 5e-5, "gate against the judge: weights", error, 5e-5);
    tensor_host_free(&host_x);
    tensor_host_free(&host_w);
}

/* Equal scores everywhere: the lowest ids of the lowest groups. */
static void check_ties(harness_t *self, const gate_t *gate)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, 3, 256, false);
    tensor_t w = tensor_new(DTYPE_BF16, gate->experts, 256, true);
    CUDA(cudaMemset(w.data, 0, (size_t)gate->experts * 256 * 2));
    CUDA(cudaDeviceSynchronize());
    gate_choice_t found = run(self, &x, &w, nullptr, gate);
    for (size_t i = 0; i < found.ids.size(); i++)
        expect(self, found.ids[i] == i % gate->top_k, "ties go to the lower id", found.ids[i],
               (double)(i % gate->top_k));
}

/* The same bits for a row alone, in a small batch, and in one that takes the kernel for many rows.
 */
static void check_invariance(harness_t *self, const gate_t *gate, uint32_t cols)
{
    tensor_t x = tensor_random(self, DTYPE_BF16, 2100, cols, false);
    tensor_t w = random_gate(self, gate->experts, cols);
    gate_choice_t whole = run(self, &x, &w, nullptr, gate);
    static const uint32_t cuts[][2] = { { 0, 1 }, { 2099, 1 }, { 100, 130 }, { 1000, 1000 } };
    for (const uint32_t *cut : cuts) {
        tensor_t own = x;
        own.data = (char *)x.data + cut[0] * x.stride * 2;
        own.rows = cut[1];
        gate_choice_t part = run(self, &own, &w, nullptr, gate);
        size_t at = (size_t)cut[0] * gate->top_k, bytes = (size_t)cut[1] * gate->top_k * 4;
        expect(self, memcmp(&whole.ids[at], part.ids.data(), bytes) == 0, "gate of a part: ids",
               cut[1], 0);
        expect(self, memcmp(&whole.weights[at], part.weights.data(), bytes) == 0,
               "gate of a part: weights", cut[1], 0);
    }
}

void run_small_checks_gate(harness_t *self)
{
    static const gate_t *gates[] = { &v3, &tiny, &v2, &v2_lite, &wide, &odd };
    for (const gate_t *gate : gates) {
        check_ties(self, gate);
        check_judge(self, gate, 5, 256);
        check_naive(self, gate, 66, 328, true);
    }
    check_naive(self, &tiny, 1, 64, false);
    check_naive(self, &v3, 1030, 128, true);
    check_naive(self, &v2_lite, 3, 9000, true); /* a range needs more stages than there are */
}

void run_checks_gate(harness_t *self)
{
    static const uint32_t rows[] = { 1, 7, 64, 65, 128, 500, 1024, 1025, 1300, 4096 };
    run_small_checks_gate(self);
    for (uint32_t count : rows) {
        check_naive(self, &v3, count, 7168, true);
        check_naive(self, &tiny, count, 256, true);
        check_naive(self, &v2, count, 5120, false);
        memory_free_all();
    }
    check_naive(self, &wide, 1100, 7168, true);
    check_naive(self, &v3, 130, 16384, true);
    check_naive(self, &v3, 1100, 16384, true);
    check_naive(self, &odd, 1100, 520, true);
    check_judge(self, &v3, 16, 7168);
    check_invariance(self, &v3, 7168);
    check_invariance(self, &tiny, 256);
    check_invariance(self, &wide, 1032);
    tensor_t x = tensor_random(self, DTYPE_BF16, 2, 256, false), w = random_gate(self, 32, 256);
    gate_t bad = tiny;
    bad.top_k = 17;
    expect(self, self->ops->gate(self->q, nullptr, nullptr, &x, &w, nullptr, &bad) == EINVAL,
           "more than the kept groups have", 1, 0);
    x.rows = 0;
    expect(self, self->ops->gate(self->q, nullptr, nullptr, &x, &w, nullptr, &tiny) == 0, "no rows",
           1, 0);
}

enum { VARIANTS = 16 };

struct gate_turns_t {
    harness_t *harness;
    tensor_t x[VARIANTS], w[VARIANTS];
    uint32_t *ids;
    float *weights, *bias;
};

static int turn(void *context, uint32_t variant)
{
    gate_turns_t *self = (gate_turns_t *)context;
    return self->harness->ops->gate(self->harness->q, self->ids, self->weights, &self->x[variant],
                                    &self->w[variant], self->bias, &v3);
}

static void time_rows(harness_t *self, uint32_t rows, double anchor)
{
    gate_turns_t context = {
        self,   {}, {}, (uint32_t *)memory_new(rows * 8 * 4), (float *)memory_new(rows * 8 * 4),
        nullptr
    };
    std::vector<float> bias = random_bias(self, 256);
    context.bias = (float *)memory_upload(bias.data(), bias.size() * 4);
    uint32_t variants = rows > 1024 ? 4 : VARIANTS;
    for (uint32_t i = 0; i < variants; i++) {
        context.x[i] = tensor_random(self, DTYPE_BF16, rows, 7168, false);
        context.w[i] = tensor_random(self, DTYPE_BF16, 256, 7168, true);
    }
    timing_t timing = { "gate",
                        "",
                        time_call(self, turn, &context, variants),
                        7168 * 2.0 * (256 + rows) + rows * 64.0,
                        2.0 * rows * 256 * 7168,
                        anchor,
                        false };
    snprintf(timing.shape, sizeof timing.shape, "%u tokens", rows);
    report(self, &timing);
    memory_free_all();
}

void run_timings_gate(harness_t *self)
{
    time_rows(self, 1, 0);
    time_rows(self, 64, 0);
    time_rows(self, 128, 8);
    time_rows(self, 256, 0);
    time_rows(self, 512, 0);
    time_rows(self, 1024, 0);
    time_rows(self, 4096, 60);
}
