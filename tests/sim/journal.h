/* tests/sim/journal.h - what each client asked for and what it got: the test's own books. */
#ifndef TESTS_SIM_JOURNAL_H
#define TESTS_SIM_JOURNAL_H

#include "../../runtime/sim/sim.h"

enum { JOURNAL_MAX = 512, PROMPT_MAX = 768, ANSWER_MAX = 96 };

typedef enum {
    CLIENT_NEW,       /* not sent yet */
    CLIENT_WAITING,   /* accepted */
    CLIENT_FINISHED,  /* ended well */
    CLIENT_FAILED,    /* ended with an error after it was accepted */
    CLIENT_CANCELLED, /* ended as the client wished */
    CLIENT_REJECTED,  /* refused before it was accepted */
    CLIENT_CUT,       /* its ingress died */
} client_state_t;

typedef struct {
    uint32_t number;
    client_state_t state;
    uint32_t ingress;
    uint32_t prompt[PROMPT_MAX];
    uint32_t prompt_count, max_tokens;
    sampling_t sampling;
    uint64_t asked_us, deadline_us; /* deadline: absolute */
    uint64_t cancel_us;             /* 0: never */
    bool is_http;                   /* asks over HTTP, not by messages */
    bool is_after_heal;             /* nothing may go wrong with it */
    uint32_t answer_count;
    uint64_t ended_us;
    finish_t reason;
    err_t error;
    uint32_t attempts;
} client_t;

typedef struct {
    sim_t *sim;
    uint32_t vocab, end_token;
    uint64_t
        paused_us[64]; /* how long each ingress stood still: nobody can end a request meanwhile */
    uint32_t count;
    client_t clients[JOURNAL_MAX];
} journal_t;

/* The next token of a client's stream.  Fails the sim when it is not the one that the oracle
 * demands. */
void journal_token(journal_t *self, client_t *client, uint32_t index, uint32_t token);

/* What comes again must be the same. */
void journal_duplicate(journal_t *self, const client_t *client, uint32_t index, uint32_t token);

/* The one terminal event. */
void journal_end(journal_t *self, client_t *client, client_state_t state, err_t error);
void journal_finish(journal_t *self, client_t *client, finish_t reason);

/* The company's own count of the answer. */
void journal_usage(journal_t *self, const client_t *client, uint32_t tokens);

/* Nobody waits any more. */
bool journal_is_over(void *journal);

/* How many clients ended like this. */
uint32_t journal_tally(const journal_t *self, client_state_t state);

#endif
