/* runtime/base/log.h - one line per event, for every world.
 *
 *   2026-01-31T12:00:00.123Z info  prefill_lb.0 PREFILL-LB-FULL queue holds 4096 requests, allowed
 * are 4096
 *
 * One log per process; actors that are threads of one process share it.  Lines are never split,
 * never longer than LOG_LINE_BYTES, and hold no line breaks of their own.
 */
#ifndef RUNTIME_BASE_LOG_H
#define RUNTIME_BASE_LOG_H

#include "../actor.h"

#include <stdarg.h>

enum { LOG_LINE_BYTES = 1024, LOG_RECENT_LINES = 64 };

/* Write lines of this level and above to a file (appended to, mode 0600), or to standard error when
 * file is empty.  Before this call: warnings and errors to standard error.  ERR_IO: the file cannot
 * be opened. */
MUST_CHECK err_t log_open(const char *file, log_level_t level);

/* Back to standard error. */
void log_close(void);

/* Whether a line of this level would be written: ask before building costly arguments. */
bool log_is_on(log_level_t level);

/* Write a line now, with the wall clock's time. */
void log_write(address_t who, log_level_t level, const char *id, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void log_writev(address_t who, log_level_t level, const char *id, const char *format, va_list args);

/* What a line says, for worlds with a clock of their own. */
typedef struct {
    uint64_t wall_us; /* since 1970 */
    address_t who;
    log_level_t level;
    const char *id;
} log_event_t;

/* Format one line, newline included, into line[LOG_LINE_BYTES] and keep it for invariant_failed.
 * Returns its length. */
size_t log_format(char *line, const log_event_t *event, const char *format, va_list args);

/* The last LOG_RECENT_LINES lines, debug lines included, oldest first, into buf.  Returns the bytes
 * written. */
size_t log_recent(char *buf, size_t cap);

/* "decode_worker.1" of an address, for texts. */
typedef struct {
    char text[32];
} address_text_t;
address_text_t address_text(address_t who);

#endif
