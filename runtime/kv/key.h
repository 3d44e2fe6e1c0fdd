/* runtime/kv/key.h - the name of a KV block: a hash of everything its content depends on.
 *
 * A block's key is SHA-256 over its parent's key and its own 64 tokens, cut to KEY_BYTES.  The
 * parent of a prompt's first block is the root, SHA-256 over the model key, so that keys of
 * different models, dtypes or KV layouts never meet.  Two prompts share a key exactly when they
 * share every token up to the block's end.
 */
#ifndef RUNTIME_KV_KEY_H
#define RUNTIME_KV_KEY_H

#include "../../proto/messages.h"

/* A key as two words, in the order of its bytes in a message. */
typedef struct {
    uint64_t hi, lo;
} block_key_t;

static inline bool block_key_equal(block_key_t a, block_key_t b)
{
    return a.hi == b.hi && a.lo == b.lo;
}

static inline bool block_key_is_zero(block_key_t key)
{
    return key.hi == 0 && key.lo == 0;
}

/* The key at `index` of a BYTES field of keys; the caller has checked its size. */
block_key_t block_key_load(const void *keys, uint32_t index);
void block_key_store(void *keys, uint32_t index, block_key_t key);

typedef struct key_maker key_maker_t;

/* Holds the hash's state, so that keys are made without malloc.  NULL when there is no memory.
 * Caller owns it. */
key_maker_t *key_maker_new(void);
void key_maker_destroy(key_maker_t **self);

/* The parent of every first block under this model key. */
block_key_t key_maker_root(key_maker_t *self, uint64_t model_key);

/* The key of the block of these BLOCK_TOKENS tokens after `parent`. */
block_key_t key_maker_next(key_maker_t *self, block_key_t parent, const uint32_t *tokens);

/* Keys of every full block of a prompt, KEY_BYTES each, into `keys`; returns how many: token_count
 * / BLOCK_TOKENS. `keys` has room for that many. */
uint32_t key_maker_prompt(key_maker_t *self, uint64_t model_key, const uint32_t *tokens,
                          uint32_t token_count, uint8_t *keys);

#endif
