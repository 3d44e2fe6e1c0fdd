/* runtime/openai/alarm.h - one alarm for many: a heap of fixed size, earliest first. */
#ifndef RUNTIME_OPENAI_ALARM_H
#define RUNTIME_OPENAI_ALARM_H

#include <stdint.h>

typedef struct {
    uint64_t at_us;
    uint32_t id;
} alarm_t;

/* Memory of the caller: `capacity` alarms and as many places; ids are below capacity. */
typedef struct {
    alarm_t *heap;
    uint32_t *places; /* of each id in the heap, plus one; 0: not set */
    uint32_t count, capacity;
} alarms_t;

/* Set, or set anew. */
void alarms_set(alarms_t *self, uint32_t id, uint64_t at_us);
void alarms_remove(alarms_t *self, uint32_t id);

/* Time of the earliest; 0 when there is none. */
uint64_t alarms_next_us(const alarms_t *self);

/* The earliest, if it is due: removed and returned; UINT32_MAX otherwise. */
uint32_t alarms_take_due(alarms_t *self, uint64_t now_us);

#endif
