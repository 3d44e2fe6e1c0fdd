/* runtime/openai/chain.h - byte strings that grow, in pages of a fixed pool; for tokens and log
 * probabilities.
 *
 * Room is taken page by page: a request that streams ten tokens holds one page, whatever it may
 * still generate.
 */
#ifndef RUNTIME_OPENAI_CHAIN_H
#define RUNTIME_OPENAI_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHAIN_NONE UINT32_MAX

enum { CHAIN_PAGE_BYTES = 252 };

typedef struct {
    uint32_t next;
    uint8_t bytes[CHAIN_PAGE_BYTES];
} chain_page_t;

typedef struct {
    chain_page_t *pages;                    /* the caller's, zeroed */
    uint32_t count, used, fresh, free_head; /* fresh: pages from here on were never touched */
} chain_pool_t;

/* All zero is an empty chain. */
typedef struct {
    uint32_t first, last, size;
} chain_t;

void chain_pool_init(chain_pool_t *self, chain_page_t *pages, uint32_t count);

/* Append; false, and nothing is changed, when the pool has too few pages. */
bool chain_append(chain_pool_t *self, chain_t *chain, const void *data, uint32_t size);
void chain_free(chain_pool_t *self, chain_t *chain);

/* A place in a chain; read moves it on.  False when fewer bytes are left. */
typedef struct {
    uint32_t page, at, left;
} chain_cursor_t;
chain_cursor_t chain_begin(const chain_t *chain);
bool chain_read(const chain_pool_t *self, chain_cursor_t *cursor, void *out, uint32_t size);

#endif
