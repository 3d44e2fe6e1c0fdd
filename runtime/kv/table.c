/* runtime/kv/table.c - open addressing with linear probing and backward-shift deletion. */
#include "table.h"

#include "../invariant.h"

uint32_t table_cells(uint32_t capacity)
{
    invariant(capacity > 0 && capacity <= 1u << 30);
    uint32_t cells = 4;
    while (cells < 2 * capacity) cells *= 2;
    return cells;
}

void table_init(table_t *self, table_cell_t *cells, uint32_t capacity)
{
    uint32_t count = table_cells(capacity);
    *self = (table_t){ .cells = cells, .mask = count - 1, .capacity = capacity };
    for (uint32_t i = 0; i < count; i++) cells[i].value = TABLE_NONE;
}

/* Names are random or hashes, but a client may choose its own: every bit takes part. */
static uint32_t home(const table_t *self, uint64_t hi, uint64_t lo)
{
    uint64_t mixed = (hi ^ (lo << 32 | lo >> 32)) * 0x9E3779B97F4A7C15u;
    return (uint32_t)((mixed ^ lo * 0xC2B2AE3D27D4EB4Fu) >> 32) & self->mask;
}

/* The cell of a name, or the free cell where it would go.  The table is half empty: it ends. */
static uint32_t probe(const table_t *self, uint64_t hi, uint64_t lo)
{
    uint32_t at = home(self, hi, lo);
    for (uint32_t step = 0;; step++, at = (at + 1) & self->mask) {
        invariant(step <= self->mask);
        const table_cell_t *cell = &self->cells[at];
        if (cell->value == TABLE_NONE || (cell->hi == hi && cell->lo == lo)) return at;
    }
}

uint32_t table_find(const table_t *self, uint64_t hi, uint64_t lo)
{
    return self->cells[probe(self, hi, lo)].value;
}

void table_insert(table_t *self, uint64_t hi, uint64_t lo, uint32_t value)
{
    invariant(value != TABLE_NONE);
    invariant(self->count < self->capacity);
    table_cell_t *cell = &self->cells[probe(self, hi, lo)];
    invariant(cell->value == TABLE_NONE);
    *cell = (table_cell_t){ hi, lo, value };
    self->count += 1;
}

void table_remove(table_t *self, uint64_t hi, uint64_t lo)
{
    uint32_t hole = probe(self, hi, lo);
    invariant(self->cells[hole].value != TABLE_NONE);
    self->count -= 1;
    uint32_t at = hole;
    for (uint32_t step = 0; step <= self->mask; step++) {
        self->cells[hole].value = TABLE_NONE;
        at = (at + 1) & self->mask;
        const table_cell_t *cell = &self->cells[at];
        if (cell->value == TABLE_NONE) return;
        uint32_t from_home = (at - home(self, cell->hi, cell->lo)) & self->mask;
        uint32_t from_hole = (at - hole) & self->mask;
        if (from_home < from_hole) continue; /* its home lies after the hole: it may stay */
        self->cells[hole] = *cell;
        hole = at;
    }
}
