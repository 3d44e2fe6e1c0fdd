/* tests/sim/message_client.h - the clients of a real ingress, as one actor that speaks messages. */
#ifndef TESTS_SIM_MESSAGE_CLIENT_H
#define TESTS_SIM_MESSAGE_CLIENT_H

#include "journal.h"

extern const actor_class_t message_client_class;

void message_client_attach(void *state, journal_t *journal);

/* Ask client->ingress, or go away; from outside of handlers, with sim_actor's world. */
void message_client_ask(void *state, actor_t *world, client_t *client);
void message_client_cancel(void *state, actor_t *world, const client_t *client);

#endif
