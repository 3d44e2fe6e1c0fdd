/* runtime/kv/cache.c - chains of blocks, evicted from their ends. */
#include "cache.h"

#include "../invariant.h"

enum { PLACE_STEPS_MAX = 32 }; /* how far we look for the right place in the list of the old */

void cache_init(cache_t *self, cache_entry_t *entries, table_cell_t *cells, uint32_t capacity)
{
    *self = (cache_t){
        .entries = entries, .capacity = capacity, .oldest = CACHE_NONE, .newest = CACHE_NONE
    };
    table_init(&self->table, cells, capacity);
    for (uint32_t i = 0; i < capacity; i++)
        entries[i] = (cache_entry_t){ .newer = i + 1 < capacity ? i + 1 : CACHE_NONE };
}

uint32_t cache_find(const cache_t *self, block_key_t key)
{
    return table_find(&self->table, key.hi, key.lo);
}

uint32_t cache_depth(const cache_t *self, const void *keys, uint32_t key_count, uint32_t *last)
{
    uint32_t depth = 0;
    *last = CACHE_NONE;
    for (; depth < key_count; depth++) {
        uint32_t entry = cache_find(self, block_key_load(keys, depth));
        if (entry == CACHE_NONE || self->entries[entry].state != CACHE_HELD) break;
        *last = entry;
    }
    return depth;
}

static void unlist(cache_t *self, uint32_t index)
{
    cache_entry_t *entry = &self->entries[index];
    if (!entry->is_listed) return;
    if (entry->older != CACHE_NONE)
        self->entries[entry->older].newer = entry->newer;
    else
        self->oldest = entry->newer;
    if (entry->newer != CACHE_NONE)
        self->entries[entry->newer].older = entry->older;
    else
        self->newest = entry->older;
    entry->is_listed = false;
}

/* Behind `older` (CACHE_NONE: at the old end). */
static void insert_after(cache_t *self, uint32_t index, uint32_t older)
{
    cache_entry_t *entry = &self->entries[index];
    invariant(!entry->is_listed);
    entry->older = older;
    entry->newer = older == CACHE_NONE ? self->oldest : self->entries[older].newer;
    if (entry->newer != CACHE_NONE)
        self->entries[entry->newer].older = index;
    else
        self->newest = index;
    if (older != CACHE_NONE)
        self->entries[older].newer = index;
    else
        self->oldest = index;
    entry->is_listed = true;
}

/* Into the list of those that may go, by last use.  Most are either the newest or among the oldest
 * (a parent whose last child was just evicted); what lies between is placed roughly. */
static void list_if_evictable(cache_t *self, uint32_t index)
{
    const cache_entry_t *entry = &self->entries[index];
    if (entry->is_listed || entry->state != CACHE_HELD || entry->children > 0 || entry->pins > 0)
        return;
    if (self->newest == CACHE_NONE || self->entries[self->newest].used_us <= entry->used_us) {
        insert_after(self, index, self->newest);
        return;
    }
    uint32_t older = CACHE_NONE, next = self->oldest;
    for (uint32_t step = 0; step < PLACE_STEPS_MAX && next != CACHE_NONE; step++) {
        if (self->entries[next].used_us > entry->used_us) break;
        older = next;
        next = self->entries[next].newer;
    }
    insert_after(self, index, older);
}

void cache_remove(cache_t *self, uint32_t index)
{
    cache_entry_t *entry = &self->entries[index];
    invariant(entry->state != CACHE_FREE);
    invariant(entry->children == 0 && entry->pins == 0);
    unlist(self, index);
    table_remove(&self->table, entry->key.hi, entry->key.lo);
    uint32_t parent = entry->parent;
    *entry = (cache_entry_t){ .newer = self->free_head };
    self->free_head = index;
    self->used -= 1;
    if (parent == CACHE_NONE) return;
    invariant(self->entries[parent].children > 0);
    self->entries[parent].children -= 1;
    list_if_evictable(self, parent);
}

uint32_t cache_add(cache_t *self, block_key_t key, uint32_t parent, block_key_t *evicted)
{
    *evicted = (block_key_t){ 0 };
    if (parent != CACHE_NONE) cache_pin(self, parent); /* it must not make room for its own child */
    if (self->free_head == CACHE_NONE && self->oldest != CACHE_NONE) {
        *evicted = self->entries[self->oldest].key;
        cache_remove(self, self->oldest);
    }
    uint32_t index = self->free_head;
    if (index != CACHE_NONE) {
        cache_entry_t *entry = &self->entries[index];
        invariant(entry->state == CACHE_FREE);
        self->free_head = entry->newer;
        *entry = (cache_entry_t){ .key = key, .parent = parent, .state = CACHE_PULLING };
        self->used += 1;
        table_insert(&self->table, key.hi, key.lo, index);
        if (parent != CACHE_NONE) self->entries[parent].children += 1;
    }
    if (parent != CACHE_NONE) cache_unpin(self, parent);
    return index;
}

void cache_hold(cache_t *self, uint32_t index, uint64_t checksum, uint64_t now_us)
{
    cache_entry_t *entry = &self->entries[index];
    invariant(entry->state == CACHE_PULLING);
    entry->state = CACHE_HELD;
    entry->checksum = checksum;
    entry->used_us = now_us;
    list_if_evictable(self, index);
}

void cache_touch(cache_t *self, uint32_t index, uint64_t now_us)
{
    invariant(self->entries[index].state == CACHE_HELD);
    self->entries[index].used_us = now_us;
    unlist(self, index);
    list_if_evictable(self, index);
}

void cache_pin(cache_t *self, uint32_t index)
{
    invariant(self->entries[index].state != CACHE_FREE);
    self->entries[index].pins += 1;
    unlist(self, index);
}

void cache_unpin(cache_t *self, uint32_t index)
{
    invariant(self->entries[index].pins > 0);
    self->entries[index].pins -= 1;
    list_if_evictable(self, index);
}

void cache_check(const cache_t *self)
{
    uint32_t used = 0, listed = 0, children = 0, with_parent = 0;
    for (uint32_t i = 0; i < self->capacity; i++) {
        const cache_entry_t *entry = &self->entries[i];
        if (entry->state == CACHE_FREE) continue;
        used += 1;
        children += entry->children;
        with_parent += entry->parent != CACHE_NONE;
        bool may_go = entry->state == CACHE_HELD && entry->children == 0 && entry->pins == 0;
        invariant(entry->is_listed == may_go);
        listed += may_go;
    }
    invariant(used == self->used && used == self->table.count);
    invariant(children == with_parent);
    for (uint32_t i = self->oldest; i != CACHE_NONE; i = self->entries[i].newer) {
        invariant(self->entries[i].is_listed && listed > 0);
        listed -= 1;
    }
    invariant(listed == 0);
}
