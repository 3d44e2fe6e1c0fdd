/* runtime/policy/batch.h - which tokens of which prompts make up the next prefill step. */
#ifndef RUNTIME_POLICY_BATCH_H
#define RUNTIME_POLICY_BATCH_H

#include <stdint.h>

/* What a prompt still wants computed: its tokens next .. end - 1. */
typedef struct {
    uint32_t slot, next, end;
} batch_want_t;

typedef struct {
    uint32_t slot, first, count;
} batch_part_t;

/* First come, first served within a budget of tokens: short prompts share a step, a long one is cut
 * into chunks and does not starve behind short ones that came later.  `parts` has room for
 * want_count; returns how many. */
uint32_t batch_plan(const batch_want_t *wants, uint32_t want_count, uint32_t budget_tokens,
                    batch_part_t *parts);

#endif
