/* cli/generate.c - one request over the ZeroMQ client link, streamed to the terminal. */
#include "generate.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SILENCE_US = 120 * 1000000, CANCEL_US = 5 * 1000000, LOOK_MS = 200 };

/* ---- options ---- */

/* What JSON can say exactly: the HTTP API can repeat what was said here. */
static const uint64_t SEED_MAX = (uint64_t)1 << 53;

enum { KEY_TOP_P = 512, KEY_SEED, KEY_KEY, KEY_HIDE };
static const struct argp_option options[] = {
    { "max-tokens", 'n', "N", 0, "tokens to generate at most (default: as many as fit)", 10 },
    { "temperature", 'T', "T", 0, "0 always takes the likeliest token (default: 0)", 10 },
    { "top-p", KEY_TOP_P, "P", 0, "only the likeliest tokens that together reach P (default: 1)",
      10 },
    { "seed", KEY_SEED, "N", 0, "same seed, same text (default: random)", 10 },
    { "key", KEY_KEY, "KEY", 0, "API key, where the server asks for one (default: $TROUPE_API_KEY)",
      10 },
    { "hide-thinking", KEY_HIDE, NULL, 0, "do not print the reasoning", 10 },
    { 0 },
};

static double real_of(const char *text, double least, double most, struct argp_state *state)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most))
        argp_error(state, "\"%s\" is no number from %g to %g", text, least, most);
    return value;
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    generate_options_t *self = state->input;
    if (key == 'n')
        self->max_tokens = (uint32_t)option_number("--max-tokens", value, 1, CONTEXT_MAX, state);
    else if (key == 'T')
        self->sampling.temperature = (float)real_of(value, 0, 2, state);
    else if (key == KEY_TOP_P)
        self->sampling.top_p = (float)real_of(value, 0, 1, state);
    else if (key == KEY_KEY)
        self->key = value;
    else if (key == KEY_HIDE)
        self->is_thinking_hidden = true;
    else if (key == KEY_SEED) {
        self->sampling.seed = option_number("--seed", value, 0, SEED_MAX, state);
        self->has_seed = true;
    } else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

const struct argp generate_argp = { .options = options, .parser = parse };

void generate_defaults(generate_options_t *self)
{
    const char *key = getenv("TROUPE_API_KEY");
    *self = (generate_options_t){ .sampling = sampling_default, .key = key ? key : "" };
    self->sampling.temperature = 0;
}

/* ---- the request ---- */

typedef struct {
    const generate_options_t *options;
    generate_answer_t *answer;
    request_id_t request;
    bool is_reasoning; /* what was printed last */
    bool has_answer;
    bool has_gap; /* what the answer begins with is no part of it */
} stream_t;

static err_t submit(client_t *ingress, stream_t *stream, const generate_request_t *request)
{
    static msg_t m;
    if (request->content_size > CONTENT_MAX) return ERR_TOO_LARGE;
    msg_init(&m, MSG_client_submit);
    m.header.request = stream->request;
    m.header.attempt = 1;
    snprintf(m.client_submit.key, sizeof m.client_submit.key, "%s", stream->options->key);
    m.client_submit.kind = (uint32_t)request->kind;
    m.client_submit.max_tokens = stream->options->max_tokens;
    m.client_submit.sampling = stream->options->sampling;
    if (!stream->options->has_seed) m.client_submit.sampling.seed = stream->request.lo;
    m.client_submit.content = (bytes_t){ request->content, request->content_size };
    err_t error = client_greet(ingress);
    if (error) return error;
    return client_send(ingress, &m);
}

static void cancel(client_t *ingress, request_id_t request)
{
    static msg_t m;
    msg_init(&m, MSG_client_cancel);
    m.header.request = request;
    m.header.attempt = 1;
    if (client_send(ingress, &m) != ERR_OK)
        complain("the link to ingress is full; the request runs on");
}

static void keep(generate_answer_t *answer, bytes_t text)
{
    if (answer->size + text.size > answer->cap) {
        size_t cap = 2 * (answer->size + text.size);
        char *larger = realloc(answer->text, cap);
        if (!larger) return;
        answer->text = larger;
        answer->cap = cap;
    }
    if (text.size) memcpy(answer->text + answer->size, text.data, text.size);
    answer->size += text.size;
}

static void print_part(stream_t *stream, bytes_t part, bool is_reasoning)
{
    const char *at = part.data, *end = at + part.size;
    /* Models put empty lines between reasoning and answer; people need one line break.  Those that
     * continue a text belong to it. */
    if (is_reasoning && at < end) stream->has_gap = true;
    if (!is_reasoning && stream->has_gap && !stream->has_answer)
        while (at < end && *at == '\n') at++;
    if (at == end || (is_reasoning && stream->options->is_thinking_hidden)) return;
    stream->has_answer |= !is_reasoning;
    if (stream->answer->has_printed && stream->is_reasoning && !is_reasoning) fputs("\n", stdout);
    fputs(style(stdout, is_reasoning ? STYLE_DIM : STYLE_PLAIN), stdout);
    fwrite(at, 1, (size_t)(end - at), stdout);
    if (is_reasoning) fputs(style(stdout, STYLE_PLAIN), stdout);
    fflush(stdout);
    stream->is_reasoning = is_reasoning;
    stream->answer->has_printed = true;
}

static int fail(const msg_client_failed_t *failed)
{
    complain("%s%s%s%s", failed->message, failed->param[0] ? " (field " : "", failed->param,
             failed->param[0] ? ")" : "");
    if (failed->is_retry_safe && failed->error != ERR_CANCELLED)
        complain("trying again may succeed");
    return EXIT_FAILED;
}

static int fail_lost(void)
{
    complain("ingress was started anew while it held the request");
    complain("trying again may succeed");
    return EXIT_FAILED;
}

/* Returns an exit code, or -1: go on. */
static int take(stream_t *stream, const msg_t *m)
{
    if (!request_id_equal(m->header.request, stream->request)) return -1;
    switch (m->type) {
    case MSG_client_tokens:
        print_part(stream, m->client_tokens.reasoning, true);
        print_part(stream, m->client_tokens.text, false);
        keep(stream->answer, m->client_tokens.text);
        return -1;
    case MSG_client_finished:
        stream->answer->finished = m->client_finished;
        return EXIT_OK;
    case MSG_client_failed:
        return fail(&m->client_failed);
    default:
        return -1;
    }
}

int generate(client_t *ingress, const generate_options_t *given, const generate_request_t *request,
             generate_answer_t *answer)
{
    static msg_t m;
    stream_t stream = { .options = given,
                        .answer = answer,
                        .request = client_request_id(ingress),
                        .has_gap = request->kind == CONTENT_CHAT };
    *answer = (generate_answer_t){ .text = NULL };
    err_t error = submit(ingress, &stream, request);
    if (error) {
        complain("the request cannot be sent: %s", error_descs[error].doc);
        return error == ERR_TOO_LARGE ? EXIT_FAILED : EXIT_UNREACHABLE;
    }
    uint64_t cancelled_us = 0;
    while (cancelled_us ? now_us() - cancelled_us < CANCEL_US
                        : client_silence_us(ingress) < SILENCE_US) {
        if (request->is_cancelled && *request->is_cancelled && !cancelled_us) {
            cancelled_us = now_us(); /* who pressed Ctrl-C does not want to wait */
            cancel(ingress, stream.request);
        }
        error = client_receive(ingress, &m, LOOK_MS);
        if (error == ERR_LOST) return fail_lost();
        if (error) continue;
        int code = take(&stream, &m);
        if (code >= 0) return code;
    }
    if (!cancelled_us) cancel(ingress, stream.request);
    complain("nothing was heard of the request for %d s; is the company up? (`troupe status`)",
             (cancelled_us ? CANCEL_US : SILENCE_US) / 1000000);
    return EXIT_UNREACHABLE;
}

void generate_free(generate_answer_t *answer)
{
    free(answer->text);
    *answer = (generate_answer_t){ .text = NULL };
}
