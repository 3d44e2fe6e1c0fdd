/* runtime/model/tokenizer.c - HF tokenizer.json, byte-level BPE: its life, and ids to text. */
#include "tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../invariant.h"
#include "tokenizer_parts.h"
#include "tokenizer_utf8.h"

/* The largest published tokenizer.json has 20 MB; the limit only keeps a hostile one from eating
 * the machine. */
enum { JSON_BYTES_MAX = 256 << 20, RESERVED_AT_FIRST = 4096 };

static_assert((3 + TOKEN_BYTES_MAX) * UTF8_REPLACEMENT_BYTES <= DETOKENIZER_EMIT_MAX,
              "any push fits");

/* ---- life ---- */

tokenizer_t *tokenizer_new_from_memory(const char *json, size_t size, error_text_t *why)
{
    tokenizer_t *self = calloc(1, sizeof *self);
    if (!self) return tokenizer_refuse(why, "tokenizer.json: no memory");
    err_t error = tokenizer_load(self, json, size, why);
    if (!error) {
        self->cache = calloc(CACHE_SLOTS, sizeof *self->cache);
        if (!self->cache || !tokenizer_reserve(self, RESERVED_AT_FIRST)) {
            tokenizer_refuse(why, "tokenizer.json: no memory");
            error = ERR_NO_SPACE;
        }
    }
    if (error) tokenizer_destroy(&self);
    return self;
}

/* The whole file, to be freed by the caller; NULL with *why. */
static char *read_file(const char *path, size_t *size, error_text_t *why)
{
    FILE *file = fopen(path, "rb");
    if (!file) return tokenizer_refuse(why, "%s: %s", path, strerror(errno));
    char *bytes = NULL;
    long end = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    if (end < 0 || end > JSON_BYTES_MAX || fseek(file, 0, SEEK_SET) != 0) {
        tokenizer_refuse(why, "%s: a file of at most %d bytes is needed", path, JSON_BYTES_MAX);
    } else if ((bytes = malloc((size_t)end + 1)) == NULL) {
        tokenizer_refuse(why, "%s: no memory for %ld bytes", path, end);
    } else {
        *size = fread(bytes, 1, (size_t)end, file);
    }
    fclose(file);
    return bytes;
}

tokenizer_t *tokenizer_new(const char *dir, error_text_t *why)
{
    char path[4096];
    size_t size = 0;
    if ((size_t)snprintf(path, sizeof path, "%s/tokenizer.json", dir) >= sizeof path)
        return tokenizer_refuse(why, "%.80s...: the path is too long", dir);
    char *json = read_file(path, &size, why);
    if (!json) return NULL;
    tokenizer_t *self = tokenizer_new_from_memory(json, size, why);
    free(json);
    return self;
}

tokenizer_t *tokenizer_new_for(const char *dir, const model_config_t *model, error_text_t *why)
{
    tokenizer_t *self = tokenizer_new(dir, why);
    if (!self || self->vocab.token_count <= model->vocab) return self;
    tokenizer_refuse(why, "tokenizer.json has ids up to %u, config.json's vocab_size is %u",
                     self->vocab.token_count - 1, model->vocab);
    tokenizer_destroy(&self);
    return NULL;
}

void tokenizer_destroy(tokenizer_t **self)
{
    tokenizer_t *dead = *self;
    if (!dead) return;
    vocab_fini(&dead->vocab);
    merges_fini(&dead->merges);
    splitter_fini(&dead->splitter);
    bpe_fini(&dead->bpe);
    bpe_fini(&dead->long_bpe);
    free(dead->cache);
    free(dead->repaired);
    free(dead);
    *self = NULL;
}

bool tokenizer_reserve(tokenizer_t *self, size_t text_bytes)
{
    size_t repaired = text_bytes * UTF8_REPLACEMENT_BYTES;
    if (bpe_reserve(&self->bpe, repaired) != ERR_OK) return false;
    if (repaired <= self->repaired_cap) return true;
    free(self->repaired);
    self->repaired = malloc(repaired);
    self->repaired_cap = self->repaired ? repaired : 0;
    return self->repaired != NULL;
}

bool tokenizer_reserve_steps(tokenizer_t *self, size_t text_bytes)
{
    invariant(self->long_owner == NULL);
    return bpe_reserve(&self->long_bpe, text_bytes) == ERR_OK;
}

uint32_t tokenizer_token_bytes_max(const tokenizer_t *self)
{
    uint32_t most = 1;
    for (uint32_t id = 0; id < self->vocab.token_count; id++)
        if (self->vocab.tokens[id].size > most) most = self->vocab.tokens[id].size;
    return most;
}

uint32_t tokenizer_vocab(const tokenizer_t *self)
{
    return self->vocab.token_count;
}

uint32_t tokenizer_id(const tokenizer_t *self, const char *content, size_t size)
{
    for (int kind = 0; kind < 2; kind++) {
        uint32_t id = vocab_match_added(&self->vocab, kind, content, size);
        if (id != NO_TOKEN && self->vocab.tokens[id].size == size) return id;
    }
    return vocab_find(&self->vocab, content, size);
}

/* ---- ids to text ---- */

typedef struct {
    char *text;
    size_t cap, count;
    bool is_full;
} text_t;

/* A whole sequence or nothing, so that a buffer that is too small still holds valid UTF-8. */
static void put(text_t *out, const void *bytes, size_t size)
{
    out->is_full |= out->count + size > out->cap;
    if (!out->is_full) memcpy(out->text + out->count, bytes, size);
    out->count += size;
}

/* Put what is decided of bytes; returns how many at the end (at most 3) may still become a
 * sequence. */
static uint32_t put_decided(text_t *out, const uint8_t *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        size_t valid = utf8_valid_size(bytes + at, size - at);
        put(out, bytes + at, valid);
        at += valid;
        if (at == size) break;
        utf8_step_t step = utf8_step(bytes + at, size - at);
        if (step.state == UTF8_INCOMPLETE) return step.size;
        put(out, utf8_replacement, UTF8_REPLACEMENT_BYTES);
        at += step.size;
    }
    return 0;
}

static void push(detokenizer_t *held, const tokenizer_t *tokenizer, uint32_t id, bool skip_special,
                 text_t *out)
{
    const vocab_t *vocab = &tokenizer->vocab;
    if (id >= vocab->token_count || (skip_special && vocab->tokens[id].is_special)) return;
    uint8_t bytes[sizeof held->held + TOKEN_BYTES_MAX];
    size_t size = held->held_count + (size_t)vocab->tokens[id].size;
    memcpy(bytes, held->held, held->held_count);
    memcpy(bytes + held->held_count, vocab_bytes(vocab, id), vocab->tokens[id].size);
    held->held_count = put_decided(out, bytes, size);
    memcpy(held->held, bytes + size - held->held_count, held->held_count);
}

static void finish(detokenizer_t *held, text_t *out)
{
    if (held->held_count > 0) put(out, utf8_replacement, UTF8_REPLACEMENT_BYTES);
    held->held_count = 0;
}

size_t tokenizer_decode(const tokenizer_t *self, const uint32_t *ids, size_t count,
                        bool skip_special, char *text, size_t cap)
{
    text_t out = { .text = text, .cap = cap };
    detokenizer_t held = { .held_count = 0 };
    for (size_t i = 0; i < count; i++) push(&held, self, ids[i], skip_special, &out);
    finish(&held, &out);
    return out.count;
}

size_t detokenizer_push(detokenizer_t *self, const tokenizer_t *tokenizer, uint32_t id,
                        bool skip_special, char *text, size_t cap)
{
    invariant(self->held_count < sizeof self->held);
    text_t out = { .text = text, .cap = cap };
    push(self, tokenizer, id, skip_special, &out);
    return out.count;
}

size_t detokenizer_finish(detokenizer_t *self, char *text, size_t cap)
{
    text_t out = { .text = text, .cap = cap };
    finish(self, &out);
    return out.count;
}
