/* runtime/kv/lease.c - batches of renewals: three lists side by side. */
#include "lease.h"

#include "../invariant.h"

bool lease_batch_add(msg_lease_renew_t *batch, request_id_t request, uint32_t attempt)
{
    uint32_t at = batch->ids_hi_count;
    invariant(at < RENEW_MAX);
    batch->ids_hi[at] = request.hi;
    batch->ids_lo[at] = request.lo;
    batch->attempts[at] = attempt;
    batch->ids_hi_count = batch->ids_lo_count = batch->attempts_count = at + 1;
    return at + 1 == RENEW_MAX;
}

bool lease_batch_get(const msg_lease_renew_t *batch, uint32_t index, request_id_t *request,
                     uint32_t *attempt)
{
    if (batch->ids_lo_count != batch->ids_hi_count || batch->attempts_count != batch->ids_hi_count)
        return false;
    if (index >= batch->ids_hi_count) return false;
    *request = (request_id_t){ batch->ids_hi[index], batch->ids_lo[index] };
    *attempt = batch->attempts[index];
    return true;
}
