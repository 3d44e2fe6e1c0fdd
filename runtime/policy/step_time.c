/* runtime/policy/step_time.c - two straight lines over keys, and one over rows between them. */
#include "step_time.h"

static bool is_before(const step_point_t *a, const step_point_t *b)
{
    return a->rows < b->rows || (a->rows == b->rows && a->keys < b->keys);
}

bool step_table_add(step_table_t *self, step_point_t point)
{
    uint32_t at = self->count;
    if (at == STEP_POINTS_MAX || !(point.rows > 0 && point.keys > 0 && point.us > 0)) return false;
    while (at > 0 && is_before(&point, &self->points[at - 1])) at--;
    if (at > 0 && !is_before(&self->points[at - 1], &point)) return false;
    for (uint32_t i = self->count; i > at; i--) self->points[i] = self->points[i - 1];
    self->points[at] = point;
    self->count++;
    return true;
}

typedef struct {
    double x, y;
} pair_t;

static double line(pair_t a, pair_t b, double x)
{
    return b.x == a.x ? a.y : a.y + (x - a.x) / (b.x - a.x) * (b.y - a.y);
}

/* One past the last point with the same rows as points[first]. */
static uint32_t end_of(const step_table_t *self, uint32_t first)
{
    uint32_t end = first;
    while (end < self->count && self->points[end].rows == self->points[first].rows) end++;
    return end;
}

/* Among points first .. end - 1, which have the same rows. */
static double at_keys(const step_table_t *self, uint32_t first, uint32_t end, double keys)
{
    uint32_t right = first + 1;
    if (end - first == 1) return self->points[first].us;
    while (right + 1 < end && self->points[right].keys < keys) right++;
    const step_point_t *a = &self->points[right - 1], *b = &self->points[right];
    return line((pair_t){ a->keys, a->us }, (pair_t){ b->keys, b->us }, keys);
}

double step_table_us(const step_table_t *self, double rows, double keys)
{
    if (self->count == 0 || rows <= 0) return 0;
    uint32_t left = 0, left_end = end_of(self, 0), right = left_end;
    while (right < self->count && self->points[right].rows < rows &&
           end_of(self, right) < self->count) {
        left = right;
        left_end = end_of(self, left);
        right = left_end;
    }
    double us = at_keys(self, left, left_end, keys), least = self->points[0].us;
    if (right < self->count)
        us = line(
            (pair_t){ self->points[left].rows, us },
            (pair_t){ self->points[right].rows, at_keys(self, right, end_of(self, right), keys) },
            rows);
    for (uint32_t i = 1; i < self->count; i++)
        if (self->points[i].us < least) least = self->points[i].us;
    return us > least ? us : least;
}
