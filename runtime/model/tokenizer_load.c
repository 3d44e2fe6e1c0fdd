/* runtime/model/tokenizer_load.c - tokenizer.json, checked and taken apart.
 *
 * Known is what the DeepSeek family ships: byte-level BPE behind a sequence of regex splits.
 * Anything else that would change ids is refused by name.
 */
#include <assert.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "../invariant.h"
#include "json.h"
#include "tokenizer_parts.h"

enum {
    CODE_POINTS_OF_BYTES = 324
}; /* GPT-2's alphabet: every byte is a printable character below U+0144 */

/* The inverse of GPT-2's byte alphabet: printable Latin-1 stands for itself, the others follow from
 * U+0100 on. */
static void fill_alphabet(int16_t bytes[CODE_POINTS_OF_BYTES])
{
    int next = 256;
    for (int i = 0; i < CODE_POINTS_OF_BYTES; i++) bytes[i] = -1;
    for (int byte = 0; byte < 256; byte++) {
        bool is_itself =
            (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        bytes[is_itself ? byte : next++] = (int16_t)byte;
    }
    invariant(next == CODE_POINTS_OF_BYTES);
}

typedef struct {
    tokenizer_t *self;
    error_text_t *why;
    int16_t alphabet[CODE_POINTS_OF_BYTES];
} load_t;

/* Refuse: one line per cause, always ERR_MODEL. */
#define REFUSE(load, ...) (tokenizer_refuse((load)->why, __VA_ARGS__), ERR_MODEL)

/* The bytes that a token's spelling stands for.  A character outside the alphabet means: the
 * spelling is the text itself (special tokens).  Returns the size; 0 when it does not fit. */
static size_t spell(const load_t *load, const char *text, size_t size, uint8_t out[TOKEN_BYTES_MAX])
{
    size_t count = 0;
    for (size_t at = 0; at < size;) {
        utf8proc_int32_t point = -1;
        utf8proc_ssize_t step =
            utf8proc_iterate((const uint8_t *)text + at, (utf8proc_ssize_t)(size - at), &point);
        if (step <= 0 || point >= CODE_POINTS_OF_BYTES || load->alphabet[point] < 0) {
            if (size > TOKEN_BYTES_MAX) return 0;
            memcpy(out, text, size);
            return size;
        }
        if (count == TOKEN_BYTES_MAX) return 0;
        out[count++] = (uint8_t)load->alphabet[point];
        at += (size_t)step;
    }
    return count;
}

static bool is_text(const cJSON *item, const char *expected)
{
    return cJSON_IsString(item) && strcmp(item->valuestring, expected) == 0;
}

static const cJSON *get(const cJSON *object, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

static bool is_absent(const cJSON *item)
{
    return !item || cJSON_IsNull(item) || cJSON_IsFalse(item) || is_text(item, "");
}

/* An id, or NO_TOKEN. */
static uint32_t id_of(const cJSON *item)
{
    if (!cJSON_IsNumber(item)) return NO_TOKEN;
    double value = item->valuedouble;
    if (!(value >= 0 && value < VOCAB_MAX) || value != floor(value)) return NO_TOKEN;
    return (uint32_t)value;
}

static const char *type_of(const cJSON *item)
{
    const cJSON *type = get(item, "type");
    return cJSON_IsString(type) ? type->valuestring : "nothing";
}

/* ---- what surrounds the model ---- */

static err_t check_normalizer(load_t *load, const cJSON *root)
{
    const cJSON *normalizer = get(root, "normalizer");
    bool is_empty_sequence = is_text(get(normalizer, "type"), "Sequence") &&
                             cJSON_GetArraySize(get(normalizer, "normalizers")) == 0;
    if (is_absent(normalizer) || is_empty_sequence) return ERR_OK;
    return REFUSE(load, "tokenizer.json: normalizer: found %s; allowed is none",
                  type_of(normalizer));
}

static err_t load_split(load_t *load, const cJSON *split)
{
    const cJSON *pattern = get(get(split, "pattern"), "Regex");
    if (!cJSON_IsString(pattern) || !is_text(get(split, "behavior"), "Isolated") ||
        !is_absent(get(split, "invert")))
        return REFUSE(load, "tokenizer.json: pre_tokenizer: a Split must have a Regex, behavior "
                            "Isolated, invert false");
    return splitter_add(&load->self->splitter, pattern->valuestring, load->why);
}

static err_t load_splits(load_t *load, const cJSON *root)
{
    const cJSON *sequence = get(root, "pre_tokenizer"), *item = NULL;
    const cJSON *list = get(sequence, "pretokenizers");
    if (!is_text(get(sequence, "type"), "Sequence") || !cJSON_IsArray(list) || !list->child)
        return REFUSE(load,
                      "tokenizer.json: pre_tokenizer: found %s; allowed is a Sequence of Split and "
                      "a last ByteLevel",
                      type_of(sequence));
    cJSON_ArrayForEach(item, list)
    {
        bool is_byte_level = is_text(get(item, "type"), "ByteLevel") &&
                             is_absent(get(item, "add_prefix_space")) &&
                             cJSON_IsFalse(get(item, "use_regex"));
        if (!item->next && is_byte_level) return ERR_OK;
        if (!item->next || !is_text(get(item, "type"), "Split")) break;
        err_t error = load_split(load, item);
        if (error) return error;
    }
    return REFUSE(
        load,
        "tokenizer.json: pre_tokenizer: found %s; allowed are Split and, last, ByteLevel without "
        "add_prefix_space and use_regex",
        type_of(item));
}

static err_t check_surroundings(load_t *load, const cJSON *root, const cJSON *model)
{
    static const char *const unknown[] = {
        "dropout",       "unk_token",    "continuing_subword_prefix", "end_of_word_suffix",
        "byte_fallback", "ignore_merges"
    };
    if (!is_text(get(model, "type"), "BPE"))
        return REFUSE(load, "tokenizer.json: model: found %s; allowed is BPE", type_of(model));
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        if (!is_absent(get(model, unknown[i])))
            return REFUSE(load, "tokenizer.json: model.%s is set; it must be null, false or absent",
                          unknown[i]);
    if (!is_text(get(get(root, "decoder"), "type"), "ByteLevel"))
        return REFUSE(load, "tokenizer.json: decoder: found %s; allowed is ByteLevel",
                      type_of(get(root, "decoder")));
    return check_normalizer(load, root);
}

/* ---- tokens ---- */

typedef struct {
    uint32_t token_count, added_count;
    size_t bytes;
} sizes_t;

static err_t measure(load_t *load, const cJSON *vocab, const cJSON *added, sizes_t *sizes)
{
    const cJSON *item;
    *sizes = (sizes_t){ 0 };
    cJSON_ArrayForEach(item, vocab)
    {
        uint32_t id = id_of(item);
        if (id == NO_TOKEN)
            return REFUSE(load, "tokenizer.json: model.vocab: \"%.40s\" has no id from 0 to %d",
                          item->string, VOCAB_MAX - 1);
        if (id >= sizes->token_count) sizes->token_count = id + 1;
        sizes->bytes += strlen(item->string);
    }
    cJSON_ArrayForEach(item, added)
    {
        uint32_t id = id_of(get(item, "id"));
        const cJSON *content = get(item, "content");
        if (id == NO_TOKEN || !cJSON_IsString(content) || !*content->valuestring)
            return REFUSE(
                load, "tokenizer.json: added_tokens: entry %u needs content and an id from 0 to %d",
                sizes->added_count, VOCAB_MAX - 1);
        if (id >= sizes->token_count) sizes->token_count = id + 1;
        sizes->added_count++;
        sizes->bytes += strlen(content->valuestring);
    }
    return ERR_OK;
}

static err_t load_vocab(load_t *load, const cJSON *vocab)
{
    const cJSON *item;
    uint8_t bytes[TOKEN_BYTES_MAX];
    cJSON_ArrayForEach(item, vocab)
    {
        size_t size = spell(load, item->string, strlen(item->string), bytes);
        if (!vocab_add(&load->self->vocab, id_of(item), bytes, size))
            return REFUSE(load,
                          "tokenizer.json: model.vocab: \"%.40s\": id %u is taken, or it has not 1 "
                          "to %d bytes",
                          item->string, id_of(item), TOKEN_BYTES_MAX);
    }
    return ERR_OK;
}

static err_t load_added(load_t *load, const cJSON *added)
{
    const cJSON *item;
    vocab_t *vocab = &load->self->vocab;
    cJSON_ArrayForEach(item, added)
    {
        const char *content = get(item, "content")->valuestring;
        uint32_t id = id_of(get(item, "id"));
        if (!is_absent(get(item, "lstrip")) || !is_absent(get(item, "rstrip")) ||
            !is_absent(get(item, "single_word")))
            return REFUSE(load,
                          "tokenizer.json: added_tokens: \"%.40s\": lstrip, rstrip and single_word "
                          "must be false",
                          content);
        if (!vocab_add(vocab, id, content, strlen(content)))
            return REFUSE(load,
                          "tokenizer.json: added_tokens: \"%.40s\": id %u is taken, or it has not "
                          "1 to %d bytes",
                          content, id, TOKEN_BYTES_MAX);
        vocab_mark_added(vocab, id, cJSON_IsTrue(get(item, "normalized")),
                         cJSON_IsTrue(get(item, "special")));
    }
    vocab_sort_added(vocab);
    return ERR_OK;
}

static err_t load_byte_ids(load_t *load)
{
    for (int byte = 0; byte < 256; byte++) {
        uint8_t text = (uint8_t)byte;
        uint32_t id = vocab_find(&load->self->vocab, &text, 1);
        if (id == NO_TOKEN)
            return REFUSE(
                load, "tokenizer.json: model.vocab: no token for byte 0x%02x; all 256 are needed",
                (unsigned)byte);
        load->self->merges.byte_ids[byte] = id;
    }
    return ERR_OK;
}

/* ---- merges ---- */

typedef struct {
    const char *left, *right;
    size_t left_size, right_size;
} pair_t;

/* Both spellings of a merge: "a b" and ["a", "b"]. */
static bool read_pair(const cJSON *item, pair_t *pair)
{
    if (cJSON_IsString(item)) {
        const char *space = strchr(item->valuestring, ' ');
        if (!space) return false;
        *pair = (pair_t){ item->valuestring, space + 1, (size_t)(space - item->valuestring),
                          strlen(space + 1) };
        return true;
    }
    const cJSON *left = cJSON_IsArray(item) ? item->child : NULL, *right = left ? left->next : NULL;
    if (!cJSON_IsString(left) || !cJSON_IsString(right) || right->next) return false;
    *pair = (pair_t){ left->valuestring, right->valuestring, strlen(left->valuestring),
                      strlen(right->valuestring) };
    return true;
}

static err_t load_merge(load_t *load, const cJSON *item, uint32_t rank)
{
    tokenizer_t *self = load->self;
    uint8_t bytes[2 * TOKEN_BYTES_MAX];
    pair_t pair;
    if (!read_pair(item, &pair))
        return REFUSE(load, "tokenizer.json: model.merges: entry %u is not a pair of tokens", rank);
    size_t left_size = spell(load, pair.left, pair.left_size, bytes);
    size_t right_size = spell(load, pair.right, pair.right_size, bytes + left_size);
    uint32_t left = vocab_find(&self->vocab, bytes, left_size);
    uint32_t right = vocab_find(&self->vocab, bytes + left_size, right_size);
    uint32_t both = vocab_find(&self->vocab, bytes, left_size + right_size);
    if (left == NO_TOKEN || right == NO_TOKEN || both == NO_TOKEN)
        return REFUSE(load,
                      "tokenizer.json: model.merges: entry %u: both parts and the whole must be in "
                      "model.vocab",
                      rank);
    merges_add(&self->merges, left, right, (merge_t){ .rank = rank, .id = both });
    return ERR_OK;
}

static err_t load_merges(load_t *load, const cJSON *merges)
{
    const cJSON *item;
    uint32_t rank = 0;
    cJSON_ArrayForEach(item, merges)
    {
        err_t error = load_merge(load, item, rank++);
        if (error) return error;
    }
    return ERR_OK;
}

/* ---- the whole ---- */

static err_t load_tokens(load_t *load, const cJSON *vocab, const cJSON *added)
{
    sizes_t sizes;
    err_t error = measure(load, vocab, added, &sizes);
    if (error) return error;
    if (sizes.token_count == 0 || sizes.bytes > UINT32_MAX / 2)
        return REFUSE(load,
                      "tokenizer.json: model.vocab: %u tokens of %zu bytes; from 1 token to 2 GiB "
                      "are allowed",
                      sizes.token_count, sizes.bytes);
    error = vocab_init(&load->self->vocab, sizes.token_count, sizes.bytes, sizes.added_count);
    if (error) return REFUSE(load, "tokenizer.json: no memory for %u tokens", sizes.token_count);
    error = load_vocab(load, vocab);
    return error ? error : load_added(load, added);
}

static err_t load_root(load_t *load, const cJSON *root)
{
    const cJSON *model = get(root, "model"), *merges = get(model, "merges");
    if (!cJSON_IsObject(get(model, "vocab")) || !cJSON_IsArray(merges))
        return REFUSE(load, "tokenizer.json: model needs vocab (an object) and merges (an array)");
    err_t error = check_surroundings(load, root, model);
    if (!error) error = load_splits(load, root);
    if (!error) error = load_tokens(load, get(model, "vocab"), get(root, "added_tokens"));
    if (!error) error = load_byte_ids(load);
    if (error) return error;
    if (merges_init(&load->self->merges, (uint32_t)cJSON_GetArraySize(merges)) != ERR_OK)
        return REFUSE(load, "tokenizer.json: no memory for %d merges", cJSON_GetArraySize(merges));
    return load_merges(load, merges);
}

err_t tokenizer_load(tokenizer_t *self, const char *json, size_t size, error_text_t *why)
{
    load_t load = { .self = self, .why = why };
    fill_alphabet(load.alphabet);
    if (splitter_init(&self->splitter) != ERR_OK) return REFUSE(&load, "tokenizer.json: no memory");
    json_fault_t fault;
    cJSON *root = json_parse_object(json, size, &fault);
    if (!root) return REFUSE(&load, "tokenizer.json %s", fault.text);
    err_t error = load_root(&load, root);
    cJSON_Delete(root);
    return error;
}
