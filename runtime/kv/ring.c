/* runtime/kv/ring.c - records behind each other, each with a small head. */
#include "ring.h"

#include "../invariant.h"

enum { ALIGNMENT = 16 };

typedef struct {
    uint64_t size; /* of head and record */
    uint64_t is_dropped;
} record_t;

void ring_init(ring_t *self, void *bytes, size_t size)
{
    invariant((uintptr_t)bytes % ALIGNMENT == 0);
    invariant(size % ALIGNMENT == 0);
    *self = (ring_t){ .bytes = bytes, .size = size };
}

/* Where `size` bytes would fit; SIZE_MAX for nowhere.  tail never catches up with head: equal means
 * empty. */
static size_t place(ring_t *self, size_t size)
{
    if (self->records == 0) {
        self->head = self->tail = 0;
        return size <= self->size ? 0 : SIZE_MAX;
    }
    if (self->tail < self->head) return self->head - self->tail > size ? self->tail : SIZE_MAX;
    if (self->size - self->tail >= size) return self->tail;
    if (self->head <= size) return SIZE_MAX;
    self->end = self->tail;
    return 0;
}

void *ring_put(ring_t *self, size_t size)
{
    size_t whole = (sizeof(record_t) + size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t at = place(self, whole);
    if (at == SIZE_MAX) return NULL;
    record_t *record = (record_t *)(void *)(self->bytes + at);
    *record = (record_t){ .size = whole };
    self->tail = at + whole;
    self->records += 1;
    invariant(self->tail <= self->size);
    return record + 1;
}

void ring_drop(ring_t *self, void *dropped)
{
    record_t *record = (record_t *)dropped - 1;
    invariant(!record->is_dropped);
    record->is_dropped = 1;
    while (self->records > 0) { /* bounded by the records */
        if (self->tail < self->head && self->head == self->end) self->head = 0;
        record_t *oldest = (record_t *)(void *)(self->bytes + self->head);
        if (!oldest->is_dropped) return;
        self->head += oldest->size;
        self->records -= 1;
    }
}
