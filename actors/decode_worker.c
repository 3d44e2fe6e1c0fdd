/* actors/decode_worker.c - pulls a prompt's KV and generates, a step of all its requests at a time.
 *
 *   decode_lb --decode_assign, cancel--> decode_worker
 *   decode_worker --decode_done, decode_load, held--> decode_lb
 *   prefill_worker --kv_open, kv_ready, prefilled, lease_renew--> decode_worker
 *   decode_worker --kv_landed, lease_renew--> prefill_worker
 *   decode_worker --store_offer--> kv_store --store_taken--> decode_worker
 *   decode_worker --tokens, finished, failed--> ingress
 *
 * Policy: a request joins the batch with the first step after all its blocks have landed in this
 * attempt and the first token is here; its blocks, for prompt and all it may generate, were set
 * aside before, so it never waits for room again.  What an earlier attempt has generated is
 * computed again first.  See runtime/kv/transfer_states.def for its states, decode_worker_stream.c
 * for the steps.
 *
 * Nothing waits without a deadline: until `prefilled` the prefill worker must speak of the request
 * at least once per lease; afterwards only our own pulls and steps are waited for.
 */
#include "decode_worker.h"

#include <string.h>

#include "../runtime/base/config.h"
#include "decode_worker_slot.h"

enum { HELD_PER_LEASE = 4 };

static const address_t decode_lb = { ROLE_decode_lb, 0 };

/* ---- start and stop ------------------------------------------------------------------------- */

static void init_slots(decode_worker_t *self, actor_t *world)
{
    uint32_t blocks_max = (self->context_max + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    self->slots = actor_alloc(world, self->slot_max, sizeof *self->slots);
    self->order = actor_alloc(world, self->slot_max, sizeof *self->order);
    uint32_t *blocks = actor_alloc(world, self->slot_max, blocks_max * sizeof *blocks);
    uint32_t *source = actor_alloc(world, self->slot_max, blocks_max * sizeof *source);
    uint64_t *checksums = actor_alloc(world, self->slot_max, blocks_max * sizeof *checksums);
    block_key_t *keys = actor_alloc(world, self->slot_max, blocks_max * sizeof *keys);
    for (uint32_t i = 0; i < self->slot_max; i++) {
        self->slots[i].blocks = blocks + (size_t)i * blocks_max;
        self->slots[i].source = source + (size_t)i * blocks_max;
        self->slots[i].checksums = checksums + (size_t)i * blocks_max;
        self->slots[i].keys = keys + (size_t)i * blocks_max;
    }
    table_init(&self->table, actor_alloc(world, table_cells(self->slot_max), sizeof(table_cell_t)),
               self->slot_max);
}

static err_t init(void *state, actor_t *world)
{
    decode_worker_t *self = state;
    const config_t *config = actor_config(world);
    uint32_t blocks = (uint32_t)config->decode.kv_blocks;
    self->context_max = config_context_max(config);
    self->batch_max = (uint32_t)config->decode.batch_max;
    self->slot_max = self->batch_max + self->batch_max / 4 +
                     4; /* those not yet assigned and the closing need some too */
    self->prefill_count = (uint32_t)config->company.prefill_workers;
    self->lease_us = (uint64_t)config->timing.lease_ms * 1000;
    self->heartbeat_us = (uint64_t)config->timing.heartbeat_ms * 1000;
    init_slots(self, world);
    block_pool_init(&self->pool, actor_alloc(world, blocks, sizeof(uint32_t)),
                    actor_alloc(world, blocks, sizeof(uint32_t)), blocks);
    offers_init(&self->offers, actor_alloc(world, self->slot_max, sizeof(offer_t)), self->slot_max);
    self->rows = actor_alloc(world, self->batch_max, sizeof *self->rows);
    renewals_init(&self->renewals, world, ROLE_prefill_worker, self->prefill_count);
    self->key_maker = key_maker_new();
    if (self->key_maker == NULL) return ERR_INTERNAL;
    err_t error = actor_pool_open(world, blocks);
    if (error != ERR_OK) return error;
    engine_limits_t limits = { .slots = self->slot_max,
                               .rows_max = self->batch_max,
                               .sequences_max = self->batch_max,
                               .context_max = self->context_max };
    actor_wake_at(world, actor_now_us(world) + self->heartbeat_us);
    return actor_engine_open(world, &limits);
}

static void fini(void *state, actor_t *world)
{
    decode_worker_t *self = state;
    key_maker_destroy(&self->key_maker);
}

/* ---- what we say ---------------------------------------------------------------------------- */

uint32_t decode_worker_index_of(const decode_worker_t *self, const slot_t *slot)
{
    return (uint32_t)(slot - self->slots);
}

header_t decode_worker_about(const slot_t *slot)
{
    return (header_t){ .request = slot->request, .attempt = slot->attempt };
}

err_t decode_worker_say(actor_t *world, address_t to, msg_t *m, const slot_t *slot)
{
    header_t about = decode_worker_about(slot);
    return say_about(world, to, m, &about);
}

static void say_done(actor_t *world, const header_t *about, uint32_t blocks)
{
    msg_t m;
    msg_init(&m, MSG_decode_done);
    m.decode_done.blocks = blocks;
    (void)say_about(world, decode_lb, &m, about);
}

static void say_landed(actor_t *world, const slot_t *slot)
{
    msg_t m;
    msg_init(&m, MSG_kv_landed);
    m.kv_landed.blocks = slot->landed;
    (void)decode_worker_say(world, (address_t){ ROLE_prefill_worker, slot->prefill_worker }, &m,
                            slot);
}

static void say_load(decode_worker_t *self, actor_t *world)
{
    if (!self->is_ready) return;
    msg_t m;
    msg_init(&m, MSG_decode_load);
    m.decode_load.blocks_total = self->pool.total;
    m.decode_load.blocks_held = block_pool_used(&self->pool);
    m.decode_load.requests = self->in_use;
    m.decode_load.requests_max = self->batch_max;
    m.decode_load.step_us = self->step_us;
    (void)actor_send(world, decode_lb, &m);
}

/* Again and again: a balancer that is new, or that missed something, rebuilds its ledger from
 * these. */
static void say_held(decode_worker_t *self, actor_t *world)
{
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        if (!slot->is_assigned) continue;
        msg_t m;
        msg_init(&m, MSG_held);
        m.held.ingress = slot->ingress;
        m.held.prompt_count = slot->prompt_count;
        m.held.computed = slot->computed;
        m.held.blocks = slot->block_count;
        (void)decode_worker_say(world, decode_lb, &m, slot);
    }
}

/* ---- the end of a request here -------------------------------------------------------------- */

void decode_worker_try_free(decode_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->transfer.state != TRANSFER_CLOSING || slot->is_in_step || slot->jobs > 0) return;
    uint32_t index = decode_worker_index_of(self, slot), at = 0;
    if (slot->is_started) actor_engine_close(world, index);
    for (uint32_t i = 0; i < slot->block_count && slot->has_blocks; i++)
        block_pool_release(&self->pool, slot->blocks[i]);
    header_t about = decode_worker_about(slot);
    if (slot->is_assigned) say_done(world, &about, slot->block_count);
    transfer_move(&slot->transfer, TRANSFER_FREE);
    while (self->order[at] != index) at++; /* it is there */
    self->in_use -= 1;
    memmove(self->order + at, self->order + at + 1, (self->in_use - at) * sizeof *self->order);
}

void decode_worker_close(decode_worker_t *self, actor_t *world, slot_t *slot)
{
    /* The store reads blocks of a closed offer in vain: their checksums no longer match once they
     * are reused. */
    (void)offers_close(&self->offers, &self->pool, slot->offer);
    slot->offer = 0;
    table_remove(&self->table, slot->request.hi, slot->request.lo);
    transfer_move(&slot->transfer, TRANSFER_CLOSING);
    decode_worker_try_free(self, world, slot);
}

void decode_worker_fail(decode_worker_t *self, actor_t *world, slot_t *slot, err_t error)
{
    header_t about = decode_worker_about(slot);
    say_failed(world, slot->ingress, &about, error);
    if (slot->transfer.state == TRANSFER_ANNOUNCED || slot->transfer.state == TRANSFER_PULLING)
        say_plain(world, (address_t){ ROLE_prefill_worker, slot->prefill_worker }, MSG_cancel,
                  &about);
    decode_worker_close(self, world, slot);
}

/* ---- a request is announced ----------------------------------------------------------------- */

static slot_t *find(decode_worker_t *self, actor_t *world, const header_t *header)
{
    uint32_t index = table_find(&self->table, header->request.hi, header->request.lo);
    if (index == TABLE_NONE) return NULL;
    if (self->slots[index].attempt == header->attempt) return &self->slots[index];
    actor_count(world, METRIC_messages_stale_total, 1);
    return NULL;
}

static slot_t *announce(decode_worker_t *self, actor_t *world, const header_t *header)
{
    uint32_t index = 0;
    while (self->slots[index].transfer.state != TRANSFER_FREE) index++; /* one is free */
    slot_t *slot = &self->slots[index];
    slot_t kept = *slot; /* the slot's own memory stays its own */
    *slot = (slot_t){ .request = header->request,
                      .attempt = header->attempt,
                      .blocks = kept.blocks,
                      .source = kept.source,
                      .checksums = kept.checksums,
                      .keys = kept.keys,
                      .deadline_us = UINT64_MAX };
    transfer_move(&slot->transfer, TRANSFER_ANNOUNCED);
    lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    self->order[self->in_use++] = index;
    table_insert(&self->table, header->request.hi, header->request.lo, index);
    return slot;
}

/* The slot of a request that is announced by either side; a new one if it is news.  NULL: stale, or
 * no slot. */
static slot_t *find_or_announce(decode_worker_t *self, actor_t *world, const header_t *header,
                                uint32_t ingress)
{
    uint32_t index = table_find(&self->table, header->request.hi, header->request.lo);
    if (index != TABLE_NONE && self->slots[index].attempt == header->attempt)
        return &self->slots[index];
    if (index != TABLE_NONE && self->slots[index].attempt > header->attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return NULL;
    }
    if (index != TABLE_NONE) decode_worker_close(self, world, &self->slots[index]);
    if (self->in_use < self->slot_max) return announce(self, world, header);
    say_failed(world, ingress, header, ERR_NO_SPACE);
    return NULL;
}

static void pull(decode_worker_t *self, actor_t *world, slot_t *slot);

/* Both sides have spoken: set the blocks aside.  While a closing request still has them we wait,
 * within the lease. */
static void advance(decode_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->transfer.state != TRANSFER_ANNOUNCED || !slot->is_assigned || !slot->is_open) return;
    if (slot->prompt_blocks > slot->block_count ||
        slot->block_count * BLOCK_TOKENS <= slot->prompt_count + slot->generated) {
        decode_worker_fail(self, world, slot,
                           ERR_INVALID); /* what was set aside does not fit what is to come */
        return;
    }
    if (!block_pool_take(&self->pool, slot->block_count, slot->blocks)) return;
    slot->has_blocks = true;
    actor_engine_extend(world, decode_worker_index_of(self, slot), slot->blocks, slot->block_count);
    transfer_move(&slot->transfer, TRANSFER_PULLING);
    pull(self, world, slot);
}

static void on_decode_assign(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    const msg_decode_assign_t *assign = &m->decode_assign;
    uint64_t blocks_max = (self->context_max + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    bool is_sound = assign->prefill_worker < self->prefill_count && assign->blocks > 0 &&
                    assign->blocks <= blocks_max;
    slot_t *slot = is_sound ? find_or_announce(self, world, &m->header, assign->ingress) : NULL;
    if (slot == NULL) {
        if (!is_sound) say_failed(world, assign->ingress, &m->header, ERR_CONTEXT);
        say_done(world, &m->header, assign->blocks); /* the ledger shall not wait for us */
        return;
    }
    if (slot->is_assigned) return; /* said twice, since its answer was lost */
    slot->is_assigned = true;
    slot->ingress = assign->ingress;
    slot->prefill_worker = assign->prefill_worker;
    slot->block_count = assign->blocks;
    advance(self, world, slot);
}

static bool is_sound_open(const decode_worker_t *self, const msg_t *m)
{
    const msg_kv_open_t *open = &m->kv_open;
    size_t token_count = (size_t)open->prompt_count + open->generated;
    return m->header.from.role == ROLE_prefill_worker &&
           m->header.from.index < self->prefill_count && open->prompt_count > 0 &&
           token_count < self->context_max && open->tokens.size == token_count * 4 &&
           open->generated < open->max_tokens && open->keys.size % KEY_BYTES == 0 &&
           open->bias_ids_count == open->bias_values_count;
}

static err_t start_sequence(actor_t *world, uint32_t index, const msg_kv_open_t *open)
{
    engine_open_t sequence = { .tokens = open->tokens.data,
                               .token_count = open->prompt_count + open->generated,
                               .generated = open->generated,
                               .sampling = &open->sampling,
                               .bias_ids = open->bias_ids,
                               .bias_values = open->bias_values,
                               .bias_count = open->bias_ids_count };
    return actor_engine_start(world, index, &sequence);
}

static void on_kv_open(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    const msg_kv_open_t *open = &m->kv_open;
    if (!is_sound_open(self, m)) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        say_failed(world, open->ingress, &m->header, ERR_CONTEXT);
        return;
    }
    slot_t *slot = find_or_announce(self, world, &m->header, open->ingress);
    if (slot == NULL || slot->is_open) return;
    uint64_t now = actor_now_us(world);
    slot->ingress = open->ingress;
    slot->prefill_worker = m->header.from.index;
    slot->prefill_epoch = m->header.epoch;
    slot->prompt_count = open->prompt_count;
    slot->prompt_blocks = (open->prompt_count + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    slot->generated = open->generated;
    slot->max_tokens = open->max_tokens;
    slot->reused = open->reused;
    slot->is_end_ignored = open->sampling.ignore_eos != 0;
    slot->has_logprobs = open->sampling.logprobs != 0;
    slot->stop_ids_count = open->stop_ids_count;
    memcpy(slot->stop_ids, open->stop_ids, open->stop_ids_count * sizeof *open->stop_ids);
    slot->deadline_us = open->deadline_us < UINT64_MAX - now ? now + open->deadline_us : UINT64_MAX;
    decode_stream_begin_keys(self, slot, open);
    slot->is_open = true;
    if (slot->is_assigned) lease_extend(&slot->lease, now, self->lease_us);
    err_t error = start_sequence(world, decode_worker_index_of(self, slot), open);
    if (error != ERR_OK) {
        decode_worker_fail(self, world, slot, error == ERR_INVALID ? ERR_CONTEXT : error);
        return;
    }
    slot->is_started = true;
    advance(self, world, slot);
}

/* ---- its blocks come over ------------------------------------------------------------------- */

/* One pull of a request at a time, so that what has landed is always a prefix. */
static void pull(decode_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->transfer.state != TRANSFER_PULLING || slot->is_pulling ||
        slot->landed == slot->offered)
        return;
    uint32_t count = slot->offered - slot->landed;
    if (count > BLOCKS_PER_MESSAGE_MAX) count = BLOCKS_PER_MESSAGE_MAX;
    job_t job = { .kind = JOB_PULL,
                  .slot = decode_worker_index_of(self, slot),
                  .first = slot->landed,
                  .count = count };
    pool_pull_t pull = { .peer = { ROLE_prefill_worker, slot->prefill_worker },
                         .peer_epoch = slot->prefill_epoch,
                         .source = slot->source + slot->landed,
                         .target = slot->blocks + slot->landed,
                         .checksums = slot->checksums + slot->landed,
                         .count = count };
    if (!worker_pull(&self->jobs, world, &job, &pull))
        return; /* tried again with the next heartbeat */
    slot->is_pulling = true;
    slot->jobs += 1;
}

static void start_if_whole(decode_worker_t *self, actor_t *world, slot_t *slot)
{
    bool is_whole = slot->is_prefilled && slot->landed == slot->prompt_blocks;
    if (slot->transfer.state == TRANSFER_PULLING && is_whole)
        decode_stream_start(self, world, slot);
}

static void on_pulled(decode_worker_t *self, actor_t *world, slot_t *slot, const job_t *job,
                      err_t error)
{
    slot->is_pulling = false;
    if (slot->transfer.state == TRANSFER_CLOSING) return;
    if (error == ERR_CHECKSUM) actor_count(world, METRIC_kv_checksum_errors_total, 1);
    if (error != ERR_OK) {
        decode_worker_fail(self, world, slot, error);
        return;
    }
    invariant(job->first == slot->landed);
    slot->landed += job->count;
    actor_count(world, METRIC_kv_blocks_pulled_total, job->count);
    say_landed(world, slot);
    pull(self, world, slot);
    start_if_whole(self, world, slot);
}

static void on_pool_done(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    job_t job = jobs_close(&self->jobs, m->pool_done.job);
    if (job.id == 0) return;
    slot_t *slot = &self->slots[job.slot];
    invariant(slot->jobs > 0 && slot->transfer.state != TRANSFER_FREE);
    slot->jobs -= 1;
    if (job.kind == JOB_PULL) on_pulled(self, world, slot, &job, (err_t)m->pool_done.error);
    if (job.kind == JOB_SEAL) decode_stream_sealed(self, world, slot, &job, m);
    decode_worker_try_free(self, world, slot);
}

/* The slot that a prefill worker speaks of, while its KV is on the way; NULL otherwise. */
static slot_t *spoken_of(decode_worker_t *self, actor_t *world, const msg_t *m)
{
    slot_t *slot = find(self, world, &m->header);
    if (slot == NULL) return NULL;
    bool is_coming =
        slot->transfer.state == TRANSFER_ANNOUNCED || slot->transfer.state == TRANSFER_PULLING;
    if (is_coming && !slot->is_prefilled && m->header.from.role == ROLE_prefill_worker &&
        m->header.from.index == slot->prefill_worker)
        return slot;
    actor_count(world, METRIC_messages_unexpected_total, 1);
    return NULL;
}

/* A gap means that a message was lost between us: the attempt cannot be completed. */
static void on_kv_ready(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    const msg_kv_ready_t *ready = &m->kv_ready;
    slot_t *slot = spoken_of(self, world, m);
    if (slot == NULL) return;
    uint32_t count = ready->blocks_count;
    bool is_next = slot->is_open && ready->first_block == slot->offered &&
                   ready->checksums_count == count && count <= slot->prompt_blocks - slot->offered;
    if (!is_next) {
        decode_worker_fail(self, world, slot, ERR_LOST);
        return;
    }
    memcpy(slot->source + slot->offered, ready->blocks, count * sizeof *ready->blocks);
    memcpy(slot->checksums + slot->offered, ready->checksums, count * sizeof *ready->checksums);
    slot->offered += count;
    if (slot->is_assigned) lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    pull(self, world, slot);
}

static void on_prefilled(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    const msg_prefilled_t *prefilled = &m->prefilled;
    slot_t *slot = spoken_of(self, world, m);
    if (slot == NULL) return;
    bool is_whole = slot->is_open && prefilled->blocks == slot->prompt_blocks &&
                    slot->offered == slot->prompt_blocks &&
                    prefilled->top_logprobs_count == prefilled->top_ids_count;
    if (!is_whole) {
        decode_worker_fail(self, world, slot, ERR_LOST);
        return;
    }
    slot->is_prefilled = true;
    slot->first = (engine_result_t){ .token = prefilled->token,
                                     .logprob = prefilled->logprob,
                                     .top_count = prefilled->top_ids_count };
    memcpy(slot->first.top_ids, prefilled->top_ids,
           prefilled->top_ids_count * sizeof *prefilled->top_ids);
    memcpy(slot->first.top_logprobs, prefilled->top_logprobs,
           prefilled->top_ids_count * sizeof *prefilled->top_logprobs);
    start_if_whole(self, world, slot);
}

/* A request that only one side has announced is not kept alive by it: the other side's word was
 * lost. */
static void on_lease_renew(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    header_t header = { 0 };
    for (uint32_t i = 0; lease_batch_get(&m->lease_renew, i, &header.request, &header.attempt);
         i++) {
        slot_t *slot = find(self, world, &header);
        if (slot != NULL && slot->is_assigned && slot->is_open &&
            m->header.from.index == slot->prefill_worker)
            lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    }
}

/* ---- cancels and peers ---------------------------------------------------------------------- */

static void on_cancel(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    uint32_t index = table_find(&self->table, m->header.request.hi, m->header.request.lo);
    if (index == TABLE_NONE) return;
    if (m->header.attempt < self->slots[index].attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    decode_worker_close(self, world, &self->slots[index]);
}

static void on_peer_down(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    const msg_peer_down_t *down = &m->peer_down;
    if (down->role == ROLE_kv_store) (void)offers_expire(&self->offers, &self->pool, UINT64_MAX);
    for (uint32_t i = self->in_use; i > 0; i--) { /* backwards: who is freed leaves the order */
        slot_t *slot = &self->slots[self->order[i - 1]];
        transfer_state_t at = slot->transfer.state;
        bool is_coming = at == TRANSFER_ANNOUNCED || at == TRANSFER_PULLING;
        if (at == TRANSFER_CLOSING) continue;
        if (down->role == ROLE_ingress && slot->ingress == down->index)
            decode_worker_close(self, world, slot);
        else if (down->role == ROLE_prefill_worker && is_coming &&
                 slot->prefill_worker == down->index)
            decode_worker_fail(self, world, slot, ERR_LOST);
        else
            decode_stream_tend(self, world, slot);
    }
}

static void on_peer_up(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    if (m->peer_up.role != ROLE_decode_lb) return;
    say_held(self, world);
    say_load(self, world);
}

static void on_engine_ready(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    self->is_ready = m->engine_ready.error == ERR_OK;
    if (!self->is_ready)
        actor_log(world, LOG_ERROR, "DECODE-WORKER-ENGINE", "the engine did not start, error %u",
                  m->engine_ready.error);
    say_load(self, world);
}

/* ---- time ----------------------------------------------------------------------------------- */

/* What is not here yet must stay where it is. */
static void renew(decode_worker_t *self, actor_t *world)
{
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        transfer_state_t at = slot->transfer.state;
        if (!slot->is_assigned || (at != TRANSFER_ANNOUNCED && at != TRANSFER_PULLING)) continue;
        header_t about = decode_worker_about(slot);
        renewals_add(&self->renewals, world, slot->prefill_worker, &about);
    }
    renewals_send(&self->renewals, world);
}

static void tend(decode_worker_t *self, actor_t *world, slot_t *slot, uint64_t now)
{
    transfer_state_t at = slot->transfer.state;
    if (at == TRANSFER_CLOSING) return;
    bool is_pulling = at == TRANSFER_PULLING && slot->is_prefilled; /* we wait only for ourselves */
    bool is_coming = at == TRANSFER_ANNOUNCED || at == TRANSFER_PULLING;
    if (now >= slot->deadline_us) {
        decode_worker_fail(self, world, slot, ERR_DEADLINE);
    } else if (is_coming && !is_pulling && lease_is_over(&slot->lease, now)) {
        actor_count(world, METRIC_kv_leases_expired_total, 1);
        decode_worker_fail(self, world, slot, ERR_LEASE);
    } else {
        advance(self, world, slot);
        pull(self, world, slot);
        decode_stream_tend(self, world, slot);
    }
}

static void gauge(decode_worker_t *self, actor_t *world)
{
    uint32_t waiting = 0;
    for (uint32_t i = 0; i < self->in_use; i++) {
        transfer_state_t at = self->slots[self->order[i]].transfer.state;
        waiting += at == TRANSFER_ANNOUNCED || at == TRANSFER_PULLING;
    }
    actor_gauge(world, METRIC_requests_running, self->in_use - waiting);
    actor_gauge(world, METRIC_requests_waiting, waiting);
    actor_gauge(world, METRIC_kv_blocks, self->pool.total);
    actor_gauge(world, METRIC_kv_blocks_used, block_pool_used(&self->pool));
    actor_gauge(world, METRIC_kv_leases, waiting + self->offers.count);
}

static void wake(void *state, actor_t *world)
{
    decode_worker_t *self = state;
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
    decode_stream_step(state, world);
}

/* ---- the class ------------------------------------------------------------------------------ */

static void check(const void *state)
{
    const decode_worker_t *self = state;
    uint32_t open = 0, jobs = 0;
    block_pool_check(&self->pool);
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        transfer_state_t at = slot->transfer.state;
        invariant(at != TRANSFER_FREE);
        invariant(slot->landed <= slot->offered && slot->offered <= slot->prompt_blocks);
        invariant(at != TRANSFER_PULLING ||
                  (slot->is_assigned && slot->is_open && slot->has_blocks));
        invariant(at != TRANSFER_DECODING ||
                  (slot->is_prefilled && slot->landed == slot->prompt_blocks));
        invariant(at != TRANSFER_DECODING || slot->known > slot->prompt_count);
        invariant(at != TRANSFER_DECODING ||
                  (slot->computed >= slot->prompt_count && slot->computed < slot->known));
        invariant(slot->outbox_count <= TOKENS_PER_MESSAGE_MAX);
        invariant(!slot->is_in_step || self->row_count > 0);
        invariant(slot->tail_count < BLOCK_TOKENS);
        open += at != TRANSFER_CLOSING;
        jobs += slot->jobs;
    }
    invariant(open == self->table.count);
    invariant(jobs == self->jobs.count);
}

static bool is_idle(const void *state)
{
    const decode_worker_t *self = state;
    return self->in_use == 0 && self->offers.count == 0 && block_pool_used(&self->pool) == 0;
}

const actor_class_t decode_worker_class = {
    .name = "decode_worker",
    .role = ROLE_decode_worker,
    .state_size = sizeof(decode_worker_t),
    .init = init,
    .fini = fini,
    .turn = turn,
    .wake = wake,
    .check = check,
    .is_idle = is_idle,
    .on = { [MSG_decode_assign] = on_decode_assign,
            [MSG_kv_open] = on_kv_open,
            [MSG_kv_ready] = on_kv_ready,
            [MSG_prefilled] = on_prefilled,
            [MSG_lease_renew] = on_lease_renew,
            [MSG_cancel] = on_cancel,
            [MSG_store_taken] = decode_stream_on_store_taken,
            [MSG_engine_ready] = on_engine_ready,
            [MSG_engine_done] = decode_stream_on_engine_done,
            [MSG_pool_done] = on_pool_done,
            [MSG_peer_up] = on_peer_up,
            [MSG_peer_down] = on_peer_down },
};
