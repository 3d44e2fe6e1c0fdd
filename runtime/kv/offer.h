/* runtime/kv/offer.h - a worker's blocks that it offered to the store and holds until they are
 * taken.
 *
 * An offer keeps a reference to each of its blocks.  It ends with store_taken, with the store's
 * death, or with its lease, whichever comes first: a lost message delays a block by one lease,
 * never longer.
 */
#ifndef RUNTIME_KV_OFFER_H
#define RUNTIME_KV_OFFER_H

#include "../../proto/messages.h"
#include "block.h"

typedef struct {
    uint64_t id; /* 0: not in use */
    uint64_t until_us;
    uint32_t owner; /* slot of the request, for whoever waits for the end of its offers */
    uint32_t count;
    uint32_t blocks[BLOCKS_PER_MESSAGE_MAX];
} offer_t;

typedef struct {
    offer_t *offers;
    uint32_t capacity, count;
    uint64_t serial;
} offers_t;

/* `offers` is zeroed and has room for `capacity`; kept, the caller owns it. */
void offers_init(offers_t *self, offer_t *offers, uint32_t capacity);

/* A new offer with these blocks, each kept once more; NULL when the table is full.  count is at
 * most BLOCKS_PER_MESSAGE_MAX. */
const offer_t *offers_open(offers_t *self, block_pool_t *pool, const uint32_t *blocks,
                           uint32_t count);

/* End one offer and release its blocks; false when there is no such offer. */
bool offers_close(offers_t *self, block_pool_t *pool, uint64_t id);

/* End all whose time is over; UINT64_MAX ends all.  Returns how many. */
uint32_t offers_expire(offers_t *self, block_pool_t *pool, uint64_t now_us);

/* Set owner and deadline of an offer just opened. */
void offers_bind(offers_t *self, uint64_t id, uint32_t owner, uint64_t until_us);

/* The owner of an open offer; UINT32_MAX when there is no such offer. */
uint32_t offers_owner(const offers_t *self, uint64_t id);

#endif
