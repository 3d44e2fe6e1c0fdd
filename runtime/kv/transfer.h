/* runtime/kv/transfer.h - the states of a KV transfer and the only way to move between them. */
#ifndef RUNTIME_KV_TRANSFER_H
#define RUNTIME_KV_TRANSFER_H

#include <stdint.h>

typedef enum {
#define STATE(name, next) TRANSFER_##name,
#include "transfer_states.def"
#undef STATE
    TRANSFER_STATES
} transfer_state_t;

typedef struct {
    transfer_state_t state;
} transfer_t;

/* A move that transfer_states.def does not list is our bug. */
void transfer_move(transfer_t *self, transfer_state_t next);

const char *transfer_state_name(transfer_state_t state);

#endif
