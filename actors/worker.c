/* actors/worker.c - the parts of a worker that do not depend on whether it prefills or decodes. */
#include "worker.h"

#include <string.h>

#include "../runtime/engine.h"
#include "say.h"

enum { STEP_RETRIES_MAX = 8 };

static const address_t kv_store = { ROLE_kv_store, 0 };

bool worker_is_end(const actor_t *world, const worker_ends_t *ends, uint32_t token)
{
    const uint32_t *end_ids;
    uint32_t end_count = actor_engine_end_tokens(world, &end_ids);
    for (uint32_t i = 0; i < end_count && !ends->is_end_ignored; i++)
        if (end_ids[i] == token) return true;
    for (uint32_t i = 0; i < ends->stop_ids_count; i++)
        if (ends->stop_ids[i] == token) return true;
    return false;
}

bool worker_seal(jobs_t *jobs, actor_t *world, const job_t *job, const uint32_t *blocks)
{
    invariant(job->kind == JOB_SEAL);
    uint64_t id = jobs_open(jobs, job);
    if (id == 0) return false;
    if (actor_pool_checksum(world, id, blocks, job->count) == ERR_OK) return true;
    (void)jobs_close(jobs, id);
    return false;
}

bool worker_pull(jobs_t *jobs, actor_t *world, const job_t *job, pool_pull_t *pull)
{
    invariant(job->kind == JOB_PULL && job->count == pull->count);
    pull->job = jobs_open(jobs, job);
    if (pull->job == 0) return false;
    if (actor_pool_pull(world, pull) == ERR_OK) return true;
    (void)jobs_close(jobs, pull->job);
    return false;
}

uint64_t worker_offer(offers_t *offers, block_pool_t *pool, actor_t *world,
                      const worker_offer_t *offer)
{
    uint32_t count = offer->count;
    const offer_t *opened = offers_open(offers, pool, offer->blocks, count);
    if (opened == NULL) return 0;
    uint64_t id = opened->id;
    offers_bind(offers, id, offer->owner, offer->until_us);
    msg_t m;
    msg_init(&m, MSG_store_offer);
    m.store_offer.offer = id;
    m.store_offer.blocks_count = m.store_offer.checksums_count = count;
    memcpy(m.store_offer.blocks, offer->blocks, count * sizeof *offer->blocks);
    memcpy(m.store_offer.checksums, offer->checksums, count * sizeof *offer->checksums);
    m.store_offer.keys = (bytes_t){ offer->keys, (size_t)count * KEY_BYTES };
    m.store_offer.parents = (bytes_t){ offer->parents, (size_t)count * KEY_BYTES };
    if (say_about(world, kv_store, &m, &offer->about) == ERR_OK) return id;
    (void)offers_close(offers, pool, id);
    return 0;
}

bool worker_is_said(const actor_t *world, err_t error, uint64_t *unheard_us)
{
    if (error != ERR_LOST) {
        *unheard_us = 0;
        return error != ERR_OVERLOAD;
    }
    uint64_t now = actor_now_us(world);
    if (*unheard_us == 0) *unheard_us = now;
    return now - *unheard_us >= (uint64_t)actor_config(world)->timing.dead_ms * 1000;
}

bool worker_step_failed(worker_retry_t *self, actor_t *world, err_t error)
{
    actor_count(world, METRIC_step_errors_total, 1);
    self->at_us = actor_now_us(world) + (uint64_t)actor_config(world)->timing.heartbeat_ms * 1000;
    bool is_over = error != ERR_EP_PEER || self->count++ >= STEP_RETRIES_MAX;
    if (is_over) self->count = 0;
    return is_over;
}
