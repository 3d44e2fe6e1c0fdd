/* cli/cmd_complete.c - troupe complete: continue a text. */
#include <string.h>

#include "cli.h"
#include "company.h"
#include "generate.h"
#include "input.h"

typedef struct {
    config_options_t config;
    generate_options_t generate;
    const char *prompt;
} complete_arguments_t;

static error_t parse(int key, char *value, struct argp_state *state)
{
    complete_arguments_t *self = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &self->config;
        state->child_inputs[1] = &self->generate;
        return 0;
    case ARGP_KEY_ARG:
        if (self->prompt) argp_error(state, "one PROMPT; put it in quotes");
        self->prompt = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int complete(const complete_arguments_t *given, const config_t *config,
                    const generate_request_t *request)
{
    generate_answer_t answer = { .text = NULL };
    if (!company_is_running(config) && config->wire.carrier == 0) {
        complain("no company runs here; `troupe up` starts one");
        return EXIT_UNREACHABLE;
    }
    client_t *ingress = client_new(config, (address_t){ ROLE_ingress, 0 });
    if (!ingress) return EXIT_FAILED;
    int code = generate(ingress, &given->generate, request, &answer);
    if (code == EXIT_OK) putchar('\n');
    generate_free(&answer);
    client_destroy(&ingress);
    return code;
}

int cmd_complete(int count, char **arguments)
{
    static const struct argp_child children[] = { { &config_argp, 0, NULL, 0 },
                                                  { &generate_argp, 0, NULL, 0 },
                                                  { 0 } };
    static const struct argp argp = {
        .parser = parse,
        .children = children,
        .args_doc = "[PROMPT]",
        .doc = "Continue a text, given as PROMPT or on standard input.\vExample: troupe complete "
               "'One, two, three,' --max-tokens 20",
    };
    complete_arguments_t given = { .prompt = NULL };
    input_t input = { .text = NULL };
    generate_defaults(&given.generate);
    parse_options(&argp, count, arguments, &given);
    const config_loaded_t *loaded = config_open(&given.config, true);
    if (!loaded) return EXIT_CONFIGURATION;
    if (!given.prompt && !input_read(&input, stdin)) return EXIT_FAILED;
    generate_request_t request = { .kind = CONTENT_TEXT,
                                   .content = given.prompt ? given.prompt : input.text };
    request.content_size = given.prompt ? strlen(given.prompt) : input.size;
    bool is_text = input_is_text(given.prompt ? "PROMPT" : "standard input", request.content,
                                 request.content_size);
    int code = is_text ? complete(&given, &loaded->config, &request) : EXIT_FAILED;
    input_free(&input);
    return code;
}
