/* tests/fuzz/fuzz_tokenizer.c - a hostile tokenizer.json, and a hostile text for a good one.
 *
 * The input is a file, a NUL byte, and a text.  Whatever loads must encode and decode that text
 * without harm, pushing ids one by one must equal the whole decode, encoding in steps that at once,
 * and ids must be the tokenizer's own.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/invariant.h"
#include "runtime/model/tokenizer.h"
#include "runtime/model/tokenizer_utf8.h"

enum { TEXT_MAX = 4096, IDS_MAX = 3 * TEXT_MAX, DECODED_MAX = 64 * 1024 };

/* All 256 bytes in GPT-2's alphabet and a few merges; made once. */
static char *make_small(size_t *size)
{
    static char json[16384];
    size_t at = 0;
    at += (size_t)snprintf(json + at, sizeof json - at,
                           "{\"added_tokens\":[{\"id\":300,\"content\":\"<|end|>\",\"special\":"
                           "true},{\"id\":301,\"content\":"
                           "\"<|\",\"normalized\":true}],\"pre_tokenizer\":{\"type\":\"Sequence\","
                           "\"pretokenizers\":[{\"type\":\"Split\","
                           "\"pattern\":{\"Regex\":\"\\\\s+(?!\\\\S)|\\\\p{L}+|\\\\p{N}{1,3}\"},"
                           "\"behavior\":\"Isolated\"},{\"type\":"
                           "\"ByteLevel\",\"use_regex\":false}]},\"decoder\":{\"type\":"
                           "\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                           "\"merges\":[\"a b\",\"ab ab\",\"\\u00c3 "
                           "\\u00a9\"],\"vocab\":{\"ab\":256,\"abab\":257,\"\\u00c3\\u00a9\":258");
    for (unsigned byte = 0, next = 256; byte < 256; byte++) {
        bool is_itself =
            (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        at += (size_t)snprintf(json + at, sizeof json - at, ",\"\\u%04x\":%u",
                               is_itself ? byte : next++, byte);
    }
    at += (size_t)snprintf(json + at, sizeof json - at, "}}}");
    *size = at;
    return json;
}

static void check_steps(tokenizer_t *tokenizer, const char *text, size_t size, bool allow_special,
                        const uint32_t *ids, size_t count)
{
    static uint32_t stepped[IDS_MAX];
    encoding_t encoding;
    size_t work = 1;
    if (utf8_valid_size((const uint8_t *)text, size) < size) return;
    encoding_begin(&encoding, text, size, allow_special, stepped, IDS_MAX);
    while (!tokenizer_encode_step(tokenizer, &encoding, &work)) work = 1 + size % 50;
    invariant(encoding.count == count);
    invariant(memcmp(ids, stepped, count * sizeof *ids) == 0);
}

static void check_text(tokenizer_t *tokenizer, const char *text, size_t size, bool allow_special)
{
    static uint32_t ids[IDS_MAX];
    static char whole[DECODED_MAX], pushed[DECODED_MAX + DETOKENIZER_EMIT_MAX];
    detokenizer_t held = { .held_count = 0 };
    size_t count = tokenizer_encode(tokenizer, text, size, allow_special, ids, IDS_MAX), at = 0;
    invariant(count <= IDS_MAX);
    check_steps(tokenizer, text, size, allow_special, ids, count);
    for (size_t i = 0; i < count; i++) {
        invariant(ids[i] < tokenizer_vocab(tokenizer));
        at += detokenizer_push(&held, tokenizer, ids[i], false, pushed + at, DETOKENIZER_EMIT_MAX);
        invariant(at <= DECODED_MAX);
    }
    at += detokenizer_finish(&held, pushed + at, DETOKENIZER_EMIT_MAX);
    invariant(tokenizer_decode(tokenizer, ids, count, false, whole, sizeof whole) == at);
    invariant(memcmp(whole, pushed, at) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static tokenizer_t *small;
    error_text_t why;
    if (!small) {
        size_t small_size;
        const char *json = make_small(&small_size);
        small = tokenizer_new_from_memory(json, small_size, &why);
        invariant(small != NULL);
    }
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    size_t json_size = end ? (size_t)(end - data) : size,
           text_size = end ? size - json_size - 1 : 0;
    if (text_size > TEXT_MAX) text_size = TEXT_MAX;
    const char *text = end ? (const char *)end + 1 : "";
    check_text(small, text, text_size, size % 2);
    tokenizer_t *hostile = tokenizer_new_from_memory((const char *)data, json_size, &why);
    if (hostile) check_text(hostile, text, text_size, true);
    tokenizer_destroy(&hostile);
    return 0;
}
