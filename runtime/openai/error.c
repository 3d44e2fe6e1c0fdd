/* runtime/openai/error.c - errors in OpenAI's form, and the arena that requests are copied into. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "openai.h"

err_t openai_refuse(openai_error_t *why, err_t error, const char *param, const char *format, ...)
{
    why->error = error;
    why->code = NULL;
    snprintf(why->param, sizeof why->param, "%s", param);
    va_list arguments;
    va_start(arguments, format);
    error_text_t text; /* valid UTF-8, whatever was quoted, and wherever that was cut */
    error_text_write(&text, format, arguments);
    va_end(arguments);
    memcpy(why->message, text.text, sizeof why->message);
    return error;
}

/* A cut param may end inside a UTF-8 sequence; JSON must not. */
static size_t whole_size(const char *text)
{
    size_t size = strlen(text);
    size_t back = 0;
    while (back < 4 && back < size && ((unsigned char)text[size - 1 - back] & 0xc0) == 0x80) back++;
    if (back == size || back == 4) return size;
    unsigned char lead = (unsigned char)text[size - 1 - back];
    size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    return need > back + 1 ? size - 1 - back : size;
}

static void print_code(writer_t *out, const openai_error_t *why)
{
    if (why->code != NULL) {
        writer_json(out, why->code, strlen(why->code));
        return;
    }
    error_code_t code = error_code(why->error);
    writer_json(out, code.text, strlen(code.text));
}

void openai_print_error(writer_t *out, const openai_error_t *why)
{
    writer_text(out, "{\"error\":{\"message\":");
    writer_json(out, why->message, strlen(why->message));
    writer_format(out, ",\"type\":\"%s\",\"param\":", error_descs[why->error].openai_type);
    if (why->param[0] == 0)
        writer_text(out, "null");
    else
        writer_json(out, why->param, whole_size(why->param));
    writer_text(out, ",\"code\":");
    print_code(out, why);
    writer_text(out, "}}");
}

void *arena_take(arena_t *self, size_t count, size_t size)
{
    size_t start = (self->used + 15) & ~(size_t)15;
    if (start > self->size || (size > 0 && count > (self->size - start) / size)) return NULL;
    self->used = start + count * size;
    return self->bytes + start;
}
