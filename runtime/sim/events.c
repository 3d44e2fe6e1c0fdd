/* runtime/sim/events.c - the one queue of events: a heap by time, ties by order of arrival. */
#include "parts.h"

#include <stdlib.h>

static bool is_earlier(const event_t *a, const event_t *b)
{
    if (a->at_us != b->at_us) return a->at_us < b->at_us;
    return a->sequence < b->sequence;
}

static void swap(event_t *a, event_t *b)
{
    event_t kept = *a;
    *a = *b;
    *b = kept;
}

void events_push(event_queue_t *self, event_t event)
{
    if (self->count == self->room) {
        self->room = self->room ? self->room * 2 : 1024;
        self->events = realloc(self->events, self->room * sizeof *self->events);
        invariant(self->events);
    }
    event.sequence = self->sequence++;
    size_t at = self->count++;
    self->events[at] = event;
    while (at > 0 && is_earlier(&self->events[at], &self->events[(at - 1) / 2])) {
        swap(&self->events[at], &self->events[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
}

static void sink(event_queue_t *self, size_t at)
{
    for (;;) {
        size_t least = at;
        for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < self->count; child++)
            if (is_earlier(&self->events[child], &self->events[least])) least = child;
        if (least == at) return;
        swap(&self->events[at], &self->events[least]);
        at = least;
    }
}

bool events_pop(event_queue_t *self, uint64_t until_us, event_t *event)
{
    if (self->count == 0 || self->events[0].at_us > until_us) return false;
    *event = self->events[0];
    self->events[0] = self->events[--self->count];
    sink(self, 0);
    return true;
}
