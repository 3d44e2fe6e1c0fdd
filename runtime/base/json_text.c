/* runtime/base/json_text.c - writes JSON into a fixed buffer. */
#include "json_text.h"

#include "../invariant.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

void json_text_init(json_text_t *self, char *buf, size_t cap)
{
    invariant(cap > 0);
    *self = (json_text_t){ .buf = buf, .cap = cap };
    buf[0] = 0;
}

static void put(json_text_t *self, const char *text, size_t size)
{
    if (self->is_full || size >= self->cap - self->size) {
        self->is_full = true;
        return;
    }
    memcpy(self->buf + self->size, text, size);
    self->size += size;
    self->buf[self->size] = 0;
}

static void put_quoted(json_text_t *self, const char *text)
{
    put(self, "\"", 1);
    for (; *text != 0; text++) {
        unsigned char byte = (unsigned char)*text;
        char escape[8];
        if (byte == '"' || byte == '\\') {
            put(self, "\\", 1);
            put(self, text, 1);
        } else if (byte < 0x20) {
            put(self, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", (unsigned)byte));
        } else {
            put(self, text, 1);
        }
    }
    put(self, "\"", 1);
}

/* Comma, if something precedes in this container, and the key. */
static void begin(json_text_t *self, const char *key)
{
    char last = self->size > 0 ? self->buf[self->size - 1] : '[';
    if (last != '{' && last != '[') put(self, ",", 1);
    if (key == NULL) return;
    put_quoted(self, key);
    put(self, ":", 1);
}

void json_text_open(json_text_t *self, const char *key, char bracket)
{
    invariant(bracket == '{' || bracket == '[');
    begin(self, key);
    put(self, &bracket, 1);
}

void json_text_close(json_text_t *self, char bracket)
{
    invariant(bracket == '}' || bracket == ']');
    put(self, &bracket, 1);
}

void json_text_string(json_text_t *self, const char *key, const char *value)
{
    begin(self, key);
    put_quoted(self, value);
}

void json_text_number(json_text_t *self, const char *key, double value)
{
    char text[32];
    int size = isfinite(value) ? snprintf(text, sizeof text, "%.15g", value)
                               : snprintf(text, sizeof text, "null");
    begin(self, key);
    put(self, text, (size_t)size);
}

void json_text_uint(json_text_t *self, const char *key, uint64_t value)
{
    char text[32];
    int size = snprintf(text, sizeof text, "%" PRIu64, value);
    begin(self, key);
    put(self, text, (size_t)size);
}

void json_text_bool(json_text_t *self, const char *key, bool value)
{
    begin(self, key);
    put(self, value ? "true" : "false", value ? 4 : 5);
}
