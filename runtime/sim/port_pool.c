/* runtime/sim/port_pool.c - the pool port: blocks are pulled and verified when a job ends. */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { JOB_LEAST_US = 20, JOB_MEAN_US = 200 };

err_t actor_pool_open(actor_t *world, uint32_t blocks)
{
    pool_port_t *pool = &world->pool;
    invariant(world->is_in_init && !pool->bytes && blocks > 0 && world->sim->block_bytes > 0);
    *pool = (pool_port_t){ .blocks = blocks, .block_bytes = world->sim->block_bytes };
    pool->bytes = calloc(blocks, pool->block_bytes);
    return pool->bytes ? ERR_OK : ERR_NO_SPACE;
}

void pool_port_free(pool_port_t *self)
{
    while (self->head) {
        pool_job_t *job = self->head;
        self->head = job->next;
        free(job);
    }
    free(self->bytes);
    *self = (pool_port_t){ 0 };
}

static err_t add(actor_t *world, const pool_job_t *job)
{
    sim_t *self = world->sim;
    pool_port_t *pool = &world->pool;
    if (pool->jobs == POOL_JOBS_MAX) return ERR_OVERLOAD;
    pool_job_t *copy = malloc(sizeof *copy);
    invariant(copy);
    *copy = *job;
    copy->next = NULL;
    if (pool->head)
        pool->tail->next = copy;
    else
        pool->head = copy;
    pool->tail = copy;
    pool->jobs++;
    events_push(&self->queue, (event_t){ .at_us = self->now_us + JOB_LEAST_US +
                                                  random_exponential(self, JOB_MEAN_US),
                                         .kind = EVENT_POOL,
                                         .stamp = world->stamp,
                                         .subject = world });
    return ERR_OK;
}

err_t actor_pool_pull(actor_t *world, const pool_pull_t *pull)
{
    invariant(pull->count > 0 && pull->count <= BLOCKS_PER_MESSAGE_MAX);
    static const pool_job_t empty;
    pool_job_t job = empty;
    job.job = pull->job;
    job.peer = pull->peer;
    job.peer_epoch = pull->peer_epoch;
    job.count = pull->count;
    for (uint32_t i = 0; i < pull->count; i++) {
        invariant(pull->target[i] < world->pool.blocks);
        job.source[i] = pull->source[i];
        job.target[i] = pull->target[i];
        job.checksums[i] = pull->checksums[i];
    }
    return add(world, &job);
}

err_t actor_pool_checksum(actor_t *world, uint64_t number, const uint32_t *blocks, uint32_t count)
{
    invariant(count > 0 && count <= BLOCKS_PER_MESSAGE_MAX);
    static const pool_job_t empty;
    pool_job_t job = empty;
    job.job = number;
    job.is_checksum = true;
    job.count = count;
    for (uint32_t i = 0; i < count; i++) {
        invariant(blocks[i] < world->pool.blocks);
        job.source[i] = blocks[i];
    }
    return add(world, &job);
}

static uint8_t *block(const pool_port_t *pool, uint32_t index)
{
    return pool->bytes + (size_t)index * pool->block_bytes;
}

/* A failed pull leaves rubbish behind, as a torn read does. */
static err_t spoil(sim_t *self, const pool_port_t *pool, const pool_job_t *job, err_t error)
{
    uint32_t index = job->target[random_below(self, job->count)];
    memset(block(pool, index), 0x5a, pool->block_bytes);
    return error;
}

static err_t pull(sim_t *self, const actor_t *node, const pool_job_t *job)
{
    const pool_port_t *pool = &node->pool;
    const actor_t *peer = node_find(self, job->peer);
    if (!peer || !peer->is_alive || peer->epoch != job->peer_epoch || !peer->pool.bytes ||
        random_chance(self, self->options.pull_lost_rate))
        return spoil(self, pool, job, ERR_LOST);
    for (uint32_t i = 0; i < job->count; i++) {
        if (job->source[i] >= peer->pool.blocks) return ERR_CHECKSUM;
        memcpy(block(pool, job->target[i]), block(&peer->pool, job->source[i]), pool->block_bytes);
    }
    if (random_chance(self, self->options.pull_corrupt_rate)) block(pool, job->target[0])[0] ^= 1;
    for (uint32_t i = 0; i < job->count; i++)
        if (XXH3_64bits(block(pool, job->target[i]), pool->block_bytes) != job->checksums[i])
            return ERR_CHECKSUM;
    return ERR_OK;
}

void pool_port_end_job(sim_t *self, actor_t *node)
{
    pool_port_t *pool = &node->pool;
    if (node->is_paused) {
        events_push(&self->queue, (event_t){ .at_us = self->now_us + 1000,
                                             .kind = EVENT_POOL,
                                             .stamp = node->stamp,
                                             .subject = node });
        return;
    }
    pool_job_t *job = pool->head;
    invariant(job);
    msg_t m;
    msg_init(&m, MSG_pool_done);
    m.header = (header_t){ .from = node->address };
    m.pool_done.job = job->job;
    m.pool_done.error = (u32)(job->is_checksum ? ERR_OK : pull(self, node, job));
    for (uint32_t i = 0; job->is_checksum && i < job->count; i++)
        m.pool_done.checksums[i] = XXH3_64bits(block(pool, job->source[i]), pool->block_bytes);
    m.pool_done.checksums_count = job->is_checksum ? job->count : 0;
    pool->head = job->next;
    pool->jobs--;
    free(job);
    node_tell(self, node, &m, NULL, 0);
}
