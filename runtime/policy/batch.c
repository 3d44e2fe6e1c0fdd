/* runtime/policy/batch.c - chunked prefill in the order of arrival. */
#include "batch.h"

uint32_t batch_plan(const batch_want_t *wants, uint32_t want_count, uint32_t budget_tokens,
                    batch_part_t *parts)
{
    uint32_t part_count = 0;
    for (uint32_t i = 0; i < want_count && budget_tokens > 0; i++) {
        uint32_t left = wants[i].end - wants[i].next;
        if (left == 0) continue;
        uint32_t count = left < budget_tokens ? left : budget_tokens;
        parts[part_count++] = (batch_part_t){ wants[i].slot, wants[i].next, count };
        budget_tokens -= count;
    }
    return part_count;
}
