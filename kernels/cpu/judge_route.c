/* kernels/cpu/judge_route.c - which row of the experts' work each token becomes. */
#include "judge.h"

#include <errno.h>

/* The expert of this rank that a token's choice k names, or NO_ROW. */
static uint32_t expert_here(const route_t *route, uint32_t id)
{
    uint32_t here = id - route->first_expert;
    return id >= route->first_expert && here < route->experts ? here : NO_ROW;
}

static void count_rows(uint32_t *first, uint32_t *rows, const uint32_t *ids, const route_t *route)
{
    for (uint32_t e = 0; e < route->experts; e++) rows[e] = 0;
    for (size_t i = 0; i < (size_t)route->tokens * route->top_k; i++) {
        uint32_t expert = expert_here(route, ids[i]);
        if (expert != NO_ROW) rows[expert]++;
    }
    first[0] = 0;
    for (uint32_t e = 0; e < route->experts; e++)
        first[e + 1] = first[e] + (rows[e] + route->align - 1) / route->align * route->align;
}

/* Groups that exceed the capacity are cut: whoever sized the buffers reads it off `first`. */
static void cut(uint32_t *first, uint32_t *rows, const route_t *route)
{
    for (uint32_t e = 0; e <= route->experts; e++)
        if (first[e] > route->capacity) first[e] = route->capacity;
    for (uint32_t e = 0; e < route->experts; e++)
        if (rows[e] > first[e + 1] - first[e]) rows[e] = first[e + 1] - first[e];
}

int judge_route(queue_t *q, uint32_t *first, uint32_t *rows, uint32_t *source, uint32_t *index,
                const uint32_t *ids, const route_t *route)
{
    if (route->align == 0) return EINVAL;
    count_rows(first, rows, ids, route);
    cut(first, rows, route);
    for (uint32_t r = 0; r < route->capacity; r++) source[r] = NO_ROW;
    for (uint32_t e = 0; e < route->experts; e++) rows[e] = 0;
    for (size_t i = 0; i < (size_t)route->tokens * route->top_k; i++) {
        uint32_t expert = expert_here(route, ids[i]);
        index[i] = NO_ROW;
        if (expert == NO_ROW || rows[expert] == first[expert + 1] - first[expert]) continue;
        index[i] = first[expert] + rows[expert]++;
        source[index[i]] = (uint32_t)(i / route->top_k);
    }
    return 0;
}
