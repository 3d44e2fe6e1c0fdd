/* runtime/kv/transfer.c - the table of legal moves. */
#include "transfer.h"

#include "../invariant.h"

#define TO(name) (1u << TRANSFER_##name)
static const struct {
    const char *name;
    uint32_t next;
} states[TRANSFER_STATES] = {
/* clang-format off */
#define STATE(name, moves) [TRANSFER_##name] = { #name, moves },
#include "transfer_states.def"
#undef STATE
    /* clang-format on */
};

void transfer_move(transfer_t *self, transfer_state_t next)
{
    invariant(next < TRANSFER_STATES);
    invariant(states[self->state].next & (1u << next));
    self->state = next;
}

const char *transfer_state_name(transfer_state_t state)
{
    invariant(state < TRANSFER_STATES);
    return states[state].name;
}
