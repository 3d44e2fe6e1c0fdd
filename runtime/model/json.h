/* runtime/model/json.h - the text of a model's file, parsed whole. */
#ifndef RUNTIME_MODEL_JSON_H
#define RUNTIME_MODEL_JSON_H

#include <cjson/cJSON.h>

/* What is wrong with a text, to be read behind the file's name: "is not JSON: it is empty". */
typedef struct {
    char text[96];
} json_fault_t;

/* One JSON object with nothing but white space behind it, to be deleted by the caller.  NULL with
 * *fault: it is none, something follows it, or a byte order mark precedes it. */
cJSON *json_parse_object(const char *text, size_t size, json_fault_t *fault);

#endif
