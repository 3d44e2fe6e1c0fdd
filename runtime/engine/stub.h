/* runtime/engine/stub.h - what the stub engine promises: the oracle of all tests. */
#ifndef RUNTIME_ENGINE_STUB_H
#define RUNTIME_ENGINE_STUB_H

#include "core.h"

enum {
    STUB_VOCAB_DEFAULT = 4096, /* where no model can be read */
    STUB_ENTRY_BYTES = 8,      /* KV of one token: the chained hash of all tokens up to it */
};

/* Texts with a seed whose upper half is this end by themselves, with probability 1 in
 * STUB_ENDING_ONE_IN at each index; all others go on for ever. */
#define STUB_ENDING_SEED ((uint64_t)0x5eed0e0d << 32)
enum { STUB_ENDING_ONE_IN = 16 };

/* As engine_stub_class, but a step never sleeps: for virtual time. */
extern const engine_class_t engine_stub_timeless_class;

/* The token of this index of an answer with this seed: an ordinary id, or end_token where the text
 * ends. */
uint32_t engine_stub_token(uint32_t vocab, uint32_t end_token, const sampling_t *sampling,
                           uint32_t index);

/* Its log probability. */
float engine_stub_logprob(uint64_t seed, uint32_t index);

/* What the vocabulary and the first end token of this configuration are. */
void engine_stub_vocabulary(const config_t *config, uint32_t *vocab, uint32_t *end_token);

/* Steps that found a KV entry other than the sequence's tokens demand: wrong, missing or stale. */
uint64_t engine_stub_violations(const void *core);

#endif
