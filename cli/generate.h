/* cli/generate.h - one request over the ZeroMQ client link, streamed to the terminal. */
#ifndef CLI_GENERATE_H
#define CLI_GENERATE_H

#include <signal.h>

#include "cli.h"
#include "client.h"

/* An argp child: --max-tokens, --temperature, --top-p, --seed, --key, --hide-thinking; its input is
 * a generate_options_t, set by generate_defaults before. */
typedef struct {
    sampling_t sampling;
    uint32_t max_tokens;
    const char *key; /* API key */
    bool is_thinking_hidden, has_seed;
} generate_options_t;
extern const struct argp generate_argp;
void generate_defaults(generate_options_t *self);

typedef enum { CONTENT_TEXT, CONTENT_IDS, CONTENT_CHAT } content_kind_t;

typedef struct {
    content_kind_t kind;
    const char *content;
    size_t content_size;
    const volatile sig_atomic_t *is_cancelled; /* set: stop this request; or NULL */
} generate_request_t;

/* What came back; text is the answer without reasoning.  generate_free in any case. */
typedef struct {
    char *text;
    size_t size, cap;
    bool has_printed; /* something, of answer or reasoning */
    msg_client_finished_t finished;
} generate_answer_t;

/* Submit, print what comes to standard output while it comes, until the end.  Returns an exit code;
 * why something failed is on standard error. */
int generate(client_t *ingress, const generate_options_t *options,
             const generate_request_t *request, generate_answer_t *answer);
void generate_free(generate_answer_t *answer);

#endif
