/* runtime/model/json.c - the text of a model's file, parsed whole. */
#include "json.h"

#include <string.h>

static size_t skip_space(const char *text, size_t size, size_t at)
{
    while (at < size && memchr(" \t\r\n", text[at], 4)) at++;
    return at;
}

/* cJSON stops behind the first value and skips a byte order mark: a file of which only a part is
 * JSON is damaged, or is not the file that other readers, who refuse it, have seen. */
cJSON *json_parse(const char *text, size_t size)
{
    static const char mark[] = "\xef\xbb\xbf";
    const char *end = text;
    if (size >= sizeof mark - 1 && memcmp(text, mark, sizeof mark - 1) == 0) return NULL;
    cJSON *root = cJSON_ParseWithLengthOpts(text, size, &end, 0);
    if (!root || skip_space(text, size, (size_t)(end - text)) == size) return root;
    cJSON_Delete(root);
    return NULL;
}
