/* actors/ingress_routes.c - the paths of the HTTP API, and the same service for ZeroMQ clients. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "../runtime/base/company.h"
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

/* Long answers are written into the arena, which is free again once a parsed body is out of it. */
static writer_t arena_output(ingress_t *self)
{
    return (writer_t){ .text = (char *)self->arena.bytes, .cap = self->arena.size };
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
    writer_t out = arena_output(self);
    out.used = metrics_print(self->shown, count, out.text, out.cap);
    if (out.used > out.cap) out.used = out.cap;
    answer_text(world, request->exchange, 200, "text/plain; version=0.0.4; charset=utf-8", &out);
}

/* ---- generation and tokens ---- */

static err_t parse(ingress_t *self, openai_kind_t kind, bytes_t body, openai_error_t *why)
{
    self->arena.used = 0;
    self->parsed->kind = kind;
    err_t error =
        openai_parse(self->parsed, body, tokenizer_vocab(self->tokenizer), &self->arena, why);
    return error == ERR_OK ? admit_model(self, why) : error;
}

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

static err_t refuse_full(openai_error_t *why)
{
    return openai_refuse(why, ERR_OVERLOAD, "",
                         "This server holds as many requests as it can; retry later.");
}

static void serve_generation(ingress_t *self, actor_t *world, const msg_http_request_t *request,
                             openai_kind_t kind)
{
    openai_error_t why;
    err_t error = parse(self, kind, request->body, &why);
    call_t *call = error == ERR_OK ? open_call(self, world) : NULL;
    if (error == ERR_OK && call == NULL) error = refuse_full(&why);
    if (error == ERR_OK) {
        bool is_new = call_name_exchange(self, call, request->exchange);
        invariant(is_new); /* exchanges are never reused */
        error = admit(self, world, call, &why);
    }
    if (error == ERR_OK) return;
    actor_count(world, METRIC_requests_rejected_total, 1);
    answer_error(self, world, request->exchange, &why);
}

static void serve_chat(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    serve_generation(self, world, request, OPENAI_CHAT);
}

static void serve_completion(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    serve_generation(self, world, request, OPENAI_COMPLETION);
}

static void print_ids(const ingress_t *self, uint32_t count, writer_t *out)
{
    writer_text(out, "{\"count\":");
    writer_number(out, count);
    writer_text(out, ",\"max_model_len\":");
    writer_number(out, self->context_max);
    writer_text(out, ",\"tokens\":[");
    for (uint32_t i = 0; i < count; i++) {
        if (i > 0) writer_text(out, ",");
        writer_number(out, self->ids[i]);
    }
    writer_text(out, "]}");
}

static void print_prompt(const ingress_t *self, uint32_t count, writer_t *out)
{
    char text[DETOKENIZER_EMIT_MAX];
    detokenizer_t detokenizer = { 0 };
    writer_text(out, "{\"prompt\":\"");
    for (uint32_t i = 0; i < count; i++)
        writer_json_inside(out, text,
                           detokenizer_push(&detokenizer, self->tokenizer, self->ids[i], false,
                                            text, sizeof text));
    writer_json_inside(out, text, detokenizer_finish(&detokenizer, text, sizeof text));
    writer_text(out, "\"}");
}

static void serve_tokens(ingress_t *self, actor_t *world, const msg_http_request_t *request,
                         openai_kind_t kind)
{
    openai_error_t why;
    uint32_t count = 0;
    err_t error = parse(self, kind, request->body, &why);
    if (error == ERR_OK) error = admit_tokens(self, 0, &count, &why);
    writer_t out = arena_output(self);
    if (error == ERR_OK && kind == OPENAI_TOKENIZE) print_ids(self, count, &out);
    if (error == ERR_OK && kind == OPENAI_DETOKENIZE) print_prompt(self, count, &out);
    if (out.is_cut)
        error =
            openai_refuse(&why, ERR_TOO_LARGE, "", "The answer is larger than %zu bytes.", out.cap);
    if (error == ERR_OK)
        answer_json(world, request->exchange, 200, &out);
    else
        answer_error(self, world, request->exchange, &why);
}

static void serve_tokenize(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    serve_tokens(self, world, request, OPENAI_TOKENIZE);
}

static void serve_detokenize(ingress_t *self, actor_t *world, const msg_http_request_t *request)
{
    serve_tokens(self, world, request, OPENAI_DETOKENIZE);
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

static err_t copy_stops(ingress_t *self, bytes_t stop, openai_error_t *why)
{
    const char *text = stop.data;
    size_t at = 0;
    while (at < stop.size) {
        size_t size = strnlen(text + at, stop.size - at);
        if (size == 0 || size > OPENAI_STOP_BYTES_MAX || at + size == stop.size ||
            self->parsed->stop_count == OPENAI_STOPS_MAX)
            return openai_refuse(why, ERR_INVALID, "stop",
                                 "'stop' must hold at most %d strings of 1 to %d bytes, each "
                                 "followed by a NUL byte.",
                                 OPENAI_STOPS_MAX, OPENAI_STOP_BYTES_MAX);
        char *copy = arena_take(&self->arena, size, 1);
        if (copy == NULL) return refuse_full(why);
        memcpy(copy, text + at, size);
        self->parsed->stops[self->parsed->stop_count++] = (openai_text_t){ copy, size };
        at += size + 1;
    }
    return ERR_OK;
}

static err_t copy_prompt(ingress_t *self, const msg_client_submit_t *submit, openai_error_t *why)
{
    openai_prompt_t *prompt = arena_take(&self->arena, 1, sizeof *prompt);
    char *copy = arena_take(&self->arena, submit->content.size + 1, 1);
    if (prompt == NULL || copy == NULL) return refuse_full(why);
    if (submit->content.size > 0) memcpy(copy, submit->content.data, submit->content.size);
    *prompt = (openai_prompt_t){ 0 };
    if (submit->kind == 0) {
        prompt->text = copy;
        prompt->size = submit->content.size;
    } else {
        if (submit->content.size % 4 != 0)
            return openai_refuse(why, ERR_INVALID, "content",
                                 "Token ids are 4 bytes each, but 'content' has %zu bytes.",
                                 submit->content.size);
        prompt->ids = (const uint32_t *)(const void *)copy;
        prompt->count = (uint32_t)(submit->content.size / 4);
        for (uint32_t i = 0; i < prompt->count; i++) {
            if (prompt->ids[i] >= tokenizer_vocab(self->tokenizer))
                return openai_refuse(why, ERR_INVALID, "content",
                                     "Token ids must be below %u, but one is %u.",
                                     tokenizer_vocab(self->tokenizer), prompt->ids[i]);
        }
    }
    self->parsed->prompts = prompt;
    self->parsed->prompt_count = 1;
    return ERR_OK;
}

static err_t read_submit(ingress_t *self, const msg_client_submit_t *submit, openai_error_t *why)
{
    openai_call_t *parsed = self->parsed;
    err_t error = ERR_OK;
    self->arena.used = 0;
    if (submit->kind == 2) {
        error = openai_parse_messages(parsed, submit->content, &self->arena, why);
    } else {
        memset(parsed, 0, sizeof *parsed);
        parsed->kind = OPENAI_COMPLETION;
        parsed->thinking = -1;
        error = copy_prompt(self, submit, why);
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
    error = copy_stops(self, submit->stop, why);
    return error == ERR_OK ? admit_model(self, why) : error;
}

static err_t admit_client(ingress_t *self, actor_t *world, const msg_t *m, openai_error_t *why)
{
    const msg_client_submit_t *submit = &m->client_submit;
    if (!is_known_key(self->config, submit->key))
        return openai_refuse(why, ERR_UNAUTHORIZED, "key",
                             "The API key that was sent is not known to this server.");
    err_t error = read_submit(self, submit, why);
    if (error != ERR_OK) return error;
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
    return admit(self, world, call, why);
}

void on_client_submit(void *state, actor_t *world, const msg_t *m)
{
    ingress_t *self = state;
    openai_error_t why;
    if (admit_client(self, world, m, &why) == ERR_OK) return;
    actor_count(world, METRIC_requests_rejected_total, 1);
    (void)answer_client_error(world, m->header.from, m->header.request, &why);
}
