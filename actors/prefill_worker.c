/* actors/prefill_worker.c - computes prompts in chunks, offers their KV to decode and to the store.
 *
 *   prefill_lb --prefill_assign, cancel--> prefill_worker
 *   prefill_worker --prefill_progress, prefill_done, prefill_load, held--> prefill_lb
 *   prefill_worker --store_ask, store_release, store_offer--> kv_store
 *   kv_store --store_found, store_taken--> prefill_worker
 *   prefill_worker --decode_request, cancel--> decode_lb
 *   decode_lb --decode_placed, lease_renew--> prefill_worker
 *   prefill_worker --kv_open, kv_ready, prefilled, lease_renew--> decode_worker
 *   decode_worker --kv_landed, lease_renew--> prefill_worker
 *   prefill_worker --tokens (the first), prompt_logprobs, finished, failed--> ingress
 *
 * Policy: blocks for the whole prompt are set aside before it begins, in order of arrival; chunks
 * are shared by all prompts, first come, first served.  What the store has is pulled, but for the
 * last block: the last token is always computed, for it gives the logits.  Room for decoding is
 * asked for at the start, so that the decode worker pulls while we compute.  Tokens that an earlier
 * attempt generated are only passed on: decode computes them again, by its own order of sums (see
 * D-023).
 *
 *   FREE -> WAITING (for blocks) -> ASKING (the store) -> COMPUTING
 *        -> OFFERED (to decode) -> CLOSING -> FREE
 *
 * CLOSING: nobody is interested any more, but a step or a pool job still uses the blocks.
 */
#include "prefill_worker.h"

#include <string.h>

#include "../runtime/base/config.h"
#include "prefill_worker_slot.h"

enum { OFFERS_PER_SLOT = 2, HELD_PER_LEASE = 4 };

static const address_t prefill_lb = { ROLE_prefill_lb, 0 };
static const address_t decode_lb = { ROLE_decode_lb, 0 };
static const address_t kv_store = { ROLE_kv_store, 0 };

/* ---- start ---------------------------------------------------------------------------------- */

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
    self->context_max = config_context_max(config);
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
    renewals_init(&self->renewals, world, ROLE_decode_worker, self->decode_count);
    err_t error = actor_pool_open(world, blocks);
    if (error != ERR_OK) return error;
    engine_limits_t limits = { .slots = self->slot_max,
                               .rows_max = self->chunk_tokens,
                               .sequences_max = self->slot_max,
                               .context_max = self->context_max };
    actor_wake_at(world, actor_now_us(world) + self->heartbeat_us);
    return actor_engine_open(world, &limits);
}

/* ---- what we say ---------------------------------------------------------------------------- */

uint32_t prefill_worker_index_of(const prefill_worker_t *self, const slot_t *slot)
{
    return (uint32_t)(slot - self->slots);
}

header_t prefill_worker_about(const slot_t *slot)
{
    return (header_t){ .request = slot->request, .attempt = slot->attempt };
}

err_t prefill_worker_say(actor_t *world, address_t to, msg_t *m, const slot_t *slot)
{
    header_t about = prefill_worker_about(slot);
    return say_about(world, to, m, &about);
}

void prefill_worker_say_plain(actor_t *world, address_t to, msg_type_t type, const slot_t *slot)
{
    header_t about = prefill_worker_about(slot);
    say_plain(world, to, type, &about);
}

static void say_done(actor_t *world, const header_t *about, err_t error)
{
    msg_t m;
    msg_init(&m, MSG_prefill_done);
    m.prefill_done.error = (u32)error;
    (void)say_about(world, prefill_lb, &m, about);
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
        (void)prefill_worker_say(world, prefill_lb, &m, slot);
    }
}

void prefill_worker_say_progress(actor_t *world, const slot_t *slot)
{
    msg_t m;
    msg_init(&m, MSG_prefill_progress);
    m.prefill_progress.computed = slot->computed;
    m.prefill_progress.reused = slot->reused;
    (void)prefill_worker_say(world, prefill_lb, &m, slot);
}

/* ---- the end of a request here -------------------------------------------------------------- */

/* The blocks go back as soon as no step and no pool job uses them. */
void prefill_worker_try_free(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->state != CLOSING || slot->is_in_step || slot->jobs > 0) return;
    uint32_t index = prefill_worker_index_of(self, slot), at = 0;
    if (slot->is_started) {
        actor_engine_close(world, index);
        for (uint32_t i = 0; i < slot->block_count; i++)
            block_pool_release(&self->pool, slot->blocks[i]);
    }
    header_t about = prefill_worker_about(slot);
    say_done(world, &about, slot->error);
    slot->state = FREE;
    while (self->order[at] != index) at++; /* it is there */
    self->in_use -= 1;
    memmove(self->order + at, self->order + at + 1, (self->in_use - at) * sizeof *self->order);
}

void prefill_worker_close(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error)
{
    invariant(slot->state != FREE && slot->state != CLOSING);
    if (slot->state == ASKING) prefill_worker_say_plain(world, kv_store, MSG_store_release, slot);
    table_remove(&self->table, slot->request.hi, slot->request.lo);
    slot->state = CLOSING;
    slot->error = error;
    prefill_worker_try_free(self, world, slot);
}

/* Give it up, with whatever decode has set aside for it. */
void prefill_worker_abandon(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error)
{
    if (slot->is_requested) prefill_worker_say_plain(world, decode_lb, MSG_cancel, slot);
    if (slot->is_opened)
        prefill_worker_say_plain(world, (address_t){ ROLE_decode_worker, slot->decode_worker },
                                 MSG_cancel, slot);
    prefill_worker_close(self, world, slot, error);
}

void prefill_worker_fail(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error)
{
    header_t about = prefill_worker_about(slot);
    say_failed(world, slot->ingress, &about, error);
    prefill_worker_abandon(self, world, slot, error);
}

slot_t *prefill_worker_find(prefill_worker_t *self, actor_t *world, const header_t *header)
{
    uint32_t index = table_find(&self->table, header->request.hi, header->request.lo);
    if (index == TABLE_NONE) return NULL;
    if (self->slots[index].attempt == header->attempt) return &self->slots[index];
    actor_count(world, METRIC_messages_stale_total, 1);
    return NULL;
}

/* ---- a new request -------------------------------------------------------------------------- */

static bool is_sound_assign(const prefill_worker_t *self, const msg_prefill_assign_t *assign)
{
    size_t token_count = (size_t)assign->prompt_count + assign->generated;
    return assign->prompt_count > 0 && token_count <= self->context_max &&
           assign->tokens.size == token_count * 4 && assign->keys.size % KEY_BYTES == 0 &&
           assign->keys.size / KEY_BYTES <= assign->prompt_count / BLOCK_TOKENS &&
           assign->generated < assign->max_tokens &&
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
                      .key_count = (uint32_t)(in->keys.size / KEY_BYTES),
                      .is_told = in->generated > 0 };
    slot->assign.tokens.data = kept.assign.tokens.data;
    slot->assign.keys.data = kept.assign.keys.data;
    memcpy((void *)(uintptr_t)slot->assign.tokens.data, in->tokens.data, in->tokens.size);
    if (in->keys.size > 0)
        memcpy((void *)(uintptr_t)slot->assign.keys.data, in->keys.data, in->keys.size);
    slot->deadline_us = in->deadline_us < UINT64_MAX - now ? now + in->deadline_us : UINT64_MAX;
}

static void refuse(actor_t *world, const msg_t *m, err_t error)
{
    say_failed(world, m->prefill_assign.ingress, &m->header, error);
    say_done(world, &m->header, error);
}

static void on_prefill_assign(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    uint32_t index = table_find(&self->table, m->header.request.hi, m->header.request.lo);
    if (index != TABLE_NONE && self->slots[index].attempt >= m->header.attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    if (index != TABLE_NONE) prefill_worker_abandon(self, world, &self->slots[index], ERR_STALE);
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

/* Blocks for the whole prompt, or none: two half-admitted prompts could wait for each other for
 * ever. */
static bool admit(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    if (!block_pool_take(&self->pool, slot->block_count, slot->blocks)) return false;
    const msg_prefill_assign_t *assign = &slot->assign;
    engine_open_t sequence = { .tokens = assign->tokens.data,
                               .token_count = assign->prompt_count,
                               .sampling = &assign->sampling,
                               .bias_ids = assign->bias_ids,
                               .bias_values = assign->bias_values,
                               .bias_count = assign->bias_ids_count };
    uint32_t index = prefill_worker_index_of(self, slot);
    err_t error = actor_engine_start(world, index, &sequence);
    if (error != ERR_OK) {
        for (uint32_t i = 0; i < slot->block_count; i++)
            block_pool_release(&self->pool, slot->blocks[i]);
        prefill_worker_fail(self, world, slot, error == ERR_INVALID ? ERR_CONTEXT : error);
        return true;
    }
    actor_engine_extend(world, index, slot->blocks, slot->block_count);
    slot->is_started = true;
    prefill_offer_ask_store(self, world, slot);
    if (!prefill_offer_needs_decode(slot)) return true;
    slot->is_requested = true;
    lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    prefill_offer_request_decode(world, slot);
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

static void on_engine_ready(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    self->is_ready = m->engine_ready.error == ERR_OK;
    if (!self->is_ready)
        actor_log(world, LOG_ERROR, "PREFILL-WORKER-ENGINE", "the engine did not start, error %u",
                  m->engine_ready.error);
    say_load(self, world);
}

/* ---- cancels and peers ---------------------------------------------------------------------- */

static void on_cancel(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    uint32_t index = table_find(&self->table, m->header.request.hi, m->header.request.lo);
    if (index == TABLE_NONE) return;
    if (m->header.attempt < self->slots[index].attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    prefill_worker_abandon(self, world, &self->slots[index], ERR_CANCELLED);
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
        if (is_decode) prefill_worker_fail(self, world, slot, ERR_LOST);
        if (!is_decode && down->role == ROLE_ingress && slot->ingress == down->index)
            prefill_worker_abandon(self, world, slot, ERR_LOST);
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
            prefill_offer_request_decode(world, slot);
    }
}

/* ---- time ----------------------------------------------------------------------------------- */

/* The decode side was silent.  After `prefilled` it is responsible and may well be decoding: we
 * just let go. */
static void on_lease_over(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    actor_count(world, METRIC_kv_leases_expired_total, 1);
    if (slot->is_prefilled)
        prefill_worker_close(self, world, slot, ERR_LEASE);
    else
        prefill_worker_fail(self, world, slot, ERR_LEASE);
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
        prefill_offer_request_decode(world, slot); /* the request or its answer was lost */
}

/* While we compute, the decode worker shall keep what it has set aside; after `prefilled` it is on
 * its own. */
static void renew(prefill_worker_t *self, actor_t *world)
{
    for (uint32_t i = 0; i < self->in_use; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        if (slot->state == CLOSING || !slot->is_placed || slot->is_prefilled) continue;
        header_t about = prefill_worker_about(slot);
        renewals_add(&self->renewals, world, slot->decode_worker, &about);
    }
    renewals_send(&self->renewals, world);
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
        prefill_worker_fail(self, world, slot, ERR_DEADLINE);
        return;
    }
    if (slot->state == ASKING && now >= slot->ask_until_us)
        prefill_offer_consider_computing(self, world, slot);
    prefill_offer_seal(self, world, slot);
    prefill_offer_push(world, slot);
    prefill_step_conclude(self, world, slot);
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
    prefill_step_submit(self, world);
}

/* ---- the class ------------------------------------------------------------------------------ */

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
            [MSG_store_found] = prefill_offer_on_store_found,
            [MSG_store_taken] = prefill_offer_on_store_taken,
            [MSG_decode_placed] = prefill_offer_on_decode_placed,
            [MSG_kv_landed] = prefill_offer_on_kv_landed,
            [MSG_lease_renew] = prefill_offer_on_lease_renew,
            [MSG_engine_ready] = on_engine_ready,
            [MSG_engine_done] = prefill_step_on_engine_done,
            [MSG_pool_done] = prefill_offer_on_pool_done,
            [MSG_peer_up] = on_peer_up,
            [MSG_peer_down] = on_peer_down },
};
