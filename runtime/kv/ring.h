/* runtime/kv/ring.h - a first-in-first-out store of byte records of any size, for queued prompts.
 *
 * A record is contiguous and stays where it is until it is dropped.  Records may be dropped in any
 * order; their room comes back when everything older is gone too.
 */
#ifndef RUNTIME_KV_RING_H
#define RUNTIME_KV_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t *bytes;
    size_t size, head, tail; /* oldest record; where the next one goes */
    size_t end;              /* where records end before the ring wraps, while tail < head */
    uint32_t records;        /* not yet reclaimed */
} ring_t;

/* `bytes` is aligned to 16, `size` a multiple of 16.  Kept; the caller owns it. */
void ring_init(ring_t *self, void *bytes, size_t size);

/* Room for a record of `size` bytes, aligned to 16; NULL when there is none. */
void *ring_put(ring_t *self, size_t size);

/* Drop a record that ring_put gave. */
void ring_drop(ring_t *self, void *record);

#endif
