/* tests/actors/test_ingress.c - a request's life at its owner: tokens, answers, clients, ends. */
#include "tests/actors/ingress_harness.h"

static msg_t leave(actor_t *world, uint64_t exchange)
{
    msg_t m;
    msg_init(&m, MSG_http_closed);
    m.http_closed.exchange = exchange;
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    return m;
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

static void test_ingress_roles_of_all_choices_come_first(void **state)
{
    /* OpenAI's own client makes room for choices in the order of their first chunks. */
    actor_t *world = new_ingress(NULL);
    uint64_t exchange = ask_stream(world, ",\"n\":3");
    give_text(world, 0, "</think>last first");
    const char *roles[3], *text = strstr(http.text, "\"delta\":{\"content\":\"");
    for (uint32_t i = 0; i < 3; i++) {
        char mark[64];
        snprintf(mark, sizeof mark, "\"index\":%u,\"delta\":{\"role\"", i);
        roles[i] = strstr(http.text, mark);
        assert_non_null(roles[i]);
        assert_null(strstr(roles[i] + 1, mark));
    }
    assert_true(roles[0] < roles[1] && roles[1] < roles[2] && roles[2] < text);
    leave(world, exchange);
    destroy(world);
}

static void test_ingress_stop_string_over_tokens_is_never_half_emitted(void **state)
{
    /* Clients that asked for a stop string must not see its beginning; the work behind it must end.
     */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, ",\"stop\":[\"STOPHERE\"],\"stream_options\":{\"include_usage\":true}");
    give_text(world, 0, "</think>go on ST and STOPHERE never seen");
    assert_int_equal(http.ends, 1);
    assert_string_equal(streamed("content"), "go on ST and ");
    assert_has("\"prompt_cache_hit_tokens\":1,"); /* though no worker said the end */
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
    msg_t m = leave(world, exchange);
    assert_int_equal(count_sent(world, MSG_cancel), 4);
    assert_true(world->metrics[METRIC_requests_cancelled_total] == 2);
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    destroy(world);
}

/* ---- whole answers ---- */

static void test_ingress_same_prompt_twice_is_drawn_twice(void **state)
{
    /* Who sends a prompt k times in one call wants k samples; only a seed makes them the same. */
    actor_t *world = new_ingress(NULL);
    uint64_t exchange =
        ask(world, "POST", "/v1/completions", "{\"prompt\":[\"The\",\"The\"],\"max_tokens\":8}");
    assert_int_equal(count_sent(world, MSG_submit), 2);
    assert_true(world->sent[0].message.submit.sampling.seed !=
                world->sent[1].message.submit.sampling.seed);
    leave(world, exchange);
    destroy(world);
}

static void test_ingress_echo_of_one_token_has_its_record(void **state)
{
    /* No worker sends probabilities of a prompt's first token, and here it has no other. */
    actor_t *world = new_ingress(NULL);
    ask(world, "POST", "/v1/completions",
        "{\"prompt\":\"a\",\"max_tokens\":1,\"logprobs\":0,\"echo\":true}");
    assert_int_equal(last(world, MSG_submit)->message.submit.prompt_count, 1);
    msg_t t = about(world, MSG_tokens);
    t.tokens.ids_count = t.tokens.logprobs_count = 1;
    t.tokens.ids[0] = (u32)tokenizer_id(tokenizer, "b", 1);
    t.tokens.logprobs[0] = -0.25f;
    fake_tell(world, worker, &t);
    finish(world, FINISH_LENGTH, 1);
    assert_has("\"text\":\"ab\"");
    assert_has("{\"tokens\":[\"a\",\"b\"],\"token_logprobs\":[null,-0.25]");
    assert_has("\"text_offset\":[0,1]");
    destroy(world);
}

/* Choices that end, each with more log probabilities than one turn prints. */
static uint64_t end_large_answer(actor_t *world, uint32_t choices)
{
    static char body[32768];
    size_t size = (size_t)snprintf(body, sizeof body,
                                   "{\"n\":%u,\"max_tokens\":1,\"logprobs\":20,\"echo\":true,"
                                   "\"prompt\":[66",
                                   choices);
    enum { TOKENS = 3500 };
    for (uint32_t i = 1; i < TOKENS; i++)
        size += (size_t)snprintf(body + size, sizeof body - size, ",66");
    snprintf(body + size, sizeof body - size, "]}");
    uint32_t first = world->sent_count;
    uint64_t exchange = ask(world, "POST", "/v1/completions", body);
    for (uint32_t choice = 0; choice < choices; choice++) {
        const fake_sent_t submit = world->sent[first + choice];
        world->sent[world->sent_count++] = submit; /* what is told is about the last one */
        for (uint32_t at = 1; at < TOKENS; at += PROMPT_LOGPROBS_MAX) {
            msg_t m = about(world, MSG_prompt_logprobs);
            m.prompt_logprobs.first_index = at;
            m.prompt_logprobs.logprobs_count =
                TOKENS - at < PROMPT_LOGPROBS_MAX ? TOKENS - at : PROMPT_LOGPROBS_MAX;
            fake_tell(world, worker, &m);
        }
        finish(world, FINISH_LENGTH, give_text(world, 0, "x"));
    }
    return exchange;
}

static void test_ingress_large_answer_takes_several_turns(void **state)
{
    /* Peers that hear nothing for the time of one answer would take ingress for dead. */
    actor_t *world = new_ingress(NULL);
    end_large_answer(world, 2);
    assert_has("{\"index\":0,");
    assert_null(strstr(http.text, "{\"index\":1,"));
    assert_int_equal(http.ends, 0);
    assert_true(world->wake_us == world->now_us);
    fake_run(world, 0);
    assert_int_equal(http.ends, 1);
    assert_has("{\"index\":1,");
    assert_has("\"usage\":{\"prompt_tokens\":3500,\"completion_tokens\":2,");
    ask(world, "POST", "/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":1}");
    finish(world, FINISH_LENGTH, give_text(world, 0, "x"));
    assert_int_equal(http.ends, 1);
    destroy(world);
}

static void test_ingress_large_answers_are_printed_by_turns(void **state)
{
    /* One answer of hundreds of choices would keep all others waiting until it is told. */
    actor_t *world = new_ingress(NULL);
    writes.count = 0;
    uint64_t first = end_large_answer(world, 3), second = end_large_answer(world, 3);
    assert_int_equal(writes.count, 2);
    fake_run(world, 0);
    assert_int_equal(writes.count, 6);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(writes.exchanges[i], i % 2 == 0 ? first : second);
    assert_int_equal(http.ends, 1);
    assert_has("{\"index\":2,");
    destroy(world);
}

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
    assert_true(last(world, MSG_submit)->message.submit.sampling.seed == 0);
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

static void test_ingress_client_gets_each_token_once(void **state)
{
    /* Prefill's first token, then decode's message that begins with it again: a client that counts
     * would be one off from there on. */
    actor_t *world = new_ingress(NULL);
    submit_client(world, 0, "some text");
    const uint32_t ids[2] = { 66, 67 };
    give_ids(world, 0, ids, 1);
    give_ids(world, 0, ids, 2);
    const msg_client_tokens_t *got = &last(world, MSG_client_tokens)->message.client_tokens;
    assert_int_equal(got->first_index, 1);
    assert_int_equal(got->ids_count, 1);
    assert_int_equal(got->ids[0], 67);
    finish(world, FINISH_LENGTH, 2);
    destroy(world);
}

static void test_ingress_client_with_a_full_link_is_told_the_end_later(void **state)
{
    /* Tokens that were dropped in silence, an end that never came: the client would wait for ever,
     * or take half a text for the whole. */
    for (int is_token_refused = 0; is_token_refused < 2; is_token_refused++) {
        actor_t *world = new_ingress(NULL);
        submit_client(world, 0, "some text");
        uint32_t next = give_text(world, 0, "a");
        if (!is_token_refused) give_text(world, next, "b");
        world->send_answer = ERR_OVERLOAD;
        if (is_token_refused)
            give_text(world, next, "b");
        else
            finish(world, FINISH_LENGTH, next + 1);
        assert_null(last(world, MSG_client_finished));
        assert_false(world->class->is_idle(world->state));
        fake_run(world, 200000);
        world->send_answer = ERR_OK;
        fake_run(world, 200000);
        if (is_token_refused)
            assert_int_equal(last(world, MSG_client_failed)->message.client_failed.error,
                             ERR_OVERLOAD);
        else
            assert_int_equal(
                last(world, MSG_client_finished)->message.client_finished.completion_tokens,
                next + 1);
        destroy(world);
    }
}

static void test_ingress_client_may_not_stop_it(void **state)
{
    /* One frame without any key would end the service of everybody. */
    actor_t *world = new_ingress(NULL);
    msg_t m;
    msg_init(&m, MSG_stop);
    fake_tell(world, client, &m);
    uint64_t exchange = ask_stream(world, "");
    assert_int_equal(http.status, 0);
    fake_tell(world, (address_t){ ROLE_director, 0 }, &m);
    leave(world, exchange);
    ask_stream(world, "");
    assert_int_equal(http.status, 503);
    destroy(world);
}

static void test_ingress_that_ends_prints_what_is_complete(void **state)
{
    /* An error in the middle of a JSON object would be neither answer nor error. */
    actor_t *world = new_ingress(NULL);
    msg_t m;
    end_large_answer(world, 2);
    assert_int_equal(http.ends, 0);
    msg_init(&m, MSG_stop);
    fake_tell(world, (address_t){ ROLE_director, 0 }, &m);
    world->class->fini(world->state, world);
    assert_int_equal(http.ends, 1);
    assert_null(strstr(http.text, "data:"));
    assert_string_equal(http.text + http.size - 2, "}}");
    fake_destroy(world);
}

static void test_ingress_that_ends_tells_who_waits(void **state)
{
    /* A connection that just breaks is neither an answer nor an error. */
    actor_t *world = new_ingress(NULL);
    msg_t m;
    ask_stream(world, "");
    give_text(world, 0, "</think>half");
    msg_init(&m, MSG_stop);
    fake_tell(world, (address_t){ ROLE_director, 0 }, &m);
    world->class->fini(world->state, world);
    assert_has("\"code\":\"unavailable\"");
    assert_int_equal(http.ends, 1);
    fake_destroy(world);
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
    submit_client(world, 1, "B");
    assert_non_null(
        strstr(last(world, MSG_client_failed)->message.client_failed.message, "4 bytes each"));
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ingress_stream_splits_reasoning_and_ends_once),
        cmocka_unit_test(test_ingress_roles_of_all_choices_come_first),
        cmocka_unit_test(test_ingress_same_prompt_twice_is_drawn_twice),
        cmocka_unit_test(test_ingress_echo_of_one_token_has_its_record),
        cmocka_unit_test(test_ingress_large_answer_takes_several_turns),
        cmocka_unit_test(test_ingress_large_answers_are_printed_by_turns),
        cmocka_unit_test(test_ingress_stop_string_over_tokens_is_never_half_emitted),
        cmocka_unit_test(test_ingress_client_that_leaves_cancels_everywhere),
        cmocka_unit_test(test_ingress_whole_answer_has_every_choice),
        cmocka_unit_test(test_ingress_chat_answer_splits_reasoning),
        cmocka_unit_test(test_ingress_logprobs_in_both_shapes),
        cmocka_unit_test(test_ingress_client_gets_tokens_and_its_end),
        cmocka_unit_test(test_ingress_client_with_a_full_link_is_told_the_end_later),
        cmocka_unit_test(test_ingress_client_may_not_stop_it),
        cmocka_unit_test(test_ingress_that_ends_prints_what_is_complete),
        cmocka_unit_test(test_ingress_that_ends_tells_who_waits),
        cmocka_unit_test(test_ingress_client_gets_each_token_once),
        cmocka_unit_test(test_ingress_client_cancel_and_departure_end_its_requests),
        cmocka_unit_test(test_ingress_health_names_what_is_missing),
        cmocka_unit_test(test_ingress_text_prompt_begins_as_the_tokenizer_says),
    };
    return cmocka_run_group_tests(tests, load_tokenizer, unload_tokenizer);
}
