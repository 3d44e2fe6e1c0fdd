/* tests/sim/journal.c - I1 to I5 as the clients see them. */
#include "journal.h"

#include "../../runtime/engine/stub.h"

static uint32_t oracle(const journal_t *self, const client_t *client, uint32_t index)
{
    return engine_stub_token(self->vocab, self->end_token, &client->sampling, index);
}

void journal_token(journal_t *self, client_t *client, uint32_t index, uint32_t token)
{
    if (client->state != CLIENT_WAITING)
        sim_fail(self->sim, "I4", "client %u got token %u after its end", client->number, index);
    if (index != client->answer_count)
        sim_fail(self->sim, "I2", "client %u got index %u, not %u", client->number, index,
                 client->answer_count);
    if (token != oracle(self, client, index))
        sim_fail(self->sim, "I3", "client %u got token %u at %u, not %u", client->number, token,
                 index, oracle(self, client, index));
    if (index >= client->max_tokens)
        sim_fail(self->sim, "I3", "client %u got more than %u tokens", client->number,
                 client->max_tokens);
    client->answer_count++;
}

void journal_duplicate(journal_t *self, const client_t *client, uint32_t index, uint32_t token)
{
    if (token != oracle(self, client, index))
        sim_fail(self->sim, "I3", "client %u was sent token %u again as %u", client->number, index,
                 token);
}

static bool is_allowed(err_t error)
{
    return error > ERR_OK && error < ERRORS_MAX && error_descs[error].http_status >= 400;
}

/* A second, the time that its ingress stood still, and, where the end travels as a message, the
 * time in which a stuck connection is given up. */
static uint64_t grace_us(const journal_t *self, const client_t *client)
{
    return 1000000 + self->paused_us[client->ingress] + (client->is_http ? 0 : 1500000);
}

void journal_end(journal_t *self, client_t *client, client_state_t state, err_t error)
{
    bool is_open =
        client->state == CLIENT_WAITING ||
        (client->state == CLIENT_NEW && (state == CLIENT_REJECTED || state == CLIENT_CUT));
    if (!is_open)
        sim_fail(self->sim, "I1", "client %u ended twice: as %d and as %d", client->number,
                 (int)client->state, (int)state);
    if ((state == CLIENT_FAILED || state == CLIENT_REJECTED) && !is_allowed(error))
        sim_fail(self->sim, "I5", "client %u was told error %d", client->number, (int)error);
    client->state = state;
    client->error = error;
    client->ended_us = sim_now_us(self->sim);
    sim_note(self->sim, "client %u ends as %d, error %s, after %u tokens and %u attempts",
             client->number, (int)state, error_descs[error].name, client->answer_count,
             client->attempts);
    if (client->ended_us > client->deadline_us + grace_us(self, client))
        sim_fail(self->sim, "I1", "client %u ended %llu us after its deadline", client->number,
                 (unsigned long long)(client->ended_us - client->deadline_us));
    if (client->is_after_heal && state != CLIENT_CANCELLED)
        sim_fail(self->sim, "I11", "client %u of the healed company ended with %s", client->number,
                 error_descs[error].name);
}

void journal_finish(journal_t *self, client_t *client, finish_t reason)
{
    bool is_full = client->answer_count == client->max_tokens;
    bool has_ended = client->answer_count > 0 &&
                     oracle(self, client, client->answer_count - 1) == self->end_token;
    bool will_end = !is_full && oracle(self, client, client->answer_count) == self->end_token;
    bool is_right = reason == FINISH_LENGTH ? is_full && !has_ended
                                            : reason == FINISH_STOP && (has_ended || will_end);
    if (!is_right)
        sim_fail(self->sim, "I3", "client %u finished for reason %d after %u of %u tokens",
                 client->number, (int)reason, client->answer_count, client->max_tokens);
    client->reason = reason;
    bool is_late = client->is_after_heal;
    client->is_after_heal = false; /* this end is the good one */
    journal_end(self, client, CLIENT_FINISHED, ERR_OK);
    client->is_after_heal = is_late;
}

void journal_usage(journal_t *self, const client_t *client, uint32_t tokens)
{
    if (tokens != client->answer_count)
        sim_fail(self->sim, "I2", "client %u got %u tokens and is told of %u", client->number,
                 client->answer_count, tokens);
}

bool journal_is_over(void *context)
{
    const journal_t *self = context;
    for (uint32_t i = 0; i < self->count; i++)
        if (self->clients[i].state == CLIENT_NEW || self->clients[i].state == CLIENT_WAITING)
            return false;
    return true;
}

uint32_t journal_tally(const journal_t *self, client_state_t state)
{
    uint32_t tally = 0;
    for (uint32_t i = 0; i < self->count; i++) tally += self->clients[i].state == state;
    return tally;
}
