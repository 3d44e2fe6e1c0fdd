/* runtime/zmq/send.c - messages to one peer wait for the end of the turn and leave as one frame;
 * what a full link refuses comes back as an error. */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include "state.h"

enum { MESSAGE_HEAD = offsetof(msg_t, hello) };

/* One for each that a message may wait for: one that takes nothing holds no other's. */
static uint32_t batch_count(const actor_t *world)
{
    return world->peer_count + (world->clients ? CLIENTS_MAX : 0);
}

/* Mapped, not allocated: a batch that was never used costs no memory. */
static void *map_lazily(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

err_t batches_open(actor_t *world)
{
    uint32_t count = batch_count(world);
    world->batch_memory_bytes = count * sizeof(batch_t);
    if (count == 0) return ERR_OK;
    world->batch_memory = map_lazily(world->batch_memory_bytes);
    world->large = map_lazily(LARGE_BYTES);
    if (!world->batch_memory || !world->large) return ERR_NO_SPACE;
    return ERR_OK;
}

void batches_close(actor_t *world)
{
    if (world->batch_memory) (void)munmap(world->batch_memory, world->batch_memory_bytes);
    if (world->large) (void)munmap(world->large, LARGE_BYTES);
    world->batch_memory = world->large = NULL;
    world->batch_free = NULL;
}

static void batch_take(actor_t *world, peer_t *peer)
{
    if (peer->batch) return;
    batch_t *batch = world->batch_free;
    if (batch)
        world->batch_free = batch->next;
    else
        batch = (batch_t *)world->batch_memory + world->batches_used++;
    invariant(world->batches_used <= batch_count(world));
    batch->size = 0;
    batch->count = 0;
    peer->batch = batch;
    if (!peer->is_dirty) {
        peer->is_dirty = true;
        world->dirty[world->dirty_count++] = peer;
    }
}

/* The peer stays in the dirty list until the end of the turn; a batch is back at once. */
void peer_drop_batch(actor_t *world, peer_t *peer)
{
    if (!peer->batch) return;
    peer->batch->next = world->batch_free;
    world->batch_free = peer->batch;
    peer->batch = NULL;
    peer->stuck_us = 0;
}

/* ERR_OVERLOAD: the link is full.  ERR_LOST: nobody is at its other end. */
static err_t transmit(peer_t *peer, const void *bytes, size_t size)
{
    channel_t *channel = peer->channel;
    if (!channel->socket) return ERR_LOST;
    channel->may_read = true; /* a send may swallow the edge that ZMQ_FD had for us */
    if (peer->id_size &&
        zmq_send(channel->socket, peer->id, peer->id_size, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        return errno == EAGAIN ? ERR_OVERLOAD : ERR_LOST;
    if (zmq_send(channel->socket, bytes, size, ZMQ_DONTWAIT) < 0)
        return errno == EAGAIN ? ERR_OVERLOAD : ERR_LOST;
    return ERR_OK;
}

static err_t flush(actor_t *world, peer_t *peer)
{
    if (!peer->batch) return ERR_OK;
    err_t error = transmit(peer, peer->batch->bytes, peer->batch->size);
    if (error == ERR_OVERLOAD) {
        if (peer->stuck_us == 0) peer->stuck_us = actor_now_us(world);
        return error;
    }
    if (error == ERR_OK) peer->sent_us = actor_now_us(world);
    peer_drop_batch(world, peer);
    if (error) peer_lose(world, peer);
    return error;
}

void batches_flush(actor_t *world)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < world->dirty_count; i++) {
        peer_t *peer = world->dirty[i];
        (void)flush(world, peer);
        if (peer->batch)
            world->dirty[kept++] = peer;
        else
            peer->is_dirty = false;
    }
    world->dirty_count = kept;
}

/* A message larger than a batch (a status page, a long prompt) is a frame of its own. */
static err_t send_large(actor_t *world, peer_t *peer)
{
    err_t error = flush(world, peer);
    if (error) return error;
    size_t size = msg_encode(&world->outgoing, world->large, LARGE_BYTES);
    invariant(size > 0);
    error = transmit(peer, world->large, size);
    (void)madvise(world->large, LARGE_BYTES,
                  MADV_DONTNEED); /* rare; the pages would stay resident */
    if (error == ERR_LOST) peer_lose(world, peer);
    if (error == ERR_OK) peer->sent_us = actor_now_us(world);
    return error;
}

/* Behind the others of this turn, or, where the batch is full, behind what then begins a new one.
 */
static err_t append(actor_t *world, peer_t *peer)
{
    for (int attempt = 0; attempt < 2; attempt++) {
        batch_take(world, peer);
        batch_t *batch = peer->batch;
        size_t size =
            msg_encode(&world->outgoing, batch->bytes + batch->size, BATCH_BYTES - batch->size);
        if (size > 0) {
            batch->size += size;
            batch->count++;
            return ERR_OK;
        }
        if (batch->count == 0) {
            peer_drop_batch(world, peer);
            break;
        }
        err_t error = flush(world, peer);
        if (error) return error;
    }
    return send_large(world, peer);
}

/* Clients acknowledge nothing; what bounds them is their batch and ZeroMQ's marks. */
static bool is_full(const peer_t *peer)
{
    if (peer->address.role == ROLE_client) return peer->batch && peer->batch->count >= peer->mark;
    return peer->sequence - peer->acknowledged >= peer->mark;
}

err_t peer_queue(actor_t *world, peer_t *peer, const msg_t *m)
{
    bool is_counted = m->type != MSG_hello && m->type != MSG_heartbeat;
    if (is_counted && is_full(peer)) return ERR_OVERLOAD;
    /* Only what this type uses: the union is as large as its largest member. */
    memcpy(&world->outgoing, m, MESSAGE_HEAD + msg_descs[m->type].size);
    header_t *header = &world->outgoing.header;
    header->epoch = world->epoch;
    header->to_epoch = peer->epoch;
    header->sequence = peer->sequence + is_counted;
    header->sent_us = actor_now_us(world);
    err_t error = append(world, peer);
    if (error) return error;
    peer->sequence += is_counted;
    if (is_counted) peer->active_us = header->sent_us;
    metrics_count(&world->metrics, METRIC_messages_sent_total, 1);
    return ERR_OK;
}

static err_t send_checked(actor_t *world, address_t to, const msg_t *m)
{
    const peer_t *known = peer_find(world, to);
    if (!known) return to.role == ROLE_client && world->clients ? ERR_LOST : ERR_INVALID;
    if (known->epoch == 0 || known->is_lost) return ERR_LOST;
    return peer_queue(world, peer_find(world, to), m);
}

err_t actor_send(actor_t *world, address_t to, const msg_t *m)
{
    invariant(m->type < MSG_COUNT && msg_descs[m->type].tag < TAG_LOCAL);
    err_t error = send_checked(world, to, m);
    if (error) metrics_count(&world->metrics, METRIC_sends_refused_total, 1);
    return error;
}
