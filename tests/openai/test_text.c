/* tests/openai/test_text.c - what clients read: stop strings over tokens, the split of reasoning,
 * chunks as OpenAI sends them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/openai/alarm.h"
#include "runtime/openai/answer.h"
#include "runtime/openai/chain.h"
#include "runtime/openai/text.h"

static tokenizer_t *tokenizer;

typedef struct {
    char reasoning[4096], content[4096];
} seen_t;

static void see(void *context, bool is_reasoning, const char *text, size_t size)
{
    seen_t *seen = context;
    strncat(is_reasoning ? seen->reasoning : seen->content, text, size);
}

/* ---- stop strings ---- */

static stop_set_t stops_of(const char *a, const char *b)
{
    stop_set_t stops = { .count = b == NULL ? 1 : 2 };
    stops.sizes[0] = (uint16_t)strlen(a);
    memcpy(stops.texts[0], a, strlen(a));
    if (b == NULL) return stops;
    stops.sizes[1] = (uint16_t)strlen(b);
    memcpy(stops.texts[1], b, strlen(b));
    return stops;
}

/* The reference: the whole text cut before the first stop string that begins in it. */
static void test_stop_cut_anywhere_gives_the_same_text(void **state)
{
    /* Half a stop string would reach the client, or text before it would be lost. */
    static const char *const texts[] = { "aaab",           "abababc",   "xxENDyy", "EEND",
                                         "nothing at all", "abcabcabd", "" };
    stop_set_t stops = stops_of("END", "abab");
    for (size_t t = 0; t < sizeof texts / sizeof *texts; t++) {
        const char *text = texts[t];
        const char *end = strstr(text, "END"), *other = strstr(text, "abab");
        if (other != NULL && (end == NULL || other < end)) end = other;
        size_t wanted = end == NULL ? strlen(text) : (size_t)(end - text);
        for (size_t piece = 1; piece < 6; piece++) {
            seen_t seen = { "", "" };
            stop_tail_t tail = { 0 };
            bool is_stopped = false;
            for (size_t at = 0; at < strlen(text) && !is_stopped; at += piece) {
                size_t size = strlen(text) - at < piece ? strlen(text) - at : piece;
                is_stopped =
                    stop_push(&stops, &tail, text + at, size, false, (text_sink_t){ see, &seen });
                assert_int_equal(strncmp(seen.content, text, strlen(seen.content)), 0);
            }
            if (!is_stopped) strncat(seen.content, tail.bytes, tail.size);
            assert_int_equal(is_stopped, end != NULL);
            assert_int_equal(strlen(seen.content), wanted);
            assert_memory_equal(seen.content, text, wanted);
        }
    }
}

/* ---- tokens ---- */

static void push_text(text_t *self, const text_rules_t *rules, const char *text, seen_t *seen)
{
    uint32_t ids[512];
    size_t count = tokenizer_encode(tokenizer, text, strlen(text), true, ids, 512);
    assert_in_range(count, 1, 512);
    for (size_t i = 0; i < count; i++) text_push(self, rules, ids[i], (text_sink_t){ see, seen });
    text_end(self, rules, (text_sink_t){ see, seen });
}

static void test_text_reasoning_and_answer_add_up(void **state)
{
    /* Reasoning, the mark and the answer must be what the model wrote, byte for byte. */
    seen_t seen = { "", "" };
    text_t text;
    text_rules_t rules = { .tokenizer = tokenizer,
                           .reasoning = { tokenizer_id(tokenizer, "<think>", 7),
                                          tokenizer_id(tokenizer, "</think>", 8), 1 } };
    assert_true(rules.reasoning.think_end != UINT32_MAX);
    text_begin(&text, &rules, true);
    push_text(&text, &rules,
              "\n\nso \xe2\x82\xac"
              "5</think>\n\nIt is \xf0\x9f\x98\x80 5.",
              &seen);
    assert_string_equal(seen.reasoning, "\n\nso \xe2\x82\xac"
                                        "5");
    assert_string_equal(seen.content, "\n\nIt is \xf0\x9f\x98\x80 5.");
    assert_true(text.reasoning_tokens > 2);
    text_begin(&text, &rules, false);
    memset(&seen, 0, sizeof seen);
    push_text(&text, &rules, "a<think>b</think>c</think>d", &seen);
    assert_string_equal(seen.reasoning, "b");
    assert_string_equal(seen.content, "ac</think>d");
}

static void check_utf8(void *context, bool is_reasoning, const char *text, size_t size)
{
    /* No piece may begin with a continuation byte or end within a sequence. */
    assert_true(((unsigned char)text[0] & 0xc0) != 0x80);
    size_t back = 1;
    while (back < size && ((unsigned char)text[size - back] & 0xc0) == 0x80) back++;
    unsigned char lead = (unsigned char)text[size - back];
    assert_int_equal(back, lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1);
    see(context, is_reasoning, text, size);
}

static void test_text_utf8_over_tokens_is_never_cut(void **state)
{
    /* A JSON string with half a character in it breaks every client. */
    const char *written = "\xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x8e\xad \xd0\x96 \xf0\x9f\xa6\x84";
    uint32_t ids[128];
    size_t count = tokenizer_encode(tokenizer, written, strlen(written), false, ids, 128);
    seen_t seen = { "", "" };
    text_t text;
    text_rules_t rules = { .tokenizer = tokenizer, .reasoning = { UINT32_MAX, UINT32_MAX, 0 } };
    text_begin(&text, &rules, false);
    assert_true(count > 6); /* characters are split over tokens in this vocabulary */
    for (size_t i = 0; i < count; i++)
        text_push(&text, &rules, ids[i], (text_sink_t){ check_utf8, &seen });
    text_end(&text, &rules, (text_sink_t){ check_utf8, &seen });
    assert_string_equal(seen.content, written);
}

/* ---- chunks ---- */

static char printed[16384];

static writer_t page(void)
{
    memset(printed, 0, sizeof printed);
    return (writer_t){ .text = printed, .cap = sizeof printed - 1 };
}

#define HEAD                                                                                       \
    "data: "                                                                                       \
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":5,\"model\":\"m\","   \
    "\"system_fingerprint\":\"fp\",\"choices\":"

static void test_chunks_are_as_openai_sends_them(void **state)
{
    /* Golden strings: the order and names of fields that client libraries were built against. */
    const answer_head_t head = {
        .is_chat = true, .id = "chatcmpl-1", .created_s = 5, .model = "m", .fingerprint = "fp"
    };
    const usage_t usage = { 10, 4, 3, 8 };
    const delta_t delta = { .reasoning = { "r\n", 2 } },
                  both = { .reasoning = { "r", 1 }, .content = { "\"c\"", 3 } };
    writer_t out = page();
    answer_chunk_role(&out, &head, 0);
    answer_chunk_delta(&out, &head, 0, &delta);
    answer_chunk_delta(&out, &head, 1, &both);
    answer_chunk_finish(&out, &head, 0, FINISH_LENGTH);
    answer_chunk_usage(&out, &head, &usage);
    answer_chunk_done(&out);
    assert_string_equal(
        printed,
        HEAD "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
             "\"finish_reason\":null}]}\n\n" HEAD
             "[{\"index\":0,\"delta\":{\"reasoning_content\":\"r\\n\"},\"logprobs\":null,\"finish_"
             "reason\":null}]}\n\n" HEAD
             "[{\"index\":1,\"delta\":{\"reasoning_content\":\"r\",\"content\":\"\\\"c\\\"\"},"
             "\"logprobs\":null,\"finish_reason\":null}]}\n\n" HEAD
             "[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n" HEAD
             "[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":4,\"total_tokens\":14,"
             "\"prompt_cache_hit_tokens\":8,"
             "\"prompt_cache_miss_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":8},"
             "\"completion_tokens_details\":{\"reasoning_tokens\":3}}}\n\n"
             "data: [DONE]\n\n");
}

static void test_completion_chunk_has_a_text(void **state)
{
    /* /v1/completions has another shape than chat. */
    const answer_head_t head = {
        .is_chat = false, .id = "cmpl-1", .created_s = 5, .model = "m", .fingerprint = "fp"
    };
    const delta_t delta = { .content = { "hi", 2 } };
    writer_t out = page();
    answer_chunk_delta(&out, &head, 2, &delta);
    answer_chunk_finish(&out, &head, 2, FINISH_STOP);
    assert_non_null(strstr(printed, "\"object\":\"text_completion\""));
    assert_non_null(strstr(printed, "\"choices\":[{\"index\":2,\"text\":\"hi\",\"logprobs\":null,"
                                    "\"finish_reason\":null}]}\n\n"));
    assert_non_null(strstr(
        printed, "{\"index\":2,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"stop\"}"));
}

static token_record_t two[2];
static uint32_t next_record;

static void rewind_records(void *context)
{
    next_record = 0;
}

static bool take_record(void *context, token_record_t *out)
{
    if (next_record == 2) return false;
    *out = two[next_record++];
    return true;
}

static void test_logprobs_have_both_shapes(void **state)
{
    /* The same numbers under other names. */
    uint32_t a = tokenizer_id(tokenizer, "a", 1), b = tokenizer_id(tokenizer, "b", 1);
    two[0] = (token_record_t){ .id = a, .logprob = NAN };
    two[1] = (token_record_t){
        .id = b, .logprob = -0.5f, .top_count = 1, .top_ids = { a }, .top_logprobs = { -0.25f }
    };
    records_t records = { rewind_records, take_record, NULL };
    text_place_t place = { .characters = 3 };
    writer_t out = page();
    answer_print_logprobs(&out, false, tokenizer, records, &place);
    assert_string_equal(printed,
                        "{\"tokens\":[\"a\",\"b\"],\"token_logprobs\":[null,-0.5],\"top_logprobs\":"
                        "[null,{\"a\":-0.25,\"b\":-0.5}],\"text_offset\":[3,4]}");
    assert_int_equal(place.characters, 5);
    out = page();
    answer_print_logprobs(&out, true, tokenizer, records, &place);
    assert_non_null(strstr(printed,
                           "{\"token\":\"b\",\"logprob\":-0.5,\"bytes\":[98],\"top_logprobs\":[{"
                           "\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97]}]}"));
}

static void test_text_offsets_are_those_of_the_text(void **state)
{
    /* A client cuts the text at them: characters of several tokens count once, tokens that the text
     * leaves out count nothing. */
    uint32_t ids[16];
    static const char text[] = "\xf0\x9f\xa6\x9c x";
    size_t count = tokenizer_encode(tokenizer, text, sizeof text - 1, true, ids, 16);
    assert_true(count > 3);
    text_place_t place = { .characters = 0 };
    records_t records = { rewind_records, take_record, NULL };
    for (size_t i = 0; i < count; i++) {
        two[0] = (token_record_t){ .id = 0, .logprob = NAN }; /* a special token */
        two[1] = (token_record_t){ .id = ids[i], .logprob = -0.5f };
        writer_t out = page();
        answer_print_logprobs(&out, false, tokenizer, records, &place);
        if (i == 0) assert_non_null(strstr(printed, "\"text_offset\":[0,0]"));
    }
    assert_int_equal(place.characters, 3);
}

static void test_continuous_usage_is_in_every_chunk(void **state)
{
    /* What was asked for and silently left out would be taken for nothing used. */
    const answer_head_t head = { .id = "cmpl-1",
                                 .model = "m",
                                 .fingerprint = "fp",
                                 .has_usage = true,
                                 .usage = { 10, 4, 0, 0 } };
    const delta_t delta = { .content = { "hi", 2 } };
    writer_t out = page();
    answer_chunk_delta(&out, &head, 0, &delta);
    assert_non_null(strstr(printed, "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":4,"));
}

static void test_writer_escapes_and_flushes(void **state)
{
    /* One unescaped byte breaks the whole answer; one lost at a buffer's end shifts it. */
    writer_t out = page();
    writer_json(&out, "a\"\\\n\t\x01\x7f\xc3\xa9", 9);
    assert_string_equal(printed, "\"a\\\"\\\\\\n\\t\\u0001\\u007f\xc3\xa9\"");
    out = page();
    writer_float(&out, -INFINITY);
    writer_text(&out, " ");
    writer_float(&out, NAN);
    writer_text(&out, " ");
    writer_number(&out, UINT64_MAX);
    assert_string_equal(printed, "-9999.0 null 18446744073709551615");
    writer_t small = { .text = printed, .cap = 4 };
    writer_text(&small, "12345");
    assert_true(small.is_cut && small.used == 4);
}

/* ---- memory ---- */

static void test_chain_keeps_bytes_and_gives_pages_back(void **state)
{
    /* Tokens of one stream would show up in another, or pages would leak until nothing is admitted.
     */
    enum { PAGES = 16 };
    static chain_page_t pages[PAGES];
    chain_pool_t pool;
    chain_pool_init(&pool, pages, PAGES);
    for (int round = 0; round < 50; round++) {
        chain_t a = { 0 }, b = { 0 };
        uint32_t count = 0;
        for (;; count++) {
            uint32_t value = count * 7 + (uint32_t)round;
            if (!chain_append(&pool, count % 3 == 0 ? &a : &b, &value, sizeof value)) break;
        }
        assert_true(count >= (PAGES - 1) * CHAIN_PAGE_BYTES / 4);
        chain_cursor_t at_a = chain_begin(&a), at_b = chain_begin(&b);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t value = 0;
            assert_true(chain_read(&pool, i % 3 == 0 ? &at_a : &at_b, &value, sizeof value));
            assert_int_equal(value, i * 7 + (uint32_t)round);
        }
        chain_free(&pool, &a);
        chain_free(&pool, &b);
        assert_int_equal(pool.used, 0);
    }
}

static void test_alarms_ring_in_order(void **state)
{
    /* A deadline that rings late breaks the promise of one terminal event in time. */
    enum { COUNT = 200 };
    static alarm_t heap[COUNT];
    static uint32_t places[COUNT];
    alarms_t alarms = { .heap = heap, .places = places, .capacity = COUNT };
    uint64_t times[COUNT], random = 1;
    for (uint32_t i = 0; i < 5 * COUNT; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        times[i % COUNT] = random >> 40;
        alarms_set(&alarms, i % COUNT, times[i % COUNT]);
    }
    for (uint32_t i = 0; i < COUNT; i += 3) alarms_remove(&alarms, i);
    uint64_t last = 0;
    for (uint32_t left = alarms.count; left > 0; left--) {
        uint64_t next = alarms_next_us(&alarms);
        if (next > 0) assert_int_equal(alarms_take_due(&alarms, next - 1), UINT32_MAX);
        uint32_t id = alarms_take_due(&alarms, next);
        assert_true(id < COUNT && id % 3 != 0 && times[id] == next && next >= last);
        last = next;
    }
    assert_int_equal(alarms_next_us(&alarms), 0);
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
        cmocka_unit_test(test_stop_cut_anywhere_gives_the_same_text),
        cmocka_unit_test(test_text_reasoning_and_answer_add_up),
        cmocka_unit_test(test_text_utf8_over_tokens_is_never_cut),
        cmocka_unit_test(test_chunks_are_as_openai_sends_them),
        cmocka_unit_test(test_completion_chunk_has_a_text),
        cmocka_unit_test(test_logprobs_have_both_shapes),
        cmocka_unit_test(test_text_offsets_are_those_of_the_text),
        cmocka_unit_test(test_continuous_usage_is_in_every_chunk),
        cmocka_unit_test(test_writer_escapes_and_flushes),
        cmocka_unit_test(test_chain_keeps_bytes_and_gives_pages_back),
        cmocka_unit_test(test_alarms_ring_in_order),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
