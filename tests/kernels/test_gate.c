/* tests/kernels/test_gate.c - the judge's choice of experts against sorting, written from the
 * published rules. */
#include "checks_gemm.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

typedef struct {
    double value;
    uint32_t index;
} ranked_t;

static int best_first(const void *a, const void *b)
{
    const ranked_t *left = a, *right = b;
    if (left->value != right->value) return left->value < right->value ? 1 : -1;
    return left->index < right->index ? -1 : 1;
}

enum { EXPERTS_MAX = 256 };

/* The score of a group from its sorted values. */
static double group_value(const double *choices, const gate_t *gate, uint32_t group)
{
    uint32_t size = gate->experts / gate->groups;
    ranked_t sorted[EXPERTS_MAX];
    for (uint32_t i = 0; i < size; i++) sorted[i] = (ranked_t){ choices[group * size + i], i };
    qsort(sorted, size, sizeof *sorted, best_first);
    return gate->group_score == GATE_MAX || size == 1 ? sorted[0].value
                                                      : sorted[0].value + sorted[1].value;
}

/* Sorts groups, then the experts of the best groups only: nothing is masked, so nothing can be
 * masked wrongly. */
static void choose_by_sorting(const double *logits, const float *bias, const gate_t *gate,
                              uint32_t *ids, double *weights)
{
    double scores[EXPERTS_MAX], choices[EXPERTS_MAX], total = 0, norm = 0;
    ranked_t groups[EXPERTS_MAX], experts[EXPERTS_MAX];
    uint32_t count = 0, size = gate->experts / gate->groups;
    for (uint32_t e = 0; e < gate->experts; e++) total += exp(logits[e]);
    for (uint32_t e = 0; e < gate->experts; e++) {
        scores[e] =
            gate->score == GATE_SOFTMAX ? exp(logits[e]) / total : 1 / (1 + exp(-logits[e]));
        choices[e] = scores[e] + (bias ? (double)bias[e] : 0);
    }
    for (uint32_t g = 0; g < gate->groups; g++)
        groups[g] = (ranked_t){ group_value(choices, gate, g), g };
    qsort(groups, gate->groups, sizeof *groups, best_first);
    for (uint32_t g = 0; g < gate->top_groups; g++)
        for (uint32_t i = 0; i < size; i++)
            experts[count++] =
                (ranked_t){ choices[groups[g].index * size + i], groups[g].index * size + i };
    qsort(experts, count, sizeof *experts, best_first);
    for (uint32_t k = 0; k < gate->top_k; k++) {
        ids[k] = experts[k].index;
        norm += scores[ids[k]];
    }
    for (uint32_t k = 0; k < gate->top_k; k++)
        weights[k] =
            scores[ids[k]] / (gate->is_normalised ? norm + 1e-20 : 1) * (double)gate->scale;
}

static void compare_with_sorting(const gate_t *gate, double bias_size)
{
    enum { ROWS = 40, COLS = 24 };
    check_t self = { .ops = &ops_judge,
                     .q = queue_new_cpu(1 << 20, 1),
                     .random = gate->experts * 7 + gate->top_k };
    tensor_t x = random_tensor(&self, DTYPE_F32, ROWS, COLS, 0),
             w = random_tensor(&self, DTYPE_BF16, gate->experts, COLS, 1);
    float bias[EXPERTS_MAX], weights[ROWS * 16];
    uint32_t ids[ROWS * 16], wanted_ids[16];
    double wanted[16], *logits = wanted_product(&x, &w);
    for (uint32_t e = 0; e < gate->experts; e++) bias[e] = (float)(uniform(&self) * bias_size);
    const float *used_bias = bias_size > 0 ? bias : NULL;
    assert_int_equal(ops_judge.gate(self.q, ids, weights, &x, &w, used_bias, gate), 0);
    for (uint32_t r = 0; r < ROWS; r++) {
        choose_by_sorting(logits + r * gate->experts, used_bias, gate, wanted_ids, wanted);
        for (uint32_t k = 0; k < gate->top_k; k++) {
            assert_int_equal(ids[r * gate->top_k + k], wanted_ids[k]);
            assert_true(fabs((double)weights[r * gate->top_k + k] - wanted[k]) <=
                        1e-5 * fabs(wanted[k]));
        }
    }
    free(logits);
    free_tensor(&x);
    free_tensor(&w);
    queue_destroy(&self.q);
}

/* V3 and tiny: a wrong group sum or biased weights would send tokens to experts that were not
 * trained for them. */
static void test_gate_sigmoid_with_groups_equals_sorting(void **state)
{
    gate_t gate = {
        .experts = 256, .top_k = 8, .groups = 8, .top_groups = 4, .is_normalised = 1, .scale = 2.5F
    };
    compare_with_sorting(&gate, 0.1);
    gate = (gate_t){
        .experts = 32, .top_k = 4, .groups = 4, .top_groups = 2, .is_normalised = 1, .scale = 2.5F
    };
    compare_with_sorting(&gate, 0.5);
}

/* With a large negative bias eligible experts score below zero: masking by zero instead of -inf
 * would choose masked ones. */
static void test_gate_negative_choices_never_fall_outside_kept_groups(void **state)
{
    gate_t gate = {
        .experts = 16, .top_k = 6, .groups = 4, .top_groups = 2, .is_normalised = 1, .scale = 1.0F
    };
    compare_with_sorting(&gate, 6.0);
}

/* Moonlight has one group; V2-Lite is greedy on softmax without normalising; V2 limits groups by
 * their best expert. */
static void test_gate_other_family_members_equal_sorting(void **state)
{
    gate_t gate = {
        .experts = 64, .top_k = 6, .groups = 1, .top_groups = 1, .is_normalised = 1, .scale = 2.446F
    };
    compare_with_sorting(&gate, 0.2);
    gate = (gate_t){ .experts = 64,
                     .top_k = 6,
                     .groups = 1,
                     .top_groups = 1,
                     .score = GATE_SOFTMAX,
                     .group_score = GATE_MAX,
                     .scale = 1.0F };
    compare_with_sorting(&gate, 0);
    gate = (gate_t){ .experts = 160,
                     .top_k = 6,
                     .groups = 8,
                     .top_groups = 3,
                     .score = GATE_SOFTMAX,
                     .group_score = GATE_MAX,
                     .scale = 16.0F };
    compare_with_sorting(&gate, 0);
    gate.top_groups = 8;
    compare_with_sorting(&gate, 0);
}

/* Two machines that break ties differently would disagree about which rank computes a token. */
static void test_gate_equal_scores_take_the_lower_index(void **state)
{
    float x_data[2] = { 0, 0 }, w_data[16] = { 0 }, weights[3];
    uint32_t ids[3];
    tensor_t x = { .data = x_data, .rows = 1, .cols = 2, .stride = 2 },
             w = { .data = w_data, .rows = 8, .cols = 2, .stride = 2 };
    gate_t gate = {
        .experts = 8, .top_k = 3, .groups = 4, .top_groups = 2, .is_normalised = 1, .scale = 3.0F
    };
    queue_t *q = queue_new_cpu(1 << 16, 1);
    for (size_t i = 0; i < ops_cpu_choice_count; i++) {
        if (!ops_cpu_choices[i].is_supported()) continue;
        assert_int_equal(ops_cpu_choices[i].ops->gate(q, ids, weights, &x, &w, NULL, &gate), 0);
        for (uint32_t k = 0; k < 3; k++) {
            assert_int_equal(ids[k], k);
            assert_true(fabsf(weights[k] - 1.0F) < 1e-6F);
        }
    }
    queue_destroy(&q);
}

/* Counts that do not fit would read beyond the experts. */
static void test_gate_impossible_counts_are_refused(void **state)
{
    float x_data[2] = { 0, 0 }, w_data[16] = { 0 }, weights[8];
    uint32_t ids[8];
    tensor_t x = { .data = x_data, .rows = 1, .cols = 2, .stride = 2 },
             w = { .data = w_data, .rows = 8, .cols = 2, .stride = 2 };
    static const gate_t wrong[] = {
        { .experts = 8, .top_k = 5, .groups = 4, .top_groups = 2, .scale = 1 },
        { .experts = 8, .top_k = 2, .groups = 3, .top_groups = 2, .scale = 1 },
        { .experts = 8, .top_k = 2, .groups = 4, .top_groups = 5, .scale = 1 },
        { .experts = 8, .top_k = 0, .groups = 4, .top_groups = 2, .scale = 1 },
        { .experts = 4, .top_k = 2, .groups = 2, .top_groups = 2, .scale = 1 }
    };
    queue_t *q = queue_new_cpu(1 << 16, 1);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_not_equal(ops_judge.gate(q, ids, weights, &x, &w, NULL, &wrong[i]), 0);
    queue_destroy(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gate_sigmoid_with_groups_equals_sorting),
        cmocka_unit_test(test_gate_negative_choices_never_fall_outside_kept_groups),
        cmocka_unit_test(test_gate_other_family_members_equal_sorting),
        cmocka_unit_test(test_gate_equal_scores_take_the_lower_index),
        cmocka_unit_test(test_gate_impossible_counts_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
