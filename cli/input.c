/* cli/input.c - a whole stream as one text. */
#include "input.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/model/tokenizer_utf8.h"
#include "cli.h"

bool input_read(input_t *self, FILE *from)
{
    size_t cap = 1 << 16;
    *self = (input_t){ .text = malloc(cap + 1) };
    while (self->text) {
        self->size += fread(self->text + self->size, 1, cap - self->size, from);
        self->text[self->size] = 0;
        if (ferror(from)) return complain("standard input: %s", strerror(errno)), false;
        if (self->size < cap) return true;
        if (cap >= INPUT_BYTES_MAX) break;
        cap *= 2;
        char *larger = realloc(self->text, cap + 1);
        if (!larger) break;
        self->text = larger;
    }
    complain("standard input is larger than %d bytes", INPUT_BYTES_MAX);
    return false;
}

bool input_is_text(const char *what, const char *text, size_t size)
{
    size_t good = utf8_valid_size((const uint8_t *)text, size);
    if (good == size) return true;
    complain("%s must be UTF-8, but byte 0x%02x at position %zu is not", what,
             (unsigned)(unsigned char)text[good], good);
    return false;
}

void input_free(input_t *self)
{
    free(self->text);
    *self = (input_t){ NULL, 0 };
}
