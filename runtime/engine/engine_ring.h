/* runtime/engine/engine_ring.h - a lock-free ring of records of any size, for one writer and one
 * reader.
 *
 * A record never wraps: where it does not fit before the end, a filler takes the rest.  An empty
 * ring starts again at its beginning, so that a large ring that is rarely full touches few pages.
 */
#ifndef RUNTIME_ENGINE_ENGINE_RING_H
#define RUNTIME_ENGINE_ENGINE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *bytes;
    size_t capacity;          /* a multiple of 16 */
    _Atomic uint64_t written; /* bytes ever published; the writer's */
    _Atomic uint64_t read;    /* bytes ever released; the reader's */
    uint64_t reserved;        /* end of the record being written */
} engine_ring_t;

/* false: no memory is left.  The capacity is rounded up; only touched pages take memory. */
bool engine_ring_init(engine_ring_t *self, size_t capacity);
void engine_ring_fini(engine_ring_t *self);

/* Writer: room for a record, aligned to 16 bytes; NULL when it is full now.  Requires size <=
 * capacity / 2 - 16. The reader sees it after engine_ring_publish. */
void *engine_ring_reserve(engine_ring_t *self, size_t size);
void engine_ring_publish(engine_ring_t *self);

/* Reader: the oldest record, or NULL; it stays valid until engine_ring_release. */
void *engine_ring_peek(engine_ring_t *self);
void engine_ring_release(engine_ring_t *self);

#endif
