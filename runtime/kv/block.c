/* runtime/kv/block.c - reference counts of a pool's blocks. */
#include "block.h"

#include "../invariant.h"

void block_pool_init(block_pool_t *self, uint32_t *free_list, uint32_t *references, uint32_t total)
{
    *self = (block_pool_t){ free_list, references, total, total };
    for (uint32_t i = 0; i < total; i++) {
        free_list[i] = total - 1 - i; /* the lowest leaves first: easier to read in a log */
        references[i] = 0;
    }
}

bool block_pool_take(block_pool_t *self, uint32_t count, uint32_t *blocks)
{
    if (count > self->free_count) return false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = self->free_list[--self->free_count];
        invariant(self->references[block] == 0);
        self->references[block] = 1;
        blocks[i] = block;
    }
    return true;
}

void block_pool_keep(block_pool_t *self, uint32_t block)
{
    invariant(block < self->total);
    invariant(self->references[block] > 0);
    self->references[block] += 1;
}

void block_pool_release(block_pool_t *self, uint32_t block)
{
    invariant(block < self->total);
    invariant(self->references[block] > 0);
    self->references[block] -= 1;
    if (self->references[block] > 0) return;
    invariant(self->free_count < self->total);
    self->free_list[self->free_count++] = block;
}

uint32_t block_pool_used(const block_pool_t *self)
{
    return self->total - self->free_count;
}

void block_pool_check(const block_pool_t *self)
{
    uint32_t held = 0;
    for (uint32_t i = 0; i < self->total; i++) held += self->references[i] > 0;
    invariant(held + self->free_count == self->total);
}
