/* runtime/net/server.c - the HTTP server's connections: reading requests, sending answers, running
 * out of time. */
#include "server.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "request.h"
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/event_struct.h>

enum {
    BACKLOG = 4096,
    SLOT_BITS = 20,
    SWEEP_MS = 100,
    LINGER_MS = 2000, /* for the client to read the answer before a refused connection ends */
    READ_BYTES = 65536,
    READS_MAX = 16,         /* of one connection before the others get their turn */
    PIPELINE_BYTES = 65536, /* read ahead of the answer; past it reading pauses */
    LINE_BYTES_MAX = 256,   /* of a chunk's size or a trailer */
    TRAILERS_MAX = 32,
    ACCEPTS_MAX = 256,
    VECTORS = 16,
};

/* What a connection is at. */
typedef enum {
    AT_FREE,
    AT_IDLE, /* between requests */
    AT_HEAD,
    AT_BODY,
    AT_CHUNK_SIZE,
    AT_CHUNK_DATA,
    AT_CHUNK_END,
    AT_TRAILER,
    AT_ANSWER, /* its exchange runs */
    AT_FLUSH,  /* the answer is complete, not all of it is sent */
    AT_LINGER, /* all is sent, nothing more is read as a request */
} place_t;

typedef struct connection {
    TAILQ_ENTRY(connection) timed;
    TAILQ_ENTRY(connection) dirty_link;
    server_t *server;
    struct timed_list *list; /* the deadline it is under; NULL: none */
    struct event readable, writable;
    struct evbuffer *in, *out, *body; /* body: of chunked requests only */
    place_t place;
    int descriptor;
    uint64_t deadline_ms, exchange, chunk_left;
    size_t scanned;
    uint32_t trailers, next_free;
    bool is_dirty, is_doomed, is_paused, is_head, is_begun, is_chunked_out, keeps_alive;
    request_head_t head;
} connection_t;

TAILQ_HEAD(timed_list, connection);
TAILQ_HEAD(dirty_list, connection);

struct server {
    struct event_base *base;
    server_options_t options;
    int listener;
    uint16_t port;
    struct event acceptable, sweep;
    connection_t *connections;
    uint32_t count, fresh, free_head;
    uint64_t exchanges;
    struct timed_list idle, receiving, lingering;
    struct dirty_list dirty;
    uint64_t paused_until_ms; /* no descriptors are left: do not accept before */
    time_t date_s;
    char date[40];
    char read_buffer[READ_BYTES];
};

static void process(connection_t *self);

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- time
 * ------------------------------------------------------------------------------------------ */

/* All deadlines of a list are the same time away: appended in order, they stay in order. */
static void put_under(connection_t *self, struct timed_list *list, uint64_t after_ms)
{
    if (self->list != NULL) TAILQ_REMOVE(self->list, self, timed);
    self->list = list;
    if (list == NULL) return;
    self->deadline_ms = now_ms() + after_ms;
    TAILQ_INSERT_TAIL(list, self, timed);
}

static void go_idle(connection_t *self)
{
    self->place = AT_IDLE;
    put_under(self, &self->server->idle, self->server->options.idle_ms);
}

static void go_receiving(connection_t *self)
{
    self->place = AT_HEAD;
    self->scanned = 0;
    put_under(self, &self->server->receiving, self->server->options.receive_ms);
}

static void mark_dirty(connection_t *self)
{
    if (self->is_dirty) return;
    self->is_dirty = true;
    TAILQ_INSERT_TAIL(&self->server->dirty, self, dirty_link);
}

/* ---- the end of a connection
 * ----------------------------------------------------------------------- */

static void close_connection(connection_t *self)
{
    server_t *server = self->server;
    bool is_cut = self->place == AT_ANSWER;
    uint64_t exchange = self->exchange;
    put_under(self, NULL, 0);
    if (self->is_dirty) TAILQ_REMOVE(&server->dirty, self, dirty_link);
    event_del(&self->readable);
    event_del(&self->writable);
    close(self->descriptor);
    evbuffer_free(self->in);
    evbuffer_free(self->out);
    if (self->body != NULL) evbuffer_free(self->body);
    self->place = AT_FREE;
    self->next_free = server->free_head;
    server->free_head = (uint32_t)(self - server->connections);
    server->count--;
    if (is_cut) server->options.on_closed(server->options.context, exchange);
}

/* Everything is sent.  Closing with unread input would reset the connection, and the answer with
 * it. */
static void go_linger(connection_t *self)
{
    self->place = AT_LINGER;
    shutdown(self->descriptor, SHUT_WR);
    evbuffer_drain(self->in, evbuffer_get_length(self->in));
    put_under(self, &self->server->lingering, LINGER_MS);
    if (self->is_paused) event_add(&self->readable, NULL);
    self->is_paused = false;
}

/* ---- sending
 * --------------------------------------------------------------------------------------- */

/* False when the connection is broken. */
static bool send_some(connection_t *self)
{
    while (evbuffer_get_length(self->out) > 0) {
        struct evbuffer_iovec pieces[VECTORS];
        int count = evbuffer_peek(self->out, -1, NULL, pieces, VECTORS);
        if (count > VECTORS) count = VECTORS;
        struct msghdr m = { .msg_iov = (struct iovec *)pieces, .msg_iovlen = (size_t)count };
        ssize_t sent = sendmsg(self->descriptor, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        evbuffer_drain(self->out, (size_t)sent);
    }
    return true;
}

static void after_answer(connection_t *self)
{
    if (!self->keeps_alive) {
        go_linger(self);
        return;
    }
    go_idle(self);
    if (self->is_paused) event_add(&self->readable, NULL);
    self->is_paused = false;
    /* A request that came early is taken up on the next round, so that one client cannot hold the
     * loop. */
    if (evbuffer_get_length(self->in) > 0) event_active(&self->readable, EV_READ, 0);
}

static void flush_connection(connection_t *self)
{
    if (self->is_doomed || !send_some(self)) {
        close_connection(self);
        return;
    }
    if (evbuffer_get_length(self->out) > 0)
        event_add(&self->writable, NULL);
    else if (self->place == AT_FLUSH)
        after_answer(self);
}

void server_flush(server_t *self)
{
    connection_t *connection;
    while ((connection = TAILQ_FIRST(&self->dirty)) != NULL) {
        TAILQ_REMOVE(&self->dirty, connection, dirty_link);
        connection->is_dirty = false;
        flush_connection(connection);
    }
}

static void on_writable(evutil_socket_t descriptor, short what, void *context)
{
    connection_t *self = context;
    server_t *server = self->server;
    flush_connection(self);
    server_flush(server);
}

/* ---- answers
 * --------------------------------------------------------------------------------------- */

static const char *reason_of(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = { { 200, "OK" },
                    { 204, "No Content" },
                    { 400, "Bad Request" },
                    { 401, "Unauthorized" },
                    { 404, "Not Found" },
                    { 405, "Method Not Allowed" },
                    { 408, "Request Timeout" },
                    { 409, "Conflict" },
                    { 413, "Content Too Large" },
                    { 414, "URI Too Long" },
                    { 417, "Expectation Failed" },
                    { 422, "Unprocessable Content" },
                    { 429, "Too Many Requests" },
                    { 431, "Request Header Fields Too Large" },
                    { 500, "Internal Server Error" },
                    { 501, "Not Implemented" },
                    { 503, "Service Unavailable" },
                    { 504, "Gateway Timeout" },
                    { 505, "HTTP Version Not Supported" } };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        if (reasons[i].status == status) return reasons[i].reason;
    }
    return "Status";
}

static const char *date_of(server_t *self)
{
    time_t now_s = time(NULL);
    struct tm parts;
    if (now_s != self->date_s && gmtime_r(&now_s, &parts) != NULL) {
        strftime(self->date, sizeof self->date, "%a, %d %b %Y %H:%M:%S GMT", &parts);
        self->date_s = now_s;
    }
    return self->date;
}

static void write_head(connection_t *self, const http_answer_t *answer, const char *framing)
{
    struct evbuffer *out = self->out;
    evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\n%s", answer->status,
                        reason_of(answer->status), date_of(self->server), framing);
    if (answer->content_type != NULL && answer->status != 204)
        evbuffer_add_printf(out, "Content-Type: %s\r\n", answer->content_type);
    if (answer->request_id != NULL)
        evbuffer_add_printf(out, "X-Request-Id: %s\r\n", answer->request_id);
    if (answer->allow != NULL) evbuffer_add_printf(out, "Allow: %s\r\n", answer->allow);
    if (answer->retry_after_seconds > 0)
        evbuffer_add_printf(out, "Retry-After: %u\r\n", answer->retry_after_seconds);
    if (answer->status == 401) evbuffer_add_printf(out, "WWW-Authenticate: Bearer\r\n");
    evbuffer_add_printf(out, self->keeps_alive ? "Connection: keep-alive\r\n\r\n"
                                               : "Connection: close\r\n\r\n");
}

/* The connection of an exchange that still runs; NULL otherwise. */
static connection_t *find(server_t *self, uint64_t exchange)
{
    uint64_t slot = exchange & ((1u << SLOT_BITS) - 1);
    if (slot >= self->fresh) return NULL;
    connection_t *connection = &self->connections[slot];
    return connection->place == AT_ANSWER && connection->exchange == exchange ? connection : NULL;
}

static void complete(connection_t *self)
{
    self->place = AT_FLUSH;
    put_under(self, &self->server->receiving, self->server->options.receive_ms);
    mark_dirty(self);
}

static void write_whole(connection_t *self, const http_answer_t *answer, const void *body,
                        size_t size)
{
    char framing[48] = "";
    if (answer->status != 204) snprintf(framing, sizeof framing, "Content-Length: %zu\r\n", size);
    write_head(self, answer, framing);
    if (!self->is_head && answer->status != 204) evbuffer_add(self->out, body, size);
    complete(self);
}

void server_answer(server_t *self, uint64_t exchange, const http_answer_t *answer, const void *body,
                   size_t size)
{
    connection_t *connection = find(self, exchange);
    if (connection != NULL && !connection->is_begun) write_whole(connection, answer, body, size);
}

void server_begin(server_t *self, uint64_t exchange, const http_answer_t *answer)
{
    connection_t *connection = find(self, exchange);
    if (connection == NULL || connection->is_begun) return;
    connection->is_begun = true;
    connection->is_chunked_out = connection->head.minor == 1;
    if (!connection->is_chunked_out)
        connection->keeps_alive = false; /* HTTP/1.0 knows no other end */
    write_head(connection, answer,
               connection->is_chunked_out
                   ? "Transfer-Encoding: chunked\r\nCache-Control: no-cache\r\n"
                   : "");
    mark_dirty(connection);
}

void server_write(server_t *self, uint64_t exchange, const void *data, size_t size)
{
    connection_t *connection = find(self, exchange);
    if (connection == NULL || !connection->is_begun || connection->is_doomed ||
        connection->is_head || size == 0)
        return;
    mark_dirty(connection);
    struct evbuffer *out = connection->out;
    if (connection->is_chunked_out) {
        char line[24];
        int length = snprintf(line, sizeof line, "%zx\r\n", size);
        evbuffer_add(out, line, (size_t)length);
    }
    evbuffer_add(out, data, size);
    if (connection->is_chunked_out) evbuffer_add(out, "\r\n", 2);
    if (evbuffer_get_length(out) <= self->options.stream_buffer_bytes) return;
    /* Perhaps the socket takes it.  Whoever still lets that much wait is cut, at the end of the
     * turn. */
    bool is_alive = send_some(connection);
    connection->is_doomed =
        !is_alive || evbuffer_get_length(out) > self->options.stream_buffer_bytes;
}

void server_end(server_t *self, uint64_t exchange)
{
    connection_t *connection = find(self, exchange);
    if (connection == NULL || !connection->is_begun || connection->is_doomed) return;
    if (connection->is_chunked_out && !connection->is_head)
        evbuffer_add(connection->out, "0\r\n\r\n", 5);
    complete(connection);
}

/* An answer of the server's own, to what is no request; the connection ends with it. */
static void refuse(connection_t *self, int status, const char *text)
{
    char body[512];
    int size = snprintf(body, sizeof body,
                        "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\","
                        "\"param\":null,\"code\":null}}",
                        text);
    http_answer_t answer = { .status = status, .content_type = "application/json" };
    self->keeps_alive = false;
    self->is_head = false;
    write_whole(self, &answer, body, (size_t)size);
}

/* ---- requests
 * -------------------------------------------------------------------------------------- */

static void deliver(connection_t *self, size_t body_in_place)
{
    server_t *server = self->server;
    struct evbuffer *from = self->body != NULL ? self->body : self->in;
    size_t size = self->body != NULL ? evbuffer_get_length(self->body) : body_in_place;
    self->place = AT_ANSWER;
    put_under(self, NULL, 0);
    self->exchange = ++server->exchanges << SLOT_BITS | (uint64_t)(self - server->connections);
    self->is_begun = false;
    self->is_head = strcmp(self->head.method, "HEAD") == 0;
    self->keeps_alive = self->head.is_keep_alive;
    server_request_t request = { .exchange = self->exchange,
                                 .method = self->head.method,
                                 .path = self->head.path,
                                 .authorization = self->head.authorization,
                                 .traceparent = self->head.traceparent,
                                 .body = size > 0 ? evbuffer_pullup(from, (ev_ssize_t)size)
                                                  : (const unsigned char *)"",
                                 .body_size = size };
    server->options.on_request(server->options.context, &request);
    if (self->body != NULL) evbuffer_free(self->body);
    if (self->body == NULL) evbuffer_drain(self->in, size);
    self->body = NULL;
}

static void begin_body(connection_t *self)
{
    const request_head_t *head = &self->head;
    if (head->has_length && head->length > self->server->options.body_bytes_max) {
        refuse(self, 413, "The body is larger than this server allows.");
        return;
    }
    if (!head->is_chunked && head->length == 0) {
        deliver(self, 0);
        return;
    }
    self->place = head->is_chunked ? AT_CHUNK_SIZE : AT_BODY;
    self->trailers = 0;
    if (head->is_chunked) self->body = evbuffer_new();
    if (head->expects_continue && evbuffer_get_length(self->in) == 0) {
        evbuffer_add_printf(self->out, "HTTP/1.1 100 Continue\r\n\r\n");
        mark_dirty(self);
    }
}

static bool is_letter(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool take_head(connection_t *self)
{
    size_t have = evbuffer_get_length(self->in), limit = self->server->options.header_bytes_max;
    struct evbuffer_ptr from, end;
    char first;
    if (have > 0 && evbuffer_copyout(self->in, &first, 1) == 1 && !is_letter(first)) {
        refuse(self, 400, "What was sent is not HTTP.");
        return false;
    }
    evbuffer_ptr_set(self->in, &from, self->scanned > 3 ? self->scanned - 3 : 0, EVBUFFER_PTR_SET);
    end = evbuffer_search(self->in, "\r\n\r\n", 4, &from);
    self->scanned = have;
    size_t size = end.pos < 0 ? have : (size_t)end.pos + 4;
    if (size > limit) refuse(self, 431, "The header is larger than this server allows.");
    if (size > limit || end.pos < 0) return false;
    const char *why = "";
    const char *text = (const char *)evbuffer_pullup(self->in, (ev_ssize_t)size);
    int status = request_head_parse(&self->head, text, size, &why);
    evbuffer_drain(self->in, size);
    if (status != 0)
        refuse(self, status, why);
    else
        begin_body(self);
    return true;
}

/* A line of chunked coding into line; false when it has not arrived, or was refused for its length.
 */
static bool take_line(connection_t *self, char *line, size_t *size)
{
    size_t end_size = 0;
    struct evbuffer_ptr end = evbuffer_search_eol(self->in, NULL, &end_size, EVBUFFER_EOL_CRLF);
    size_t have = end.pos < 0 ? evbuffer_get_length(self->in) : (size_t)end.pos;
    if (have > LINE_BYTES_MAX) refuse(self, 400, "A line of the chunked body is too long.");
    if (have > LINE_BYTES_MAX || end.pos < 0) return false;
    evbuffer_remove(self->in, line, have);
    evbuffer_drain(self->in, end_size);
    *size = have;
    return true;
}

static bool take_chunk_size(connection_t *self)
{
    char line[LINE_BYTES_MAX];
    size_t size = 0;
    if (!take_line(self, line, &size)) return false;
    if (!request_chunk_size(line, size, &self->chunk_left))
        refuse(self, 400, "The size of a chunk is not a number.");
    else if (self->chunk_left >
             self->server->options.body_bytes_max - evbuffer_get_length(self->body))
        refuse(self, 413, "The body is larger than this server allows.");
    else
        self->place = self->chunk_left == 0 ? AT_TRAILER : AT_CHUNK_DATA;
    return true;
}

static bool take_chunk_data(connection_t *self)
{
    size_t have = evbuffer_get_length(self->in);
    size_t part = have < self->chunk_left ? have : (size_t)self->chunk_left;
    if (part == 0) return false;
    evbuffer_remove_buffer(self->in, self->body, part);
    self->chunk_left -= part;
    if (self->chunk_left == 0) self->place = AT_CHUNK_END;
    return true;
}

static bool take_chunk_end(connection_t *self)
{
    char line[LINE_BYTES_MAX];
    size_t size = 0;
    if (!take_line(self, line, &size)) return false;
    self->place = AT_CHUNK_SIZE;
    if (size > 0) refuse(self, 400, "A chunk is longer than its size says.");
    return true;
}

static bool take_trailer(connection_t *self)
{
    char line[LINE_BYTES_MAX];
    size_t size = 0;
    if (!take_line(self, line, &size)) return false;
    if (size == 0)
        deliver(self, 0);
    else if (++self->trailers > TRAILERS_MAX)
        refuse(self, 431, "There are too many trailers.");
    return true;
}

/* One step; false when it needs more input, or takes none now. */
static bool step(connection_t *self)
{
    switch (self->place) {
    case AT_IDLE: {
        char first;
        while (evbuffer_copyout(self->in, &first, 1) == 1 && (first == '\r' || first == '\n'))
            evbuffer_drain(self->in, 1);
        if (evbuffer_get_length(self->in) == 0) return false;
        go_receiving(self);
        return true;
    }
    case AT_HEAD:
        return take_head(self);
    case AT_BODY:
        if (evbuffer_get_length(self->in) < self->head.length) return false;
        deliver(self, (size_t)self->head.length);
        return true;
    case AT_CHUNK_SIZE:
        return take_chunk_size(self);
    case AT_CHUNK_DATA:
        return take_chunk_data(self);
    case AT_CHUNK_END:
        return take_chunk_end(self);
    case AT_TRAILER:
        return take_trailer(self);
    case AT_LINGER:
        evbuffer_drain(self->in, evbuffer_get_length(self->in));
        return false;
    default:
        return false;
    }
}

static void process(connection_t *self)
{
    while (step(self)) continue;
    bool is_waiting = self->place == AT_ANSWER || self->place == AT_FLUSH;
    if (!is_waiting || self->is_paused || evbuffer_get_length(self->in) < PIPELINE_BYTES) return;
    event_del(&self->readable);
    self->is_paused = true;
}

static void on_readable(evutil_socket_t descriptor, short what, void *context)
{
    connection_t *self = context;
    server_t *server = self->server;
    bool is_open = true;
    for (int i = 0; i < READS_MAX && is_open; i++) {
        ssize_t got = recv(descriptor, server->read_buffer, READ_BYTES, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) break;
        is_open = got > 0;
        if (is_open) evbuffer_add(self->in, server->read_buffer, (size_t)got);
        if (got < READ_BYTES) break;
    }
    if (is_open)
        process(self);
    else
        close_connection(self); /* gone, or half closed: who stops sending is taken for gone */
    server_flush(server);
}

/* ---- connections
 * ----------------------------------------------------------------------------------- */

void server_adopt(server_t *self, int descriptor)
{
    if (self->count == self->options.connections_max) {
        close(descriptor);
        return;
    }
    uint32_t slot = self->free_head != UINT32_MAX ? self->free_head : self->fresh++;
    connection_t *connection = &self->connections[slot];
    if (self->free_head != UINT32_MAX) self->free_head = connection->next_free;
    self->count++;
    int on = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    memset(connection, 0, sizeof *connection);
    connection->server = self;
    connection->descriptor = descriptor;
    connection->in = evbuffer_new();
    connection->out = evbuffer_new();
    invariant(connection->in != NULL && connection->out != NULL);
    event_assign(&connection->readable, self->base, descriptor, EV_READ | EV_PERSIST, on_readable,
                 connection);
    event_assign(&connection->writable, self->base, descriptor, EV_WRITE, on_writable, connection);
    event_add(&connection->readable, NULL);
    go_idle(connection);
}

/* Out of descriptors: the listener would report the same connection for ever. */
static void pause_accepting(server_t *self)
{
    event_del(&self->acceptable);
    self->paused_until_ms = now_ms() + SWEEP_MS;
}

static void on_acceptable(evutil_socket_t listener, short what, void *context)
{
    server_t *self = context;
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        int descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (descriptor >= 0) {
            server_adopt(self, descriptor);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            pause_accepting(self);
        if (errno != EINTR && errno != ECONNABORTED) return;
    }
}

static void expire(server_t *self, struct timed_list *list, uint64_t now)
{
    connection_t *first;
    while ((first = TAILQ_FIRST(list)) != NULL && first->deadline_ms <= now) {
        bool is_receiving = first->place >= AT_HEAD && first->place <= AT_TRAILER;
        if (is_receiving)
            refuse(first, 408, "The request did not arrive whole in time.");
        else
            close_connection(first);
    }
}

static void on_sweep(evutil_socket_t descriptor, short what, void *context)
{
    server_t *self = context;
    uint64_t now = now_ms();
    expire(self, &self->idle, now);
    expire(self, &self->receiving, now);
    expire(self, &self->lingering, now);
    server_flush(self);
    if (self->paused_until_ms == 0 || now < self->paused_until_ms) return;
    self->paused_until_ms = 0;
    event_add(&self->acceptable, NULL);
}

/* ---- the server
 * ------------------------------------------------------------------------------------ */

/* "host:port" or "[host]:port" into host and port; false when it is neither. */
static bool split_address(const char *listen, char *host, size_t cap, uint32_t *port)
{
    const char *colon = strrchr(listen, ':');
    if (colon == NULL || colon == listen) return false;
    const char *start = listen, *end = colon;
    if (*start == '[' && end[-1] == ']') {
        start++;
        end--;
    }
    char *rest;
    unsigned long number = strtoul(colon + 1, &rest, 10);
    if (*rest != 0 || rest == colon + 1 || number > 65535 || (size_t)(end - start) >= cap)
        return false;
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = 0;
    *port = (uint32_t)number;
    return true;
}

static int listen_on(const struct addrinfo *address)
{
    int on = 1;
    int descriptor = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return -1;
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(descriptor, address->ai_addr, address->ai_addrlen) == 0 &&
        listen(descriptor, BACKLOG) == 0)
        return descriptor;
    int error = errno;
    close(descriptor);
    errno = error;
    return -1;
}

static int open_listener(const server_options_t *options, char *why, size_t cap)
{
    char host[256], service[16];
    uint32_t port = 0;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV },
                    *found = NULL;
    if (!split_address(options->listen, host, sizeof host, &port)) {
        snprintf(why, cap, "'%s' is not an address and a port, such as 127.0.0.1:8000",
                 options->listen);
        return -1;
    }
    snprintf(service, sizeof service, "%u", port == 0 ? 0 : port + options->port_offset);
    int error = getaddrinfo(host, service, &hints, &found);
    if (error != 0) {
        snprintf(why, cap, "'%s' cannot be resolved: %s", options->listen, gai_strerror(error));
        return -1;
    }
    int descriptor = listen_on(found);
    if (descriptor < 0)
        snprintf(why, cap, "%s:%s cannot be listened on: %s", host, service, strerror(errno));
    freeaddrinfo(found);
    return descriptor;
}

static uint16_t port_of(int descriptor)
{
    struct sockaddr_storage address = { 0 };
    socklen_t size = sizeof address;
    char service[16] = "0";
    if (getsockname(descriptor, (struct sockaddr *)&address, &size) != 0) return 0;
    getnameinfo((struct sockaddr *)&address, size, NULL, 0, service, sizeof service,
                NI_NUMERICSERV);
    return (uint16_t)strtoul(service, NULL, 10);
}

server_t *server_new(struct event_base *base, const server_options_t *options, char *why,
                     size_t why_cap)
{
    invariant(options->connections_max > 0 && options->connections_max <= 1u << SLOT_BITS);
    int listener = open_listener(options, why, why_cap);
    if (listener < 0) return NULL;
    server_t *self = calloc(1, sizeof *self);
    invariant(self != NULL);
    self->connections = calloc(options->connections_max, sizeof *self->connections);
    invariant(self->connections != NULL);
    self->base = base;
    self->options = *options;
    self->options.listen = NULL;
    self->listener = listener;
    self->port = port_of(listener);
    self->free_head = UINT32_MAX;
    TAILQ_INIT(&self->idle);
    TAILQ_INIT(&self->receiving);
    TAILQ_INIT(&self->lingering);
    TAILQ_INIT(&self->dirty);
    event_assign(&self->acceptable, base, listener, EV_READ | EV_PERSIST, on_acceptable, self);
    event_add(&self->acceptable, NULL);
    struct timeval every = { 0, SWEEP_MS * 1000 };
    event_assign(&self->sweep, base, -1, EV_PERSIST, on_sweep, self);
    event_add(&self->sweep, &every);
    return self;
}

static void forget_closed(void *context, uint64_t exchange)
{
}

void server_destroy(server_t **self)
{
    server_t *server = *self;
    if (server == NULL) return;
    server->options.on_closed = forget_closed;
    for (uint32_t i = 0; i < server->fresh; i++) {
        if (server->connections[i].place != AT_FREE) close_connection(&server->connections[i]);
    }
    event_del(&server->acceptable);
    event_del(&server->sweep);
    close(server->listener);
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
