/* runtime/sim/port_http.c - the HTTP port: scripted clients on one side, ingress on the other. */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

err_t actor_http_open(actor_t *world)
{
    invariant(world->is_in_init);
    world->is_listening = true;
    return ERR_OK;
}

static exchange_t *find(actor_t *node, uint64_t number)
{
    for (uint32_t i = 0; i < node->exchange_count; i++)
        if (node->exchanges[i].number == number) return &node->exchanges[i];
    return NULL;
}

static exchange_t *find_free(actor_t *node)
{
    exchange_t *exchange = find(node, 0);
    if (exchange) return exchange;
    uint32_t count = node->exchange_count;
    node->exchanges = realloc(node->exchanges, (count + 1) * sizeof *node->exchanges);
    invariant(node->exchanges);
    node->exchange_count = count + 1;
    return &node->exchanges[count];
}

uint64_t sim_http_request(sim_t *self, uint32_t ingress, const sim_http_t *request,
                          const sim_http_client_t *client)
{
    actor_t *node = node_find(self, (address_t){ ROLE_ingress, ingress });
    if (!node || !node->is_alive || !node->is_listening) return 0;
    exchange_t *exchange = find_free(node);
    *exchange = (exchange_t){ .number = ++self->exchanges, .client = *client };
    msg_t m;
    msg_init(&m, MSG_http_request);
    m.header = (header_t){ .from = node->address };
    m.http_request.exchange = exchange->number;
    snprintf(m.http_request.method, sizeof m.http_request.method, "%s", request->method);
    snprintf(m.http_request.path, sizeof m.http_request.path, "%s", request->path);
    if (request->authorization)
        snprintf(m.http_request.authorization, sizeof m.http_request.authorization, "%s",
                 request->authorization);
    node_tell(self, node, &m, request->body, request->body_size);
    return exchange->number;
}

void sim_http_close(sim_t *self, uint32_t ingress, uint64_t number)
{
    actor_t *node = node_find(self, (address_t){ ROLE_ingress, ingress });
    exchange_t *exchange = node && number ? find(node, number) : NULL;
    if (!exchange) return;
    exchange->number = 0;
    msg_t m;
    msg_init(&m, MSG_http_closed);
    m.header = (header_t){ .from = node->address };
    m.http_closed.exchange = number;
    node_tell(self, node, &m, NULL, 0);
}

/* The process is gone: every client sees its connection end. */
void http_port_drop(actor_t *node)
{
    for (uint32_t i = 0; i < node->exchange_count; i++) {
        exchange_t exchange = node->exchanges[i];
        node->exchanges[i].number = 0;
        if (exchange.number && exchange.client.on_lost)
            exchange.client.on_lost(exchange.client.context);
    }
}

/* ---- runtime/net/http.h: calls on an exchange that has ended are ignored -------------------- */

void actor_http_answer(actor_t *world, uint64_t number, const http_answer_t *answer,
                       const void *body, size_t size)
{
    exchange_t *exchange = number ? find(world, number) : NULL;
    if (!exchange) return;
    invariant(!exchange->is_begun);
    trace_line(world->sim, "ingress.%u answers exchange %llu with %d", world->address.index,
               (unsigned long long)number, answer->status);
    trace_hash(world->sim, body, size);
    sim_http_client_t client = exchange->client;
    exchange->number = 0;
    if (client.on_answer) client.on_answer(client.context, answer, body, size);
}

void actor_http_begin(actor_t *world, uint64_t number, const http_answer_t *answer)
{
    exchange_t *exchange = number ? find(world, number) : NULL;
    if (!exchange) return;
    invariant(!exchange->is_begun);
    exchange->is_begun = true;
    if (exchange->client.on_begin) exchange->client.on_begin(exchange->client.context, answer);
}

void actor_http_write(actor_t *world, uint64_t number, const void *data, size_t size)
{
    exchange_t *exchange = number ? find(world, number) : NULL;
    if (!exchange) return;
    invariant(exchange->is_begun);
    trace_hash(world->sim, data, size);
    if (exchange->client.on_data) exchange->client.on_data(exchange->client.context, data, size);
}

void actor_http_end(actor_t *world, uint64_t number)
{
    exchange_t *exchange = number ? find(world, number) : NULL;
    if (!exchange) return;
    invariant(exchange->is_begun);
    sim_http_client_t client = exchange->client;
    exchange->number = 0;
    if (client.on_end) client.on_end(client.context);
}
