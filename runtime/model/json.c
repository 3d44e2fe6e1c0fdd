/* runtime/model/json.c - the text of a model's file, parsed whole. */
#include "json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static size_t skip_space(const char *text, size_t size, size_t at)
{
    while (at < size && memchr(" \t\r\n", text[at], 4)) at++;
    return at;
}

static cJSON *say(json_fault_t *fault, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static cJSON *say(json_fault_t *fault, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(fault->text, sizeof fault->text, format, arguments);
    va_end(arguments);
    return NULL;
}

/* cJSON stops behind the first value and skips a byte order mark: a file of which only a part is
 * JSON is damaged, or is not the file that other readers, who refuse it, have seen. */
cJSON *json_parse_object(const char *text, size_t size, json_fault_t *fault)
{
    static const char mark[] = "\xef\xbb\xbf";
    const char *end = text;
    if (skip_space(text, size, 0) == size) return say(fault, "is not JSON: it is empty");
    if (size >= sizeof mark - 1 && memcmp(text, mark, sizeof mark - 1) == 0)
        return say(fault, "is not JSON: a byte order mark precedes it");
    cJSON *root = cJSON_ParseWithLengthOpts(text, size, &end, 0);
    if (!root)
        return say(fault, "is not JSON: error at byte %zu of %zu", (size_t)(end - text), size);
    size_t stopped = skip_space(text, size, (size_t)(end - text));
    if (stopped == size && cJSON_IsObject(root)) return root;
    cJSON_Delete(root);
    if (stopped < size)
        return say(fault, "is not JSON: something follows it at byte %zu of %zu", stopped, size);
    return say(fault, "is JSON, but no object");
}
