/* runtime/net/http.h - the HTTP port of ingress: requests in as MSG_http_request, answers out.
 *
 * The server (libevent's evhttp behind this header) knows no model and no OpenAI.  An exchange is
 * one request and its answer; its number is never reused.  Every call on an exchange that has ended
 * is ignored: the client may go away at any moment, which MSG_http_closed tells, once, unless the
 * answer was complete. What is written in one loop turn leaves together.
 */
#ifndef RUNTIME_NET_HTTP_H
#define RUNTIME_NET_HTTP_H

#include "../actor.h"

typedef struct {
    int status;
    const char *content_type;
    uint32_t retry_after_seconds; /* 0: no Retry-After */
    const char *request_id;       /* X-Request-Id, or NULL */
    const char *allow;            /* Allow, for 405, or NULL */
} http_answer_t;

/* Only inside init: listen as the configuration says. */
err_t actor_http_open(actor_t *world);

/* A whole answer with its body. */
void actor_http_answer(actor_t *world, uint64_t exchange, const http_answer_t *answer,
                       const void *body, size_t size);

/* A streamed answer: begin, any number of writes, end. */
void actor_http_begin(actor_t *world, uint64_t exchange, const http_answer_t *answer);
void actor_http_write(actor_t *world, uint64_t exchange, const void *data, size_t size);
void actor_http_end(actor_t *world, uint64_t exchange);

#endif
