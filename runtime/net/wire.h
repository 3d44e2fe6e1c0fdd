/* runtime/net/wire.h - bulk transport as a table: a region that its owner registers, and blocks
 * that others read out of it.
 *
 * Nobody writes into another's region.  A reader may get bytes that the owner reuses at this
 * moment: it compares checksums.  All calls may block; they are made by a helper thread of the pool
 * port, except those about the own region: open and close happen at start and end, keep looks at a
 * name.
 */
#ifndef RUNTIME_NET_WIRE_H
#define RUNTIME_NET_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../proto/messages.h"

/* Whose region, in which life. */
typedef struct {
    const char *directory; /* wire.directory, resolved */
    address_t owner;
    uint64_t epoch;
} wire_name_t;

typedef struct {
    const char *name;
    /* Register zeroed memory of this size for reading by others; *base is where it lies, aligned to
     * a page. Whatever an earlier life of the owner left behind is removed.  ERR_NO_SPACE: not that
     * much memory. ERR_IO: the directory cannot be written. */
    err_t (*region_open)(void **region, const wire_name_t *name, size_t size, void **base);
    void (*region_close)(void **region);
    /* Others find the region by a name, which somebody may have deleted: put it back; *was_gone
     * says whether that was so.  ERR_IO: it cannot be found any more. */
    err_t (*region_keep)(void *region, bool *was_gone);
    /* Ready to read a peer's region.  ERR_LOST: there is none of this life. */
    err_t (*reader_open)(void **reader, const wire_name_t *name);
    void (*reader_close)(void **reader);
    /* Copy size bytes at offset.  ERR_LOST: the region is gone, or ends before. */
    err_t (*read)(void *reader, uint64_t offset, void *target, size_t size);
} wire_t;

/* Shared memory of one host. */
extern const wire_t wire_shm;

#endif
