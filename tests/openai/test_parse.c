/* tests/openai/test_parse.c - bodies of the OpenAI API: every field, what is refused and in which
 * words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/openai/openai.h"

enum { VOCAB = 1000, ARENA_BYTES = 4 << 20 };

static arena_t arena;
static openai_call_t call;
static openai_error_t why;

static err_t parse_sized(openai_kind_t kind, const void *body, size_t size)
{
    arena.used = 0;
    call.kind = kind;
    memset(&why, 0, sizeof why);
    return openai_parse(&call, (bytes_t){ body, size }, VOCAB, &arena, &why);
}

static err_t parse(openai_kind_t kind, const char *body)
{
    return parse_sized(kind, body, strlen(body));
}

/* A good request with one more field, or another one of its own. */
static err_t parse_field(openai_kind_t kind, const char *field)
{
    char body[2048];
    const char *base = kind == OPENAI_CHAT ? "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
                                           : "\"prompt\":\"hi\"";
    bool is_own = strncmp(field, base, strcspn(base, ":")) == 0;
    snprintf(body, sizeof body, "{%s%s%s}", is_own ? "" : base, is_own || field[0] == 0 ? "" : ",",
             field);
    return parse(kind, body);
}

typedef struct {
    openai_kind_t kind;
    const char *field;
    err_t error;
    const char *param, *words;
} refusal_t;

static const refusal_t refusals[] = {
    { OPENAI_CHAT, "\"temperature\":\"hot\"", ERR_INVALID, "temperature",
      "must be a number, but it is a string" },
    { OPENAI_CHAT, "\"temperature\":-0.1", ERR_INVALID, "temperature", "between 0 and 2" },
    { OPENAI_CHAT, "\"temperature\":2.1", ERR_INVALID, "temperature", "2.1" },
    { OPENAI_CHAT, "\"top_p\":1.5", ERR_INVALID, "top_p", "between 0 and 1" },
    { OPENAI_CHAT, "\"min_p\":-1", ERR_INVALID, "min_p", "between 0 and 1" },
    { OPENAI_CHAT, "\"top_k\":-2", ERR_INVALID, "top_k", "integer between -1" },
    { OPENAI_CHAT, "\"top_k\":1.5", ERR_INVALID, "top_k", "integer" },
    { OPENAI_CHAT, "\"presence_penalty\":3", ERR_INVALID, "presence_penalty", "between -2 and 2" },
    { OPENAI_CHAT, "\"frequency_penalty\":[]", ERR_INVALID, "frequency_penalty", "an array" },
    { OPENAI_CHAT, "\"repetition_penalty\":0", ERR_INVALID, "repetition_penalty",
      "between 0.01 and 100" },
    { OPENAI_CHAT, "\"seed\":1.5", ERR_INVALID, "seed", "integer" },
    { OPENAI_CHAT, "\"seed\":1e300", ERR_INVALID, "seed", "integer" },
    { OPENAI_CHAT, "\"n\":0", ERR_INVALID, "n", "between 1 and 128" },
    { OPENAI_CHAT, "\"n\":129", ERR_INVALID, "n", "between 1 and 128" },
    { OPENAI_CHAT, "\"max_tokens\":0", ERR_INVALID, "max_tokens", "between 1 and" },
    { OPENAI_CHAT, "\"max_tokens\":1e30", ERR_INVALID, "max_tokens", "262144" },
    { OPENAI_CHAT, "\"max_completion_tokens\":true", ERR_INVALID, "max_completion_tokens",
      "a boolean" },
    { OPENAI_COMPLETION, "\"max_tokens\":0", ERR_INVALID, "max_tokens", "only with 'echo'" },
    { OPENAI_CHAT, "\"stream\":1", ERR_INVALID, "stream", "true or false" },
    { OPENAI_CHAT, "\"stream_options\":{\"include_usage\":true}", ERR_INVALID, "stream_options",
      "only with 'stream'" },
    { OPENAI_CHAT, "\"stream\":true,\"stream_options\":{\"include_usag\":true}", ERR_INVALID,
      "stream_options.include_usag", "did you mean 'include_usage'" },
    { OPENAI_CHAT, "\"stop\":5", ERR_INVALID, "stop", "a string or an array of strings" },
    { OPENAI_CHAT, "\"stop\":[1]", ERR_INVALID, "stop", "a number" },
    { OPENAI_CHAT, "\"stop\":\"\"", ERR_INVALID, "stop", "1 to 256 bytes" },
    { OPENAI_CHAT,
      "\"stop\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\","
      "\"a\",\"a\",\"a\",\"a\"]",
      ERR_INVALID, "stop", "at most 16" },
    { OPENAI_CHAT, "\"stop_token_ids\":[1000]", ERR_INVALID, "stop_token_ids",
      "between 0 and 999" },
    { OPENAI_CHAT, "\"stop_token_ids\":7", ERR_INVALID, "stop_token_ids", "an array of token ids" },
    { OPENAI_CHAT, "\"ignore_eos\":1", ERR_INVALID, "ignore_eos", "true or false" },
    { OPENAI_CHAT, "\"logit_bias\":[]", ERR_INVALID, "logit_bias", "an object" },
    { OPENAI_CHAT, "\"logit_bias\":{\"a\":1}", ERR_INVALID, "logit_bias", "from 0 to 999" },
    { OPENAI_CHAT, "\"logit_bias\":{\"1000\":1}", ERR_INVALID, "logit_bias", "'1000'" },
    { OPENAI_CHAT, "\"logit_bias\":{\"5\":101}", ERR_INVALID, "logit_bias",
      "between -100 and 100" },
    { OPENAI_CHAT, "\"logprobs\":3", ERR_INVALID, "logprobs", "true or false" },
    { OPENAI_CHAT, "\"top_logprobs\":2", ERR_INVALID, "top_logprobs", "only with 'logprobs'" },
    { OPENAI_CHAT, "\"logprobs\":true,\"top_logprobs\":21", ERR_INVALID, "top_logprobs",
      "between 0 and 20" },
    { OPENAI_COMPLETION, "\"logprobs\":21", ERR_INVALID, "logprobs", "between 0 and 20" },
    { OPENAI_COMPLETION, "\"logprobs\":true", ERR_INVALID, "logprobs", "an integer" },
    { OPENAI_COMPLETION, "\"best_of\":3", ERR_UNPROCESSABLE, "best_of", "it is 3, n is 1" },
    { OPENAI_COMPLETION, "\"suffix\":\"x\"", ERR_UNPROCESSABLE, "suffix", "not supported" },
    { OPENAI_COMPLETION, "\"echo\":\"x\"", ERR_INVALID, "echo", "true or false" },
    { OPENAI_CHAT, "\"tools\":[{\"type\":\"function\"}]", ERR_UNPROCESSABLE, "tools",
      "not supported" },
    { OPENAI_CHAT, "\"tool_choice\":\"required\"", ERR_UNPROCESSABLE, "tool_choice",
      "none or auto" },
    { OPENAI_CHAT, "\"response_format\":{\"type\":\"json_object\"}", ERR_UNPROCESSABLE,
      "response_format", "text" },
    { OPENAI_CHAT, "\"response_format\":5", ERR_INVALID, "response_format", "object" },
    { OPENAI_CHAT, "\"modalities\":[\"audio\"]", ERR_UNPROCESSABLE, "modalities", "text" },
    { OPENAI_CHAT, "\"model\":7", ERR_INVALID, "model", "a string" },
    { OPENAI_CHAT, "\"thinking\":{\"type\":\"maybe\"}", ERR_INVALID, "thinking", "'maybe'" },
    { OPENAI_CHAT, "\"chat_template_kwargs\":{\"x\":1}", ERR_INVALID, "chat_template_kwargs",
      "'x'" },
    { OPENAI_CHAT, "\"best_of\":2", ERR_INVALID, "best_of", "not a field of this path" },
    { OPENAI_CHAT, "\"id\":1", ERR_INVALID, "id", "Unknown field 'id'." },
    { OPENAI_CHAT, "\"\":1", ERR_INVALID, "", "Unknown field ''." },
    { OPENAI_CHAT, "\"stream\":true,\"stream_options\":{\"include_usage\":1}", ERR_INVALID,
      "stream_options.include_usage", "true or false" },
    { OPENAI_TOKENIZE, "\"prompt\":[\"a\"]", ERR_INVALID, "prompt",
      "must be a string, but it is an array" },
    { OPENAI_CHAT, "\"tempratur\":1", ERR_INVALID, "tempratur", "did you mean 'temperature'" },
    { OPENAI_CHAT, "\"prompt\":\"x\"", ERR_INVALID, "prompt", "not a field of this path" },
    { OPENAI_COMPLETION, "\"messages\":[]", ERR_INVALID, "messages", "not a field of this path" },
    { OPENAI_CHAT, "\"messages\":[]", ERR_INVALID, "messages", "at least one message" },
    { OPENAI_CHAT, "\"messages\":\"hi\"", ERR_INVALID, "messages", "an array of messages" },
    { OPENAI_CHAT, "\"messages\":[5]", ERR_INVALID, "messages[0]", "an object" },
    { OPENAI_CHAT, "\"messages\":[{\"role\":\"wizard\",\"content\":\"x\"}]", ERR_INVALID,
      "messages[0].role", "'wizard'" },
    { OPENAI_CHAT, "\"messages\":[{\"content\":\"x\"}]", ERR_INVALID, "messages[0].role",
      "a string" },
    { OPENAI_CHAT, "\"messages\":[{\"role\":\"user\"}]", ERR_INVALID, "messages[0].content",
      "missing" },
    { OPENAI_CHAT, "\"messages\":[{\"role\":\"user\",\"content\":null}]", ERR_INVALID,
      "messages[0].content", "null" },
    { OPENAI_CHAT, "\"messages\":[{\"role\":\"user\",\"content\":[5]}]", ERR_INVALID,
      "messages[0].content", "a number" },
    { OPENAI_CHAT, "\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]",
      ERR_UNPROCESSABLE, "messages[0].content", "'image_url'" },
    { OPENAI_CHAT, "\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"contents\":1}]",
      ERR_INVALID, "messages[0].contents", "did you mean 'content'" },
    { OPENAI_CHAT, "\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"prefix\":true}]",
      ERR_INVALID, "messages[0].prefix", "assistant" },
    { OPENAI_CHAT, "\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{}]}]", ERR_INVALID,
      "messages[0].tool_calls", "function.name" },
    { OPENAI_COMPLETION, "\"prompt\":5", ERR_INVALID, "prompt", "a string, strings, token ids" },
    { OPENAI_COMPLETION, "\"prompt\":[]", ERR_INVALID, "prompt", "empty" },
    { OPENAI_COMPLETION, "\"prompt\":[1,1000]", ERR_INVALID, "prompt", "between 0 and 999" },
    { OPENAI_COMPLETION, "\"prompt\":[1,\"a\"]", ERR_INVALID, "prompt", "an integer" },
    { OPENAI_COMPLETION, "\"prompt\":[\"a\",1]", ERR_INVALID, "prompt", "a number" },
    { OPENAI_COMPLETION, "\"prompt\":[\"a\",\"b\"],\"n\":65", ERR_INVALID, "n", "at most 128" },
};

static void test_parse_wrong_field_is_refused_by_name(void **state)
{
    /* Users find their mistake by what the error names; a default silently used instead costs them
     * a day. */
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const refusal_t *one = &refusals[i];
        err_t error = parse_field(one->kind, one->field);
        bool is_right = error == one->error && strcmp(why.param, one->param) == 0 &&
                        strstr(why.message, one->words) != NULL;
        if (!is_right)
            print_error("%s: error %d, param '%s', message '%s'\n", one->field, error, why.param,
                        why.message);
        assert_true(is_right);
    }
}

static void test_parse_good_fields_are_taken(void **state)
{
    /* Each option must reach the sampler as it was sent. */
    assert_int_equal(parse_field(OPENAI_CHAT,
                                 "\"temperature\":0.5,\"top_p\":0.25,\"min_p\":0.125,\"top_k\":40,"
                                 "\"presence_penalty\":-2,\"frequency_penalty\":2,"
                                 "\"repetition_penalty\":1.5,\"seed\":-3,\"n\":2,\"max_completion_"
                                 "tokens\":9,\"stop\":[\"a\",\"bc\"],"
                                 "\"stop_token_ids\":[5,6],\"ignore_eos\":true,\"logit_bias\":{"
                                 "\"7\":-100,\"8\":2.5},\"logprobs\":true,"
                                 "\"top_logprobs\":4,\"stream\":true,\"stream_options\":{\"include_"
                                 "usage\":true},\"model\":\"m\""),
                     ERR_OK);
    const sampling_t *s = &call.sampling;
    assert_true(s->temperature == 0.5f && s->top_p == 0.25f && s->min_p == 0.125f &&
                s->top_k == 40 && s->presence_penalty == -2.0f);
    assert_true(s->frequency_penalty == 2.0f && s->repetition_penalty == 1.5f &&
                s->seed == (u64)-3 && call.has_seed && s->ignore_eos == 1);
    assert_true(s->logprobs == 1 && s->top_logprobs == 4 && call.n == 2 && call.max_tokens == 9 &&
                call.has_max_tokens);
    assert_true(call.stop_count == 2 && call.stops[1].size == 2 &&
                strcmp(call.stops[1].text, "bc") == 0);
    assert_true(call.stop_id_count == 2 && call.stop_ids[1] == 6 && call.bias_count == 2 &&
                call.bias_ids[0] == 7 && call.bias_values[1] == 2.5f);
    assert_true(call.is_stream && call.has_usage_chunk && strcmp(call.model, "m") == 0);
}

static void test_parse_seed_keeps_every_bit(void **state)
{
    /* A seed that was drawn from 64 bits and came back rounded would not repeat its text. */
    static const struct {
        const char *field;
        int64_t seed;
    } cases[] = {
        { "\"seed\":9007199254740993", 9007199254740993 },
        { "\"seed\" : -9007199254740993 ", -9007199254740993 },
        { "\"seed\":9223372036854775807", INT64_MAX },
        { "\"seed\":-9223372036854775808", INT64_MIN },
        { "\"seed\":0,\"n\":2", 0 },
        { "\"seed\":1e3", 1000 },
        { "\"seed\":12.0", 12 },
        { "\"s\\u0065ed\":77", 77 },
        { "\"user\":\"\\\"seed\\\":1, \\\\\",\"seed\":9007199254740995,\"metadata\":{\"seed\":3}",
          9007199254740995 },
        { "\"user\":\"seed\",\"seed\":9007199254740997,\"stop\":[\"seed\"]", 9007199254740997 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse_field(OPENAI_CHAT, cases[i].field), ERR_OK);
        if (call.sampling.seed != (u64)cases[i].seed) print_error("%s\n", cases[i].field);
        assert_true(call.has_seed && call.sampling.seed == (u64)cases[i].seed);
    }
    assert_int_equal(parse_field(OPENAI_CHAT, "\"seed\":9223372036854775808"), ERR_INVALID);
    assert_string_equal(why.param, "seed");
}

static void test_parse_absent_and_null_fields_mean_defaults(void **state)
{
    /* Client libraries send null for what their user left out. */
    assert_int_equal(parse_field(OPENAI_CHAT, ""), ERR_OK);
    openai_call_t plain = call;
    assert_int_equal(parse_field(OPENAI_CHAT,
                                 "\"temperature\":null,\"stop\":null,\"n\":null,\"tools\":null,"
                                 "\"max_tokens\":null,\"seed\":null,\"model\":null"),
                     ERR_OK);
    assert_memory_equal(&plain.sampling, &call.sampling, sizeof call.sampling);
    assert_true(call.n == 1 && !call.has_seed && !call.has_max_tokens && call.stop_count == 0 &&
                call.thinking == -1);
    assert_true(call.sampling.temperature == 1.0f && call.sampling.top_p == 1.0f &&
                call.sampling.repetition_penalty == 1.0f);
    assert_false(call.is_bare);
    assert_int_equal(parse_field(OPENAI_COMPLETION, "\"add_special_tokens\":false"), ERR_OK);
    assert_true(call.is_bare);
    assert_int_equal(parse_field(OPENAI_COMPLETION, "\"add_special_tokens\":1"), ERR_INVALID);
}

static void test_parse_harmless_fields_are_ignored(void **state)
{
    /* What clients send out of habit must not break them. */
    assert_int_equal(parse_field(OPENAI_CHAT,
                                 "\"user\":\"u\",\"metadata\":{\"a\":\"b\"},\"store\":false,"
                                 "\"service_tier\":\"auto\",\"tools\":[],\"tool_choice\":\"auto\","
                                 "\"response_format\":{\"type\":\"text\"},\"modalities\":[\"text\"]"
                                 ",\"top_k\":-1,\"reasoning_effort\":\"low\""),
                     ERR_OK);
    assert_int_equal(call.sampling.top_k, 0);
    assert_int_equal(parse_field(OPENAI_COMPLETION, "\"suffix\":\"\",\"best_of\":1,\"n\":1"),
                     ERR_OK);
    assert_int_equal(parse_field(OPENAI_CHAT, "\"chat_template_kwargs\":{\"thinking\":false}"),
                     ERR_OK);
    assert_int_equal(call.thinking, 0);
    assert_int_equal(parse_field(OPENAI_CHAT, "\"thinking\":{\"type\":\"enabled\"}"), ERR_OK);
    assert_int_equal(call.thinking, 1);
}

static void test_parse_messages_are_copied_whole(void **state)
{
    /* The template renders what is here: a part that is dropped is never seen by the model. */
    assert_int_equal(
        parse(OPENAI_CHAT,
              "{\"messages\":[{\"role\":\"developer\",\"content\":\"d\"},{\"role\":\"user\","
              "\"content\":[{\"type\":\"text\",\"text\":\"a\\u00e9\"},"
              "{\"type\":\"text\",\"text\":\"b\"}]},{\"role\":\"assistant\",\"content\":null,"
              "\"reasoning_content\":\"r\",\"tool_calls\":[{\"id\":\"1\","
              "\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},{"
              "\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"t\"},"
              "{\"role\":\"assistant\",\"content\":\"go\",\"prefix\":true}]}"),
        ERR_OK);
    assert_int_equal(call.message_count, 5);
    const chat_message_t *m = call.messages;
    assert_true(m[0].role == CHAT_SYSTEM && m[1].role == CHAT_USER && m[2].role == CHAT_ASSISTANT &&
                m[3].role == CHAT_TOOL);
    assert_string_equal(m[1].content, "a\xc3\xa9"
                                      "b");
    assert_int_equal(m[1].content_size, 4);
    assert_true(m[2].call_count == 1 && strcmp(m[2].calls[0].name, "f") == 0 &&
                m[2].calls[0].arguments_size == 2 && m[2].content_size == 0);
    assert_true(m[4].is_prefix && !m[3].is_prefix);
}

static void test_parse_last_message_is_continued_in_both_dialects(void **state)
{
    /* vLLM's users say it beside the messages, DeepSeek's inside the last one. */
    static const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},"
                               "{\"role\":\"%s\",\"content\":\"a\"}]%s}";
    char text[512];
    snprintf(text, sizeof text, body, "assistant",
             ",\"continue_final_message\":true,\"add_generation_prompt\":false");
    assert_int_equal(parse(OPENAI_CHAT, text), ERR_OK);
    assert_true(call.messages[1].is_prefix && !call.messages[0].is_prefix);
    snprintf(text, sizeof text, body, "assistant", ",\"add_generation_prompt\":true");
    assert_int_equal(parse(OPENAI_CHAT, text), ERR_OK);
    assert_false(call.messages[1].is_prefix);
    snprintf(text, sizeof text, body, "user", ",\"continue_final_message\":true");
    assert_int_equal(parse(OPENAI_CHAT, text), ERR_INVALID);
    assert_string_equal(why.param, "continue_final_message");
    snprintf(text, sizeof text, body, "user", ",\"add_generation_prompt\":false");
    assert_int_equal(parse(OPENAI_CHAT, text), ERR_UNPROCESSABLE);
    assert_string_equal(why.param, "add_generation_prompt");
}

static void test_parse_prompt_comes_in_four_shapes(void **state)
{
    /* Benchmarks send token ids, batch users send lists. */
    assert_int_equal(parse(OPENAI_COMPLETION, "{\"prompt\":[\"a\",\"bc\"]}"), ERR_OK);
    assert_true(call.prompt_count == 2 && call.prompts[1].size == 2 &&
                strcmp(call.prompts[1].text, "bc") == 0);
    assert_int_equal(parse(OPENAI_COMPLETION, "{\"prompt\":[1,2,999]}"), ERR_OK);
    assert_true(call.prompt_count == 1 && call.prompts[0].text == NULL &&
                call.prompts[0].count == 3 && call.prompts[0].ids[2] == 999);
    assert_int_equal(parse(OPENAI_COMPLETION, "{\"prompt\":[[1],[2,3]]}"), ERR_OK);
    assert_true(call.prompt_count == 2 && call.prompts[1].count == 2 &&
                call.prompts[1].ids[1] == 3);
    assert_int_equal(parse(OPENAI_COMPLETION,
                           "{\"prompt\":\"x\",\"echo\":true,\"max_tokens\":0,\"logprobs\":0}"),
                     ERR_OK);
    assert_true(call.is_echo && call.has_max_tokens && call.max_tokens == 0 &&
                call.sampling.prompt_logprobs == 1);
    assert_int_equal(parse(OPENAI_DETOKENIZE, "{\"tokens\":[]}"), ERR_OK);
    assert_int_equal(parse(OPENAI_DETOKENIZE, "{\"tokens\":\"a\"}"), ERR_INVALID);
    assert_int_equal(parse(OPENAI_TOKENIZE, "{\"prompt\":\"\"}"), ERR_OK);
    assert_int_equal(parse(OPENAI_TOKENIZE, "{}"), ERR_INVALID);
}

static void test_parse_malformed_bodies_are_refused(void **state)
{
    /* None of these may crash, hang, or pass. */
    static const char *const bodies[] = { "",
                                          "{",
                                          "[]",
                                          "nul",
                                          "{\"messages\":",
                                          "\xff\xfe{}",
                                          "{}x",
                                          "{\"a\":\"\\u0000\"}",
                                          "{\"prompt\":\"\xc3\x28\"}",
                                          "{\"a\"}",
                                          "\"text\"",
                                          "{\"prompt\":\"\\ud800\"}",
                                          "{\"prompt\":\"x\",}",
                                          "{'prompt':'x'}" };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        assert_int_equal(parse(OPENAI_COMPLETION, bodies[i]), ERR_INVALID);
        assert_true(strlen(why.message) > 10);
    }
    assert_int_equal(parse_sized(OPENAI_COMPLETION, "{\"prompt\":\"a\0b\"}", 16), ERR_INVALID);
}

static void test_parse_what_only_resembles_json_is_refused_by_position(void **state)
{
    /* A gateway before this server reads such a body as something else, or not at all. */
    static const struct {
        const char *value, *words;
    } cases[] = {
        { "01", "number at position 17 is not JSON's: it must not begin with a zero" },
        { "-01", "must not begin with a zero" },
        { "1.", "a digit must follow its point" },
        { "1.e2", "a digit must follow its point" },
        { "+1", "it must begin with a digit" },
        { ".5", "it must begin with a digit" },
        { "-.5", "it must begin with a digit" },
        { "- 1", "it must begin with a digit" },
        { "-", "it must begin with a digit" },
        { "1e", "a digit must follow its exponent's e" },
        { "1E+", "a digit must follow its exponent's e" },
        { "1-1", "something that is no part of it follows" },
        { "1.5.5", "something that is no part of it follows" },
        { "0x10", "something that is no part of it follows" },
        { "1_000", "something that is no part of it follows" },
        { "1e5f", "something that is no part of it follows" },
        { "NaN", "not valid JSON" },
        { "-Infinity", "it must begin with a digit" },
        { "\v1", "byte 0x0b at position 17" },
        { "1\x01", "something that is no part of it follows" },
        { "\"a\nb\"", "control character 0x0a at position 19" },
        { "\"\x1f\"", "control character 0x1f at position 18" },
        { "\"\\u12g4\"", "\\u at position 18 needs four hexadecimal digits" },
        { "\"\\u12\"", "needs four hexadecimal digits" },
        { "\"\\u\"", "needs four hexadecimal digits" },
        { "\"\\u0000\"", "NUL character (\\u0000) at position 18" },
        { "\"\\ud800\"", "\\ud800 at position 18 is half of a surrogate pair" },
        { "\"\\udc00\"", "half of a surrogate pair" },
        { "\"\\ud800\\u0041\"", "half of a surrogate pair" },
        { "\"\\ud800\\ud800\"", "half of a surrogate pair" },
        { "\"\\x41\"", "backslash at position 18 escapes nothing" },
        { "\"\\\n\"", "backslash at position 18 escapes nothing" },
        { "\"a", "not valid JSON" },
        { "\"\\", "escapes nothing" },
        { "\"\\\"", "not valid JSON" },
    };
    static const char *const good[] = {
        "0",
        "-0",
        "0.5",
        "-0.5e-3",
        "10E+2",
        "1e5",
        "[0,1]",
        "\"\\\\\"",
        "\"\\ud83d\\uDE00\"",
        "\"\\u00e9\\/\"",
        "\"\x7f\"",
        "{\"a\":0}",
    };
    char body[64];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(body, sizeof body, "{\"prompt\":\"\",\"u\":%s}", cases[i].value);
        assert_int_equal(parse(OPENAI_COMPLETION, body), ERR_INVALID);
        if (strstr(why.message, cases[i].words) == NULL)
            print_error("%s: '%s'\n", cases[i].value, why.message);
        assert_non_null(strstr(why.message, cases[i].words));
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        snprintf(body, sizeof body, "{\"prompt\":\"\",\"user\":%s}", good[i]);
        assert_int_equal(parse(OPENAI_COMPLETION, body), ERR_OK);
    }
}

static void test_parse_name_that_is_there_twice_is_refused(void **state)
{
    /* A gateway that checks the first and a server that takes the last agree on nothing. */
    static const struct {
        openai_kind_t kind;
        const char *body, *param, *words;
    } cases[] = {
        { OPENAI_COMPLETION, "{\"prompt\":\"a\",\"prompt\":\"a\"}", "prompt",
          "'prompt' is there twice." },
        { OPENAI_COMPLETION, "{\"seed\":1,\"prompt\":\"a\",\"s\\u0065ed\":2}", "seed",
          "'seed' is there twice." },
        { OPENAI_COMPLETION, "{\"n\":null,\"prompt\":\"a\",\"n\":1}", "n", "twice" },
        { OPENAI_COMPLETION, "{\"prompt\":\"a\",\"logit_bias\":{\"5\":1,\"6\":1,\"5\":2}}",
          "logit_bias", "'5' is there twice in an object in 'logit_bias'" },
        { OPENAI_COMPLETION, "{\"prompt\":\"a\",\"logit_bias\":{\"5\":1,\"05\":2}}", "logit_bias",
          "token ids" },
        { OPENAI_COMPLETION, "{\"prompt\":\"a\",\"metadata\":[0,{\"b\":[{\"c\":1,\"c\":2}]}]}",
          "metadata", "'c' is there twice in an object in 'metadata'" },
        { OPENAI_CHAT,
          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
          "{\"role\":\"user\",\"content\":\"a\",\"content\":\"b\"}]}",
          "messages", "'content' is there twice in an object in 'messages'" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse(cases[i].kind, cases[i].body), ERR_INVALID);
        assert_string_equal(why.param, cases[i].param);
        assert_non_null(strstr(why.message, cases[i].words));
    }
    static const char messages[] = "[{\"role\":\"user\",\"role\":\"system\",\"content\":\"a\"}]";
    arena.used = 0;
    assert_int_equal(
        openai_parse_messages(&call, (bytes_t){ messages, strlen(messages) }, &arena, &why),
        ERR_INVALID);
    assert_non_null(strstr(why.message, "'role' is there twice"));
    assert_int_equal(parse(OPENAI_COMPLETION,
                           "{\"prompt\":\"a\",\"metadata\":[{\"c\":1},{\"c\":1,\"C\":1,"
                           "\"d\":{\"c\":1}}]}"),
                     ERR_OK);
}

static void test_parse_deep_and_wide_bodies_are_bounded(void **state)
{
    /* A few megabytes of brackets or commas must not take the stack or the memory. */
    char *body = malloc(2 << 20);
    assert_non_null(body);
    memset(body, '[', 100000);
    assert_int_equal(parse_sized(OPENAI_COMPLETION, body, 100000), ERR_INVALID);
    assert_non_null(strstr(why.message, "nested deeper"));
    size_t used = (size_t)snprintf(body, 2 << 20, "{\"prompt\":[");
    while (used < (1 << 20)) used += (size_t)snprintf(body + used, 8, "1,");
    used += (size_t)snprintf(body + used, 8, "1]}");
    assert_int_equal(parse_sized(OPENAI_COMPLETION, body, used), ERR_TOO_LARGE);
    used = (size_t)snprintf(body, 2 << 20, "{\"prompt\":\"a\",\"metadata\":{\"a\":0");
    for (int i = 0; i < OPENAI_NAMES_MAX; i++)
        used += (size_t)snprintf(body + used, 16, ",\"%d\":1", i);
    used += (size_t)snprintf(body + used, 8, "}}");
    assert_int_equal(parse_sized(OPENAI_COMPLETION, body, used), ERR_TOO_LARGE);
    assert_non_null(strstr(why.message, "more than 4096 names"));
    arena.size = 64;
    assert_int_equal(parse(OPENAI_COMPLETION, "{\"prompt\":\"a text that is longer than the arena "
                                              "has room for, which is sixty-four bytes\"}"),
                     ERR_TOO_LARGE);
    arena.size = ARENA_BYTES;
    free(body);
}

static void test_error_is_printed_in_openai_form(void **state)
{
    /* Client libraries read message, type, param and code by name. */
    char text[512];
    writer_t out = { .text = text, .cap = sizeof text };
    openai_refuse(&why, ERR_INVALID, "n", "Say \"%s\".", "no");
    openai_print_error(&out, &why);
    assert_int_equal(out.used, strlen("{\"error\":{\"message\":\"Say "
                                      "\\\"no\\\".\",\"type\":\"invalid_request_error\",\"param\":"
                                      "\"n\",\"code\":\"invalid\"}}"));
    assert_memory_equal(
        text,
        "{\"error\":{\"message\":\"Say "
        "\\\"no\\\".\",\"type\":\"invalid_request_error\",\"param\":\"n\",\"code\":\"invalid\"}}",
        out.used);
    out.used = 0;
    openai_refuse(&why, ERR_OVERLOAD, "", "x");
    openai_print_error(&out, &why);
    assert_memory_equal(text,
                        "{\"error\":{\"message\":\"x\",\"type\":\"rate_limit_error\",\"param\":"
                        "null,\"code\":\"overload\"}}",
                        out.used);
    /* A path or a header may hold any byte, and a name may be cut anywhere: no client could decode
     * the answer. */
    openai_refuse(&why, ERR_INVALID, "", "a\xff %.1s \xc3\xa4", "\xc3\xa4");
    assert_string_equal(why.message, "a? ? \xc3\xa4");
}

static int make_arena(void **state)
{
    arena = (arena_t){ .bytes = malloc(ARENA_BYTES), .size = ARENA_BYTES };
    return arena.bytes == NULL;
}

static int free_arena(void **state)
{
    free(arena.bytes);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_wrong_field_is_refused_by_name),
        cmocka_unit_test(test_parse_good_fields_are_taken),
        cmocka_unit_test(test_parse_seed_keeps_every_bit),
        cmocka_unit_test(test_parse_absent_and_null_fields_mean_defaults),
        cmocka_unit_test(test_parse_harmless_fields_are_ignored),
        cmocka_unit_test(test_parse_messages_are_copied_whole),
        cmocka_unit_test(test_parse_last_message_is_continued_in_both_dialects),
        cmocka_unit_test(test_parse_prompt_comes_in_four_shapes),
        cmocka_unit_test(test_parse_malformed_bodies_are_refused),
        cmocka_unit_test(test_parse_what_only_resembles_json_is_refused_by_position),
        cmocka_unit_test(test_parse_name_that_is_there_twice_is_refused),
        cmocka_unit_test(test_parse_deep_and_wide_bodies_are_bounded),
        cmocka_unit_test(test_error_is_printed_in_openai_form),
    };
    return cmocka_run_group_tests(tests, make_arena, free_arena);
}
