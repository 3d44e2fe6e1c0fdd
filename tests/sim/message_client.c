/* tests/sim/message_client.c - the clients of a real ingress, as one actor that speaks messages.
 *
 *   client --client_submit, client_cancel--> ingress --client_tokens, client_finished,
 * client_failed--> client
 */
#include "message_client.h"

#include <string.h>

typedef struct {
    journal_t *journal;
} speaker_t;

/* A request's name tells which client it is. */
enum { NAME = 0x51 };

void message_client_attach(void *state, journal_t *journal)
{
    ((speaker_t *)state)->journal = journal;
}

void message_client_ask(void *state, actor_t *world, client_t *client)
{
    speaker_t *self = state;
    msg_t m;
    msg_init(&m, MSG_client_submit);
    m.header = (header_t){ .request = { NAME, client->number }, .attempt = 1 };
    m.client_submit.kind = 1;
    m.client_submit.max_tokens = client->max_tokens;
    m.client_submit.deadline_us = client->deadline_us - actor_now_us(world);
    m.client_submit.sampling = client->sampling;
    m.client_submit.content = (bytes_t){ client->prompt, client->prompt_count * sizeof(uint32_t) };
    client->attempts = 1;
    err_t error = actor_send(world, (address_t){ ROLE_ingress, client->ingress }, &m);
    if (error == ERR_OK)
        client->state = CLIENT_WAITING;
    else
        journal_end(self->journal, client, CLIENT_REJECTED,
                    error == ERR_LOST ? ERR_UNAVAILABLE : error);
}

void message_client_cancel(void *state, actor_t *world, const client_t *client)
{
    msg_t m;
    msg_init(&m, MSG_client_cancel);
    m.header = (header_t){ .request = { NAME, client->number }, .attempt = 1 };
    (void)!actor_send(world, (address_t){ ROLE_ingress, client->ingress }, &m);
}

/* Whose message it is; NULL when its connection was cut before.  I4 is checked here. */
static client_t *owner(speaker_t *self, const msg_t *m)
{
    journal_t *journal = self->journal;
    if (m->header.request.hi != NAME || m->header.request.lo >= journal->count) {
        sim_fail(journal->sim, "I4", "%s for a request that nobody made", msg_descs[m->type].name);
        return NULL;
    }
    client_t *client = &journal->clients[m->header.request.lo];
    if (client->state == CLIENT_WAITING) return client;
    if (client->state != CLIENT_CUT)
        sim_fail(journal->sim, "I4", "client %u got %s after its end", client->number,
                 msg_descs[m->type].name);
    return NULL;
}

static void on_client_tokens(void *state, actor_t *world, const msg_t *m)
{
    speaker_t *self = state;
    client_t *client = owner(self, m);
    for (uint32_t i = 0; client && i < m->client_tokens.ids_count; i++)
        journal_token(self->journal, client, m->client_tokens.first_index + i,
                      m->client_tokens.ids[i]);
}

static void on_client_finished(void *state, actor_t *world, const msg_t *m)
{
    speaker_t *self = state;
    client_t *client = owner(self, m);
    if (!client) return;
    const msg_client_finished_t *finished = &m->client_finished;
    if (finished->prompt_tokens != client->prompt_count ||
        finished->cached_tokens > client->prompt_count)
        sim_fail(self->journal->sim, "I3",
                 "client %u is told of %u prompt tokens, %u of them cached", client->number,
                 finished->prompt_tokens, finished->cached_tokens);
    journal_usage(self->journal, client, finished->completion_tokens);
    journal_finish(self->journal, client, (finish_t)finished->reason);
}

static void on_client_failed(void *state, actor_t *world, const msg_t *m)
{
    speaker_t *self = state;
    client_t *client = owner(self, m);
    if (!client) return;
    err_t error = (err_t)m->client_failed.error;
    if (m->client_failed.is_retry_safe != (u32)error_descs[error].is_retry_safe)
        sim_fail(self->journal->sim, "I5", "client %u is told that a retry of %s is %s",
                 client->number, error_descs[error].name,
                 m->client_failed.is_retry_safe ? "safe" : "not safe");
    journal_end(self->journal, client, error == ERR_CANCELLED ? CLIENT_CANCELLED : CLIENT_FAILED,
                error);
}

static void on_peer_down(void *state, actor_t *world, const msg_t *m)
{
    journal_t *journal = ((speaker_t *)state)->journal;
    for (uint32_t i = 0; i < journal->count; i++) {
        client_t *client = &journal->clients[i];
        if (client->state == CLIENT_WAITING && !client->is_http &&
            client->ingress == m->peer_down.index && m->peer_down.role == ROLE_ingress)
            journal_end(journal, client, CLIENT_CUT, ERR_LOST);
    }
}

const actor_class_t message_client_class = { .name = "client",
                                             .role = ROLE_client,
                                             .state_size = sizeof(speaker_t),
                                             .on = { [MSG_client_tokens] = on_client_tokens,
                                                     [MSG_client_finished] = on_client_finished,
                                                     [MSG_client_failed] = on_client_failed,
                                                     [MSG_peer_down] = on_peer_down } };
