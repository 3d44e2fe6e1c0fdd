/* actors/worker.h - what prefill and decode workers do alike: pool jobs, offers to the store, ends.
 */
#ifndef ACTORS_WORKER_H
#define ACTORS_WORKER_H

#include "../runtime/actor.h"
#include "../runtime/kv/job.h"
#include "../runtime/kv/offer.h"
#include "../runtime/pool.h"

/* Does this token end the text?  The model's own end tokens do unless they are ignored, those of
 * the request always. */
typedef struct {
    bool is_end_ignored;
    const uint32_t *stop_ids;
    uint32_t stop_ids_count;
} worker_ends_t;
bool worker_is_end(const actor_t *world, const worker_ends_t *ends, uint32_t token);

/* ---- pool jobs ------------------------------------------------------------------------------ */

/* Begin to take the checksums of job->count blocks; false when that cannot begin now. */
bool worker_seal(jobs_t *jobs, actor_t *world, const job_t *job, const uint32_t *blocks);

/* Begin a pull, whose number is filled in; false when that cannot begin now. */
bool worker_pull(jobs_t *jobs, actor_t *world, const job_t *job, pool_pull_t *pull);

/* ---- offers to the store -------------------------------------------------------------------- */

typedef struct {
    header_t about;        /* the request whose blocks they are */
    uint32_t owner, count; /* its slot; at most BLOCKS_PER_MESSAGE_MAX blocks */
    uint64_t until_us;
    const uint32_t *blocks;
    const uint64_t *checksums;
    const void *keys, *parents; /* KEY_BYTES per block */
} worker_offer_t;

/* Offer sealed blocks; the offer's number, or 0 when there is no room or the link refuses.  The
 * store is only a cache: what is refused need not be offered again. */
uint64_t worker_offer(offers_t *offers, block_pool_t *pool, actor_t *world,
                      const worker_offer_t *offer);

/* ---- what ingress is told ------------------------------------------------------------------- */

/* Is the message off the worker's hands?  A full link will take it later; so will one whose other
 * end has not greeted yet.  That is borne for as long as a peer may be silent, `unheard_us` says
 * since when: the requests of an ingress that died are closed, those of one that cannot be reached
 * are its own to lose. */
bool worker_is_said(const actor_t *world, err_t error, uint64_t *unheard_us);

/* ---- steps that failed ---------------------------------------------------------------------- */

typedef struct {
    uint32_t count;
    uint64_t at_us; /* no step before */
} worker_retry_t;

/* A step failed.  True when its requests must fail: it was no lost rank, or that happened too often
 * in a row.  Otherwise it is done again, a heartbeat later. */
bool worker_step_failed(worker_retry_t *self, actor_t *world, err_t error);

#endif
