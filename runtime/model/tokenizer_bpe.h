/* runtime/model/tokenizer_bpe.h - byte-pair merging of one word. */
#ifndef RUNTIME_MODEL_TOKENIZER_BPE_H
#define RUNTIME_MODEL_TOKENIZER_BPE_H

#include "config.h"

typedef struct {
    uint64_t pair; /* left id << 32 | right id; all ones: empty */
    uint32_t rank; /* lower merges first */
    uint32_t id;   /* what the two become */
} merge_t;

typedef struct {
    merge_t *slots;
    uint32_t slot_mask, count;
    uint32_t byte_ids[256]; /* id of every single byte */
} merges_t;

/* A word while it is merged: a list of symbols threaded through arrays, and a heap of pairs to
 * merge. */
typedef struct {
    uint32_t *ids, *previous, *next;
    uint64_t *heap; /* rank << 32 | position: lowest rank first, then leftmost */
    uint32_t heap_count;
    uint32_t bytes_max; /* longest word that fits */
    const uint8_t *word;
    uint32_t size, filled;    /* of the word; how much of it is in the list */
    uint32_t gathered, count; /* the symbol that is next, and how many are at their place */
    uint32_t rested;          /* of the word, whose memory is given back */
} bpe_t;

/* Room for merge_count merges.  ERR_NO_SPACE. */
MUST_CHECK err_t merges_init(merges_t *self, uint32_t merge_count);
void merges_fini(merges_t *self);
/* A later merge of the same pair replaces the earlier one. */
void merges_add(merges_t *self, uint32_t left, uint32_t right, merge_t merged);

/* Room for words of this many bytes. */
MUST_CHECK err_t bpe_reserve(bpe_t *self, size_t bytes_max);
void bpe_fini(bpe_t *self);
/* Give back the memory that a long word made resident; the room stays. */
void bpe_rest(bpe_t *self);
/* The same for the word that was merged last, a millisecond's part of it.  True: all is given back.
 */
MUST_CHECK bool bpe_rest_step(bpe_t *self);

/* Merge a word of at most bytes_max bytes: O(n log n).  Returns the count of ids; they lie at
 * self->ids. */
uint32_t bpe_run(bpe_t *self, const merges_t *merges, const uint8_t *word, uint32_t size);

/* The same in steps.  The word stays where it is until the end. */
void bpe_begin(bpe_t *self, const uint8_t *word, uint32_t size);
/* *work falls by one for each symbol and each pair that is looked at.  False: *work is 0, go on
 * later.  True: self->count ids lie at self->ids. */
MUST_CHECK bool bpe_step(bpe_t *self, const merges_t *merges, size_t *work);

#endif
