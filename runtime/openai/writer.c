/* runtime/openai/writer.c - text and JSON into a fixed buffer, which empties itself into a sink
 * when it is full. */
#include "writer.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void writer_flush(writer_t *self)
{
    if (self->sink == NULL || self->used == 0) return;
    self->sink(self->context, self->text, self->used);
    self->used = 0;
}

void writer_bytes(writer_t *self, const char *text, size_t size)
{
    while (size > self->cap - self->used) {
        size_t room = self->cap - self->used;
        if (room > 0) memcpy(self->text + self->used, text, room);
        self->used += room;
        text += room;
        size -= room;
        if (self->sink == NULL) {
            self->is_cut = true;
            return;
        }
        writer_flush(self);
    }
    if (size > 0) memcpy(self->text + self->used, text, size);
    self->used += size;
}

void writer_text(writer_t *self, const char *text)
{
    writer_bytes(self, text, strlen(text));
}

void writer_format(writer_t *self, const char *format, ...)
{
    char piece[257];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(piece, sizeof piece, format, arguments);
    va_end(arguments);
    if (size <= 0) return;
    writer_bytes(self, piece, (size_t)size < sizeof piece ? (size_t)size : sizeof piece - 1);
}

/* By hand: this runs for every streamed token. */
void writer_number(writer_t *self, uint64_t value)
{
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    writer_bytes(self, digits + at, sizeof digits - at);
}

void writer_float(writer_t *self, double value)
{
    if (isnan(value))
        writer_text(self, "null");
    else if (isinf(value))
        writer_text(self, value < 0 ? "-9999.0" : "9999.0");
    else
        writer_format(self, "%.9g", value);
}

static void escape(writer_t *self, unsigned char byte)
{
    static const char hex[] = "0123456789abcdef";
    char unicode[6] = { '\\', 'u', '0', '0', hex[byte >> 4], hex[byte & 15] };
    switch (byte) {
    case '"':
        writer_bytes(self, "\\\"", 2);
        break;
    case '\\':
        writer_bytes(self, "\\\\", 2);
        break;
    case '\n':
        writer_bytes(self, "\\n", 2);
        break;
    case '\r':
        writer_bytes(self, "\\r", 2);
        break;
    case '\t':
        writer_bytes(self, "\\t", 2);
        break;
    default:
        writer_bytes(self, unicode, sizeof unicode);
    }
}

void writer_json_inside(writer_t *self, const char *text, size_t size)
{
    size_t start = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte >= 0x20 && byte != '"' && byte != '\\' && byte != 0x7f) continue;
        writer_bytes(self, text + start, i - start);
        escape(self, byte);
        start = i + 1;
    }
    writer_bytes(self, text + start, size - start);
}

void writer_json(writer_t *self, const char *text, size_t size)
{
    writer_bytes(self, "\"", 1);
    writer_json_inside(self, text, size);
    writer_bytes(self, "\"", 1);
}
