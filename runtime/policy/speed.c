/* runtime/policy/speed.c - two unknowns by normal equations; neither may come out negative. */
#include "speed.h"

static const double fade = 0.98; /* half of it is forgotten after 34 steps */

void speed_observe(speed_t *self, uint64_t tokens, uint64_t pairs, uint64_t elapsed_us)
{
    double t = (double)tokens, p = (double)pairs, us = (double)elapsed_us;
    self->tokens_tokens = self->tokens_tokens * fade + t * t;
    self->tokens_pairs = self->tokens_pairs * fade + t * p;
    self->pairs_pairs = self->pairs_pairs * fade + p * p;
    self->tokens_us = self->tokens_us * fade + t * us;
    self->pairs_us = self->pairs_us * fade + p * us;
}

typedef struct {
    double token_us, pair_us;
} fit_t;

static fit_t fit(const speed_t *self)
{
    if (self->tokens_tokens <= 0) return (fit_t){ 0, 0 };
    fit_t by_tokens = { self->tokens_us / self->tokens_tokens, 0 };
    double determinant =
        self->tokens_tokens * self->pairs_pairs - self->tokens_pairs * self->tokens_pairs;
    if (determinant <= 1e-6 * self->tokens_tokens * self->pairs_pairs)
        return by_tokens; /* all steps alike */
    double token =
        (self->tokens_us * self->pairs_pairs - self->pairs_us * self->tokens_pairs) / determinant;
    double pair =
        (self->pairs_us * self->tokens_tokens - self->tokens_us * self->tokens_pairs) / determinant;
    if (pair < 0) return by_tokens;
    if (token < 0) return (fit_t){ 0, self->pairs_us / self->pairs_pairs };
    return (fit_t){ token, pair };
}

uint64_t speed_token_ns(const speed_t *self)
{
    if (self->tokens_tokens <= 0) return 0;
    return (uint64_t)(fit(self).token_us * 1e3) + 1;
}

uint64_t speed_pair_ps(const speed_t *self)
{
    if (self->tokens_tokens <= 0) return 0;
    return (uint64_t)(fit(self).pair_us * 1e6) + 1;
}
