/* tests/sim/fake_ingress.h - an ingress without HTTP, for tests of everything behind it. */
#ifndef TESTS_SIM_FAKE_INGRESS_H
#define TESTS_SIM_FAKE_INGRESS_H

#include "journal.h"

extern const actor_class_t fake_ingress_class;

/* After sim_add: whose books it keeps. */
void fake_ingress_attach(void *state, journal_t *journal);

/* A client asks, or goes away.  Call it from outside of handlers, with sim_actor's world. */
void fake_ingress_ask(void *state, actor_t *world, client_t *client);
void fake_ingress_cancel(void *state, actor_t *world, client_t *client);

#endif
