/* runtime/zmq/ports.h - what the ports of one actor know of each other. */
#ifndef RUNTIME_ZMQ_PORTS_H
#define RUNTIME_ZMQ_PORTS_H

#include "../engine/core.h"
#include "state.h"

/* The engine that the configuration asks for. */
const engine_class_t *world_engine_class(const config_t *config);

/* The actor's own pool; it must be open. */
typedef struct {
    void *base;
    uint32_t blocks;
    size_t block_bytes;
} world_pool_t;
world_pool_t world_pool(const actor_t *world);

#endif
