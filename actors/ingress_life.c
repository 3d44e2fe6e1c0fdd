/* actors/ingress_life.c - the life of a request: its attempts, silence about it, its one end.
 *
 * Everything but ingress may die in between: it holds the prompt and every token it accepted, and
 * submits them again as the next attempt, with the same seed.
 */
#include "../runtime/base/config.h"
#include "ingress_parts.h"

enum {
    RETRY_FIRST_US = 50000,
    RETRY_MOST_US = 1000000,
    HOLD_BOUNDS = 5, /* detection bounds for which a broken path is borne: a restart takes less */
};

typedef enum { OUTCOME_FINISHED, OUTCOME_FAILED, OUTCOME_CANCELLED } outcome_t;

static const address_t prefill_lb = { ROLE_prefill_lb, 0 }, decode_lb = { ROLE_decode_lb, 0 };

/* ---- ends ---- */

bool is_stop_id(const ingress_t *self, const call_t *call, uint32_t id)
{
    const extras_t *extras = &self->extras[call_index(self, call)];
    for (uint32_t i = 0; i < call->stop_id_count; i++) {
        if (extras->stop_ids[i] == id) return true;
    }
    return false;
}

bool is_end_token(const ingress_t *self, const call_t *call, uint32_t id)
{
    if (is_stop_id(self, call, id)) return true;
    for (uint32_t i = 0; i < self->model.end_token_count && !call->sampling.ignore_eos; i++) {
        if (self->model.end_tokens[i] == id) return true;
    }
    return false;
}

/* When somebody spoke of the request, or was asked to. */
static uint64_t last_us(const request_t *request)
{
    return request->heard_us > request->probed_us ? request->heard_us : request->probed_us;
}

/* The next moment at which something must happen even if nobody speaks. */
void request_arm(ingress_t *self, actor_t *world, request_t *request)
{
    const call_t *call = &self->calls[request->call];
    uint64_t probe_us = (uint64_t)self->config->timing.probe_ms * 1000;
    uint64_t probed_next_us = last_us(request) + probe_us;
    uint64_t at_us = request->state == REQUEST_WAITING ? request->resume_us : probed_next_us;
    if (at_us == 0) at_us = actor_now_us(world) + RETRY_FIRST_US;
    alarms_set(&self->alarms, request_index(self, request),
               at_us < call->deadline_us ? at_us : call->deadline_us);
    turns_set_wake(self, world);
}

/* Both balancers pass it on to whoever holds the request; the sender of its tokens hears it at
 * once. */
void request_cancel(ingress_t *self, actor_t *world, const request_t *request)
{
    msg_t m;
    msg_init(&m, MSG_cancel);
    m.header.request = request->id;
    m.header.attempt = request->attempt;
    err_t lost = actor_send(world, prefill_lb, &m);
    lost = actor_send(world, decode_lb, &m);
    if (request->sender.role != ROLE_client) lost = actor_send(world, request->sender, &m);
    (void)lost; /* whoever missed it sends a token, and is told again then */
}

static void count_end(ingress_t *self, actor_t *world, const request_t *request, outcome_t outcome)
{
    static const metric_t metrics[] = { METRIC_requests_finished_total,
                                        METRIC_requests_failed_total,
                                        METRIC_requests_cancelled_total };
    uint64_t *const counts[] = { &self->finished, &self->failed, &self->cancelled };
    uint64_t now_us = actor_now_us(world);
    *counts[outcome] += 1;
    actor_count(world, metrics[outcome], 1);
    if (outcome == OUTCOME_FINISHED) self->served_us = now_us;
    actor_observe(world, METRIC_request_seconds,
                  (double)(now_us - self->calls[request->call].arrived_us) * 1e-6);
}

/* The books only: who is told is the caller's matter. */
static void close_request(ingress_t *self, actor_t *world, request_t *request, outcome_t outcome)
{
    invariant(request->state == REQUEST_WAITING || request->state == REQUEST_RUNNING);
    call_t *call = &self->calls[request->call];
    invariant(call->open_count > 0);
    table_remove(&self->by_id, request->id.hi, request->id.lo);
    alarms_remove(&self->alarms, request_index(self, request));
    request->state = REQUEST_ENDED;
    call->open_count--;
    count_end(self, world, request, outcome);
}

void request_finish(ingress_t *self, actor_t *world, request_t *request, finish_t reason)
{
    call_t *call = &self->calls[request->call];
    request->reason = reason;
    close_request(self, world, request,
                  reason == FINISH_CANCELLED ? OUTCOME_FAILED : OUTCOME_FINISHED);
    answer_request_end(self, world, request);
    if (call->open_count == 0) call_end(self, world, call);
}

static void close_all(ingress_t *self, actor_t *world, call_t *call, outcome_t outcome)
{
    if (!call->is_admitted) {
        call_forget(self, call);
        return;
    }
    for (uint32_t index = call->first; index != NONE; index = self->requests[index].next) {
        request_t *request = &self->requests[index];
        if (request->state == REQUEST_ENDED) continue;
        request_cancel(self, world, request);
        close_request(self, world, request, outcome);
    }
}

void call_fail(ingress_t *self, actor_t *world, call_t *call, const openai_error_t *why)
{
    close_all(self, world, call, why->error == ERR_CANCELLED ? OUTCOME_CANCELLED : OUTCOME_FAILED);
    answer_call_error(self, world, call, why);
    call_free(self, call);
}

void call_drop(ingress_t *self, actor_t *world, call_t *call)
{
    close_all(self, world, call, OUTCOME_CANCELLED);
    call_free(self, call);
}

void request_fail(ingress_t *self, actor_t *world, request_t *request, err_t error)
{
    openai_error_t why;
    openai_refuse(&why, error, "", "The request failed after %u of %u attempts: %s.",
                  request->losses + 1, (uint32_t)self->config->limits.attempts_max,
                  error_descs[error].doc);
    actor_log(world, error == ERR_OVERLOAD ? LOG_DEBUG : LOG_INFO, "INGRESS-FAILED",
              "request %s attempt %u: %s", request_text(request->id).text, request->attempt,
              error_descs[error].name);
    call_fail(self, world, &self->calls[request->call], &why);
}

/* ---- attempts ---- */

/* All tokens arrived, only the word that it was the last did not. */
static bool is_complete(ingress_t *self, const request_t *request, finish_t *reason)
{
    uint32_t count = request_gather(self, request);
    *reason = FINISH_STOP;
    if (request->generated > 0 &&
        is_end_token(self, &self->calls[request->call], self->ids[count - 1]))
        return true;
    *reason = FINISH_LENGTH;
    return request->generated >= request->max_tokens;
}

/* The next attempt: at once, or a while later when nobody could take it. */
static void retry(ingress_t *self, actor_t *world, request_t *request, uint64_t delay_us)
{
    finish_t reason;
    if (is_complete(self, request, &reason)) {
        request_cancel(self, world, request);
        request_finish(self, world, request, reason);
        return;
    }
    request->attempt++;
    request->state = REQUEST_WAITING;
    request->sender = (address_t){ ROLE_client, 0 };
    request->resume_us = actor_now_us(world) + delay_us;
    actor_count(world, METRIC_requests_resubmitted_total, 1);
    request_arm(self, world, request);
}

static uint64_t backoff_us(uint32_t times)
{
    uint64_t delay_us = (uint64_t)RETRY_FIRST_US << (times < 5 ? times : 5);
    return delay_us < RETRY_MOST_US ? delay_us : RETRY_MOST_US;
}

static void lose(ingress_t *self, actor_t *world, request_t *request, err_t error)
{
    if (request->losses + 1 >= (uint32_t)self->config->limits.attempts_max) {
        request_fail(self, world, request, error);
        return;
    }
    actor_log(world, LOG_INFO, "INGRESS-RETRY", "request %s attempt %u lost at token %u: %s",
              request_text(request->id).text, request->attempt, request->generated,
              error_descs[error].name);
    uint64_t delay_us = request->losses == 0 ? 0 : backoff_us(request->losses);
    request->losses++;
    retry(self, world, request, delay_us);
}

void request_try_again(ingress_t *self, actor_t *world, request_t *request, err_t error)
{
    bool is_busy = error == ERR_OVERLOAD || error == ERR_UNAVAILABLE;
    bool is_final = !error_descs[error].is_retry_safe || error == ERR_DEADLINE;
    if (is_busy && request->attempt > 0) /* accepted once, it waits until its deadline */
        retry(self, world, request, RETRY_MOST_US / 4);
    else if (is_busy || is_final)
        request_fail(self, world, request, error == ERR_OK ? ERR_INTERNAL : error);
    else
        lose(self, world, request, error);
}

/* ---- silence ---- */

/* Nobody can take the request, or go on with it: that is borne for a while.  True when it is over.
 */
static bool is_held_too_long(ingress_t *self, actor_t *world, request_t *request)
{
    uint64_t now_us = actor_now_us(world);
    if (request->hold_until_us == 0)
        request->hold_until_us =
            now_us + HOLD_BOUNDS * (uint64_t)self->config->timing.dead_ms * 1000;
    return now_us >= request->hold_until_us;
}

/* A refused submission is tried again: at first and after a loss of the balancer for a while, an
 * attempt that found full queues until the deadline. */
static void submit_again(ingress_t *self, actor_t *world, request_t *request)
{
    request->resume_us = actor_now_us(world) + RETRY_MOST_US / 4;
    err_t error = request_submit(self, world, request);
    if (error == ERR_OK || (error == ERR_OVERLOAD && request->attempt > 0)) return;
    if (is_held_too_long(self, world, request))
        request_fail(self, world, request, error == ERR_OVERLOAD ? ERR_OVERLOAD : ERR_UNAVAILABLE);
}

static void probe(ingress_t *self, actor_t *world, request_t *request)
{
    bool is_nobodys = request->prefill_hold == HOLD_NO && request->decode_hold == HOLD_NO;
    request->misses = is_nobodys ? request->misses + 1 : 0;
    if (request->misses >= 2) {
        lose(self, world, request, ERR_LOST);
        return;
    }
    bool is_decoding = request->decode_hold == HOLD_YES && decode_missing(self, world) == NULL;
    if (is_decoding || path_missing(self, world) == NULL) {
        request->hold_until_us = 0;
    } else if (is_held_too_long(self, world, request)) {
        request_fail(self, world, request, ERR_UNAVAILABLE);
        return;
    }
    request->prefill_hold = request->decode_hold = HOLD_UNKNOWN;
    request->probed_us = actor_now_us(world);
    msg_t m;
    msg_init(&m, MSG_request_probe);
    m.header.request = request->id;
    m.header.attempt = request->attempt;
    err_t lost = actor_send(world, prefill_lb, &m);
    lost = actor_send(world, decode_lb, &m);
    (void)lost; /* no answer is no proof: asked again in a while */
    request_arm(self, world, request);
}

void request_watch(ingress_t *self, actor_t *world, request_t *request)
{
    uint64_t now_us = actor_now_us(world);
    if (now_us >= self->calls[request->call].deadline_us) {
        request_fail(self, world, request, ERR_DEADLINE);
    } else if (request->state == REQUEST_WAITING) {
        submit_again(self, world, request);
    } else if (now_us - last_us(request) >= (uint64_t)self->config->timing.probe_ms * 1000) {
        probe(self, world, request);
    } else {
        request_arm(self, world, request);
    }
}
