/* runtime/base/page.h - prints text into a buffer that may be too small, and says how large it
 * would have to be. */
#ifndef RUNTIME_BASE_PAGE_H
#define RUNTIME_BASE_PAGE_H

#include <stddef.h>

typedef struct {
    char *buf;
    size_t cap, need; /* need counts on when the buffer is full; without the NUL */
} page_t;

/* Append; what no longer fits is cut off. */
void page_print(page_t *self, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
