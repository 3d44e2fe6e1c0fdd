/* runtime/model/tokenizer_vocab.c - the tokens themselves: id to bytes, bytes to id, added tokens
 * in a text. */
#include "tokenizer_vocab.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "../invariant.h"

void *tokenizer_refuse(error_text_t *why, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    error_text_write(why, format, arguments);
    va_end(arguments);
    return NULL;
}

err_t vocab_init(vocab_t *self, uint32_t token_count, size_t bytes_cap, uint32_t added_count)
{
    invariant(token_count > 0 && token_count <= VOCAB_MAX);
    uint32_t slot_count = 1;
    while (slot_count < 2 * token_count) slot_count *= 2;
    *self = (vocab_t){ .token_count = token_count,
                       .bytes_cap = bytes_cap,
                       .slot_mask = slot_count - 1 };
    self->tokens = calloc(token_count, sizeof *self->tokens);
    self->bytes = malloc(bytes_cap + 1);
    self->slots = calloc(slot_count, sizeof *self->slots);
    for (int kind = 0; kind < 2; kind++)
        self->added[kind].ids = calloc((size_t)added_count + 1, sizeof(uint32_t));
    if (self->tokens && self->bytes && self->slots && self->added[0].ids && self->added[1].ids)
        return ERR_OK;
    vocab_fini(self);
    return ERR_NO_SPACE;
}

void vocab_fini(vocab_t *self)
{
    free(self->tokens);
    free(self->bytes);
    free(self->slots);
    free(self->added[0].ids);
    free(self->added[1].ids);
    *self = (vocab_t){ 0 };
}

static bool is_spelt(const vocab_t *self, uint32_t id, const void *bytes, size_t size)
{
    return self->tokens[id].size == size && memcmp(vocab_bytes(self, id), bytes, size) == 0;
}

/* The slot that holds these bytes, or the empty one where they belong.  Ends: at most half the
 * slots are used. */
static uint32_t *slot_of(const vocab_t *self, const void *bytes, size_t size)
{
    uint32_t at = (uint32_t)XXH3_64bits(bytes, size) & self->slot_mask;
    while (self->slots[at] != 0 && !is_spelt(self, self->slots[at] - 1, bytes, size))
        at = (at + 1) & self->slot_mask;
    return &self->slots[at];
}

bool vocab_add(vocab_t *self, uint32_t id, const void *bytes, size_t size)
{
    invariant(id < self->token_count);
    token_t *token = &self->tokens[id];
    if (token->is_used) return is_spelt(self, id, bytes, size);
    if (size == 0 || size > TOKEN_BYTES_MAX || size > self->bytes_cap - self->bytes_used)
        return false;
    *token =
        (token_t){ .offset = (uint32_t)self->bytes_used, .size = (uint16_t)size, .is_used = 1 };
    memcpy(self->bytes + self->bytes_used, bytes, size);
    self->bytes_used += size;
    uint32_t *slot = slot_of(self, bytes, size);
    if (*slot == 0) *slot = id + 1;
    return true;
}

void vocab_mark_added(vocab_t *self, uint32_t id, bool is_normalized, bool is_special)
{
    invariant(id < self->token_count && self->tokens[id].is_used);
    added_t *added = &self->added[is_normalized];
    self->tokens[id].is_special = is_special;
    added->ids[added->count++] = id;
    added->is_first[vocab_bytes(self, id)[0]] = 1;
}

static int compare_contents(const void *a, const void *b, void *vocab)
{
    const vocab_t *self = vocab;
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    uint16_t left_size = self->tokens[left].size, right_size = self->tokens[right].size;
    int order = memcmp(vocab_bytes(self, left), vocab_bytes(self, right),
                       left_size < right_size ? left_size : right_size);
    return order ? order : (left_size > right_size) - (left_size < right_size);
}

void vocab_sort_added(vocab_t *self)
{
    for (int kind = 0; kind < 2; kind++)
        qsort_r(self->added[kind].ids, self->added[kind].count, sizeof(uint32_t), compare_contents,
                self);
}

uint32_t vocab_find(const vocab_t *self, const void *bytes, size_t size)
{
    uint32_t slot = *slot_of(self, bytes, size);
    return slot == 0 ? NO_TOKEN : slot - 1;
}

/* First index in [low, high) of the sorted ids whose byte `depth` is at least `byte`; a content
 * that ends before depth sorts first. */
static uint32_t lower_bound(const vocab_t *self, const uint32_t *ids, uint32_t range[2],
                            size_t depth, int byte)
{
    uint32_t low = range[0], high = range[1];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, id = ids[middle];
        int found = depth < self->tokens[id].size ? vocab_bytes(self, id)[depth] : -1;
        if (found < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t vocab_match_added(const vocab_t *self, int kind, const char *text, size_t size)
{
    const added_t *added = &self->added[kind];
    uint32_t best = NO_TOKEN, range[2] = { 0, added->count };
    for (size_t depth = 0; depth < size; depth++) {
        int byte = (uint8_t)text[depth];
        uint32_t low = lower_bound(self, added->ids, range, depth, byte);
        uint32_t high =
            lower_bound(self, added->ids, (uint32_t[]){ low, range[1] }, depth, byte + 1);
        if (low == high) break;
        range[0] = low;
        range[1] = high;
        if (self->tokens[added->ids[low]].size == depth + 1) best = added->ids[low];
    }
    return best;
}
