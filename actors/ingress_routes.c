/* actors/ingress_routes.c - the paths of the HTTP API, and the same service for ZeroMQ clients. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "../runtime/base/company.h"
#include "../runtime/model/tokenizer_utf8.h"
#include "../runtime/process.h"
#include "ingress_parts.h"

enum { STALL_US = 30000000 };

typedef struct {
    const char *method, *path;
    bool needs_key;
    void (*serve)(ingress_t *self, actor_t *world, const msg_http_request_t *request);
} http_route_t;

/* ---- small answers ---- */

static writer_t whole_output(ingress_t *self)
{
    return (writer_t){ .text = self->output, .cap = self->output_size };
}

/* Long answers are written into the arena of a job that needs nothing of it any more. */
static writer_t arena_output(const job_t *job)
{
    return (writer_t){ .text = (char *)job->arena.bytes, .cap = job->arena.size };
}

static void answer_text(actor_t *world, uint64_t exchange, int status, const char *type,
                        const writer_t *out)
{
    http_answer_t answer = { .status = status,
                             .content_type = type,
                             .retry_after_seconds = status == 503 ? 1 : 0 };
    actor_http_answer(world, exchange, &answer, out->text, out->used);
}

static void answer_json(actor_t *world, uint64_t exchange, int status, const writer_t *out)
{
    answer_text(world, exchange, status, "application/json", out);
}

static void print_model(const ingress_t *self, writer_t *out)
{
    writer_text(out, "{\"id\":");
    writer_json(out, self->model_name, strlen(self->model_name));
    writer_text(out, ",\"object\":\"model\",\"created\":");
    writer_number(out, self->started_s);
    writer_text(out, ",\"owned_by\":\"troupe\",\"max_model_len\":");
    writer_number(out, self->context_max);
    writer_text(out, "}");
}

static void serve_models(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    writer_t out = whole_output(self);
    writer_text(&out, "{\"object\":\"list\",\"data\":[");
    print_model(self, &out);
    writer_text(&out, "]}");
    answer_json(world, request->exchange, 200, &out);
}

static void serve_model(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    const char *name = request->path + strlen("/v1/models/");
    if (strcmp(name, self->model_name) == 0) {
        writer_t out = whole_output(self);
        print_model(self, &out);
        answer_json(world, request->exchange, 200, &out);
        return;
    }
    openai_error_t why;
    openai_refuse(&why, ERR_NOT_FOUND, "model",
                  "The model '%.200s' does not exist; this server has '%s'.", name,
                  self->model_name);
    why.code = "model_not_found";
    answer_error(self, world, request->exchange, &why);
}

static void serve_version(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    writer_t out = whole_output(self);
    writer_text(&out, "{\"version\":\"" TROUPE_VERSION "\"}");
    answer_json(world, request->exchange, 200, &out);
}

/* ---- health ---- */

/* Whether all ranks of a group are up: they step only together. */
static bool has_group(actor_t *world, role_t role, uint32_t ranks)
{
    uint32_t workers = company_count(actor_config(world), role), up = 0;
    for (uint32_t i = 0; i < workers; i++) {
        if (i % ranks == 0) up = 0;
        up += actor_peer_epoch(world, (address_t){ role, i }) != 0;
        if (up == ranks) return true;
    }
    return false;
}

const char *decode_missing(const ingress_t *self, actor_t *world)
{
    if (actor_peer_epoch(world, (address_t){ ROLE_decode_lb, 0 }) == 0) return "decode_lb";
    if (!has_group(world, ROLE_decode_worker, (uint32_t)self->config->company.decode_ep))
        return "decode_worker";
    return NULL;
}

const char *path_missing(const ingress_t *self, actor_t *world)
{
    if (actor_peer_epoch(world, (address_t){ ROLE_prefill_lb, 0 }) == 0) return "prefill_lb";
    if (!has_group(world, ROLE_prefill_worker, (uint32_t)self->config->company.prefill_ep))
        return "prefill_worker";
    return decode_missing(self, world);
}

/* The path is there, and, where requests are held, one of them moved within STALL_US.  A server
 * that accepts connections and answers nobody is not healthy. */
const char *health_missing(const ingress_t *self, actor_t *world)
{
    const char *missing = path_missing(self, world);
    if (missing != NULL) return missing;
    uint64_t moved_us = self->served_us > self->busy_us ? self->served_us : self->busy_us;
    if (self->by_id.count > 0 && actor_now_us(world) - moved_us > STALL_US) return "progress";
    return NULL;
}

static void print_health(ingress_t *self, actor_t *world, const msg_http_request_t *request,
                         const char *missing)
{
    writer_t out = whole_output(self);
    if (missing == NULL)
        writer_text(&out, "{\"status\":\"ok\"}");
    else
        writer_format(&out, "{\"status\":\"unavailable\",\"missing\":\"%s\"}", missing);
    answer_json(world, request->exchange, missing == NULL ? 200 : 503, &out);
}

static void serve_health(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    print_health(self, world, request, health_missing(self, world));
}

/* Ready: healthy, and a request that came now would find room. */
static void serve_ready(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    const char *missing = health_missing(self, world);
    if (missing == NULL && self->is_draining) missing = "stopping";
    if (missing == NULL && (self->free_request == NONE || self->free_call == NONE))
        missing = "room";
    print_health(self, world, request, missing);
}

static void serve_metrics(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < SUBJECTS_MAX && self->subjects[i].is_used; i++) {
        const subject_t *subject = &self->subjects[i];
        self->shown[count++] =
            (metrics_subject_t){ role_names[subject->role], subject->index, subject->slots };
    }
    writer_t out = arena_output(&self->jobs[0]);
    out.used = metrics_print(self->shown, count, out.text, out.cap);
    if (out.used > out.cap) out.used = out.cap;
    answer_text(world, request->exchange, 200, "text/plain; version=0.0.4; charset=utf-8", &out);
}

/* ---- generation and tokens ---- */

static call_t *open_call(ingress_t *self, actor_t *world)
{
    call_t *call = call_take(self);
    if (call == NULL) return NULL;
    call->arrived_us = actor_now_us(world);
    call->created_s = actor_wall_us(world) / 1000000;
    call->deadline_us =
        call->arrived_us + (uint64_t)self->config->limits.deadline_seconds * 1000000;
    return call;
}

static void serve_body(ingress_t *self, actor_t *world, const msg_http_request_t *request,
                       openai_kind_t kind)
{
    call_t *call = open_call(self, world);
    if (call == NULL) {
        openai_error_t why;
        refuse_full(&why);
        actor_count(world, METRIC_requests_rejected_total, 1);
        answer_error(self, world, request->exchange, &why);
        return;
    }
    bool is_new = call_name_exchange(self, call, request->exchange);
    invariant(is_new); /* exchanges are never reused */
    call_work(self, world, call, &(said_t){ .kind = kind, .body = request->body });
}

static void serve_chat(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    serve_body(self, world, request, OPENAI_CHAT);
}

static void serve_completion(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    serve_body(self, world, request, OPENAI_COMPLETION);
}

/* ---- /tokenize and /detokenize ---- */

void print_tokens_begin(ingress_t *self, job_t *job)
{
    job->out = arena_output(job);
    job->printed = 0;
    job->detokenizer = (detokenizer_t){ 0 };
    if (job->kind == OPENAI_DETOKENIZE) {
        writer_text(&job->out, "{\"prompt\":\"");
        return;
    }
    writer_text(&job->out, "{\"count\":");
    writer_number(&job->out, job->prompt_count);
    writer_text(&job->out, ",\"max_model_len\":");
    writer_number(&job->out, self->context_max);
    writer_text(&job->out, ",\"tokens\":[");
}

static void print_token(const ingress_t *self, job_t *job)
{
    char text[DETOKENIZER_EMIT_MAX];
    uint32_t at = job->printed++;
    if (job->kind == OPENAI_DETOKENIZE) {
        size_t size = detokenizer_push(&job->detokenizer, self->tokenizer, job->ids[at], false,
                                       text, sizeof text);
        writer_json_inside(&job->out, text, size);
        return;
    }
    if (at > 0) writer_text(&job->out, ",");
    writer_number(&job->out, job->ids[at]);
}

static void print_end(job_t *job)
{
    char text[DETOKENIZER_EMIT_MAX];
    if (job->kind == OPENAI_TOKENIZE) {
        writer_text(&job->out, "]}");
        return;
    }
    size_t size = detokenizer_finish(&job->detokenizer, text, sizeof text);
    writer_json_inside(&job->out, text, size);
    writer_text(&job->out, "\"}");
}

err_t print_tokens(ingress_t *self, actor_t *world, job_t *job, size_t *work, openai_error_t *why)
{
    enum { TOKEN_WORK = 4 };
    call_t *call = &self->calls[job->call];
    for (; job->printed < job->prompt_count && *work >= TOKEN_WORK; *work -= TOKEN_WORK)
        print_token(self, job);
    if (job->printed < job->prompt_count) {
        *work = 0;
        return ERR_OK;
    }
    print_end(job);
    if (job->out.is_cut)
        return openai_refuse(why, ERR_TOO_LARGE, "", "The answer is larger than %zu bytes.",
                             job->out.cap);
    answer_json(world, call->exchange, 200, &job->out);
    call_free(self, call);
    return ERR_OK;
}

static void serve_tokenize(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    serve_body(self, world, request, OPENAI_TOKENIZE);
}

static void serve_detokenize(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    serve_body(self, world, request, OPENAI_DETOKENIZE);
}

/* ---- who may, and where ---- */

/* clang-format off */
static const http_route_t routes[] = {
    { "POST", "/v1/chat/completions", true,  serve_chat },
    { "POST", "/v1/completions",      true,  serve_completion },
    { "GET",  "/v1/models",           true,  serve_models },
    { "GET",  "/v1/models/",          true,  serve_model }, /* and any name behind it */
    { "POST", "/tokenize",            true,  serve_tokenize },
    { "POST", "/detokenize",          true,  serve_detokenize },
    { "GET",  "/health",              false, serve_health },
    { "GET",  "/ready",               false, serve_ready },
    { "GET",  "/metrics",             false, serve_metrics },
    { "GET",  "/version",             false, serve_version },
};
/* clang-format on */

static const http_route_t *find_route(const char *path)
{
    for (const http_route_t *route = routes; route < routes + sizeof routes / sizeof *routes;
         route++) {
        size_t size = strlen(route->path);
        bool is_prefix = route->path[size - 1] == '/';
        if (is_prefix ? strncmp(path, route->path, size) == 0 && path[size] != 0
                      : strcmp(path, route->path) == 0)
            return route;
    }
    return NULL;
}

/* Every byte of the key that is compared is compared, whatever came before it: no time tells how
 * much was right. */
static bool is_same_key(const char *given, const char *key)
{
    size_t given_size = strlen(given), size = strlen(key);
    unsigned difference = given_size != size;
    for (size_t i = 0; i < size; i++)
        difference |=
            (unsigned char)key[i] ^ (unsigned char)given[given_size == 0 ? 0 : i % given_size];
    return difference == 0;
}

static bool is_known_key(const config_t *config, const char *given)
{
    bool is_known = config->http.api_keys_count == 0;
    for (uint32_t i = 0; i < config->http.api_keys_count; i++)
        is_known |= is_same_key(given, config->http.api_keys[i]);
    return is_known;
}

static err_t check_key(const ingress_t *self, const char *authorization, openai_error_t *why)
{
    const char *key = strncasecmp(authorization, "Bearer ", 7) == 0 ? authorization + 7 : "";
    key += strspn(key, " ");
    if (is_known_key(self->config, key)) return ERR_OK;
    if (key[0] == 0)
        openai_refuse(why, ERR_UNAUTHORIZED, "",
                      "No API key was sent; send one in the header 'Authorization: Bearer KEY'.");
    else
        openai_refuse(why, ERR_UNAUTHORIZED, "",
                      "The API key that was sent is not known to this server.");
    why->code = "invalid_api_key";
    return ERR_UNAUTHORIZED;
}

/* A web page may send forms, plain text and bytes of no type anywhere without asking first, so they
 * are refused: no page shall make its reader's browser work here.  What has neither a type nor an
 * Origin comes from no browser. */
static err_t check_type(const msg_http_request_t *request, openai_error_t *why)
{
    static const char wanted[] = "application/json";
    const char *type = request->content_type;
    size_t size = strcspn(type, "; \t");
    bool is_json = size == sizeof wanted - 1 && strncasecmp(type, wanted, size) == 0;
    if (strcmp(request->method, "POST") != 0 || is_json) return ERR_OK;
    if (type[0] == 0 && !request->has_origin) return ERR_OK;
    return openai_refuse(why, ERR_MEDIA_TYPE, "",
                         "The body must be sent as JSON, with the header 'Content-Type: "
                         "application/json' (curl: -H 'Content-Type: application/json'); it was "
                         "sent %s%.100s.",
                         type[0] == 0 ? "without a type" : "as ", type);
}

static void refuse_method(ingress_t *self, actor_t *world, const msg_http_request_t *request,
                          const http_route_t *route)
{
    bool is_get = strcmp(route->method, "GET") == 0;
    bool is_asked = strcmp(request->method, "OPTIONS") == 0;
    http_answer_t answer = { .status = is_asked ? 204 : 405,
                             .content_type = "application/json",
                             .allow = is_get ? "GET, HEAD, OPTIONS" : "POST, OPTIONS" };
    writer_t out = whole_output(self);
    openai_error_t why;
    openai_refuse(&why, ERR_METHOD, "", "%s does not answer %s; it allows %s.", route->path,
                  request->method, answer.allow);
    if (!is_asked) openai_print_error(&out, &why);
    actor_http_answer(world, request->exchange, &answer, out.text, out.used);
}

void on_http_request(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    const msg_http_request_t *request = &m->http_request;
    const http_route_t *route = find_route(request->path);
    openai_error_t why;
    if (route == NULL) {
        openai_refuse(&why, ERR_NOT_FOUND, "", "There is nothing at %.200s.", request->path);
        answer_error(self, world, request->exchange, &why);
        return;
    }
    bool is_head = strcmp(request->method, "HEAD") == 0; /* the server leaves the body out */
    if (strcmp(is_head ? "GET" : request->method, route->method) != 0)
        refuse_method(self, world, request, route);
    else if (route->needs_key && check_key(self, request->authorization, &why) != ERR_OK)
        answer_error(self, world, request->exchange, &why);
    else if (check_type(request, &why) != ERR_OK)
        answer_error(self, world, request->exchange, &why);
    else
        route->serve(self, world, request);
}

/* ---- ZeroMQ clients ---- */

static err_t copy_stops(job_t *job, openai_error_t *why)
{
    openai_call_t *parsed = job->parsed;
    bytes_t stop = job->submit.stop;
    const char *text = stop.data;
    size_t at = 0;
    while (at < stop.size) {
        size_t size = strnlen(text + at, stop.size - at);
        if (size == 0 || size > OPENAI_STOP_BYTES_MAX || at + size == stop.size ||
            parsed->stop_count == OPENAI_STOPS_MAX)
            return openai_refuse(why, ERR_INVALID, "stop",
                                 "'stop' must hold at most %d strings of 1 to %d bytes, each "
                                 "followed by a NUL byte.",
                                 OPENAI_STOPS_MAX, OPENAI_STOP_BYTES_MAX);
        char *copy = arena_take(&job->arena, size, 1);
        if (copy == NULL) return refuse_full(why);
        memcpy(copy, text + at, size);
        parsed->stops[parsed->stop_count++] = (openai_text_t){ copy, size };
        at += size + 1;
    }
    return ERR_OK;
}

/* Unlike JSON's, a client's bytes may be no UTF-8. */
static err_t copy_text(job_t *job, openai_prompt_t *prompt, openai_error_t *why)
{
    const uint8_t *from = job->submit.content.data;
    size_t size = job->submit.content.size;
    bool is_valid = utf8_valid_size(from, size) == size;
    size_t needed = is_valid ? size : utf8_repair(from, size, NULL, 0);
    char *text = arena_take(&job->arena, needed + 1, 1);
    if (text == NULL) return refuse_full(why);
    if (!is_valid)
        utf8_repair(from, size, text, needed);
    else if (size > 0)
        memcpy(text, from, size);
    prompt->text = text;
    prompt->size = needed;
    return ERR_OK;
}

static err_t copy_ids(const ingress_t *self, job_t *job, openai_prompt_t *prompt,
                      openai_error_t *why)
{
    bytes_t content = job->submit.content;
    if (content.size % 4 != 0)
        return openai_refuse(why, ERR_INVALID, "content",
                             "Token ids are 4 bytes each, but 'content' has %zu bytes.",
                             content.size);
    uint32_t *ids = arena_take(&job->arena, content.size / 4 + 1, sizeof *ids);
    if (ids == NULL) return refuse_full(why);
    if (content.size > 0) memcpy(ids, content.data, content.size);
    prompt->ids = ids;
    prompt->count = (uint32_t)(content.size / 4);
    for (uint32_t i = 0; i < prompt->count; i++) {
        if (ids[i] >= tokenizer_vocab(self->tokenizer))
            return openai_refuse(why, ERR_INVALID, "content",
                                 "Token ids must be below %u, but one is %u.",
                                 tokenizer_vocab(self->tokenizer), ids[i]);
    }
    return ERR_OK;
}

static err_t copy_prompt(const ingress_t *self, job_t *job, openai_error_t *why)
{
    openai_prompt_t *prompt = arena_take(&job->arena, 1, sizeof *prompt);
    if (prompt == NULL) return refuse_full(why);
    *prompt = (openai_prompt_t){ 0 };
    job->parsed->prompts = prompt;
    job->parsed->prompt_count = 1;
    return job->submit.kind == 0 ? copy_text(job, prompt, why) : copy_ids(self, job, prompt, why);
}

static err_t read_submit(const ingress_t *self, job_t *job, openai_error_t *why)
{
    const msg_client_submit_t *submit = &job->submit;
    openai_call_t *parsed = job->parsed;
    err_t error = ERR_OK;
    if (submit->kind == 2) {
        error = openai_parse_messages(parsed, submit->content, &job->arena, why);
    } else {
        memset(parsed, 0, sizeof *parsed);
        parsed->kind = OPENAI_COMPLETION;
        parsed->thinking = -1;
        error = copy_prompt(self, job, why);
    }
    if (error != ERR_OK) return error;
    snprintf(parsed->model, sizeof parsed->model, "%s", submit->model);
    parsed->n = 1;
    parsed->has_seed = true; /* a client of this protocol draws one itself */
    parsed->sampling = submit->sampling;
    parsed->sampling.prompt_logprobs = 0;
    parsed->has_max_tokens = submit->max_tokens != 0;
    parsed->max_tokens = submit->max_tokens;
    parsed->stop_id_count = submit->stop_ids_count;
    memcpy(parsed->stop_ids, submit->stop_ids, sizeof submit->stop_ids);
    return copy_stops(job, why);
}

static err_t check_model(const ingress_t *self, const openai_call_t *parsed, openai_error_t *why)
{
    const char *asked = parsed->model;
    if (asked[0] == 0 || strcmp(asked, self->model_name) == 0) return ERR_OK;
    openai_refuse(why, ERR_NOT_FOUND, "model",
                  "The model '%s' does not exist; this server has '%s'.", asked, self->model_name);
    why->code = "model_not_found";
    return ERR_NOT_FOUND;
}

err_t read_job(ingress_t *self, job_t *job, openai_error_t *why)
{
    job->parsed->kind = job->kind;
    err_t error = self->calls[job->call].is_client
                      ? read_submit(self, job, why)
                      : openai_parse(job->parsed, job->body, tokenizer_vocab(self->tokenizer),
                                     &job->arena, why);
    return error == ERR_OK ? check_model(self, job->parsed, why) : error;
}

static err_t admit_client(ingress_t *self, actor_t *world, const msg_t *m, openai_error_t *why)
{
    const msg_client_submit_t *submit = &m->client_submit;
    if (!is_known_key(self->config, submit->key))
        return openai_refuse(why, ERR_UNAUTHORIZED, "key",
                             "The API key that was sent is not known to this server.");
    if (call_find_client(self, m->header.from, m->header.request) != NULL)
        return openai_refuse(why, ERR_INVALID, "request",
                             "A request of this id is running already.");
    call_t *call = open_call(self, world);
    if (call == NULL) return refuse_full(why);
    uint64_t limit_us = (uint64_t)self->config->limits.deadline_seconds * 1000000;
    if (submit->deadline_us > 0 && submit->deadline_us < limit_us)
        call->deadline_us = call->arrived_us + submit->deadline_us;
    bool is_new = call_name_client(self, call, m->header.from, m->header.request);
    invariant(is_new);
    openai_kind_t kind = submit->kind == 2 ? OPENAI_CHAT : OPENAI_COMPLETION;
    call_work(self, world, call, &(said_t){ .kind = kind, .submit = submit });
    return ERR_OK;
}

void on_client_submit(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    openai_error_t why;
    if (admit_client(self, world, m, &why) == ERR_OK) return;
    actor_count(world, METRIC_requests_rejected_total, 1);
    (void)answer_client_error(world, m->header.from, m->header.request, &why);
}
