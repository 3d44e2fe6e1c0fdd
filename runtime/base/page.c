/* runtime/base/page.c - snprintf that goes on where it stopped. */
#include "page.h"

#include <stdarg.h>
#include <stdio.h>

void page_print(page_t *self, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t room = self->need < self->cap ? self->cap - self->need : 0;
    int size = vsnprintf(room > 0 ? self->buf + self->need : NULL, room, format, args);
    va_end(args);
    if (size > 0) self->need += (size_t)size;
}
