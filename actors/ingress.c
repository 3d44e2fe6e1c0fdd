/* actors/ingress.c - owns each request: admits it, streams its tokens, brings it to its one end.
 *
 *   HTTP, client --request--> ingress --answer--> HTTP, client
 *   ingress --submit, cancel, request_probe--> prefill_lb
 *   ingress --cancel, request_probe--> decode_lb
 *   prefill_lb, decode_lb --request_held, failed--> ingress
 *   prefill_worker, decode_worker --tokens, finished, failed--> ingress
 *
 * It takes exactly the next index of the current attempt; whatever else arrives changes nothing.
 * Nothing is buffered: a token that was accepted is on its way to the client in that turn.
 */
#include "ingress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../runtime/base/config.h"
#include "../runtime/process.h"
#include "ingress_parts.h"

/* ---- what workers and balancers say ---- */

/* The request, if it is held and the message is of its current attempt; otherwise the sender is
 * told to stop. */
static request_t *find_current(ingress_t *self, actor_t *world, const msg_t *m)
{
    request_t *request = request_find(self, m->header.request);
    if (request != NULL && request->attempt == m->header.attempt &&
        request->state == REQUEST_RUNNING) {
        request->heard_us = actor_now_us(world);
        request->hold_until_us = 0;
        request->misses = 0;
        return request;
    }
    actor_count(
        world, request != NULL ? METRIC_messages_stale_total : METRIC_messages_unexpected_total, 1);
    bool is_newer = request != NULL && m->header.attempt > request->attempt;
    bool is_work = m->type == MSG_tokens || m->type == MSG_prompt_logprobs;
    if (is_newer || !is_work || self->cancels_left == 0) return NULL;
    self->cancels_left--;
    msg_t cancel;
    msg_init(&cancel, MSG_cancel);
    cancel.header.request = m->header.request;
    cancel.header.attempt = m->header.attempt;
    err_t lost = actor_send(world, m->header.from, &cancel);
    (void)lost; /* its next token asks again */
    return NULL;
}

static void fill_record(const msg_tokens_t *tokens, uint32_t at, token_record_t *record)
{
    uint32_t top = tokens->top_count;
    bool has_top =
        tokens->top_ids_count >= (at + 1) * top && tokens->top_logprobs_count >= (at + 1) * top;
    record->id = tokens->ids[at];
    record->logprob = at < tokens->logprobs_count ? tokens->logprobs[at] : NAN;
    record->top_count = has_top ? top : 0;
    if (record->top_count == 0) return;
    memcpy(record->top_ids, tokens->top_ids + at * top, top * sizeof *record->top_ids);
    memcpy(record->top_logprobs, tokens->top_logprobs + at * top,
           top * sizeof *record->top_logprobs);
}

static bool note_logprob(ingress_t *self, request_t *request, const msg_tokens_t *tokens,
                         uint32_t at)
{
    const call_t *call = &self->calls[request->call];
    if (!call->sampling.logprobs || call->is_prompt_only ||
        is_end_token(self, call, tokens->ids[at]))
        return true;
    token_record_t *record = &self->batch[self->batch_count];
    fill_record(tokens, at, record);
    if (call->is_stream || call->is_client) {
        self->batch_count++;
        return true;
    }
    return record_keep(self, &request->records, record);
}

static void observe_token(ingress_t *self, actor_t *world, request_t *request)
{
    uint64_t now_us = actor_now_us(world);
    const call_t *call = &self->calls[request->call];
    if (request->last_token_us == 0)
        actor_observe(world, METRIC_time_to_first_token_seconds,
                      (double)(now_us - call->arrived_us) * 1e-6);
    else
        actor_observe(world, METRIC_inter_token_seconds,
                      (double)(now_us - request->last_token_us) * 1e-6);
    request->last_token_us = self->served_us = now_us;
}

/* Texts of whole answers are made at their end; until then only stop strings need them. */
static void push_text(ingress_t *self, request_t *request, uint32_t id)
{
    const call_t *call = &self->calls[request->call];
    bool is_wanted = call->is_stream || call->is_client || call->has_stops;
    if (!is_wanted || call->is_prompt_only || is_stop_id(self, call, id)) return;
    text_rules_t rules = answer_rules(self, call, &self->tails[request_index(self, request)]);
    text_push(&request->text, &rules, id, answer_sink(self));
}

static void note_reused(actor_t *world, request_t *request, uint32_t reused)
{
    request->cached = reused < request->prompt_count ? reused : request->prompt_count;
    actor_count(world, METRIC_prompt_tokens_cached_total, request->cached);
}

/* Accept those tokens of the message that are next in order.  ERR_STALE: one before them is
 * missing. */
static err_t take_tokens(ingress_t *self, request_t *request, const msg_tokens_t *tokens,
                         uint32_t *taken)
{
    for (uint32_t i = 0; i < tokens->ids_count && !request->text.is_stopped; i++) {
        uint32_t index = tokens->first_index + i;
        if (index < request->generated) continue; /* the first token comes twice, see D-004 */
        if (index > request->generated) return ERR_STALE;
        if (index >= request->max_tokens) return ERR_OK;
        if (!note_logprob(self, request, tokens, i)) return ERR_NO_SPACE;
        if (!chain_append(&self->pool, &request->tokens, &tokens->ids[i], sizeof tokens->ids[i]))
            return ERR_NO_SPACE;
        request->generated++;
        *taken += 1;
        push_text(self, request, tokens->ids[i]);
    }
    return ERR_OK;
}

static void on_tokens(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    request_t *request = find_current(self, world, m);
    if (request == NULL) return;
    uint32_t taken = 0;
    request->sender = m->header.from;
    self->reasoning_size = self->content_size = self->batch_count = 0;
    err_t error = take_tokens(self, request, &m->tokens, &taken);
    if (taken > 0) {
        actor_count(world, METRIC_generation_tokens_total, taken);
        if (taken == request->generated) note_reused(world, request, m->tokens.reused);
        observe_token(self, world, request);
        fresh_t fresh = { &m->tokens, request->generated - taken, taken };
        answer_delta(self, world, request, &fresh);
        if (self->calls[request->call].is_cut) {
            request_cancel(self, world, request);
            request_finish(self, world, request, FINISH_CANCELLED);
            return;
        }
    }
    if (error == ERR_NO_SPACE) {
        request_fail(self, world, request, ERR_NO_SPACE);
    } else if (error != ERR_OK) {
        request_try_again(self, world, request, ERR_LOST);
    } else if (request->text.is_stopped) {
        request_cancel(self, world, request);
        request_finish(self, world, request, FINISH_STOP);
    }
}

static void on_prompt_logprobs(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    request_t *request = find_current(self, world, m);
    if (request == NULL || !self->calls[request->call].sampling.prompt_logprobs) return;
    const msg_prompt_logprobs_t *body = &m->prompt_logprobs;
    uint32_t count = request_gather(self, request), top = body->top_count;
    for (uint32_t i = 0; i < body->logprobs_count; i++) {
        uint32_t position = body->first_index + i;
        if (position != request->prompt_records || position >= request->prompt_count ||
            position >= count)
            continue;
        bool has_top =
            body->top_ids_count >= (i + 1) * top && body->top_logprobs_count >= (i + 1) * top;
        token_record_t record = { .id = self->ids[position],
                                  .logprob = body->logprobs[i],
                                  .top_count = has_top ? top : 0 };
        if (has_top) memcpy(record.top_ids, body->top_ids + i * top, top * sizeof *record.top_ids);
        if (has_top)
            memcpy(record.top_logprobs, body->top_logprobs + i * top,
                   top * sizeof *record.top_logprobs);
        if (!record_keep(self, &request->prompt_chain, &record)) return;
        request->prompt_records++;
    }
}

static void on_finished(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    request_t *request = find_current(self, world, m);
    if (request == NULL) return;
    if (m->finished.tokens > request->generated && request->generated < request->max_tokens) {
        request_try_again(self, world, request, ERR_LOST); /* a message of tokens is missing */
        return;
    }
    if (m->finished.reason == FINISH_CANCELLED)
        request_try_again(self, world, request, ERR_LOST);
    else
        request_finish(self, world, request, (finish_t)m->finished.reason);
}

static void on_failed(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    request_t *request = find_current(self, world, m);
    if (request != NULL) request_try_again(self, world, request, (err_t)m->failed.error);
}

static void on_request_held(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    request_t *request = request_find(self, m->header.request);
    if (request == NULL || request->attempt != m->header.attempt) return;
    hold_t hold = m->request_held.is_held ? HOLD_YES : HOLD_NO;
    if (m->header.from.role == ROLE_prefill_lb) request->prefill_hold = hold;
    if (m->header.from.role == ROLE_decode_lb) request->decode_hold = hold;
}

static void wake(void *state, actor_t *world)
{
    ingress_t *self = state;
    uint64_t now_us = actor_now_us(world);
    for (uint32_t i = 0; i < self->requests_max; i++) {
        uint32_t index = alarms_take_due(&self->alarms, now_us);
        if (index == UINT32_MAX) break;
        request_watch(self, world, &self->requests[index]);
    }
    turns_go_on(self, world);
    turns_set_wake(self, world);
}

/* ---- peers and clients ---- */

/* A balancer is back: what waited for it goes at once, and what it says of its ledger counts only
 * from now on. */
static void greet_balancer(ingress_t *self, actor_t *world, role_t role)
{
    for (uint32_t i = 0; i < self->requests_max; i++) {
        request_t *request = &self->requests[i];
        bool is_waiting = request->state == REQUEST_WAITING && request->hold_until_us > 0;
        request->misses = 0;
        request->prefill_hold = request->decode_hold = HOLD_UNKNOWN;
        if (!is_waiting || role != ROLE_prefill_lb) continue;
        request->resume_us = actor_now_us(world);
        request_arm(self, world, request);
    }
}

static void on_peer_up(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    role_t role = (role_t)m->peer_up.role;
    if (role == ROLE_prefill_lb || role == ROLE_decode_lb) greet_balancer(self, world, role);
}

static void on_peer_down(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    if (m->peer_down.role != ROLE_client) return;
    for (uint32_t i = 0; i < self->requests_max; i++) {
        call_t *call = &self->calls[i];
        if (call->is_used && call->is_client && call->client.index == m->peer_down.index)
            call_drop(self, world, call);
    }
}

static void on_client_cancel(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    call_t *call = call_find_client(self, m->header.from, m->header.request);
    if (call == NULL) return;
    openai_error_t why;
    openai_refuse(&why, ERR_CANCELLED, "", "The request was cancelled by its client.");
    call_fail(self, world, call, &why);
}

static void on_http_closed(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    call_t *call = call_find_exchange(self, m->http_closed.exchange);
    if (call != NULL) call_drop(self, world, call);
}

static void on_stop(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    if (m->header.from.role == ROLE_client) return; /* the director's to ask for */
    self->is_draining = true;
}

static void on_report(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    const msg_report_t *report = &m->report;
    subject_t *subject = self->subjects;
    subject_t *end = subject + SUBJECTS_MAX;
    while (subject < end && subject->is_used &&
           (subject->role != report->role || subject->index != report->index))
        subject++;
    if (subject == end) return;
    subject->is_used = true;
    subject->role = report->role;
    subject->index = report->index;
    memset(subject->slots, 0, sizeof subject->slots);
    memcpy(subject->slots, report->values, report->values_count * sizeof *report->values);
}

/* ---- the class ---- */

static void name_model(ingress_t *self)
{
    const config_t *config = self->config;
    const char *path = config->model.path;
    size_t size = strlen(path);
    while (size > 1 && path[size - 1] == '/') size--;
    size_t start = size;
    while (start > 0 && path[start - 1] != '/') start--;
    if (config->model.name[0] != 0)
        snprintf(self->model_name, sizeof self->model_name, "%s", config->model.name);
    else
        snprintf(self->model_name, sizeof self->model_name, "%.*s", (int)(size - start),
                 path + start);
    snprintf(self->fingerprint, sizeof self->fingerprint, "fp_%010llx",
             (unsigned long long)(self->model_hash & 0xffffffffffu));
}

/* No text is let in that the workers' pools could not hold: nobody would ever take it. */
static void limit_context(ingress_t *self, actor_t *world)
{
    self->context_max = config_context_max(self->config);
    if (self->model.context <= self->context_max)
        self->context_max = self->model.context;
    else if (self->config->limits.context_max == 0)
        actor_log(world, LOG_WARN, "INGRESS-CONTEXT",
                  "the model allows %u tokens, prefill.kv_blocks and decode.kv_blocks hold %u",
                  self->model.context, self->context_max);
}

static err_t load_model(ingress_t *self, actor_t *world)
{
    const char *path = self->config->model.path;
    error_text_t why = { "" };
    err_t error = model_config_read(&self->model, path, &why);
    if (error == ERR_OK) self->tokenizer = tokenizer_new_for(path, &self->model, &why);
    if (self->tokenizer != NULL) self->chat = chat_new(path, self->tokenizer, &why);
    self->keys = key_maker_new();
    if (self->chat == NULL || self->keys == NULL) {
        actor_log(world, LOG_ERROR, "INGRESS-MODEL", "%s: %s", path, why.text);
        return ERR_MODEL;
    }
    self->model_hash = model_key(&self->model);
    limit_context(self, world);
    name_model(self);
    return ERR_OK;
}

static void make_buffers(ingress_t *self, actor_t *world)
{
    self->ids = actor_alloc(world, CONTEXT_MAX, sizeof *self->ids);
    self->key_bytes = actor_alloc(world, KEYS_MAX, KEY_BYTES);
    self->output_size = OUTPUT_BYTES;
    self->output = actor_alloc(world, 1, OUTPUT_BYTES);
    self->reasoning = actor_alloc(world, 1, DELTA_BYTES);
    self->content = actor_alloc(world, 1, DELTA_BYTES);
    self->batch = actor_alloc(world, TOKENS_PER_MESSAGE_MAX, sizeof *self->batch);
    self->tail = actor_alloc(world, 1, sizeof *self->tail);
    self->subjects = actor_alloc(world, SUBJECTS_MAX, sizeof *self->subjects);
    self->shown = actor_alloc(world, SUBJECTS_MAX, sizeof *self->shown);
}

static err_t init(void *state, actor_t *world)
{
    ingress_t *self = state;
    self->config = actor_config(world);
    self->started_s = actor_wall_us(world) / 1000000;
    err_t error = load_model(self, world);
    if (error == ERR_OK) error = turns_init(self, world);
    if (error != ERR_OK) return error;
    books_init(self, world);
    make_buffers(self, world);
    self->cancels_left = CANCELS_PER_TURN_MAX;
    return actor_http_open(world);
}

/* What is complete is only to be told: an error inside half a JSON object would be neither. */
static void end_call(ingress_t *self, actor_t *world, call_t *call, const openai_error_t *why)
{
    if (call->open_count > 0 || !call->is_admitted) {
        call_fail(self, world, call, why);
        return;
    }
    while (!answer_call_end(self, world, call) && !call->is_client) continue;
    call_free(self, call);
}

/* Whoever still waits when the time to drain is over is told so. */
static void end_all(ingress_t *self, actor_t *world)
{
    openai_error_t why;
    openai_refuse(&why, ERR_UNAVAILABLE, "", "This server is stopping; retry elsewhere.");
    for (uint32_t i = 0; i < self->requests_max; i++)
        if (self->calls[i].is_used) end_call(self, world, &self->calls[i], &why);
}

static void fini(void *state, actor_t *world)
{
    ingress_t *self = state;
    if (self->is_draining) end_all(self, world);
    chat_destroy(&self->chat);
    tokenizer_destroy(&self->tokenizer);
    key_maker_destroy(&self->keys);
}

static void turn(void *state, actor_t *world)
{
    ingress_t *self = state;
    self->cancels_left = CANCELS_PER_TURN_MAX;
    self->at_once_left = AT_ONCE_TURN;
    actor_gauge(world, METRIC_requests_running, self->by_id.count);
}

static void check(const void *state)
{
    books_check(state);
}

static bool is_idle(const void *state)
{
    const ingress_t *self = state;
    return self->call_count == 0;
}

const actor_class_t ingress_class = {
    .name = "ingress",
    .role = ROLE_ingress,
    .state_size = sizeof(ingress_t),
    .init = init,
    .fini = fini,
    .turn = turn,
    .wake = wake,
    .check = check,
    .is_idle = is_idle,
    .on = { [MSG_http_request] = on_http_request,
            [MSG_http_closed] = on_http_closed,
            [MSG_client_submit] = on_client_submit,
            [MSG_client_cancel] = on_client_cancel,
            [MSG_tokens] = on_tokens,
            [MSG_prompt_logprobs] = on_prompt_logprobs,
            [MSG_finished] = on_finished,
            [MSG_failed] = on_failed,
            [MSG_request_held] = on_request_held,
            [MSG_report] = on_report,
            [MSG_stop] = on_stop,
            [MSG_peer_up] = on_peer_up,
            [MSG_peer_down] = on_peer_down },
};
