/* tests/actors/test_ingress_turns.c - bodies that take ingress more than one turn. */
#include "tests/actors/ingress_harness.h"

enum { TEXT_MAX = 200000, BODY_MAX = 400000, IDS_MAX = TEXT_MAX };

static char text[TEXT_MAX], body[BODY_MAX];
static uint32_t ids[IDS_MAX];

static const address_t client = { ROLE_client, 3 };

/* ---- helpers ---- */

static void one_turn(actor_t *world)
{
    assert_true(world->wake_us > 0 && world->wake_us <= world->now_us);
    world->class->wake(world->state, world);
    world->class->turn(world->state, world);
    fake_check(world);
}

static void turns(actor_t *world, uint32_t count)
{
    while (count-- > 0) one_turn(world);
}

static void leave(actor_t *world, uint64_t exchange)
{
    msg_t m;
    msg_init(&m, MSG_http_closed);
    m.http_closed.exchange = exchange;
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
}

/* Words of prose, none like the one before; other ones for another seed. */
static size_t make_prose(uint32_t seed, size_t size)
{
    assert_true(size < TEXT_MAX);
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1103515245 + 12345;
        text[i] = (seed >> 16) % 6 == 0 ? ' ' : (char)('a' + (seed >> 20) % 26);
    }
    text[size] = 0;
    return size;
}

static uint64_t ask_tokens(actor_t *world)
{
    snprintf(body, sizeof body, "{\"prompt\":\"%s\"}", text);
    return ask(world, "POST", "/tokenize", body);
}

/* So many prompts of so many bytes; text is the last of them. */
static uint64_t ask_prompts(actor_t *world, uint32_t count, size_t bytes)
{
    size_t used = (size_t)snprintf(body, sizeof body, "{\"max_tokens\":2,\"prompt\":[");
    for (uint32_t i = 0; i < count; i++) {
        make_prose(i, bytes);
        used += (size_t)snprintf(body + used, sizeof body - used, "%s\"%s\"", i ? "," : "", text);
    }
    snprintf(body + used, sizeof body - used, "]}");
    return ask(world, "POST", "/v1/completions", body);
}

static void assert_answer_is_of_text(void)
{
    static char wanted[ANSWER_MAX];
    size_t count = tokenizer_encode(tokenizer, text, strlen(text), true, ids, IDS_MAX);
    size_t used = (size_t)snprintf(wanted, sizeof wanted, "\"tokens\":[");
    for (size_t i = 0; i < count; i++)
        used += (size_t)snprintf(wanted + used, sizeof wanted - used, "%s%u", i ? "," : "", ids[i]);
    snprintf(wanted + used, sizeof wanted - used, "]}");
    assert_int_equal(http.status, 200);
    assert_non_null(strstr(http.text, wanted));
}

/* ---- tests ---- */

static void test_ingress_large_prompts_leave_turns_to_others(void **state)
{
    /* Seconds of tokenising would be seconds in which nobody else gets a token. */
    enum { PROMPTS = 60, BYTES = 5000 };
    actor_t *world = new_ingress(NULL);
    uint64_t large = ask_prompts(world, PROMPTS, BYTES);
    turns(world, 3);
    assert_int_equal(count_sent(world, MSG_submit), 0);
    assert_int_equal(http.status, 0);
    uint64_t stream = ask_stream(world, "");
    assert_int_equal(count_sent(world, MSG_submit), 1);
    one_turn(world);
    uint32_t next = give_text(world, 0, "</think>one");
    assert_string_equal(streamed("content"), "one");
    one_turn(world);
    finish(world, FINISH_STOP, next);
    assert_int_equal(http.ends, 1);
    assert_int_equal(count_sent(world, MSG_submit), 1);
    fake_run(world, 0);
    assert_int_equal(count_sent(world, MSG_submit), 1 + PROMPTS);
    const msg_submit_t *submit = &last(world, MSG_submit)->message.submit;
    size_t count = tokenizer_encode(tokenizer, text, BYTES, true, ids, IDS_MAX);
    assert_int_equal(submit->prompt_count, count);
    assert_memory_equal(submit->tokens.data, ids, count * sizeof *ids);
    assert_true(stream != large);
    leave(world, large);
    destroy(world);
}

static void test_ingress_requests_of_a_large_call_are_submitted_by_turns(void **state)
{
    /* Keys and frames of a hundred long prompts take as long as their tokens. */
    enum { PROMPTS = 60, BYTES = 5000 };
    actor_t *world = new_ingress(NULL);
    uint64_t exchange = ask_prompts(world, PROMPTS, BYTES);
    while (count_sent(world, MSG_submit) == 0) one_turn(world);
    assert_true(count_sent(world, MSG_submit) < PROMPTS);
    leave(world, exchange); /* in the midst: whoever has one of them is told */
    assert_true(count_sent(world, MSG_cancel) >= 2 * count_sent(world, MSG_submit));
    destroy(world);
}

static void test_ingress_ids_do_not_depend_on_turns(void **state)
{
    /* A prompt would have other tokens because it is long. */
    actor_t *world = new_ingress(NULL);
    make_prose(1, 150000);
    ask_tokens(world);
    turns(world, 2);
    assert_int_equal(http.status, 0);
    fake_run(world, 0);
    assert_answer_is_of_text();
    memset(text, 'a', 100000); /* one word */
    text[100000] = 0;
    ask_tokens(world);
    turns(world, 2);
    assert_int_equal(http.status, 0);
    fake_run(world, 0);
    assert_answer_is_of_text();
    destroy(world);
}

static void test_ingress_large_conversation_is_rendered_and_counted(void **state)
{
    /* The tokens between the messages would be missing, or those too many not counted. */
    actor_t *world = new_ingress(NULL);
    make_prose(5, 100000);
    snprintf(body, sizeof body,
             "{\"messages\":[{\"role\":\"system\",\"content\":\"<think>\"},"
             "{\"role\":\"user\",\"content\":\"%s\"}]}",
             text);
    ask(world, "POST", "/v1/chat/completions", body);
    fake_run(world, 0);
    size_t count = tokenizer_encode(tokenizer, "<think>", 7, false, ids, IDS_MAX) +
                   tokenizer_encode(tokenizer, text, 100000, false, ids, IDS_MAX) + 4;
    char wanted[64];
    snprintf(wanted, sizeof wanted, "the prompt has %zu and leaves", count);
    assert_int_equal(http.status, 400);
    assert_has(wanted);
    destroy(world);
}

static void test_ingress_client_that_leaves_ends_its_tokenising(void **state)
{
    /* The work, the memory and the room for long words would stay taken for nobody. */
    actor_t *world = new_ingress(NULL);
    for (uint32_t left = 0; left < 8; left++) {
        memset(text, 'a', 100000);
        text[100000] = 0;
        uint64_t exchange = left % 2 == 0 ? ask_tokens(world) : ask_prompts(world, 100, 3000);
        turns(world, left);
        assert_int_equal(http.status, 0);
        leave(world, exchange);
        assert_true(world->class->is_idle(world->state));
        fake_run(world, 0);
        assert_int_equal(http.status, 0);
    }
    assert_int_equal(world->sent_count, 0); /* the company never heard of them */
    memset(text, 'b', 100000);
    ask_tokens(world);
    fake_run(world, 0);
    assert_answer_is_of_text();
    destroy(world);
}

static void test_ingress_large_bodies_are_worked_off_by_turns(void **state)
{
    /* Whoever comes behind a larger text would wait for all of it. */
    actor_t *world = new_ingress(NULL);
    writes.count = 0;
    make_prose(1, 190000);
    uint64_t large = ask_tokens(world);
    one_turn(world);
    make_prose(2, 70000);
    uint64_t small = ask_tokens(world);
    fake_run(world, 0);
    assert_int_equal(writes.count, 2);
    assert_int_equal(writes.exchanges[0], small);
    assert_int_equal(writes.exchanges[1], large);
    destroy(world);
}

static void test_ingress_deadline_holds_while_it_tokenises(void **state)
{
    /* A client would wait for longer than was promised. */
    actor_t *world = new_ingress("limits.deadline_seconds=2");
    ask_prompts(world, 100, 3000);
    turns(world, 3);
    world->now_us += 2000000;
    one_turn(world);
    assert_int_equal(http.status, 504);
    assert_int_equal(world->sent_count, 0);
    assert_true(world->metrics[METRIC_requests_rejected_total] == 1);
    destroy(world);
}

static void test_ingress_many_small_bodies_share_a_turn(void **state)
{
    /* One behind the other they are as long as a large one. */
    enum { BODIES = 8, BYTES = 30000 };
    actor_t *world = new_ingress(NULL);
    uint32_t at_once = 0;
    make_prose(1, BYTES);
    for (uint32_t i = 0; i < BODIES; i++) {
        ask_tokens(world);
        at_once += http.ends;
    }
    assert_true(at_once >= 2 && at_once < BODIES);
    assert_int_equal(http.ends, 0);
    one_turn(world);
    ask_tokens(world); /* in the next turn there is room again, whoever still waits */
    assert_int_equal(http.ends, 1);
    assert_answer_is_of_text();
    fake_run(world, 0);
    destroy(world);
}

static void test_ingress_too_many_large_bodies_get_429(void **state)
{
    /* What waits holds memory; without a bound nobody would be told to come later. */
    enum { BYTES = 8000000, BODIES = 9 };
    actor_t *world = new_ingress(NULL);
    char *large = malloc(BYTES + 1);
    assert_non_null(large);
    memset(large, ' ', BYTES);
    large[BYTES] = 0;
    memcpy(large + BYTES - 16, "{\"prompt\":\"a b\"}", 16);
    for (uint32_t i = 0; i < BODIES; i++) {
        ask(world, "POST", "/tokenize", large);
        assert_int_equal(http.status, i + 1 < BODIES ? 0 : 429);
    }
    assert_int_equal(http.retry_after, 1);
    ask(world, "POST", "/tokenize", "{\"prompt\":\"small\"}");
    assert_int_equal(http.status, 200); /* small ones never wait for them */
    writes.count = 0;
    one_turn(world);
    one_turn(world);
    assert_int_equal(writes.count, 0); /* a turn reads one of them */
    fake_run(world, 0);
    assert_int_equal(writes.count, BODIES - 1);
    free(large);
    destroy(world);
}

static void send_client(actor_t *world, bytes_t content)
{
    msg_t m;
    msg_init(&m, MSG_client_submit);
    m.header.request = (request_id_t){ 1, 2 };
    m.client_submit.max_tokens = 8;
    m.client_submit.sampling = sampling_default;
    m.client_submit.content = content;
    fake_tell(world, client, &m);
}

static void test_ingress_client_text_is_repaired_and_can_be_cancelled(void **state)
{
    /* Bytes of a client that are no UTF-8 would reach what trusts its texts to be; a cancelled text
     * would go on. */
    actor_t *world = new_ingress(NULL);
    make_prose(1, 100000);
    memset(text + 50000, 0xff, 100);
    size_t count = tokenizer_encode(tokenizer, text, 100000, true, ids, IDS_MAX);
    send_client(world, (bytes_t){ text, 100000 });
    fake_run(world, 0);
    char wanted[64];
    snprintf(wanted, sizeof wanted, "the prompt has %zu and leaves", count);
    assert_non_null(strstr(last(world, MSG_client_failed)->message.client_failed.message, wanted));
    send_client(world, (bytes_t){ text, 100000 });
    turns(world, 2);
    msg_t m;
    msg_init(&m, MSG_client_cancel);
    m.header.request = (request_id_t){ 1, 2 };
    fake_tell(world, client, &m);
    assert_int_equal(last(world, MSG_client_failed)->message.client_failed.error, ERR_CANCELLED);
    assert_int_equal(count_sent(world, MSG_client_failed), 2);
    destroy(world);
}

static void test_ingress_that_ends_tells_whose_text_it_leaves(void **state)
{
    /* A connection that just breaks is neither an answer nor an error. */
    actor_t *world = new_ingress(NULL);
    ask_prompts(world, 100, 3000);
    turns(world, 3);
    msg_t m;
    msg_init(&m, MSG_stop);
    fake_tell(world, (address_t){ ROLE_director, 0 }, &m);
    assert_false(world->class->is_idle(world->state));
    world->class->fini(world->state, world);
    assert_int_equal(http.status, 503);
    assert_int_equal(http.ends, 1);
    fake_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ingress_large_prompts_leave_turns_to_others),
        cmocka_unit_test(test_ingress_requests_of_a_large_call_are_submitted_by_turns),
        cmocka_unit_test(test_ingress_ids_do_not_depend_on_turns),
        cmocka_unit_test(test_ingress_large_conversation_is_rendered_and_counted),
        cmocka_unit_test(test_ingress_client_that_leaves_ends_its_tokenising),
        cmocka_unit_test(test_ingress_large_bodies_are_worked_off_by_turns),
        cmocka_unit_test(test_ingress_deadline_holds_while_it_tokenises),
        cmocka_unit_test(test_ingress_many_small_bodies_share_a_turn),
        cmocka_unit_test(test_ingress_too_many_large_bodies_get_429),
        cmocka_unit_test(test_ingress_client_text_is_repaired_and_can_be_cancelled),
        cmocka_unit_test(test_ingress_that_ends_tells_whose_text_it_leaves),
    };
    return cmocka_run_group_tests(tests, load_tokenizer, unload_tokenizer);
}
