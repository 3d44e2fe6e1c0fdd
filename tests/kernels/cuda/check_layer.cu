/* tests/kernels/cuda/check_layer.cu - all ops together: one MoE layer against the judge's, and the
 * time of DeepSeek-V3's, from which the simulator's timed engine takes its steps. */
#include "families.h"
#include "layer.cuh"

#include <math.h>
#include <stdlib.h>

#include <vector>

static const layer_shape_t deepseek_v3 = { 7168,
                                           1536,
                                           2048,
                                           256,
                                           2,
                                           { 128, 128, 64, 128, 512, 0.13523378f },
                                           { 256, 8, 8, 4, GATE_SIGMOID, GATE_TOP2_SUM, 1, 2.5f } };

/* As models/tiny, with latent ranks that FP8 blocks divide. */
static const layer_shape_t tiny = { 256,
                                    128,
                                    128,
                                    32,
                                    32,
                                    { 4, 128, 64, 128, 512, 0.08f },
                                    { 32, 4, 4, 2, GATE_SIGMOID, GATE_TOP2_SUM, 1, 2.5f } };

/* Both round to BF16 and FP8 at the same places; what differs is sums in F32 against double and P
 * in BF16 inside attention.  A value of BF16 that differs by one step falls on the other side of an
 * FP8 rounding now and then, which is 6 to 12 % of it: `out` lies behind two such roundings of all
 * its inputs, and a simulated perturbation of 1e-3 to 1e-2 of them moves it by 3.1 to 5.4 %. */
static const double layer_tolerance = 3e-2, out_tolerance = 6e-2;

/* Where two choices of the gate are close to each other, a last bit decides between them, and with
 * it the weights of the row: these rows are few (check_gate.cu has the same share), and left out.
 */
static uint32_t other_rows(const layer_t *device, const layer_t *host, std::vector<bool> *is_other)
{
    uint32_t rows = device->step.rows, top_k = device->shape.gate.top_k, count = 0;
    std::vector<float> weights((size_t)rows * top_k);
    memory_download(weights.data(), device->weights, weights.size() * sizeof(float));
    is_other->assign(rows, false);
    for (size_t i = 0; i < weights.size(); i++)
        if (fabs(weights[i] - host->weights[i]) > 0.02 * device->shape.gate.scale)
            (*is_other)[i / top_k] = true;
    for (bool it : *is_other) count += it;
    return count;
}

static double difference_of_rows(const tensor_t *x, const tensor_t *y,
                                 const std::vector<bool> &is_other)
{
    double difference = 0, all = 0;
    for (uint32_t r = 0; r < x->rows; r++)
        for (uint32_t c = 0; c < x->cols && !is_other[r]; c++) {
            double value = tensor_host_value(y, r, c), error = tensor_host_value(x, r, c) - value;
            difference += error * error;
            all += value * value;
        }
    return isfinite(difference) ? sqrt(difference / all) : INFINITY;
}

/* Would show that ops do not fit together: scales read in another layout, a row of another token.
 */
static void check_layer(harness_t *self, const layer_shape_t *shape, const layer_step_t *step,
                        const char *what)
{
    layer_t device, host;
    layer_init(&device, self, shape, step);
    layer_to_host(&host, &device);
    expect(self, layer_run(self->ops, self->q, &device) == 0, what, 1, 0);
    queue_demand(self, what);
    expect(self, layer_run(&ops_judge, self->cpu, &host) == 0, what, 1, 0);
    std::vector<bool> is_other;
    uint32_t others = other_rows(&device, &host, &is_other);
    expect(self, others <= 2 + step->rows / 50, "layer: rows with other choices", others,
           2 + step->rows / 50);
    const tensor_t *outputs[][2] = {
        { &device.low, &host.low },           { &device.query, &host.query },
        { &device.attended, &host.attended }, { &device.residual, &host.residual },
        { &device.normed, &host.normed },     { &device.out, &host.out }
    };
    static const char *names[] = { "low", "query", "attended", "residual", "normed", "out" };
    for (size_t i = 0; i < sizeof outputs / sizeof outputs[0]; i++) {
        tensor_t found = tensor_to_host(outputs[i][0], false);
        char line[96];
        snprintf(line, sizeof line, "layer, %s: %s", what, names[i]);
        bool is_out = outputs[i][0] == &device.out;
        double error = is_out ? difference_of_rows(&found, outputs[i][1], is_other)
                              : difference_relative(&found, outputs[i][1]);
        double allowed = is_out ? out_tolerance : layer_tolerance;
        expect(self, error < allowed, line, error, allowed);
        tensor_host_free(&found);
    }
    memory_free_all();
}

void run_small_checks_layer(harness_t *self)
{
    layer_step_t decode = { 6, 6 * 70, 6, true, true }, prefill = { 130, 130, 1, false, true };
    layer_step_t two_tokens = { 8, 4 * 200, 4, true, true };
    check_layer(self, &tiny, &decode, "decode");
    check_layer(self, &tiny, &two_tokens, "decode of two tokens");
    check_layer(self, &tiny, &prefill, "prefill");
}

void run_checks_layer(harness_t *self)
{
    run_small_checks_layer(self);
    layer_step_t decode = { 3, 3 * 129, 3, true, true };
    check_layer(self, &deepseek_v3, &decode, "decode of DeepSeek-V3");
}

struct timed_layer_t {
    harness_t *harness;
    layer_t layer;
};

static int run(void *context, uint32_t variant)
{
    timed_layer_t *self = (timed_layer_t *)context;
    return layer_run(self->harness->ops, self->harness->q, &self->layer);
}

static double operations_of(const layer_shape_t *s, const layer_step_t *step)
{
    const heads_t *h = &s->heads;
    double rows = step->rows, heads = h->heads, width = h->latent + h->rope;
    double each = (double)step->keys / step->sequences, own = rows / step->sequences;
    double pairs = rows * (each - (own - 1) / 2);
    double products = (s->q_lora + width) * s->hidden + heads * (h->nope + h->rope) * s->q_lora +
                      heads * h->value * s->hidden + 3.0 * s->inner * s->hidden * 9 +
                      (double)s->routers * s->hidden;
    double attention =
        step->is_decode
            ? pairs * heads * (width + h->latent) + rows * heads * 2 * 128 * (double)h->latent
            : pairs * heads * (h->nope + h->rope + h->value) +
                  step->keys * heads * (h->nope + h->value) * (double)h->latent;
    return 2 * (rows * products + attention);
}

/* Weights and keys once; activations are small beside them, or count as computing. */
static double bytes_of(const layer_shape_t *s, const layer_step_t *step)
{
    const heads_t *h = &s->heads;
    double heads = h->heads, width = h->latent + h->rope, expert = 3.0 * s->inner * s->hidden;
    return (s->q_lora + width) * (double)s->hidden + heads * (h->nope + h->rope) * s->q_lora +
           heads * (h->nope + h->value) * (double)h->latent + heads * h->value * s->hidden +
           expert * (1 + s->experts) + 2.0 * s->routers * s->hidden + step->keys * width * 2;
}

static void time_layer(harness_t *self, uint32_t rows, uint32_t context, bool is_decode,
                       double anchor_us)
{
    timed_layer_t timed = { self };
    layer_shape_t shape = deepseek_v3;
    uint32_t sequences = is_decode ? rows : rows / context;
    layer_step_t step = { rows, sequences * context, sequences, is_decode, true };
    if (!is_decode) shape.experts = 9;
    layer_init(&timed.layer, self, &shape, &step);
    timing_t timing = { is_decode ? "layer_decode" : "layer_prefill" };
    snprintf(timing.shape, sizeof timing.shape, "rows %u, context %u, experts %u", rows, context,
             shape.experts);
    timing.us = time_call(self, run, &timed, 1);
    timing.bytes = bytes_of(&shape, &step);
    timing.operations = operations_of(&shape, &step);
    timing.anchor_us = anchor_us;
    timing.is_fp8 = true;
    timing.rows = rows;
    timing.keys = step.keys;
    report(self, &timing);
    memory_free_all();
}

/* Anchors: the sum of the best libraries' kernels for one layer; DeepSeek's prefill
 * profile of 34.3 ms a layer for 16,384 tokens on an H800, dispatch and combine overlapped
 * (deepseek.md 7.2). */
void run_timings_layer(harness_t *self)
{
    static const uint32_t rows[] = { 1, 8, 32, 64, 128 }, contexts[] = { 1024, 4989, 8192 };
    for (uint32_t r : rows)
        for (uint32_t context : contexts)
            time_layer(self, r, context, true, r == 128 && context == 4989 ? 521 : 0);
    static const uint32_t prompts[][2] = {
        { 1024, 1024 }, { 4096, 4096 }, { 8192, 8192 }, { 16384, 4096 }
    };
    for (const uint32_t *prompt : prompts)
        time_layer(self, prompt[0], prompt[1], false, prompt[0] == 16384 ? 34300 : 0);
}
