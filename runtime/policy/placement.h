/* runtime/policy/placement.h - where a prompt is prefilled and where it is decoded. */
#ifndef RUNTIME_POLICY_PLACEMENT_H
#define RUNTIME_POLICY_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#define PLACEMENT_NONE UINT32_MAX

/* One prefill rank as its balancer sees it. */
typedef struct {
    bool is_open;            /* up, and has room for one more request of this size */
    uint64_t waiting_tokens; /* not yet computed, of all it was given */
    uint64_t waiting_pairs;  /* query-key pairs of core attention among them */
    uint64_t token_ns;       /* time per token without core attention; ns */
    uint64_t pair_ps;        /* time per pair; ps */
    uint32_t cached_tokens;  /* of this prompt, found in a cache */
} placement_prefill_t;

/* Query-key pairs when tokens first .. end - 1 of a causal prompt are computed: row i sees i + 1
 * keys. */
uint64_t placement_pairs(uint32_t first, uint32_t end);

/* When this rank would be done with the prompt, all before it included; us. */
uint64_t placement_predict_us(const placement_prefill_t *rank, uint32_t prompt_tokens);

/* The open rank with the least predicted time; ties go to the lowest index, so that one seed gives
 * one history. Since time counts tokens and core attention, both are balanced.  PLACEMENT_NONE when
 * none is open. */
uint32_t placement_choose_prefill(const placement_prefill_t *ranks, uint32_t rank_count,
                                  uint32_t prompt_tokens);

/* One decode rank as its balancer sees it. */
typedef struct {
    uint32_t blocks_total, blocks_used; /* total 0: absent */
    uint32_t requests_max, requests;
} placement_decode_t;

/* Of the ranks with room for `blocks` and one more request, the one whose fuller resource (KV
 * blocks or requests) is least full afterwards; ties go to the lowest index.  PLACEMENT_NONE when
 * none has room.  `group` ranks
 * one after the other step together: where one is absent the others take nothing. */
uint32_t placement_choose_decode(const placement_decode_t *ranks, uint32_t rank_count,
                                 uint32_t group, uint32_t blocks);

#endif
