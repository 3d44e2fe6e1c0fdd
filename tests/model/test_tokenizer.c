/* tests/model/test_tokenizer.c - the tokenizer against HF's own ids, hostile files and hostile
 * texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs the four above first. */
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <malloc.h>
#include <unistd.h>

#include "runtime/model/tokenizer.h"
#include "runtime/model/tokenizer_split.h"
#include "runtime/model/tokenizer_utf8.h"

#define TINY        SOURCE_DIR "/models/tiny"
#define DEEPSEEK_V3 SOURCE_DIR "/../shared/tokenizers/deepseek_v3"
#define GOLDEN      SOURCE_DIR "/tests/golden/tokenizer_cases.json"

enum { IDS_MAX = 1 << 16, CASES = 427 };
static uint32_t ids[IDS_MAX];
static char text[1 << 20];
static bool is_data_missing; /* the program then ends with 77, which CTest can tell from success */

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

/* ---- golden ---- */

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

/* With so much work a turn. */
static size_t encode_in_steps(tokenizer_t *tokenizer, const char *from, size_t size, size_t work,
                              uint32_t *out, size_t cap)
{
    encoding_t encoding;
    size_t left = work;
    encoding_begin(&encoding, from, size, true, out, cap);
    while (!tokenizer_encode_step(tokenizer, &encoding, &left)) {
        assert_int_equal(left, 0); /* nobody else has the room for long words */
        left = work;
    }
    return encoding.count;
}

static void check_steps(tokenizer_t *tokenizer, const char *from, size_t size, size_t count)
{
    static uint32_t stepped[IDS_MAX];
    static const size_t works[] = { 1, 2, 3, 7, 20, 64, 1000, 1 << 16 };
    for (size_t i = 0; i < sizeof works / sizeof *works; i++) {
        assert_int_equal(encode_in_steps(tokenizer, from, size, works[i], stepped, IDS_MAX), count);
        assert_memory_equal(stepped, ids, count * sizeof *ids);
    }
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
    if (utf8_valid_size((const uint8_t *)expected, size) == size)
        check_steps(tokenizer, expected, size, count);
}

static cJSON *golden_cases(void)
{
    size_t size = 0;
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
    if (access(DEEPSEEK_V3 "/tokenizer.json", R_OK) != 0) {
        printf("%s/tokenizer.json is missing: this test cannot run\n", DEEPSEEK_V3);
        is_data_missing = true;
        skip();
    }
    tokenizer_t *tokenizer = load(DEEPSEEK_V3);
    assert_int_equal(tokenizer_vocab(tokenizer), 128815);
    assert_int_equal(tokenizer_id(tokenizer, "<｜User｜>", strlen("<｜User｜>")), 128803);
    check_golden(tokenizer, "deepseek_v3");
    check_golden(tokenizer, "deepseek_v3");
    tokenizer_destroy(&tokenizer);
}

/* ---- the incremental detokeniser ---- */

/* Push all ids one by one, checking that every emission is valid UTF-8 by itself. */
static size_t push_all(const tokenizer_t *tokenizer, const uint32_t *from, size_t count, char *out)
{
    detokenizer_t held = { .held_count = 0 };
    size_t size = 0;
    for (size_t i = 0; i < count; i++) {
        size_t more = detokenizer_push(&held, tokenizer, from[i], i % 2 == 0, out + size,
                                       DETOKENIZER_EMIT_MAX);
        assert_true(more <= DETOKENIZER_EMIT_MAX);
        assert_int_equal(utf8_valid_size((const uint8_t *)out + size, more), more);
        size += more;
    }
    return size + detokenizer_finish(&held, out + size, DETOKENIZER_EMIT_MAX);
}

/* If it failed, a stream would show broken characters, or other text than the whole answer. */
static void test_detokenizer_any_ids_equal_whole_decode(void **state)
{
    (void)state;
    static char whole[1 << 16], pushed[1 << 16];
    tokenizer_t *tokenizer = load(TINY);
    for (int trial = 0; trial < 2000; trial++) {
        uint32_t list[48], count = random_below(48) + 1;
        /* Small ids are single bytes: most sequences are broken somewhere. */
        for (uint32_t i = 0; i < count; i++) list[i] = random_below(trial % 2 ? 260 : 4200);
        for (uint32_t i = 0; i < count; i++)
            if (i % 2 == 0 && list[i] < 3)
                list[i] = 5; /* push_all skips special tokens at even places */
        size_t size = tokenizer_decode(tokenizer, list, count, false, whole, sizeof whole);
        assert_true(size <= sizeof whole);
        assert_int_equal(utf8_valid_size((const uint8_t *)whole, size), size);
        assert_int_equal(push_all(tokenizer, list, count, pushed), size);
        assert_memory_equal(whole, pushed, size);
    }
    tokenizer_destroy(&tokenizer);
}

/* If it failed, end tokens would be printed, or markers like </think> lost. */
static void test_decode_skip_special_leaves_out_only_special_tokens(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = load(TINY);
    static const uint32_t list[] = { 0, 4082, 1466, 4085, 999999, 1 };
    text[tokenizer_decode(tokenizer, list, 6, true, text, sizeof text - 1)] = 0;
    assert_string_equal(text, "<｜User｜>Hello</think>");
    text[tokenizer_decode(tokenizer, list, 6, false, text, sizeof text - 1)] = 0;
    assert_string_equal(text,
                        "<｜begin▁of▁sentence｜><｜User｜>Hello</think><｜end▁of▁sentence｜>");
    tokenizer_destroy(&tokenizer);
}

/* If it failed, a buffer that is too small would be overrun, or end inside a character. */
static void test_decode_small_buffer_holds_whole_characters(void **state)
{
    (void)state;
    static const char sample[] = "aé深度👩 x";
    char out[64];
    tokenizer_t *tokenizer = load(TINY);
    size_t count = tokenizer_encode(tokenizer, sample, sizeof sample - 1, false, ids, IDS_MAX);
    for (size_t cap = 0; cap < sizeof sample - 1; cap++) {
        memset(out, '#', sizeof out);
        assert_int_equal(tokenizer_decode(tokenizer, ids, count, false, out, cap),
                         sizeof sample - 1);
        size_t written = 0;
        while (written < cap && out[written] != '#') written++;
        assert_int_equal(utf8_valid_size((const uint8_t *)out, written), written);
        assert_memory_equal(out, sample, written);
        assert_int_equal(out[cap], '#');
    }
    tokenizer_destroy(&tokenizer);
}

/* ---- hostile texts ---- */

/* If it failed, bytes that are not UTF-8 would crash the tokenizer or give other ids than HF's
 * lossy reading: one U+FFFD per maximal subpart, as Python's decode(errors="replace") does. */
static void test_encode_invalid_utf8_is_read_with_replacements(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        { "a\xff"
          "b",
          "a\xef\xbf\xbd"
          "b" },
        { "\xe6\xb7", "\xef\xbf\xbd" },
        { "\xe6\xb7"
          "a",
          "\xef\xbf\xbd"
          "a" },
        { "\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd" },
        { "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
        { "\xf0\x9f\x91", "\xef\xbf\xbd" },
        { "\xf0\x9f\x91\xf0\x9f\x91\xa9", "\xef\xbf\xbd\xf0\x9f\x91\xa9" },
        { "\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
        { "\xe0\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
    };
    static uint32_t other[256];
    tokenizer_t *tokenizer = load(TINY);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        size_t count =
            tokenizer_encode(tokenizer, pairs[i][0], strlen(pairs[i][0]), true, ids, IDS_MAX);
        assert_int_equal(
            tokenizer_encode(tokenizer, pairs[i][1], strlen(pairs[i][1]), true, other, 256), count);
        assert_memory_equal(ids, other, count * sizeof *ids);
    }
    tokenizer_destroy(&tokenizer);
}

/* If it failed, one request with a long word without spaces would stop an ingress for minutes:
 * merging must be O(n log n).  A quadratic merge of a megabyte would run into the test's time
 * limit. */
static void test_encode_megabyte_word_is_not_quadratic(void **state)
{
    (void)state;
    enum { SIZE = 1 << 20 };
    static char word[SIZE], back[SIZE];
    static uint32_t many[SIZE];
    static const char *const kinds[] = {
        "a", "abcdefghij", "<", "<｜", " ", "深", "0", "!?", "\n"
    };
    tokenizer_t *tokenizer = load(TINY);
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        size_t unit = strlen(kinds[kind]), size = SIZE / unit * unit;
        for (size_t at = 0; at < size; at += unit) memcpy(word + at, kinds[kind], unit);
        size_t count = tokenizer_encode(tokenizer, word, size, true, many, SIZE);
        assert_true(count > 0 && count <= SIZE);
        assert_int_equal(tokenizer_decode(tokenizer, many, count, false, back, SIZE), size);
        assert_memory_equal(word, back, size);
    }
    tokenizer_destroy(&tokenizer);
}

/* If it failed, any text at all could come back changed. */
static void test_encode_random_bytes_round_trip_as_repaired_text(void **state)
{
    (void)state;
    static const uint8_t usual[] = " aZ9.<\n\xc3\xa9\xe6\xb7\xb1";
    static uint8_t bytes[300];
    static char repaired[1000], back[1000];
    tokenizer_t *tokenizer = load(TINY);
    for (int trial = 0; trial < 2000; trial++) {
        size_t size = random_below(sizeof bytes);
        for (size_t i = 0; i < size; i++)
            bytes[i] =
                trial % 2 ? (uint8_t)random_below(256) : usual[random_below(sizeof usual - 1)];
        size_t wanted = utf8_repair(bytes, size, repaired, sizeof repaired);
        size_t count =
            tokenizer_encode(tokenizer, (const char *)bytes, size, trial % 3 == 0, ids, IDS_MAX);
        assert_int_equal(tokenizer_decode(tokenizer, ids, count, false, back, sizeof back), wanted);
        assert_memory_equal(back, repaired, wanted);
    }
    tokenizer_destroy(&tokenizer);
}

/* If it failed, a user could write a special token. */
static void test_encode_special_token_without_permission_stays_text(void **state)
{
    (void)state;
    static const char sample[] = "x<｜User｜>y";
    tokenizer_t *tokenizer = load(TINY);
    uint32_t user = tokenizer_id(tokenizer, "<｜User｜>", strlen("<｜User｜>"));
    assert_int_equal(user, 4082);
    size_t count = tokenizer_encode(tokenizer, sample, sizeof sample - 1, true, ids, IDS_MAX);
    assert_int_equal(count, 3);
    assert_int_equal(ids[1], user);
    count = tokenizer_encode(tokenizer, sample, sizeof sample - 1, false, ids, IDS_MAX);
    for (size_t i = 0; i < count; i++) assert_true(ids[i] != user);
    text[tokenizer_decode(tokenizer, ids, count, false, text, sizeof text - 1)] = 0;
    assert_string_equal(text, sample);
    tokenizer_destroy(&tokenizer);
}

/* If it failed, an actor would allocate while it serves. */
static void test_encode_after_reserve_does_not_allocate(void **state)
{
    (void)state;
    tokenizer_t *tokenizer = load(TINY);
    assert_true(tokenizer_reserve(tokenizer, sizeof text));
    memset(text, 'q', sizeof text);
    struct mallinfo2 before = mallinfo2();
    tokenizer_encode(tokenizer, text, sizeof text, true, ids, IDS_MAX);
    memset(text, 0xff, sizeof text);
    tokenizer_encode(tokenizer, text, sizeof text, true, ids, IDS_MAX);
    struct mallinfo2 after = mallinfo2();
    assert_int_equal(before.uordblks, after.uordblks);
    assert_int_equal(before.hblkhd, after.hblkhd);
    tokenizer_destroy(&tokenizer);
}

/* ---- in steps ---- */

static size_t golden_text(char *out, size_t cap)
{
    cJSON *cases = golden_cases(), *item;
    size_t used = 0;
    while (used + 2048 < cap) cJSON_ArrayForEach(item, cases)
        {
            const char *one = cJSON_GetObjectItem(item, "text")->valuestring;
            if (used + strlen(one) + 1 > cap) break;
            memcpy(out + used, one, strlen(one));
            used += strlen(one);
            out[used++] = '\n';
        }
    cJSON_Delete(cases);
    assert_int_equal(utf8_valid_size((const uint8_t *)out, used), used);
    return used;
}

/* If it failed, a prompt would have other ids because it is long: all texts of the golden file
 * behind each other, in many sizes of steps. */
static void test_encode_in_steps_gives_the_ids_of_at_once(void **state)
{
    (void)state;
    static const char *const kinds[] = { "ab", "xq7", "<", "<｜", " ", "深", "0", "!?", "\n" };
    enum { WORD_BYTES = 40000 }; /* longer than what is merged at once */
    static uint32_t stepped[IDS_MAX];
    tokenizer_t *tokenizer = load(TINY);
    size_t size = golden_text(text, 60000);
    size_t count = tokenizer_encode(tokenizer, text, size, true, ids, IDS_MAX);
    assert_true(count > 10000 && count < IDS_MAX);
    check_steps(tokenizer, text, size, count);
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        size_t unit = strlen(kinds[kind]);
        for (size = 0; size + unit <= WORD_BYTES; size += unit)
            memcpy(text + size, kinds[kind], unit);
        count = tokenizer_encode(tokenizer, text, size, true, ids, IDS_MAX);
        check_steps(tokenizer, text, size, count);
        memset(stepped, 0xff, sizeof stepped);
        assert_int_equal(encode_in_steps(tokenizer, text, size, 1000, stepped, 5), count);
        assert_memory_equal(stepped, ids, 5 * sizeof *ids);
        assert_int_equal(stepped[5], UINT32_MAX);
    }
    tokenizer_destroy(&tokenizer);
}

/* If it failed, the memory of one long word would stay, or the next one would find it spoiled. */
static void test_encode_in_steps_gives_the_memory_of_a_word_back(void **state)
{
    (void)state;
    enum { WORD_BYTES = 400000 };
    static uint32_t once[WORD_BYTES], stepped[WORD_BYTES];
    tokenizer_t *tokenizer = load(TINY);
    for (int round = 0; round < 2; round++) {
        for (size_t at = 0; at < WORD_BYTES; at++) text[at] = (char)('a' + random_below(26));
        size_t count = tokenizer_encode(tokenizer, text, WORD_BYTES, true, once, WORD_BYTES);
        assert_int_equal(encode_in_steps(tokenizer, text, WORD_BYTES, 50000, stepped, WORD_BYTES),
                         count);
        assert_memory_equal(once, stepped, count * sizeof *once);
    }
    tokenizer_destroy(&tokenizer);
}

/* If it failed, what a search for the next word finds would depend on how far it looks at once. */
static void test_encode_words_far_apart_are_found(void **state)
{
    (void)state;
    static const char far[] = "<｜User｜>12345深度 x";
    enum { GAP = 3 * SPLIT_SEARCH_BYTES + 5 };
    static uint32_t begin[GAP], end[64], whole[GAP + 64];
    tokenizer_t *tokenizer = load(TINY);
    memset(text, '-', GAP);
    memcpy(text + GAP, far, sizeof far);
    size_t first = tokenizer_encode(tokenizer, text, GAP, true, begin, GAP);
    size_t second = tokenizer_encode(tokenizer, far, sizeof far - 1, true, end, 64);
    size_t count = tokenizer_encode(tokenizer, text, GAP + sizeof far - 1, true, whole, GAP + 64);
    assert_int_equal(count, first + second);
    assert_memory_equal(whole, begin, first * sizeof *begin);
    assert_memory_equal(whole + first, end, second * sizeof *end);
    tokenizer_destroy(&tokenizer);
}

/* If it failed, texts that are encoded by turns would spoil each other, or one that is given up
 * would keep the room for long words for ever. */
static void test_encode_several_by_turns_share_the_room_for_long_words(void **state)
{
    (void)state;
    enum { TEXTS = 3, SIZE = 30000, WORK = 5000 };
    static char long_text[TEXTS][SIZE];
    static uint32_t by_turns[TEXTS][SIZE];
    encoding_t encodings[TEXTS];
    tokenizer_t *tokenizer = load(TINY);
    assert_true(tokenizer_reserve_steps(tokenizer, SIZE));
    for (int i = 0; i < TEXTS; i++) {
        for (size_t at = 0; at < SIZE; at++) long_text[i][at] = (char)('a' + random_below(26));
        memcpy(long_text[i] + 100 * i, " 1 and more ", 12);
        encoding_begin(&encodings[i], long_text[i], SIZE, true, by_turns[i], SIZE);
    }
    bool is_done[TEXTS] = { false };
    for (int turn = 0; !is_done[1] || !is_done[2]; turn++) {
        assert_true(turn < 10000);
        if (turn == 20) tokenizer_encode_drop(tokenizer, &encodings[0]);
        for (int i = turn < 20 ? 0 : 1; i < TEXTS; i++) {
            size_t work = WORK;
            if (!is_done[i]) is_done[i] = tokenizer_encode_step(tokenizer, &encodings[i], &work);
            assert_true(turn > 20 || !is_done[i]);
        }
    }
    for (int i = 1; i < TEXTS; i++) {
        size_t count = tokenizer_encode(tokenizer, long_text[i], SIZE, true, ids, IDS_MAX);
        assert_int_equal(encodings[i].count, count);
        assert_memory_equal(by_turns[i], ids, count * sizeof *ids);
    }
    tokenizer_destroy(&tokenizer);
}

/* If it failed, texts of a conversation would be cut where its parts meet, or a part that found no
 * room would be missing unnoticed. */
static void test_pieces_join_texts_and_say_when_they_are_full(void **state)
{
    (void)state;
    static uint8_t bytes[100];
    static uint32_t wanted[16];
    pieces_t pieces;
    encoding_t encoding;
    tokenizer_t *tokenizer = load(TINY);
    size_t count = tokenizer_encode(tokenizer, "something", 9, false, wanted, 16), work = SIZE_MAX;
    pieces_begin(&pieces, bytes, sizeof bytes);
    pieces_add_id(&pieces, 7);
    pieces_add_text(&pieces, "some", 4);
    pieces_add_text(&pieces, "", 0);
    pieces_add_text(&pieces, "thing", 5);
    pieces_add_id(&pieces, 8);
    assert_false(pieces.is_full);
    encoding_begin_pieces(&encoding, &pieces, ids, IDS_MAX);
    assert_true(tokenizer_encode_step(tokenizer, &encoding, &work));
    assert_int_equal(encoding.count, count + 2);
    assert_int_equal(ids[0], 7);
    assert_memory_equal(ids + 1, wanted, count * sizeof *ids);
    assert_int_equal(ids[count + 1], 8);
    pieces_add_text(&pieces, (const char *)bytes, sizeof bytes);
    assert_true(pieces.is_full);
    pieces_add_id(&pieces, 9);
    assert_true(pieces.is_full);
    tokenizer_destroy(&tokenizer);
}

/* ---- patterns ---- */

enum { WORDS_BYTES = 64 };

static void cut(splitter_t *splitter, const char *from, char *words)
{
    const char *word;
    size_t size, used = 0;
    split_t split;
    split_begin(&split, from, strlen(from));
    while (splitter_next(splitter, &split, &word, &size) == SPLIT_WORD)
        used += (size_t)snprintf(words + used, WORDS_BYTES - used, "%.*s|", (int)size, word);
}

/* If it failed, a pattern would cut other words than it does for Oniguruma, with which HF runs it:
 * the words are HF's. */
static void test_split_patterns_give_the_words_of_hf(void **state)
{
    static const char *const cases[][3] = {
        { "[]a]+", "x]a", "x|]a|" },
        { "[^]a]+", "x]a", "x|]a|" },
        { "[[:alpha:]]+", "ab1", "ab|1|" },
        { "[a[:digit:]b]+", "a1bx", "a1b|x|" },
        { "[[:alpha:]\\s]+", "a b1", "a b|1|" },
        { "[\\[\\]&]+", "[&]a", "[&]|a|" },
        { "\\x{61}+", "aab", "aa|b|" },
        { "\\p{L}{1,2}?", "abc", "a|b|c|" },
        { "a{,}", "a{,}", "a{,}|" },
        { "^a", "a\na", "a|\n|a|" },
        { "a$", "a\na", "a|\n|a|" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        splitter_t splitter;
        error_text_t why = { "" };
        char words[WORDS_BYTES] = "";
        assert_int_equal(splitter_init(&splitter), ERR_OK);
        if (splitter_add(&splitter, cases[i][0], &why)) fail_msg("%s: %s", cases[i][0], why.text);
        cut(&splitter, cases[i][1], words);
        assert_string_equal(words, cases[i][2]);
        splitter_fini(&splitter);
    }
}

/* If it failed, a pattern that PCRE2 takes in another meaning would give a model words that it was
 * not trained on. */
static void test_split_patterns_with_two_meanings_are_refused_by_name(void **state)
{
    static const char *const cases[][2] = {
        { "[a-z&&[^aeiou]]+", "&& in a class" },
        { "[[a-c][x-z]]", "a class in a class" },
        { "[a[:foo]", "a class in a class" },
        { "\\h+", "\\h" },
        { "[^\\H]", "\\h" },
        { "x|\\v", "\\v" },
        { "a{,2}", "{,n}" },
        { "\\d{1,3}+", "+ behind {n}" },
        { "a{2}?", "? behind {n}" },
        { "\\w+", "\\w" },
        { "[^\\r\\w]", "\\w" },
        { "\\bx", "\\b" },
        { "\\Qa\\E", "\\Q" },
        { "(?im:a.)", "(?m)" },
        { "[\\S]", "\\S in a class" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        splitter_t splitter;
        error_text_t why = { "" };
        assert_int_equal(splitter_init(&splitter), ERR_OK);
        assert_int_equal(splitter_add(&splitter, cases[i][0], &why), ERR_MODEL);
        const char *found = strstr(why.text, "pattern 0: found ");
        if (!found || !strstr(found, cases[i][1])) fail_msg("%s: %s", cases[i][0], why.text);
        splitter_fini(&splitter);
    }
}

/* ---- hostile files ---- */

/* Replace the first occurrence of one text in tiny's file and load that. */
static void check_changed_file(const char *from, const char *to, const char *part)
{
    size_t size = 0;
    error_text_t why = { "" };
    char *json = read_whole(TINY "/tokenizer.json", &size), *at = strstr(json, from);
    if (!at) fail_msg("\"%s\" is not in the file", from);
    memmove(at + strlen(to), at + strlen(from), size - (size_t)(at - json) - strlen(from) + 1);
    memcpy(at, to, strlen(to));
    tokenizer_t *tokenizer = tokenizer_new_from_memory(json, strlen(json), &why);
    assert_null(tokenizer);
    if (!strstr(why.text, part)) fail_msg("\"%s\" does not say \"%s\"", why.text, part);
    free(json);
}

/* If it failed, a file that we do not understand would be served with wrong ids instead of being
 * refused. */
static void test_load_unknown_parts_are_refused_by_name(void **state)
{
    (void)state;
    check_changed_file("\"BPE\"", "\"Unigram\"", "found Unigram; allowed is BPE");
    check_changed_file("\"Isolated\"", "\"Removed\"", "behavior Isolated");
    check_changed_file("\"Split\"", "\"Digits\"", "found Digits");
    check_changed_file("\"Split\"", "\"Di\\u001b\\ngits\"", "found Di  gits");
    check_changed_file("\\\\p{N}{1,3}", "(\\\\p{N}", "pattern 0: missing closing parenthesis");
    check_changed_file("\\\\p{N}{1,3}", "[\\\\S]", "pattern 0: found \\S in a class");
    check_changed_file("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", "found NFC");
    check_changed_file("\"byte_fallback\": false", "\"byte_fallback\": true",
                       "model.byte_fallback");
    check_changed_file("\"lstrip\": false", "\"lstrip\": true", "lstrip");
    check_changed_file("\"id\": 0", "\"id\": 7.5", "entry 0 needs content and an id");
    check_changed_file("\"id\": 0", "\"id\": 9", "id 9 is taken");
    check_changed_file("\"id\": 0", "\"id\": 99999999", "from 0 to 1048575");
    check_changed_file("\"merges\"", "\"mergez\"", "merges (an array)");
    check_changed_file("\"!\":", "\"zzzzqq\":", "no token for byte 0x21");
}

/* If it failed, a cut file would be read past its end. */
static void test_load_truncated_file_is_refused(void **state)
{
    (void)state;
    size_t size = 0;
    error_text_t why;
    char *json = read_whole(TINY "/tokenizer.json", &size);
    for (size_t cut = 0; cut < size; cut += 1 + size / 40) {
        char *exact = malloc(cut + 1); /* so that a sanitizer sees the end */
        memcpy(exact, json, cut);
        assert_null(tokenizer_new_from_memory(exact, cut, &why));
        free(exact);
    }
    assert_null(tokenizer_new_from_memory(json, size + 1, &why)); /* a NUL behind it */
    assert_non_null(strstr(why.text, "not JSON"));
    free(json);
    assert_null(tokenizer_new("/nonexistent", &why));
    assert_non_null(strstr(why.text, "No such file"));
}

/* If it failed, a tokenizer beside other weights would be served, and every text whose ids the
 * model lacks would be refused as if the client were wrong. */
static void test_load_more_ids_than_the_model_has_is_refused(void **state)
{
    (void)state;
    error_text_t why = { "" };
    model_config_t model = { .vocab = 0 };
    tokenizer_t *tokenizer = load(TINY);
    model.vocab = tokenizer_vocab(tokenizer);
    tokenizer_destroy(&tokenizer);
    tokenizer = tokenizer_new_for(TINY, &model, &why);
    if (!tokenizer) fail_msg("%s", why.text);
    tokenizer_destroy(&tokenizer);
    model.vocab--;
    assert_null(tokenizer_new_for(TINY, &model, &why));
    assert_non_null(strstr(why.text, "tokenizer.json has ids up to "));
    assert_non_null(strstr(why.text, "config.json's vocab_size is "));
    assert_null(tokenizer_new_for("/nonexistent", &model, &why));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_tiny_golden_matches_hf),
        cmocka_unit_test(test_tokenizer_deepseek_v3_golden_matches_hf),
        cmocka_unit_test(test_detokenizer_any_ids_equal_whole_decode),
        cmocka_unit_test(test_decode_skip_special_leaves_out_only_special_tokens),
        cmocka_unit_test(test_decode_small_buffer_holds_whole_characters),
        cmocka_unit_test(test_encode_invalid_utf8_is_read_with_replacements),
        cmocka_unit_test(test_encode_megabyte_word_is_not_quadratic),
        cmocka_unit_test(test_encode_random_bytes_round_trip_as_repaired_text),
        cmocka_unit_test(test_encode_special_token_without_permission_stays_text),
        cmocka_unit_test(test_encode_after_reserve_does_not_allocate),
        cmocka_unit_test(test_encode_in_steps_gives_the_ids_of_at_once),
        cmocka_unit_test(test_encode_in_steps_gives_the_memory_of_a_word_back),
        cmocka_unit_test(test_encode_words_far_apart_are_found),
        cmocka_unit_test(test_encode_several_by_turns_share_the_room_for_long_words),
        cmocka_unit_test(test_pieces_join_texts_and_say_when_they_are_full),
        cmocka_unit_test(test_split_patterns_give_the_words_of_hf),
        cmocka_unit_test(test_split_patterns_with_two_meanings_are_refused_by_name),
        cmocka_unit_test(test_load_unknown_parts_are_refused_by_name),
        cmocka_unit_test(test_load_truncated_file_is_refused),
        cmocka_unit_test(test_load_more_ids_than_the_model_has_is_refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed == 0 && is_data_missing ? 77 : failed;
}
