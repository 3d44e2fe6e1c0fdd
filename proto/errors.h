/* proto/errors.h - err_t, from errors.def. */
#ifndef PROTO_ERRORS_H
#define PROTO_ERRORS_H

#include <stdbool.h>

/* What the receiver of an error throws away. */
typedef enum { SCOPE_NONE, SCOPE_FRAME, SCOPE_REQUEST, SCOPE_WORKER, SCOPE_CLUSTER } scope_t;

typedef enum {
#define ERROR(name, scope, http, retry, type, doc) ERR_##name,
#include "errors.def"
#undef ERROR
    ERRORS_MAX
} err_t;

#define MUST_CHECK __attribute__((warn_unused_result))

typedef struct {
    const char *name;
    scope_t scope;
    int http_status;
    bool is_retry_safe;
    const char *openai_type;
    const char *doc;
} error_desc_t;

extern const error_desc_t error_descs[ERRORS_MAX];

/* The error's name as clients of the HTTP API read it: "too_large". */
typedef struct {
    char text[24];
} error_code_t;
error_code_t error_code(err_t error);

#endif
