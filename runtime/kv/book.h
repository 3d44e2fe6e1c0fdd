/* runtime/kv/book.h - the requests that a balancer holds: numbered places, found by id, those that
 * wait in order of arrival.
 *
 * The book knows only who is where.  What is known of a request lies in an array of the balancer's
 * own, indexed by place.
 */
#ifndef RUNTIME_KV_BOOK_H
#define RUNTIME_KV_BOOK_H

#include "table.h"

#define BOOK_NONE UINT32_MAX

typedef struct {
    uint32_t next, previous; /* of the queue; of a free place, next of the free list */
    bool is_used, is_queued;
} book_place_t;

typedef struct {
    table_t table;
    book_place_t *places;
    uint32_t capacity, free_head;
    uint32_t queue_head, queue_tail, queued;
} book_t;

/* `cells` has room for table_cells(capacity), `places` for capacity; both are kept, the caller owns
 * them. */
void book_init(book_t *self, table_cell_t *cells, book_place_t *places, uint32_t capacity);

/* The place of a request; BOOK_NONE when it is not there. */
uint32_t book_find(const book_t *self, request_id_t request);

/* A place for a request that is not there yet, not queued; BOOK_NONE when the book is full. */
uint32_t book_add(book_t *self, request_id_t request);

/* The request is there, at this place, and not queued; the place becomes free. */
void book_remove(book_t *self, request_id_t request, uint32_t place);

/* To the end of the queue; the place is used and not queued. */
void book_enqueue(book_t *self, uint32_t place);

/* Out of the queue, wherever in it; the place is queued. */
void book_dequeue(book_t *self, uint32_t place);

/* The queue as a whole is sound; invariant() otherwise. */
void book_check(const book_t *self);

/* How many requests there are, queued or not. */
static inline uint32_t book_count(const book_t *self)
{
    return self->table.count;
}

/* For walks over all places below capacity. */
static inline bool book_is_used(const book_t *self, uint32_t place)
{
    return self->places[place].is_used;
}

/* Who has waited longest; BOOK_NONE when nobody waits. */
static inline uint32_t book_first(const book_t *self)
{
    return self->queue_head;
}

/* Who came next after a queued one; BOOK_NONE at the end. */
static inline uint32_t book_next(const book_t *self, uint32_t place)
{
    return self->places[place].next;
}

#endif
