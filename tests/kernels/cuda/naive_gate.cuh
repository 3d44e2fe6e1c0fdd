/* tests/kernels/cuda/naive_gate.cuh - the gate in the obvious way: logits in double on the device,
 * the choice in double on the host, with the margin by which it was made. */
#ifndef TESTS_KERNELS_CUDA_NAIVE_GATE_CUH
#define TESTS_KERNELS_CUDA_NAIVE_GATE_CUH

#include "../../../kernels/ops.h"

#include <cuda_bf16.h>

#include <math.h>

#include <algorithm>
#include <vector>

/* Grid [T][experts], one warp. */
__global__ static void naive_logits(double *out, const tensor_t x, const tensor_t w)
{
    const __nv_bfloat16 *row = (__nv_bfloat16 *)x.data + blockIdx.x * x.stride;
    const __nv_bfloat16 *expert = (__nv_bfloat16 *)w.data + blockIdx.y * w.stride;
    double sum = 0;
    for (uint32_t k = threadIdx.x; k < x.cols; k += 32)
        sum += (double)__bfloat162float(row[k]) * (double)__bfloat162float(expert[k]);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x == 0) out[(size_t)blockIdx.x * w.rows + blockIdx.y] = sum;
}

/* Indices of values, best first, ties to the lower index; margin: the smallest step between the
 * first count + 1 of them. */
static std::vector<uint32_t> naive_best(const std::vector<double> &values, uint32_t count,
                                        double *margin)
{
    std::vector<uint32_t> order(values.size());
    for (uint32_t i = 0; i < order.size(); i++) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return values[a] > values[b]; });
    for (uint32_t i = 0; i < count && i + 1 < order.size(); i++)
        if (values[order[i + 1]] > -INFINITY)
            *margin = std::min(*margin, values[order[i]] - values[order[i + 1]]);
    order.resize(count);
    return order;
}

static std::vector<double> naive_scores(const double *logits, const gate_t *gate)
{
    std::vector<double> scores(gate->experts);
    double max = *std::max_element(logits, logits + gate->experts), sum = 0;
    for (uint32_t e = 0; e < gate->experts; e++) sum += exp(logits[e] - max);
    for (uint32_t e = 0; e < gate->experts; e++)
        scores[e] =
            gate->score == GATE_SIGMOID ? 1 / (1 + exp(-logits[e])) : exp(logits[e] - max) / sum;
    return scores;
}

struct naive_choice_t {
    std::vector<uint32_t> ids;
    std::vector<double> weights;
    double margin;
};

static naive_choice_t naive_choose(const double *logits, const float *bias, const gate_t *gate)
{
    naive_choice_t choice = { {}, {}, INFINITY };
    std::vector<double> scores = naive_scores(logits, gate), choices = scores, groups;
    uint32_t size = gate->experts / gate->groups;
    for (uint32_t e = 0; e < gate->experts; e++) choices[e] += bias ? (double)bias[e] : 0;
    for (uint32_t g = 0; g < gate->groups; g++) {
        std::vector<double> own(choices.begin() + g * size, choices.begin() + (g + 1) * size);
        std::sort(own.rbegin(), own.rend());
        groups.push_back(gate->group_score == GATE_MAX || size == 1 ? own[0] : own[0] + own[1]);
    }
    if (gate->top_groups < gate->groups) {
        std::vector<char> is_kept(gate->groups);
        for (uint32_t g : naive_best(groups, gate->top_groups, &choice.margin)) is_kept[g] = 1;
        for (uint32_t e = 0; e < gate->experts; e++)
            if (!is_kept[e / size]) choices[e] = -INFINITY;
    }
    choice.ids = naive_best(choices, gate->top_k, &choice.margin);
    double sum = 0;
    for (uint32_t id : choice.ids) sum += scores[id];
    for (uint32_t id : choice.ids)
        choice.weights.push_back(scores[id] * (gate->is_normalised ? 1 / (sum + 1e-20) : 1) *
                                 (double)gate->scale);
    return choice;
}

#endif
