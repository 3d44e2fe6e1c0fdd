/* runtime/base/json_text.h - writes JSON into a fixed buffer, for actors, which have no heap.
 *
 * Members and elements are separated as needed.  When the buffer is full, is_full is set and
 * nothing more is written: the caller looks once, at the end, and then throws the text away.
 */
#ifndef RUNTIME_BASE_JSON_TEXT_H
#define RUNTIME_BASE_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *buf;
    size_t cap, size; /* size: without the NUL that always follows */
    bool is_full;
} json_text_t;

/* cap at least 1. */
void json_text_init(json_text_t *self, char *buf, size_t cap);

/* In all of these: key is NULL for an element of an array and for the outermost value. */
void json_text_open(json_text_t *self, const char *key, char bracket); /* '{' or '[' */
void json_text_close(json_text_t *self, char bracket);                 /* '}' or ']' */
void json_text_string(json_text_t *self, const char *key, const char *value);
void json_text_number(json_text_t *self, const char *key, double value); /* NaN, infinity: null */
void json_text_uint(json_text_t *self, const char *key, uint64_t value);
void json_text_bool(json_text_t *self, const char *key, bool value);

#endif
