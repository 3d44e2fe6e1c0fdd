/* actors/decode_worker_stream.c - steps of the decode worker, the tokens they give, and the blocks
 * they fill.
 *
 * Every request that can go on has one row in every step.  A request whose tokens its ingress does
 * not accept sits out until they are: that is the whole back-pressure.  Blocks that fill up are
 * offered to the store, one offer at a time, so that the next question of a chat finds them there.
 *
 * A request that was lost elsewhere comes with the tokens that its client has.  Their KV is
 * computed here again by the steps that made it (see D-023): rows that give no token, as many at
 * once as the batch leaves free.  The row of the last of them gives the next token, and the stream
 * goes on.
 */
#include <string.h>

#include "decode_worker_slot.h"

enum { STEP_SHARE = 8 };

static const address_t kv_store = { ROLE_kv_store, 0 };

/* ---- generated blocks ----------------------------------------------------------------------- */

/* One more token is known; a block's key can be made when its last one is. */
static void extend_tail(decode_worker_t *self, slot_t *slot, uint32_t token)
{
    slot->tail[slot->tail_count++] = token;
    if (slot->tail_count < BLOCK_TOKENS) return;
    slot->tail_count = 0;
    if (!slot->is_keyed) return;
    invariant(slot->keyed > 0 && slot->keyed < self->context_max / BLOCK_TOKENS);
    slot->keys[slot->keyed] =
        key_maker_next(self->key_maker, slot->keys[slot->keyed - 1], slot->tail);
    slot->keyed += 1;
}

void decode_stream_begin_keys(decode_worker_t *self, slot_t *slot, const msg_kv_open_t *open)
{
    uint32_t full = open->prompt_count / BLOCK_TOKENS, token;
    slot->is_keyed = full > 0 && open->keys.size == (size_t)full * KEY_BYTES;
    slot->keyed = slot->stored = full;
    if (slot->is_keyed) slot->keys[full - 1] = block_key_load(open->keys.data, full - 1);
    const uint8_t *tokens = open->tokens.data;
    for (size_t i = (size_t)full * BLOCK_TOKENS; i < open->tokens.size / 4; i++) {
        memcpy(&token, tokens + i * 4, 4);
        extend_tail(self, slot, token);
    }
}

/* Blocks that have a key and whose every token was computed. */
static uint32_t full_blocks(const slot_t *slot)
{
    uint32_t computed = slot->computed / BLOCK_TOKENS;
    return computed < slot->keyed ? computed : slot->keyed;
}

static bool has_offer(const decode_worker_t *self, const slot_t *slot)
{
    return slot->offer != 0 && offers_owner(&self->offers, slot->offer) != UINT32_MAX;
}

/* Is there anything left to offer, or on its way to the store? */
static bool is_storing(const decode_worker_t *self, const actor_t *world, const slot_t *slot)
{
    bool is_up = actor_peer_epoch(world, kv_store) != 0;
    return slot->is_sealing || has_offer(self, slot) ||
           (is_up && slot->is_keyed && slot->stored < full_blocks(slot));
}

static void store_full(decode_worker_t *self, actor_t *world, slot_t *slot)
{
    uint32_t end = full_blocks(slot), count = end - slot->stored;
    if (!slot->is_keyed || slot->stored >= end || slot->is_sealing || has_offer(self, slot)) return;
    if (actor_peer_epoch(world, kv_store) == 0) return;
    if (count > BLOCKS_PER_MESSAGE_MAX) count = BLOCKS_PER_MESSAGE_MAX;
    job_t job = { .kind = JOB_SEAL,
                  .slot = decode_worker_index_of(self, slot),
                  .first = slot->stored,
                  .count = count };
    if (!worker_seal(&self->jobs, world, &job, slot->blocks + slot->stored))
        return; /* tried again with the next step */
    slot->is_sealing = true;
    slot->jobs += 1;
}

static void offer_blocks(decode_worker_t *self, actor_t *world, slot_t *slot, const job_t *job,
                         const uint64_t *checksums)
{
    worker_offer_t offer = { .about = decode_worker_about(slot),
                             .owner = job->slot,
                             .count = job->count,
                             .until_us = actor_now_us(world) + self->lease_us,
                             .blocks = slot->blocks + job->first,
                             .checksums = checksums,
                             .keys = slot->keys + job->first,
                             .parents = slot->keys + job->first - 1 };
    slot->offer = worker_offer(&self->offers, &self->pool, world, &offer);
}

void decode_stream_sealed(decode_worker_t *self, actor_t *world, slot_t *slot, const job_t *job,
                          const msg_t *m)
{
    slot->is_sealing = false;
    if (slot->transfer.state == TRANSFER_CLOSING) return;
    invariant(job->first == slot->stored && job->first > 0);
    slot->stored += job->count; /* it is only a cache: what fails now is not offered again */
    if (m->pool_done.error == ERR_OK && m->pool_done.checksums_count == job->count)
        offer_blocks(self, world, slot, job, m->pool_done.checksums);
    decode_stream_tend(self, world, slot);
}

void decode_stream_on_store_taken(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    uint32_t owner = offers_owner(&self->offers, m->store_taken.offer);
    if (!offers_close(&self->offers, &self->pool, m->store_taken.offer)) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    invariant(owner < self->slot_max);
    slot_t *slot = &self->slots[owner];
    if (slot->offer != m->store_taken.offer) return;
    slot->offer = 0;
    decode_stream_tend(self, world, slot);
    decode_worker_try_free(self, world, slot);
}

/* ---- tokens to ingress ---------------------------------------------------------------------- */

static void put(msg_tokens_t *tokens, const engine_result_t *result, bool has_logprobs)
{
    uint32_t at = tokens->ids_count++;
    tokens->ids[at] = result->token;
    if (!has_logprobs) return;
    uint32_t top = tokens->top_ids_count;
    tokens->top_count = result->top_count;
    tokens->logprobs[at] = result->logprob;
    tokens->logprobs_count = at + 1;
    memcpy(tokens->top_ids + top, result->top_ids, result->top_count * sizeof *result->top_ids);
    memcpy(tokens->top_logprobs + top, result->top_logprobs,
           result->top_count * sizeof *result->top_logprobs);
    tokens->top_ids_count = tokens->top_logprobs_count = top + result->top_count;
}

/* What waits, as one message; a change in the number of alternatives needs another.  False: the
 * link takes nothing now. */
static bool flush(actor_t *world, slot_t *slot)
{
    while (slot->outbox_count > 0) {
        msg_t m;
        msg_init(&m, MSG_tokens);
        m.tokens.first_index = slot->total - slot->outbox_count;
        m.tokens.reused = slot->reused;
        uint32_t count = 0;
        while (count < slot->outbox_count &&
               slot->outbox[count].top_count == slot->outbox[0].top_count)
            put(&m.tokens, &slot->outbox[count++], slot->has_logprobs);
        address_t to = { ROLE_ingress, slot->ingress };
        err_t error = decode_worker_say(world, to, &m, slot);
        if (!worker_is_said(world, error, &slot->unheard_us)) return false;
        slot->outbox_count -= count;
        memmove(slot->outbox, slot->outbox + count, slot->outbox_count * sizeof *slot->outbox);
    }
    return true;
}

static bool say_finished(actor_t *world, slot_t *slot)
{
    msg_t m;
    msg_init(&m, MSG_finished);
    m.finished.reason = slot->reason;
    m.finished.tokens = slot->total;
    err_t error = decode_worker_say(world, (address_t){ ROLE_ingress, slot->ingress }, &m, slot);
    return worker_is_said(world, error, &slot->unheard_us);
}

static bool is_end_token(const actor_t *world, const slot_t *slot, uint32_t token)
{
    worker_ends_t ends = { slot->is_end_ignored, slot->stop_ids, slot->stop_ids_count };
    return worker_is_end(world, &ends, token);
}

static void end_text(decode_worker_t *self, actor_t *world, slot_t *slot, finish_t reason)
{
    slot->reason = reason;
    slot->ending_until_us = actor_now_us(world) + self->lease_us;
    transfer_move(&slot->transfer, TRANSFER_ENDING);
}

/* The next token of a stream: into the outbox, and the end if it is one. */
static void accept(decode_worker_t *self, actor_t *world, slot_t *slot,
                   const engine_result_t *result)
{
    invariant(slot->transfer.state == TRANSFER_DECODING);
    invariant(slot->outbox_count < TOKENS_PER_MESSAGE_MAX && slot->computed == slot->known);
    slot->outbox[slot->outbox_count++] = *result;
    slot->known += 1;
    slot->total += 1;
    extend_tail(self, slot, result->token);
    if (is_end_token(world, slot, result->token))
        end_text(self, world, slot, FINISH_STOP);
    else if (slot->total >= slot->max_tokens || slot->known >= self->context_max ||
             slot->known >= slot->block_count * BLOCK_TOKENS)
        end_text(self, world, slot, FINISH_LENGTH);
}

void decode_stream_start(decode_worker_t *self, actor_t *world, slot_t *slot)
{
    transfer_move(&slot->transfer, TRANSFER_DECODING);
    slot->computed = slot->prompt_count;
    slot->known = slot->prompt_count + slot->generated;
    slot->total = slot->generated;
    if (slot->generated == 0) {
        actor_engine_append(world, decode_worker_index_of(self, slot), slot->first.token);
        accept(self, world, slot, &slot->first);
    }
    decode_stream_tend(self, world, slot);
}

/* The request is told all, then waits for the store, at most for a lease, then goes. */
void decode_stream_tend(decode_worker_t *self, actor_t *world, slot_t *slot)
{
    transfer_state_t state = slot->transfer.state;
    if (state != TRANSFER_DECODING && state != TRANSFER_ENDING) return;
    store_full(self, world, slot);
    if (!flush(world, slot) || state == TRANSFER_DECODING) return;
    if (!slot->is_finish_said) slot->is_finish_said = say_finished(world, slot);
    bool is_waiting = is_storing(self, world, slot) && actor_now_us(world) < slot->ending_until_us;
    if (slot->is_finish_said && !is_waiting) decode_worker_close(self, world, slot);
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* A row for each request that can go on.  What a full batch would have besides goes to those that
 * compute again what they have generated, in order of arrival: no step is larger for them than a
 * full batch's. */
static uint32_t plan(decode_worker_t *self)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < self->in_use && count < self->batch_max; i++) {
        const slot_t *slot = &self->slots[self->order[i]];
        if (slot->transfer.state != TRANSFER_DECODING ||
            slot->outbox_count == TOKENS_PER_MESSAGE_MAX)
            continue;
        self->rows[count++] = (engine_row_t){ .slot = self->order[i], .first = slot->computed };
    }
    uint32_t room = self->batch_max - count;
    for (uint32_t i = 0; i < count; i++) {
        engine_row_t *row = &self->rows[i];
        uint32_t known = self->slots[row->slot].known, more = known - row->first - 1;
        if (more > room) more = room;
        room -= more;
        row->count = 1 + more;
        row->is_last = row->first + row->count == known;
    }
    return count;
}

void decode_stream_step(decode_worker_t *self, actor_t *world)
{
    if (self->row_count > 0 || !self->is_ready || actor_now_us(world) < self->retry.at_us) return;
    uint32_t count = plan(self);
    if (count == 0 || actor_engine_step(world, self->step + 1, self->rows, count) != ERR_OK) return;
    self->step += 1;
    self->row_count = count;
    for (uint32_t i = 0; i < count; i++) self->slots[self->rows[i].slot].is_in_step = true;
}

/* Nothing of a failed step counts.  While other ranks may come back it is done again; past the
 * bound its requests fail and go on elsewhere. */
static void on_step_failed(decode_worker_t *self, actor_t *world, err_t error)
{
    bool is_over = worker_step_failed(&self->retry, world, error);
    for (uint32_t i = 0; i < self->row_count; i++) {
        slot_t *slot = &self->slots[self->rows[i].slot];
        slot->is_in_step = false;
        if (is_over && slot->transfer.state == TRANSFER_DECODING)
            decode_worker_fail(self, world, slot, error);
        decode_worker_try_free(self, world, slot);
    }
}

static void take_results(decode_worker_t *self, actor_t *world, bytes_t results)
{
    for (size_t at = 0; at + sizeof(engine_result_t) <= results.size;
         at += sizeof(engine_result_t)) {
        engine_result_t result;
        memcpy(&result, (const uint8_t *)results.data + at, sizeof result);
        invariant(result.slot < self->slot_max && result.top_count <= TOP_LOGPROBS_MAX);
        slot_t *slot = &self->slots[result.slot];
        if (slot->is_in_step && slot->transfer.state == TRANSFER_DECODING && !result.is_prompt)
            accept(self, world, slot, &result);
    }
}

void decode_stream_on_engine_done(void *state, actor_t *world, const msg_t *m)
{
    decode_worker_t *self = state;
    const msg_engine_done_t *done = &m->engine_done;
    if (self->row_count == 0 || done->step != self->step) return;
    if (done->error != ERR_OK) {
        on_step_failed(self, world, (err_t)done->error);
        self->row_count = 0;
        return;
    }
    self->retry.count = 0;
    for (uint32_t i = 0; i < self->row_count; i++)
        self->slots[self->rows[i].slot].computed += self->rows[i].count;
    take_results(self, world, done->results);
    for (uint32_t i = 0; i < self->row_count; i++) {
        slot_t *slot = &self->slots[self->rows[i].slot];
        slot->is_in_step = false;
        decode_stream_tend(self, world, slot);
        decode_worker_try_free(self, world, slot);
    }
    self->row_count = 0;
    self->step_us = (self->step_us * (STEP_SHARE - 1) + done->elapsed_us) / STEP_SHARE;
    actor_count(world, METRIC_steps_total, 1);
    actor_observe(world, METRIC_step_seconds, (double)done->elapsed_us * 1e-6);
}
