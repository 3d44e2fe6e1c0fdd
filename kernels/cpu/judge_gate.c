/* kernels/cpu/judge_gate.c - which experts a token goes to: the grouped sigmoid gate of V3, the
 * softmax gates of V2. */
#include "gate.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"

#include <errno.h>
#include <math.h>

static void score_sigmoid(const float *logits, uint32_t count, float *scores)
{
    for (uint32_t e = 0; e < count; e++) scores[e] = (float)(1.0 / (1.0 + exp(-(double)logits[e])));
}

static void score_softmax(const float *logits, uint32_t count, float *scores)
{
    float max = -INFINITY;
    double sum = 0;
    for (uint32_t e = 0; e < count; e++) max = fmaxf(max, logits[e]);
    for (uint32_t e = 0; e < count; e++) sum += exp((double)logits[e] - (double)max);
    for (uint32_t e = 0; e < count; e++)
        scores[e] = (float)(exp((double)logits[e] - (double)max) / sum);
}

static float score_group(const float *choices, uint32_t count, gate_group_t how)
{
    float best = -INFINITY, second = -INFINITY;
    for (uint32_t e = 0; e < count; e++) {
        if (choices[e] > best) {
            second = best;
            best = choices[e];
        } else if (choices[e] > second) {
            second = choices[e];
        }
    }
    return how == GATE_MAX || count == 1 ? best : best + second;
}

/* The index of the largest value that is not taken; ties to the lower index.  A NaN never wins,
 * unless all are NaN. */
static uint32_t pick(const float *values, const uint8_t *is_taken, uint32_t count)
{
    uint32_t best = count;
    for (uint32_t i = 0; i < count; i++) {
        if (is_taken[i]) continue;
        if (best == count || values[i] > values[best] || isnan(values[best])) best = i;
    }
    return best;
}

static void mask_groups(float *choices, const gate_t *gate, float *group_scores, uint8_t *is_kept)
{
    uint32_t size = gate->experts / gate->groups;
    for (uint32_t g = 0; g < gate->groups; g++) {
        group_scores[g] = score_group(choices + (size_t)g * size, size, gate->group_score);
        is_kept[g] = 0;
    }
    for (uint32_t i = 0; i < gate->top_groups; i++)
        is_kept[pick(group_scores, is_kept, gate->groups)] = 1;
    for (uint32_t e = 0; e < gate->experts; e++)
        if (!is_kept[e / size]) choices[e] = -INFINITY;
}

int gate_is_valid(const gate_t *gate)
{
    if (gate->experts == 0 || gate->top_k == 0 || gate->groups == 0 ||
        gate->experts % gate->groups != 0)
        return 0;
    if (gate->top_groups == 0 || gate->top_groups > gate->groups) return 0;
    return gate->top_k <= gate->experts / gate->groups * gate->top_groups;
}

void gate_choose(const gate_t *gate, const gate_room_t *room, const float *bias, uint32_t *ids,
                 float *weights)
{
    if (gate->score == GATE_SIGMOID)
        score_sigmoid(room->logits, gate->experts, room->scores);
    else
        score_softmax(room->logits, gate->experts, room->scores);
    for (uint32_t e = 0; e < gate->experts; e++) {
        room->choices[e] = room->scores[e] + (bias ? bias[e] : 0.0F);
        room->is_taken[e] = 0;
    }
    if (gate->top_groups < gate->groups)
        mask_groups(room->choices, gate, room->group_scores, room->is_taken);
    for (uint32_t e = 0; e < gate->experts; e++) room->is_taken[e] = 0;
    double sum = 0;
    for (uint32_t k = 0; k < gate->top_k; k++) {
        ids[k] = pick(room->choices, room->is_taken, gate->experts);
        room->is_taken[ids[k]] = 1;
        weights[k] = room->scores[ids[k]];
        sum += (double)weights[k];
    }
    double factor = (gate->is_normalised ? 1.0 / (sum + 1e-20) : 1.0) * (double)gate->scale;
    for (uint32_t k = 0; k < gate->top_k; k++) weights[k] = (float)((double)weights[k] * factor);
}

int gate_room_take(queue_t *q, const gate_t *gate, gate_room_t *room)
{
    size_t bytes = gate->experts * sizeof(float);
    *room = (gate_room_t){ .logits = queue_take(q, bytes),
                           .scores = queue_take(q, bytes),
                           .choices = queue_take(q, bytes),
                           .group_scores = queue_take(q, bytes),
                           .is_taken = queue_take(q, gate->experts) };
    return room->is_taken && room->group_scores && room->choices && room->scores && room->logits
               ? 0
               : ENOMEM;
}

int judge_gate(queue_t *q, uint32_t *ids, float *weights, const tensor_t *x, const tensor_t *w,
               const float *bias, const gate_t *gate)
{
    if (!gate_is_valid(gate) || w->rows != gate->experts || x->cols != w->cols) return EINVAL;
    queue_reset(q);
    gate_room_t room;
    float *row = queue_take(q, x->cols * sizeof *row),
          *expert = queue_take(q, x->cols * sizeof *expert);
    if (!row || !expert || gate_room_take(q, gate, &room) != 0) return ENOMEM;
    for (uint32_t t = 0; t < x->rows; t++) {
        row_load(x, t, row);
        for (uint32_t e = 0; e < gate->experts; e++) {
            weight_load(w, e, expert);
            double sum = 0;
            for (uint32_t i = 0; i < x->cols; i++) sum += (double)row[i] * (double)expert[i];
            room.logits[e] = (float)sum;
        }
        gate_choose(gate, &room, bias, ids + (size_t)t * gate->top_k,
                    weights + (size_t)t * gate->top_k);
    }
    return 0;
}
