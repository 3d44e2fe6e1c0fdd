/* runtime/model/tokenizer_parts.h - what a tokenizer is made of; for tokenizer*.c only. */
#ifndef RUNTIME_MODEL_TOKENIZER_PARTS_H
#define RUNTIME_MODEL_TOKENIZER_PARTS_H

#include <assert.h>

#include "tokenizer.h"
#include "tokenizer_bpe.h"
#include "tokenizer_split.h"
#include "tokenizer_vocab.h"

/* Words recur: what a word became is kept, one word per slot, newest wins.  An entry is a cache
 * line. */
enum { CACHE_SLOTS = 1 << 15, CACHE_WORD_MAX = 30, CACHE_IDS_MAX = 8 };
typedef struct {
    uint8_t size, count;
    char word[CACHE_WORD_MAX];
    uint32_t ids[CACHE_IDS_MAX];
} cached_t;
static_assert(sizeof(cached_t) == 64, "a cache line");

struct tokenizer {
    vocab_t vocab;
    merges_t merges;
    splitter_t splitter;
    bpe_t bpe;              /* words that are merged at once */
    bpe_t long_bpe;         /* one that is not */
    const void *long_owner; /* the encoding whose word it is; NULL: none */
    cached_t *cache;
    char *repaired; /* the text when it was not UTF-8 */
    size_t repaired_cap;
};

/* Fill a zeroed tokenizer from tokenizer.json's text.  ERR_MODEL with *why; what was made so far
 * stays for destroy. */
MUST_CHECK err_t tokenizer_load(tokenizer_t *self, const char *json, size_t size,
                                error_text_t *why);

#endif
