/* cli/input.h - a whole stream as one text. */
#ifndef CLI_INPUT_H
#define CLI_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum { INPUT_BYTES_MAX = 256 << 20 };

typedef struct {
    char *text; /* NUL follows it */
    size_t size;
} input_t;

/* Read to the end.  False: too large, unreadable, or no memory; standard error has said so.
 * input_free in any case. */
bool input_read(input_t *self, FILE *from);
void input_free(input_t *self);

/* Whether a text is UTF-8, which is all that models know; if not, standard error has said where in
 * `what` it is not. */
bool input_is_text(const char *what, const char *text, size_t size);

#endif
