/* tests/fuzz/fuzz_http.c - bytes of an HTTP connection, cut anywhere: requests are answered or
 * refused, nothing else happens. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/invariant.h"
#include "runtime/net/server.h"
#include <event2/event.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static server_t *server;
static struct event_base *base;

/* Even exchanges are answered whole, odd ones as a stream. */
static void on_request(void *context, const server_request_t *request)
{
    http_answer_t answer = { .status = 200, .content_type = "text/plain" };
    invariant(strlen(request->path) < 256 && strlen(request->method) < 16);
    if (request->body_size % 2 == 0) {
        server_answer(server, request->exchange, &answer, request->body, request->body_size);
        return;
    }
    server_begin(server, request->exchange, &answer);
    server_write(server, request->exchange, request->body, request->body_size);
    server_end(server, request->exchange);
}

static void on_closed(void *context, uint64_t exchange)
{
    invariant(exchange != 0);
}

static void start(void)
{
    server_options_t options = { .listen = "127.0.0.1:0",
                                 .body_bytes_max = 4096,
                                 .header_bytes_max = 1024,
                                 .stream_buffer_bytes = 16384,
                                 .connections_max = 8,
                                 .idle_ms = 1000,
                                 .receive_ms = 1000,
                                 .on_request = on_request,
                                 .on_closed = on_closed };
    char why[256];
    base = event_base_new();
    server = server_new(base, &options, why, sizeof why);
    invariant(server != NULL);
}

static void turn(int client)
{
    static char answer[65536];
    event_base_loop(base, EVLOOP_NONBLOCK);
    while (recv(client, answer, sizeof answer, MSG_DONTWAIT) > 0) continue;
}

/* evhttp takes connections from its listener only.  A close that resets leaves no port behind.  The
 * fuzzer's alarm may interrupt connect(); -timeout ends a wait for a connection that never comes.
 */
static int client_new(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(server_port(server)) };
    struct linger reset = { .l_onoff = 1 };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    while (connect(client, (struct sockaddr *)&address, sizeof address) != 0 && errno != EISCONN)
        invariant(errno == EINTR || errno == EALREADY);
    invariant(setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
    while (server_connections(server) == 0) event_base_loop(base, EVLOOP_ONCE);
    turn(client);
    return client;
}

/* The first byte says how the rest is cut. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (server == NULL) start();
    if (size == 0) return 0;
    int client = client_new();
    size_t piece = data[0] == 0 ? size : (size_t)data[0];
    for (size_t at = 1; at < size; at += piece) {
        size_t part = size - at < piece ? size - at : piece;
        if (send(client, data + at, part, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) break;
        turn(client);
    }
    for (int i = 0; i < 3; i++) turn(client);
    if (data[0] % 2 == 0) shutdown(client, SHUT_WR); /* some leave politely */
    turn(client);
    close(client);
    /* The reset is an event, however late; 8 sweeps are too few for a deadline to do its work. */
    for (int i = 0; i < 8 && server_connections(server) > 0; i++)
        event_base_loop(base, EVLOOP_ONCE);
    invariant(server_connections(server) == 0);
    return 0;
}
