/* tests/model/test_tokenizer.c - the tokenizer against HF's own ids, hostile files and hostile
 * texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
/* cmocka needs the four above first. */
#include <cmocka.h>

#include <cjson/cJSON.h>

#include "runtime/model/tokenizer.h"

#define TINY        SOURCE_DIR "/models/tiny"
#define DEEPSEEK_V3 SOURCE_DIR "/../shared/tokenizers/deepseek_v3"
#define GOLDEN      SOURCE_DIR "/tests/golden/tokenizer_cases.json"

enum { IDS_MAX = 1 << 16, CASES = 427 };
static uint32_t ids[IDS_MAX];
static char text[1 << 20];

static char *read_whole(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *bytes = malloc(16 << 20);
    *size = fread(bytes, 1, (16 << 20) - 1, file);
    bytes[*size] = 0;
    fclose(file);
    return bytes;
}

static tokenizer_t *load(const char *dir)
{
    error_text_t why = { "" };
    tokenizer_t *tokenizer = tokenizer_new(dir, &why);
    if (!tokenizer) fail_msg("%s", why.text);
    return tokenizer;
}

static uint64_t random_state = 1;
static uint32_t random_below(uint32_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % bound;
}

/* ---- golden
 * ------------------------------------------------------------------------------------------ */

/* cJSON ends a string at U+0000, so the file's \u0000 are read as \ue000 (which no case has) and
 * become NUL here. */
static size_t text_with_nuls(const char *from, char out[1024])
{
    size_t size = 0;
    for (size_t i = 0; from[i]; i++) {
        bool is_nul = strncmp(from + i, "\xee\x80\x80", 3) == 0;
        out[size++] = is_nul ? 0 : from[i];
        if (is_nul) i += 2;
        assert_true(size < 1024);
    }
    return size;
}

static void check_case(tokenizer_t *tokenizer, const cJSON *item, const char *column)
{
    char expected[1024];
    const cJSON *list = cJSON_GetObjectItem(item, column), *id;
    size_t size = text_with_nuls(cJSON_GetObjectItem(item, "text")->valuestring, expected);
    size_t count = tokenizer_encode(tokenizer, expected, size, true, ids, IDS_MAX), i = 0;
    assert_int_equal(count, cJSON_GetArraySize(list));
    cJSON_ArrayForEach(id, list) assert_int_equal(ids[i++], id->valueint);
    assert_int_equal(tokenizer_decode(tokenizer, ids, count, false, text, sizeof text), size);
    assert_memory_equal(text, expected, size);
}

static cJSON *golden_cases(void)
{
    size_t size;
    char *json = read_whole(GOLDEN, &size);
    assert_non_null(json);
    assert_null(strstr(json, "\\ue000"));
    for (char *nul = json; (nul = strstr(nul, "\\u0000")); nul += 6) memcpy(nul, "\\ue000", 6);
    cJSON *cases = cJSON_ParseWithLength(json, size);
    free(json);
    assert_int_equal(cJSON_GetArraySize(cases), CASES);
    return cases;
}

static void check_golden(tokenizer_t *tokenizer, const char *column)
{
    cJSON *cases = golden_cases(), *item;
    cJSON_ArrayForEach(item, cases) check_case(tokenizer, item, column);
    cJSON_Delete(cases);
}

/* If it failed, the tiny model would read other words than it was trained on. */
static void test_tokenizer_tiny_golden_matches_hf(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = load(TINY);
    check_golden(tokenizer, "tiny");
    check_golden(tokenizer, "tiny"); /* again, from the cache */
    tokenizer_destroy(&tokenizer);
    assert_null(tokenizer);
}

/* If it failed, DeepSeek-V3 and R1 would read other words than they were trained on, or start
 * slowly. */
static void test_tokenizer_deepseek_v3_golden_matches_hf(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = load(DEEPSEEK_V3);
    assert_int_equal(tokenizer_vocab(tokenizer), 128815);
    check_golden(tokenizer, "deepseek_v3");
    check_golden(tokenizer, "deepseek_v3");
    tokenizer_destroy(&tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_tiny_golden_matches_hf),
        cmocka_unit_test(test_tokenizer_deepseek_v3_golden_matches_hf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
