/* tests/actors/worker_world.h - a world of one worker, balancer or store: keeps what it sends and
 * what it asks of its engine and pool, and delivers what a test says others sent. */
#ifndef TESTS_ACTORS_WORKER_WORLD_H
#define TESTS_ACTORS_WORKER_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/base/config.h"
#include "runtime/engine.h"
#include "runtime/pool.h"

enum {
    SENT_MAX = 2048,
    JOBS_KEPT_MAX = 64,
    ROWS_KEPT_MAX = 128,
    ALLOCATIONS_MAX = 128,
    END_TOKEN = 1
};

typedef struct {
    address_t to;
    uint8_t *frame; /* as on the wire, so that borrowed bytes live as long as the test */
    msg_t m;
} sent_t;

typedef struct {
    uint64_t job;
    bool is_pull;
    uint32_t count;
    uint32_t source[BLOCKS_PER_MESSAGE_MAX], target[BLOCKS_PER_MESSAGE_MAX];
} asked_t;

struct actor {
    const actor_class_t *class;
    void *state;
    config_t config;
    uint64_t now_us;
    address_t deaf; /* sends to it are refused with deaf_answer */
    err_t deaf_answer;
    sent_t sent[SENT_MAX];
    uint32_t sent_count;
    asked_t jobs[JOBS_KEPT_MAX]; /* under way, oldest first */
    uint32_t job_count;
    engine_row_t rows[ROWS_KEPT_MAX]; /* of the step under way */
    uint32_t row_count;
    uint64_t step;
    uint32_t started, closed, extended, appended;
    engine_open_t opened; /* the last sequence; its pointers are not to be followed */
    uint64_t counters[METRICS_MAX];
    bool is_in_init;
    void *allocations[ALLOCATIONS_MAX];
    uint32_t allocation_count;
};

/* ---- the contract --------------------------------------------------------------------------- */

uint64_t actor_now_us(const actor_t *world)
{
    return world->now_us;
}

address_t actor_self(const actor_t *world)
{
    return (address_t){ world->class->role, 0 };
}

/* Every peer lives its first life, 100 + index, unless it is deaf and lost. */
uint64_t actor_peer_epoch(const actor_t *world, address_t peer)
{
    bool is_deaf = world->deaf.role == peer.role && world->deaf.index == peer.index;
    return is_deaf && world->deaf_answer == ERR_LOST ? 0 : 100 + peer.index;
}

uint64_t actor_epoch(const actor_t *world)
{
    return 1;
}

const config_t *actor_config(const actor_t *world)
{
    return &world->config;
}

void *actor_alloc(actor_t *world, size_t count, size_t size)
{
    assert_true(world->is_in_init && world->allocation_count < ALLOCATIONS_MAX);
    return world->allocations[world->allocation_count++] = calloc(count, size);
}

err_t actor_send(actor_t *world, address_t to, const msg_t *m)
{
    static uint8_t frame[2 << 20];
    if (world->deaf_answer != ERR_OK && world->deaf.role == to.role &&
        world->deaf.index == to.index)
        return world->deaf_answer;
    size_t used, size = msg_encode(m, frame, sizeof frame); /* its fields are in range */
    assert_true(size > 0 && world->sent_count < SENT_MAX);
    sent_t *sent = &world->sent[world->sent_count++];
    sent->to = to;
    sent->frame = malloc(size);
    memcpy(sent->frame, frame, size);
    assert_int_equal(msg_decode(&sent->m, sent->frame, size, &used), ERR_OK);
    return ERR_OK;
}

void actor_wake_at(actor_t *world, uint64_t at_us)
{
}

uint64_t actor_random(actor_t *world)
{
    return 4;
}

void actor_log(actor_t *world, log_level_t level, const char *id, const char *format, ...)
{
}

void actor_count(actor_t *world, metric_t counter, uint64_t by)
{
    world->counters[counter] += by;
}

void actor_gauge(actor_t *world, metric_t gauge, double value)
{
}

void actor_observe(actor_t *world, metric_t histogram, double value)
{
}

err_t actor_pool_open(actor_t *world, uint32_t blocks)
{
    return ERR_OK;
}

static inline asked_t *new_job(actor_t *world, uint64_t id, uint32_t count)
{
    assert_true(world->job_count < JOBS_KEPT_MAX && count > 0 && count <= BLOCKS_PER_MESSAGE_MAX);
    asked_t *job = &world->jobs[world->job_count++];
    *job = (asked_t){ .job = id, .count = count };
    return job;
}

err_t actor_pool_pull(actor_t *world, const pool_pull_t *pull)
{
    asked_t *job = new_job(world, pull->job, pull->count);
    job->is_pull = true;
    memcpy(job->source, pull->source, pull->count * sizeof *pull->source);
    memcpy(job->target, pull->target, pull->count * sizeof *pull->target);
    return ERR_OK;
}

err_t actor_pool_checksum(actor_t *world, uint64_t id, const uint32_t *blocks, uint32_t count)
{
    memcpy(new_job(world, id, count)->target, blocks, count * sizeof *blocks);
    return ERR_OK;
}

err_t actor_engine_open(actor_t *world, const engine_limits_t *limits)
{
    return ERR_OK;
}

err_t actor_engine_start(actor_t *world, uint32_t slot, const engine_open_t *sequence)
{
    world->started += 1;
    world->opened = *sequence;
    return ERR_OK;
}

void actor_engine_extend(actor_t *world, uint32_t slot, const uint32_t *blocks, uint32_t count)
{
    world->extended += count;
}

void actor_engine_append(actor_t *world, uint32_t slot, uint32_t token)
{
    world->appended += 1;
}

err_t actor_engine_step(actor_t *world, uint64_t step, const engine_row_t *rows, uint32_t row_count)
{
    assert_int_equal(world->row_count, 0);
    assert_in_range(row_count, 1, ROWS_KEPT_MAX);
    memcpy(world->rows, rows, row_count * sizeof *rows);
    world->row_count = row_count;
    world->step = step;
    return ERR_OK;
}

void actor_engine_close(actor_t *world, uint32_t slot)
{
    world->closed += 1;
}

uint32_t actor_engine_end_tokens(const actor_t *world, const uint32_t **ids)
{
    static const uint32_t end_ids[] = { END_TOKEN };
    *ids = end_ids;
    return 1;
}

/* ---- driving it ----------------------------------------------------------------------------- */

static uint32_t ranks_per_group = 1;

/* Small numbers, so that limits are reached: 2 + 2 workers, queues of 4, pools of 8 blocks, chunks
 * of 128. */
static inline actor_t *world_new(const actor_class_t *class)
{
    actor_t *world = calloc(1, sizeof *world);
    config_t *config = &world->config;
    config->limits.queue_max = 4;
    config->limits.context_max = 1024;
    config->company.ingresses = 1;
    config->company.prefill_workers = config->company.decode_workers = 2;
    config->company.prefill_ep = config->company.decode_ep = ranks_per_group;
    config->prefill.kv_blocks = config->decode.kv_blocks = 8;
    config->prefill.requests_max = config->decode.batch_max = 4;
    config->prefill.chunk_tokens = 128;
    config->store.kv_blocks = 8;
    config->timing.heartbeat_ms = 200;
    config->timing.dead_ms = 1000;
    config->timing.lease_ms = 2000;
    world->class = class;
    world->now_us = 1000000;
    world->deaf.role = ROLES_MAX;
    world->state = calloc(1, class->state_size);
    world->is_in_init = true;
    assert_int_equal(class->init(world->state, world), ERR_OK);
    world->is_in_init = false;
    return world;
}

static inline void forget_sent(actor_t *world)
{
    for (uint32_t i = 0; i < world->sent_count; i++) free(world->sent[i].frame);
    world->sent_count = 0;
}

static inline void world_destroy(actor_t *world)
{
    if (world->class->fini) world->class->fini(world->state, world);
    forget_sent(world);
    for (uint32_t i = 0; i < world->allocation_count; i++) free(world->allocations[i]);
    free(world->state);
    free(world);
}

static inline void end_turn(actor_t *world)
{
    world->class->check(world->state);
    if (world->class->turn) world->class->turn(world->state, world);
    world->class->check(world->state);
}

static inline void deliver(actor_t *world, address_t from, msg_t *m)
{
    assert_non_null(world->class->on[m->type]);
    m->header.from = from;
    m->header.epoch = 100 + from.index;
    world->class->on[m->type](world->state, world, m);
    end_turn(world);
}

static inline void pass(actor_t *world, uint64_t ms)
{
    for (uint64_t i = 0; i < ms; i += 200) {
        world->now_us += 200000;
        world->class->wake(world->state, world);
        end_turn(world);
    }
}

static inline void deliver_peer(actor_t *world, msg_type_t type, role_t role, uint32_t index)
{
    msg_t m;
    msg_init(&m, type);
    m.peer_up.role = role; /* peer_down has the same fields */
    m.peer_up.index = index;
    m.peer_up.peer_epoch = 100 + index;
    deliver(world, (address_t){ role, index }, &m);
}

/* A message about request `number`. */
static inline msg_t about(msg_type_t type, uint32_t number, uint32_t attempt)
{
    msg_t m;
    msg_init(&m, type);
    m.header.request = (request_id_t){ number, 77 };
    m.header.attempt = attempt;
    return m;
}

/* The next message of this type that was sent and not yet taken; NULL when there is none. */
static inline const msg_t *take(actor_t *world, msg_type_t type, address_t *to)
{
    static msg_t taken;
    for (uint32_t i = 0; i < world->sent_count; i++) {
        if (world->sent[i].m.type != type || world->sent[i].to.role == ROLES_MAX) continue;
        if (to != NULL) *to = world->sent[i].to;
        taken = world->sent[i].m;
        world->sent[i].to.role = ROLES_MAX;
        return &taken;
    }
    return NULL;
}

/* Finish the oldest pool job. */
static inline void finish_job(actor_t *world, err_t error)
{
    assert_true(world->job_count > 0);
    asked_t job = world->jobs[0];
    world->job_count -= 1;
    memmove(world->jobs, world->jobs + 1, world->job_count * sizeof *world->jobs);
    msg_t m;
    msg_init(&m, MSG_pool_done);
    m.pool_done.job = job.job;
    m.pool_done.error = (u32)error;
    if (!job.is_pull && error == ERR_OK) {
        m.pool_done.checksums_count = job.count;
        for (uint32_t i = 0; i < job.count; i++) m.pool_done.checksums[i] = 1000 + job.target[i];
    }
    deliver(world, actor_self(world), &m);
}

static inline void engine_ready(actor_t *world)
{
    msg_t m;
    msg_init(&m, MSG_engine_ready);
    deliver(world, actor_self(world), &m);
}

/* Finish the step under way; every row that asks for a token gets this one. */
static inline void finish_step(actor_t *world, err_t error, uint32_t token)
{
    static engine_result_t results[ROWS_KEPT_MAX];
    assert_true(world->row_count > 0);
    uint32_t count = 0;
    for (uint32_t i = 0; i < world->row_count; i++)
        if (world->rows[i].is_last)
            results[count++] = (engine_result_t){ .slot = world->rows[i].slot, .token = token };
    msg_t m;
    msg_init(&m, MSG_engine_done);
    m.engine_done.step = world->step;
    m.engine_done.error = (u32)error;
    m.engine_done.elapsed_us = 1000;
    m.engine_done.results = (bytes_t){ results, error == ERR_OK ? count * sizeof *results : 0 };
    world->row_count = 0;
    deliver(world, actor_self(world), &m);
}

static const address_t an_ingress = { ROLE_ingress, 0 };
static const address_t a_prefill_lb = { ROLE_prefill_lb, 0 };
static const address_t a_decode_lb = { ROLE_decode_lb, 0 };
static const address_t a_store = { ROLE_kv_store, 0 };

static inline void cancel(actor_t *world, address_t from, uint32_t number, uint32_t attempt)
{
    msg_t m = about(MSG_cancel, number, attempt);
    deliver(world, from, &m);
}

/* Does a balancer say that it holds this attempt? */
static inline bool is_held(actor_t *world, uint32_t number, uint32_t attempt)
{
    msg_t m = about(MSG_request_probe, number, attempt);
    deliver(world, an_ingress, &m);
    return take(world, MSG_request_held, NULL)->request_held.is_held;
}

#endif
