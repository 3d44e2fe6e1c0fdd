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

static void spend(const job_t *job, size_t *work, size_t cost)
{
    if (!job->is_at_once) *work -= cost < *work ? cost : *work;
}

static const char *param_of(const job_t *job)
{
    return job->parsed->message_count > 0 ? "messages" : "prompt";
}

/* A text's tokens, behind the one that begins it where the tokenizer says so. */
static void begin_text(ingress_t *self, job_t *job, const openai_prompt_t *prompt)
{
    uint32_t begin = job->parsed->is_bare ? NONE : chat_begin_token(self->chat);
    uint32_t at = begin == NONE ? 0 : 1;
    if (at > 0) job->ids[0] = begin;
    job->prompt_count = at;
    encoding_begin(&job->encoding, prompt->text, prompt->size, true, job->ids + at,
                   CONTEXT_MAX - at);
}

static err_t begin_messages(ingress_t *self, job_t *job, openai_error_t *why)
{
    const openai_call_t *parsed = job->parsed;
    arena_t *arena = &job->arena;
    error_text_t text = { "" };
    pieces_t pieces;
    pieces_begin(&pieces, arena->bytes + arena->used, arena->size - arena->used);
    if (!chat_render(self->chat, parsed->messages, parsed->message_count, parsed->thinking, &pieces,
                     &text))
        return openai_refuse(why, ERR_INVALID, param_of(job),
                             "The messages cannot be rendered: %.400s", text.text);
    if (pieces.is_full)
        return openai_refuse(why, ERR_TOO_LARGE, param_of(job),
                             "The messages take more than %zu bytes.", pieces.cap);
    encoding_begin_pieces(&job->encoding, &pieces, job->ids, CONTEXT_MAX);
    return ERR_OK;
}

/* Ids are tokens already: an encoding of nothing follows them. */
static void begin_ids(job_t *job, const openai_prompt_t *prompt)
{
    job->prompt_count = prompt->count;
    if (prompt->count > 0 && prompt->count <= CONTEXT_MAX)
        memcpy(job->ids, prompt->ids, prompt->count * sizeof *job->ids);
    encoding_begin(&job->encoding, NULL, 0, false, NULL, 0);
}

static err_t begin_prompt(ingress_t *self, job_t *job, size_t *work, openai_error_t *why)
{
    enum { COPY_SHARE = 32 }; /* copying costs that part of tokenising */
    const openai_call_t *parsed = job->parsed;
    size_t bytes = text_bytes(parsed, job->prompt);
    err_t error = ERR_OK;
    if (bytes > self->text_max) return refuse_text(self, param_of(job), why);
    job->prompt_count = job->choice = 0;
    if (parsed->message_count > 0)
        error = begin_messages(self, job, why);
    else if (parsed->prompts[job->prompt].text == NULL)
        begin_ids(job, &parsed->prompts[job->prompt]);
    else
        begin_text(self, job, &parsed->prompts[job->prompt]);
    spend(job, work, bytes / COPY_SHARE);
    job->state = JOB_TEXT;
    return error;
}

/* How many tokens may be generated after a prompt of this length. */
static err_t fit_output(const ingress_t *self, job_t *job, openai_error_t *why)
{
    const openai_call_t *parsed = job->parsed;
    const char *param = param_of(job);
    uint32_t prompt = job->prompt_count;
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
    job->output = is_prompt_only ? 1 : asked;
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

err_t refuse_full(openai_error_t *why)
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

/* Requests that come at once: a balancer queues those that its workers have no place for. */
static uint32_t count_max(const ingress_t *self)
{
    const config_t *config = self->config;
    int64_t prefilled = config->company.prefill_workers * config->prefill.requests_max;
    int64_t decoded = config->company.decode_workers * config->decode.batch_max;
    int64_t most = config->limits.queue_max + (prefilled < decoded ? prefilled : decoded);
    return most < self->requests_max ? (uint32_t)most : self->requests_max;
}

/* What an idle server has no room for would be refused however often it came again. */
static err_t check_count(const ingress_t *self, const openai_call_t *parsed, openai_error_t *why)
{
    uint32_t n = parsed->n, prompts = parsed->message_count > 0 ? 1 : parsed->prompt_count;
    uint32_t most = count_max(self);
    if ((uint64_t)n * prompts <= most) return ERR_OK;
    return openai_refuse(why, ERR_INVALID, n > most ? "n" : "prompt",
                         "This server holds at most %u requests (limits.requests_max, "
                         "limits.queue_max), and each choice of each prompt is one; %llu were "
                         "asked for.",
                         most, (unsigned long long)n * prompts);
}

static err_t check_pages(const ingress_t *self, const job_t *job, openai_error_t *why)
{
    uint64_t more = (uint64_t)job->parsed->n * prompt_pages(job->prompt_count), pages = more;
    for (uint32_t index = self->calls[job->call].first; index != NONE;
         index = self->requests[index].next)
        pages += prompt_pages(self->requests[index].prompt_count);
    if (pages <= pages_max(self)) return ERR_OK;
    return openai_refuse(why, ERR_INVALID, more > pages_max(self) ? "n" : "prompt",
                         "This server holds at most %llu tokens of prompts, each prompt once for "
                         "each of its choices; more were asked for.",
                         (unsigned long long)pages_max(self) * CHAIN_PAGE_BYTES / 4);
}

static err_t add_request(ingress_t *self, const job_t *job, openai_error_t *why)
{
    call_t *call = &self->calls[job->call];
    uint32_t prompt = job->prompt_count;
    if (prompt_pages(prompt) + self->pool.used > pages_max(self)) return refuse_full(why);
    request_t *request = request_take(self, call);
    if (request == NULL) return refuse_full(why);
    bool is_kept =
        chain_append(&self->pool, &request->tokens, job->ids, prompt * (uint32_t)sizeof *job->ids);
    invariant(is_kept);
    request->prompt_count = prompt;
    request->max_tokens = job->output;
    if (call->sampling.prompt_logprobs) {
        /* The first token of a prompt follows nothing. */
        const token_record_t first = { .id = job->ids[0], .logprob = NAN };
        is_kept = record_keep(self, &request->prompt_chain, &first);
        invariant(is_kept);
        request->prompt_records = 1;
    }
    request->seed =
        choice_seed(call->sampling.seed, job->parsed->has_seed ? job->choice : request->choice);
    text_rules_t rules = answer_rules(self, call, &self->tails[request_index(self, request)]);
    text_begin(&request->text, &rules, call->is_chat && call->reasoning.starts_in_reasoning);
    return ERR_OK;
}

/* A prompt that is longer than the buffer is counted, not stored. */
static err_t take_tokens(ingress_t *self, job_t *job, openai_error_t *why)
{
    size_t count = job->prompt_count + job->encoding.count;
    if (count > CONTEXT_MAX) return refuse_context(self, param_of(job), count, 0, why);
    job->prompt_count = (uint32_t)count;
    if (is_generation(job->kind)) {
        job->state = JOB_CHOICES;
        err_t error = fit_output(self, job, why);
        return error == ERR_OK ? check_pages(self, job, why) : error;
    }
    print_tokens_begin(self, job);
    job->state = JOB_PRINT;
    return ERR_OK;
}

static err_t tokenise(ingress_t *self, job_t *job, size_t *work, openai_error_t *why)
{
    size_t all = SIZE_MAX;
    if (tokenizer_encode_step(self->tokenizer, &job->encoding, job->is_at_once ? &all : work))
        return take_tokens(self, job, why);
    *work = 0; /* or another long word has to end first */
    return ERR_OK;
}

static void copy_extras(ingress_t *self, call_t *call, const openai_call_t *parsed)
{
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

static void copy_options(ingress_t *self, actor_t *world, call_t *call, const openai_call_t *parsed)
{
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
    copy_extras(self, call, parsed);
}

static err_t read_body(ingress_t *self, actor_t *world, job_t *job, size_t *work,
                       openai_error_t *why)
{
    err_t error = read_job(self, job, why);
    job->prompt = 0;
    job->state = JOB_PROMPT;
    spend(job, work, *work); /* a large one takes tens of milliseconds */
    if (error != ERR_OK || !is_generation(job->kind)) return error;
    if (self->is_draining)
        return openai_refuse(why, ERR_UNAVAILABLE, "", "This server is stopping; retry elsewhere.");
    error = check_count(self, job->parsed, why);
    if (error == ERR_OK) copy_options(self, world, &self->calls[job->call], job->parsed);
    return error;
}

/* From here on the company hears of the call. */
static void accept(ingress_t *self, actor_t *world, call_t *call)
{
    for (uint32_t index = call->first; index != NONE; index = self->requests[index].next)
        request_name(self, world, &self->requests[index]);
    call->is_admitted = true;
    snprintf(call->id, sizeof call->id, "%s-%s", call->is_chat ? "chatcmpl" : "cmpl",
             request_text(self->requests[call->first].id).text);
    if (self->accepted == self->finished + self->failed + self->cancelled)
        self->busy_us = actor_now_us(world);
    self->accepted += call->count;
    actor_count(world, METRIC_requests_accepted_total, call->count);
    actor_count(world, METRIC_prompt_tokens_total, call->prompt_tokens);
}

/* The next choice of this prompt, or the next prompt, or the next stage. */
static err_t add_choice(ingress_t *self, actor_t *world, job_t *job, size_t *work,
                        openai_error_t *why)
{
    const openai_call_t *parsed = job->parsed;
    call_t *call = &self->calls[job->call];
    if (job->choice < parsed->n) {
        err_t error = add_request(self, job, why);
        job->choice++;
        spend(job, work, job->prompt_count / 2);
        return error;
    }
    call->prompt_tokens += job->prompt_count;
    job->prompt++;
    job->state = JOB_PROMPT;
    if (parsed->message_count == 0 && job->prompt < parsed->prompt_count) return ERR_OK;
    accept(self, world, call);
    job->request = call->first;
    job->state = JOB_SUBMIT;
    return ERR_OK;
}

/* Submit the next request of the call.  A full link ends the call; where nobody is at its other end
 * the requests wait for a while. */
static void submit_next(ingress_t *self, actor_t *world, job_t *job, size_t *work)
{
    while (job->request != NONE && self->requests[job->request].state == REQUEST_ENDED)
        job->request = self->requests[job->request].next;
    if (job->request == NONE) {
        job_free(self, job);
        return;
    }
    request_t *request = &self->requests[job->request];
    job->request = request->next;
    spend(job, work, request->prompt_count);
    err_t error = request_submit(self, world, request);
    if (error != ERR_OVERLOAD) return;
    openai_error_t why;
    openai_refuse(&why, error, "", "The request was not taken: %s.", error_descs[error].doc);
    call_fail(self, world, &self->calls[job->call], &why);
}

err_t admit_step(ingress_t *self, actor_t *world, job_t *job, size_t *work, openai_error_t *why)
{
    switch (job->state) {
    case JOB_BODY:
        return read_body(self, world, job, work, why);
    case JOB_PROMPT:
        return begin_prompt(self, job, work, why);
    case JOB_TEXT:
        return tokenise(self, job, work, why);
    case JOB_CHOICES:
        return add_choice(self, world, job, work, why);
    case JOB_SUBMIT:
        submit_next(self, world, job, work);
        return ERR_OK;
    case JOB_PRINT:
        return print_tokens(self, world, job, work, why);
    case JOB_OVER:
        break;
    }
    invariant(job->state != JOB_OVER);
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
