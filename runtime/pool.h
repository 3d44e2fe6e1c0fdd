/* runtime/pool.h - the pool port: a worker's or the store's KV blocks, which others may read.
 *
 * A pool is one array of equal blocks (BLOCK_TOKENS tokens of every layer) that its owner registers
 * for reading by others.  Nobody writes into another's pool: KV moves by pull.  The puller checks
 * each block against the checksum that the owner offered, so bytes that were reused meanwhile are
 * noticed. Carriers: shared memory on one host (net/wire_shm.c); RDMA READ and TCP behind the same
 * table later.
 */
#ifndef RUNTIME_POOL_H
#define RUNTIME_POOL_H

#include "actor.h"

enum { POOL_JOBS_MAX = 256 };

/* Only inside init.  ERR_NO_SPACE when the machine has not that much memory. */
err_t actor_pool_open(actor_t *world, uint32_t blocks);

/* Pull `count` blocks of a peer's pool into own blocks and verify them; ends with MSG_pool_done.
 * peer_epoch guards against a peer that restarted.  ERR_OVERLOAD: POOL_JOBS_MAX jobs are
 * outstanding. */
typedef struct {
    uint64_t job;
    address_t peer;
    uint64_t peer_epoch;
    const uint32_t *source;    /* blocks in the peer's pool */
    const uint32_t *target;    /* blocks in ours */
    const uint64_t *checksums; /* XXH3-64 of each */
    uint32_t count;            /* at most BLOCKS_PER_MESSAGE_MAX */
} pool_pull_t;
err_t actor_pool_pull(actor_t *world, const pool_pull_t *pull);

/* Checksums of own blocks, in order; ends with MSG_pool_done. */
err_t actor_pool_checksum(actor_t *world, uint64_t job, const uint32_t *blocks, uint32_t count);

#endif
