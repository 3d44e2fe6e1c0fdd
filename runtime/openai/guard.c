/* runtime/openai/guard.c - what is checked of a body before it is parsed: bytes, depth, number of
 * values. */
#include <errno.h>
#include <stdlib.h>
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

/* ---- integers as they are written ---- */

static size_t skip_spaces(bytes_t body, size_t at)
{
    const char *text = body.data;
    while (at < body.size && memchr(" \t\r\n", text[at], 4) != NULL) at++;
    return at;
}

static bool read_written(bytes_t body, size_t at, int64_t *value)
{
    const char *text = body.data;
    char digits[24] = "";
    size_t size = 0;
    while (at < body.size && size + 1 < sizeof digits &&
           (text[at] == '-' || (text[at] >= '0' && text[at] <= '9')))
        digits[size++] = text[at++];
    if (size == 0 || at == body.size || memchr(",} \t\r\n", text[at], 6) == NULL) return false;
    errno = 0;
    long long written = strtoll(digits, NULL, 10);
    if (errno != 0) return false;
    *value = written;
    return true;
}

/* The text that begins at `at`, behind its quote, is the name of a member: where its value begins,
 * else 0. */
static size_t value_of(bytes_t body, size_t at, const char *name)
{
    const char *text = body.data;
    size_t size = strlen(name);
    if (body.size - at <= size || memcmp(text + at, name, size) != 0 || text[at + size] != '"')
        return 0;
    at = skip_spaces(body, at + size + 1);
    return at < body.size && text[at] == ':' ? skip_spaces(body, at + 1) : 0;
}

bool guard_find_integer(bytes_t body, const char *name, int64_t *value)
{
    const char *text = body.data;
    bool is_text = false, is_found = false;
    uint32_t depth = 0;
    for (size_t i = 0; i < body.size; i++) {
        if (is_text) {
            if (text[i] == '\\')
                i++; /* whatever follows does not end the text */
            else
                is_text = text[i] != '"';
            continue;
        }
        depth += text[i] == '{' || text[i] == '[';
        depth -= text[i] == '}' || text[i] == ']';
        is_text = text[i] == '"';
        size_t at = is_text && depth == 1 ? value_of(body, i + 1, name) : 0;
        if (at > 0) is_found = read_written(body, at, value);
    }
    return is_found;
}
