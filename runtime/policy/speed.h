/* runtime/policy/speed.h - how fast a rank prefills: time per token and per query-key pair, learnt
 * from its steps. */
#ifndef RUNTIME_POLICY_SPEED_H
#define RUNTIME_POLICY_SPEED_H

#include <stdint.h>

/* Sums of a least-squares fit  elapsed = tokens * a + pairs * b,  old steps fading.  All zero:
 * nothing seen yet. */
typedef struct {
    double tokens_tokens, tokens_pairs, pairs_pairs, tokens_us, pairs_us;
} speed_t;

void speed_observe(speed_t *self, uint64_t tokens, uint64_t pairs, uint64_t elapsed_us);

/* 0 while nothing is known. */
uint64_t speed_token_ns(const speed_t *self);
uint64_t speed_pair_ps(const speed_t *self);

#endif
