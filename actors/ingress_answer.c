/* actors/ingress_answer.c - what clients get: chunks, whole answers, errors; over HTTP and over
 * ZeroMQ. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ingress_parts.h"

/* ---- where text and output go ---- */

/* Output of one call: buffered, and streamed from the moment it does not fit or the call is a
 * stream. */
typedef struct {
    ingress_t *self;
    actor_t *world;
    call_t *call;
} output_t;

static http_answer_t stream_answer(const call_t *call)
{
    const char *dash = strchr(call->id, '-');
    return (http_answer_t){ .status = 200,
                            .content_type = call->is_stream ? "text/event-stream; charset=utf-8"
                                                            : "application/json",
                            .request_id = dash == NULL ? NULL : dash + 1 };
}

static void write_through(void *context, const char *text, size_t size)
{
    output_t *output = context;
    if (!output->call->is_begun) {
        http_answer_t answer = stream_answer(output->call);
        actor_http_begin(output->world, output->call->exchange, &answer);
        output->call->is_begun = true;
    }
    actor_http_write(output->world, output->call->exchange, text, size);
}

static writer_t writer_of(output_t *output)
{
    return (writer_t){ .text = output->self->output,
                       .cap = output->self->output_size,
                       .sink = write_through,
                       .context = output };
}

static void collect(void *context, bool is_reasoning, const char *text, size_t size)
{
    ingress_t *self = context;
    char *to = is_reasoning ? self->reasoning : self->content;
    size_t *used = is_reasoning ? &self->reasoning_size : &self->content_size;
    invariant(size <= DELTA_BYTES - *used);
    memcpy(to + *used, text, size);
    *used += size;
}

text_sink_t answer_sink(ingress_t *self)
{
    return (text_sink_t){ collect, self };
}

text_rules_t answer_rules(const ingress_t *self, const call_t *call, stop_tail_t *tail)
{
    bool has_stops = call->has_stops;
    return (text_rules_t){ .tokenizer = self->tokenizer,
                           .reasoning = call->reasoning,
                           .stops = has_stops ? &self->extras[call_index(self, call)].stops : NULL,
                           .tail = has_stops ? tail : NULL };
}

static usage_t usage_of(const ingress_t *self, const call_t *call)
{
    usage_t usage = { .prompt_tokens = call->prompt_tokens };
    for (uint32_t index = call->first; index != NONE; index = self->requests[index].next) {
        const request_t *request = &self->requests[index];
        usage.completion_tokens += call->is_prompt_only ? 0 : request->generated;
        usage.reasoning_tokens += request->text.reasoning_tokens;
        /* The choices of one prompt count it once; the first of them computed it. */
        if (request->choice % call->n == 0) usage.cached_tokens += request->cached;
    }
    return usage;
}

static answer_head_t head_of(const ingress_t *self, const call_t *call)
{
    answer_head_t head = { .is_chat = call->is_chat,
                           .id = call->id,
                           .created_s = call->created_s,
                           .model = self->model_name,
                           .fingerprint = self->fingerprint,
                           .has_usage = call->has_usage_always };
    if (head.has_usage) head.usage = usage_of(self, call);
    return head;
}

/* ---- log probabilities ---- */

/* Records in the order of the text: of the prompt, then of what was generated, then of this
 * message. */
typedef struct {
    const ingress_t *self;
    const chain_t *chains[2];
    chain_cursor_t cursor;
    uint32_t stage, at, batch_count;
} walk_t;

static bool read_record(const chain_pool_t *pool, chain_cursor_t *cursor, token_record_t *out)
{
    return chain_read(pool, cursor, &out->id, sizeof out->id) &&
           chain_read(pool, cursor, &out->top_count, sizeof out->top_count) &&
           chain_read(pool, cursor, &out->logprob, sizeof out->logprob) &&
           chain_read(pool, cursor, out->top_ids, out->top_count * (uint32_t)sizeof(uint32_t)) &&
           chain_read(pool, cursor, out->top_logprobs, out->top_count * (uint32_t)sizeof(float));
}

static void walk_rewind(void *context)
{
    walk_t *walk = context;
    walk->stage = walk->at = 0;
    walk->cursor = chain_begin(walk->chains[0]);
}

static bool walk_next(void *context, token_record_t *out)
{
    walk_t *walk = context;
    while (walk->stage < 2) {
        if (read_record(&walk->self->pool, &walk->cursor, out)) return true;
        if (++walk->stage < 2) walk->cursor = chain_begin(walk->chains[walk->stage]);
    }
    if (walk->at == walk->batch_count) return false;
    *out = walk->self->batch[walk->at++];
    return true;
}

static records_t records_of(walk_t *walk)
{
    return (records_t){ walk_rewind, walk_next, walk };
}

/* ---- streams ---- */

/* The text of the prompt, whole and without its special tokens, as a client that asked for `echo`
 * expects it. */
static void echo_text(ingress_t *self, const request_t *request, writer_t *out)
{
    char text[DETOKENIZER_EMIT_MAX];
    detokenizer_t detokenizer = { 0 };
    chain_cursor_t cursor = chain_begin(&request->tokens);
    uint32_t id;
    for (uint32_t i = 0;
         i < request->prompt_count && chain_read(&self->pool, &cursor, &id, sizeof id); i++) {
        size_t size = detokenizer_push(&detokenizer, self->tokenizer, id, true, text, sizeof text);
        writer_json_inside(out, text, size);
    }
    writer_json_inside(out, text, detokenizer_finish(&detokenizer, text, sizeof text));
}

static void write_echo(ingress_t *self, request_t *request, const answer_head_t *head,
                       writer_t *out)
{
    const call_t *call = &self->calls[request->call];
    const chain_t none = { 0 };
    walk_t walk = { .self = self, .chains = { &request->prompt_chain, &none } };
    writer_text(out, "data: ");
    answer_print_head(out, head, true);
    writer_text(out, ",\"choices\":[{\"index\":");
    writer_number(out, request->choice);
    writer_text(out, ",\"text\":\"");
    echo_text(self, request, out);
    writer_text(out, "\",\"logprobs\":");
    if (call->sampling.logprobs)
        answer_print_logprobs(out, false, self->tokenizer, records_of(&walk), &request->place);
    else
        writer_text(out, "null");
    writer_text(out, ",\"finish_reason\":null}]}\n\n");
}

/* Clients make room for a chat's choices in the order in which their roles come: all at once. */
static void begin_chat(ingress_t *self, const call_t *call, const answer_head_t *head,
                       writer_t *out)
{
    for (uint32_t index = call->first; index != NONE; index = self->requests[index].next) {
        answer_chunk_role(out, head, self->requests[index].choice);
        self->requests[index].is_begun = true;
    }
}

static void begin_request(ingress_t *self, request_t *request, const answer_head_t *head,
                          writer_t *out)
{
    const call_t *call = &self->calls[request->call];
    if (request->is_begun) return;
    request->is_begun = true;
    if (call->is_chat) begin_chat(self, call, head, out);
    if (call->is_echo) write_echo(self, request, head, out);
}

static void write_delta(ingress_t *self, request_t *request, const answer_head_t *head,
                        writer_t *out)
{
    const call_t *call = &self->calls[request->call];
    const chain_t none = { 0 };
    walk_t walk = { .self = self, .chains = { &none, &none }, .batch_count = self->batch_count };
    records_t records = records_of(&walk);
    delta_t delta = { .reasoning = { self->reasoning, self->reasoning_size },
                      .content = { self->content, self->content_size },
                      .tokenizer = self->tokenizer };
    if (call->sampling.logprobs && self->batch_count > 0) {
        delta.records = &records;
        delta.place = &request->place;
    }
    if (self->reasoning_size + self->content_size == 0 && delta.records == NULL) return;
    answer_chunk_delta(out, head, request->choice, &delta);
}

/* Texts longer than a message's field take several messages; the ids travel with the first. */
static void send_client_tokens(ingress_t *self, actor_t *world, call_t *call, const fresh_t *fresh)
{
    size_t reasoning = 0, content = 0;
    msg_t m;
    msg_init(&m, MSG_client_tokens);
    m.header.request = call->client_id;
    if (fresh != NULL) {
        const msg_tokens_t *tokens = fresh->tokens;
        uint32_t skip = fresh->first - tokens->first_index;
        m.client_tokens.first_index = fresh->first;
        m.client_tokens.ids_count = fresh->count;
        memcpy(m.client_tokens.ids, tokens->ids + skip, fresh->count * sizeof *tokens->ids);
        if (tokens->logprobs_count >= skip + fresh->count) {
            m.client_tokens.logprobs_count = fresh->count;
            memcpy(m.client_tokens.logprobs, tokens->logprobs + skip,
                   fresh->count * sizeof *tokens->logprobs);
        }
    }
    do {
        size_t take_reasoning =
            self->reasoning_size - reasoning < 4096 ? self->reasoning_size - reasoning : 4096;
        size_t take_content =
            self->content_size - content < 4096 ? self->content_size - content : 4096;
        m.client_tokens.reasoning = (bytes_t){ self->reasoning + reasoning, take_reasoning };
        m.client_tokens.text = (bytes_t){ self->content + content, take_content };
        if (actor_send(world, call->client, &m) != ERR_OK) {
            call->is_cut = true; /* what would come next would follow a gap */
            return;
        }
        reasoning += take_reasoning;
        content += take_content;
        m.client_tokens.ids_count = m.client_tokens.logprobs_count = 0;
    } while (reasoning < self->reasoning_size || content < self->content_size);
}

void answer_delta(ingress_t *self, actor_t *world, request_t *request, const fresh_t *fresh)
{
    call_t *call = &self->calls[request->call];
    if (call->is_client) {
        if (!call->is_cut) send_client_tokens(self, world, call, fresh);
        return;
    }
    if (!call->is_stream) return;
    output_t output = { self, world, call };
    writer_t out = writer_of(&output);
    answer_head_t head = head_of(self, call);
    begin_request(self, request, &head, &out);
    write_delta(self, request, &head, &out);
    writer_flush(&out);
}

void answer_request_end(ingress_t *self, actor_t *world, request_t *request)
{
    call_t *call = &self->calls[request->call];
    bool is_whole = !call->is_stream && !call->is_client;
    if (is_whole) return; /* told with the rest of the call */
    self->reasoning_size = self->content_size = self->batch_count = 0;
    text_rules_t rules = answer_rules(self, call, &self->tails[request_index(self, request)]);
    if (!call->is_prompt_only) text_end(&request->text, &rules, answer_sink(self));
    if (call->is_client) {
        if (self->reasoning_size + self->content_size > 0 && !call->is_cut)
            send_client_tokens(self, world, call, NULL);
        return;
    }
    output_t output = { self, world, call };
    writer_t out = writer_of(&output);
    answer_head_t head = head_of(self, call);
    begin_request(self, request, &head, &out);
    write_delta(self, request, &head, &out);
    answer_chunk_finish(&out, &head, request->choice, request->reason);
    writer_flush(&out);
}

/* ---- whole answers ---- */

typedef struct {
    writer_t *out;
    bool is_reasoning;
    uint64_t size;
} part_sink_t;

static void write_part(void *context, bool is_reasoning, const char *text, size_t size)
{
    part_sink_t *part = context;
    if (is_reasoning != part->is_reasoning) return;
    if (part->out != NULL) writer_json_inside(part->out, text, size);
    part->size += size;
}

/* Render one half of a text from its tokens: texts are not kept while they grow. */
static uint64_t render(ingress_t *self, request_t *request, writer_t *out, bool is_reasoning)
{
    const call_t *call = &self->calls[request->call];
    text_rules_t rules = answer_rules(self, call, self->tail);
    text_t text;
    text_begin(&text, &rules, call->is_chat && call->reasoning.starts_in_reasoning);
    part_sink_t part = { out, is_reasoning, 0 };
    text_sink_t sink = { write_part, &part };
    uint32_t count = call->is_prompt_only ? 0 : request_gather(self, request);
    for (uint32_t i = request->prompt_count; i < count; i++) {
        if (is_stop_id(self, call, self->ids[i])) continue;
        if (text_push(&text, &rules, self->ids[i], sink)) break;
    }
    text_end(&text, &rules, sink);
    request->text.reasoning_tokens = text.reasoning_tokens;
    return part.size;
}

static void write_message(ingress_t *self, request_t *request, writer_t *out)
{
    writer_text(out, ",\"message\":{\"role\":\"assistant\",\"content\":\"");
    render(self, request, out, false);
    writer_text(out, "\"");
    if (render(self, request, NULL, true) > 0) {
        writer_text(out, ",\"reasoning_content\":\"");
        render(self, request, out, true);
        writer_text(out, "\"");
    }
    writer_text(out, ",\"refusal\":null}");
}

static void write_choice(ingress_t *self, request_t *request, writer_t *out)
{
    const call_t *call = &self->calls[request->call];
    writer_text(out, request->choice == 0 ? "{\"index\":" : ",{\"index\":");
    writer_number(out, request->choice);
    if (call->is_chat) {
        write_message(self, request, out);
    } else {
        writer_text(out, ",\"text\":\"");
        if (call->is_echo) echo_text(self, request, out);
        render(self, request, out, false);
        writer_text(out, "\"");
    }
    writer_text(out, ",\"logprobs\":");
    walk_t walk = { .self = self, .chains = { &request->prompt_chain, &request->records } };
    if (call->sampling.logprobs)
        answer_print_logprobs(out, call->is_chat, self->tokenizer, records_of(&walk),
                              &request->place);
    else
        writer_text(out, "null");
    writer_format(out, ",\"finish_reason\":\"%s\"}", answer_finish(request->reason));
}

static void begin_whole(const ingress_t *self, call_t *call, writer_t *out)
{
    answer_head_t head = head_of(self, call);
    answer_print_head(out, &head, false);
    writer_text(out, ",\"choices\":[");
    call->is_in_print = true;
    call->unprinted = call->first;
}

static bool finish_whole(ingress_t *self, actor_t *world, call_t *call)
{
    output_t output = { self, world, call };
    writer_t out = writer_of(&output);
    if (!call->is_in_print) begin_whole(self, call, &out);
    for (uint64_t printed = 0; call->unprinted != NONE && printed < PRINT_PER_TURN;) {
        request_t *request = &self->requests[call->unprinted];
        write_choice(self, request, &out);
        if (call->sampling.logprobs)
            printed += (uint64_t)(request->prompt_records + request->generated) *
                       (1 + call->sampling.top_logprobs);
        call->unprinted = request->next;
    }
    if (call->unprinted != NONE) {
        writer_flush(&out);
        return false;
    }
    writer_text(&out, "],\"usage\":");
    usage_t usage = usage_of(self, call);
    answer_print_usage(&out, &usage);
    writer_text(&out, "}");
    if (!call->is_begun) {
        http_answer_t answer = stream_answer(call);
        actor_http_answer(world, call->exchange, &answer, out.text, out.used);
        return true;
    }
    writer_flush(&out);
    actor_http_end(world, call->exchange);
    return true;
}

static void finish_stream(ingress_t *self, actor_t *world, call_t *call)
{
    output_t output = { self, world, call };
    writer_t out = writer_of(&output);
    answer_head_t head = head_of(self, call);
    usage_t usage = usage_of(self, call);
    head.has_usage = false; /* the last chunk is about nothing else */
    if (call->has_usage_chunk) answer_chunk_usage(&out, &head, &usage);
    answer_chunk_done(&out);
    writer_flush(&out);
    actor_http_end(world, call->exchange);
}

static bool fail_client(actor_t *world, const call_t *call)
{
    openai_error_t why;
    openai_refuse(&why, ERR_OVERLOAD, "",
                  "The client takes its tokens too slowly; the link to it is full.");
    return answer_client_error(world, call->client, call->client_id, &why);
}

/* False: the link is full. */
static bool finish_client(const ingress_t *self, actor_t *world, const call_t *call)
{
    if (call->is_cut) return fail_client(world, call);
    usage_t usage = usage_of(self, call);
    msg_t m;
    msg_init(&m, MSG_client_finished);
    m.header.request = call->client_id;
    m.client_finished.reason = self->requests[call->first].reason;
    m.client_finished.prompt_tokens = (u32)usage.prompt_tokens;
    m.client_finished.completion_tokens = (u32)usage.completion_tokens;
    m.client_finished.reasoning_tokens = (u32)usage.reasoning_tokens;
    m.client_finished.cached_tokens = (u32)usage.cached_tokens;
    return actor_send(world, call->client, &m) != ERR_OVERLOAD;
}

bool answer_call_end(ingress_t *self, actor_t *world, call_t *call)
{
    if (!call->is_client && !call->is_stream) return finish_whole(self, world, call);
    if (call->is_client) return finish_client(self, world, call);
    finish_stream(self, world, call);
    return true;
}

/* ---- errors ---- */

void answer_error(ingress_t *self, actor_t *world, uint64_t exchange, const openai_error_t *why)
{
    writer_t out = { .text = self->output, .cap = self->output_size };
    openai_print_error(&out, why);
    const error_desc_t *desc = &error_descs[why->error];
    bool is_later = desc->http_status == 429 || desc->http_status == 503;
    http_answer_t answer = { .status = desc->http_status,
                             .content_type = "application/json",
                             .retry_after_seconds = is_later ? 1 : 0 };
    actor_http_answer(world, exchange, &answer, out.text, out.used);
}

bool answer_client_error(actor_t *world, address_t client, request_id_t id,
                         const openai_error_t *why)
{
    const error_desc_t *desc = &error_descs[why->error];
    msg_t m;
    msg_init(&m, MSG_client_failed);
    m.header.request = id;
    m.client_failed.error = why->error;
    m.client_failed.is_retry_safe = desc->is_retry_safe;
    m.client_failed.retry_after_ms =
        desc->http_status == 429 || desc->http_status == 503 ? 1000 : 0;
    snprintf(m.client_failed.message, sizeof m.client_failed.message, "%.500s", why->message);
    snprintf(m.client_failed.param, sizeof m.client_failed.param, "%s", why->param);
    return actor_send(world, client, &m) != ERR_OVERLOAD;
}

void answer_call_error(ingress_t *self, actor_t *world, call_t *call, const openai_error_t *why)
{
    if (call->is_client) {
        (void)answer_client_error(world, call->client, call->client_id,
                                  why); /* or its timeout does */
        return;
    }
    if (!call->is_begun) {
        answer_error(self, world, call->exchange, why);
        return;
    }
    output_t output = { self, world, call };
    writer_t out = writer_of(&output);
    answer_chunk_error(&out, why);
    writer_flush(&out);
    actor_http_end(world, call->exchange);
}
