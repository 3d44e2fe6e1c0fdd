/* runtime/kv/prefix.h - which KV blocks each holder has: the longest cached prefix of a prompt.
 *
 * A holder evicts children before parents, so what it holds of a prompt is a prefix of it; what we
 * believe of it may be old, and whoever pulls asks the holder itself.  Fixed capacity: past it
 * additions are forgotten, which costs a recomputation, never a wrong answer.
 */
#ifndef RUNTIME_KV_PREFIX_H
#define RUNTIME_KV_PREFIX_H

#include "key.h"
#include "table.h"

typedef struct {
    table_t table;       /* key -> entry */
    block_key_t *keys;   /* per entry */
    uint64_t *holders;   /* words_per_entry words per entry: a bit per holder */
    uint32_t *free_list; /* entries not in use */
    uint32_t free_count, capacity, words_per_entry;
} prefix_t;

typedef struct {
    table_cell_t *cells; /* table_cells(capacity) */
    block_key_t *keys;   /* capacity */
    uint64_t *holders;   /* capacity * prefix_words(holders) */
    uint32_t *free_list; /* capacity */
} prefix_memory_t;

uint32_t prefix_words(uint32_t holders);

/* The arrays are kept; the caller owns them. */
void prefix_init(prefix_t *self, const prefix_memory_t *memory, uint32_t capacity,
                 uint32_t holders);

/* False when the index is full and the key is not in it. */
bool prefix_add(prefix_t *self, block_key_t key, uint32_t holder);
void prefix_remove(prefix_t *self, block_key_t key, uint32_t holder);

/* The holder lost everything, or we no longer know what it has. */
void prefix_forget(prefix_t *self, uint32_t holder);

/* How many leading blocks of these keys (as in messages) the holder has: a binary search over the
 * chain's depth. */
uint32_t prefix_depth(const prefix_t *self, const void *keys, uint32_t key_count, uint32_t holder);

#endif
