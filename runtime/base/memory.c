/* runtime/base/memory.c - address space that is reserved once, and resident only while it is
 * needed.
 */
#include "memory.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

void memory_rest(void *memory, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)memory;
    uintptr_t end = (first + bytes) / page * page;
    first = (first + page - 1) / page * page;
    if (memory && first < end && madvise((void *)first, end - first, MADV_DONTNEED) != 0)
        return; /* then it stays resident, which is no fault */
}
