/* actors/prefill_worker_step.c - steps of the prefill worker and what they give: the first token of
 * each prompt.
 *
 * One step is under way at a time; a request that is cancelled meanwhile keeps its blocks until the
 * step is done.
 */
#include <string.h>

#include "../runtime/policy/placement.h"
#include "prefill_worker_slot.h"

#define NONE UINT32_MAX

/* ---- steps ---------------------------------------------------------------------------------- */

void prefill_step_submit(prefill_worker_t *self, actor_t *world)
{
    if (self->part_count > 0 || !self->is_ready || actor_now_us(world) < self->retry.at_us) return;
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
    m.tokens.ids_count = 1;
    m.tokens.ids[0] = first->token;
    m.tokens.reused = slot->reused;
    if (assign->sampling.logprobs) {
        m.tokens.logprobs_count = 1;
        m.tokens.logprobs[0] = first->logprob;
        m.tokens.top_count = m.tokens.top_ids_count = m.tokens.top_logprobs_count =
            first->top_count;
        memcpy(m.tokens.top_ids, first->top_ids, first->top_count * sizeof *first->top_ids);
        memcpy(m.tokens.top_logprobs, first->top_logprobs,
               first->top_count * sizeof *first->top_logprobs);
    }
    err_t error = prefill_worker_say(world, (address_t){ ROLE_ingress, slot->ingress }, &m, slot);
    return worker_is_said(world, error, &slot->unheard_us);
}

static bool ends_text(const actor_t *world, const slot_t *slot)
{
    const msg_prefill_assign_t *assign = &slot->assign;
    worker_ends_t ends = { assign->sampling.ignore_eos != 0, assign->stop_ids,
                           assign->stop_ids_count };
    return worker_is_end(world, &ends, slot->first.token);
}

/* The prompt is computed: on to decode, or to the end. */
void prefill_step_conclude(prefill_worker_t *self, actor_t *world, slot_t *slot)
{
    if (slot->state != COMPUTING || !slot->has_token) return;
    if (!slot->is_told) slot->is_told = tell_first(self, world, slot);
    if (!slot->is_told) return;
    bool is_stop = slot->assign.generated == 0 && ends_text(world, slot);
    if (!is_stop && prefill_offer_needs_decode(slot)) {
        slot->state = OFFERED;
        prefill_offer_push(world, slot);
        return;
    }
    msg_t m;
    msg_init(&m, MSG_finished);
    m.finished.reason = is_stop ? FINISH_STOP : FINISH_LENGTH;
    m.finished.tokens = 1;
    err_t error = prefill_worker_say(world, (address_t){ ROLE_ingress, slot->ingress }, &m, slot);
    if (!worker_is_said(world, error, &slot->unheard_us)) return;
    prefill_worker_abandon(self, world, slot, ERR_OK);
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
        (void)prefill_worker_say(world, (address_t){ ROLE_ingress, slot->ingress }, m, slot);
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
    bool is_over = worker_step_failed(&self->retry, world, error);
    for (uint32_t i = 0; i < self->part_count; i++) {
        slot_t *slot = &self->slots[self->parts[i].slot];
        slot->is_in_step = false;
        if (is_over && slot->state == COMPUTING) prefill_worker_fail(self, world, slot, error);
        prefill_worker_try_free(self, world, slot);
    }
}

void prefill_step_on_engine_done(void *state, actor_t *world, const msg_t *m)
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
    self->retry.count = 0;
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
            prefill_worker_say_progress(world, slot);
            prefill_offer_seal(self, world, slot);
            prefill_step_conclude(self, world, slot);
        }
        prefill_worker_try_free(self, world, slot);
    }
    self->part_count = 0;
    speed_observe(&self->speed, tokens, pairs, done->elapsed_us);
    actor_count(world, METRIC_steps_total, 1);
    actor_observe(world, METRIC_step_seconds, (double)done->elapsed_us * 1e-6);
}
