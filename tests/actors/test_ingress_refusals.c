/* tests/actors/test_ingress_refusals.c - what ingress refuses, in which words, and where that
 * begins. */
#include "tests/actors/ingress_harness.h"

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
        { "POST", "/detokenize", "{\"tokens\":[[66]]}", 400, "one array of token ids" },
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

static void test_ingress_body_that_any_web_page_may_send_is_refused(void **state)
{
    /* A form on a page would have its reader's browser work here; and curl -d, which sends a form's
     * type unless told otherwise, deserves to be told. */
    static const struct {
        const char *type;
        bool has_origin;
        int status;
    } cases[] = {
        { "application/json", true, 200 },
        { "Application/JSON; charset=utf-8", false, 200 },
        { "application/json ;charset=utf-8", false, 200 },
        { "", false, 200 },
        { "", true, 415 },
        { "application/x-www-form-urlencoded", false, 415 },
        { "multipart/form-data; boundary=x", true, 415 },
        { "text/plain;charset=UTF-8", true, 415 },
        { "text/plain; application/json", false, 415 },
        { "application/jsonp", false, 415 },
        { ";application/json", false, 415 },
    };
    actor_t *world = new_ingress(NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        content_type = cases[i].type;
        has_origin = cases[i].has_origin;
        ask(world, "POST", "/tokenize", "{\"prompt\":\"a\"}");
        assert_int_equal(http.status, cases[i].status);
        if (http.status == 200) continue;
        assert_has("with the header 'Content-Type: application/json'");
        assert_has("\"code\":\"media_type\"");
        ask(world, "GET", "/v1/models", "");
        assert_int_equal(http.status, 200);
    }
    content_type = "application/json";
    has_origin = false;
    destroy(world);
}

static void ask_text(actor_t *world, size_t bytes)
{
    char *body = malloc(bytes + 16);
    assert_non_null(body);
    size_t head = (size_t)snprintf(body, 16, "{\"prompt\":\"");
    memset(body + head, 'a', bytes);
    memcpy(body + head + bytes, "\"}", 3);
    ask(world, "POST", "/v1/completions", body);
    fake_run(world, 0);
    free(body);
}

static void test_ingress_text_that_cannot_fit_is_not_tokenised(void **state)
{
    /* Megabytes of text would keep ingress from everybody for seconds, to be refused all the same.
     */
    actor_t *world = new_ingress(NULL);
    ask_text(world, 2 << 20);
    assert_int_equal(http.status, 400);
    assert_has("no text of more than");
    destroy(world);
}

static void test_ingress_text_beyond_every_context_is_refused_unread(void **state)
{
    /* Hundreds of megabytes of scratch would become resident for a prompt that cannot fit. */
    actor_t *world = new_ingress("http.body_bytes_max=1073741824");
    ask_text(world, 16 << 20);
    assert_int_equal(http.status, 400);
    assert_has("context_length_exceeded");
    destroy(world);
}

static void test_ingress_keys_are_asked_for(void **state)
{
    /* An open door where the operator set a key. */
    actor_t *world = new_ingress("http.api_keys=sesame");
    ask(world, "GET", "/v1/models", "");
    assert_int_equal(http.status, 401);
    assert_has("invalid_api_key");
    static const char *const keys[] = { "Bearer sesame",  "bearer  sesame",      "Bearer sesam",
                                        "Bearer sesame1", "Bearer sesamesesame", "sesame",
                                        "Bearer " };
    for (size_t i = 0; i < 7; i++) {
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
        assert_int_equal(http.status, i < 2 ? 200 : 401);
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

static void ask_long(actor_t *world, uint32_t prompts, uint32_t tokens, const char *more)
{
    static char body[1 << 16];
    size_t size = (size_t)snprintf(body, sizeof body, "{\"prompt\":[");
    for (uint32_t i = 0; i < prompts; i++) {
        size += (size_t)snprintf(body + size, sizeof body - size, i == 0 ? "[66" : ",[66");
        for (uint32_t k = 1; k < tokens; k++)
            size += (size_t)snprintf(body + size, sizeof body - size, ",66");
        size += (size_t)snprintf(body + size, sizeof body - size, "]");
    }
    snprintf(body + size, sizeof body - size, "],%s}", more);
    ask(world, "POST", "/v1/completions", body);
}

static void test_ingress_more_than_it_ever_holds_is_no_429(void **state)
{
    /* A client that is told to come again would do so for ever. */
    actor_t *world = new_ingress("limits.requests_max=2");
    ask_stream(world, ",\"n\":3");
    assert_int_equal(http.status, 400);
    assert_has("at most 2 requests");
    assert_has("\"param\":\"n\"");
    ask(world, "POST", "/v1/completions", "{\"prompt\":\"a\",\"n\":3,\"best_of\":3}");
    assert_int_equal(http.status, 400);
    assert_has("\"param\":\"n\"");
    ask(world, "POST", "/v1/completions", "{\"prompt\":[\"a\",\"b\",\"c\"]}");
    assert_int_equal(http.status, 400);
    assert_has("\"param\":\"prompt\"");
    ask(world, "POST", "/v1/completions", "{\"prompt\":[\"a\",\"b\"],\"n\":2}");
    assert_int_equal(http.status, 400);
    assert_has("\"param\":\"prompt\"");
    assert_int_equal(count_sent(world, MSG_submit), 0);
    destroy(world);
    /* Nor for what its balancers queue beside the 64 that run. */
    world = new_ingress("limits.queue_max=4");
    ask_stream(world, ",\"n\":69");
    assert_int_equal(http.status, 400);
    assert_has("at most 68 requests");
    assert_has("\"param\":\"n\"");
    assert_int_equal(count_sent(world, MSG_submit), 0);
    destroy(world);
    /* Nor for tokens: of long prompts even an idle server has no room for many. */
    world = new_ingress("limits.requests_max=128");
    ask_long(world, 1, 4000, "\"n\":20");
    assert_int_equal(http.status, 400);
    assert_has("\"param\":\"n\"");
    assert_has("tokens of prompts");
    ask_long(world, 2, 4000, "\"n\":10");
    assert_int_equal(http.status, 400);
    assert_has("\"param\":\"prompt\"");
    assert_int_equal(count_sent(world, MSG_submit), 0);
    destroy(world);
}

static void test_ingress_prompt_as_long_as_the_context_can_be_scored(void **state)
{
    /* Nothing is generated, so nothing needs room behind it. */
    actor_t *world = new_ingress(NULL);
    ask_long(world, 1, 4097, "\"echo\":true,\"max_tokens\":0,\"logprobs\":0");
    assert_int_equal(http.status, 400);
    assert_has("context_length_exceeded");
    ask_long(world, 1, 4096, "\"echo\":true,\"max_tokens\":1,\"logprobs\":0");
    assert_int_equal(http.status, 400);
    assert_has("context_length_exceeded");
    ask_long(world, 1, 4096, "\"echo\":true,\"max_tokens\":0,\"logprobs\":0");
    assert_int_equal(http.status, 0);
    assert_int_equal(last(world, MSG_submit)->message.submit.prompt_count, 4096);
    for (uint32_t at = 1; at < 4096; at += PROMPT_LOGPROBS_MAX) {
        msg_t m = about(world, MSG_prompt_logprobs);
        m.prompt_logprobs.first_index = at;
        m.prompt_logprobs.logprobs_count =
            4096 - at < PROMPT_LOGPROBS_MAX ? 4096 - at : PROMPT_LOGPROBS_MAX;
        fake_tell(world, worker, &m);
    }
    finish(world, FINISH_LENGTH, give_text(world, 0, "x"));
    assert_int_equal(http.status, 200);
    assert_has("\"completion_tokens\":0,\"total_tokens\":4096");
    destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ingress_refusals_have_their_status_and_words),
        cmocka_unit_test(test_ingress_body_that_any_web_page_may_send_is_refused),
        cmocka_unit_test(test_ingress_text_that_cannot_fit_is_not_tokenised),
        cmocka_unit_test(test_ingress_text_beyond_every_context_is_refused_unread),
        cmocka_unit_test(test_ingress_keys_are_asked_for),
        cmocka_unit_test(test_ingress_full_queue_answers_429),
        cmocka_unit_test(test_ingress_table_full_answers_429_and_recovers),
        cmocka_unit_test(test_ingress_more_than_it_ever_holds_is_no_429),
        cmocka_unit_test(test_ingress_prompt_as_long_as_the_context_can_be_scored),
    };
    return cmocka_run_group_tests(tests, load_tokenizer, unload_tokenizer);
}
