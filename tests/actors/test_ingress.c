/* tests/actors/test_ingress.c - a request's life at its owner: admission, tokens, failover, ends;
 * with the tiny model's tokenizer. */
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

enum { ANSWER_MAX = 1 << 18 };

/* The last HTTP exchange. */
static struct {
    uint64_t exchange;
    int status;
    uint32_t retry_after, ends;
    char allow[64], text[ANSWER_MAX];
    size_t size;
} http;
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

static void keep(const void *data, size_t size)
{
    assert_true(http.size + size < ANSWER_MAX);
    memcpy(http.text + http.size, data, size);
    http.size += size;
    http.text[http.size] = 0;
}

void actor_http_begin(actor_t *world, uint64_t exchange, const http_answer_t *answer)
{
    assert_int_equal(http.status, 0);
    http.exchange = exchange;
    http.status = answer->status;
    http.retry_after = answer->retry_after_seconds;
    snprintf(http.allow, sizeof http.allow, "%s", answer->allow == NULL ? "" : answer->allow);
}

void actor_http_write(actor_t *world, uint64_t exchange, const void *data, size_t size)
{
    assert_int_equal(http.ends, 0); /* nothing follows the end: I4 */
    if (exchange == http.exchange) keep(data, size);
}

void actor_http_end(actor_t *world, uint64_t exchange)
{
    http.ends++;
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

static void tell_peer(actor_t *world, msg_type_t type, role_t role)
{
    msg_t m;
    msg_init(&m, type);
    if (type == MSG_peer_up)
        m.peer_up.role = role;
    else
        m.peer_down.role = role;
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
}

/* With a worker of each kind. */
static actor_t *new_ingress(const char *more)
{
    const char *const settings[] = { "model.path=" SOURCE_DIR "/models/tiny", more, NULL };
    actor_t *world = fake_new(&ingress_class, settings);
    tell_peer(world, MSG_peer_up, ROLE_prefill_worker);
    tell_peer(world, MSG_peer_up, ROLE_decode_worker);
    return world;
}

static void destroy(actor_t *world)
{
    assert_true(world->class->is_idle(world->state));
    world->class->fini(world->state, world);
    fake_destroy(world);
}

static uint64_t ask(actor_t *world, const char *method, const char *path, const char *body)
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
    m.http_request.body = (bytes_t){ body, strlen(body) };
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    return exchange;
}

static uint64_t ask_stream(actor_t *world, const char *more)
{
    char body[1024];
    snprintf(body, sizeof body,
             "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true%s}", more);
    return ask(world, "POST", "/v1/chat/completions", body);
}

static const fake_sent_t *last(const actor_t *world, msg_type_t type)
{
    for (uint32_t i = world->sent_count; i > 0; i--) {
        if (world->sent[i - 1].message.type == type) return &world->sent[i - 1];
    }
    return NULL;
}

static uint32_t count_sent(const actor_t *world, msg_type_t type)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < world->sent_count; i++) count += world->sent[i].message.type == type;
    return count;
}

static msg_t about(const actor_t *world, msg_type_t type)
{
    const msg_t *submit = &last(world, MSG_submit)->message;
    msg_t m;
    msg_init(&m, type);
    m.header.request = submit->header.request;
    m.header.attempt = submit->header.attempt;
    return m;
}

static void give_ids(actor_t *world, uint32_t first, const uint32_t *ids, uint32_t count)
{
    msg_t m = about(world, MSG_tokens);
    m.tokens.first_index = first;
    m.tokens.ids_count = count;
    memcpy(m.tokens.ids, ids, count * sizeof *ids);
    fake_tell(world, worker, &m);
}

/* Tell the text's tokens one message each from this index on; returns the next index. */
static uint32_t give_text(actor_t *world, uint32_t first, const char *text)
{
    uint32_t ids[256];
    size_t count = tokenizer_encode(tokenizer, text, strlen(text), true, ids, 256);
    for (size_t i = 0; i < count; i++) give_ids(world, first++, &ids[i], 1);
    return first;
}

static void finish(actor_t *world, finish_t reason, uint32_t tokens)
{
    msg_t m = about(world, MSG_finished);
    m.finished.reason = reason;
    m.finished.tokens = tokens;
    m.finished.reused = 1;
    fake_tell(world, worker, &m);
}

static void give_error(actor_t *world, err_t error)
{
    msg_t m = about(world, MSG_failed);
    m.failed.error = error;
    fake_tell(world, prefill_lb, &m);
}

/* All "content" and "reasoning_content" texts of a stream behind each other. */
static const char *streamed(const char *field)
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

static void assert_has(const char *wanted)
{
    if (strstr(http.text, wanted) == NULL) print_error("wanted %s in %s\n", wanted, http.text);
    assert_non_null(strstr(http.text, wanted));
}

/* ---- streams ---- */

static void test_ingress_stream_splits_reasoning_and_ends_once(void **state)
{
    /* The whole way of a streamed answer: order of chunks, the split, usage, the end. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, ",\"stream_options\":{\"include_usage\":true}");
    assert_int_equal(last(world, MSG_submit)->to.role, ROLE_prefill_lb);
    assert_int_equal(http.status, 0);
    uint32_t next = give_text(world, 0, "I think\n</think>\n\nHello you");
    finish(world, FINISH_STOP, next);
    assert_int_equal(http.status, 200);
    assert_int_equal(http.ends, 1);
    assert_string_equal(streamed("reasoning_content"), "I think\\n");
    assert_string_equal(streamed("content"), "\\n\\nHello you");
    assert_true(strstr(http.text, "\"role\":\"assistant\"") <
                strstr(http.text, "reasoning_content"));
    assert_has("\"finish_reason\":\"stop\"");
    assert_has("\"choices\":[],\"usage\":{\"prompt_tokens\":");
    assert_has("\"prompt_cache_hit_tokens\":1,");
    assert_string_equal(http.text + http.size - 14, "data: [DONE]\n\n");
    assert_true(world->metrics[METRIC_requests_finished_total] == 1);
    destroy(world);
}

static void test_ingress_duplicates_and_old_attempts_change_nothing(void **state)
{
    /* I2 and I8: the first token comes twice by design, and the dead sometimes speak. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    uint32_t ids[2];
    assert_int_equal(tokenizer_encode(tokenizer, "ab", 2, false, ids, 2) > 0, 1);
    give_ids(world, 0, ids, 1);
    size_t size = http.size;
    give_ids(world, 0, ids, 1);
    assert_int_equal(http.size, size);
    msg_t old = about(world, MSG_tokens);
    give_error(world, ERR_LOST);
    fake_run(world, 1000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    old.tokens.first_index = 1;
    old.tokens.ids_count = 1;
    old.tokens.ids[0] = ids[0];
    fake_tell(world, worker, &old);
    assert_int_equal(http.size, size);
    assert_int_equal(last(world, MSG_cancel)->message.header.attempt, 0);
    finish(world, FINISH_LENGTH, 1);
    assert_int_equal(http.ends, 1);
    destroy(world);
}

/* What nobody who does not hold the current attempt may change. */
typedef struct {
    size_t size;
    uint32_t ends, submits;
    double finished, failed, generated;
} seen_t;

static seen_t see(const actor_t *world)
{
    return (seen_t){ http.size,
                     http.ends,
                     count_sent(world, MSG_submit),
                     world->metrics[METRIC_requests_finished_total],
                     world->metrics[METRIC_requests_failed_total],
                     world->metrics[METRIC_generation_tokens_total] };
}

static void assert_unmoved(const actor_t *world, seen_t before)
{
    seen_t now = see(world);
    assert_true(now.size == before.size && now.ends == before.ends &&
                now.submits == before.submits);
    assert_true(now.finished == before.finished && now.failed == before.failed &&
                now.generated == before.generated);
}

/* Everything that a worker or balancer can say of an attempt, as if it were the next thing to say.
 */
static void say_all(actor_t *world, uint32_t attempt, uint32_t next)
{
    static const msg_type_t types[] = { MSG_tokens, MSG_prompt_logprobs, MSG_failed, MSG_finished };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        msg_t m = about(world, types[i]);
        m.header.attempt = attempt;
        if (types[i] == MSG_tokens) {
            m.tokens.first_index = next;
            m.tokens.ids_count = 1;
            m.tokens.ids[0] = 66;
        }
        if (types[i] == MSG_failed) m.failed.error = ERR_INVALID;
        if (types[i] == MSG_finished) m.finished.tokens = next;
        fake_tell(world, worker, &m);
    }
}

static void test_ingress_only_the_current_attempt_is_heard(void **state)
{
    /* I8: tokens, ends, failures of an attempt that was given up, or was never made, change
     * nothing: neither while the next attempt runs nor while it waits to be submitted. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    uint32_t next = give_text(world, 0, "one");
    say_all(world, 1, next);
    give_error(world, ERR_LOST);
    seen_t waiting = see(world);
    for (uint32_t attempt = 0; attempt < 4; attempt++) say_all(world, attempt, next);
    assert_unmoved(world, waiting);
    fake_run(world, 1000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    seen_t running = see(world);
    say_all(world, 0, next);
    say_all(world, 2, next);
    assert_unmoved(world, running);
    assert_true(world->metrics[METRIC_messages_stale_total] == 4 * 7);
    next = give_text(world, next, " two</think>three");
    finish(world, FINISH_STOP, next);
    assert_string_equal(streamed("reasoning_content"), "one two");
    assert_string_equal(streamed("content"), "three");
    destroy(world);
}

static void test_ingress_answers_to_probes_of_old_attempts_are_not_believed(void **state)
{
    /* I8: a balancer that says it does not hold attempt 0 says nothing of attempt 1. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    give_error(world, ERR_LOST);
    fake_run(world, 1000);
    for (uint32_t second = 0; second < 4; second++) {
        fake_run(world, 1000000);
        msg_t m = about(world, MSG_request_held);
        m.header.attempt = second % 2 ? 0 : 2;
        fake_tell(world, prefill_lb, &m);
        fake_tell(world, decode_lb, &m);
        m.header.attempt = 1; /* right, but of nobody who keeps a ledger */
        fake_tell(world, worker, &m);
    }
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    finish(world, FINISH_STOP, 0);
    assert_int_equal(http.ends, 1);
    destroy(world);
}

static void test_ingress_nothing_follows_the_end(void **state)
{
    /* I4: a second end, or tokens that come after the first, reach no client and no counter;
     * whoever still sends tokens is told to stop. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    uint32_t next = give_text(world, 0, "one");
    finish(world, FINISH_STOP, next);
    assert_int_equal(http.ends, 1);
    uint32_t cancels = count_sent(world, MSG_cancel);
    seen_t over = see(world);
    say_all(world, 0, next);
    say_all(world, 1, next);
    assert_unmoved(world, over);
    assert_true(world->metrics[METRIC_messages_unexpected_total] == 8);
    assert_int_equal(count_sent(world, MSG_cancel), cancels + 4);
    destroy(world);
}

static void test_ingress_lost_worker_resumes_where_it_stopped(void **state)
{
    /* Failover: the same seed, the prompt and every streamed token, and no token lost or doubled.
     */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, ",\"max_tokens\":50");
    msg_t first = last(world, MSG_submit)->message;
    uint32_t next = give_text(world, 0, "one two");
    give_error(world, ERR_LOST);
    fake_run(world, 1000);
    const msg_t *second = &last(world, MSG_submit)->message;
    assert_int_equal(second->header.attempt, 1);
    assert_true(request_id_equal(second->header.request, first.header.request));
    assert_int_equal(second->submit.generated, next);
    assert_int_equal(second->submit.prompt_count, first.submit.prompt_count + next);
    assert_int_equal(second->submit.tokens.size, 4 * second->submit.prompt_count);
    assert_true(second->submit.sampling.seed == first.submit.sampling.seed);
    assert_int_equal(second->submit.max_tokens, 50);
    next = give_text(world, next, " three</think>four");
    finish(world, FINISH_STOP, next);
    assert_string_equal(streamed("reasoning_content"), "one two three");
    assert_string_equal(streamed("content"), "four");
    assert_true(world->metrics[METRIC_requests_resubmitted_total] == 1);
    destroy(world);
}

static void test_ingress_gap_in_tokens_starts_the_next_attempt(void **state)
{
    /* A message that was lost between two others must not shift the text. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    uint32_t ids[1] = { 100 };
    give_ids(world, 0, ids, 1);
    give_ids(world, 2, ids, 1);
    fake_run(world, 1000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    assert_int_equal(last(world, MSG_submit)->message.submit.generated, 1);
    finish(world, FINISH_STOP, 9); /* tokens are missing here, too */
    fake_run(world, 1000000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 2);
    finish(world, FINISH_STOP, 1);
    destroy(world);
}

static void test_ingress_attempts_run_out_with_one_error(void **state)
{
    /* A request that kills workers must end, and say so in the stream. */
    actor_t *world = new_ingress("limits.attempts_max=3");
    ask_stream(world, "");
    give_text(world, 0, "x");
    for (int i = 0; i < 3; i++) {
        give_error(world, ERR_ENGINE);
        fake_run(world, 200000);
    }
    assert_int_equal(http.ends, 1);
    assert_has("data: {\"error\":{\"message\":\"The request failed after 3 of 3 attempts");
    assert_null(strstr(http.text, "[DONE]"));
    assert_true(world->metrics[METRIC_requests_failed_total] == 1);
    destroy(world);
}

static void test_ingress_stop_string_over_tokens_is_never_half_emitted(void **state)
{
    /* Clients that asked for a stop string must not see its beginning; the work behind it must end.
     */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, ",\"stop\":[\"STOPHERE\"]");
    give_text(world, 0, "</think>go on ST and STOPHERE never seen");
    assert_int_equal(http.ends, 1);
    assert_string_equal(streamed("content"), "go on ST and ");
    assert_has("\"finish_reason\":\"stop\"");
    assert_int_equal(count_sent(world, MSG_cancel) >= 3, 1);
    destroy(world);
}

static void test_ingress_client_that_leaves_cancels_everywhere(void **state)
{
    /* Work would go on for nobody. */
    actor_t *world = new_ingress(NULL);
    uint64_t exchange = ask_stream(world, ",\"n\":2");
    assert_int_equal(count_sent(world, MSG_submit), 2);
    msg_t m;
    msg_init(&m, MSG_http_closed);
    m.http_closed.exchange = exchange;
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    assert_int_equal(count_sent(world, MSG_cancel), 4);
    assert_true(world->metrics[METRIC_requests_cancelled_total] == 2);
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    destroy(world);
}

/* ---- whole answers ---- */

static void test_ingress_whole_answer_has_every_choice(void **state)
{
    /* n choices are requests of their own with seeds of their own; the answer waits for all. */
    actor_t *world = new_ingress(NULL);
    ask(world, "POST", "/v1/completions",
        "{\"prompt\":[\"The\",\"A b\"],\"n\":2,\"seed\":5,\"max_tokens\":8}");
    assert_int_equal(count_sent(world, MSG_submit), 4);
    msg_t submits[4];
    for (uint32_t i = 0; i < 4; i++) submits[i] = world->sent[i].message;
    assert_true(submits[0].submit.sampling.seed == 5 && submits[2].submit.sampling.seed == 5);
    assert_true(submits[1].submit.sampling.seed != 5 &&
                submits[1].submit.sampling.seed == submits[3].submit.sampling.seed);
    for (uint32_t i = 0; i < 4; i++) {
        world->sent[world->sent_count - 1] = (fake_sent_t){ prefill_lb, submits[3 - i] };
        char text[16];
        snprintf(text, sizeof text, "w%u", 3 - i);
        finish(world, FINISH_LENGTH, give_text(world, 0, text));
    }
    assert_int_equal(http.status, 200);
    assert_has("{\"index\":0,\"text\":\"w0\",\"logprobs\":null,\"finish_reason\":\"length\"},{"
               "\"index\":1,\"text\":\"w1\"");
    assert_has("{\"index\":3,\"text\":\"w3\"");
    assert_has("\"prompt_cache_hit_tokens\":2,");
    destroy(world);
}

static void test_ingress_failing_choice_ends_the_whole_call(void **state)
{
    /* A client cannot use an answer with a hole: it gets one error, the other choices are stopped,
     * and each of them is counted once. */
    actor_t *world = new_ingress(NULL);
    for (int is_stream = 0; is_stream < 2; is_stream++) {
        double failed = world->metrics[METRIC_requests_failed_total];
        uint32_t first = world->sent_count;
        ask(world, "POST", "/v1/completions",
            is_stream ? "{\"prompt\":\"The\",\"n\":3,\"stream\":true}"
                      : "{\"prompt\":\"The\",\"n\":3}");
        msg_t submits[3];
        for (uint32_t i = 0; i < 3; i++) submits[i] = world->sent[first + i].message;
        give_text(world, 0, "w");
        world->sent[world->sent_count - 1] = (fake_sent_t){ prefill_lb, submits[0] };
        finish(world, FINISH_STOP, give_text(world, 0, "v"));
        world->sent[world->sent_count - 1] = (fake_sent_t){ prefill_lb, submits[1] };
        uint32_t cancels = count_sent(world, MSG_cancel);
        give_error(world, ERR_CONTEXT);
        assert_int_equal(http.ends, 1);
        assert_int_equal(http.status, is_stream ? 200 : 400);
        assert_has("\"error\":{\"message\":");
        assert_null(strstr(http.text, "[DONE]"));
        assert_true(world->metrics[METRIC_requests_failed_total] == failed + 2);
        assert_int_equal(count_sent(world, MSG_cancel) >= cancels + 3, 1);
    }
    assert_true(world->metrics[METRIC_requests_accepted_total] ==
                world->metrics[METRIC_requests_finished_total] +
                    world->metrics[METRIC_requests_failed_total]);
    destroy(world);
}

static void test_ingress_chat_answer_splits_reasoning(void **state)
{
    /* The evaluation adds reasoning, the mark and the content up again: no byte may be stripped. */
    actor_t *world = new_ingress(NULL);
    ask(world, "POST", "/v1/chat/completions",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}");
    finish(world, FINISH_STOP, give_text(world, 0, "\n\n</think>\n\nTo \"specify\"."));
    assert_has("\"message\":{\"role\":\"assistant\",\"content\":\"\\n\\nTo "
               "\\\"specify\\\".\",\"reasoning_content\":\"\\n\\n\",\"refusal\":null}");
    assert_has("\"object\":\"chat.completion\"");
    destroy(world);
}

static void test_ingress_logprobs_in_both_shapes(void **state)
{
    /* Clients read probabilities by position: one list too short shifts them all. */
    actor_t *world = new_ingress(NULL);
    ask(world, "POST", "/v1/completions",
        "{\"prompt\":\"a b\",\"max_tokens\":2,\"logprobs\":1,\"echo\":true}");
    uint32_t prompt = last(world, MSG_submit)->message.submit.prompt_count;
    assert_int_equal(last(world, MSG_submit)->message.submit.sampling.prompt_logprobs, 1);
    msg_t m = about(world, MSG_prompt_logprobs);
    m.prompt_logprobs.first_index = 1;
    m.prompt_logprobs.logprobs_count = prompt - 1;
    for (uint32_t i = 0; i + 1 < prompt; i++) m.prompt_logprobs.logprobs[i] = -0.5f;
    fake_tell(world, worker, &m);
    msg_t t = about(world, MSG_tokens);
    t.tokens.ids_count = t.tokens.logprobs_count = 1;
    t.tokens.ids[0] = 66;
    t.tokens.logprobs[0] = -0.25f;
    t.tokens.top_count = t.tokens.top_ids_count = t.tokens.top_logprobs_count = 1;
    t.tokens.top_ids[0] = 67;
    t.tokens.top_logprobs[0] = -0.125f;
    fake_tell(world, worker, &t);
    finish(world, FINISH_LENGTH, 1);
    assert_has("\"text\":\"a b");
    assert_has("\"token_logprobs\":[null,-0.5");
    assert_has(",-0.25],\"top_logprobs\":[null,");
    assert_has("\"text_offset\":[0,1");
    destroy(world);
}

/* ---- refusals ---- */

static void test_ingress_refusals_have_their_status_and_words(void **state)
{
    /* Each is what a client library turns into its own exception. */
    static const struct {
        const char *method, *path, *body;
        int status;
        const char *wanted;
    } cases[] = {
        { "POST", "/v1/chat/completions", "{", 400, "not valid JSON" },
        { "POST", "/v1/completions", "{\"prompt\":\"x\",\"model\":\"other\"}", 404,
          "\"code\":\"model_not_found\"" },
        { "POST", "/v1/completions", "{\"prompt\":\"x\",\"max_tokens\":4096}", 400,
          "\"code\":\"context_length_exceeded\"" },
        { "POST", "/v1/completions", "{\"prompt\":\"\"}", 400, "\"param\":\"prompt\"" },
        { "GET", "/v1/nothing", "", 404, "nothing at /v1/nothing" },
        { "GET", "/v1/completions", "", 405, "it allows POST, OPTIONS" },
        { "DELETE", "/health", "", 405, "it allows GET, HEAD, OPTIONS" },
        { "GET", "/v1/models/other", "", 404, "model_not_found" },
        { "GET", "/v1/models/tiny", "", 200, "\"max_model_len\":4096" },
        { "GET", "/v1/models", "", 200, "\"id\":\"tiny\"" },
        { "GET", "/version", "", 200, "version" },
        { "OPTIONS", "/health", "", 204, "" },
        { "POST", "/tokenize", "{\"prompt\":\"a\"}", 200, "{\"count\":1," },
        { "POST", "/detokenize", "{\"tokens\":[66,67]}", 200, "{\"prompt\":\"" },
    };
    actor_t *world = new_ingress(NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ask(world, cases[i].method, cases[i].path, cases[i].body);
        assert_int_equal(http.status, cases[i].status);
        assert_has(cases[i].wanted);
    }
    assert_int_equal(count_sent(world, MSG_submit), 0);
    destroy(world);
}

static void test_ingress_keys_are_asked_for(void **state)
{
    /* An open door where the operator set a key. */
    actor_t *world = new_ingress("http.api_keys=sesame");
    ask(world, "GET", "/v1/models", "");
    assert_int_equal(http.status, 401);
    assert_has("invalid_api_key");
    static const char *const keys[] = { "Bearer sesame",       "Bearer sesam", "Bearer sesame1",
                                        "Bearer sesamesesame", "sesame",       "Bearer " };
    for (size_t i = 0; i < 6; i++) {
        msg_t m;
        msg_init(&m, MSG_http_request);
        http.status = 0;
        http.ends = 0;
        m.http_request.exchange = 1000 + i;
        (void)snprintf(m.http_request.method, sizeof m.http_request.method, "%s", "GET");
        (void)snprintf(m.http_request.path, sizeof m.http_request.path, "%s", "/v1/models");
        (void)snprintf(m.http_request.authorization, sizeof m.http_request.authorization, "%s",
                       keys[i]);
        fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
        assert_int_equal(http.status, i == 0 ? 200 : 401);
    }
    destroy(world);
}

static void test_ingress_full_queue_answers_429(void **state)
{
    /* Back-pressure: the client must learn when to come again. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    give_error(world, ERR_OVERLOAD);
    assert_int_equal(http.status, 429);
    assert_int_equal(http.retry_after, 1);
    assert_has("rate_limit_error");
    world->send_answer = ERR_OVERLOAD;
    ask_stream(world, "");
    assert_int_equal(http.status, 429);
    destroy(world);
}

static void test_ingress_table_full_answers_429_and_recovers(void **state)
{
    /* The tables are fixed: past them a refusal, never a crash. */
    actor_t *world = new_ingress("limits.requests_max=2");
    uint64_t exchange = ask_stream(world, ",\"n\":2");
    assert_int_equal(http.status, 0);
    ask_stream(world, "");
    assert_int_equal(http.status, 429);
    msg_t m;
    msg_init(&m, MSG_http_closed);
    m.http_closed.exchange = exchange;
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    ask_stream(world, "");
    assert_int_equal(http.status, 0);
    give_error(world, ERR_UNAVAILABLE);
    assert_int_equal(http.status, 503);
    destroy(world);
}

/* ---- silence ---- */

static void answer_probe(actor_t *world, bool is_held)
{
    msg_t m = about(world, MSG_request_held);
    m.request_held.is_held = is_held;
    fake_tell(world, prefill_lb, &m);
    m.request_held.is_held = 0;
    fake_tell(world, decode_lb, &m);
}

static void test_ingress_silence_is_probed_and_twice_nobody_means_lost(void **state)
{
    /* A balancer that restarts forgets its queue: nobody else would ever ask for the request again.
     */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    fake_run(world, 1000000);
    assert_int_equal(count_sent(world, MSG_request_probe), 2);
    answer_probe(world, true);
    fake_run(world, 1000000);
    answer_probe(world, false);
    fake_run(world, 1000000);
    answer_probe(world, false);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 0);
    fake_run(world, 1100000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    finish(world, FINISH_STOP, 0);
    destroy(world);
}

static void test_ingress_new_request_waits_for_a_balancer_that_restarts(void **state)
{
    /* A restart takes a second: clients must not see it, and the request goes as soon as it is
     * over. */
    actor_t *world = new_ingress(NULL);
    world->send_answer = ERR_LOST;
    tell_peer(world, MSG_peer_down, ROLE_prefill_lb);
    ask_stream(world, ",\"n\":2");
    fake_run(world, 2000000);
    assert_int_equal(http.status, 0);
    assert_int_equal(count_sent(world, MSG_submit), 0);
    world->send_answer = ERR_OK;
    tell_peer(world, MSG_peer_up, ROLE_prefill_lb);
    fake_run(world, 1000);
    assert_int_equal(count_sent(world, MSG_submit), 2);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 0);
    fake_run(world, 4000000); /* what was borne before counts no more */
    assert_int_equal(http.status, 0);
    give_error(world, ERR_CONTEXT);
    assert_int_equal(http.status, 400);
    destroy(world);
}

static void test_ingress_balancer_that_stays_away_ends_in_503(void **state)
{
    /* Waiting has an end that a client can act on; the deadline, where it is sooner. */
    actor_t *world = new_ingress(NULL);
    world->send_answer = ERR_LOST;
    ask_stream(world, "");
    fake_run(world, 4900000);
    assert_int_equal(http.status, 0);
    fake_run(world, 500000);
    assert_int_equal(http.status, 503);
    assert_int_equal(http.retry_after, 1);
    assert_has("no worker can take the request now");
    destroy(world);
    world = new_ingress("limits.deadline_seconds=2");
    world->send_answer = ERR_LOST;
    ask_stream(world, "");
    fake_run(world, 2100000);
    assert_int_equal(http.status, 504);
    destroy(world);
}

static void test_ingress_running_request_outlives_a_short_fault_but_not_a_long_one(void **state)
{
    /* The queue of a balancer whose workers are all gone would hold a request until its deadline.
     */
    actor_t *world = new_ingress(NULL);
    for (int is_decoding = 0; is_decoding < 2; is_decoding++) {
        ask_stream(world, "");
        tell_peer(world, MSG_peer_down, ROLE_prefill_worker);
        for (uint32_t second = 0; second < 9; second++) {
            fake_run(world, 1000000);
            if (http.ends > 0) break;
            if (second < 4) assert_int_equal(http.status, 0);
            msg_t m = about(world, MSG_request_held);
            m.request_held.is_held = !is_decoding;
            fake_tell(world, prefill_lb, &m);
            m.request_held.is_held = (uint32_t)is_decoding;
            fake_tell(world, decode_lb, &m);
        }
        assert_int_equal(http.status, is_decoding ? 0 : 503);
        if (!is_decoding) assert_int_equal(http.retry_after, 1);
        tell_peer(world, MSG_peer_up, ROLE_prefill_worker);
    }
    finish(world, FINISH_STOP, 0);
    assert_int_equal(http.ends, 1);
    destroy(world);
}

static void test_ingress_words_of_a_ledger_before_its_restart_do_not_count(void **state)
{
    /* A balancer that just came up knows nothing yet: its "not held" is no proof of a loss. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    fake_run(world, 1000000);
    answer_probe(world, false);
    fake_run(world, 1000000);
    answer_probe(world, false);
    tell_peer(world, MSG_peer_up, ROLE_decode_lb);
    fake_run(world, 1000000);
    answer_probe(world, false);
    fake_run(world, 1000000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 0);
    answer_probe(world, false);
    fake_run(world, 1100000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    finish(world, FINISH_STOP, 0);
    destroy(world);
}

static void test_ingress_deadline_ends_a_silent_request(void **state)
{
    /* I1: one terminal event before the deadline plus a second, whatever happens. */
    actor_t *world = new_ingress("limits.deadline_seconds=3");
    ask_stream(world, "");
    assert_true(last(world, MSG_submit)->message.submit.deadline_us == 3000000);
    fake_run(world, 3100000);
    assert_int_equal(http.status, 504);
    assert_int_equal(http.ends, 1);
    assert_non_null(last(world, MSG_cancel));
    destroy(world);
}

static void test_ingress_lost_word_of_the_end_is_found(void **state)
{
    /* All tokens came, only `finished` did not: another attempt would generate past the end. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, ",\"max_tokens\":2");
    uint32_t ids[2] = { 66, 67 };
    give_ids(world, 0, ids, 2);
    give_error(world, ERR_LOST);
    assert_int_equal(http.ends, 1);
    assert_has("\"finish_reason\":\"length\"");
    destroy(world);
}

/* ---- ZeroMQ clients ---- */

static const address_t client = { ROLE_client, 3 };

static void submit_client(actor_t *world, uint32_t kind, const char *content)
{
    msg_t m;
    msg_init(&m, MSG_client_submit);
    m.header.request = (request_id_t){ 1, 2 };
    m.client_submit.kind = kind;
    m.client_submit.max_tokens = 8;
    m.client_submit.sampling = sampling_default;
    m.client_submit.content = (bytes_t){ content, strlen(content) };
    fake_tell(world, client, &m);
}

static void test_ingress_client_gets_tokens_and_its_end(void **state)
{
    /* The same service without HTTP. */
    actor_t *world = new_ingress(NULL);
    submit_client(world, 2, "[{\"role\":\"user\",\"content\":\"hi\"}]");
    uint32_t next = give_text(world, 0, "r</think>ok");
    const fake_sent_t *tokens = last(world, MSG_client_tokens);
    assert_int_equal(tokens->to.index, 3);
    assert_true(tokens->message.header.request.lo == 2);
    assert_true(tokens->message.client_tokens.text.size > 0 &&
                tokens->message.client_tokens.reasoning.size == 0);
    finish(world, FINISH_STOP, next);
    const msg_client_finished_t *end = &last(world, MSG_client_finished)->message.client_finished;
    assert_int_equal(end->completion_tokens, next);
    assert_true(end->reasoning_tokens > 0 && end->reasoning_tokens < next);
    destroy(world);
}

static void test_ingress_client_cancel_and_departure_end_its_requests(void **state)
{
    /* A client's requests must not outlive it. */
    actor_t *world = new_ingress(NULL);
    submit_client(world, 0, "some text");
    submit_client(world, 0, "the same name again");
    assert_int_equal(last(world, MSG_client_failed)->message.client_failed.error, ERR_INVALID);
    msg_t m;
    msg_init(&m, MSG_client_cancel);
    m.header.request = (request_id_t){ 1, 2 };
    fake_tell(world, client, &m);
    assert_int_equal(last(world, MSG_client_failed)->message.client_failed.error, ERR_CANCELLED);
    submit_client(world, 0, "some text");
    msg_init(&m, MSG_peer_down);
    m.peer_down.role = ROLE_client;
    m.peer_down.index = 3;
    fake_tell(world, client, &m);
    assert_true(world->metrics[METRIC_requests_cancelled_total] == 2);
    submit_client(world, 1, "abc\xff");
    assert_int_equal(last(world, MSG_client_failed)->message.client_failed.error, ERR_INVALID);
    destroy(world);
}

static void test_ingress_health_names_what_is_missing(void **state)
{
    /* I12: a load balancer must not be sent to a server that cannot answer. */
    actor_t *world = new_ingress(NULL);
    tell_peer(world, MSG_peer_down, ROLE_prefill_worker);
    ask(world, "GET", "/health", "");
    assert_int_equal(http.status, 503);
    assert_has("prefill_worker");
    tell_peer(world, MSG_peer_up, ROLE_prefill_worker);
    ask(world, "GET", "/health", "");
    assert_int_equal(http.status, 200);
    uint64_t exchange = ask_stream(world, "");
    world->now_us += 31000000;
    ask(world, "GET", "/health", "");
    assert_has("progress");
    assert_int_equal(http.status, 503);
    msg_t m;
    msg_init(&m, MSG_http_closed);
    m.http_closed.exchange = exchange;
    fake_tell(world, worker, &m);
    destroy(world);
}

/* ---- texts ---- */

static void link_model(const char *dir, const char *name)
{
    char from[512], to[512];
    snprintf(from, sizeof from, SOURCE_DIR "/models/tiny/%s", name);
    snprintf(to, sizeof to, "%s/%s", dir, name);
    assert_int_equal(symlink(from, to), 0);
}

/* The tiny model, but its texts begin with a token as DeepSeek-V3's do. */
static void make_beginning_model(char *dir)
{
    static char text[1 << 16];
    char path[512];
    FILE *file = fopen(SOURCE_DIR "/models/tiny/tokenizer_config.json", "rb");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    char *flag = strstr(text, "\"add_bos_token\": false");
    assert_non_null(flag);
    memcpy(flag, "\"add_bos_token\": true ", 22);
    assert_non_null(mkdtemp(dir));
    link_model(dir, "config.json");
    link_model(dir, "tokenizer.json");
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void unmake_model(const char *dir)
{
    static const char *const names[] = { "config.json", "tokenizer.json", "tokenizer_config.json" };
    char path[512];
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(dir), 0);
}

static uint32_t first_token(actor_t *world, const char *body, uint32_t *count)
{
    uint64_t exchange = ask(world, "POST", "/v1/completions", body);
    const msg_submit_t *submit = &last(world, MSG_submit)->message.submit;
    uint32_t first = ((const uint32_t *)submit->tokens.data)[0];
    *count = submit->prompt_count;
    msg_t m;
    msg_init(&m, MSG_http_closed);
    m.http_closed.exchange = exchange;
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    return first;
}

static void test_ingress_text_prompt_begins_as_the_tokenizer_says(void **state)
{
    /* A model that was trained on texts with a begin token writes nonsense without it, and the
     * other way round. */
    char dir[] = "/tmp/troupe-test-begin-XXXXXX", setting[128];
    uint32_t bare = 0, begun = 0;
    actor_t *world = new_ingress(NULL);
    assert_int_not_equal(first_token(world, "{\"prompt\":\"The cat\"}", &bare), 0);
    destroy(world);
    make_beginning_model(dir);
    snprintf(setting, sizeof setting, "model.path=%s", dir);
    world = new_ingress(setting);
    assert_int_equal(first_token(world, "{\"prompt\":\"The cat\"}", &begun), 0);
    assert_int_equal(begun, bare + 1);
    assert_int_not_equal(
        first_token(world, "{\"prompt\":\"The cat\",\"add_special_tokens\":false}", &begun), 0);
    assert_int_equal(begun, bare);
    assert_int_equal(first_token(world, "{\"prompt\":[66,67]}", &begun),
                     66); /* ids stay as they are */
    assert_int_equal(begun, 2);
    ask(world, "POST", "/tokenize", "{\"prompt\":\"a\"}");
    assert_has("{\"count\":2,");
    ask(world, "POST", "/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}");
    assert_has("{\"count\":5,"); /* the template's begin token is the only one */
    destroy(world);
    unmake_model(dir);
}

static void test_ingress_text_beyond_every_context_is_refused_unread(void **state)
{
    /* Hundreds of megabytes of scratch would become resident for a prompt that cannot fit. */
    enum { BYTES = 16 << 20 };
    char *body = malloc(BYTES + 64);
    assert_non_null(body);
    actor_t *world = new_ingress("http.body_bytes_max=1073741824");
    size_t used = (size_t)snprintf(body, 64, "{\"prompt\":\"");
    memset(body + used, 'a', BYTES);
    memcpy(body + used + BYTES, "\"}", 3);
    ask(world, "POST", "/v1/completions", body);
    assert_int_equal(http.status, 400);
    assert_has("context_length_exceeded");
    destroy(world);
    free(body);
}

static int load(void **state)
{
    error_text_t why;
    tokenizer = tokenizer_new(SOURCE_DIR "/models/tiny", &why);
    return tokenizer == NULL;
}

static int unload(void **state)
{
    tokenizer_destroy(&tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ingress_stream_splits_reasoning_and_ends_once),
        cmocka_unit_test(test_ingress_duplicates_and_old_attempts_change_nothing),
        cmocka_unit_test(test_ingress_only_the_current_attempt_is_heard),
        cmocka_unit_test(test_ingress_answers_to_probes_of_old_attempts_are_not_believed),
        cmocka_unit_test(test_ingress_nothing_follows_the_end),
        cmocka_unit_test(test_ingress_lost_worker_resumes_where_it_stopped),
        cmocka_unit_test(test_ingress_gap_in_tokens_starts_the_next_attempt),
        cmocka_unit_test(test_ingress_attempts_run_out_with_one_error),
        cmocka_unit_test(test_ingress_stop_string_over_tokens_is_never_half_emitted),
        cmocka_unit_test(test_ingress_client_that_leaves_cancels_everywhere),
        cmocka_unit_test(test_ingress_whole_answer_has_every_choice),
        cmocka_unit_test(test_ingress_failing_choice_ends_the_whole_call),
        cmocka_unit_test(test_ingress_chat_answer_splits_reasoning),
        cmocka_unit_test(test_ingress_logprobs_in_both_shapes),
        cmocka_unit_test(test_ingress_refusals_have_their_status_and_words),
        cmocka_unit_test(test_ingress_keys_are_asked_for),
        cmocka_unit_test(test_ingress_full_queue_answers_429),
        cmocka_unit_test(test_ingress_table_full_answers_429_and_recovers),
        cmocka_unit_test(test_ingress_silence_is_probed_and_twice_nobody_means_lost),
        cmocka_unit_test(test_ingress_new_request_waits_for_a_balancer_that_restarts),
        cmocka_unit_test(test_ingress_balancer_that_stays_away_ends_in_503),
        cmocka_unit_test(test_ingress_running_request_outlives_a_short_fault_but_not_a_long_one),
        cmocka_unit_test(test_ingress_words_of_a_ledger_before_its_restart_do_not_count),
        cmocka_unit_test(test_ingress_deadline_ends_a_silent_request),
        cmocka_unit_test(test_ingress_lost_word_of_the_end_is_found),
        cmocka_unit_test(test_ingress_client_gets_tokens_and_its_end),
        cmocka_unit_test(test_ingress_client_cancel_and_departure_end_its_requests),
        cmocka_unit_test(test_ingress_health_names_what_is_missing),
        cmocka_unit_test(test_ingress_text_prompt_begins_as_the_tokenizer_says),
        cmocka_unit_test(test_ingress_text_beyond_every_context_is_refused_unread),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
