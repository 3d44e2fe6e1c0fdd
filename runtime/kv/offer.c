/* runtime/kv/offer.c - the table of offers; an offer's id names its place. */
#include "offer.h"

#include <string.h>

#include "../invariant.h"

void offers_init(offers_t *self, offer_t *offers, uint32_t capacity)
{
    invariant(capacity > 0);
    *self = (offers_t){ .offers = offers, .capacity = capacity };
}

const offer_t *offers_open(offers_t *self, block_pool_t *pool, const uint32_t *blocks,
                           uint32_t count)
{
    invariant(count > 0 && count <= BLOCKS_PER_MESSAGE_MAX);
    if (self->count == self->capacity) return NULL;
    uint32_t place = 0;
    while (self->offers[place].id != 0) place++; /* one is free */
    offer_t *offer = &self->offers[place];
    self->serial += 1;
    self->count += 1;
    offer->id = self->serial * self->capacity + place;
    offer->owner = UINT32_MAX;
    offer->until_us = UINT64_MAX;
    offer->count = count;
    memcpy(offer->blocks, blocks, count * sizeof *blocks);
    for (uint32_t i = 0; i < count; i++) block_pool_keep(pool, blocks[i]);
    return offer;
}

static offer_t *find(const offers_t *self, uint64_t id)
{
    offer_t *offer = &self->offers[id % self->capacity];
    return id != 0 && offer->id == id ? offer : NULL;
}

static void end(offers_t *self, block_pool_t *pool, offer_t *offer)
{
    for (uint32_t i = 0; i < offer->count; i++) block_pool_release(pool, offer->blocks[i]);
    offer->id = 0;
    invariant(self->count > 0);
    self->count -= 1;
}

bool offers_close(offers_t *self, block_pool_t *pool, uint64_t id)
{
    offer_t *offer = find(self, id);
    if (offer == NULL) return false;
    end(self, pool, offer);
    return true;
}

uint32_t offers_expire(offers_t *self, block_pool_t *pool, uint64_t now_us)
{
    uint32_t ended = 0;
    for (uint32_t i = 0; i < self->capacity && self->count > 0; i++) {
        if (self->offers[i].id == 0 || self->offers[i].until_us > now_us) continue;
        end(self, pool, &self->offers[i]);
        ended += 1;
    }
    return ended;
}

void offers_bind(offers_t *self, uint64_t id, uint32_t owner, uint64_t until_us)
{
    offer_t *offer = find(self, id);
    invariant(offer != NULL);
    offer->owner = owner;
    offer->until_us = until_us;
}

uint32_t offers_owner(const offers_t *self, uint64_t id)
{
    const offer_t *offer = find(self, id);
    return offer == NULL ? UINT32_MAX : offer->owner;
}
