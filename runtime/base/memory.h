/* runtime/base/memory.h - address space that is reserved once, and resident only while it is
 * needed.
 */
#ifndef RUNTIME_BASE_MEMORY_H
#define RUNTIME_BASE_MEMORY_H

#include <stddef.h>

/* Give back the pages that lie wholly inside this memory, whose contents are of no use any more. It
 * stays allocated; what is read of it before it is written is zero or what it was. */
void memory_rest(void *memory, size_t bytes);

#endif
