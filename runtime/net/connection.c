/* runtime/net/connection.c - the server's record of one of evhttp's connections: made, timed,
 * refused, ended. */
#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "request.h"

enum {
    LINGER_MS = 2000, /* for the client to read the answer before a refused connection ends */
    LINGER_BYTES = 16384,
    READ_BYTES = 65536,
    WRITE_BYTES = 262144,
    TRICKLE_BYTES = 1024,
    PIPELINE_BYTES = 65536, /* read ahead of the answer; past it reading pauses */
};

uint64_t connection_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static struct evbuffer *input_of(const connection_t *self)
{
    return bufferevent_get_input(self->stream);
}

static struct evbuffer *output_of(const connection_t *self)
{
    return bufferevent_get_output(self->stream);
}

/* ---- time and attention ---- */

/* All deadlines of a list are the same time away: appended in order, they stay in order. */
static void put_under(connection_t *self, struct timed_list *list, uint64_t after_ms)
{
    if (self->list != NULL) TAILQ_REMOVE(self->list, self, timed);
    self->list = list;
    if (list == NULL) return;
    self->deadline_ms = connection_now_ms() + after_ms;
    TAILQ_INSERT_TAIL(list, self, timed);
}

void connection_go(connection_t *self, place_t place)
{
    server_t *server = self->server;
    self->place = place;
    if (place == AT_IDLE)
        put_under(self, &server->idle, server->options.idle_ms);
    else if (place == AT_LINGER)
        put_under(self, &server->lingering, LINGER_MS);
    else if (place == AT_RECEIVE || place == AT_FLUSH || place == AT_REFUSE)
        put_under(self, &server->receiving, server->options.receive_ms);
    else
        put_under(self, NULL, 0);
}

void connection_mark(connection_t *self)
{
    if (self->is_marked) return;
    self->is_marked = true;
    TAILQ_INSERT_TAIL(&self->server->marked, self, marked_link);
    event_active(&self->server->attention, 0, 0);
}

/* ---- the life of a record ---- */

static void release(connection_t *self)
{
    server_t *server = self->server;
    connection_go(self, AT_FREE);
    if (self->is_marked) TAILQ_REMOVE(&server->marked, self, marked_link);
    self->next_free = server->free_head;
    server->free_head = (uint32_t)(self - server->connections);
    if (server->count-- == server->options.connections_max) server_choose_listener(server);
}

static void end_linger(connection_t *self)
{
    event_del(&self->readable);
    close(event_get_fd(&self->readable));
    release(self);
}

static void on_linger_readable(evutil_socket_t descriptor, short what, void *context)
{
    char nowhere[LINGER_BYTES];
    ssize_t got = recv(descriptor, nowhere, sizeof nowhere, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) end_linger(context);
}

/* Closing with unread input would reset the connection, and the answer with it: a second descriptor
 * keeps it open while evhttp closes the first. */
static void linger(connection_t *self, int descriptor)
{
    int own = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        release(self);
        return;
    }
    connection_go(self, AT_LINGER);
    event_assign(&self->readable, self->server->base, own, EV_READ | EV_PERSIST, on_linger_readable,
                 self);
    event_add(&self->readable, NULL);
}

/* Some clients end a body with an empty line; evhttp would take it for a request. */
static void skip_empty_lines(struct evbuffer *input)
{
    char first;
    while (evbuffer_copyout(input, &first, 1) == 1 && (first == '\r' || first == '\n'))
        evbuffer_drain(input, 1);
}

/* With every read evhttp searches all that waits for the end of a line: who adds little to much is
 * read once per sweep. */
static void on_input(struct evbuffer *input, const struct evbuffer_cb_info *change, void *context)
{
    connection_t *self = context;
    self->server->current = self;
    self->received += change->n_added;
    if (change->n_added == 0) return;
    if (self->place == AT_IDLE) skip_empty_lines(input);
    if (self->place == AT_IDLE && evbuffer_get_length(input) > 0) connection_go(self, AT_RECEIVE);
    self->is_paused = self->place == AT_RECEIVE && change->n_added < TRICKLE_BYTES &&
                      evbuffer_get_length(input) > PIPELINE_BYTES;
    if (self->is_paused) bufferevent_disable(self->stream, EV_READ);
}

/* Whatever is written before a request has arrived is written by evhttp: a page, or 100 Continue.
 */
static void on_output(struct evbuffer *output, const struct evbuffer_cb_info *change, void *context)
{
    connection_t *self = context;
    if (change->n_added > 0 && (self->place == AT_IDLE || self->place == AT_RECEIVE))
        connection_mark(self);
}

/* evhttp lets go of the connection, whoever asked it to. */
static void on_gone(struct evhttp_connection *handle, void *context)
{
    connection_t *self = context;
    server_t *server = self->server;
    bool is_cut = self->place == AT_ANSWER && self->exchange != 0, is_last = self->place == AT_LAST;
    uint64_t exchange = self->exchange;
    int descriptor = bufferevent_getfd(self->stream);
    /* A request that was being answered is no longer evhttp's when the client went away. */
    if (self->request != NULL && evhttp_request_get_connection(self->request) == NULL)
        evhttp_request_free(self->request);
    evbuffer_remove_cb(input_of(self), on_input, self);
    evbuffer_remove_cb(output_of(self), on_output, self);
    bufferevent_decref(self->stream);
    self->request = NULL;
    self->stream = NULL;
    self->handle = NULL;
    if (is_last && !server->is_ending)
        linger(self, descriptor);
    else
        release(self);
    if (is_cut && !server->is_ending) server->options.on_closed(server->options.context, exchange);
}

struct bufferevent *connection_make(struct event_base *base, void *context)
{
    server_t *server = context;
    uint32_t slot = server->free_head != UINT32_MAX ? server->free_head : server->fresh++;
    invariant(slot < server->options.connections_max);
    connection_t *self = &server->connections[slot];
    if (server->free_head != UINT32_MAX) server->free_head = self->next_free;
    memset(self, 0, sizeof *self);
    self->server = server;
    self->stream = bufferevent_socket_new(base, -1, 0);
    invariant(self->stream != NULL);
    bufferevent_incref(self->stream);
    bufferevent_set_max_single_read(self->stream, READ_BYTES);
    bufferevent_set_max_single_write(self->stream, WRITE_BYTES);
    evbuffer_add_cb(input_of(self), on_input, self);
    evbuffer_add_cb(output_of(self), on_output, self);
    connection_mark(self);
    if (++server->count == server->options.connections_max) server_choose_listener(server);
    return self->stream;
}

void connection_await_request(connection_t *self)
{
    const server_options_t *options = &self->server->options;
    skip_empty_lines(input_of(self));
    self->received = evbuffer_get_length(input_of(self)); /* it may have come early */
    connection_go(self, self->received > 0 ? AT_RECEIVE : AT_IDLE);
    bufferevent_setwatermark(self->stream, EV_READ, 0,
                             options->body_bytes_max + options->header_bytes_max + READ_BYTES);
}

void connection_await_close(connection_t *self)
{
    bufferevent_data_cb on_written;
    bufferevent_event_cb on_event;
    void *handle;
    bufferevent_getcb(self->stream, NULL, &on_written, &on_event, &handle);
    bufferevent_setcb(self->stream, NULL, on_written, on_event, handle);
    bufferevent_setwatermark(self->stream, EV_READ, 0, PIPELINE_BYTES);
    bufferevent_enable(self->stream, EV_READ);
}

/* evhttp has made the connection around the stream: it is what the stream's callbacks are for. */
static void greet(connection_t *self)
{
    void *handle = NULL;
    int on = 1;
    bufferevent_getcb(self->stream, NULL, NULL, NULL, &handle);
    if (handle == NULL) {
        bufferevent_decref(self->stream); /* it could not */
        release(self);
        return;
    }
    self->handle = handle;
    evhttp_connection_set_closecb(self->handle, on_gone, self);
    setsockopt(bufferevent_getfd(self->stream), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection_await_request(self);
}

void connection_send_now(connection_t *self)
{
    struct evbuffer *output = output_of(self);
    int sent = 1;
    evbuffer_unfreeze(output, 1);
    while (evbuffer_get_length(output) > 0 && sent > 0)
        sent = evbuffer_write(output, bufferevent_getfd(self->stream));
    evbuffer_freeze(output, 1);
}

/* ---- refusals ---- */

static void on_refusal_sent(struct bufferevent *stream, void *context)
{
    connection_t *self = context;
    connection_go(self, AT_LAST);
    evhttp_connection_free(self->handle);
}

static void on_refusal_lost(struct bufferevent *stream, short what, void *context)
{
    evhttp_connection_free(((connection_t *)context)->handle);
}

/* What is refused before there is a request: HTTP has more names for it than we have errors. */
static err_t error_of(int status)
{
    switch (status) {
    case 408:
        return ERR_DEADLINE;
    case 413:
    case 414:
    case 431:
        return ERR_TOO_LARGE;
    default:
        return ERR_INVALID;
    }
}

/* evhttp is in no state to be asked for an answer, and hears no more of this connection. */
void connection_refuse(connection_t *self, int status, const char *text)
{
    struct evbuffer *output = output_of(self);
    char body[512], date[40] = "";
    int size = snprintf(body, sizeof body,
                        "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\","
                        "\"param\":null,\"code\":\"%s\"}}",
                        text, error_code(error_of(status)).text);
    connection_go(self, AT_REFUSE);
    evutil_date_rfc1123(date, sizeof date, NULL);
    evbuffer_unfreeze(output, 1);
    evbuffer_drain(output, evbuffer_get_length(output));
    evbuffer_freeze(output, 1);
    evbuffer_add_printf(output,
                        "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: application/json\r\n"
                        "Content-Length: %d\r\nConnection: close\r\n\r\n%s",
                        status, request_status_text(status), date, size, body);
    bufferevent_setcb(self->stream, NULL, on_refusal_sent, on_refusal_lost, self);
    bufferevent_disable(self->stream, EV_READ);
    bufferevent_enable(self->stream, EV_WRITE);
}

/* The status of evhttp's own page in the output; 0 when there is none, or only 100 Continue. */
static int page_status(struct evbuffer *output)
{
    char line[13] = "";
    struct evbuffer_ptr at = evbuffer_search(output, "HTTP/1.", 7, NULL);
    while (at.pos >= 0) {
        evbuffer_copyout_from(output, &at, line, sizeof line - 1);
        evbuffer_ptr_set(output, &at, 7, EVBUFFER_PTR_ADD);
        at = evbuffer_search(output, "HTTP/1.", 7, &at);
    }
    int status = line[0] == 0 ? 0 : atoi(line + 9);
    return status == 100 ? 0 : status;
}

static void replace_page(connection_t *self)
{
    int status = page_status(output_of(self));
    if (status == 400 && self->received > self->server->options.header_bytes_max)
        connection_refuse(self, 431, "The header is malformed, or larger than this server allows.");
    else if (status == 413)
        connection_refuse(self, 413,
                          "The body is larger than this server allows, or its chunks are broken.");
    else if (status == 417)
        connection_refuse(self, 417, "The only Expect known here is 100-continue.");
    else if (status != 0)
        connection_refuse(self, status, "What was sent is not a request of HTTP/1.1.");
}

void connection_expire(connection_t *self)
{
    if (self->place == AT_RECEIVE)
        connection_refuse(self, 408, "The request did not arrive whole in time.");
    else if (self->place == AT_LINGER)
        end_linger(self);
    else
        evhttp_connection_free(self->handle);
}

void connections_expire(struct timed_list *list)
{
    uint64_t now = connection_now_ms();
    connection_t *first;
    while ((first = TAILQ_FIRST(list)) != NULL && first->deadline_ms <= now)
        connection_expire(first);
}

void connections_resume(struct timed_list *list)
{
    connection_t *self;
    TAILQ_FOREACH(self, list, timed)
    {
        if (self->place == AT_RECEIVE && self->is_paused) bufferevent_enable(self->stream, EV_READ);
        self->is_paused = false;
    }
}

void connection_attend(evutil_socket_t descriptor, short what, void *context)
{
    server_t *server = context;
    connection_t *self;
    while ((self = TAILQ_FIRST(&server->marked)) != NULL) {
        TAILQ_REMOVE(&server->marked, self, marked_link);
        self->is_marked = false;
        if (self->handle == NULL)
            greet(self);
        else if (self->is_doomed)
            evhttp_connection_free(self->handle);
        else if (self->place == AT_IDLE || self->place == AT_RECEIVE)
            replace_page(self);
    }
}
