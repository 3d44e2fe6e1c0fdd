/* actors/prefill_lb.c - chooses the prefill worker for each prompt.
 *
 *   ingress --submit, cancel, request_probe--> prefill_lb --failed, request_held--> ingress
 *   prefill_lb --prefill_assign, cancel--> prefill_worker
 *   prefill_worker --prefill_progress, prefill_done, prefill_load, held--> prefill_lb
 *   kv_store --prefix_added, prefix_removed--> prefill_lb --prefix_sync--> kv_store
 *
 * Policy: of the workers with room, the one that would be done first: what waits there plus what of
 * this prompt no cache holds, in tokens and in query-key pairs of core attention, each with the
 * time it was measured to take. Strictly in order of arrival; while no worker has room a bounded
 * queue holds the prompts, past it OVERLOAD.
 *
 * We alone keep the ledger of prefill work.  It heals itself: a worker says again and again what it
 * holds (`held`), and what nobody speaks of for a lease is dropped, so that no lost message leaks a
 * place.
 */
#include "prefill_lb.h"

#include <string.h>

#include "../runtime/base/config.h"
#include "../runtime/kv/book.h"
#include "../runtime/kv/lease.h"
#include "../runtime/kv/prefix.h"
#include "../runtime/kv/ring.h"
#include "../runtime/policy/placement.h"
#include "say.h"

#define NONE BOOK_NONE
enum {
    TOKEN_NS_DEFAULT = 100000, /* before the first measurement: 10,000 tokens/s */
    PAIR_PS_DEFAULT = 1000,
    HOLDER_STORE = 0, /* in the prefix index; worker i is holder 1 + i */
};
static const size_t ring_bytes_max = (size_t)32 << 20;

typedef struct {
    request_id_t request;
    uint32_t attempt, ingress;
    uint32_t prompt_count, computed, blocks; /* computed: with KV, or believed to be in a cache */
    uint32_t worker;                         /* NONE: queued */
    uint64_t queued_us, deadline_us;
    msg_submit_t *record; /* queued: the request in the ring, its tokens and keys behind it */
    lease_t lease;        /* assigned: until then we believe that the worker holds it */
} entry_t;

typedef struct {
    uint64_t epoch; /* 0: down */
    uint32_t blocks_total, blocks_used, requests_max, requests;
    uint64_t waiting_tokens, waiting_pairs, token_ns, pair_ps;
} worker_t;

typedef struct {
    uint64_t version; /* of the next message; 0: asked for all, waiting for version 1 */
    uint64_t asked_us;
    bool has_spoken;
} holder_t;

typedef struct {
    book_t book;
    entry_t *entries; /* by place in the book */
    uint32_t assigned;
    worker_t *workers;
    placement_prefill_t *ranks; /* scratch of one decision */
    uint32_t worker_count, queue_max;
    uint32_t group; /* ranks that step together */
    ring_t ring;
    prefix_t prefix;
    holder_t *holders;
    uint64_t lease_us, heartbeat_us;
} prefill_lb_t;

/* ---- start ---------------------------------------------------------------------------------- */

static void init_prefix(prefill_lb_t *self, actor_t *world, const config_t *config)
{
    uint32_t holders = 1 + self->worker_count;
    uint64_t blocks = (uint64_t)config->store.kv_blocks +
                      (uint64_t)self->worker_count * (uint64_t)config->prefill.kv_blocks;
    uint32_t capacity = blocks < BLOCKS_MAX ? (uint32_t)blocks : BLOCKS_MAX;
    prefix_memory_t memory = {
        .cells = actor_alloc(world, table_cells(capacity), sizeof(table_cell_t)),
        .keys = actor_alloc(world, capacity, sizeof(block_key_t)),
        .holders = actor_alloc(world, (size_t)capacity * prefix_words(holders), sizeof(uint64_t)),
        .free_list = actor_alloc(world, capacity, sizeof(uint32_t)),
    };
    prefix_init(&self->prefix, &memory, capacity, holders);
    self->holders = actor_alloc(world, holders, sizeof *self->holders);
}

/* Room for two of the longest prompts at least, for a full queue of them if that is not too much.
 */
static void init_ring(prefill_lb_t *self, actor_t *world, const config_t *config)
{
    size_t context = config_context_max(config);
    size_t record = sizeof(msg_submit_t) + context * 4 + context / BLOCK_TOKENS * KEY_BYTES + 64;
    size_t size = record * (self->queue_max < 2 ? 2 : self->queue_max);
    if (size > ring_bytes_max) size = ring_bytes_max;
    size = size / 16 * 16;
    ring_init(&self->ring, actor_alloc(world, size / 16, 16), size);
}

static err_t init(void *state, actor_t *world)
{
    prefill_lb_t *self = state;
    const config_t *config = actor_config(world);
    self->worker_count = (uint32_t)config->company.prefill_workers;
    self->group = (uint32_t)config->company.prefill_ep;
    self->queue_max = (uint32_t)config->limits.queue_max;
    self->lease_us = (uint64_t)config->timing.lease_ms * 1000;
    self->heartbeat_us = (uint64_t)config->timing.heartbeat_ms * 1000;
    uint32_t entry_max =
        self->queue_max + self->worker_count * (uint32_t)config->prefill.requests_max;
    self->entries = actor_alloc(world, entry_max, sizeof *self->entries);
    self->workers = actor_alloc(world, self->worker_count, sizeof *self->workers);
    self->ranks = actor_alloc(world, self->worker_count, sizeof *self->ranks);
    book_init(&self->book, actor_alloc(world, table_cells(entry_max), sizeof(table_cell_t)),
              actor_alloc(world, entry_max, sizeof(book_place_t)), entry_max);
    init_prefix(self, world, config);
    init_ring(self, world, config);
    actor_wake_at(world, actor_now_us(world) + self->heartbeat_us);
    return ERR_OK;
}

/* ---- entries, queue and ledger -------------------------------------------------------------- */

static entry_t *find(prefill_lb_t *self, request_id_t request)
{
    uint32_t place = book_find(&self->book, request);
    return place == NONE ? NULL : &self->entries[place];
}

static uint32_t place_of(const prefill_lb_t *self, const entry_t *entry)
{
    return (uint32_t)(entry - self->entries);
}

/* Neither queued nor assigned yet; NULL when the book is full. */
static entry_t *add(prefill_lb_t *self, const header_t *header)
{
    uint32_t place = book_add(&self->book, header->request);
    if (place == NONE) return NULL;
    entry_t *entry = &self->entries[place];
    *entry = (entry_t){ .request = header->request, .attempt = header->attempt, .worker = NONE };
    return entry;
}

/* Copy the request behind the others; false when the queue is full, in requests or in bytes. */
static bool enqueue(prefill_lb_t *self, entry_t *entry, const msg_submit_t *submit)
{
    if (self->book.queued == self->queue_max) return false;
    msg_submit_t *record =
        ring_put(&self->ring, sizeof *record + submit->tokens.size + submit->keys.size);
    if (record == NULL) return false;
    *record = *submit;
    uint8_t *bytes = (uint8_t *)(record + 1);
    memcpy(bytes, submit->tokens.data, submit->tokens.size);
    if (submit->keys.size > 0)
        memcpy(bytes + submit->tokens.size, submit->keys.data, submit->keys.size);
    record->tokens.data = bytes;
    record->keys.data = bytes + submit->tokens.size;
    entry->record = record;
    book_enqueue(&self->book, place_of(self, entry));
    return true;
}

static void dequeue(prefill_lb_t *self, entry_t *entry)
{
    invariant(entry->record != NULL);
    book_dequeue(&self->book, place_of(self, entry));
    ring_drop(&self->ring, entry->record);
    entry->record = NULL;
}

static void charge(prefill_lb_t *self, entry_t *entry, uint32_t index)
{
    invariant(index < self->worker_count && entry->worker == NONE && entry->record == NULL);
    worker_t *worker = &self->workers[index];
    entry->worker = index;
    worker->blocks_used += entry->blocks;
    worker->requests += 1;
    worker->waiting_tokens += entry->prompt_count - entry->computed;
    worker->waiting_pairs += placement_pairs(entry->computed, entry->prompt_count);
    self->assigned += 1;
}

/* Tokens that are computed no longer wait; `computed` may also fall: the store had less than we
 * believed. */
static void progress(prefill_lb_t *self, entry_t *entry, uint32_t computed)
{
    invariant(entry->worker != NONE && computed <= entry->prompt_count);
    worker_t *worker = &self->workers[entry->worker];
    uint64_t tokens = entry->prompt_count - entry->computed;
    uint64_t pairs = placement_pairs(entry->computed, entry->prompt_count);
    invariant(worker->waiting_tokens >= tokens && worker->waiting_pairs >= pairs);
    worker->waiting_tokens += entry->prompt_count - computed;
    worker->waiting_tokens -= tokens;
    worker->waiting_pairs += placement_pairs(computed, entry->prompt_count);
    worker->waiting_pairs -= pairs;
    entry->computed = computed;
}

/* Out of queue or ledger, and forgotten. */
static void drop(prefill_lb_t *self, entry_t *entry)
{
    if (entry->worker == NONE) {
        dequeue(self, entry);
    } else {
        progress(self, entry, entry->prompt_count);
        worker_t *worker = &self->workers[entry->worker];
        invariant(worker->requests > 0 && worker->blocks_used >= entry->blocks);
        worker->blocks_used -= entry->blocks;
        worker->requests -= 1;
        self->assigned -= 1;
    }
    book_remove(&self->book, entry->request, place_of(self, entry));
}

/* ---- what we say ---------------------------------------------------------------------------- */

static void say_cancel(actor_t *world, uint32_t worker, const header_t *about)
{
    say_plain(world, (address_t){ ROLE_prefill_worker, worker }, MSG_cancel, about);
}

static header_t about(const entry_t *entry)
{
    return (header_t){ .request = entry->request, .attempt = entry->attempt };
}

static void cancel_at_worker(actor_t *world, const entry_t *entry)
{
    header_t header = about(entry);
    if (entry->worker != NONE) say_cancel(world, entry->worker, &header);
}

static uint64_t time_left(uint64_t deadline_us, uint64_t now_us)
{
    return deadline_us > now_us ? deadline_us - now_us : 0;
}

static err_t say_assign(actor_t *world, const entry_t *entry, const msg_submit_t *submit,
                        uint32_t worker, uint32_t store_blocks)
{
    msg_t m;
    msg_init(&m, MSG_prefill_assign);
    msg_prefill_assign_t *assign = &m.prefill_assign;
    assign->ingress = entry->ingress;
    assign->prompt_count = submit->prompt_count;
    assign->generated = submit->generated;
    assign->max_tokens = submit->max_tokens;
    assign->deadline_us = time_left(entry->deadline_us, actor_now_us(world));
    assign->store_blocks = store_blocks;
    assign->sampling = submit->sampling;
    assign->stop_ids_count = submit->stop_ids_count;
    memcpy(assign->stop_ids, submit->stop_ids, submit->stop_ids_count * sizeof *submit->stop_ids);
    assign->bias_ids_count = assign->bias_values_count = submit->bias_ids_count;
    memcpy(assign->bias_ids, submit->bias_ids, submit->bias_ids_count * sizeof *submit->bias_ids);
    memcpy(assign->bias_values, submit->bias_values,
           submit->bias_ids_count * sizeof *submit->bias_values);
    assign->tokens = submit->tokens;
    assign->keys = submit->keys;
    header_t header = about(entry);
    return say_about(world, (address_t){ ROLE_prefill_worker, worker }, &m, &header);
}

/* ---- placing -------------------------------------------------------------------------------- */

/* A rank steps only together with all others of its group. */
static bool is_group_there(const prefill_lb_t *self, uint32_t rank)
{
    uint32_t first = rank / self->group * self->group;
    for (uint32_t i = first; i < first + self->group; i++)
        if (self->workers[i].blocks_total == 0) return false;
    return true;
}

/* Fill in what each rank would make of this prompt; returns the leading blocks in the store.  The
 * last token is always computed, for it gives the logits. */
static uint32_t judge(prefill_lb_t *self, const entry_t *entry, const msg_submit_t *submit)
{
    uint32_t usable = (submit->prompt_count - 1) / BLOCK_TOKENS;
    uint32_t key_count = (uint32_t)(submit->keys.size / KEY_BYTES);
    if (submit->sampling.prompt_logprobs)
        key_count = 0; /* every row of the prompt must be computed */
    if (key_count > usable) key_count = usable;
    uint32_t in_store = prefix_depth(&self->prefix, submit->keys.data, key_count, HOLDER_STORE);
    for (uint32_t i = 0; i < self->worker_count; i++) {
        const worker_t *worker = &self->workers[i];
        uint32_t cached = in_store;
        if (self->holders[1 + i].has_spoken) {
            uint32_t own = prefix_depth(&self->prefix, submit->keys.data, key_count, 1 + i);
            if (own > cached) cached = own;
        }
        self->ranks[i] = (placement_prefill_t){
            .is_open = is_group_there(self, i) && worker->requests < worker->requests_max &&
                       worker->blocks_used + (uint64_t)entry->blocks <= worker->blocks_total,
            .waiting_tokens = worker->waiting_tokens,
            .waiting_pairs = worker->waiting_pairs,
            .token_ns = worker->token_ns > 0 ? worker->token_ns : TOKEN_NS_DEFAULT,
            .pair_ps = worker->pair_ps > 0 ? worker->pair_ps : PAIR_PS_DEFAULT,
            .cached_tokens = cached * BLOCK_TOKENS,
        };
    }
    return in_store;
}

/* Give the prompt to the best worker; false when none has room or the link is full. */
static bool assign(prefill_lb_t *self, actor_t *world, entry_t *entry, const msg_submit_t *submit)
{
    uint32_t in_store = judge(self, entry, submit);
    uint32_t best = placement_choose_prefill(self->ranks, self->worker_count, submit->prompt_count);
    if (best == PLACEMENT_NONE) return false;
    invariant(self->workers[best].epoch != 0);
    if (say_assign(world, entry, submit, best, in_store) != ERR_OK) return false;
    entry->computed = self->ranks[best].cached_tokens;
    invariant(entry->computed < entry->prompt_count);
    if (entry->record != NULL) dequeue(self, entry);
    charge(self, entry, best);
    uint64_t now = actor_now_us(world);
    lease_extend(&entry->lease, now, self->lease_us);
    actor_observe(world, METRIC_queue_seconds, (double)(now - entry->queued_us) * 1e-6);
    return true;
}

/* Strictly in order: if short prompts could overtake, long ones would starve. */
static void drain(prefill_lb_t *self, actor_t *world)
{
    while (book_first(&self->book) != NONE) { /* bounded by the queue */
        entry_t *entry = &self->entries[book_first(&self->book)];
        if (!assign(self, world, entry, entry->record)) break;
    }
    actor_gauge(world, METRIC_requests_waiting, self->book.queued);
    actor_gauge(world, METRIC_requests_running, self->assigned);
}

/* No worker that we know could ever hold it.  While none has reported, nobody knows. */
static bool is_too_large(const prefill_lb_t *self, uint32_t blocks)
{
    uint32_t largest = 0;
    for (uint32_t i = 0; i < self->worker_count; i++)
        if (self->workers[i].blocks_total > largest) largest = self->workers[i].blocks_total;
    return largest > 0 && blocks > largest;
}

static bool is_sound(const msg_submit_t *submit)
{
    size_t token_count = (size_t)submit->prompt_count + submit->generated;
    return submit->prompt_count > 0 && submit->tokens.size == token_count * 4 &&
           submit->keys.size % KEY_BYTES == 0 &&
           submit->keys.size / KEY_BYTES <= submit->prompt_count / BLOCK_TOKENS &&
           submit->generated < submit->max_tokens &&
           submit->bias_ids_count == submit->bias_values_count;
}

/* A new attempt of a request that we may hold in an older one; false when it is not news. */
static bool replace(prefill_lb_t *self, actor_t *world, const msg_t *m)
{
    entry_t *old = find(self, m->header.request);
    if (old == NULL) return true;
    if (m->header.attempt <= old->attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return false;
    }
    cancel_at_worker(world, old);
    drop(self, old);
    return true;
}

static void on_submit(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    const msg_submit_t *submit = &m->submit;
    uint32_t ingress = m->header.from.index;
    if (!replace(self, world, m)) return;
    uint32_t blocks = (submit->prompt_count + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    if (!is_sound(submit) || is_too_large(self, blocks)) {
        say_failed(world, ingress, &m->header, is_sound(submit) ? ERR_UNPROCESSABLE : ERR_INVALID);
        return;
    }
    entry_t *entry = add(self, &m->header);
    if (entry == NULL) {
        say_failed(world, ingress, &m->header, ERR_OVERLOAD);
        return;
    }
    uint64_t now = actor_now_us(world);
    entry->ingress = ingress;
    entry->prompt_count = submit->prompt_count;
    entry->blocks = blocks;
    entry->queued_us = now;
    entry->deadline_us =
        submit->deadline_us < UINT64_MAX - now ? now + submit->deadline_us : UINT64_MAX;
    bool is_first = book_first(&self->book) == NONE;
    if (is_first && assign(self, world, entry, submit)) return;
    if (enqueue(self, entry, submit)) return;
    book_remove(&self->book, entry->request, place_of(self, entry));
    say_failed(world, ingress, &m->header, ERR_OVERLOAD);
}

/* ---- ingress -------------------------------------------------------------------------------- */

static void on_cancel(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    entry_t *entry = find(self, m->header.request);
    if (entry == NULL) return; /* it was never here, or is over */
    if (m->header.attempt < entry->attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    if (entry->worker != NONE) {
        cancel_at_worker(world, entry); /* its place comes back with prefill_done */
        return;
    }
    drop(self, entry);
    drain(self, world);
}

static void on_request_probe(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    const entry_t *entry = find(self, m->header.request);
    bool is_held = entry != NULL && entry->attempt == m->header.attempt;
    say_request_held(world, &m->header, is_held);
}

/* ---- what workers report -------------------------------------------------------------------- */

/* The worker a message comes from, while it is up; NONE otherwise. */
static uint32_t sender(prefill_lb_t *self, actor_t *world, const msg_t *m)
{
    uint32_t index = m->header.from.index;
    if (m->header.from.role == ROLE_prefill_worker && index < self->worker_count &&
        self->workers[index].epoch == m->header.epoch)
        return index;
    actor_count(world, METRIC_messages_unexpected_total, 1);
    return NONE;
}

/* The entry that a worker speaks of, if it is the one we gave to it; NULL otherwise. */
static entry_t *spoken_of(prefill_lb_t *self, actor_t *world, const msg_t *m)
{
    uint32_t worker = sender(self, world, m);
    entry_t *entry = find(self, m->header.request);
    if (worker == NONE) return NULL;
    if (entry != NULL && entry->attempt == m->header.attempt && entry->worker == worker)
        return entry;
    actor_count(world, METRIC_messages_stale_total, 1);
    return NULL;
}

static void on_prefill_progress(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    entry_t *entry = spoken_of(self, world, m);
    if (entry == NULL) return;
    if (m->prefill_progress.computed > entry->prompt_count) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    progress(self, entry, m->prefill_progress.computed);
    lease_extend(&entry->lease, actor_now_us(world), self->lease_us);
}

static void on_prefill_done(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    entry_t *entry = spoken_of(self, world, m);
    if (entry == NULL) return;
    drop(self, entry);
    drain(self, world);
}

static void on_prefill_load(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    uint32_t index = sender(self, world, m);
    if (index == NONE) return;
    worker_t *worker = &self->workers[index];
    worker->blocks_total = m->prefill_load.blocks_total;
    worker->requests_max = m->prefill_load.requests_max;
    worker->token_ns = m->prefill_load.token_ns;
    worker->pair_ps = m->prefill_load.pair_ps;
    drain(self, world);
}

/* Take what a worker holds into the ledger: we are new, or had believed it lost. */
static void adopt(prefill_lb_t *self, actor_t *world, const msg_t *m, uint32_t worker)
{
    entry_t *entry = m->held.computed <= m->held.prompt_count ? add(self, &m->header) : NULL;
    if (entry == NULL) return;
    uint64_t now = actor_now_us(world);
    entry->ingress = m->held.ingress;
    entry->prompt_count = m->held.prompt_count;
    entry->computed = m->held.computed;
    entry->blocks = m->held.blocks;
    entry->queued_us = now;
    entry->deadline_us = UINT64_MAX; /* the worker keeps it */
    charge(self, entry, worker);
    lease_extend(&entry->lease, now, self->lease_us);
}

static void on_held(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    uint32_t worker = sender(self, world, m);
    if (worker == NONE) return;
    entry_t *entry = find(self, m->header.request);
    if (entry != NULL && entry->attempt == m->header.attempt && entry->worker == worker) {
        lease_extend(&entry->lease, actor_now_us(world), self->lease_us);
        if (m->held.computed <= entry->prompt_count) progress(self, entry, m->held.computed);
        return;
    }
    bool is_newer = entry == NULL || m->header.attempt > entry->attempt ||
                    (m->header.attempt == entry->attempt && entry->worker == NONE);
    if (!is_newer) { /* an old attempt, or a second holder: one of them must go */
        say_cancel(world, worker, &m->header);
        return;
    }
    if (entry != NULL) {
        cancel_at_worker(world, entry);
        drop(self, entry);
    }
    adopt(self, world, m, worker);
}

/* ---- the prefix index ----------------------------------------------------------------------- */

static uint32_t holder_of(const prefill_lb_t *self, address_t from)
{
    if (from.role == ROLE_kv_store) return HOLDER_STORE;
    return from.role == ROLE_prefill_worker && from.index < self->worker_count ? 1 + from.index
                                                                               : NONE;
}

static address_t holder_address(uint32_t holder)
{
    if (holder == HOLDER_STORE) return (address_t){ ROLE_kv_store, 0 };
    return (address_t){ ROLE_prefill_worker, holder - 1 };
}

/* Forget what it told us and ask for all of it. */
static void ask_for_all(prefill_lb_t *self, actor_t *world, uint32_t holder)
{
    prefix_forget(&self->prefix, holder);
    self->holders[holder].version = 0;
    self->holders[holder].asked_us = actor_now_us(world);
    msg_t m;
    msg_init(&m, MSG_prefix_sync);
    (void)actor_send(world, holder_address(holder), &m);
}

/* Is this the message that follows the last one?  A gap means that one was lost. */
static bool is_next(prefill_lb_t *self, actor_t *world, uint32_t holder, uint64_t version)
{
    holder_t *state = &self->holders[holder];
    if (version == 1) {
        prefix_forget(&self->prefix, holder);
        state->version = 1;
    }
    if (state->version == 0) return false; /* said before it heard our question */
    if (version != state->version) {
        ask_for_all(self, world, holder);
        return false;
    }
    state->version += 1;
    state->has_spoken = true;
    return true;
}

static void on_prefix_added(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    uint32_t holder = holder_of(self, m->header.from);
    if (holder == NONE || !is_next(self, world, holder, m->prefix_added.version)) return;
    bytes_t keys = m->prefix_added.keys;
    for (uint32_t i = 0; i < keys.size / KEY_BYTES; i++)
        (void)prefix_add(&self->prefix, block_key_load(keys.data, i), holder);
}

static void on_prefix_removed(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    uint32_t holder = holder_of(self, m->header.from);
    if (holder == NONE || !is_next(self, world, holder, m->prefix_removed.version)) return;
    bytes_t keys = m->prefix_removed.keys;
    for (uint32_t i = 0; i < keys.size / KEY_BYTES; i++)
        prefix_remove(&self->prefix, block_key_load(keys.data, i), holder);
}

/* ---- peers ---------------------------------------------------------------------------------- */

/* A prompt that was computed has gone on: decode knows whether its KV arrived. */
static void lose_worker(prefill_lb_t *self, actor_t *world, uint32_t index)
{
    worker_t *worker = &self->workers[index];
    for (uint32_t i = 0; i < self->book.capacity && worker->requests > 0; i++) {
        entry_t *entry = &self->entries[i];
        if (!book_is_used(&self->book, i) || entry->worker != index) continue;
        header_t header = about(entry);
        if (entry->computed < entry->prompt_count)
            say_failed(world, entry->ingress, &header, ERR_LOST);
        drop(self, entry);
    }
    invariant(worker->requests == 0 && worker->blocks_used == 0 && worker->waiting_tokens == 0);
    *worker = (worker_t){ 0 };
    prefix_forget(&self->prefix, 1 + index);
    self->holders[1 + index] = (holder_t){ 0 };
}

static void lose_ingress(prefill_lb_t *self, actor_t *world, uint32_t ingress)
{
    for (uint32_t i = 0; i < self->book.capacity; i++) {
        entry_t *entry = &self->entries[i];
        if (!book_is_used(&self->book, i) || entry->ingress != ingress) continue;
        if (entry->worker == NONE)
            drop(self, entry);
        else
            cancel_at_worker(world, entry);
    }
}

static void on_peer_down(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    uint32_t index = m->peer_down.index;
    if (m->peer_down.role == ROLE_prefill_worker && index < self->worker_count)
        lose_worker(self, world, index);
    if (m->peer_down.role == ROLE_ingress) lose_ingress(self, world, index);
    if (m->peer_down.role == ROLE_kv_store) {
        prefix_forget(&self->prefix, HOLDER_STORE);
        self->holders[HOLDER_STORE] = (holder_t){ 0 };
    }
    drain(self, world);
}

/* A worker gets nothing before its first load report, which follows what it still holds. */
static void on_peer_up(void *state, actor_t *world, const msg_t *m)
{
    prefill_lb_t *self = state;
    uint32_t index = m->peer_up.index;
    if (m->peer_up.role == ROLE_kv_store) ask_for_all(self, world, HOLDER_STORE);
    if (m->peer_up.role != ROLE_prefill_worker || index >= self->worker_count) return;
    worker_t *worker = &self->workers[index];
    if (worker->epoch != 0 && worker->epoch != m->peer_up.peer_epoch)
        lose_worker(self, world, index);
    worker->epoch = m->peer_up.peer_epoch;
}

/* ---- time ----------------------------------------------------------------------------------- */

static void expire(prefill_lb_t *self, actor_t *world, uint64_t now)
{
    for (uint32_t i = 0; i < self->book.capacity && book_count(&self->book) > 0; i++) {
        entry_t *entry = &self->entries[i];
        if (!book_is_used(&self->book, i)) continue;
        bool is_late = entry->worker == NONE && now >= entry->deadline_us;
        bool is_lost = entry->worker != NONE && lease_is_over(&entry->lease, now);
        if (!is_late && !is_lost) continue;
        header_t header = about(entry);
        if (is_late) say_failed(world, entry->ingress, &header, ERR_DEADLINE);
        if (is_lost) actor_count(world, METRIC_kv_leases_expired_total, 1);
        cancel_at_worker(world, entry);
        drop(self, entry);
    }
}

static void wake(void *state, actor_t *world)
{
    prefill_lb_t *self = state;
    uint64_t now = actor_now_us(world);
    expire(self, world, now);
    drain(self, world);
    holder_t *store = &self->holders[HOLDER_STORE];
    bool is_up = actor_peer_epoch(world, holder_address(HOLDER_STORE)) != 0;
    if (is_up && store->version == 0 && now - store->asked_us >= self->lease_us)
        ask_for_all(self, world, HOLDER_STORE); /* the question or the answer was lost */
    actor_wake_at(world, now + self->heartbeat_us);
}

/* ---- the class ------------------------------------------------------------------------------ */

static void check(const void *state)
{
    const prefill_lb_t *self = state;
    uint32_t requests = 0;
    for (uint32_t i = 0; i < self->worker_count; i++) {
        const worker_t *worker = &self->workers[i];
        requests += worker->requests;
        invariant(worker->epoch != 0 || worker->requests == 0);
        invariant(worker->epoch != 0 || worker->blocks_total == 0);
        invariant(worker->requests > 0 || worker->blocks_used == 0);
        invariant(worker->requests > 0 || worker->waiting_tokens == 0);
        invariant(worker->requests > 0 || worker->waiting_pairs == 0);
    }
    invariant(requests == self->assigned);
    book_check(&self->book);
    invariant(self->assigned + self->book.queued == book_count(&self->book));
    invariant(self->book.queued <= self->queue_max && self->book.queued <= self->ring.records);
}

static bool is_idle(const void *state)
{
    const prefill_lb_t *self = state;
    return book_count(&self->book) == 0;
}

const actor_class_t prefill_lb_class = {
    .name = "prefill_lb",
    .role = ROLE_prefill_lb,
    .state_size = sizeof(prefill_lb_t),
    .init = init,
    .wake = wake,
    .check = check,
    .is_idle = is_idle,
    .on = { [MSG_submit] = on_submit,
            [MSG_cancel] = on_cancel,
            [MSG_request_probe] = on_request_probe,
            [MSG_prefill_progress] = on_prefill_progress,
            [MSG_prefill_done] = on_prefill_done,
            [MSG_prefill_load] = on_prefill_load,
            [MSG_held] = on_held,
            [MSG_prefix_added] = on_prefix_added,
            [MSG_prefix_removed] = on_prefix_removed,
            [MSG_peer_up] = on_peer_up,
            [MSG_peer_down] = on_peer_down },
};
