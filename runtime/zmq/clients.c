/* runtime/zmq/clients.c - who speaks at our ROUTER: a routing id names an actor of the company, or
 * becomes a client. */
#include <stdlib.h>
#include <string.h>

#include "state.h"

err_t clients_open(actor_t *world)
{
    const link_t *link = link_between(ROLE_client, world->self.role);
    if (!link) return ERR_OK;
    world->clients = calloc(CLIENTS_MAX, sizeof *world->clients);
    if (!world->clients) return ERR_NO_SPACE;
    for (int32_t i = 0; i < CLIENTS_MAX; i++) {
        address_t who = { ROLE_client, (u32)i };
        peer_init(world, &world->clients[i], who, link->mark);
        world->clients[i].next_client = i + 1 < CLIENTS_MAX ? i + 1 : -1;
        world->client_buckets[i] = -1;
    }
    world->client_free_first = 0;
    world->client_free_last = CLIENTS_MAX - 1;
    return ERR_OK;
}

static uint32_t bucket_of(const uint8_t *id, size_t size)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a: ids are short */
    for (size_t i = 0; i < size; i++) hash = (hash ^ id[i]) * 1099511628211u;
    return (uint32_t)(hash ^ (hash >> 32)) % CLIENTS_MAX;
}

/* All places are taken: who has been idle for longest loses its own, for a thousand connections
 * kept for nothing must not shut out the next. */
static void make_room(actor_t *world)
{
    uint64_t idle_us = (uint64_t)world->config->timing.dead_ms * 1000 * IDLE_BOUNDS;
    peer_t *idlest = &world->clients[0];
    for (int32_t i = 1; i < CLIENTS_MAX; i++)
        if (world->clients[i].active_us < idlest->active_us) idlest = &world->clients[i];
    if (actor_now_us(world) - idlest->active_us < idle_us) return;
    peer_lose(world, idlest);
    peers_deliver_lost(world);
}

static peer_t *client_take(actor_t *world, const uint8_t *id, size_t size)
{
    int32_t *bucket = &world->client_buckets[bucket_of(id, size)];
    for (int32_t i = *bucket; i >= 0; i = world->clients[i].next_client) {
        peer_t *client = &world->clients[i];
        if (client->id_size == size && memcmp(client->id, id, size) == 0) return client;
    }
    if (world->client_free_first < 0) make_room(world);
    int32_t slot = world->client_free_first;
    if (slot < 0) return NULL;
    peer_t *client = &world->clients[slot];
    world->client_free_first = client->next_client;
    if (world->client_free_first < 0) world->client_free_last = -1;
    bool is_dirty = client->is_dirty; /* the one before may be in that list still: once is enough */
    peer_init(world, client, client->address, client->mark);
    client->is_dirty = is_dirty;
    client->active_us = actor_now_us(world);
    client->id_size = (uint32_t)size;
    memcpy(client->id, id, size);
    client->next_client = *bucket;
    *bucket = slot;
    return client;
}

/* To the end of the free list, so that its index names nobody else for as long as possible. */
void client_release(actor_t *world, peer_t *client)
{
    int32_t slot = (int32_t)client->address.index;
    int32_t *place = &world->client_buckets[bucket_of(client->id, client->id_size)];
    while (*place != slot) place = &world->clients[*place].next_client;
    *place = client->next_client;
    client->next_client = -1;
    client->id_size = 0;
    channel_t *channel = &world->channels[0];
    if (channel->has_frame && channel->frame_peer == client) {
        (void)zmq_msg_close(&channel->frame);
        channel->has_frame = false;
    }
    if (world->client_free_last >= 0)
        world->clients[world->client_free_last].next_client = slot;
    else
        world->client_free_first = slot;
    world->client_free_last = slot;
}

/* "role.index" of a role of ours, as that actor spells it; false: somebody outside. */
static bool parse_id(const uint8_t *id, size_t size, address_t *who)
{
    char text[ROUTING_ID_MAX + 1], *end;
    memcpy(text, id, size);
    text[size] = 0;
    char *dot = strchr(text, '.');
    if (!dot || dot[1] < '0' || dot[1] > '9') return false;
    *dot = 0;
    unsigned long index = strtoul(dot + 1, &end, 10);
    bool is_padded = dot[1] == '0' && end != dot + 2;
    if (end != text + size || is_padded || index > INDEX_MAX) return false;
    for (role_t role = ROLE_client + 1; role < ROLES_MAX; role++) {
        if (strcmp(text, role_names[role]) != 0) continue;
        *who = (address_t){ role, (u32)index };
        return true;
    }
    return false;
}

bool is_actor_id(const uint8_t *id, size_t size)
{
    address_t who;
    return parse_id(id, size, &who);
}

peer_t *peer_of_id(actor_t *world, const uint8_t *id, size_t size)
{
    address_t who;
    if (size == 0 || size > ROUTING_ID_MAX) return NULL;
    if (parse_id(id, size, &who)) {
        peer_t *peer = peer_find(world, who);
        return peer && peer->id_size ? peer : NULL; /* no link, or one that we connect */
    }
    return world->clients ? client_take(world, id, size) : NULL;
}
