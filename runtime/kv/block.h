/* runtime/kv/block.h - who still needs each block of a pool: reference counts and the free list. */
#ifndef RUNTIME_KV_BLOCK_H
#define RUNTIME_KV_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint32_t *free_list;  /* the first free_count are free */
    uint32_t *references; /* per block; 0: free */
    uint32_t total, free_count;
} block_pool_t;

/* Both arrays have room for `total`; they are kept, the caller owns them.  All blocks are free. */
void block_pool_init(block_pool_t *self, uint32_t *free_list, uint32_t *references, uint32_t total);

/* Take `count` free blocks with one reference each: all or none.  False when there are not that
 * many. */
bool block_pool_take(block_pool_t *self, uint32_t count, uint32_t *blocks);

/* One more reference to a block that is held. */
void block_pool_keep(block_pool_t *self, uint32_t block);

/* One reference less; the last one frees the block. */
void block_pool_release(block_pool_t *self, uint32_t block);

uint32_t block_pool_used(const block_pool_t *self);

/* Count the free list against the references; for check() and tests. */
void block_pool_check(const block_pool_t *self);

#endif
