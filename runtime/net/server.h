/* runtime/net/server.h - an HTTP/1.1 server on a libevent loop: knows no actor, no model, no
 * OpenAI.
 *
 * libevent's evhttp (2.1) speaks the protocol.  What it leaves open is added here: limits of
 * connections and of the time a whole request may take, refusals in OpenAI's words instead of its
 * pages, requests whose end is ambiguous, clients that leave while they wait or read too slowly.
 *
 * What it does its own way, and nobody else sees before: a folded header is joined, not refused;
 * extensions of chunks are refused; a body in chunks ends its connection; a broken chunk is refused
 * with 413, or 408 when evhttp waits for more; bytes without a line's end are refused by time
 * (408); whatever else is ambiguous is refused when the request has arrived, not with its head.
 *
 * One thread.  Answers may be given inside on_request or at any later time.  What is written
 * between two rounds of the loop leaves together in the next.
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
    const char *method, *path, *authorization, *traceparent, *content_type;
    bool has_origin; /* an Origin header came with it */
    const void *body;
    size_t body_size;
} server_request_t;

typedef struct {
    const char *listen;   /* "127.0.0.1:8000", "[::1]:8000"; port 0: any */
    uint32_t port_offset; /* added to a port that is not 0 */
    size_t body_bytes_max, header_bytes_max, stream_buffer_bytes;
    uint32_t connections_max, idle_ms, receive_ms;
    uint32_t stall_ms; /* for how long more than stream_buffer_bytes of a stream may wait */
    void (*on_request)(void *context, const server_request_t *request);
    void (*on_closed)(void *context,
                      uint64_t exchange); /* the client went away before its answer was complete */
    void *context;
} server_options_t;

typedef struct server server_t;

/* NULL: *why says which address could not be bound.  The options' texts are copied. */
server_t *server_new(struct event_base *base, const server_options_t *options, char *why,
                     size_t why_cap);

/* Sends what the sockets take at once and closes everything; tells nobody. */
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

#endif
