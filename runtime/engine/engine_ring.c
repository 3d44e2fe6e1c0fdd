/* runtime/engine/engine_ring.c - a lock-free ring of records of any size, for one writer and one
 * reader. */
#include "engine_ring.h"

#include <sys/mman.h>

#include "../invariant.h"

/* Before every record; 16 bytes, so that what follows is aligned. */
typedef struct {
    uint64_t size; /* of the whole, this included */
    uint64_t is_filler;
} record_t;

enum { ALIGN = 16 };

static size_t round_up(size_t size)
{
    return (size + ALIGN - 1) / ALIGN * ALIGN;
}

bool engine_ring_init(engine_ring_t *self, size_t capacity)
{
    self->capacity = round_up(capacity);
    self->reserved = 0;
    atomic_init(&self->written, 0);
    atomic_init(&self->read, 0);
    void *memory = mmap(NULL, self->capacity, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    self->bytes = memory == MAP_FAILED ? NULL : memory;
    return self->bytes != NULL;
}

void engine_ring_fini(engine_ring_t *self)
{
    if (self->bytes) (void)munmap(self->bytes, self->capacity);
    self->bytes = NULL;
}

static record_t *record_at(const engine_ring_t *self, uint64_t position)
{
    return (record_t *)(void *)(self->bytes + position % self->capacity);
}

/* Fill up to the end of the memory, where there is an end to fill to. */
static void wrap(engine_ring_t *self, uint64_t written)
{
    uint64_t rest = self->capacity - written % self->capacity;
    *record_at(self, written) = (record_t){ .size = rest, .is_filler = 1 };
    self->reserved = written + rest;
    engine_ring_publish(self);
}

void *engine_ring_reserve(engine_ring_t *self, size_t size)
{
    size_t whole = round_up(size) + sizeof(record_t);
    invariant(whole <= self->capacity / 2);
    uint64_t written = atomic_load_explicit(&self->written, memory_order_relaxed);
    uint64_t done = atomic_load_explicit(&self->read, memory_order_acquire); /* of release */
    uint64_t offset = written % self->capacity;
    /* An empty ring begins anew, in pages that are warm, where it need not wait for the reader. */
    bool begins_anew = written == done && whole <= offset;
    if (offset != 0 && (begins_anew || offset + whole > self->capacity)) {
        uint64_t rest = self->capacity - offset;
        if (written - done + rest > self->capacity) return NULL;
        wrap(self, written);
        written = atomic_load_explicit(&self->written, memory_order_relaxed);
    }
    if (written - done + whole > self->capacity) return NULL;
    record_t *record = record_at(self, written);
    *record = (record_t){ .size = whole };
    self->reserved = written + whole;
    return record + 1;
}

void engine_ring_publish(engine_ring_t *self)
{
    atomic_store_explicit(&self->written, self->reserved, memory_order_release); /* for peek */
}

void *engine_ring_peek(engine_ring_t *self)
{
    uint64_t done = atomic_load_explicit(&self->read, memory_order_relaxed);
    uint64_t written = atomic_load_explicit(&self->written, memory_order_acquire); /* of publish */
    while (done != written) {
        record_t *record = record_at(self, done);
        if (!record->is_filler) return record + 1;
        done += record->size;
        atomic_store_explicit(&self->read, done, memory_order_release);
    }
    return NULL;
}

void engine_ring_release(engine_ring_t *self)
{
    uint64_t done = atomic_load_explicit(&self->read, memory_order_relaxed);
    record_t *record = record_at(self, done);
    invariant(!record->is_filler);
    atomic_store_explicit(&self->read, done + record->size, memory_order_release); /* for reserve */
}
