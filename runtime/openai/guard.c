/* runtime/openai/guard.c - what is checked of a body before it is parsed: bytes, depth, number of
 * values. */
#include <string.h>

#include "parse.h"
#include <utf8proc.h>

static err_t check_utf8(const uint8_t *text, size_t size, openai_error_t *why)
{
    size_t at = 0;
    while (at < size) {
        if (text[at] < 0x80) {
            at++;
            continue;
        }
        utf8proc_int32_t point;
        utf8proc_ssize_t used = utf8proc_iterate(text + at, (utf8proc_ssize_t)(size - at), &point);
        if (used <= 0)
            return openai_refuse(why, ERR_INVALID, "",
                                 "The body must be UTF-8, but byte 0x%02x at position %zu is not.",
                                 text[at], at);
        at += (size_t)used;
    }
    return ERR_OK;
}

typedef struct {
    bool is_text, is_escaped;
    uint32_t depth, values;
} scan_t;

/* One byte inside a string.  "\u0000" would cut the text short for whoever reads it as a C string.
 */
static err_t scan_text(scan_t *self, const char *text, size_t left, openai_error_t *why)
{
    if (self->is_escaped) {
        self->is_escaped = false;
        if (left >= 5 && memcmp(text, "u0000", 5) == 0)
            return openai_refuse(
                why, ERR_INVALID, "",
                "A text contains the NUL character (\\u0000), which is not allowed.");
    } else if (*text == '\\') {
        self->is_escaped = true;
    } else if (*text == '"') {
        self->is_text = false;
    } else if (*text == 0) {
        return openai_refuse(why, ERR_INVALID, "",
                             "The body contains a zero byte, which JSON does not allow.");
    }
    return ERR_OK;
}

static err_t scan_structure(scan_t *self, char byte, openai_error_t *why)
{
    if (byte == '"') self->is_text = true;
    if (byte == '{' || byte == '[') self->depth++;
    if ((byte == '}' || byte == ']') && self->depth > 0) self->depth--;
    if (byte == ',' || byte == '{' || byte == '[') self->values++;
    if (self->depth > OPENAI_DEPTH_MAX)
        return openai_refuse(why, ERR_INVALID, "", "The JSON is nested deeper than %d levels.",
                             OPENAI_DEPTH_MAX);
    if (self->values > OPENAI_VALUES_MAX)
        return openai_refuse(why, ERR_TOO_LARGE, "", "The JSON has more than %d values.",
                             OPENAI_VALUES_MAX);
    return ERR_OK;
}

err_t guard_check(bytes_t body, openai_error_t *why)
{
    const char *text = body.data;
    err_t error = check_utf8(body.data, body.size, why);
    scan_t scan = { 0 };
    for (size_t i = 0; i < body.size && error == ERR_OK; i++)
        error = scan.is_text ? scan_text(&scan, text + i, body.size - i, why)
                             : scan_structure(&scan, text[i], why);
    return error;
}

err_t guard_parse(bytes_t body, cJSON **root, openai_error_t *why)
{
    if (body.size == 0)
        return openai_refuse(why, ERR_INVALID, "", "The body is empty; a JSON object is needed.");
    const char *text = body.data, *end = text + body.size, *stopped = text;
    cJSON *parsed = cJSON_ParseWithLengthOpts(text, body.size, &stopped, 0);
    if (parsed == NULL)
        return openai_refuse(why, ERR_INVALID, "",
                             "The body is not valid JSON: error at position %zu of %zu.",
                             (size_t)(stopped - text), body.size);
    while (stopped < end && strchr(" \t\r\n", *stopped) != NULL && *stopped != 0) stopped++;
    if (stopped == end) {
        *root = parsed;
        return ERR_OK;
    }
    cJSON_Delete(parsed);
    return openai_refuse(why, ERR_INVALID, "", "Something follows the JSON value at position %zu.",
                         (size_t)(stopped - text));
}
