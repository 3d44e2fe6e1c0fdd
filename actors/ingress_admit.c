/* actors/ingress_admit.c - from a parsed body to requests of the company, and their submission. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ingress_parts.h"

static err_t refuse_context(const ingress_t *self, const char *param, uint64_t prompt,
                            uint64_t output, openai_error_t *why)
{
    if (output == 0)
        openai_refuse(why, ERR_CONTEXT, param,
                      "This model's context is %u tokens; the prompt has %llu and leaves no room "
                      "for an answer.",
                      self->context_max, (unsigned long long)prompt);
    else
        openai_refuse(why, ERR_CONTEXT, param,
                      "This model's context is %u tokens, but %llu were asked for: %llu of the "
                      "prompt and %llu of the answer (max_tokens).",
                      self->context_max, (unsigned long long)(prompt + output),
                      (unsigned long long)prompt, (unsigned long long)output);
    why->code = "context_length_exceeded";
    return ERR_CONTEXT;
}

static err_t refuse_text(const ingress_t *self, const char *param, openai_error_t *why)
{
    openai_refuse(why, ERR_CONTEXT, param,
                  "This model's context is %u tokens; no text of more than %zu bytes fits.",
                  self->context_max, self->text_max);
    why->code = "context_length_exceeded";
    return ERR_CONTEXT;
}

err_t admit_model(const ingress_t *self, openai_error_t *why)
{
    const char *asked = self->parsed->model;
    if (asked[0] == 0 || strcmp(asked, self->model_name) == 0) return ERR_OK;
    openai_refuse(why, ERR_NOT_FOUND, "model",
                  "The model '%s' does not exist; this server has '%s'.", asked, self->model_name);
    why->code = "model_not_found";
    return ERR_NOT_FOUND;
}

/* Bytes of the texts that will be tokenised. */
static size_t text_bytes(const openai_call_t *parsed, uint32_t index)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < parsed->message_count; i++) {
        const chat_message_t *message = &parsed->messages[i];
        bytes += message->content_size;
        for (uint32_t k = 0; k < message->call_count; k++)
            bytes += message->calls[k].name_size + message->calls[k].arguments_size;
    }
    if (parsed->message_count == 0 && parsed->prompts[index].text != NULL)
        bytes = parsed->prompts[index].size;
    return bytes;
}

/* A text's tokens, behind the one that begins it where the tokenizer says so. */
static size_t encode_text(ingress_t *self, const openai_prompt_t *prompt)
{
    uint32_t begin = self->parsed->is_bare ? NONE : chat_begin_token(self->chat);
    uint32_t at = begin == NONE ? 0 : 1;
    if (at > 0) self->ids[0] = begin;
    return at + tokenizer_encode(self->tokenizer, prompt->text, prompt->size, true, self->ids + at,
                                 CONTEXT_MAX - at);
}

/* A prompt that is longer than the buffer is counted, not stored. */
err_t admit_tokens(ingress_t *self, uint32_t index, uint32_t *count, openai_error_t *why)
{
    const openai_call_t *parsed = self->parsed;
    error_text_t text = { "" };
    size_t needed;
    const char *param = parsed->message_count > 0 ? "messages" : "prompt";
    if (text_bytes(parsed, index) > self->text_max) return refuse_text(self, param, why);
    if (parsed->message_count > 0) {
        needed = chat_render(self->chat, self->tokenizer, parsed->messages, parsed->message_count,
                             parsed->thinking, self->ids, CONTEXT_MAX, &text);
        if (needed == 0)
            return openai_refuse(why, ERR_INVALID, param, "The messages cannot be rendered: %.400s",
                                 text.text);
    } else if (parsed->prompts[index].text == NULL) {
        needed = parsed->prompts[index].count;
        if (needed > 0 && needed <= CONTEXT_MAX)
            memcpy(self->ids, parsed->prompts[index].ids, needed * sizeof *self->ids);
    } else {
        needed = encode_text(self, &parsed->prompts[index]);
    }
    if (needed > CONTEXT_MAX) return refuse_context(self, param, needed, 0, why);
    *count = (uint32_t)needed;
    return ERR_OK;
}

/* How many tokens may be generated after a prompt of this length. */
static err_t fit_output(const ingress_t *self, uint32_t prompt, uint32_t *output,
                        openai_error_t *why)
{
    const openai_call_t *parsed = self->parsed;
    const char *param = parsed->message_count > 0 ? "messages" : "prompt";
    if (prompt == 0)
        return openai_refuse(why, ERR_INVALID, param,
                             "'%s' is empty; at least one token is needed.", param);
    bool is_prompt_only = parsed->has_max_tokens && parsed->max_tokens == 0;
    if (prompt > self->context_max || (prompt == self->context_max && !is_prompt_only))
        return refuse_context(self, param, prompt, 0, why);
    uint32_t room = self->context_max - prompt;
    uint32_t fallback = (uint32_t)self->config->limits.output_default;
    uint32_t asked = parsed->has_max_tokens             ? parsed->max_tokens
                     : fallback == 0 || fallback > room ? room
                                                        : fallback;
    if (asked > room) return refuse_context(self, param, prompt, asked, why);
    /* Scoring the prompt only takes a step too, whose token is dropped: it needs no room. */
    *output = is_prompt_only ? 1 : asked;
    return ERR_OK;
}

/* Choices of one prompt differ, and each is the same whenever it is asked for again.  Without a
 * seed of the client's so do those of the same prompt asked twice in one call. */
static uint64_t choice_seed(uint64_t seed, uint32_t choice)
{
    if (choice == 0) return seed;
    uint64_t mixed = seed + choice * 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return mixed ^ mixed >> 31;
}

static err_t refuse_room(openai_error_t *why)
{
    return openai_refuse(why, ERR_OVERLOAD, "",
                         "This server holds as many requests as it can; retry later.");
}

static uint32_t prompt_pages(uint32_t prompt)
{
    return prompt * 4 / CHAIN_PAGE_BYTES + 1;
}

/* An eighth of the pages stays free for what running requests will generate. */
static uint32_t pages_max(const ingress_t *self)
{
    return self->pool.count - self->pool.count / 8;
}

/* What an idle server has no room for would be refused however often it came again. */
static err_t check_count(const ingress_t *self, uint32_t prompts, openai_error_t *why)
{
    uint32_t n = self->parsed->n;
    if ((uint64_t)n * prompts <= self->requests_max) return ERR_OK;
    return openai_refuse(why, ERR_INVALID, n > self->requests_max ? "n" : "prompt",
                         "This server holds at most %u requests (limits.requests_max), and each "
                         "choice of each prompt is one; %llu were asked for.",
                         self->requests_max, (unsigned long long)n * prompts);
}

static err_t check_pages(const ingress_t *self, const call_t *call, uint32_t prompt,
                         openai_error_t *why)
{
    uint64_t more = (uint64_t)self->parsed->n * prompt_pages(prompt), pages = more;
    for (uint32_t index = call->first; index != NONE; index = self->requests[index].next)
        pages += prompt_pages(self->requests[index].prompt_count);
    if (pages <= pages_max(self)) return ERR_OK;
    return openai_refuse(why, ERR_INVALID, more > pages_max(self) ? "n" : "prompt",
                         "This server holds at most %llu tokens of prompts, each prompt once for "
                         "each of its choices; more were asked for.",
                         (unsigned long long)pages_max(self) * CHAIN_PAGE_BYTES / 4);
}

static err_t add_request(ingress_t *self, actor_t *world, call_t *call, uint32_t prompt,
                         uint32_t output, uint32_t choice, openai_error_t *why)
{
    if (prompt_pages(prompt) + self->pool.used > pages_max(self)) return refuse_room(why);
    request_t *request = request_take(self, world, call);
    if (request == NULL) return refuse_room(why);
    bool is_kept = chain_append(&self->pool, &request->tokens, self->ids,
                                prompt * (uint32_t)sizeof *self->ids);
    invariant(is_kept);
    request->prompt_count = prompt;
    request->max_tokens = output;
    if (call->sampling.prompt_logprobs) {
        /* The first token of a prompt follows nothing. */
        const token_record_t first = { .id = self->ids[0], .logprob = NAN };
        is_kept = record_keep(self, &request->prompt_chain, &first);
        invariant(is_kept);
        request->prompt_records = 1;
    }
    request->seed =
        choice_seed(call->sampling.seed, self->parsed->has_seed ? choice : request->choice);
    text_rules_t rules = answer_rules(self, call, &self->tails[request_index(self, request)]);
    text_begin(&request->text, &rules, call->is_chat && call->reasoning.starts_in_reasoning);
    return ERR_OK;
}

static err_t add_prompt(ingress_t *self, actor_t *world, call_t *call, uint32_t index,
                        openai_error_t *why)
{
    uint32_t prompt = 0, output = 0;
    err_t error = admit_tokens(self, index, &prompt, why);
    if (error == ERR_OK) error = fit_output(self, prompt, &output, why);
    if (error == ERR_OK) error = check_pages(self, call, prompt, why);
    for (uint32_t i = 0; i < self->parsed->n && error == ERR_OK; i++)
        error = add_request(self, world, call, prompt, output, i, why);
    if (error == ERR_OK) call->prompt_tokens += prompt;
    return error;
}

static void copy_extras(ingress_t *self, call_t *call)
{
    const openai_call_t *parsed = self->parsed;
    call->has_stops = parsed->stop_count > 0;
    call->stop_id_count = parsed->stop_id_count;
    call->bias_count = parsed->bias_count;
    if (!call->has_stops && call->stop_id_count + call->bias_count == 0) return;
    extras_t *extras = &self->extras[call_index(self, call)];
    extras->stops.count = parsed->stop_count;
    for (uint32_t i = 0; i < parsed->stop_count; i++) {
        extras->stops.sizes[i] = (uint16_t)parsed->stops[i].size;
        memcpy(extras->stops.texts[i], parsed->stops[i].text, parsed->stops[i].size);
    }
    memcpy(extras->stop_ids, parsed->stop_ids, sizeof extras->stop_ids);
    memcpy(extras->bias_ids, parsed->bias_ids, sizeof extras->bias_ids);
    memcpy(extras->bias_values, parsed->bias_values, sizeof extras->bias_values);
}

static void copy_options(ingress_t *self, actor_t *world, call_t *call)
{
    const openai_call_t *parsed = self->parsed;
    call->is_chat = parsed->kind == OPENAI_CHAT;
    call->n = parsed->n;
    call->is_stream = parsed->is_stream;
    call->has_usage_chunk = parsed->has_usage_chunk;
    call->has_usage_always = parsed->has_usage_always;
    call->is_echo = parsed->is_echo;
    call->is_prompt_only = parsed->has_max_tokens && parsed->max_tokens == 0;
    call->sampling = parsed->sampling;
    if (!parsed->has_seed) call->sampling.seed = actor_random(world);
    call->reasoning = (chat_reasoning_t){ UINT32_MAX, UINT32_MAX, 0 };
    if (call->is_chat)
        call->reasoning = chat_reasoning(self->chat, parsed->thinking,
                                         &parsed->messages[parsed->message_count - 1]);
    copy_extras(self, call);
}

/* Undo what admission took: as if the call had never been. */
static void forget(ingress_t *self, call_t *call)
{
    for (uint32_t index = call->first; index != NONE; index = self->requests[index].next) {
        request_t *request = &self->requests[index];
        table_remove(&self->by_id, request->id.hi, request->id.lo);
        request->state = REQUEST_ENDED;
        call->open_count--;
    }
}

static void accept(ingress_t *self, actor_t *world, call_t *call)
{
    const request_t *first = &self->requests[call->first];
    snprintf(call->id, sizeof call->id, "%s-%s", call->is_chat ? "chatcmpl" : "cmpl",
             request_text(first->id).text);
    if (self->accepted == self->finished + self->failed + self->cancelled)
        self->busy_us = actor_now_us(world);
    self->accepted += call->count;
    actor_count(world, METRIC_requests_accepted_total, call->count);
    actor_count(world, METRIC_prompt_tokens_total, call->prompt_tokens);
}

/* Submit every request of a call.  A full link ends the call, and with it this loop; where nobody
 * is at its other end the requests wait for a while. */
static void submit_all(ingress_t *self, actor_t *world, call_t *call)
{
    for (uint32_t index = call->first; index != NONE; index = self->requests[index].next) {
        err_t error = request_submit(self, world, &self->requests[index]);
        if (error != ERR_OVERLOAD) continue;
        openai_error_t why;
        openai_refuse(&why, error, "", "The request was not taken: %s.", error_descs[error].doc);
        call_fail(self, world, call, &why);
        return;
    }
}

err_t admit(ingress_t *self, actor_t *world, call_t *call, openai_error_t *why)
{
    uint32_t prompts = self->parsed->message_count > 0 ? 1 : self->parsed->prompt_count;
    err_t error = ERR_OK;
    if (self->is_draining)
        error =
            openai_refuse(why, ERR_UNAVAILABLE, "", "This server is stopping; retry elsewhere.");
    if (error == ERR_OK) error = check_count(self, prompts, why);
    if (error == ERR_OK) copy_options(self, world, call);
    for (uint32_t i = 0; i < prompts && error == ERR_OK; i++)
        error = add_prompt(self, world, call, i, why);
    if (error != ERR_OK) {
        forget(self, call);
        call_free(self, call);
        return error;
    }
    accept(self, world, call);
    submit_all(self, world, call);
    return ERR_OK;
}

static void fill_lists(const ingress_t *self, const call_t *call, msg_submit_t *submit)
{
    const extras_t *extras = &self->extras[call_index(self, call)];
    submit->stop_ids_count = call->stop_id_count;
    submit->bias_ids_count = submit->bias_values_count = call->bias_count;
    if (call->stop_id_count > 0)
        memcpy(submit->stop_ids, extras->stop_ids, sizeof extras->stop_ids);
    if (call->bias_count == 0) return;
    memcpy(submit->bias_ids, extras->bias_ids, sizeof extras->bias_ids);
    memcpy(submit->bias_values, extras->bias_values, sizeof extras->bias_values);
}

err_t request_submit(ingress_t *self, actor_t *world, request_t *request)
{
    const call_t *call = &self->calls[request->call];
    uint64_t now_us = actor_now_us(world);
    uint32_t count = request_gather(self, request);
    invariant(count == request->prompt_count + request->generated);
    uint32_t key_count = key_maker_prompt(self->keys, self->model_hash, self->ids,
                                          request->prompt_count, self->key_bytes);
    msg_t m;
    msg_init(&m, MSG_submit);
    m.header.request = request->id;
    m.header.attempt = request->attempt;
    m.submit.ingress = actor_self(world).index;
    m.submit.prompt_count = request->prompt_count;
    m.submit.generated = request->generated;
    m.submit.max_tokens = request->max_tokens;
    m.submit.deadline_us = call->deadline_us > now_us ? call->deadline_us - now_us : 0;
    m.submit.sampling = call->sampling;
    m.submit.sampling.seed = request->seed;
    if (request->prompt_records == request->prompt_count) m.submit.sampling.prompt_logprobs = 0;
    fill_lists(self, call, &m.submit);
    m.submit.tokens = (bytes_t){ self->ids, count * sizeof *self->ids };
    m.submit.keys = (bytes_t){ self->key_bytes, (size_t)key_count * KEY_BYTES };
    err_t error = actor_send(world, (address_t){ ROLE_prefill_lb, 0 }, &m);
    if (error == ERR_OK) {
        request->state = REQUEST_RUNNING;
        request->heard_us = request->probed_us = now_us;
        request->prefill_hold = request->decode_hold = HOLD_UNKNOWN;
        request->misses = 0;
        request->hold_until_us = 0;
    }
    request_arm(self, world, request);
    return error;
}
