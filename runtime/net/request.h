/* runtime/net/request.h - what evhttp lets through, checked: values or a refusal out.
 *
 * evhttp 2.1 guesses where a message is ambiguous: of two lengths it takes the first, of a length
 * and chunks the chunks.  Whoever asks here learns it, and ends the connection, so that what was
 * guessed wrong is never read as the next request.
 */
#ifndef RUNTIME_NET_REQUEST_H
#define RUNTIME_NET_REQUEST_H

#include <stdbool.h>
#include <stddef.h>

struct evhttp_request;

enum { HEADERS_MAX = 128 };

typedef struct {
    char method[16], path[256], authorization[256], traceparent[64], content_type[128];
    bool has_origin;
    bool is_last; /* of its connection: the client said so, or its body came in chunks */
} request_head_t;

/* The head of a request that has arrived whole.  Returns 0, or the status to refuse it with; *why
 * is then a constant text. */
int request_head_read(request_head_t *self, struct evhttp_request *request, const char **why);

/* The words of a status: evhttp does not know all of ours. */
const char *request_status_text(int status);

#endif
