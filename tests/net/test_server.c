/* tests/net/test_server.c - the HTTP server over real sockets: what honest, slow, hostile and
 * leaving clients get. */
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/net/server.h"

enum { ANSWER_MAX = 1 << 20, ROUNDS_MAX = 4000, FLOOD_BYTES = 128 << 20 };

/* A toy: "/echo" answers the body, "/long" three bytes of its own, "/stream" begins and waits,
 * "/hold" answers nothing until told.
 */
typedef struct {
    struct event_base *base;
    server_t *server;
    uint64_t held, closed;
    uint32_t requests, closes;
    size_t body_size;
    char path[256], content_type[128];
    bool has_origin;
} toy_t;

static void on_request(void *context, const server_request_t *request)
{
    toy_t *toy = context;
    http_answer_t answer = { .status = 200, .content_type = "text/plain" };
    toy->requests++;
    toy->body_size = request->body_size;
    snprintf(toy->path, sizeof toy->path, "%s", request->path);
    snprintf(toy->content_type, sizeof toy->content_type, "%s", request->content_type);
    toy->has_origin = request->has_origin;
    if (strcmp(request->path, "/hold") == 0 || strcmp(request->path, "/stream") == 0)
        toy->held = request->exchange;
    if (strcmp(request->path, "/stream") == 0)
        server_begin(toy->server, request->exchange, &answer);
    if (strcmp(request->path, "/long") == 0)
        server_answer(toy->server, request->exchange, &answer, "abc", 3);
    if (toy->held != request->exchange)
        server_answer(toy->server, request->exchange, &answer, request->body, request->body_size);
}

static void on_closed(void *context, uint64_t exchange)
{
    toy_t *toy = context;
    toy->closed = exchange;
    toy->closes++;
}

static int set_up_with(void **state, uint32_t stall_ms)
{
    toy_t *toy = calloc(1, sizeof *toy);
    server_options_t options = { .listen = "127.0.0.1:0",
                                 .body_bytes_max = 100000,
                                 .header_bytes_max = 8192,
                                 .stream_buffer_bytes = 65536,
                                 .stall_ms = stall_ms,
                                 .connections_max = 64,
                                 .idle_ms = 400,
                                 .receive_ms = 300,
                                 .on_request = on_request,
                                 .on_closed = on_closed,
                                 .context = toy };
    char why[256] = "";
    toy->base = event_base_new();
    toy->server = server_new(toy->base, &options, why, sizeof why);
    *state = toy;
    return toy->server == NULL;
}

static int set_up(void **state)
{
    return set_up_with(state, 0);
}

static int set_up_patient(void **state)
{
    return set_up_with(state, 300);
}

static int tear_down(void **state)
{
    toy_t *toy = *state;
    server_destroy(&toy->server);
    event_base_free(toy->base);
    free(toy);
    return 0;
}

static void pump(toy_t *toy)
{
    event_base_loop(toy->base, EVLOOP_NONBLOCK);
}

static int client_new(const toy_t *toy)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_port = htons(server_port(toy->server)) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(client, (struct sockaddr *)&address, sizeof address), 0);
    return client;
}

static void say(int client, const char *text)
{
    assert_int_equal(send(client, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* Run the server until `wanted` has come back, the server closed, or nothing happened for long;
 * what came is in answer. */
static bool hear(toy_t *toy, int client, char *answer, const char *wanted)
{
    size_t used = strlen(answer);
    for (int round = 0; round < ROUNDS_MAX; round++) {
        pump(toy);
        if (wanted != NULL && strstr(answer, wanted) != NULL) return true;
        struct pollfd poll_one = { .fd = client, .events = POLLIN };
        if (poll(&poll_one, 1, 1) <= 0) continue;
        ssize_t got = recv(client, answer + used, ANSWER_MAX - 1 - used, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno == ECONNRESET))
            return wanted == NULL || strstr(answer, wanted) != NULL;
        if (got > 0) used += (size_t)got;
        answer[used] = 0;
    }
    return false;
}

static char *new_answer(void)
{
    char *answer = calloc(1, ANSWER_MAX);
    assert_non_null(answer);
    return answer;
}

/* Whatever is refused is refused in OpenAI's shape, once, never with a page of a library's. */
static void check_refusal(const char *answer)
{
    const char *body = strstr(answer, "\r\n\r\n");
    assert_non_null(body);
    assert_int_equal(strncmp(body + 4, "{\"error\":{\"message\":", 20), 0);
    assert_non_null(strstr(answer, "Connection: close\r\n"));
    assert_null(strcasestr(answer, "html"));
    assert_null(strstr(body, "\r\nDate"));
}

/* One request on its own connection; the answer must contain `wanted`. */
static void expect(toy_t *toy, const char *request, const char *wanted)
{
    char *answer = new_answer();
    int client = client_new(toy);
    say(client, request);
    bool is_heard = hear(toy, client, answer, wanted);
    if (!is_heard) print_error("wanted '%s', got '%s'\n", wanted, answer);
    assert_true(is_heard);
    if (strncmp(answer, "HTTP/1.1 4", 10) == 0 || strncmp(answer, "HTTP/1.1 5", 10) == 0) {
        assert_true(hear(toy, client, answer, NULL));
        check_refusal(answer);
    }
    close(client);
    free(answer);
}

static void test_server_request_gets_its_answer(void **state)
{
    /* Nothing is served if this fails. */
    expect(*state, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
           "Content-Length: 5\r\n");
    expect(*state, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
           "\r\n\r\nhello");
    expect(*state, "\r\n\r\nGET /echo HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK");
    expect(*state, "GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n", "Connection: keep-alive\r\n");
    assert_string_equal(((toy_t *)*state)->path, "/a");
    expect(*state, "GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK");
    assert_string_equal(((toy_t *)*state)->path, "/a b");
    assert_string_equal(((toy_t *)*state)->content_type, "");
    assert_false(((toy_t *)*state)->has_origin);
    expect(*state, "GET /a HTTP/1.1\r\nHost: x\r\ncontent-type: a/b; c\r\nOrigin: null\r\n\r\n",
           "200 OK");
    assert_string_equal(((toy_t *)*state)->content_type, "a/b; c");
    assert_true(((toy_t *)*state)->has_origin);
}

static void test_server_chunked_body_is_joined(void **state)
{
    /* Clients that do not know the length before they send could not be served. */
    expect(*state,
           "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
           "chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n",
           "\r\n\r\nabcde");
    expect(*state,
           "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcxyz\r\n",
           "413 Content Too Large");
    expect(*state,
           "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n",
           "413 Content Too Large");
    expect(*state,
           "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
           "413 Content Too Large");
}

static void test_server_pipelined_requests_are_answered_in_order(void **state)
{
    /* Keep-alive clients would get answers of other requests. */
    char *answer = new_answer();
    int client = client_new(*state);
    say(client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none\r\nGET /echo "
                "HTTP/1.1\r\nHost: x\r\n\r\nPOST /echo HTTP/1.1\r\nHost: "
                "x\r\nContent-Length: 5\r\n\r\nthree");
    assert_true(hear(*state, client, answer, "three"));
    assert_true(strstr(answer, "one") < strstr(answer, "three"));
    assert_int_equal(((toy_t *)*state)->requests, 3);
    close(client);
    free(answer);
}

static void test_server_request_byte_by_byte_is_understood(void **state)
{
    /* The parser must not depend on where packets are cut. */
    const char *request = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nslow";
    char *answer = new_answer();
    int client = client_new(*state);
    for (size_t i = 0; i < strlen(request); i++) {
        assert_int_equal(send(client, request + i, 1, MSG_NOSIGNAL), 1);
        pump(*state);
    }
    assert_true(hear(*state, client, answer, "slow"));
    close(client);
    free(answer);
}

static void test_server_large_body_that_trickles_is_understood(void **state)
{
    /* Who adds little to much is read seldom, but must not be forgotten. */
    toy_t *toy = *state;
    char *answer = new_answer();
    static char body[80001];
    int client = client_new(toy);
    memset(body, 'b', sizeof body - 1);
    say(client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 80003\r\n\r\n");
    say(client, body);
    for (int i = 0; i < 3; i++) {
        for (int round = 0; round < 20; round++) pump(toy);
        say(client, "e");
    }
    assert_true(hear(toy, client, answer, "beee"));
    assert_int_equal(toy->body_size, 80003);
    close(client);
    free(answer);
}

static void test_server_bad_requests_are_refused_by_status(void **state)
{
    /* What is ambiguous must never be guessed: that is how requests are smuggled. */
    static const char *const cases[][2] = {
        { "GARBAGE\r\n\r\n", "400" },
        { "\x01\x02\x03", "408" },
        { "\x01\x02\x03\r\n", "400" },
        { "GET / HTTP/9.9\r\n\r\n", "400" },
        { "GET / HTTP/1.7\r\n\r\n", "505" },
        { "GET / HTTP/1.1\r\n\r\n", "400" },
        { "GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n", "400" },
        { "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400" },
        { "GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", "400" },
        { "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", "400" },
        { "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "400" },
        { "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx", "400" },
        { "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: "
          "chunked\r\n\r\n0\r\n\r\n",
          "400" },
        { "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400" },
        { "HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nxyz", "400" },
        { "CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", "400" },
        { "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", "501" },
        { "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", "413" },
        { "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n", "413" },
        { "POST / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n", "417" },
        { "GET / HTTP/1.1\r\nX: \x01\r\nHost: x\r\n\r\n", "400" },
        { "GET / HTTP/1.1\r\nno colon\r\n\r\n", "400" },
        { "GET / HTTP/1.1\r\nHost : x\r\n\r\n", "400" },
        { "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400" },
        { "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Type: a/b\r\n\r\n", "400" },
        { "AVERYVERYVERYLONGMETHOD / HTTP/1.1\r\nHost: x\r\n\r\n", "501" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char wanted[32];
        snprintf(wanted, sizeof wanted, "HTTP/1.1 %s ", cases[i][1]);
        expect(*state, cases[i][0], wanted);
    }
    assert_int_equal(((toy_t *)*state)->requests, 0);
}

static void test_server_header_flood_is_refused_with_431(void **state)
{
    /* A header without an end would fill the memory. */
    char *request = new_answer();
    size_t used = (size_t)snprintf(request, ANSWER_MAX, "GET / HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i <= 200; i++)
        used += (size_t)snprintf(request + used, ANSWER_MAX - used, "X-%d: y%s", i,
                                 i < 200 ? "\r\n" : "\r\n\r\n");
    expect(*state, request, "HTTP/1.1 431 ");
    used = (size_t)snprintf(request, ANSWER_MAX, "GET / HTTP/1.1\r\nHost: x\r\nX: ");
    memset(request + used, 'y', 20000);
    expect(*state, request, "HTTP/1.1 431 ");
    free(request);
}

static void test_server_expect_continue_is_answered_before_the_body(void **state)
{
    /* curl waits a second for it with every large prompt. */
    char *answer = new_answer();
    int client = client_new(*state);
    say(client,
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_true(hear(*state, client, answer, "100 Continue"));
    say(client, "body");
    assert_true(hear(*state, client, answer, "\r\n\r\nbody"));
    close(client);
    free(answer);
}

static void test_server_head_gets_no_body(void **state)
{
    /* A body after HEAD would be read as the next answer. */
    char *answer = new_answer();
    int client = client_new(*state);
    say(client, "HEAD /long HTTP/1.1\r\nHost: x\r\nConnection: close, te\r\n\r\n");
    assert_true(hear(*state, client, answer, NULL));
    assert_non_null(strstr(answer, "Content-Length: 3\r\n"));
    assert_string_equal(strstr(answer, "\r\n\r\n"), "\r\n\r\n");
    close(client);
    free(answer);
}

static void test_server_stream_arrives_chunk_by_chunk_and_ends(void **state)
{
    /* Tokens must reach the client while the answer grows. */
    toy_t *toy = *state;
    char *answer = new_answer();
    int client = client_new(toy);
    say(client, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_true(hear(toy, client, answer, "Transfer-Encoding: chunked\r\n"));
    server_write(toy->server, toy->held, "data: 1\n\n", 9);
    server_write(toy->server, toy->held, "data: 2\n\n", 9);
    assert_true(hear(toy, client, answer, "9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n"));
    server_end(toy->server, toy->held);
    server_write(toy->server, toy->held, "late", 4);
    assert_true(hear(toy, client, answer, "\r\n0\r\n\r\n"));
    assert_null(strstr(answer, "late"));
    say(client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nagain");
    assert_true(hear(toy, client, answer, "again"));
    assert_int_equal(toy->closes, 0);
    close(client);
    free(answer);
}

static void test_server_http_1_0_stream_ends_with_the_connection(void **state)
{
    /* Old clients know no chunks: they would print the sizes. */
    toy_t *toy = *state;
    char *answer = new_answer();
    int client = client_new(toy);
    say(client, "GET /stream HTTP/1.0\r\nConnection: keep-alive\r\nConnection: "
                "keep-alive\r\n\r\n");
    assert_true(hear(toy, client, answer, "\r\n\r\n"));
    server_write(toy->server, toy->held, "plain", 5);
    server_end(toy->server, toy->held);
    assert_true(hear(toy, client, answer, NULL));
    assert_non_null(strstr(answer, "\r\n\r\nplain"));
    assert_null(strstr(answer, "Content-Length"));
    close(client);
    free(answer);
}

static void leave(toy_t *toy, const char *request)
{
    uint32_t requests = toy->requests, closes = toy->closes;
    int client = client_new(toy);
    say(client, request);
    for (int i = 0; i < ROUNDS_MAX && toy->requests == requests; i++) pump(toy);
    close(client);
    for (int i = 0; i < ROUNDS_MAX && toy->closes == closes; i++) {
        poll(NULL, 0, 1);
        pump(toy);
    }
    assert_int_equal(toy->closes, closes + 1);
    assert_true(toy->closed == toy->held);
}

static void test_server_client_that_leaves_is_told_once(void **state)
{
    /* Work would go on for nobody: KV blocks held, tokens computed. */
    leave(*state, "GET /hold HTTP/1.1\r\nHost: x\r\n\r\n");
    leave(*state, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    server_write(((toy_t *)*state)->server, ((toy_t *)*state)->held, "x", 1);
    assert_int_equal(server_connections(((toy_t *)*state)->server), 0);
}

static void test_server_slow_reader_is_cut_at_its_buffer(void **state)
{
    /* One client that reads nothing would hold memory without bound. */
    toy_t *toy = *state;
    char *answer = new_answer();
    static char data[32768];
    int client = client_new(toy);
    say(client, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_true(hear(toy, client, answer, "\r\n\r\n"));
    for (int i = 0; i < 2000 && toy->closes == 0; i++) {
        server_write(toy->server, toy->held, data, sizeof data);
        pump(toy);
    }
    assert_int_equal(toy->closes, 1);
    close(client);
    free(answer);
}

static void test_server_large_piece_is_not_a_slow_reader(void **state)
{
    /* One event with the probabilities of a whole prompt is larger than the buffer: its reader
     * needs a while, and is cut only if it never catches up. */
    enum { PIECE = 8 << 20 };
    toy_t *toy = *state;
    char *answer = new_answer(), *piece = calloc(1, PIECE);
    int client = client_new(toy);
    say(client, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_true(hear(toy, client, answer, "\r\n\r\n"));
    server_write(toy->server, toy->held, piece, PIECE);
    server_write(toy->server, toy->held, "more", 4);
    size_t size = 0;
    for (int i = 0; i < 100000 && size < PIECE; i++) {
        ssize_t got = recv(client, piece, PIECE, MSG_DONTWAIT);
        size += got > 0 ? (size_t)got : 0;
        pump(toy);
    }
    assert_true(size > PIECE - 65536);
    assert_int_equal(toy->closes, 0);
    for (int i = 0; i < 2000 && toy->closes == 0; i++) {
        server_write(toy->server, toy->held, piece, 65536);
        pump(toy);
        poll(NULL, 0, 1);
    }
    assert_int_equal(toy->closes, 1);
    close(client);
    free(piece);
    free(answer);
}

static void test_server_half_sent_request_ends_with_408(void **state)
{
    /* Slow and silent clients would use up every connection. */
    expect(*state, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
           "HTTP/1.1 408 ");
    expect(*state, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
           "\"code\":\"deadline\"");
    expect(*state, "GET / HT", "HTTP/1.1 408 ");
}

static void test_server_idle_connection_is_closed(void **state)
{
    /* Connections that nobody uses would be kept for ever. */
    char *answer = new_answer();
    int client = client_new(*state);
    assert_true(hear(*state, client, answer, NULL));
    assert_string_equal(answer, "");
    assert_int_equal(server_connections(((toy_t *)*state)->server), 0);
    close(client);
    free(answer);
}

static void test_server_too_many_connections_are_closed_at_once(void **state)
{
    /* The limit is what keeps memory and descriptors bounded. */
    int clients[70];
    for (int i = 0; i < 70; i++) clients[i] = client_new(*state);
    for (int i = 0; i < 100; i++) pump(*state);
    assert_int_equal(server_connections(((toy_t *)*state)->server), 64);
    char byte;
    assert_int_equal(recv(clients[69], &byte, 1, MSG_DONTWAIT), 0);
    for (int i = 0; i < 70; i++) close(clients[i]);
    for (int i = 0; i < 100; i++) pump(*state);
    expect(*state, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK");
}

static void test_server_exchange_numbers_are_never_reused(void **state)
{
    /* A late token would land in another client's answer. */
    toy_t *toy = *state;
    uint64_t first;
    leave(toy, "GET /hold HTTP/1.1\r\nHost: x\r\n\r\n");
    first = toy->held;
    leave(toy, "GET /hold HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_true(first != toy->held);
    assert_true((first & 0xfffff) == (toy->held & 0xfffff));
}

static void test_server_what_follows_an_ambiguous_body_is_never_a_request(void **state)
{
    /* Behind a proxy that counts otherwise, one client would speak in another one's name. */
    static const char *const cases[] = {
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: "
        "chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: "
        "60\r\n\r\nxGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx"
        "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        "HEAD /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n"
        "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        "TRACE /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n"
        "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        "MERGE /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n"
        "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    };
    toy_t *toy = *state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *answer = new_answer();
        int client = client_new(toy);
        say(client, cases[i]);
        assert_true(hear(toy, client, answer, NULL));
        assert_string_not_equal(toy->path, "/smuggled");
        close(client);
        free(answer);
    }
}

static void test_server_refused_upload_can_still_read_why(void **state)
{
    /* A reset that overtakes the answer tells the user nothing: "connection reset by peer". */
    toy_t *toy = *state;
    char *answer = new_answer();
    static char data[65536];
    int client = client_new(toy);
    say(client, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n");
    for (int i = 0; i < 60; i++) {
        (void)send(client, data, sizeof data, MSG_NOSIGNAL | MSG_DONTWAIT);
        pump(toy);
    }
    assert_true(hear(toy, client, answer, NULL));
    assert_non_null(strstr(answer, "HTTP/1.1 413 "));
    check_refusal(answer);
    close(client);
    free(answer);
}

/* Send until the server takes no more, or answers; how much it took. */
static size_t flood(toy_t *toy, int client, char byte)
{
    static char data[65536];
    size_t sent = 0;
    memset(data, byte, sizeof data);
    for (int refused = 0; refused < 20 && sent < FLOOD_BYTES;) {
        char first;
        if (recv(client, &first, 1, MSG_DONTWAIT | MSG_PEEK) > 0) break;
        ssize_t part = send(client, data, sizeof data, MSG_NOSIGNAL | MSG_DONTWAIT);
        refused = part > 0 ? 0 : refused + 1;
        if (part > 0) sent += (size_t)part;
        pump(toy);
    }
    return sent;
}

static void test_server_line_without_end_is_bounded(void **state)
{
    /* evhttp waits for the end of a chunk's line: a client that never ends it would fill memory. */
    toy_t *toy = *state;
    char *answer = new_answer();
    int client = client_new(toy);
    say(client, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    size_t sent = flood(toy, client, '1');
    assert_true(sent <
                FLOOD_BYTES / 2); /* the kernel's buffers of both sides, not what was tried */
    assert_true(hear(toy, client, answer, "HTTP/1.1 408 "));
    close(client);
    free(answer);
}

static void test_server_pipelining_while_answering_is_bounded(void **state)
{
    /* Whoever sends on while an answer runs would fill memory. */
    toy_t *toy = *state;
    int client = client_new(toy);
    say(client, "GET /hold HTTP/1.1\r\nHost: x\r\n\r\n");
    for (int i = 0; i < ROUNDS_MAX && toy->requests == 0; i++) pump(toy);
    size_t sent = flood(toy, client, '1');
    assert_true(sent < FLOOD_BYTES / 2);
    assert_int_equal(toy->closes, 0);
    close(client);
}

static void test_server_destroyed_sends_what_was_written(void **state)
{
    /* The last words of a server that stops would be lost. */
    toy_t *toy = *state;
    char *answer = new_answer();
    int client = client_new(toy);
    say(client, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_true(hear(toy, client, answer, "\r\n\r\n"));
    server_write(toy->server, toy->held, "last", 4);
    server_end(toy->server, toy->held);
    server_destroy(&toy->server);
    assert_true(recv(client, answer, ANSWER_MAX - 1, MSG_DONTWAIT) > 0);
    assert_non_null(strstr(answer, "4\r\nlast\r\n0\r\n\r\n"));
    assert_int_equal(toy->closes, 0);
    close(client);
    free(answer);
}

static void test_server_bad_address_is_named(void **state)
{
    /* Whoever mistypes http.listen must read which part was wrong. */
    toy_t *toy = *state;
    char why[256] = "";
    server_options_t options = {
        .listen = "nonsense", .connections_max = 1, .on_request = on_request, .on_closed = on_closed
    };
    assert_null(server_new(toy->base, &options, why, sizeof why));
    assert_non_null(strstr(why, "nonsense"));
    char taken[32];
    snprintf(taken, sizeof taken, "127.0.0.1:%u", server_port(toy->server));
    options.listen = taken;
    assert_null(server_new(toy->base, &options, why, sizeof why));
    assert_non_null(strstr(why, "127.0.0.1"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_server_request_gets_its_answer),
        TEST(test_server_chunked_body_is_joined),
        TEST(test_server_pipelined_requests_are_answered_in_order),
        TEST(test_server_request_byte_by_byte_is_understood),
        TEST(test_server_large_body_that_trickles_is_understood),
        TEST(test_server_bad_requests_are_refused_by_status),
        TEST(test_server_header_flood_is_refused_with_431),
        TEST(test_server_expect_continue_is_answered_before_the_body),
        TEST(test_server_head_gets_no_body),
        TEST(test_server_stream_arrives_chunk_by_chunk_and_ends),
        TEST(test_server_http_1_0_stream_ends_with_the_connection),
        TEST(test_server_client_that_leaves_is_told_once),
        TEST(test_server_slow_reader_is_cut_at_its_buffer),
        cmocka_unit_test_setup_teardown(test_server_large_piece_is_not_a_slow_reader,
                                        set_up_patient, tear_down),
        TEST(test_server_half_sent_request_ends_with_408),
        TEST(test_server_idle_connection_is_closed),
        TEST(test_server_too_many_connections_are_closed_at_once),
        TEST(test_server_exchange_numbers_are_never_reused),
        TEST(test_server_what_follows_an_ambiguous_body_is_never_a_request),
        TEST(test_server_refused_upload_can_still_read_why),
        TEST(test_server_line_without_end_is_bounded),
        TEST(test_server_pipelining_while_answering_is_bounded),
        TEST(test_server_destroyed_sends_what_was_written),
        TEST(test_server_bad_address_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
