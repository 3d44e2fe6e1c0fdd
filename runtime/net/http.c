/* runtime/net/http.c - the HTTP port of the real world: the server's requests become messages of
 * the actor. */
#include "http.h"

#include <stdio.h>
#include <sys/resource.h>

#include "../zmq/world_internal.h"
#include "server.h"

static server_t *server_of(actor_t *world)
{
    return *(server_t **)world_http_slot(world);
}

static void on_request(void *context, const server_request_t *request)
{
    actor_t *world = context;
    msg_t m;
    msg_init(&m, MSG_http_request);
    m.http_request.exchange = request->exchange;
    snprintf(m.http_request.method, sizeof m.http_request.method, "%s", request->method);
    snprintf(m.http_request.path, sizeof m.http_request.path, "%s", request->path);
    snprintf(m.http_request.authorization, sizeof m.http_request.authorization, "%s",
             request->authorization);
    snprintf(m.http_request.traceparent, sizeof m.http_request.traceparent, "%s",
             request->traceparent);
    snprintf(m.http_request.content_type, sizeof m.http_request.content_type, "%s",
             request->content_type);
    m.http_request.has_origin = request->has_origin;
    m.http_request.body = (bytes_t){ request->body, request->body_size };
    world_post(world, &m);
}

static void on_closed(void *context, uint64_t exchange)
{
    actor_t *world = context;
    msg_t m;
    msg_init(&m, MSG_http_closed);
    m.http_closed.exchange = exchange;
    world_post(world, &m);
}

static void turn(actor_t *world)
{
    actor_gauge(world, METRIC_http_connections, server_connections(server_of(world)));
}

static void close_port(actor_t *world)
{
    server_destroy((server_t **)world_http_slot(world));
}

/* As many as there are descriptors for, beside those of links, pools and ZeroMQ's clients: libzmq
 * ends the process when it has none left. */
static uint32_t connections_max(actor_t *world)
{
    enum { KEPT = 512 };
    uint32_t wanted = (uint32_t)actor_config(world)->http.connections_max;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted + (rlim_t)KEPT)
        return wanted;
    uint32_t all = (uint32_t)limit.rlim_cur, most = all > 2 * KEPT ? all - KEPT : all / 2;
    if (most >= wanted) return wanted;
    actor_log(world, LOG_WARN, "HTTP-DESCRIPTORS",
              "http.connections_max is %u, but the limit of open files (%u) leaves room for %u",
              wanted, all, most);
    return most;
}

err_t actor_http_open(actor_t *world)
{
    const config_t *config = actor_config(world);
    server_options_t options = { .listen = config->http.listen,
                                 .port_offset = actor_self(world).index,
                                 .body_bytes_max = (size_t)config->http.body_bytes_max,
                                 .header_bytes_max = (size_t)config->http.header_bytes_max,
                                 .stream_buffer_bytes = (size_t)config->http.stream_buffer_bytes,
                                 .stall_ms = (uint32_t)config->http.stream_stall_seconds * 1000,
                                 .connections_max = connections_max(world),
                                 .idle_ms = (uint32_t)config->http.idle_seconds * 1000,
                                 .receive_ms = (uint32_t)config->http.receive_seconds * 1000,
                                 .on_request = on_request,
                                 .on_closed = on_closed,
                                 .context = world };
    char why[512] = "";
    server_t *server = server_new(world_event_base(world), &options, why, sizeof why);
    if (server == NULL) {
        actor_log(world, LOG_ERROR, "HTTP-LISTEN", "%s", why);
        return ERR_IO;
    }
    *world_http_slot(world) = server;
    world_http_hooks(world, (world_hooks_t){ .turn = turn, .close = close_port });
    return ERR_OK;
}

void actor_http_answer(actor_t *world, uint64_t exchange, const http_answer_t *answer,
                       const void *body, size_t size)
{
    server_answer(server_of(world), exchange, answer, body, size);
}

void actor_http_begin(actor_t *world, uint64_t exchange, const http_answer_t *answer)
{
    server_begin(server_of(world), exchange, answer);
}

void actor_http_write(actor_t *world, uint64_t exchange, const void *data, size_t size)
{
    server_write(server_of(world), exchange, data, size);
}

void actor_http_end(actor_t *world, uint64_t exchange)
{
    server_end(server_of(world), exchange);
}
