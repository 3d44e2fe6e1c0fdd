/* runtime/net/request.h - the head of an HTTP/1.1 request: pure text in, values or a refusal out.
 */
#ifndef RUNTIME_NET_REQUEST_H
#define RUNTIME_NET_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HEADERS_MAX = 128 };

typedef struct {
    char method[16], path[256], authorization[256], traceparent[64];
    uint32_t minor; /* HTTP/1.minor */
    bool is_keep_alive, is_chunked, expects_continue, has_length, has_host;
    uint64_t length; /* of the body, when has_length */
} request_head_t;

/* Parse a whole head, the empty line at its end included.  Returns 0, or the status to refuse it
 * with; *why is then a constant text.  What is ambiguous is refused, never guessed: two lengths,
 * length and chunks, folded lines. */
int request_head_parse(request_head_t *self, const char *text, size_t size, const char **why);

/* The size line of a chunk, "1a;name=value"; false when it is none. */
bool request_chunk_size(const char *line, size_t size, uint64_t *out);

#endif
