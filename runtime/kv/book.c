/* runtime/kv/book.c - the requests that a balancer holds: free list, table of ids, queue. */
#include "book.h"

#include "../invariant.h"

void book_init(book_t *self, table_cell_t *cells, book_place_t *places, uint32_t capacity)
{
    invariant(capacity > 0);
    *self = (book_t){
        .places = places, .capacity = capacity, .queue_head = BOOK_NONE, .queue_tail = BOOK_NONE
    };
    table_init(&self->table, cells, capacity);
    for (uint32_t i = 0; i < capacity; i++)
        places[i] = (book_place_t){ .next = i + 1 < capacity ? i + 1 : BOOK_NONE };
}

uint32_t book_find(const book_t *self, request_id_t request)
{
    uint32_t place = table_find(&self->table, request.hi, request.lo);
    return place == TABLE_NONE ? BOOK_NONE : place;
}

uint32_t book_add(book_t *self, request_id_t request)
{
    uint32_t place = self->free_head;
    if (place == BOOK_NONE) return BOOK_NONE;
    invariant(!self->places[place].is_used);
    self->free_head = self->places[place].next;
    self->places[place] =
        (book_place_t){ .next = BOOK_NONE, .previous = BOOK_NONE, .is_used = true };
    table_insert(&self->table, request.hi, request.lo, place);
    return place;
}

void book_remove(book_t *self, request_id_t request, uint32_t place)
{
    invariant(self->places[place].is_used && !self->places[place].is_queued);
    table_remove(&self->table, request.hi, request.lo);
    self->places[place] = (book_place_t){ .next = self->free_head };
    self->free_head = place;
}

void book_enqueue(book_t *self, uint32_t place)
{
    book_place_t *last = &self->places[place];
    invariant(last->is_used && !last->is_queued);
    last->is_queued = true;
    last->previous = self->queue_tail;
    if (self->queue_tail != BOOK_NONE)
        self->places[self->queue_tail].next = place;
    else
        self->queue_head = place;
    self->queue_tail = place;
    self->queued += 1;
}

void book_dequeue(book_t *self, uint32_t place)
{
    book_place_t *gone = &self->places[place];
    invariant(gone->is_queued && self->queued > 0);
    if (gone->previous != BOOK_NONE)
        self->places[gone->previous].next = gone->next;
    else
        self->queue_head = gone->next;
    if (gone->next != BOOK_NONE)
        self->places[gone->next].previous = gone->previous;
    else
        self->queue_tail = gone->previous;
    gone->next = gone->previous = BOOK_NONE;
    gone->is_queued = false;
    self->queued -= 1;
}

void book_check(const book_t *self)
{
    invariant(self->queued <= self->table.count);
    invariant((self->queue_head == BOOK_NONE) == (self->queued == 0));
    invariant((self->queue_tail == BOOK_NONE) == (self->queued == 0));
}
