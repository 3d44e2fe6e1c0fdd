/* actors/prefill_worker.c - computes prompts in chunks and offers their KV to decode and to the
 * store.
 *
 *   prefill_lb --prefill_assign, cancel--> prefill_worker --prefill_progress, prefill_done,
 * prefill_load, held--> kv_store <--store_ask, store_release, store_offer--  |  <--store_found,
 * store_taken-- decode_lb <--decode_request, cancel--                |  <--decode_placed,
 * lease_renew-- decode_worker <--kv_open, kv_ready, prefilled, lease_renew--  |  <--kv_landed,
 * lease_renew-- ingress <--tokens (the first), prompt_logprobs, finished, failed--
 *
 * Policy: blocks for the whole prompt are set aside before it begins, in order of arrival; chunks
 * are shared by all prompts, first come, first served.  What the store has is pulled, but for the
 * last block: the last token is always computed, for it gives the logits.  Room for decoding is
 * asked for at the start, so that the decode worker pulls while we compute.
 *
 *   FREE -> WAITING (for blocks) -> ASKING (the store) -> COMPUTING -> OFFERED (to decode) ->
 * CLOSING -> FREE
 *
 * CLOSING: nobody is interested any more, but a step or a pool job still uses the blocks.
 */
#include "prefill_worker.h"

#include <string.h>

#include "../runtime/engine.h"
#include "../runtime/kv/job.h"
#include "../runtime/kv/key.h"
#include "../runtime/kv/lease.h"
#include "../runtime/kv/offer.h"
#include "../runtime/kv/table.h"
#include "../runtime/policy/batch.h"
#include "../runtime/policy/placement.h"
#include "../runtime/policy/speed.h"
#include "../runtime/pool.h"

enum { STEP_RETRIES_MAX = 8, OFFERS_PER_SLOT = 2, HELD_PER_LEASE = 4, NONE = UINT32_MAX };

typedef enum { FREE, WAITING, ASKING, COMPUTING, OFFERED, CLOSING } slot_state_t;

typedef struct {
    slot_state_t state;
    request_id_t request;
    uint32_t attempt, ingress;
    uint64_t deadline_us;
    msg_prefill_assign_t assign; /* its BYTES point into the slot's own memory */
    uint32_t *blocks;
    uint64_t *checksums; /* of the first `sealed` blocks */
    uint32_t block_count, key_count;
    /* the store's answer: messages of BLOCKS_PER_MESSAGE_MAX blocks, a bit each */
    uint64_t ask_until_us;
    uint32_t found, parts_seen, parts_pulled;
    /* progress: in tokens, then in blocks */
    uint32_t reused, computed;
    uint32_t sealed, stored, ready, landed;
    uint32_t jobs; /* pool jobs under way */
    bool is_sealing, is_in_step, is_started;
    /* the way to decode */
    bool is_requested, is_placed, is_opened, is_prefilled;
    uint32_t decode_worker;
    lease_t lease;
    /* the first token */
    bool has_token, is_told;
    engine_result_t first;
    err_t error; /* for prefill_done */
} slot_t;

typedef struct {
    slot_t *slots;
    table_t table;   /* request -> slot, but for CLOSING ones */
    uint32_t *order; /* slots in use, in order of arrival */
    uint32_t slot_max, requests_max, in_use, context_max, chunk_tokens;
    block_pool_t pool;
    offers_t offers;
    jobs_t jobs;
    batch_want_t *wants;
    batch_part_t *parts; /* of the step under way */
    engine_row_t *rows;
    uint32_t part_count; /* 0: no step under way */
    uint32_t retries;
    uint64_t step, retry_us, held_us;
    speed_t speed;
    msg_lease_renew_t *renewals; /* one batch per decode worker */
    uint32_t decode_count;
    bool is_ready; /* the engine */
    uint64_t lease_us, heartbeat_us;
} prefill_worker_t;

static const address_t prefill_lb = { ROLE_prefill_lb, 0 };
static const address_t decode_lb = { ROLE_decode_lb, 0 };
static const address_t kv_store = { ROLE_kv_store, 0 };

/* ---- start
 * ---------------------------------------------------------------------------------------- */

static void init_slots(prefill_worker_t *self, actor_t *world)
{
    uint32_t blocks_max = (self->context_max + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    self->slots = actor_alloc(world, self->slot_max, sizeof *self->slots);
    self->order = actor_alloc(world, self->slot_max, sizeof *self->order);
    uint8_t *tokens = actor_alloc(world, self->slot_max, (size_t)self->context_max * 4);
    uint8_t *keys = actor_alloc(world, self->slot_max, (size_t)blocks_max * KEY_BYTES);
    uint32_t *blocks = actor_alloc(world, self->slot_max, blocks_max * sizeof *blocks);
    uint64_t *checksums = actor_alloc(world, self->slot_max, blocks_max * sizeof *checksums);
    for (uint32_t i = 0; i < self->slot_max; i++) {
        slot_t *slot = &self->slots[i];
        slot->assign.tokens.data = tokens + (size_t)i * self->context_max * 4;
        slot->assign.keys.data = keys + (size_t)i * blocks_max * KEY_BYTES;
        slot->blocks = blocks + (size_t)i * blocks_max;
        slot->checksums = checksums + (size_t)i * blocks_max;
    }
    table_init(&self->table, actor_alloc(world, table_cells(self->slot_max), sizeof(table_cell_t)),
               self->slot_max);
}

static err_t init(void *state, actor_t *world)
{
    prefill_worker_t *self = state;
    const config_t *config = actor_config(world);
    uint32_t blocks = (uint32_t)config->prefill.kv_blocks;
    uint64_t context = (uint64_t)blocks * BLOCK_TOKENS; /* a longer prompt has no room here */
    uint64_t allowed =
        config->limits.context_max > 0 ? (uint64_t)config->limits.context_max : CONTEXT_MAX;
    self->context_max = (uint32_t)(context < allowed ? context : allowed);
    self->requests_max = (uint32_t)config->prefill.requests_max;
    self->slot_max =
        self->requests_max + self->requests_max / 8 + 2; /* the closing ones need some too */
    self->chunk_tokens = (uint32_t)config->prefill.chunk_tokens;
    self->decode_count = (uint32_t)config->company.decode_workers;
    self->lease_us = (uint64_t)config->timing.lease_ms * 1000;
    self->heartbeat_us = (uint64_t)config->timing.heartbeat_ms * 1000;
    init_slots(self, world);
    block_pool_init(&self->pool, actor_alloc(world, blocks, sizeof(uint32_t)),
                    actor_alloc(world, blocks, sizeof(uint32_t)), blocks);
    uint32_t offers_max = self->slot_max * OFFERS_PER_SLOT;
    offers_init(&self->offers, actor_alloc(world, offers_max, sizeof(offer_t)), offers_max);
    self->wants = actor_alloc(world, self->slot_max, sizeof *self->wants);
    self->parts = actor_alloc(world, self->slot_max, sizeof *self->parts);
    self->rows = actor_alloc(world, self->slot_max, sizeof *self->rows);
    self->renewals = actor_alloc(world, self->decode_count, sizeof *self->renewals);
    err_t error = actor_pool_open(world, blocks);
    if (error != ERR_OK) return error;
    engine_limits_t limits = { .slots = self->slot_max,
                               .rows_max = self->chunk_tokens,
                               .sequences_max = self->slot_max,
                               .context_max = self->context_max };
    actor_wake_at(world, actor_now_us(world) + self->heartbeat_us);
    return actor_engine_open(world, &limits);
}

/* ---- what we say
 * ---------------------------------------------------------------------------------- */

static uint32_t index_of(const prefill_worker_t *self, const slot_t *slot)
{
    return (uint32_t)(slot - self->slots);
}

static err_t say(actor_t *world, address_t to, msg_t *m, const slot_t *slot)
{
    m->header.request = slot->request;
    m->header.attempt = slot->attempt;
    return actor_send(world, to, m);
}

static err_t say_plain(actor_t *world, address_t to, msg_type_t type, const slot_t *slot)
{
    msg_t m;
    msg_init(&m, type);
    return say(world, to, &m, slot);
}

static void say_failed(actor_t *world, const slot_t *slot, err_t error)
{
    msg_t m;
    msg_init(&m, MSG_failed);
    m.failed.error = (u32)error;
    (void)say(world, (address_t){ ROLE_ingress, slot->ingress }, &m, slot);
}

static void say_load(prefill_worker_t *self, actor_t *world)
{
    if (!self->is_ready) return;
    msg_t m;
    msg_init(&m, MSG_prefill_load);
    msg_prefill_load_t *load = &m.prefill_load;
    load->blocks_total = self->pool.total;
    load->blocks_free = self->pool.free_count;
    load->requests = self->in_use;
    load->requests_max = self->requests_max;
    load->token_ns = speed_token_ns(&self->speed);
    load->pair_ps = speed_pair_ps(&self->speed);
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        if (slot->state != CLOSING)
            load->waiting_tokens += slot->assign.prompt_count - slot->computed;
    }
    (void)actor_send(world, prefill_lb, &m);
}

/* Again and again: a balancer that is new, or that missed something, rebuilds its ledger from
 * these. */
static void say_held(prefill_worker_t *self, actor_t *world)
{
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        if (slot->state == CLOSING) continue;
        msg_t m;
        msg_init(&m, MSG_held);
        m.held.ingress = slot->ingress;
        m.held.prompt_count = slot->assign.prompt_count;
        m.held.computed = slot->computed;
        m.held.blocks = slot->block_count;
        (void)say(world, prefill_lb, &m, slot);
    }
}

static void say_progress(actor_t *world, const slot_t *slot)
{
    msg_t m;
    msg_init(&m, MSG_prefill_progress);
    m.prefill_progress.computed = slot->computed;
    m.prefill_progress.reused = slot->reused;
    (void)say(world, prefill_lb, &m, slot);
}

/* ---- the end of a request here
 * -------------------------------------------------------------------- */

/* The blocks go back as soon as no step and no pool job uses them. */
static void try_free(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->state != CLOSING || slot->is_in_step || slot->jobs > 0) return;
    uint32_t index = index_of(self, slot), at = 0;
    if (slot->is_started) {
        actor_engine_close(world, index);
        for (uint32_t i = 0; i < slot->block_count; i++)
            block_pool_release(&self->pool, slot->blocks[i]);
    }
    msg_t m;
    msg_init(&m, MSG_prefill_done);
    m.prefill_done.error = (u32)slot->error;
    (void)say(world, prefill_lb, &m, slot);
    slot->state = FREE;
    while (self->order[at] != index) at++; /* it is there */
    self->in_use -= 1;
    memmove(self->order + at, self->order + at + 1, (self->in_use - at) * sizeof *self->order);
}

static void close_slot(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error)
{
    invariant(slot->state != FREE && slot->state != CLOSING);
    if (slot->state == ASKING) (void)say_plain(world, kv_store, MSG_store_release, slot);
    table_remove(&self->table, slot->request.hi, slot->request.lo);
    slot->state = CLOSING;
    slot->error = error;
    try_free(self, world, slot);
}

/* Give it up, with whatever decode has set aside for it. */
static void abandon(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error)
{
    if (slot->is_requested) (void)say_plain(world, decode_lb, MSG_cancel, slot);
    if (slot->is_opened)
        (void)say_plain(world, (address_t){ ROLE_decode_worker, slot->decode_worker }, MSG_cancel,
                        slot);
    close_slot(self, world, slot, error);
}

static void fail(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error)
{
    say_failed(world, slot, error);
    abandon(self, world, slot, error);
}

/* ---- the way to decode
 * ---------------------------------------------------------------------------- */

/* One token more than it has already needs no decode worker at all. */
static bool needs_decode(const slot_t *slot)
{
    return slot->assign.max_tokens - slot->assign.generated > 1;
}

static void request_decode(actor_t *world, slot_t *slot)
{
    uint32_t tokens = slot->assign.prompt_count - slot->assign.generated + slot->assign.max_tokens;
    msg_t m;
    msg_init(&m, MSG_decode_request);
    m.decode_request.ingress = slot->ingress;
    m.decode_request.prompt_count = slot->assign.prompt_count;
    m.decode_request.blocks = (tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    (void)say(world, decode_lb, &m, slot); /* lost: asked again when half the lease is gone */
}

static bool open_decode(actor_t *world, slot_t *slot, address_t to)
{
    msg_t m;
    msg_init(&m, MSG_kv_open);
    const msg_prefill_assign_t *assign = &slot->assign;
    msg_kv_open_t *open = &m.kv_open;
    uint64_t now = actor_now_us(world);
    open->ingress = slot->ingress;
    open->prompt_count = assign->prompt_count;
    open->generated = assign->generated;
    open->max_tokens = assign->max_tokens;
    open->reused = slot->reused;
    open->deadline_us = slot->deadline_us > now ? slot->deadline_us - now : 0;
    open->sampling = assign->sampling;
    open->stop_ids_count = assign->stop_ids_count;
    memcpy(open->stop_ids, assign->stop_ids, assign->stop_ids_count * sizeof *assign->stop_ids);
    open->bias_ids_count = open->bias_values_count = assign->bias_ids_count;
    memcpy(open->bias_ids, assign->bias_ids, assign->bias_ids_count * sizeof *assign->bias_ids);
    memcpy(open->bias_values, assign->bias_values,
           assign->bias_ids_count * sizeof *assign->bias_values);
    open->tokens = assign->tokens;
    open->keys = assign->keys;
    return say(world, to, &m, slot) == ERR_OK;
}

static bool push_prefilled(actor_t *world, slot_t *slot, address_t to)
{
    msg_t m;
    msg_init(&m, MSG_prefilled);
    msg_prefilled_t *prefilled = &m.prefilled;
    prefilled->blocks = slot->block_count;
    prefilled->token = slot->first.token;
    prefilled->logprob = slot->first.logprob;
    prefilled->top_ids_count = prefilled->top_logprobs_count = slot->first.top_count;
    memcpy(prefilled->top_ids, slot->first.top_ids,
           slot->first.top_count * sizeof *slot->first.top_ids);
    memcpy(prefilled->top_logprobs, slot->first.top_logprobs,
           slot->first.top_count * sizeof *slot->first.top_logprobs);
    return say(world, to, &m, slot) == ERR_OK;
}

/* Whatever can be said to the decode worker now; a full link is tried again with the next
 * heartbeat. */
static void push(actor_t *world, slot_t *slot)
{
    address_t to = { ROLE_decode_worker, slot->decode_worker };
    if (!slot->is_placed || (slot->state != COMPUTING && slot->state != OFFERED)) return;
    if (!slot->is_opened) slot->is_opened = open_decode(world, slot, to);
    while (slot->is_opened && slot->ready < slot->sealed) {
        uint32_t count = slot->sealed - slot->ready;
        if (count > BLOCKS_PER_MESSAGE_MAX) count = BLOCKS_PER_MESSAGE_MAX;
        msg_t m;
        msg_init(&m, MSG_kv_ready);
        m.kv_ready.first_block = slot->ready;
        m.kv_ready.blocks_count = m.kv_ready.checksums_count = count;
        memcpy(m.kv_ready.blocks, slot->blocks + slot->ready, count * sizeof *slot->blocks);
        memcpy(m.kv_ready.checksums, slot->checksums + slot->ready,
               count * sizeof *slot->checksums);
        if (say(world, to, &m, slot) != ERR_OK) return;
        slot->ready += count;
    }
    bool is_all_said =
        slot->is_opened && slot->state == OFFERED && slot->ready == slot->block_count;
    if (is_all_said && !slot->is_prefilled) slot->is_prefilled = push_prefilled(world, slot, to);
}

static slot_t *find(prefill_worker_t *self, actor_t *world, const header_t *header)
{
    uint32_t index = table_find(&self->table, header->request.hi, header->request.lo);
    if (index == TABLE_NONE) return NULL;
    if (self->slots[index].attempt == header->attempt) return &self->slots[index];
    actor_count(world, METRIC_messages_stale_total, 1);
    return NULL;
}

static void on_decode_placed(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    slot_t *slot = find(self, world, &m->header);
    if (slot == NULL) { /* given up meanwhile */
        msg_t cancel;
        msg_init(&cancel, MSG_cancel);
        cancel.header.request = m->header.request;
        cancel.header.attempt = m->header.attempt;
        (void)actor_send(world, decode_lb, &cancel);
        return;
    }
    if (!slot->is_requested || slot->is_placed ||
        m->decode_placed.decode_worker >= self->decode_count) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    slot->is_placed = true;
    slot->decode_worker = m->decode_placed.decode_worker;
    lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    push(world, slot);
}

static void on_kv_landed(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    slot_t *slot = find(self, world, &m->header);
    if (slot == NULL) return;
    if (!slot->is_placed || slot->decode_worker != m->header.from.index ||
        m->kv_landed.blocks > slot->ready) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    if (m->kv_landed.blocks > slot->landed) slot->landed = m->kv_landed.blocks;
    if (slot->is_prefilled && slot->landed == slot->block_count)
        close_slot(self, world, slot, ERR_OK);
}

/* Only who is responsible now can renew: decode_lb while the prompt waits for a place, then the
 * decode worker. */
static void on_lease_renew(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    bool is_from_lb = m->header.from.role == ROLE_decode_lb;
    header_t header = { .from = m->header.from };
    for (uint32_t i = 0; lease_batch_get(&m->lease_renew, i, &header.request, &header.attempt);
         i++) {
        slot_t *slot = find(self, world, &header);
        if (slot == NULL &&
            is_from_lb) { /* it holds a place for what is over: the cancel was lost */
            msg_t cancel;
            msg_init(&cancel, MSG_cancel);
            cancel.header.request = header.request;
            cancel.header.attempt = header.attempt;
            (void)actor_send(world, decode_lb, &cancel);
        }
        if (slot == NULL) continue;
        bool is_from_worker = slot->is_placed && m->header.from.role == ROLE_decode_worker &&
                              m->header.from.index == slot->decode_worker;
        if (is_from_worker || (is_from_lb && !slot->is_placed))
            lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    }
}

/* ---- sealed blocks: their checksums are known, others may have them
 * -------------------------------- */

static void store_sealed(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    uint32_t end = slot->sealed < slot->key_count ? slot->sealed : slot->key_count;
    if (actor_peer_epoch(world, kv_store) == 0) slot->stored = end;
    while (slot->stored < end) {
        uint32_t first = slot->stored, count = end - first;
        if (count > BLOCKS_PER_MESSAGE_MAX) count = BLOCKS_PER_MESSAGE_MAX;
        slot->stored += count; /* it is only a cache: what is refused now is not offered again */
        const offer_t *offer = offers_open(&self->offers, &self->pool, slot->blocks + first, count);
        if (offer == NULL) return;
        offers_bind(&self->offers, offer->id, index_of(self, slot),
                    actor_now_us(world) + self->lease_us);
        const uint8_t *keys = slot->assign.keys.data;
        uint8_t parents[BLOCKS_PER_MESSAGE_MAX * KEY_BYTES] = { 0 };
        if (first > 0) memcpy(parents, keys + (size_t)(first - 1) * KEY_BYTES, KEY_BYTES);
        memcpy(parents + KEY_BYTES, keys + (size_t)first * KEY_BYTES,
               (size_t)(count - 1) * KEY_BYTES);
        msg_t m;
        msg_init(&m, MSG_store_offer);
        m.store_offer.offer = offer->id;
        m.store_offer.blocks_count = m.store_offer.checksums_count = count;
        memcpy(m.store_offer.blocks, slot->blocks + first, count * sizeof *slot->blocks);
        memcpy(m.store_offer.checksums, slot->checksums + first, count * sizeof *slot->checksums);
        m.store_offer.keys =
            (bytes_t){ keys + (size_t)first * KEY_BYTES, (size_t)count * KEY_BYTES };
        m.store_offer.parents = (bytes_t){ parents, (size_t)count * KEY_BYTES };
        if (say(world, kv_store, &m, slot) != ERR_OK)
            (void)offers_close(&self->offers, &self->pool, offer->id);
    }
}

/* Blocks become final when they are full; the last one when the prompt ends. */
static void seal(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->state != COMPUTING && slot->state != OFFERED) return;
    bool is_whole = slot->computed == slot->assign.prompt_count;
    uint32_t end = is_whole ? slot->block_count : slot->computed / BLOCK_TOKENS;
    uint32_t count = end - slot->sealed;
    invariant(slot->sealed <= end);
    if (slot->is_sealing || count == 0) return;
    if (count > BLOCKS_PER_MESSAGE_MAX) count = BLOCKS_PER_MESSAGE_MAX;
    job_t job = {
        .kind = JOB_SEAL, .slot = index_of(self, slot), .first = slot->sealed, .count = count
    };
    uint64_t id = jobs_open(&self->jobs, &job);
    if (id == 0) return; /* tried again with the next completion or heartbeat */
    if (actor_pool_checksum(world, id, slot->blocks + slot->sealed, count) != ERR_OK) {
        (void)jobs_close(&self->jobs, id);
        return;
    }
    slot->is_sealing = true;
    slot->jobs += 1;
}

static void on_sealed(prefill_worker_t *self, actor_t *world, slot_t *slot, const job_t *job,
                      const msg_t *m)
{
    slot->is_sealing = false;
    if (slot->state == CLOSING) return;
    if (m->pool_done.error != ERR_OK || m->pool_done.checksums_count != job->count) {
        fail(self, world, slot, ERR_INTERNAL);
        return;
    }
    invariant(job->first == slot->sealed);
    memcpy(slot->checksums + job->first, m->pool_done.checksums,
           job->count * sizeof *slot->checksums);
    slot->sealed += job->count;
    push(world, slot);
    store_sealed(self, world, slot);
    seal(self, world, slot);
}

/* ---- the store's answer
 * --------------------------------------------------------------------------- */

/* Leading blocks worth asking for: the block of the last token is always computed. */
static uint32_t askable(const slot_t *slot)
{
    uint32_t usable = (slot->assign.prompt_count - 1) / BLOCK_TOKENS;
    if (slot->assign.sampling.prompt_logprobs || slot->assign.store_blocks == 0) return 0;
    return slot->key_count < usable ? slot->key_count : usable;
}

/* Leave ASKING with the longest unbroken run of blocks that were pulled and verified. */
static void begin_computing(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    invariant(slot->state == ASKING && slot->jobs == 0);
    (void)say_plain(world, kv_store, MSG_store_release, slot);
    uint32_t blocks = 0;
    for (uint32_t part = 0; blocks < slot->found && (slot->parts_pulled >> part & 1); part++)
        blocks += BLOCKS_PER_MESSAGE_MAX;
    if (blocks > slot->found) blocks = slot->found;
    slot->reused = slot->computed = blocks * BLOCK_TOKENS;
    slot->sealed = slot->stored = blocks;
    invariant(slot->computed < slot->assign.prompt_count);
    slot->state = COMPUTING;
    say_progress(world, slot);
    push(world, slot);
}

static void consider_computing(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    uint32_t parts = (slot->found + BLOCKS_PER_MESSAGE_MAX - 1) / BLOCKS_PER_MESSAGE_MAX;
    bool is_answered = slot->found > 0 && slot->parts_seen == (1u << parts) - 1;
    bool is_late = actor_now_us(world) >= slot->ask_until_us;
    if (slot->state == ASKING && slot->jobs == 0 && (is_answered || is_late))
        begin_computing(self, world, slot);
}

/* Does this part of the answer fit what was asked and what the earlier parts said? */
static bool is_sound_part(const slot_t *slot, const msg_store_found_t *found)
{
    uint32_t part = found->first_block / BLOCKS_PER_MESSAGE_MAX;
    return found->found > 0 && found->first_block % BLOCKS_PER_MESSAGE_MAX == 0 &&
           found->blocks_count > 0 && found->checksums_count == found->blocks_count &&
           found->found <= askable(slot) &&
           found->first_block + found->blocks_count <= found->found &&
           (found->blocks_count == BLOCKS_PER_MESSAGE_MAX ||
            found->first_block + found->blocks_count == found->found) &&
           (slot->found == 0 || slot->found == found->found) && !(slot->parts_seen >> part & 1);
}

static bool pull_part(prefill_worker_t *self, actor_t *world, slot_t *slot, const msg_t *m)
{
    const msg_store_found_t *found = &m->store_found;
    job_t job = { .kind = JOB_PULL,
                  .slot = index_of(self, slot),
                  .first = found->first_block,
                  .count = found->blocks_count };
    uint64_t id = jobs_open(&self->jobs, &job);
    if (id == 0) return false;
    pool_pull_t pull = { .job = id,
                         .peer = m->header.from,
                         .peer_epoch = m->header.epoch,
                         .source = found->blocks,
                         .target = slot->blocks + found->first_block,
                         .checksums = found->checksums,
                         .count = found->blocks_count };
    if (actor_pool_pull(world, &pull) != ERR_OK) {
        (void)jobs_close(&self->jobs, id);
        return false;
    }
    memcpy(slot->checksums + job.first, found->checksums, job.count * sizeof *slot->checksums);
    slot->jobs += 1;
    return true;
}

static void on_store_found(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    slot_t *slot = find(self, world, &m->header);
    if (slot == NULL || slot->state != ASKING) return; /* too late: we compute it ourselves */
    const msg_store_found_t *found = &m->store_found;
    if (found->found == 0) {
        slot->ask_until_us = 0;
    } else if (!is_sound_part(slot, found)) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    } else {
        slot->found = found->found;
        slot->parts_seen |= 1u << found->first_block / BLOCKS_PER_MESSAGE_MAX;
        (void)pull_part(self, world, slot, m); /* refused: that part is computed */
    }
    consider_computing(self, world, slot);
}

static void on_pulled(prefill_worker_t *self, actor_t *world, slot_t *slot, const job_t *job,
                      err_t error)
{
    if (error == ERR_CHECKSUM) actor_count(world, METRIC_kv_checksum_errors_total, 1);
    if (error == ERR_OK) {
        actor_count(world, METRIC_kv_blocks_pulled_total, job->count);
        slot->parts_pulled |= 1u << job->first / BLOCKS_PER_MESSAGE_MAX;
    }
    consider_computing(self, world, slot);
}

static void on_pool_done(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    job_t job = jobs_close(&self->jobs, m->pool_done.job);
    if (job.id == 0) return;
    slot_t *slot = &self->slots[job.slot];
    invariant(slot->jobs > 0 && slot->state != FREE);
    slot->jobs -= 1;
    if (job.kind == JOB_SEAL) on_sealed(self, world, slot, &job, m);
    if (job.kind == JOB_PULL) on_pulled(self, world, slot, &job, (err_t)m->pool_done.error);
    try_free(self, world, slot);
}

static void on_store_taken(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    if (!offers_close(&self->offers, &self->pool, m->store_taken.offer))
        actor_count(world, METRIC_messages_stale_total, 1);
}

/* ---- a new request
 * -------------------------------------------------------------------------------- */

static bool is_sound_assign(const prefill_worker_t *self, const msg_prefill_assign_t *assign)
{
    return assign->prompt_count > 0 && assign->prompt_count <= self->context_max &&
           assign->tokens.size == (size_t)assign->prompt_count * 4 &&
           assign->keys.size % KEY_BYTES == 0 &&
           assign->keys.size / KEY_BYTES <= assign->prompt_count / BLOCK_TOKENS &&
           assign->generated < assign->prompt_count && assign->generated < assign->max_tokens &&
           assign->bias_ids_count == assign->bias_values_count;
}

static void fill(slot_t *slot, const msg_t *m, uint64_t now)
{
    const msg_prefill_assign_t *in = &m->prefill_assign;
    slot_t kept = *slot; /* the slot's own memory stays its own */
    *slot = (slot_t){ .state = WAITING,
                      .request = m->header.request,
                      .attempt = m->header.attempt,
                      .ingress = in->ingress,
                      .assign = *in,
                      .blocks = kept.blocks,
                      .checksums = kept.checksums,
                      .block_count = (in->prompt_count + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
                      .key_count = (uint32_t)(in->keys.size / KEY_BYTES) };
    slot->assign.tokens.data = kept.assign.tokens.data;
    slot->assign.keys.data = kept.assign.keys.data;
    memcpy((void *)(uintptr_t)slot->assign.tokens.data, in->tokens.data, in->tokens.size);
    if (in->keys.size > 0)
        memcpy((void *)(uintptr_t)slot->assign.keys.data, in->keys.data, in->keys.size);
    slot->deadline_us = in->deadline_us < UINT64_MAX - now ? now + in->deadline_us : UINT64_MAX;
}

static void refuse(actor_t *world, const msg_t *m, err_t error)
{
    msg_t answer;
    msg_init(&answer, MSG_failed);
    answer.header.request = m->header.request;
    answer.header.attempt = m->header.attempt;
    answer.failed.error = (u32)error;
    (void)actor_send(world, (address_t){ ROLE_ingress, m->prefill_assign.ingress }, &answer);
    msg_init(&answer, MSG_prefill_done);
    answer.header.request = m->header.request;
    answer.header.attempt = m->header.attempt;
    answer.prefill_done.error = (u32)error;
    (void)actor_send(world, prefill_lb, &answer);
}

static void on_prefill_assign(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    uint32_t index = table_find(&self->table, m->header.request.hi, m->header.request.lo);
    if (index != TABLE_NONE && self->slots[index].attempt >= m->header.attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    if (index != TABLE_NONE) abandon(self, world, &self->slots[index], ERR_STALE);
    if (!is_sound_assign(self, &m->prefill_assign) || self->in_use == self->slot_max) {
        refuse(world, m, self->in_use == self->slot_max ? ERR_NO_SPACE : ERR_INVALID);
        return;
    }
    index = 0;
    while (self->slots[index].state != FREE) index++; /* one is free */
    fill(&self->slots[index], m, actor_now_us(world));
    self->order[self->in_use++] = index;
    table_insert(&self->table, m->header.request.hi, m->header.request.lo, index);
}

/* Ask the store, if it is believed to have something. */
static void ask_store(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    msg_t m;
    msg_init(&m, MSG_store_ask);
    m.store_ask.keys = (bytes_t){ slot->assign.keys.data, (size_t)askable(slot) * KEY_BYTES };
    slot->state = ASKING;
    slot->ask_until_us = actor_now_us(world) + self->lease_us / 2;
    if (askable(slot) == 0 || say(world, kv_store, &m, slot) != ERR_OK) {
        slot->state = COMPUTING;
        say_progress(world, slot);
    }
}

/* Blocks for the whole prompt, or none: two half-admitted prompts could wait for each other for
 * ever. */
static bool admit(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    if (!block_pool_take(&self->pool, slot->block_count, slot->blocks)) return false;
    const msg_prefill_assign_t *assign = &slot->assign;
    engine_open_t sequence = { .tokens = assign->tokens.data,
                               .token_count = assign->prompt_count,
                               .generated = assign->generated,
                               .sampling = &assign->sampling,
                               .bias_ids = assign->bias_ids,
                               .bias_values = assign->bias_values,
                               .bias_count = assign->bias_ids_count };
    uint32_t index = index_of(self, slot);
    err_t error = actor_engine_start(world, index, &sequence);
    if (error != ERR_OK) {
        for (uint32_t i = 0; i < slot->block_count; i++)
            block_pool_release(&self->pool, slot->blocks[i]);
        fail(self, world, slot, error == ERR_INVALID ? ERR_CONTEXT : error);
        return true;
    }
    actor_engine_extend(world, index, slot->blocks, slot->block_count);
    slot->is_started = true;
    ask_store(self, world, slot);
    if (!needs_decode(slot)) return true;
    slot->is_requested = true;
    lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    request_decode(world, slot);
    return true;
}

static void admit_waiting(prefill_worker_t *self, actor_t *world)
{
    for (uint32_t i = 0; i < self->in_use && self->is_ready; i++) {
        slot_t *slot = &self->slots[self->order[i]];
        if (slot->state != WAITING) continue;
        uint32_t before = self->in_use;
        if (!admit(self, world, slot)) return; /* strictly in order */
        i -= before - self->in_use;            /* one that failed has left the order */
    }
}

/* ---- steps
 * ---------------------------------------------------------------------------------------- */

static void submit_step(prefill_worker_t *self, actor_t *world)
{
    if (self->part_count > 0 || !self->is_ready || actor_now_us(world) < self->retry_us) return;
    uint32_t want_count = 0;
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        if (slot->state != COMPUTING || slot->computed == slot->assign.prompt_count) continue;
        self->wants[want_count++] =
            (batch_want_t){ self->order[i], slot->computed, slot->assign.prompt_count };
    }
    uint32_t part_count = batch_plan(self->wants, want_count, self->chunk_tokens, self->parts);
    if (part_count == 0) return;
    for (uint32_t i = 0; i < part_count; i++) {
        const batch_part_t *part = &self->parts[i];
        bool is_last = part->first + part->count == self->slots[part->slot].assign.prompt_count;
        self->rows[i] = (engine_row_t){ part->slot, part->first, part->count, is_last };
    }
    if (actor_engine_step(world, self->step + 1, self->rows, part_count) != ERR_OK) return;
    self->step += 1;
    self->part_count = part_count;
    for (uint32_t i = 0; i < part_count; i++) self->slots[self->parts[i].slot].is_in_step = true;
}

/* The first token to ingress; when it ends the text, the end too.  False: the link is full, try
 * again. */
static bool tell_first(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    const msg_prefill_assign_t *assign = &slot->assign;
    const engine_result_t *first = &slot->first;
    msg_t m;
    msg_init(&m, MSG_tokens);
    m.tokens.first_index = assign->generated;
    m.tokens.ids_count = 1;
    m.tokens.ids[0] = first->token;
    if (assign->sampling.logprobs) {
        m.tokens.logprobs_count = 1;
        m.tokens.logprobs[0] = first->logprob;
        m.tokens.top_count = m.tokens.top_ids_count = m.tokens.top_logprobs_count =
            first->top_count;
        memcpy(m.tokens.top_ids, first->top_ids, first->top_count * sizeof *first->top_ids);
        memcpy(m.tokens.top_logprobs, first->top_logprobs,
               first->top_count * sizeof *first->top_logprobs);
    }
    return say(world, (address_t){ ROLE_ingress, slot->ingress }, &m, slot) != ERR_OVERLOAD;
}

static bool ends_text(const actor_t *world, const slot_t *slot)
{
    const uint32_t *end_ids;
    uint32_t end_count = actor_engine_end_tokens(world, &end_ids);
    for (uint32_t i = 0; i < end_count && !slot->assign.sampling.ignore_eos; i++)
        if (end_ids[i] == slot->first.token) return true;
    for (uint32_t i = 0; i < slot->assign.stop_ids_count; i++)
        if (slot->assign.stop_ids[i] == slot->first.token) return true;
    return false;
}

/* The prompt is computed: on to decode, or to the end. */
static void conclude(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->state != COMPUTING || !slot->has_token) return;
    if (!slot->is_told) slot->is_told = tell_first(self, world, slot);
    if (!slot->is_told) return;
    bool is_stop = ends_text(world, slot);
    if (!is_stop && needs_decode(slot)) {
        slot->state = OFFERED;
        push(world, slot);
        return;
    }
    msg_t m;
    msg_init(&m, MSG_finished);
    m.finished.reason = is_stop ? FINISH_STOP : FINISH_LENGTH;
    m.finished.tokens = slot->assign.generated + 1;
    m.finished.reused = slot->reused;
    if (say(world, (address_t){ ROLE_ingress, slot->ingress }, &m, slot) == ERR_OVERLOAD) return;
    abandon(self, world, slot, ERR_OK);
}

/* Append one prompt token's log probability to the message; false when it must be sent first. */
static bool add_prompt_logprob(msg_t *m, const engine_result_t *result)
{
    msg_prompt_logprobs_t *list = &m->prompt_logprobs;
    uint32_t count = list->logprobs_count;
    bool fits = count < PROMPT_LOGPROBS_MAX && list->first_index + count == result->position &&
                list->top_count == result->top_count;
    if (count > 0 && !fits) return false;
    if (count == 0) list->first_index = result->position;
    list->top_count = result->top_count;
    list->logprobs[count] = result->logprob;
    memcpy(list->top_ids + list->top_ids_count, result->top_ids,
           result->top_count * sizeof *result->top_ids);
    memcpy(list->top_logprobs + list->top_logprobs_count, result->top_logprobs,
           result->top_count * sizeof *result->top_logprobs);
    list->logprobs_count += 1;
    list->top_ids_count += result->top_count;
    list->top_logprobs_count += result->top_count;
    return true;
}

static void say_prompt_logprobs(prefill_worker_t *self, actor_t *world, msg_t *m, uint32_t index)
{
    if (index == NONE || m->prompt_logprobs.logprobs_count == 0) return;
    slot_t *slot = &self->slots[index];
    if (slot->state == COMPUTING)
        (void)say(world, (address_t){ ROLE_ingress, slot->ingress }, m, slot);
}

static void take_results(prefill_worker_t *self, actor_t *world, bytes_t results)
{
    msg_t m;
    uint32_t of_slot = NONE;
    for (size_t at = 0; at + sizeof(engine_result_t) <= results.size;
         at += sizeof(engine_result_t)) {
        engine_result_t result;
        memcpy(&result, (const uint8_t *)results.data + at, sizeof result);
        invariant(result.slot < self->slot_max && result.top_count <= TOP_LOGPROBS_MAX);
        slot_t *slot = &self->slots[result.slot];
        if (!result.is_prompt) {
            slot->first = result;
            slot->has_token = true;
            continue;
        }
        if (of_slot != result.slot || !add_prompt_logprob(&m, &result)) {
            say_prompt_logprobs(self, world, &m, of_slot);
            msg_init(&m, MSG_prompt_logprobs);
            of_slot = result.slot;
            invariant(add_prompt_logprob(&m, &result));
        }
    }
    say_prompt_logprobs(self, world, &m, of_slot);
}

/* Nothing of a failed step counts.  While other ranks may come back it is planned again; past the
 * bound its requests fail. */
static void on_step_failed(prefill_worker_t *self, actor_t *world, err_t error)
{
    actor_count(world, METRIC_step_errors_total, 1);
    self->retry_us = actor_now_us(world) + self->heartbeat_us;
    bool is_over = error != ERR_EP_PEER || self->retries++ >= STEP_RETRIES_MAX;
    if (is_over) self->retries = 0;
    for (uint32_t i = 0; i < self->part_count; i++) {
        slot_t *slot = &self->slots[self->parts[i].slot];
        slot->is_in_step = false;
        if (is_over && slot->state == COMPUTING) fail(self, world, slot, error);
        try_free(self, world, slot);
    }
}

static void on_engine_done(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    const msg_engine_done_t *done = &m->engine_done;
    if (self->part_count == 0 || done->step != self->step) return;
    if (done->error != ERR_OK) {
        on_step_failed(self, world, (err_t)done->error);
        self->part_count = 0;
        return;
    }
    uint64_t tokens = 0, pairs = 0;
    self->retries = 0;
    take_results(self, world, done->results);
    for (uint32_t i = 0; i < self->part_count; i++) {
        const batch_part_t *part = &self->parts[i];
        slot_t *slot = &self->slots[part->slot];
        tokens += part->count;
        pairs += placement_pairs(part->first, part->first + part->count);
        slot->is_in_step = false;
        if (slot->state == COMPUTING) {
            invariant(slot->computed == part->first);
            slot->computed += part->count;
            say_progress(world, slot);
            seal(self, world, slot);
            conclude(self, world, slot);
        }
        try_free(self, world, slot);
    }
    self->part_count = 0;
    speed_observe(&self->speed, tokens, pairs, done->elapsed_us);
    actor_count(world, METRIC_steps_total, 1);
    actor_observe(world, METRIC_step_seconds, (double)done->elapsed_us * 1e-6);
}

static void on_engine_ready(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    self->is_ready = m->engine_ready.error == ERR_OK;
    if (!self->is_ready)
        actor_log(world, LOG_ERROR, "PREFILL-WORKER-ENGINE", "the engine did not start, error %u",
                  m->engine_ready.error);
    say_load(self, world);
}

/* ---- cancels and peers
 * ---------------------------------------------------------------------------- */

static void on_cancel(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    uint32_t index = table_find(&self->table, m->header.request.hi, m->header.request.lo);
    if (index == TABLE_NONE) return;
    if (m->header.attempt < self->slots[index].attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    abandon(self, world, &self->slots[index], ERR_CANCELLED);
}

static void on_peer_down(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    const msg_peer_down_t *down = &m->peer_down;
    if (down->role == ROLE_kv_store) (void)offers_expire(&self->offers, &self->pool, UINT64_MAX);
    for (uint32_t i = self->in_use; i > 0; i--) { /* backwards: who is freed leaves the order */
        slot_t *slot = &self->slots[self->order[i - 1]];
        if (slot->state == CLOSING) continue;
        bool is_decode = down->role == ROLE_decode_worker && slot->is_placed &&
                         slot->decode_worker == down->index;
        if (is_decode) fail(self, world, slot, ERR_LOST);
        if (!is_decode && down->role == ROLE_ingress && slot->ingress == down->index)
            abandon(self, world, slot, ERR_LOST);
    }
}

static void on_peer_up(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    if (m->peer_up.role == ROLE_prefill_lb) {
        say_held(self, world);
        say_load(self, world);
    }
    if (m->peer_up.role != ROLE_decode_lb) return;
    for (uint32_t i = 0; i < self->in_use; i++) { /* a new one knows nothing of who waits */
        slot_t *slot = &self->slots[self->order[i]];
        if (slot->state != CLOSING && slot->is_requested && !slot->is_placed)
            request_decode(world, slot);
    }
}

/* ---- time
 * ----------------------------------------------------------------------------------------- */

/* The decode side was silent.  After `prefilled` it is responsible and may well be decoding: we
 * just let go. */
static void on_lease_over(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    actor_count(world, METRIC_kv_leases_expired_total, 1);
    if (slot->is_prefilled)
        close_slot(self, world, slot, ERR_LEASE);
    else
        fail(self, world, slot, ERR_LEASE);
}

static void keep_lease(prefill_worker_t *self, actor_t *world, slot_t *slot, uint64_t now)
{
    if (!slot->is_requested || slot->state == CLOSING) return;
    bool is_lb_up = actor_peer_epoch(world, decode_lb) != 0;
    if (!slot->is_placed && !is_lb_up) lease_extend(&slot->lease, now, self->lease_us);
    if (lease_is_over(&slot->lease, now)) {
        on_lease_over(self, world, slot);
        return;
    }
    if (!slot->is_placed && is_lb_up && lease_is_old(&slot->lease, now, self->lease_us))
        request_decode(world, slot); /* the request or its answer was lost */
}

static void send_renewals(prefill_worker_t *self, actor_t *world, uint32_t worker)
{
    msg_t m;
    msg_init(&m, MSG_lease_renew);
    m.lease_renew = self->renewals[worker];
    (void)actor_send(world, (address_t){ ROLE_decode_worker, worker }, &m);
    self->renewals[worker].ids_hi_count = 0;
}

/* While we compute, the decode worker shall keep what it has set aside; after `prefilled` it is on
 * its own. */
static void renew(prefill_worker_t *self, actor_t *world)
{
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        if (slot->state == CLOSING || !slot->is_placed || slot->is_prefilled) continue;
        if (lease_batch_add(&self->renewals[slot->decode_worker], slot->request, slot->attempt))
            send_renewals(self, world, slot->decode_worker);
    }
    for (uint32_t i = 0; i < self->decode_count; i++)
        if (self->renewals[i].ids_hi_count > 0) send_renewals(self, world, i);
}

static void gauge(prefill_worker_t *self, actor_t *world)
{
    uint32_t leases = 0, waiting = 0;
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        leases += slot->state != CLOSING && slot->is_requested;
        waiting += slot->state == WAITING;
    }
    actor_gauge(world, METRIC_requests_running, self->in_use - waiting);
    actor_gauge(world, METRIC_requests_waiting, waiting);
    actor_gauge(world, METRIC_kv_blocks, self->pool.total);
    actor_gauge(world, METRIC_kv_blocks_used, block_pool_used(&self->pool));
    actor_gauge(world, METRIC_kv_leases, leases + self->offers.count);
}

static void tend(prefill_worker_t *self, actor_t *world, slot_t *slot, uint64_t now)
{
    if (slot->state == CLOSING) return;
    if (now >= slot->deadline_us) {
        fail(self, world, slot, ERR_DEADLINE);
        return;
    }
    if (slot->state == ASKING && now >= slot->ask_until_us) consider_computing(self, world, slot);
    seal(self, world, slot);
    push(world, slot);
    conclude(self, world, slot);
    keep_lease(self, world, slot, now);
}

static void wake(void *state, actor_t *world)
{
    prefill_worker_t *self = state;
    uint64_t now = actor_now_us(world);
    (void)offers_expire(&self->offers, &self->pool, now);
    for (uint32_t i = self->in_use; i > 0; i--) /* backwards: who is freed leaves the order */
        tend(self, world, &self->slots[self->order[i - 1]], now);
    renew(self, world);
    if (now >= self->held_us) {
        say_held(self, world);
        self->held_us = now + self->lease_us / HELD_PER_LEASE;
    }
    say_load(self, world);
    gauge(self, world);
    actor_wake_at(world, now + self->heartbeat_us);
}

static void turn(void *state, actor_t *world)
{
    prefill_worker_t *self = state;
    admit_waiting(self, world);
    submit_step(self, world);
}

/* ---- the class
 * ------------------------------------------------------------------------------------ */

static void check(const void *state)
{
    const prefill_worker_t *self = state;
    uint32_t open = 0, jobs = 0;
    block_pool_check(&self->pool);
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        invariant(slot->state != FREE);
        invariant(slot->ready <= slot->sealed && slot->landed <= slot->ready);
        invariant(slot->sealed <= slot->block_count && slot->stored <= slot->sealed);
        invariant(slot->reused <= slot->computed || slot->state == CLOSING);
        invariant(slot->computed <= slot->assign.prompt_count);
        invariant(!slot->is_in_step || self->part_count > 0);
        invariant(!slot->is_prefilled || slot->is_opened);
        invariant(!slot->is_opened || slot->is_placed);
        open += slot->state != CLOSING;
        jobs += slot->jobs;
    }
    invariant(open == self->table.count);
    invariant(jobs == self->jobs.count);
}

static bool is_idle(const void *state)
{
    const prefill_worker_t *self = state;
    return self->in_use == 0 && self->offers.count == 0 && block_pool_used(&self->pool) == 0;
}

const actor_class_t prefill_worker_class = {
    .name = "prefill_worker",
    .role = ROLE_prefill_worker,
    .state_size = sizeof(prefill_worker_t),
    .init = init,
    .turn = turn,
    .wake = wake,
    .check = check,
    .is_idle = is_idle,
    .on = { [MSG_prefill_assign] = on_prefill_assign,
            [MSG_cancel] = on_cancel,
            [MSG_store_found] = on_store_found,
            [MSG_store_taken] = on_store_taken,
            [MSG_decode_placed] = on_decode_placed,
            [MSG_kv_landed] = on_kv_landed,
            [MSG_lease_renew] = on_lease_renew,
            [MSG_engine_ready] = on_engine_ready,
            [MSG_engine_done] = on_engine_done,
            [MSG_pool_done] = on_pool_done,
            [MSG_peer_up] = on_peer_up,
            [MSG_peer_down] = on_peer_down },
};
