/* runtime/kv/cache.h - which block of the store's pool holds which key, and which goes first.
 *
 * Entry i describes block i.  Entries form chains by their parents: an entry can be evicted only
 * when it has no children and no pins, so that what is held of a prompt is always a prefix of it,
 * and one pin on the last entry of a chain keeps all of it.  Of those that may go, the least
 * recently used goes first.
 */
#ifndef RUNTIME_KV_CACHE_H
#define RUNTIME_KV_CACHE_H

#include "key.h"
#include "table.h"

#define CACHE_NONE UINT32_MAX

typedef enum { CACHE_FREE, CACHE_PULLING, CACHE_HELD } cache_state_t;

typedef struct {
    block_key_t key;
    uint64_t checksum, used_us;
    uint32_t parent, children, pins; /* parent CACHE_NONE: the first block of a prompt */
    uint32_t older, newer; /* list of those that may be evicted; or of the free, by newer */
    cache_state_t state;
    bool is_listed;
} cache_entry_t;

typedef struct {
    cache_entry_t *entries;
    table_t table;
    uint32_t capacity, used, free_head, oldest, newest;
} cache_t;

/* `entries` has room for `capacity`, `cells` for table_cells(capacity); kept, the caller owns them.
 */
void cache_init(cache_t *self, cache_entry_t *entries, table_cell_t *cells, uint32_t capacity);

/* The entry of a key, whatever its state; CACHE_NONE when there is none. */
uint32_t cache_find(const cache_t *self, block_key_t key);

/* How many leading keys are held; *last is the entry of the last of them. */
uint32_t cache_depth(const cache_t *self, const void *keys, uint32_t key_count, uint32_t *last);

/* A new entry in state PULLING for a key that has none, evicting the least recently used if there
 * is no free one; its key then goes to *evicted (else zero).  CACHE_NONE when nothing may be
 * evicted. */
uint32_t cache_add(cache_t *self, block_key_t key, uint32_t parent, block_key_t *evicted);

/* The block of a PULLING entry is there and verified. */
void cache_hold(cache_t *self, uint32_t entry, uint64_t checksum, uint64_t now_us);

/* Forget an entry without children and pins. */
void cache_remove(cache_t *self, uint32_t entry);

void cache_touch(cache_t *self, uint32_t entry, uint64_t now_us);
void cache_pin(cache_t *self, uint32_t entry);
void cache_unpin(cache_t *self, uint32_t entry);

/* For check() and tests: lists, counts and parents agree. */
void cache_check(const cache_t *self);

#endif
