/* tests/actors/ingress_harness.h - an ingress in the fake world, asked over HTTP, with the tiny
 * model's tokenizer. */
#ifndef TESTS_ACTORS_INGRESS_HARNESS_H
#define TESTS_ACTORS_INGRESS_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

#include "actors/ingress.h"
#include "runtime/model/tokenizer.h"
#include "runtime/net/http.h"
#include "tests/actors/fake_world.h"

/* ---- the part of the world that the fake one leaves out ---- */

enum { ANSWER_MAX = 1 << 20 };

/* The last HTTP exchange that was answered. */
static struct {
    uint64_t exchange;
    int status;
    uint32_t retry_after, ends;
    char allow[64], text[ANSWER_MAX];
    size_t size;
} http;
/* Whose answers were written, in order; one entry for all that is written without a pause. */
static struct {
    uint64_t exchanges[64];
    uint32_t count;
} writes;
static uint64_t random_state;

uint64_t actor_epoch(const actor_t *world)
{
    return 7;
}

uint64_t actor_random(actor_t *world)
{
    return random_state += 0x9e3779b97f4a7c15u;
}

void actor_observe(actor_t *world, metric_t histogram, double value)
{
    assert_true(value >= 0);
}

err_t actor_http_open(actor_t *world)
{
    return ERR_OK;
}

static inline void keep(const void *data, size_t size)
{
    assert_true(http.size + size < ANSWER_MAX);
    memcpy(http.text + http.size, data, size);
    http.size += size;
    http.text[http.size] = 0;
}

void actor_http_begin(actor_t *world, uint64_t exchange, const http_answer_t *answer)
{
    if (exchange == http.exchange) assert_int_equal(http.status, 0);
    if (exchange != http.exchange) http.size = http.ends = 0;
    http.exchange = exchange;
    http.status = answer->status;
    http.retry_after = answer->retry_after_seconds;
    snprintf(http.allow, sizeof http.allow, "%s", answer->allow == NULL ? "" : answer->allow);
}

void actor_http_write(actor_t *world, uint64_t exchange, const void *data, size_t size)
{
    bool is_same = writes.count > 0 && writes.exchanges[writes.count - 1] == exchange;
    if (!is_same && writes.count < 64) writes.exchanges[writes.count++] = exchange;
    if (exchange != http.exchange) return;
    assert_int_equal(http.ends, 0); /* nothing follows the end: I4 */
    keep(data, size);
}

void actor_http_end(actor_t *world, uint64_t exchange)
{
    if (exchange == http.exchange) http.ends++;
}

void actor_http_answer(actor_t *world, uint64_t exchange, const http_answer_t *answer,
                       const void *body, size_t size)
{
    actor_http_begin(world, exchange, answer);
    actor_http_write(world, exchange, body, size);
    actor_http_end(world, exchange);
}

/* ---- helpers ---- */

static const address_t prefill_lb = { ROLE_prefill_lb, 0 }, decode_lb = { ROLE_decode_lb, 0 },
                       worker = { ROLE_decode_worker, 1 };
static tokenizer_t *tokenizer;

static inline void tell_peer(actor_t *world, msg_type_t type, role_t role)
{
    msg_t m;
    msg_init(&m, type);
    if (type == MSG_peer_up)
        m.peer_up.role = role;
    else
        m.peer_down.role = role;
    world->is_down = type == MSG_peer_down;
    world->down = (address_t){ role, 0 };
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
}

/* With a worker of each kind. */
static inline actor_t *new_ingress(const char *more)
{
    const char *const settings[] = { "model.path=" SOURCE_DIR "/models/tiny", more, NULL };
    actor_t *world = fake_new(&ingress_class, settings);
    tell_peer(world, MSG_peer_up, ROLE_prefill_worker);
    tell_peer(world, MSG_peer_up, ROLE_decode_worker);
    return world;
}

static inline void destroy(actor_t *world)
{
    assert_true(world->class->is_idle(world->state));
    world->class->fini(world->state, world);
    fake_destroy(world);
}

/* Headers of the next request. */
static const char *content_type = "application/json";
static bool has_origin;

static inline uint64_t ask(actor_t *world, const char *method, const char *path, const char *body)
{
    http.status = 0;
    static uint64_t exchange;
    http.size = http.ends = 0;
    http.text[0] = 0;
    msg_t m;
    msg_init(&m, MSG_http_request);
    m.http_request.exchange = ++exchange;
    snprintf(m.http_request.method, sizeof m.http_request.method, "%s", method);
    snprintf(m.http_request.path, sizeof m.http_request.path, "%s", path);
    snprintf(m.http_request.content_type, sizeof m.http_request.content_type, "%s", content_type);
    m.http_request.has_origin = has_origin;
    m.http_request.body = (bytes_t){ body, strlen(body) };
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    return exchange;
}

static inline uint64_t ask_stream(actor_t *world, const char *more)
{
    char body[1024];
    snprintf(body, sizeof body,
             "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true%s}", more);
    return ask(world, "POST", "/v1/chat/completions", body);
}

static inline const fake_sent_t *last(const actor_t *world, msg_type_t type)
{
    for (uint32_t i = world->sent_count; i > 0; i--) {
        if (world->sent[i - 1].message.type == type) return &world->sent[i - 1];
    }
    return NULL;
}

static inline uint32_t count_sent(const actor_t *world, msg_type_t type)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < world->sent_count; i++) count += world->sent[i].message.type == type;
    return count;
}

static inline msg_t about(const actor_t *world, msg_type_t type)
{
    const msg_t *submit = &last(world, MSG_submit)->message;
    msg_t m;
    msg_init(&m, type);
    m.header.request = submit->header.request;
    m.header.attempt = submit->header.attempt;
    return m;
}

static inline void give_ids(actor_t *world, uint32_t first, const uint32_t *ids, uint32_t count)
{
    msg_t m = about(world, MSG_tokens);
    m.tokens.first_index = first;
    m.tokens.ids_count = count;
    m.tokens.reused = 1 + m.header.attempt; /* an attempt leaves blocks for the next */
    memcpy(m.tokens.ids, ids, count * sizeof *ids);
    fake_tell(world, worker, &m);
}

/* Tell the text's tokens one message each from this index on; returns the next index. */
static inline uint32_t give_text(actor_t *world, uint32_t first, const char *text)
{
    uint32_t ids[256];
    size_t count = tokenizer_encode(tokenizer, text, strlen(text), true, ids, 256);
    for (size_t i = 0; i < count; i++) give_ids(world, first++, &ids[i], 1);
    return first;
}

static inline void finish(actor_t *world, finish_t reason, uint32_t tokens)
{
    msg_t m = about(world, MSG_finished);
    m.finished.reason = reason;
    m.finished.tokens = tokens;
    fake_tell(world, worker, &m);
}

static inline void give_error(actor_t *world, err_t error)
{
    msg_t m = about(world, MSG_failed);
    m.failed.error = error;
    fake_tell(world, prefill_lb, &m);
}

/* All "content" and "reasoning_content" texts of a stream behind each other. */
static inline const char *streamed(const char *field)
{
    static char text[ANSWER_MAX];
    char mark[64];
    size_t used = 0;
    snprintf(mark, sizeof mark, "\"%s\":\"", field);
    for (const char *at = strstr(http.text, mark); at != NULL; at = strstr(at, mark)) {
        at += strlen(mark);
        const char *end = at;
        while (*end != '"' || end[-1] == '\\') end++;
        memcpy(text + used, at, (size_t)(end - at));
        used += (size_t)(end - at);
    }
    text[used] = 0;
    return text;
}

static inline void assert_has(const char *wanted)
{
    if (strstr(http.text, wanted) == NULL) print_error("wanted %s in %s\n", wanted, http.text);
    assert_non_null(strstr(http.text, wanted));
}

static inline int load_tokenizer(void **state)
{
    error_text_t why;
    tokenizer = tokenizer_new(SOURCE_DIR "/models/tiny", &why);
    return tokenizer == NULL;
}

static inline int unload_tokenizer(void **state)
{
    tokenizer_destroy(&tokenizer);
    return 0;
}

#endif
