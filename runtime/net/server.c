/* runtime/net/server.c - the HTTP server: evhttp's requests become exchanges, answers go back. */
#include "server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connection.h"
#include "listen.h"
#include "request.h"
#include <event2/http_struct.h> /* the version and the flags have no accessor */

enum {
    BACKLOG = 4096,
    SWEEP_MS = 100,
    METHODS_ALL = 0xffff, /* the actor says which ones it knows */
};

/* ---- answers ---- */

/* The connection of an exchange that still runs; NULL otherwise. */
static connection_t *find(server_t *self, uint64_t exchange)
{
    uint64_t slot = exchange & ((1u << SLOT_BITS) - 1);
    if (slot >= self->fresh || exchange == 0) return NULL;
    connection_t *connection = &self->connections[slot];
    bool is_running = connection->place == AT_ANSWER && connection->exchange == exchange;
    return is_running && !connection->is_doomed ? connection : NULL;
}

static void add_headers(connection_t *self, const http_answer_t *answer)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(self->request);
    char number[16];
    snprintf(number, sizeof number, "%u", answer->retry_after_seconds);
    if (answer->content_type != NULL && answer->status != 204)
        evhttp_add_header(headers, "Content-Type", answer->content_type);
    if (answer->request_id != NULL) evhttp_add_header(headers, "X-Request-Id", answer->request_id);
    if (answer->allow != NULL) evhttp_add_header(headers, "Allow", answer->allow);
    if (answer->retry_after_seconds > 0) evhttp_add_header(headers, "Retry-After", number);
    if (answer->status == 401) evhttp_add_header(headers, "WWW-Authenticate", "Bearer");
    evhttp_add_header(headers, "Connection", self->is_last ? "close" : "keep-alive");
}

/* What is given to evhttp: it takes the bytes out, or leaves what has no place in the answer. */
static struct evbuffer *wrap(server_t *self, const void *data, size_t size)
{
    evbuffer_drain(self->scratch, evbuffer_get_length(self->scratch));
    evbuffer_add(self->scratch, data, size);
    return self->scratch;
}

void server_answer(server_t *self, uint64_t exchange, const http_answer_t *answer, const void *body,
                   size_t size)
{
    connection_t *connection = find(self, exchange);
    if (connection == NULL || connection->is_begun) return;
    struct evhttp_request *request = connection->request;
    char length[24];
    snprintf(length, sizeof length, "%zu", size);
    if (answer->status != 204)
        evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Length", length);
    add_headers(connection, answer);
    bool has_body = !connection->is_head && answer->status != 204;
    connection_go(connection, AT_FLUSH);
    evhttp_send_reply(request, answer->status, request_status_text(answer->status),
                      wrap(self, body, has_body ? size : 0));
}

void server_begin(server_t *self, uint64_t exchange, const http_answer_t *answer)
{
    connection_t *connection = find(self, exchange);
    if (connection == NULL || connection->is_begun) return;
    connection->is_begun = true;
    add_headers(connection, answer);
    evhttp_add_header(evhttp_request_get_output_headers(connection->request), "Cache-Control",
                      "no-cache");
    evhttp_send_reply_start(connection->request, answer->status,
                            request_status_text(answer->status));
}

void server_write(server_t *self, uint64_t exchange, const void *data, size_t size)
{
    connection_t *connection = find(self, exchange);
    if (connection == NULL || !connection->is_begun || connection->is_head || size == 0) return;
    size_t limit = self->options.stream_buffer_bytes;
    struct evbuffer *output = bufferevent_get_output(connection->stream);
    if (evbuffer_get_length(output) <= limit) connection->crowded_ms = 0;
    evhttp_send_reply_chunk(connection->request, wrap(self, data, size));
    if (evbuffer_get_length(output) <= limit) return;
    /* Perhaps the socket takes it.  One piece may be larger than the limit, and takes its time on
     * the way: whoever never catches up is cut. */
    connection_send_now(connection);
    if (evbuffer_get_length(output) <= limit) return;
    uint64_t now = connection_now_ms();
    if (connection->crowded_ms == 0) connection->crowded_ms = now;
    connection->is_doomed = now - connection->crowded_ms >= self->options.stall_ms;
    if (connection->is_doomed) connection_mark(connection);
}

void server_end(server_t *self, uint64_t exchange)
{
    connection_t *connection = find(self, exchange);
    if (connection == NULL || !connection->is_begun) return;
    connection_go(connection, AT_FLUSH);
    evhttp_send_reply_end(connection->request);
}

/* evhttp has sent the whole answer; it goes on reading, or closes. */
static void on_sent(struct evhttp_request *request, void *context)
{
    connection_t *self = context;
    self->request = NULL;
    if (self->is_last)
        connection_go(self, AT_LAST);
    else
        connection_await_request(self);
}

/* ---- requests ---- */

static void deliver(connection_t *self, const request_head_t *head)
{
    server_t *server = self->server;
    struct evbuffer *body = evhttp_request_get_input_buffer(self->request);
    size_t size = evbuffer_get_length(body);
    self->exchange = ++server->exchanges << SLOT_BITS | (uint64_t)(self - server->connections);
    server_request_t request = { .exchange = self->exchange,
                                 .method = head->method,
                                 .path = head->path,
                                 .authorization = head->authorization,
                                 .traceparent = head->traceparent,
                                 .content_type = head->content_type,
                                 .has_origin = head->has_origin,
                                 .body = size > 0 ? evbuffer_pullup(body, -1)
                                                  : (const unsigned char *)"",
                                 .body_size = size };
    server->options.on_request(server->options.context, &request);
    if (self->request != NULL) evbuffer_drain(body, size);
}

static void on_whole_request(struct evhttp_request *request, void *context)
{
    connection_t *self = ((server_t *)context)->current;
    invariant(self->handle == evhttp_request_get_connection(request));
    request_head_t head;
    const char *why = "";
    int status = request_head_read(&head, request, &why);
    self->request = request;
    self->exchange = 0;
    if (status != 0) {
        connection_refuse(self, status, why);
        return;
    }
    connection_go(self, AT_ANSWER);
    self->is_begun = false;
    self->crowded_ms = 0;
    self->is_head = strcmp(head.method, "HEAD") == 0;
    /* Whether the connection is kept is said by us alone, in the answer's Connection; and the
     * headers of a stream that waits need not wait with it. */
    self->is_last = head.is_last || request->minor == 0;
    evhttp_clear_headers(evhttp_request_get_input_headers(request));
    request->flags &= ~EVHTTP_PROXY_REQUEST;
    evhttp_request_set_on_complete_cb(request, on_sent, self);
    connection_await_close(self);
    deliver(self, &head);
}

/* ---- the server ---- */

void server_choose_listener(server_t *self)
{
    bool is_full = self->count == self->options.connections_max;
    if (self->is_ending) return;
    evconnlistener_disable(is_full ? self->listener : self->refuser);
    evconnlistener_enable(is_full ? self->refuser : self->listener);
}

static void on_sweep(evutil_socket_t descriptor, short what, void *context)
{
    server_t *self = context;
    connections_expire(&self->idle);
    connections_expire(&self->receiving);
    connections_expire(&self->lingering);
    connections_resume(&self->receiving);
    server_choose_listener(self);
}

static void on_refused_arrival(struct evconnlistener *listener, evutil_socket_t descriptor,
                               struct sockaddr *address, int size, void *context)
{
    close(descriptor);
}

/* Out of descriptors: the listener would report the same connection for ever.  The sweep enables it
 * again. */
static void on_accept_error(struct evconnlistener *listener, void *context)
{
    evconnlistener_disable(listener);
}

static struct evhttp *make_http(server_t *self)
{
    struct evhttp *http = evhttp_new(self->base);
    invariant(http != NULL);
    evhttp_set_bevcb(http, connection_make, self);
    evhttp_set_gencb(http, on_whole_request, self);
    evhttp_set_allowed_methods(http, METHODS_ALL);
    evhttp_set_default_content_type(http, NULL);
    evhttp_set_max_headers_size(http, (ev_ssize_t)self->options.header_bytes_max);
    evhttp_set_max_body_size(http, (ev_ssize_t)self->options.body_bytes_max);
    invariant(evhttp_bind_listener(http, self->listener) != NULL);
    return http;
}

static void start(server_t *self)
{
    struct timeval every = { 0, SWEEP_MS * 1000 };
    TAILQ_INIT(&self->idle);
    TAILQ_INIT(&self->receiving);
    TAILQ_INIT(&self->lingering);
    TAILQ_INIT(&self->marked);
    event_assign(&self->attention, self->base, -1, 0, connection_attend, self);
    event_assign(&self->sweep, self->base, -1, EV_PERSIST, on_sweep, self);
    event_add(&self->sweep, &every);
    self->port = listen_port(self->listener);
    self->http = make_http(self);
    self->refuser = evconnlistener_new(self->base, on_refused_arrival, self, LEV_OPT_DISABLED, 0,
                                       evconnlistener_get_fd(self->listener));
    invariant(self->refuser != NULL);
    evconnlistener_set_error_cb(self->listener, on_accept_error);
    evconnlistener_set_error_cb(self->refuser, on_accept_error);
}

server_t *server_new(struct event_base *base, const server_options_t *options, char *why,
                     size_t why_cap)
{
    invariant(options->connections_max > 0 && options->connections_max <= 1u << SLOT_BITS);
    listen_options_t place = { options->listen, options->port_offset, BACKLOG };
    struct evconnlistener *listener = listen_open(base, &place, why, why_cap);
    if (listener == NULL) return NULL;
    server_t *self = calloc(1, sizeof *self);
    invariant(self != NULL);
    self->connections = calloc(options->connections_max, sizeof *self->connections);
    self->scratch = evbuffer_new();
    invariant(self->connections != NULL && self->scratch != NULL);
    self->base = base;
    self->options = *options;
    self->options.listen = NULL;
    self->listener = listener;
    self->free_head = UINT32_MAX;
    start(self);
    return self;
}

void server_destroy(server_t **self)
{
    server_t *server = *self;
    if (server == NULL) return;
    server->is_ending = true;
    connection_attend(-1, 0, server);
    for (uint32_t i = 0; i < server->fresh; i++) {
        connection_t *connection = &server->connections[i];
        if (connection->place == AT_LINGER) connection_expire(connection);
        if (connection->place != AT_FREE) connection_send_now(connection);
    }
    evconnlistener_free(server->refuser);
    evhttp_free(server->http); /* and its connections, and the listener */
    invariant(server->count == 0);
    event_del(&server->sweep);
    event_del(&server->attention);
    evbuffer_free(server->scratch);
    free(server->connections);
    free(server);
    *self = NULL;
}

uint16_t server_port(const server_t *self)
{
    return self->port;
}

uint32_t server_connections(const server_t *self)
{
    return self->count;
}
