/* tests/sim/http_client.h - clients that stream completions over the simulated HTTP port. */
#ifndef TESTS_SIM_HTTP_CLIENT_H
#define TESTS_SIM_HTTP_CLIENT_H

#include "../../runtime/model/tokenizer.h"
#include "journal.h"

typedef struct {
    journal_t *journal;
    client_t *client;
    const tokenizer_t *tokenizer;
    uint64_t exchange;
    char body[16384];
    char events[8192]; /* not yet complete */
    size_t event_bytes;
    char text[ANSWER_MAX * 64];
    size_t text_bytes;
    bool has_finish;
    finish_t finish;
} http_client_t;

void http_client_ask(http_client_t *self);
void http_client_go_away(http_client_t *self);

#endif
