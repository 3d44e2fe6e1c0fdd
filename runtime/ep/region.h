/* runtime/ep/region.h - the shared memory of an EP group and the meeting points in it; inside of
 * ep_shm.c.
 *
 * A rank writes only its own slot and its own part of the data; others only read them.  A *phase*
 * is a meeting point: a rank writes its part, posts the phase, and waits until all have posted it.
 * The *generation* names one unbroken life of the group: whoever finds fault adds one to it, and
 * every wait of the old one ends with an error.
 */
#ifndef RUNTIME_EP_REGION_H
#define RUNTIME_EP_REGION_H

#include <stdatomic.h>

#include "group.h"

/* One cache line and its neighbour: the prefetcher takes them in pairs. */
typedef struct {
    _Alignas(128) _Atomic uint32_t joined; /* the generation that this rank is ready for; 0: none */
    _Atomic uint64_t posted;  /* generation << 32 | phases of it that this rank has reached */
    _Atomic uint32_t rung;    /* steps of this generation that it has begun */
    _Atomic uint32_t rows;    /* rows it sends in this dispatch */
    _Atomic uint32_t word[2]; /* for ep_group_agree, by parity of the phase */
} region_slot_t;

typedef struct {
    _Atomic uint64_t layout;     /* hash of the options: who differs is refused */
    _Atomic uint32_t generation; /* never 0 */
    _Atomic uint32_t bell;       /* counts every post, ring and join: what sleepers wait on */
    _Atomic uint32_t
        sleepers; /* a rank that died asleep leaves one too many: a wake-up more, no harm */
} region_head_t;

typedef struct {
    int file; /* -1: private memory */
    char *base;
    size_t bytes;
    region_head_t *head;
    region_slot_t *slots;
    char *data; /* what the group keeps behind the slots */
    uint32_t rank, ranks;
    uint32_t generation; /* that this rank has entered; 0: none */
    uint32_t phase, rung;
    uint32_t missed; /* rank last logged as missing, plus one: each absence is told once */
    uint32_t wait_ms;
    address_t who;
} region_t;

/* Map path (NULL: private memory) with room for `data_bytes` behind the slots; takes the rank's
 * slot. ERR_IO, ERR_NO_SPACE, logged: the file cannot be used, or somebody else holds the slot. */
MUST_CHECK err_t region_open(region_t *self, const ep_options_t *options, size_t data_bytes);
void region_close(region_t *self);

/* False: the file was deleted, and a rank that was started since has made it anew under its path.
 */
bool region_is_current(const region_t *self, const char *path);

/* As in group.h. */
MUST_CHECK err_t region_join(region_t *self);
bool region_is_joined(const region_t *self);
void region_ring(region_t *self);
bool region_is_rung(const region_t *self);

/* Reach the next phase and wait for all ranks; ERR_EP_PEER breaks the generation. */
MUST_CHECK err_t region_meet(region_t *self);

/* This generation cannot go on: everybody's waits end now. */
void region_break(region_t *self);

/* Sleep until the bell differs from what it was at `seen`, *word (NULL: none) from `word_seen`, or
 * the time is over. */
uint32_t region_bell(const region_t *self);
typedef struct {
    uint32_t bell_seen;
    const uint32_t *word;
    uint32_t word_seen;
    uint64_t wait_us;
} region_sleep_t;
void region_sleep(region_t *self, const region_sleep_t *sleep);

#endif
