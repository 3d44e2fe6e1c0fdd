/* actors/prefill_worker_offer.c - KV that the prefill worker gets from the store and gives to
 * decode and store.
 *
 * A block is final when it is full, the last one when the prompt ends; then its checksum is taken
 * (it is sealed) and it is offered: to the decode worker in order, from the first, and to the
 * store, which need not take it.
 */
#include <string.h>

#include "prefill_worker_slot.h"

static const address_t decode_lb = { ROLE_decode_lb, 0 };
static const address_t kv_store = { ROLE_kv_store, 0 };

/* ---- the way to decode ---------------------------------------------------------------------- */

/* The first token alone needs no decode worker at all. */
bool prefill_offer_needs_decode(const slot_t *slot)
{
    return slot->assign.max_tokens > 1;
}

void prefill_offer_request_decode(actor_t *world, slot_t *slot)
{
    uint32_t tokens = slot->assign.prompt_count + slot->assign.max_tokens;
    msg_t m;
    msg_init(&m, MSG_decode_request);
    m.decode_request.ingress = slot->ingress;
    m.decode_request.prompt_count = slot->assign.prompt_count;
    m.decode_request.blocks = (tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    (void)prefill_worker_say(world, decode_lb, &m,
                             slot); /* lost: asked again when half the lease is gone */
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
    return prefill_worker_say(world, to, &m, slot) == ERR_OK;
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
    return prefill_worker_say(world, to, &m, slot) == ERR_OK;
}

/* Whatever can be said to the decode worker now; a full link is tried again with the next
 * heartbeat. */
void prefill_offer_push(actor_t *world, slot_t *slot)
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
        if (prefill_worker_say(world, to, &m, slot) != ERR_OK) return;
        slot->ready += count;
    }
    bool is_all_said =
        slot->is_opened && slot->state == OFFERED && slot->ready == slot->block_count;
    if (is_all_said && !slot->is_prefilled) slot->is_prefilled = push_prefilled(world, slot, to);
}

void prefill_offer_on_decode_placed(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    slot_t *slot = prefill_worker_find(self, world, &m->header);
    if (slot == NULL) { /* given up meanwhile */
        say_plain(world, decode_lb, MSG_cancel, &m->header);
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
    prefill_offer_push(world, slot);
}

void prefill_offer_on_kv_landed(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    slot_t *slot = prefill_worker_find(self, world, &m->header);
    if (slot == NULL) return;
    if (!slot->is_placed || slot->decode_worker != m->header.from.index ||
        m->kv_landed.blocks > slot->ready) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    if (m->kv_landed.blocks > slot->landed) slot->landed = m->kv_landed.blocks;
    if (slot->is_prefilled && slot->landed == slot->block_count)
        prefill_worker_close(self, world, slot, ERR_OK);
}

/* Only who is responsible now can renew: decode_lb while the prompt waits for a place, then the
 * decode worker. */
void prefill_offer_on_lease_renew(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    bool is_from_lb = m->header.from.role == ROLE_decode_lb;
    header_t header = { .from = m->header.from };
    for (uint32_t i = 0; lease_batch_get(&m->lease_renew, i, &header.request, &header.attempt);
         i++) {
        slot_t *slot = prefill_worker_find(self, world, &header);
        if (slot == NULL) {
            /* decode_lb still holds a place for what is over: the cancel was lost */
            if (is_from_lb) say_plain(world, decode_lb, MSG_cancel, &header);
            continue;
        }
        bool is_from_worker = slot->is_placed && m->header.from.role == ROLE_decode_worker &&
                              m->header.from.index == slot->decode_worker;
        if (is_from_worker || (is_from_lb && !slot->is_placed))
            lease_extend(&slot->lease, actor_now_us(world), self->lease_us);
    }
}

/* ---- sealed blocks: their checksums are known, others may have them ------------------------- */

static void store_sealed(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    uint32_t end = slot->sealed < slot->key_count ? slot->sealed : slot->key_count;
    if (actor_peer_epoch(world, kv_store) == 0) slot->stored = end;
    while (slot->stored < end) {
        uint32_t first = slot->stored, count = end - first;
        if (count > BLOCKS_PER_MESSAGE_MAX) count = BLOCKS_PER_MESSAGE_MAX;
        slot->stored += count; /* it is only a cache: what is refused now is not offered again */
        if (self->offers.count == self->offers.capacity) return; /* the rest: when more is sealed */
        const uint8_t *keys = slot->assign.keys.data;
        uint8_t parents[BLOCKS_PER_MESSAGE_MAX * KEY_BYTES] = { 0 };
        if (first > 0) memcpy(parents, keys + (size_t)(first - 1) * KEY_BYTES, KEY_BYTES);
        memcpy(parents + KEY_BYTES, keys + (size_t)first * KEY_BYTES,
               (size_t)(count - 1) * KEY_BYTES);
        worker_offer_t offer = { .about = prefill_worker_about(slot),
                                 .owner = prefill_worker_index_of(self, slot),
                                 .count = count,
                                 .until_us = actor_now_us(world) + self->lease_us,
                                 .blocks = slot->blocks + first,
                                 .checksums = slot->checksums + first,
                                 .keys = keys + (size_t)first * KEY_BYTES,
                                 .parents = parents };
        (void)worker_offer(&self->offers, &self->pool, world, &offer);
    }
}

/* Blocks become final when they are full; the last one when the prompt ends. */
void prefill_offer_seal(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->state != COMPUTING && slot->state != OFFERED) return;
    bool is_whole = slot->computed == slot->assign.prompt_count;
    uint32_t end = is_whole ? slot->block_count : slot->computed / BLOCK_TOKENS;
    uint32_t count = end - slot->sealed;
    invariant(slot->sealed <= end);
    if (slot->is_sealing || count == 0) return;
    if (count > BLOCKS_PER_MESSAGE_MAX) count = BLOCKS_PER_MESSAGE_MAX;
    job_t job = { .kind = JOB_SEAL,
                  .slot = prefill_worker_index_of(self, slot),
                  .first = slot->sealed,
                  .count = count };
    if (!worker_seal(&self->jobs, world, &job, slot->blocks + slot->sealed))
        return; /* tried again with the next completion or heartbeat */
    slot->is_sealing = true;
    slot->jobs += 1;
}

static void on_sealed(prefill_worker_t *self, actor_t *world, slot_t *slot, const job_t *job,
                      const msg_t *m)
{
    slot->is_sealing = false;
    if (slot->state == CLOSING) return;
    if (m->pool_done.error != ERR_OK || m->pool_done.checksums_count != job->count) {
        prefill_worker_fail(self, world, slot, ERR_INTERNAL);
        return;
    }
    invariant(job->first == slot->sealed);
    memcpy(slot->checksums + job->first, m->pool_done.checksums,
           job->count * sizeof *slot->checksums);
    slot->sealed += job->count;
    prefill_offer_push(world, slot);
    store_sealed(self, world, slot);
    prefill_offer_seal(self, world, slot);
}

/* ---- the store's answer --------------------------------------------------------------------- */

/* Leading blocks worth asking for: the block of the last token is always computed. */
static uint32_t askable(const slot_t *slot)
{
    uint32_t usable = (slot->assign.prompt_count - 1) / BLOCK_TOKENS;
    if (slot->assign.sampling.prompt_logprobs || slot->assign.store_blocks == 0) return 0;
    return slot->key_count < usable ? slot->key_count : usable;
}

void prefill_offer_ask_store(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    msg_t m;
    msg_init(&m, MSG_store_ask);
    m.store_ask.keys = (bytes_t){ slot->assign.keys.data, (size_t)askable(slot) * KEY_BYTES };
    slot->state = ASKING;
    slot->ask_until_us = actor_now_us(world) + self->lease_us / 2;
    if (askable(slot) == 0 || prefill_worker_say(world, kv_store, &m, slot) != ERR_OK) {
        slot->state = COMPUTING;
        prefill_worker_say_progress(world, slot);
    }
}

/* Leave ASKING with the longest unbroken run of blocks that were pulled and verified. */
static void begin_computing(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    invariant(slot->state == ASKING && slot->jobs == 0);
    prefill_worker_say_plain(world, kv_store, MSG_store_release, slot);
    uint32_t blocks = 0;
    for (uint32_t part = 0; blocks < slot->found && (slot->parts_pulled >> part & 1); part++)
        blocks += BLOCKS_PER_MESSAGE_MAX;
    if (blocks > slot->found) blocks = slot->found;
    slot->reused = slot->computed = blocks * BLOCK_TOKENS;
    slot->sealed = slot->stored = blocks;
    invariant(slot->computed < slot->assign.prompt_count);
    slot->state = COMPUTING;
    prefill_worker_say_progress(world, slot);
    prefill_offer_push(world, slot);
}

void prefill_offer_consider_computing(prefill_worker_t *self, actor_t *world, slot_t *slot)
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
                  .slot = prefill_worker_index_of(self, slot),
                  .first = found->first_block,
                  .count = found->blocks_count };
    pool_pull_t pull = { .peer = m->header.from,
                         .peer_epoch = m->header.epoch,
                         .source = found->blocks,
                         .target = slot->blocks + found->first_block,
                         .checksums = found->checksums,
                         .count = found->blocks_count };
    if (!worker_pull(&self->jobs, world, &job, &pull)) return false;
    memcpy(slot->checksums + job.first, found->checksums, job.count * sizeof *slot->checksums);
    slot->jobs += 1;
    return true;
}

void prefill_offer_on_store_found(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    slot_t *slot = prefill_worker_find(self, world, &m->header);
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
    prefill_offer_consider_computing(self, world, slot);
}

static void on_pulled(prefill_worker_t *self, actor_t *world, slot_t *slot, const job_t *job,
                      err_t error)
{
    if (error == ERR_CHECKSUM) actor_count(world, METRIC_kv_checksum_errors_total, 1);
    if (error == ERR_OK) {
        actor_count(world, METRIC_kv_blocks_pulled_total, job->count);
        slot->parts_pulled |= 1u << job->first / BLOCKS_PER_MESSAGE_MAX;
    }
    prefill_offer_consider_computing(self, world, slot);
}

void prefill_offer_on_pool_done(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    job_t job = jobs_close(&self->jobs, m->pool_done.job);
    if (job.id == 0) return;
    slot_t *slot = &self->slots[job.slot];
    invariant(slot->jobs > 0 && slot->state != FREE);
    slot->jobs -= 1;
    if (job.kind == JOB_SEAL) on_sealed(self, world, slot, &job, m);
    if (job.kind == JOB_PULL) on_pulled(self, world, slot, &job, (err_t)m->pool_done.error);
    prefill_worker_try_free(self, world, slot);
}

void prefill_offer_on_store_taken(void *state, actor_t *world, const msg_t *m)
{
    prefill_worker_t *self = state;
    if (!offers_close(&self->offers, &self->pool, m->store_taken.offer))
        actor_count(world, METRIC_messages_stale_total, 1);
}
