/* runtime/policy/step_time.h - how long a step takes on a machine whose kernels were measured: a
 * layer's times over rows and keys, interpolated. */
#ifndef RUNTIME_POLICY_STEP_TIME_H
#define RUNTIME_POLICY_STEP_TIME_H

#include <stdbool.h>
#include <stdint.h>

enum { STEP_POINTS_MAX = 256 };

/* One layer with this many rows, whose sequences hold this many tokens together. */
typedef struct {
    double rows, keys, us;
} step_point_t;

typedef struct {
    step_point_t points[STEP_POINTS_MAX]; /* by rows, then keys */
    uint32_t count;
} step_table_t;

/* False: no room, a number that is not positive, or rows and keys that are there already. */
bool step_table_add(step_table_t *self, step_point_t point);

/* Between two measured numbers of rows, and at each of them between two numbers of keys, a straight
 * line; beyond the last ones the line through them goes on, but never below the least that was
 * measured.  0 rows take no time; an empty table says 0. */
double step_table_us(const step_table_t *self, double rows, double keys);

#endif
