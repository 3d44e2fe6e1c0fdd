/* runtime/net/server.h - an HTTP/1.1 server on a libevent loop: knows no actor, no model, no
 * OpenAI.
 *
 * libevent gives the loop, the listener and the buffers; the protocol is spoken here.  Its own
 * evhttp (2.1) is not used: it answers errors with pages of its own, limits neither
 * connections nor the time a whole request may take, reads nothing while a request is being
 * answered (so a client that left is noticed late).
 *
 * One thread.  Answers may be given inside on_request or at any later time.  What is written is
 * sent by server_flush.
 */
#ifndef RUNTIME_NET_SERVER_H
#define RUNTIME_NET_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "http.h"

struct event_base;

/* A whole request.  Everything is borrowed for the call. */
typedef struct {
    uint64_t exchange;
    const char *method, *path, *authorization, *traceparent;
    const void *body;
    size_t body_size;
} server_request_t;

typedef struct {
    const char *listen;   /* "127.0.0.1:8000", "[::1]:8000"; port 0: any */
    uint32_t port_offset; /* added to a port that is not 0 */
    size_t body_bytes_max, header_bytes_max, stream_buffer_bytes;
    uint32_t connections_max, idle_ms, receive_ms;
    void (*on_request)(void *context, const server_request_t *request);
    void (*on_closed)(void *context,
                      uint64_t exchange); /* the client went away before its answer was complete */
    void *context;
} server_options_t;

typedef struct server server_t;

/* NULL: *why says which address could not be bound.  The options' texts are copied. */
server_t *server_new(struct event_base *base, const server_options_t *options, char *why,
                     size_t why_cap);

/* Closes everything; tells nobody. */
void server_destroy(server_t **self);

/* The port that is listened on. */
uint16_t server_port(const server_t *self);
uint32_t server_connections(const server_t *self);

/* An exchange that has ended is ignored by all of these. */
void server_answer(server_t *self, uint64_t exchange, const http_answer_t *answer, const void *body,
                   size_t size);
void server_begin(server_t *self, uint64_t exchange, const http_answer_t *answer);
void server_write(server_t *self, uint64_t exchange, const void *data, size_t size);
void server_end(server_t *self, uint64_t exchange);

/* Send what was written since the last call.  Never blocks. */
void server_flush(server_t *self);

/* Take over a connected descriptor, as if it had been accepted; for tests and fuzzing. */
void server_adopt(server_t *self, int descriptor);

#endif
