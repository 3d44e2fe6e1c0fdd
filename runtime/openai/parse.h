/* runtime/openai/parse.h - what the files of the body parser share. */
#ifndef RUNTIME_OPENAI_PARSE_H
#define RUNTIME_OPENAI_PARSE_H

#include <cjson/cJSON.h>

#include "openai.h"

typedef struct {
    openai_call_t *call;
    arena_t *arena;
    openai_error_t *why;
    uint32_t vocab;
    bytes_t body;
} parser_t;

/* What can be said about a body before it costs memory: UTF-8, depth, number of values, texts and
 * numbers as RFC 8259 has them, no NUL characters. */
MUST_CHECK err_t guard_check(bytes_t body, openai_error_t *why);

/* Parse, after guard_check; no object may have a name twice.  The caller deletes *root. */
MUST_CHECK err_t guard_parse(bytes_t body, cJSON **root, openai_error_t *why);

/* The member `name` of the outermost object as it is written:
 * the parser makes every number a double, which loses what lies beyond 2^53.  False when it is
 * missing or not written as digits of an int64; needs a body that was parsed. */
bool guard_find_integer(bytes_t body, const char *name, int64_t *value);

/* ERR_INVALID: param must be `allowed`, but is ... */
err_t refuse_type(parser_t *self, const char *param, const char *allowed, const cJSON *value);

/* Readers of one value; `param` names it in errors. */
MUST_CHECK err_t read_bool(parser_t *self, const char *param, const cJSON *value, bool *out);
typedef struct {
    double least, most;
} range_t;
MUST_CHECK err_t read_number(parser_t *self, const char *param, const cJSON *value, range_t range,
                             double *out);
MUST_CHECK err_t read_integer(parser_t *self, const char *param, const cJSON *value, range_t range,
                              double *out);
MUST_CHECK err_t read_ids(parser_t *self, const char *param, const cJSON *array,
                          openai_prompt_t *out);

/* A copy in the arena; ERR_TOO_LARGE when that is full. */
MUST_CHECK err_t copy_text(parser_t *self, const char *text, const char **out, size_t *size);
err_t refuse_room(parser_t *self);

MUST_CHECK err_t read_messages(parser_t *self, const cJSON *value);
MUST_CHECK err_t read_prompt(parser_t *self, const char *param, const cJSON *value);

/* Refuse a field nobody knows, with the nearest known name. */
typedef const char *names_fn(uint32_t index); /* NULL past the last */
err_t refuse_unknown(openai_error_t *why, const char *name, names_fn *names);

#endif
