/* runtime/invariant.h - our own bugs stop the process, in release too: a corrupt actor must not
 * answer. */
#ifndef RUNTIME_INVARIANT_H
#define RUNTIME_INVARIANT_H

#define invariant(condition)                                                                       \
    ((condition) ? (void)0 : invariant_failed(__FILE__, __LINE__, #condition))

/* Writes file, line, condition and the last log lines to standard error, then aborts. */
_Noreturn void invariant_failed(const char *file, int line, const char *condition);

#endif
