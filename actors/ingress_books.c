/* actors/ingress_books.c - calls and requests of ingress: taking, finding, giving back. */
#include <string.h>

#include "ingress_parts.h"

/* The names of exchanges and of clients' calls share one table. */
static const uint64_t exchange_space = UINT64_MAX;

static uint64_t client_space(address_t client, request_id_t id)
{
    return (id.hi ^ (uint64_t)client.index * 0x9e3779b97f4a7c15u) & (UINT64_MAX >> 1);
}

static void table_make(table_t *table, actor_t *world, uint32_t capacity)
{
    table_init(table, actor_alloc(world, table_cells(capacity), sizeof(table_cell_t)), capacity);
}

void books_init(ingress_t *self, actor_t *world)
{
    uint32_t count = (uint32_t)self->config->limits.requests_max;
    self->requests_max = count;
    self->in_print = NONE;
    self->requests = actor_alloc(world, count, sizeof *self->requests);
    self->calls = actor_alloc(world, count, sizeof *self->calls);
    self->extras = actor_alloc(world, count, sizeof *self->extras);
    self->tails = actor_alloc(world, count, sizeof *self->tails);
    table_make(&self->by_id, world, count);
    table_make(&self->by_caller, world, count);
    for (uint32_t i = 0; i < count; i++) {
        self->requests[i].next = i + 1 < count ? i + 1 : NONE;
        self->calls[i].next = i + 1 < count ? i + 1 : NONE;
    }
    self->alarms = (alarms_t){ .heap = actor_alloc(world, count, sizeof(alarm_t)),
                               .places = actor_alloc(world, count, sizeof(uint32_t)),
                               .capacity = count };
    /* Eight pages a request on average, and never less than four whole contexts. */
    uint32_t pages = count * 8 + 4 * (self->context_max * 4 / CHAIN_PAGE_BYTES + 1);
    chain_pool_init(&self->pool, actor_alloc(world, pages, sizeof(chain_page_t)), pages);
}

uint32_t call_index(const ingress_t *self, const call_t *call)
{
    return (uint32_t)(call - self->calls);
}

uint32_t request_index(const ingress_t *self, const request_t *request)
{
    return (uint32_t)(request - self->requests);
}

call_t *call_take(ingress_t *self)
{
    if (self->free_call == NONE) return NULL;
    call_t *call = &self->calls[self->free_call];
    invariant(!call->is_used);
    self->free_call = call->next;
    self->call_count++;
    *call = (call_t){ .is_used = true, .first = NONE, .last = NONE, .next = NONE, .job = NONE };
    return call;
}

request_t *request_take(ingress_t *self, call_t *call)
{
    if (self->free_request == NONE) return NULL;
    uint32_t index = self->free_request;
    request_t *request = &self->requests[index];
    invariant(request->state == REQUEST_FREE);
    self->free_request = request->next;
    self->request_count++;
    *request = (request_t){ .state = REQUEST_WAITING,
                            .call = call_index(self, call),
                            .next = NONE,
                            .sender = { ROLE_client, 0 } };
    if (call->first == NONE)
        call->first = index;
    else
        self->requests[call->last].next = index;
    call->last = index;
    request->choice = call->count++;
    call->open_count++;
    return request;
}

void request_name(ingress_t *self, actor_t *world, request_t *request)
{
    do {
        request->id = (request_id_t){ actor_random(world), actor_random(world) };
    } while (table_find(&self->by_id, request->id.hi, request->id.lo) != TABLE_NONE);
    table_insert(&self->by_id, request->id.hi, request->id.lo, request_index(self, request));
}

request_t *request_find(const ingress_t *self, request_id_t id)
{
    uint32_t index = table_find(&self->by_id, id.hi, id.lo);
    return index == TABLE_NONE ? NULL : &self->requests[index];
}

call_t *call_find_exchange(const ingress_t *self, uint64_t exchange)
{
    uint32_t index = table_find(&self->by_caller, exchange_space, exchange);
    return index == TABLE_NONE ? NULL : &self->calls[index];
}

call_t *call_find_client(const ingress_t *self, address_t client, request_id_t id)
{
    uint32_t index = table_find(&self->by_caller, client_space(client, id), id.lo);
    return index == TABLE_NONE ? NULL : &self->calls[index];
}

bool call_name_exchange(ingress_t *self, call_t *call, uint64_t exchange)
{
    if (table_find(&self->by_caller, exchange_space, exchange) != TABLE_NONE) return false;
    table_insert(&self->by_caller, exchange_space, exchange, call_index(self, call));
    call->exchange = exchange;
    return true;
}

bool call_name_client(ingress_t *self, call_t *call, address_t client, request_id_t id)
{
    uint64_t space = client_space(client, id);
    if (table_find(&self->by_caller, space, id.lo) != TABLE_NONE) return false;
    table_insert(&self->by_caller, space, id.lo, call_index(self, call));
    call->is_client = true;
    call->client = client;
    call->client_id = id;
    return true;
}

static void request_free(ingress_t *self, request_t *request)
{
    invariant(request->state == REQUEST_ENDED);
    uint32_t index = request_index(self, request);
    chain_free(&self->pool, &request->tokens);
    chain_free(&self->pool, &request->records);
    chain_free(&self->pool, &request->prompt_chain);
    request->state = REQUEST_FREE;
    request->next = self->free_request;
    self->free_request = index;
    self->request_count--;
}

/* An answer that one turn took was never among those that wait. */
static void leave_print(ingress_t *self, const call_t *call)
{
    uint32_t *link = &self->in_print;
    while (*link != NONE && *link != call_index(self, call)) link = &self->calls[*link].next;
    if (*link != NONE) *link = call->next;
}

void call_forget(ingress_t *self, call_t *call)
{
    invariant(!call->is_admitted);
    for (uint32_t index = call->first; index != NONE; index = self->requests[index].next)
        self->requests[index].state = REQUEST_ENDED;
    call->open_count = 0;
}

void call_free(ingress_t *self, call_t *call)
{
    invariant(call->is_used && call->open_count == 0);
    for (uint32_t index = call->first; index != NONE;) {
        uint32_t next = self->requests[index].next;
        request_free(self, &self->requests[index]);
        index = next;
    }
    if (call->is_client)
        table_remove(&self->by_caller, client_space(call->client, call->client_id),
                     call->client_id.lo);
    else
        table_remove(&self->by_caller, exchange_space, call->exchange);
    leave_print(self, call);
    if (call->job != NONE) job_free(self, &self->jobs[call->job]);
    call->is_used = false;
    call->next = self->free_call;
    self->free_call = call_index(self, call);
    self->call_count--;
}

bool record_keep(ingress_t *self, chain_t *chain, const token_record_t *record)
{
    chain_pool_t *pool = &self->pool;
    uint32_t top = record->top_count;
    return chain_append(pool, chain, &record->id, sizeof record->id) &&
           chain_append(pool, chain, &top, sizeof top) &&
           chain_append(pool, chain, &record->logprob, sizeof record->logprob) &&
           chain_append(pool, chain, record->top_ids, top * (uint32_t)sizeof(uint32_t)) &&
           chain_append(pool, chain, record->top_logprobs, top * (uint32_t)sizeof(float));
}

uint32_t request_gather(const ingress_t *self, const request_t *request)
{
    chain_cursor_t cursor = chain_begin(&request->tokens);
    invariant(request->tokens.size <= CONTEXT_MAX * sizeof *self->ids);
    invariant(chain_read(&self->pool, &cursor, self->ids, request->tokens.size));
    return request->tokens.size / (uint32_t)sizeof *self->ids;
}

void books_check(const ingress_t *self)
{
    invariant(self->accepted ==
              self->finished + self->failed + self->cancelled + self->by_id.count);
    invariant(self->by_id.count <= self->request_count);
    invariant(self->request_count <= self->requests_max);
    invariant(self->by_caller.count == self->call_count);
    invariant(self->request_count > 0 || self->pool.used == 0);
    invariant(self->alarms.count <= self->by_id.count);
}
