/* runtime/zmq/pool_port.c - the pool port: pulls and checksums run on one helper thread of the
 * actor, in order.
 *
 * The actor's thread fills jobs[submitted % POOL_JOBS_MAX] and then raises `submitted`; the helper
 * runs them and raises `done`; the actor's thread delivers up to `done`.  Each counter has one
 * writer, and its release pairs with the other side's acquire.
 */
#include "../pool.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <xxhash.h>

#include "../net/wire.h"
#include "ports.h"

enum {
    READERS_MAX = 16, /* peers' regions kept open; the least recently used goes first */
    KEEP_US = 50000,  /* how often our region's name is looked after */
};

typedef struct {
    uint64_t job;
    bool is_pull;
    address_t peer;
    uint64_t peer_epoch;
    uint32_t count;
    uint32_t source[BLOCKS_PER_MESSAGE_MAX], target[BLOCKS_PER_MESSAGE_MAX];
    uint64_t checksums[BLOCKS_PER_MESSAGE_MAX];
    err_t error;
} job_t;

typedef struct {
    void *reader;
    address_t peer;
    uint64_t epoch, used;
} cached_t;

typedef struct {
    const wire_t *wire;
    const char *directory;
    void *region;
    uint8_t *base;
    uint32_t blocks;
    size_t block_bytes;
    pthread_t thread;
    sem_t work;
    bool has_thread;
    int descriptor; /* eventfd: jobs are done */
    struct event *event, *keep;
    atomic_bool is_closing;
    _Atomic uint32_t submitted, done;
    uint32_t delivered;
    uint64_t uses;
    cached_t readers[READERS_MAX];
    job_t jobs[POOL_JOBS_MAX];
} pool_t;

/* ---- the helper's side ---- */

static uint8_t *block_at(const pool_t *self, uint32_t block)
{
    return self->base + (size_t)block * self->block_bytes;
}

static err_t find_reader(pool_t *self, const job_t *job, cached_t **found)
{
    cached_t *oldest = &self->readers[0];
    for (int i = 0; i < READERS_MAX; i++) {
        cached_t *cached = &self->readers[i];
        bool is_peer = cached->reader && cached->peer.role == job->peer.role &&
                       cached->peer.index == job->peer.index;
        bool is_same = is_peer && cached->epoch == job->peer_epoch;
        if (is_peer && !is_same) { /* memory of a life that is over */
            self->wire->reader_close(&cached->reader);
            cached->used = 0;
        }
        if (cached->used < oldest->used) oldest = cached;
        if (!is_same) continue;
        cached->used = ++self->uses;
        *found = cached;
        return ERR_OK;
    }
    self->wire->reader_close(&oldest->reader);
    wire_name_t name = { self->directory, job->peer, job->peer_epoch };
    err_t error = self->wire->reader_open(&oldest->reader, &name);
    if (error) return error;
    oldest->peer = job->peer;
    oldest->epoch = job->peer_epoch;
    oldest->used = ++self->uses;
    *found = oldest;
    return ERR_OK;
}

static err_t pull(pool_t *self, const job_t *job)
{
    cached_t *cached = NULL;
    err_t error = find_reader(self, job, &cached);
    for (uint32_t i = 0; i < job->count && !error; i++) {
        uint8_t *target = block_at(self, job->target[i]);
        uint64_t offset = (uint64_t)job->source[i] * self->block_bytes;
        error = self->wire->read(cached->reader, offset, target, self->block_bytes);
        if (error) break;
        if (XXH3_64bits(target, self->block_bytes) != job->checksums[i]) error = ERR_CHECKSUM;
    }
    if (error == ERR_LOST && cached) self->wire->reader_close(&cached->reader);
    return error;
}

static void run_job(pool_t *self, job_t *job)
{
    if (job->is_pull) {
        job->error = pull(self, job);
        return;
    }
    for (uint32_t i = 0; i < job->count; i++)
        job->checksums[i] = XXH3_64bits(block_at(self, job->target[i]), self->block_bytes);
}

static void *run_helper(void *arg)
{
    pool_t *self = arg;
    uint64_t one = 1;
    for (;;) {
        while (sem_wait(&self->work) != 0) invariant(errno == EINTR);
        if (atomic_load(&self->is_closing)) return NULL;
        uint32_t next = atomic_load_explicit(&self->done, memory_order_relaxed);
        invariant(next != atomic_load_explicit(&self->submitted, memory_order_acquire));
        run_job(self, &self->jobs[next % POOL_JOBS_MAX]);
        atomic_store_explicit(&self->done, next + 1, memory_order_release);
        invariant(write(self->descriptor, &one, sizeof one) == (ssize_t)sizeof one);
    }
}

/* ---- the actor's side ---- */

static void deliver_job(actor_t *world, const job_t *job)
{
    msg_t m;
    msg_init(&m, MSG_pool_done);
    m.header.from = world->self;
    m.pool_done.job = job->job;
    m.pool_done.error = (u32)job->error;
    if (!job->is_pull && !job->error) {
        m.pool_done.checksums_count = job->count;
        memcpy(m.pool_done.checksums, job->checksums, job->count * sizeof job->checksums[0]);
    }
    if (job->is_pull && !job->error)
        metrics_count(&world->metrics, METRIC_kv_blocks_pulled_total, job->count);
    if (job->error == ERR_CHECKSUM)
        metrics_count(&world->metrics, METRIC_kv_checksum_errors_total, 1);
    deliver(world, &m);
}

static void on_done(evutil_socket_t descriptor, short what, void *arg)
{
    actor_t *world = arg;
    pool_t *self = world->ports[PORT_POOL].state;
    uint64_t count;
    if (read(descriptor, &count, sizeof count) < 0) return;
    uint32_t done = atomic_load_explicit(&self->done, memory_order_acquire);
    while (self->delivered != done) {
        const job_t *job = &self->jobs[self->delivered % POOL_JOBS_MAX];
        deliver_job(world, job);
        self->delivered++; /* after: a handler that submits must not overwrite it */
    }
}

/* Without its name nobody can pull from us, and every request would fail while health says that all
 * are up: the name comes back before the attempts of a request are used up, or this life ends. */
static void on_keep(evutil_socket_t descriptor, short what, void *arg)
{
    actor_t *world = arg;
    const pool_t *self = world->ports[PORT_POOL].state;
    bool was_gone = false;
    err_t error = self->wire->region_keep(self->region, &was_gone);
    if (error) {
        actor_log(world, LOG_ERROR, "POOL-NAME", "the pool's name in %s is gone for good",
                  self->directory);
        world_fail(world, error);
    } else if (was_gone) {
        actor_log(world, LOG_WARN, "POOL-NAME",
                  "somebody deleted the pool's name in %s; it is back", self->directory);
    }
}

static void close_port(actor_t *world)
{
    pool_t *self = world->ports[PORT_POOL].state;
    if (!self) return;
    if (self->has_thread) {
        atomic_store(&self->is_closing, true);
        invariant(sem_post(&self->work) == 0);
        invariant(pthread_join(self->thread, NULL) == 0);
    }
    for (int i = 0; i < READERS_MAX; i++) self->wire->reader_close(&self->readers[i].reader);
    self->wire->region_close(&self->region);
    if (self->event) event_free(self->event);
    if (self->keep) event_free(self->keep);
    if (self->descriptor >= 0) (void)close(self->descriptor);
    (void)sem_destroy(&self->work);
    free(self);
    world->ports[PORT_POOL].state = NULL;
}

static err_t open_region(actor_t *world, pool_t *self, uint32_t blocks)
{
    error_text_t why = { "" };
    self->block_bytes = world_engine_class(world->config)->block_bytes(world->config, &why);
    if (self->block_bytes == 0) {
        actor_log(world, LOG_ERROR, "POOL-MODEL", "%s", why.text);
        return ERR_MODEL;
    }
    wire_name_t name = { world->directory, world->self, world->epoch };
    void *base = NULL;
    err_t error = self->wire->region_open(&self->region, &name, blocks * self->block_bytes, &base);
    if (error)
        actor_log(world, LOG_ERROR, "POOL-MEMORY", "%u blocks of %zu bytes cannot be had: %s",
                  blocks, self->block_bytes, error_descs[error].name);
    self->base = base;
    self->blocks = blocks;
    return error;
}

static err_t open_events(actor_t *world, pool_t *self)
{
    const struct timeval keep = { 0, KEEP_US };
    self->descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->descriptor < 0) return ERR_IO;
    self->event = event_new(world->base, self->descriptor, EV_READ | EV_PERSIST, on_done, world);
    self->keep = event_new(world->base, -1, EV_PERSIST, on_keep, world);
    if (!self->event || event_add(self->event, NULL)) return ERR_IO;
    return self->keep && !event_add(self->keep, &keep) ? ERR_OK : ERR_IO;
}

static err_t open_helper(pool_t *self)
{
    if (pthread_create(&self->thread, NULL, run_helper, self)) return ERR_IO;
    self->has_thread = true;
    return ERR_OK;
}

err_t actor_pool_open(actor_t *world, uint32_t blocks)
{
    invariant(world->is_in_init && !world->ports[PORT_POOL].state && blocks > 0);
    pool_t *self = calloc(1, sizeof *self);
    if (!self) return ERR_NO_SPACE;
    self->wire = &wire_shm;
    self->directory = world->directory;
    self->descriptor = -1;
    invariant(sem_init(&self->work, 0, 0) == 0);
    world->ports[PORT_POOL].state = self;
    world->ports[PORT_POOL].hooks.close = close_port;
    err_t error = open_region(world, self, blocks);
    if (!error) error = open_events(world, self);
    return error ? error : open_helper(self);
}

world_pool_t world_pool(const actor_t *world)
{
    const pool_t *self = world->ports[PORT_POOL].state;
    invariant(self != NULL);
    return (world_pool_t){ self->base, self->blocks, self->block_bytes };
}

/* A job to fill in; NULL: as many as there may be are outstanding. */
static job_t *take_job(pool_t *self, uint64_t number)
{
    uint32_t submitted = atomic_load_explicit(&self->submitted, memory_order_relaxed);
    if (submitted - self->delivered >= POOL_JOBS_MAX) return NULL;
    job_t *job = &self->jobs[submitted % POOL_JOBS_MAX];
    job->job = number;
    job->error = ERR_OK;
    job->count = 0;
    return job;
}

static void submit(pool_t *self)
{
    uint32_t submitted = atomic_load_explicit(&self->submitted, memory_order_relaxed);
    atomic_store_explicit(&self->submitted, submitted + 1, memory_order_release);
    invariant(sem_post(&self->work) == 0);
}

static void copy_targets(const pool_t *self, job_t *job, const uint32_t *blocks, uint32_t count)
{
    invariant(count <= BLOCKS_PER_MESSAGE_MAX);
    job->count = count;
    for (uint32_t i = 0; i < count; i++) {
        invariant(blocks[i] < self->blocks);
        job->target[i] = blocks[i];
    }
}

err_t actor_pool_pull(actor_t *world, const pool_pull_t *pull)
{
    pool_t *self = world->ports[PORT_POOL].state;
    invariant(self && (unsigned)pull->peer.role < ROLES_MAX);
    job_t *job = take_job(self, pull->job);
    if (!job) return ERR_OVERLOAD;
    copy_targets(self, job, pull->target, pull->count);
    memcpy(job->source, pull->source, pull->count * sizeof job->source[0]);
    memcpy(job->checksums, pull->checksums, pull->count * sizeof job->checksums[0]);
    job->is_pull = true;
    job->peer = pull->peer;
    job->peer_epoch = pull->peer_epoch;
    submit(self);
    return ERR_OK;
}

err_t actor_pool_checksum(actor_t *world, uint64_t number, const uint32_t *blocks, uint32_t count)
{
    pool_t *self = world->ports[PORT_POOL].state;
    invariant(self != NULL);
    job_t *job = take_job(self, number);
    if (!job) return ERR_OVERLOAD;
    copy_targets(self, job, blocks, count);
    job->is_pull = false;
    submit(self);
    return ERR_OK;
}
