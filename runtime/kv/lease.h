/* runtime/kv/lease.h - leases: a time until which somebody's interest is believed, and batches of
 * renewals. */
#ifndef RUNTIME_KV_LEASE_H
#define RUNTIME_KV_LEASE_H

#include "../../proto/messages.h"

typedef struct {
    uint64_t until_us; /* 0: never given */
} lease_t;

static inline void lease_extend(lease_t *self, uint64_t now_us, uint64_t length_us)
{
    self->until_us = now_us + length_us;
}

static inline bool lease_is_over(const lease_t *self, uint64_t now_us)
{
    return now_us >= self->until_us;
}

/* Is more than half of its length gone without renewal? */
static inline bool lease_is_old(const lease_t *self, uint64_t now_us, uint64_t length_us)
{
    return now_us + length_us / 2 >= self->until_us;
}

/* Add one request to a batch of renewals; true when the batch is full and must be sent. */
bool lease_batch_add(msg_lease_renew_t *batch, request_id_t request, uint32_t attempt);

/* The request at `index` of a batch that came from a peer; false past its end or when its lists
 * differ in length. */
bool lease_batch_get(const msg_lease_renew_t *batch, uint32_t index, request_id_t *request,
                     uint32_t *attempt);

#endif
