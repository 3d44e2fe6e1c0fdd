/* runtime/zmq/calls.c - what an actor may call, as far as it concerns no link and no port. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "../base/log.h"
#include "../process.h"
#include "state.h"

static uint64_t clock_us(clockid_t clock)
{
    struct timespec now;
    invariant(clock_gettime(clock, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

uint64_t actor_now_us(const actor_t *world)
{
    return clock_us(CLOCK_MONOTONIC);
}

uint64_t actor_wall_us(const actor_t *world)
{
    return clock_us(CLOCK_REALTIME);
}

address_t actor_self(const actor_t *world)
{
    return world->self;
}

uint64_t actor_epoch(const actor_t *world)
{
    return world->epoch;
}

uint64_t actor_peer_epoch(const actor_t *world, address_t peer)
{
    const peer_t *known = peer_find(world, peer);
    return known && !known->is_lost ? known->epoch : 0;
}

const config_t *actor_config(const actor_t *world)
{
    return world->config;
}

void *actor_alloc(actor_t *world, size_t count, size_t size)
{
    invariant(world->is_in_init);
    invariant(size == 0 || count <= SIZE_MAX / 2 / size);
    memory_t *memory = calloc(1, sizeof *memory + count * size);
    invariant(memory != NULL);
    memory->next = world->memory;
    world->memory = memory;
    return memory->data;
}

void actor_wake_at(actor_t *world, uint64_t at_us)
{
    world->alarm_us = at_us;
}

/* From the kernel, a handful at a time: request ids must not be guessed. */
uint64_t actor_random(actor_t *world)
{
    if (world->random_left == 0) {
        ssize_t size = getrandom(world->random, sizeof world->random, 0);
        invariant(size == (ssize_t)sizeof world->random);
        world->random_left = RANDOM_WORDS;
    }
    return world->random[--world->random_left];
}

void actor_log(actor_t *world, log_level_t level, const char *id, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    if (level == LOG_ERROR) {
        va_copy(again, args);
        (void)vsnprintf(world->why.text, sizeof world->why.text, format, again);
        va_end(again);
    }
    log_writev(world->self, level, id, format, args);
    va_end(args);
}

void actor_count(actor_t *world, metric_t counter, uint64_t by)
{
    metrics_count(&world->metrics, counter, by);
}

void actor_gauge(actor_t *world, metric_t gauge, double value)
{
    metrics_gauge(&world->metrics, gauge, value);
}

void actor_observe(actor_t *world, metric_t histogram, double value)
{
    metrics_observe(&world->metrics, histogram, value);
}

struct event_base *world_event_base(actor_t *world)
{
    return world->base;
}

void **world_http_slot(actor_t *world)
{
    return &world->ports[PORT_HTTP].state;
}

void world_http_hooks(actor_t *world, world_hooks_t hooks)
{
    world->ports[PORT_HTTP].hooks = hooks;
}
