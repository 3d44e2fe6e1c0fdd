/* runtime/model/json.h - the text of a model's file, parsed whole. */
#ifndef RUNTIME_MODEL_JSON_H
#define RUNTIME_MODEL_JSON_H

#include <cjson/cJSON.h>

/* One JSON value with nothing but white space behind it, to be deleted by the caller.  NULL: it is
 * none, something follows it, or a byte order mark precedes it. */
cJSON *json_parse(const char *text, size_t size);

#endif
