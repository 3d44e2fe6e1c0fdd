/* runtime/base/invariant.c - the last words of a process that found a bug of ours. */
#include "../invariant.h"

#include "log.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void say(const char *text, size_t size)
{
    ssize_t written = write(STDERR_FILENO, text, size);
    (void)written;
}

_Noreturn void invariant_failed(const char *file, int line, const char *condition)
{
    static char recent[LOG_RECENT_LINES * LOG_LINE_BYTES];
    char head[1024];
    int size = snprintf(head, sizeof head, "invariant failed: %s:%d: %s\nthe last lines logged:\n",
                        file, line, condition);
    size_t kept = log_recent(recent, sizeof recent);
    if (size > 0) say(head, (size_t)size < sizeof head ? (size_t)size : sizeof head - 1);
    say(recent, kept);
    abort();
}
