/* runtime/kv/prefix.c - key -> set of holders, and the depth of a prompt's cached prefix. */
#include "prefix.h"

#include "../invariant.h"

enum { WORD_BITS = 64 };

uint32_t prefix_words(uint32_t holders)
{
    invariant(holders > 0);
    return (holders + WORD_BITS - 1) / WORD_BITS;
}

void prefix_init(prefix_t *self, const prefix_memory_t *memory, uint32_t capacity, uint32_t holders)
{
    *self = (prefix_t){ .keys = memory->keys,
                        .holders = memory->holders,
                        .free_list = memory->free_list,
                        .free_count = capacity,
                        .capacity = capacity,
                        .words_per_entry = prefix_words(holders) };
    table_init(&self->table, memory->cells, capacity);
    for (uint32_t i = 0; i < capacity; i++) self->free_list[i] = capacity - 1 - i;
}

static uint64_t *words_of(const prefix_t *self, uint32_t entry)
{
    return self->holders + (size_t)entry * self->words_per_entry;
}

static uint32_t insert(prefix_t *self, block_key_t key)
{
    uint32_t entry = self->free_list[--self->free_count];
    for (uint32_t i = 0; i < self->words_per_entry; i++) words_of(self, entry)[i] = 0;
    self->keys[entry] = key;
    table_insert(&self->table, key.hi, key.lo, entry);
    return entry;
}

bool prefix_add(prefix_t *self, block_key_t key, uint32_t holder)
{
    invariant(holder / WORD_BITS < self->words_per_entry);
    uint32_t entry = table_find(&self->table, key.hi, key.lo);
    if (entry == TABLE_NONE && self->free_count == 0) return false;
    if (entry == TABLE_NONE) entry = insert(self, key);
    words_of(self, entry)[holder / WORD_BITS] |= UINT64_C(1) << holder % WORD_BITS;
    return true;
}

/* Take the holder's bit off; an entry that nobody holds is free. */
static void clear(prefix_t *self, uint32_t entry, uint32_t holder)
{
    words_of(self, entry)[holder / WORD_BITS] &= ~(UINT64_C(1) << holder % WORD_BITS);
    for (uint32_t i = 0; i < self->words_per_entry; i++)
        if (words_of(self, entry)[i] != 0) return;
    table_remove(&self->table, self->keys[entry].hi, self->keys[entry].lo);
    invariant(self->free_count < self->capacity);
    self->free_list[self->free_count++] = entry;
}

void prefix_remove(prefix_t *self, block_key_t key, uint32_t holder)
{
    invariant(holder / WORD_BITS < self->words_per_entry);
    uint32_t entry = table_find(&self->table, key.hi, key.lo);
    if (entry != TABLE_NONE) clear(self, entry, holder);
}

void prefix_forget(prefix_t *self, uint32_t holder)
{
    invariant(holder / WORD_BITS < self->words_per_entry);
    for (uint32_t entry = 0; entry < self->capacity; entry++) {
        const uint64_t *words = words_of(self, entry);
        if (words[holder / WORD_BITS] >> holder % WORD_BITS & 1) clear(self, entry, holder);
    }
}

static bool has(const prefix_t *self, block_key_t key, uint32_t holder)
{
    uint32_t entry = table_find(&self->table, key.hi, key.lo);
    if (entry == TABLE_NONE) return false;
    return words_of(self, entry)[holder / WORD_BITS] >> holder % WORD_BITS & 1;
}

uint32_t prefix_depth(const prefix_t *self, const void *keys, uint32_t key_count, uint32_t holder)
{
    invariant(holder / WORD_BITS < self->words_per_entry);
    uint32_t held = 0,
             missing = key_count; /* the first `held` are there; the one at `missing` is not */
    if (key_count == 0 || !has(self, block_key_load(keys, 0), holder)) return 0;
    for (held = 1; held < missing;) {
        uint32_t middle = held + (missing - held) / 2;
        if (has(self, block_key_load(keys, middle), holder))
            held = middle + 1;
        else
            missing = middle;
    }
    return held;
}
