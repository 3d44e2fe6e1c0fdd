/* tests/engine/test_solo.c - the model alone, as `troupe run` uses it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "runtime/engine/solo.h"

enum { TOKENS_MAX = 64 };

typedef struct {
    solo_token_t tokens[TOKENS_MAX];
    uint32_t count, stop_after;
} heard_t;

static bool hear(void *context, const solo_token_t *token)
{
    heard_t *heard = context;
    assert_true(heard->count < TOKENS_MAX && token->index == heard->count);
    heard->tokens[heard->count++] = *token;
    return heard->count != heard->stop_after;
}

static void on_progress(void *context, double fraction)
{
    double *last = context;
    assert_true(fraction > *last && fraction <= 1.0);
    *last = fraction;
}

static cJSON *read_reference(void)
{
    FILE *file = fopen(SOURCE_DIR "/tests/golden/tiny/reference.json", "rb");
    if (!file) fail_msg("tests/golden/tiny/reference.json is missing");
    char *text = malloc(1 << 20);
    size_t size = fread(text, 1, 1 << 20, file);
    fclose(file);
    cJSON *root = cJSON_ParseWithLength(text, size);
    free(text);
    assert_non_null(root);
    return root;
}

static uint32_t read_list(const cJSON *list, uint32_t *out)
{
    uint32_t count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        assert_true(count < 256);
        out[count++] = (uint32_t)item->valuedouble;
    }
    return count;
}

static solo_t *open_tiny(double *progress)
{
    error_text_t why;
    solo_options_t options = { .dir = SOURCE_DIR "/models/tiny",
                               .ops = "auto",
                               .threads = 1,
                               .progress = on_progress,
                               .progress_context = progress };
    solo_t *solo = solo_new(&options, &why);
    if (!solo) fail_msg("%s", why.text);
    return solo;
}

/* If this failed, `troupe run` would show other tokens or logits than the model's. */
static void test_solo_tells_the_references_tokens_and_top_logits(void **state)
{
    double progress = 0;
    error_text_t why;
    uint32_t prompt[256], greedy[256];
    solo_t *solo = open_tiny(&progress);
    assert_true(progress > 0.999);
    cJSON *root = read_reference();
    for (int i = 0; i < 8; i += 3) {
        const cJSON *item = cJSON_GetArrayItem(root, i);
        heard_t heard = { 0 };
        uint32_t expected = read_list(cJSON_GetObjectItem(item, "greedy_ids"), greedy);
        solo_request_t request = { .ids = prompt,
                                   .count =
                                       read_list(cJSON_GetObjectItem(item, "prompt_ids"), prompt),
                                   .tokens_max = expected,
                                   .sampling = sampling_default,
                                   .on_token = hear,
                                   .context = &heard };
        request.sampling.temperature = 0;
        request.sampling.top_logprobs = 5;
        assert_int_equal(solo_run(solo, &request, &why), ERR_OK);
        assert_int_equal(heard.count, expected);
        const cJSON *top = cJSON_GetObjectItem(item, "top5");
        for (uint32_t t = 0; t < expected; t++) {
            const cJSON *best = cJSON_GetArrayItem(cJSON_GetArrayItem(top, (int)t), 0);
            double difference =
                cJSON_GetArrayItem(best, 1)->valuedouble - (double)heard.tokens[t].logit;
            assert_int_equal(heard.tokens[t].id, greedy[t]);
            assert_true(difference < 0.5 && difference > -0.5);
            assert_true(heard.tokens[t].top_count == 5 && heard.tokens[t].top_ids[0] == greedy[t]);
        }
    }
    cJSON_Delete(root);
    solo_destroy(&solo);
}

/* If this failed, a wrong prompt on the command line would crash the program. */
static void test_solo_refuses_what_it_cannot_run_and_stops_when_told(void **state)
{
    double progress = 0;
    error_text_t why;
    heard_t heard = { .stop_after = 2 };
    solo_t *solo = open_tiny(&progress);
    uint32_t ids[] = { 0, 4096 }, *long_prompt = calloc(4096, sizeof *long_prompt);
    solo_request_t request = {
        .ids = ids, .count = 0, .tokens_max = 9, .on_token = hear, .context = &heard
    };
    request.sampling = sampling_default;
    assert_int_equal(solo_run(solo, &request, &why), ERR_INVALID);
    request.count = 2;
    assert_int_equal(solo_run(solo, &request, &why), ERR_INVALID);
    assert_non_null(strstr(why.text, "4095"));
    request.ids = long_prompt;
    request.count = 4096;
    assert_int_equal(solo_run(solo, &request, &why), ERR_CONTEXT);
    assert_int_equal(heard.count, 0);
    request.count = 5;
    request.sampling.ignore_eos = 1;
    assert_int_equal(solo_run(solo, &request, &why), ERR_OK);
    assert_int_equal(heard.count, 2);
    free(long_prompt);
    solo_destroy(&solo);
    solo_options_t missing = { .dir = "/nowhere", .ops = "auto", .threads = 1 };
    assert_null(solo_new(&missing, &why));
    assert_non_null(strstr(why.text, "/nowhere"));
    missing.ops = "abacus";
    assert_null(solo_new(&missing, &why));
    assert_non_null(strstr(why.text, "abacus"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_solo_tells_the_references_tokens_and_top_logits),
        cmocka_unit_test(test_solo_refuses_what_it_cannot_run_and_stops_when_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
