/* runtime/kv/table.h - a hash table of fixed capacity: 128-bit name -> small number.
 *
 * For requests (their id) and blocks (their key).  Open addressing, linear probing, deletion
 * without tombstones. Never more than half full, so that a lookup ends within a few cells.
 */
#ifndef RUNTIME_KV_TABLE_H
#define RUNTIME_KV_TABLE_H

#include <stdint.h>

#include "../../proto/messages.h"

#define TABLE_NONE UINT32_MAX

typedef struct {
    uint64_t hi, lo;
    uint32_t value; /* TABLE_NONE: the cell is free */
} table_cell_t;

typedef struct {
    table_cell_t *cells;
    uint32_t mask, count, capacity;
} table_t;

/* Cells that a table for this many entries needs: a power of two. */
uint32_t table_cells(uint32_t capacity);

/* `cells` has room for table_cells(capacity); it is kept, the caller owns it. */
void table_init(table_t *self, table_cell_t *cells, uint32_t capacity);

/* The value of a name; TABLE_NONE when it is not there. */
uint32_t table_find(const table_t *self, uint64_t hi, uint64_t lo);

/* The name must not be there, the table not full, the value not TABLE_NONE. */
void table_insert(table_t *self, uint64_t hi, uint64_t lo, uint32_t value);

/* The name must be there. */
void table_remove(table_t *self, uint64_t hi, uint64_t lo);

#endif
