/* runtime/openai/chain.c - byte strings that grow, in pages of a fixed pool; for tokens and log
 * probabilities. */
#include "chain.h"

#include <string.h>

#include "../invariant.h"

void chain_pool_init(chain_pool_t *self, chain_page_t *pages, uint32_t count)
{
    *self = (chain_pool_t){ .pages = pages, .count = count, .free_head = CHAIN_NONE };
}

static uint32_t take_page(chain_pool_t *self)
{
    invariant(self->used < self->count);
    self->used++;
    uint32_t page = self->free_head;
    if (page == CHAIN_NONE)
        page = self->fresh++;
    else
        self->free_head = self->pages[page].next;
    self->pages[page].next = CHAIN_NONE;
    return page;
}

static uint32_t pages_of(uint32_t size)
{
    return (size + CHAIN_PAGE_BYTES - 1) / CHAIN_PAGE_BYTES;
}

static void add_page(chain_pool_t *self, chain_t *chain)
{
    uint32_t page = take_page(self);
    if (chain->size == 0)
        chain->first = page;
    else
        self->pages[chain->last].next = page;
    chain->last = page;
}

bool chain_append(chain_pool_t *self, chain_t *chain, const void *data, uint32_t size)
{
    if (size > UINT32_MAX / 2 - chain->size) return false;
    if (pages_of(chain->size + size) - pages_of(chain->size) > self->count - self->used)
        return false;
    const uint8_t *bytes = data;
    while (size > 0) {
        uint32_t at = chain->size % CHAIN_PAGE_BYTES;
        if (at == 0) add_page(self, chain);
        uint32_t part = size < CHAIN_PAGE_BYTES - at ? size : CHAIN_PAGE_BYTES - at;
        memcpy(self->pages[chain->last].bytes + at, bytes, part);
        chain->size += part;
        bytes += part;
        size -= part;
    }
    return true;
}

void chain_free(chain_pool_t *self, chain_t *chain)
{
    if (chain->size > 0) {
        uint32_t pages = pages_of(chain->size);
        invariant(pages <= self->used);
        self->used -= pages;
        self->pages[chain->last].next = self->free_head;
        self->free_head = chain->first;
    }
    *chain = (chain_t){ 0 };
}

chain_cursor_t chain_begin(const chain_t *chain)
{
    return (chain_cursor_t){ chain->first, 0, chain->size };
}

bool chain_read(const chain_pool_t *self, chain_cursor_t *cursor, void *out, uint32_t size)
{
    if (size > cursor->left) return false;
    uint8_t *bytes = out;
    while (size > 0) {
        if (cursor->at == CHAIN_PAGE_BYTES) {
            cursor->page = self->pages[cursor->page].next;
            cursor->at = 0;
        }
        uint32_t part = size < CHAIN_PAGE_BYTES - cursor->at ? size : CHAIN_PAGE_BYTES - cursor->at;
        memcpy(bytes, self->pages[cursor->page].bytes + cursor->at, part);
        cursor->at += part;
        cursor->left -= part;
        bytes += part;
        size -= part;
    }
    return true;
}
