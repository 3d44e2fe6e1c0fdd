/* runtime/model/tokenizer_bpe.c - byte-pair merging of one word. */
#include "tokenizer_bpe.h"

#include <stdint.h>
#include <stdlib.h>

#include "../base/memory.h"
#include "../invariant.h"

static const uint64_t empty_pair = UINT64_MAX;
static const uint32_t none = UINT32_MAX; /* no symbol */

err_t merges_init(merges_t *self, uint32_t merge_count)
{
    uint32_t slot_count = 16;
    while (slot_count < 2 * merge_count) slot_count *= 2;
    self->slots = malloc(slot_count * sizeof *self->slots);
    if (!self->slots) return ERR_NO_SPACE;
    for (uint32_t i = 0; i < slot_count; i++) self->slots[i].pair = empty_pair;
    self->slot_mask = slot_count - 1;
    self->count = 0;
    return ERR_OK;
}

void merges_fini(merges_t *self)
{
    free(self->slots);
    self->slots = NULL;
}

/* The slot that holds this pair, or the empty one where it belongs.  Ends: at most half the slots
 * are used. */
static merge_t *slot_of(const merges_t *self, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t at = (uint32_t)((pair * 0x9e3779b97f4a7c15u) >> 32) & self->slot_mask;
    while (self->slots[at].pair != pair && self->slots[at].pair != empty_pair)
        at = (at + 1) & self->slot_mask;
    return &self->slots[at];
}

void merges_add(merges_t *self, uint32_t left, uint32_t right, merge_t merged)
{
    merge_t *slot = slot_of(self, left, right);
    if (slot->pair == empty_pair) self->count++;
    invariant(self->count <= self->slot_mask / 2 + 1);
    *slot = (merge_t){ (uint64_t)left << 32 | right, merged.rank, merged.id };
}

err_t bpe_reserve(bpe_t *self, size_t bytes_max)
{
    if (bytes_max <= self->bytes_max) return ERR_OK;
    if (bytes_max > UINT32_MAX / 4) return ERR_NO_SPACE;
    bpe_fini(self);
    self->ids = malloc(bytes_max * sizeof *self->ids);
    self->previous = malloc(bytes_max * sizeof *self->previous);
    self->next = malloc(bytes_max * sizeof *self->next);
    /* One entry per pair at first; every merge takes one away and adds at most two. */
    self->heap = malloc(2 * bytes_max * sizeof *self->heap);
    if (!self->ids || !self->previous || !self->next || !self->heap) {
        bpe_fini(self);
        return ERR_NO_SPACE;
    }
    self->bytes_max = (uint32_t)bytes_max;
    return ERR_OK;
}

void bpe_fini(bpe_t *self)
{
    free(self->ids);
    free(self->previous);
    free(self->next);
    free(self->heap);
    *self = (bpe_t){ 0 };
}

/* What belongs to count bytes of a word from this one on. */
static void rest(bpe_t *self, size_t from, size_t count)
{
    memory_rest(self->ids + from, count * sizeof *self->ids);
    memory_rest(self->previous + from, count * sizeof *self->previous);
    memory_rest(self->next + from, count * sizeof *self->next);
    memory_rest(self->heap + 2 * from, 2 * count * sizeof *self->heap);
}

void bpe_rest(bpe_t *self)
{
    rest(self, 0, self->bytes_max);
}

bool bpe_rest_step(bpe_t *self)
{
    enum { PART = 1 << 17 };
    uint32_t left = self->size - self->rested, part = left < PART ? left : PART;
    rest(self, self->rested, part);
    self->rested += part;
    return self->rested == self->size;
}

static void heap_push(bpe_t *self, uint64_t entry)
{
    uint32_t at = self->heap_count++;
    while (at > 0 && self->heap[(at - 1) / 2] > entry) {
        self->heap[at] = self->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    self->heap[at] = entry;
}

static uint64_t heap_pop(bpe_t *self)
{
    uint64_t top = self->heap[0], last = self->heap[--self->heap_count];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= self->heap_count) break;
        if (child + 1 < self->heap_count && self->heap[child + 1] < self->heap[child]) child++;
        if (self->heap[child] >= last) break;
        self->heap[at] = self->heap[child];
        at = child;
    }
    self->heap[at] = last;
    return top;
}

static void push_pair(bpe_t *self, const merges_t *merges, uint32_t position)
{
    uint32_t next = self->next[position];
    if (next == none) return;
    const merge_t *merge = slot_of(merges, self->ids[position], self->ids[next]);
    if (merge->pair != empty_pair) heap_push(self, (uint64_t)merge->rank << 32 | position);
}

/* Merge the symbol at position with its successor, if they still are the pair that had this rank.
 */
static void merge_at(bpe_t *self, const merges_t *merges, uint32_t position, uint32_t rank)
{
    uint32_t next = self->next[position];
    if (self->ids[position] == none || next == none) return;
    const merge_t *merge = slot_of(merges, self->ids[position], self->ids[next]);
    if (merge->pair == empty_pair || merge->rank != rank) return;
    self->ids[position] = merge->id;
    self->ids[next] = none;
    self->next[position] = self->next[next];
    if (self->next[next] != none) self->previous[self->next[next]] = position;
    if (self->previous[position] != none) push_pair(self, merges, self->previous[position]);
    push_pair(self, merges, position);
}

/* The next byte becomes a symbol, and a pair with the one before it. */
static void fill(bpe_t *self, const merges_t *merges)
{
    uint32_t at = self->filled++;
    self->ids[at] = merges->byte_ids[self->word[at]];
    self->previous[at] = at == 0 ? none : at - 1;
    self->next[at] = none;
    if (at == 0) return;
    self->next[at - 1] = at;
    push_pair(self, merges, at - 1);
}

void bpe_begin(bpe_t *self, const uint8_t *word, uint32_t size)
{
    invariant(size > 0 && size <= self->bytes_max);
    self->word = word;
    self->size = size;
    self->filled = self->heap_count = self->gathered = self->count = self->rested = 0;
}

bool bpe_step(bpe_t *self, const merges_t *merges, size_t *work)
{
    for (; self->filled<self->size && * work> 0; --*work) fill(self, merges);
    for (; self->heap_count > 0 && *work > 0; --*work) {
        uint64_t top = heap_pop(self);
        merge_at(self, merges, (uint32_t)top, (uint32_t)(top >> 32));
    }
    for (; self->gathered != none && *work > 0; --*work) {
        self->ids[self->count++] = self->ids[self->gathered];
        self->gathered = self->next[self->gathered];
    }
    return self->gathered == none;
}

uint32_t bpe_run(bpe_t *self, const merges_t *merges, const uint8_t *word, uint32_t size)
{
    size_t work = SIZE_MAX;
    bpe_begin(self, word, size);
    invariant(bpe_step(self, merges, &work));
    return self->count;
}
