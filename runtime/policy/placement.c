/* runtime/policy/placement.c - least predicted time for prefill, least fullness for decode. */
#include "placement.h"

uint64_t placement_pairs(uint32_t first, uint32_t end)
{
    uint64_t before = (uint64_t)first * (first + UINT64_C(1)) / 2;
    return (uint64_t)end * (end + UINT64_C(1)) / 2 - before;
}

/* Doubles: a queue of 2^20 long prompts at absurd measured speeds overflows 64 bits of picoseconds.
 */
uint64_t placement_predict_us(const placement_prefill_t *rank, uint32_t prompt_tokens)
{
    uint32_t cached = rank->cached_tokens < prompt_tokens ? rank->cached_tokens : prompt_tokens;
    double tokens = (double)rank->waiting_tokens + (prompt_tokens - cached);
    double pairs = (double)rank->waiting_pairs + (double)placement_pairs(cached, prompt_tokens);
    double us = tokens * (double)rank->token_ns * 1e-3 + pairs * (double)rank->pair_ps * 1e-6;
    return us < 1e18 ? (uint64_t)us : (uint64_t)1e18;
}

uint32_t placement_choose_prefill(const placement_prefill_t *ranks, uint32_t rank_count,
                                  uint32_t prompt_tokens)
{
    uint32_t best = PLACEMENT_NONE;
    uint64_t best_us = UINT64_MAX;
    for (uint32_t i = 0; i < rank_count; i++) {
        if (!ranks[i].is_open) continue;
        uint64_t us = placement_predict_us(&ranks[i], prompt_tokens);
        if (us >= best_us) continue;
        best = i;
        best_us = us;
    }
    return best;
}

static double fullness(const placement_decode_t *rank, uint32_t blocks)
{
    double kv = ((double)rank->blocks_used + blocks) / rank->blocks_total;
    double requests = (rank->requests + 1.0) / rank->requests_max;
    return kv > requests ? kv : requests;
}

/* A rank steps only together with all others of its group. */
static bool is_group_there(const placement_decode_t *ranks, uint32_t rank, uint32_t group)
{
    uint32_t first = rank / group * group;
    for (uint32_t i = first; i < first + group; i++)
        if (ranks[i].blocks_total == 0) return false;
    return true;
}

uint32_t placement_choose_decode(const placement_decode_t *ranks, uint32_t rank_count,
                                 uint32_t group, uint32_t blocks)
{
    uint32_t best = PLACEMENT_NONE;
    double least = 0;
    for (uint32_t i = 0; i < rank_count; i++) {
        const placement_decode_t *rank = &ranks[i];
        if (!is_group_there(ranks, i, group) || rank->requests >= rank->requests_max) continue;
        if (rank->blocks_used > rank->blocks_total ||
            rank->blocks_total - rank->blocks_used < blocks)
            continue;
        double full = fullness(rank, blocks);
        if (best != PLACEMENT_NONE && full >= least) continue;
        best = i;
        least = full;
    }
    return best;
}
