/* actors/kv_store.c - keeps KV blocks in memory for prompts to come.
 *
 *   prefill_worker, decode_worker --store_offer--> kv_store --store_taken--> who offered
 *   prefill_worker --store_ask, store_release--> kv_store --store_found--> prefill_worker
 *   prefill_lb --prefix_sync--> kv_store --prefix_added, prefix_removed--> prefill_lb
 *
 * Policy: least recently used first out, children before parents, never while leased.  Offers are
 * pulled one after the other, so that a block's parent is known to be here, verified, when the
 * block is.  A block whose pull is under way is offered to nobody; bytes that do not match the
 * checksum are never held.
 */
#include "kv_store.h"

#include <string.h>

#include "../runtime/kv/cache.h"
#include "../runtime/kv/lease.h"
#include "../runtime/pool.h"

enum { OFFERS_QUEUE_MAX = 256, SYNC_MESSAGES_MAX = 256 };
#define NONE UINT32_MAX

/* One offer, waiting for its turn. */
typedef struct {
    address_t from;
    uint64_t epoch, offer;
    uint32_t count;
    uint32_t blocks[BLOCKS_PER_MESSAGE_MAX];
    uint64_t checksums[BLOCKS_PER_MESSAGE_MAX];
    block_key_t keys[BLOCKS_PER_MESSAGE_MAX];
    block_key_t parents[BLOCKS_PER_MESSAGE_MAX];
} queued_offer_t;

/* Blocks that a prefill worker was told to pull: a pin on the last of the chain. */
typedef struct {
    request_id_t request;
    uint32_t attempt, worker, entry;
    uint32_t next; /* of the free list */
    lease_t lease;
    bool is_used;
} found_t;

/* The pull under way, which belongs to the offer at the queue's head. */
typedef struct {
    uint64_t job; /* 0: none */
    uint32_t count;
    uint32_t entries[BLOCKS_PER_MESSAGE_MAX]; /* = blocks of our pool */
    uint32_t source[BLOCKS_PER_MESSAGE_MAX];
    uint64_t checksums[BLOCKS_PER_MESSAGE_MAX];
} pulling_t;

typedef struct {
    cache_t cache;
    queued_offer_t *offers; /* ring */
    uint32_t offer_head, offer_count;
    pulling_t pulling;
    uint64_t job_serial;
    found_t *found;
    table_t found_table;
    uint32_t found_max, found_free;
    uint64_t version;     /* of the next prefix message */
    uint32_t sync_cursor; /* blocks up to here were told again; NONE: no sync under way */
    uint8_t removed[BLOCKS_PER_MESSAGE_MAX * KEY_BYTES];
    uint32_t removed_count;
    uint64_t lease_us, heartbeat_us;
} kv_store_t;

static err_t init(void *state, actor_t *world)
{
    kv_store_t *self = state;
    const config_t *config = actor_config(world);
    uint32_t blocks = (uint32_t)config->store.kv_blocks;
    self->lease_us = (uint64_t)config->timing.lease_ms * 1000;
    self->heartbeat_us = (uint64_t)config->timing.heartbeat_ms * 1000;
    self->found_max = (uint32_t)(config->company.prefill_workers * config->prefill.requests_max);
    cache_init(&self->cache, actor_alloc(world, blocks, sizeof(cache_entry_t)),
               actor_alloc(world, table_cells(blocks), sizeof(table_cell_t)), blocks);
    self->offers = actor_alloc(world, OFFERS_QUEUE_MAX, sizeof *self->offers);
    self->found = actor_alloc(world, self->found_max, sizeof *self->found);
    for (uint32_t i = 0; i < self->found_max; i++) self->found[i].next = i + 1;
    self->found[self->found_max - 1].next = NONE;
    table_init(&self->found_table,
               actor_alloc(world, table_cells(self->found_max), sizeof(table_cell_t)),
               self->found_max);
    self->version = 1;
    self->sync_cursor = NONE;
    actor_wake_at(world, actor_now_us(world) + self->heartbeat_us);
    actor_gauge(world, METRIC_kv_blocks, blocks);
    return actor_pool_open(world, blocks);
}

/* ---- what prefill_lb is told ---------------------------------------------------------------- */

/* A refused message leaves a gap in the versions, upon which prefill_lb asks for all. */
static bool say_prefix(kv_store_t *self, actor_t *world, msg_type_t type, const void *keys,
                       uint32_t count)
{
    msg_t m;
    msg_init(&m, type);
    bytes_t bytes = { keys, (size_t)count * KEY_BYTES };
    if (type == MSG_prefix_added) {
        m.prefix_added.version = self->version;
        m.prefix_added.keys = bytes;
    } else {
        m.prefix_removed.version = self->version;
        m.prefix_removed.keys = bytes;
    }
    self->version += 1;
    return actor_send(world, (address_t){ ROLE_prefill_lb, 0 }, &m) == ERR_OK;
}

static void flush_removed(kv_store_t *self, actor_t *world)
{
    if (self->removed_count == 0) return;
    (void)say_prefix(self, world, MSG_prefix_removed, self->removed, self->removed_count);
    actor_count(world, METRIC_store_evictions_total, self->removed_count);
    self->removed_count = 0;
}

static void note_removed(kv_store_t *self, actor_t *world, block_key_t key)
{
    if (block_key_is_zero(key)) return;
    invariant(self->removed_count < BLOCKS_PER_MESSAGE_MAX);
    block_key_store(self->removed, self->removed_count++, key);
    if (self->removed_count == BLOCKS_PER_MESSAGE_MAX) flush_removed(self, world);
}

/* Tell the next part of all that we hold; the rest with the next heartbeat. */
static void sync_more(kv_store_t *self, actor_t *world)
{
    uint8_t keys[BLOCKS_PER_MESSAGE_MAX * KEY_BYTES];
    for (uint32_t sent = 0; sent < SYNC_MESSAGES_MAX && self->sync_cursor != NONE; sent++) {
        uint32_t count = 0, at = self->sync_cursor;
        for (; at < self->cache.capacity && count < BLOCKS_PER_MESSAGE_MAX; at++)
            if (self->cache.entries[at].state == CACHE_HELD)
                block_key_store(keys, count++, self->cache.entries[at].key);
        self->sync_cursor = at < self->cache.capacity ? at : NONE;
        if (!say_prefix(self, world, MSG_prefix_added, keys, count)) self->sync_cursor = NONE;
    }
}

static void on_prefix_sync(void *state, actor_t *world, const msg_t *m)
{
    kv_store_t *self = state;
    self->version = 1;
    self->sync_cursor = 0;
    sync_more(self, world); /* at least one message, empty if need be: it is the answer */
}

/* ---- offers --------------------------------------------------------------------------------- */

static void say_taken(actor_t *world, address_t to, uint64_t offer)
{
    msg_t m;
    msg_init(&m, MSG_store_taken);
    m.store_taken.offer = offer;
    (void)actor_send(world, to, &m); /* lost: the offerer's lease ends */
}

static void pop_offer(kv_store_t *self, actor_t *world)
{
    const queued_offer_t *offer = &self->offers[self->offer_head];
    invariant(self->offer_count > 0);
    if (actor_peer_epoch(world, offer->from) == offer->epoch)
        say_taken(world, offer->from, offer->offer);
    self->offer_head = (self->offer_head + 1) % OFFERS_QUEUE_MAX;
    self->offer_count -= 1;
}

/* Make an entry for each block of the offer that we lack and whose parent is here. */
static void select_lacking(kv_store_t *self, actor_t *world, const queued_offer_t *offer)
{
    pulling_t *pulling = &self->pulling;
    pulling->count = 0;
    for (uint32_t i = 0; i < offer->count; i++) {
        if (cache_find(&self->cache, offer->keys[i]) != CACHE_NONE) continue;
        uint32_t parent = CACHE_NONE;
        if (!block_key_is_zero(offer->parents[i])) {
            parent = cache_find(&self->cache, offer->parents[i]);
            if (parent == CACHE_NONE) continue;
        }
        block_key_t evicted;
        uint32_t entry = cache_add(&self->cache, offer->keys[i], parent, &evicted);
        if (entry == CACHE_NONE) break; /* all is leased or being pulled */
        note_removed(self, world, evicted);
        pulling->entries[pulling->count] = entry;
        pulling->source[pulling->count] = offer->blocks[i];
        pulling->checksums[pulling->count++] = offer->checksums[i];
    }
    flush_removed(self, world);
}

/* Children come after their parents, so we go backwards. */
static void abandon_pull(kv_store_t *self)
{
    for (uint32_t i = self->pulling.count; i > 0; i--)
        cache_remove(&self->cache, self->pulling.entries[i - 1]);
    self->pulling.count = 0;
    self->pulling.job = 0;
}

static bool start_pull(kv_store_t *self, actor_t *world, const queued_offer_t *offer)
{
    pulling_t *pulling = &self->pulling;
    pool_pull_t pull = { .job = ++self->job_serial,
                         .peer = offer->from,
                         .peer_epoch = offer->epoch,
                         .source = pulling->source,
                         .target = pulling->entries,
                         .checksums = pulling->checksums,
                         .count = pulling->count };
    if (actor_pool_pull(world, &pull) != ERR_OK) {
        abandon_pull(self);
        return false;
    }
    pulling->job = pull.job;
    return true;
}

/* Begin the next pull; offers that need none, or whose sender is gone, end here.  Bounded by the
 * queue. */
static void next_offer(kv_store_t *self, actor_t *world)
{
    while (self->pulling.job == 0 && self->offer_count > 0) {
        const queued_offer_t *offer = &self->offers[self->offer_head];
        bool is_alive = actor_peer_epoch(world, offer->from) == offer->epoch;
        if (is_alive) select_lacking(self, world, offer);
        if (is_alive && self->pulling.count > 0 && start_pull(self, world, offer)) return;
        pop_offer(self, world);
    }
}

static bool is_sound(const msg_t *m)
{
    const msg_store_offer_t *offer = &m->store_offer;
    size_t bytes = (size_t)offer->blocks_count * KEY_BYTES;
    return offer->blocks_count > 0 && offer->checksums_count == offer->blocks_count &&
           offer->keys.size == bytes && offer->parents.size == bytes;
}

static bool has_all(kv_store_t *self, const msg_store_offer_t *offer)
{
    for (uint32_t i = 0; i < offer->blocks_count; i++)
        if (cache_find(&self->cache, block_key_load(offer->keys.data, i)) == CACHE_NONE)
            return false;
    return true;
}

static void on_store_offer(void *state, actor_t *world, const msg_t *m)
{
    kv_store_t *self = state;
    const msg_store_offer_t *in = &m->store_offer;
    if (!is_sound(m)) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    if (has_all(self, in) || self->offer_count == OFFERS_QUEUE_MAX) {
        say_taken(world, m->header.from,
                  in->offer); /* nothing to pull, or too busy: it is only a cache */
        return;
    }
    queued_offer_t *offer =
        &self->offers[(self->offer_head + self->offer_count) % OFFERS_QUEUE_MAX];
    self->offer_count += 1;
    offer->from = m->header.from;
    offer->epoch = m->header.epoch;
    offer->offer = in->offer;
    offer->count = in->blocks_count;
    memcpy(offer->blocks, in->blocks, in->blocks_count * sizeof *in->blocks);
    memcpy(offer->checksums, in->checksums, in->blocks_count * sizeof *in->checksums);
    memcpy(offer->keys, in->keys.data, in->keys.size);
    memcpy(offer->parents, in->parents.data, in->parents.size);
    next_offer(self, world);
}

static void on_pool_done(void *state, actor_t *world, const msg_t *m)
{
    kv_store_t *self = state;
    pulling_t *pulling = &self->pulling;
    if (pulling->job == 0 || m->pool_done.job != pulling->job) return;
    if (m->pool_done.error != ERR_OK) {
        if (m->pool_done.error == ERR_CHECKSUM)
            actor_count(world, METRIC_kv_checksum_errors_total, 1);
        abandon_pull(self);
    } else {
        uint8_t keys[BLOCKS_PER_MESSAGE_MAX * KEY_BYTES];
        for (uint32_t i = 0; i < pulling->count; i++) {
            cache_hold(&self->cache, pulling->entries[i], pulling->checksums[i],
                       actor_now_us(world));
            block_key_store(keys, i, self->cache.entries[pulling->entries[i]].key);
        }
        (void)say_prefix(self, world, MSG_prefix_added, keys, pulling->count);
        actor_count(world, METRIC_kv_blocks_pulled_total, pulling->count);
        pulling->job = 0;
        pulling->count = 0;
    }
    actor_gauge(world, METRIC_kv_blocks_used, self->cache.used);
    pop_offer(self, world);
    next_offer(self, world);
}

/* ---- asks and leases ------------------------------------------------------------------------ */

static void release(kv_store_t *self, found_t *found)
{
    invariant(found->is_used);
    cache_unpin(&self->cache, found->entry);
    table_remove(&self->found_table, found->request.hi, found->request.lo);
    found->is_used = false;
    found->next = self->found_free;
    self->found_free = (uint32_t)(found - self->found);
}

/* Pin the chain that ends here for this request; false when the table is full. */
static bool grant(kv_store_t *self, actor_t *world, const msg_t *m, uint32_t entry)
{
    uint32_t index = self->found_free;
    if (index == NONE) return false;
    found_t *found = &self->found[index];
    self->found_free = found->next;
    *found = (found_t){ .request = m->header.request,
                        .attempt = m->header.attempt,
                        .worker = m->header.from.index,
                        .entry = entry,
                        .is_used = true };
    lease_extend(&found->lease, actor_now_us(world), self->lease_us);
    table_insert(&self->found_table, m->header.request.hi, m->header.request.lo, index);
    cache_touch(&self->cache, entry, actor_now_us(world));
    cache_pin(&self->cache, entry);
    return true;
}

static void say_found(kv_store_t *self, actor_t *world, const msg_t *ask, uint32_t depth)
{
    uint32_t first = 0;
    do { /* one message at least, for none found is an answer too */
        msg_t m;
        msg_init(&m, MSG_store_found);
        m.header.request = ask->header.request;
        m.header.attempt = ask->header.attempt;
        msg_store_found_t *found = &m.store_found;
        uint32_t count =
            depth - first < BLOCKS_PER_MESSAGE_MAX ? depth - first : BLOCKS_PER_MESSAGE_MAX;
        found->first_block = first;
        found->found = depth;
        found->lease_us = self->lease_us;
        found->blocks_count = found->checksums_count = count;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t entry =
                cache_find(&self->cache, block_key_load(ask->store_ask.keys.data, first + i));
            invariant(entry != CACHE_NONE);
            found->blocks[i] = entry;
            found->checksums[i] = self->cache.entries[entry].checksum;
        }
        (void)actor_send(world, ask->header.from, &m);
        first += count;
    } while (first < depth);
}

static found_t *find_found(kv_store_t *self, request_id_t request)
{
    uint32_t index = table_find(&self->found_table, request.hi, request.lo);
    return index == TABLE_NONE ? NULL : &self->found[index];
}

static void on_store_ask(void *state, actor_t *world, const msg_t *m)
{
    kv_store_t *self = state;
    bytes_t keys = m->store_ask.keys;
    if (m->header.from.role != ROLE_prefill_worker || keys.size % KEY_BYTES != 0) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    found_t *old = find_found(self, m->header.request);
    if (old != NULL && old->attempt > m->header.attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    if (old != NULL) release(self, old);
    uint32_t last, key_count = (uint32_t)(keys.size / KEY_BYTES);
    uint32_t depth = cache_depth(&self->cache, keys.data, key_count, &last);
    if (depth > 0 && !grant(self, world, m, last)) depth = 0;
    say_found(self, world, m, depth);
    actor_count(world, METRIC_store_hits_total, depth);
    actor_count(world, METRIC_store_misses_total, key_count - depth);
}

static void on_store_release(void *state, actor_t *world, const msg_t *m)
{
    kv_store_t *self = state;
    found_t *found = find_found(self, m->header.request);
    if (found == NULL) return; /* its lease has ended */
    if (found->attempt != m->header.attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    release(self, found);
}

static void on_peer_down(void *state, actor_t *world, const msg_t *m)
{
    kv_store_t *self = state;
    if (m->peer_down.role != ROLE_prefill_worker) return;
    for (uint32_t i = 0; i < self->found_max && self->found_table.count > 0; i++)
        if (self->found[i].is_used && self->found[i].worker == m->peer_down.index)
            release(self, &self->found[i]);
}

/* ---- time ----------------------------------------------------------------------------------- */

static void wake(void *state, actor_t *world)
{
    kv_store_t *self = state;
    uint64_t now = actor_now_us(world);
    for (uint32_t i = 0; i < self->found_max && self->found_table.count > 0; i++) {
        found_t *found = &self->found[i];
        if (!found->is_used || !lease_is_over(&found->lease, now)) continue;
        release(self, found);
        actor_count(world, METRIC_kv_leases_expired_total, 1);
    }
    sync_more(self, world);
    actor_gauge(world, METRIC_kv_leases, self->found_table.count);
    actor_gauge(world, METRIC_kv_blocks_used, self->cache.used);
    actor_wake_at(world, now + self->heartbeat_us);
}

/* ---- the class ------------------------------------------------------------------------------ */

static void check(const void *state)
{
    const kv_store_t *self = state;
    cache_check(&self->cache);
    invariant(self->pulling.job == 0 || self->offer_count > 0);
    invariant(self->pulling.job != 0 || self->pulling.count == 0);
    invariant(self->offer_count <= OFFERS_QUEUE_MAX);
    invariant(self->removed_count == 0);
    uint64_t pins = 0;
    for (uint32_t i = 0; i < self->cache.capacity; i++) pins += self->cache.entries[i].pins;
    invariant(pins == self->found_table.count);
}

/* Cached blocks are no burden: they may stay. */
static bool is_idle(const void *state)
{
    const kv_store_t *self = state;
    return self->offer_count == 0 && self->found_table.count == 0;
}

const actor_class_t kv_store_class = {
    .name = "kv_store",
    .role = ROLE_kv_store,
    .state_size = sizeof(kv_store_t),
    .init = init,
    .wake = wake,
    .check = check,
    .is_idle = is_idle,
    .on = { [MSG_store_offer] = on_store_offer,
            [MSG_store_ask] = on_store_ask,
            [MSG_store_release] = on_store_release,
            [MSG_prefix_sync] = on_prefix_sync,
            [MSG_pool_done] = on_pool_done,
            [MSG_peer_down] = on_peer_down },
};
