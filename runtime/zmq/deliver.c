/* runtime/zmq/deliver.c - how messages reach the actor: at once from links and ports, or queued by
 * those who may not call a handler. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

enum { MESSAGE_HEAD = offsetof(msg_t, hello) };

static void check(actor_t *world)
{
    if (!world->class->check) return;
    if (!world->is_check_always && ++world->handled < CHECK_EVERY) return;
    world->handled = 0;
    world->class->check(world->state);
}

void deliver(actor_t *world, const msg_t *m)
{
    actor_handler_fn *handler = world->class->on[m->type];
    if (!handler) {
        metrics_count(&world->metrics, METRIC_messages_unexpected_total, 1);
        return;
    }
    metrics_count(&world->metrics, METRIC_messages_received_total, 1);
    handler(world->state, world, m);
    check(world);
}

/* The one allocation after init.  A body may have http.body_bytes_max (8 MiB by default) on each of
 * http.connections_max connections, so room for the worst case would be gigabytes and a smaller one
 * would need a second queue in front of it; libevent's buffer, from which this is copied, is on the
 * heap as well.  What bounds both is the server, which reads little more of a connection while its
 * request is being answered; and a request lives here for one turn. */
void world_post(actor_t *world, const msg_t *m)
{
    const msg_desc_t *desc = &msg_descs[m->type];
    size_t extra = 0;
    for (size_t i = 0; i < desc->field_count; i++) {
        if (desc->fields[i].kind != KIND_BYTES) continue;
        bytes_t bytes;
        memcpy(&bytes, (const char *)m + desc->fields[i].offset, sizeof bytes);
        extra += bytes.size;
    }
    posted_t *posted = malloc(sizeof *posted + extra);
    invariant(posted != NULL);
    posted->next = NULL;
    memcpy(&posted->message, m, MESSAGE_HEAD + desc->size);
    uint8_t *place = posted->bytes;
    for (size_t i = 0; i < desc->field_count; i++) {
        if (desc->fields[i].kind != KIND_BYTES) continue;
        bytes_t bytes;
        char *field = (char *)&posted->message + desc->fields[i].offset;
        memcpy(&bytes, field, sizeof bytes);
        if (bytes.size) memcpy(place, bytes.data, bytes.size);
        bytes.data = place;
        place += bytes.size;
        memcpy(field, &bytes, sizeof bytes);
    }
    if (world->posted_last)
        world->posted_last->next = posted;
    else
        world->posted_first = posted;
    world->posted_last = posted;
}

static posted_t *posted_take(actor_t *world)
{
    posted_t *posted = world->posted_first;
    world->posted_first = posted->next;
    if (!posted->next) world->posted_last = NULL;
    return posted;
}

void posted_deliver(actor_t *world, uint32_t *budget)
{
    while (world->posted_first && *budget > 0) {
        posted_t *posted = posted_take(world);
        --*budget;
        posted->message.header.from = world->self;
        deliver(world, &posted->message);
        free(posted);
    }
}

void posted_drop(actor_t *world)
{
    while (world->posted_first) free(posted_take(world));
}
