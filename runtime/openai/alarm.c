/* runtime/openai/alarm.c - one alarm for many: a heap of fixed size, earliest first. */
#include "alarm.h"

#include "../invariant.h"

static void put(alarms_t *self, uint32_t place, alarm_t alarm)
{
    self->heap[place] = alarm;
    self->places[alarm.id] = place + 1;
}

static void rise(alarms_t *self, uint32_t place, alarm_t alarm)
{
    while (place > 0 && self->heap[(place - 1) / 2].at_us > alarm.at_us) {
        put(self, place, self->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    put(self, place, alarm);
}

static void sink(alarms_t *self, uint32_t place, alarm_t alarm)
{
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child + 1 < self->count && self->heap[child + 1].at_us < self->heap[child].at_us)
            child++;
        if (child >= self->count || self->heap[child].at_us >= alarm.at_us) break;
        put(self, place, self->heap[child]);
        place = child;
    }
    put(self, place, alarm);
}

void alarms_remove(alarms_t *self, uint32_t id)
{
    invariant(id < self->capacity);
    if (self->places[id] == 0) return;
    uint32_t place = self->places[id] - 1;
    self->places[id] = 0;
    alarm_t last = self->heap[--self->count];
    if (last.id == id) return;
    if (place > 0 && self->heap[(place - 1) / 2].at_us > last.at_us)
        rise(self, place, last);
    else
        sink(self, place, last);
}

void alarms_set(alarms_t *self, uint32_t id, uint64_t at_us)
{
    alarms_remove(self, id);
    invariant(self->count < self->capacity);
    rise(self, self->count++, (alarm_t){ at_us, id });
}

uint64_t alarms_next_us(const alarms_t *self)
{
    return self->count == 0 ? 0 : self->heap[0].at_us;
}

uint32_t alarms_take_due(alarms_t *self, uint64_t now_us)
{
    if (self->count == 0 || self->heap[0].at_us > now_us) return UINT32_MAX;
    uint32_t id = self->heap[0].id;
    alarms_remove(self, id);
    return id;
}
