/* cli/cmd_chat.c - troupe chat: talk to the model. */
#include <cjson/cJSON.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "company.h"
#include "generate.h"
#include "input.h"

typedef struct {
    config_options_t config;
    generate_options_t generate;
    const char *system;
    const char *message; /* one question; NULL: a conversation */
} chat_arguments_t;

static const struct argp_option options[] = {
    { "system", 'S', "TEXT", 0, "system message at the beginning", 0 },
    { 0 },
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    chat_arguments_t *self = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &self->config;
        state->child_inputs[1] = &self->generate;
        return 0;
    case 'S':
        self->system = value;
        return 0;
    case ARGP_KEY_ARG:
        if (self->message) argp_error(state, "one MESSAGE; put it in quotes");
        self->message = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Ctrl-C ends the answer, not the conversation; at the prompt it ends that too. */
static volatile sig_atomic_t is_interrupted;
static void on_interrupt(int number)
{
    (void)number;
    is_interrupted = 1;
}

static void add_message(cJSON *messages, const char *role, const char *content)
{
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", role);
    cJSON_AddStringToObject(message, "content", content);
    cJSON_AddItemToArray(messages, message);
}

/* Ask with all that was said so far; the answer becomes part of it, a question without one does
 * not. */
static int ask(client_t *ingress, const generate_options_t *given, cJSON *messages,
               const char *question)
{
    generate_answer_t answer;
    add_message(messages, "user", question);
    char *json = cJSON_PrintUnformatted(messages);
    is_interrupted = 0;
    generate_request_t request = { .kind = CONTENT_CHAT,
                                   .content = json,
                                   .content_size = strlen(json),
                                   .is_cancelled = &is_interrupted };
    int code = generate(ingress, given, &request, &answer);
    if (code == EXIT_OK || answer.has_printed) putchar('\n');
    char *text = code == EXIT_OK ? strndup(answer.text ? answer.text : "", answer.size) : NULL;
    if (text)
        add_message(messages, "assistant", text);
    else
        cJSON_DeleteItemFromArray(messages, cJSON_GetArraySize(messages) - 1);
    free(text);
    free(json);
    generate_free(&answer);
    return code;
}

static void prompt(void)
{
    if (!is_terminal(stdin)) return;
    printf("%s> %s", style(stdout, STYLE_BOLD), style(stdout, STYLE_PLAIN));
    fflush(stdout);
}

/* A line as a C string; false: it is none, and standard error has said why. */
static bool is_question(const char *line, size_t size)
{
    if (strlen(line) == size) return input_is_text("the message", line, size);
    complain("the message holds a NUL character at position %zu", strlen(line));
    return false;
}

/* Lines until the end of input.  Returns the code of the last answer. */
static int converse(client_t *ingress, const generate_options_t *given, cJSON *messages)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t size;
    int code = EXIT_OK;
    if (is_terminal(stdin))
        puts("Ctrl-C ends an answer, Ctrl-D the conversation; /new begins another.");
    for (prompt(); (size = getline(&line, &cap, stdin)) > 0; prompt()) {
        if (line[size - 1] == '\n') line[--size] = 0;
        if (!is_question(line, (size_t)size)) {
            code = EXIT_FAILED;
        } else if (strcmp(line, "/new") == 0) {
            int first =
                cJSON_GetArraySize(messages) > 0 &&
                strcmp(cJSON_GetObjectItem(messages->child, "role")->valuestring, "system") == 0;
            while (cJSON_GetArraySize(messages) > first) cJSON_DeleteItemFromArray(messages, first);
        } else if (*line) {
            code = ask(ingress, given, messages, line);
            if (code == EXIT_UNREACHABLE) break;
        }
    }
    if (ferror(stdin) && errno != EINTR) {
        complain("standard input: %s", strerror(errno));
        code = EXIT_FAILED;
    }
    free(line);
    return code;
}

static bool are_texts(const chat_arguments_t *given)
{
    const char *system = given->system ? given->system : "";
    const char *message = given->message ? given->message : "";
    return input_is_text("--system", system, strlen(system)) &&
           input_is_text("the message", message, strlen(message));
}

static int talk(const chat_arguments_t *given, const config_t *config)
{
    client_t *ingress = client_new(config, (address_t){ ROLE_ingress, 0 });
    if (!ingress) return EXIT_FAILED;
    cJSON *messages = cJSON_CreateArray();
    struct sigaction action = {
        .sa_handler = on_interrupt
    }; /* no SA_RESTART: at the prompt it ends getline */
    sigaction(SIGINT, &action, NULL);
    if (given->system) add_message(messages, "system", given->system);
    int code = given->message ? ask(ingress, &given->generate, messages, given->message)
                              : converse(ingress, &given->generate, messages);
    cJSON_Delete(messages);
    client_destroy(&ingress);
    return code;
}

int cmd_chat(int count, char **arguments)
{
    static const struct argp_child children[] = { { &config_argp, 0, NULL, 0 },
                                                  { &generate_argp, 0, NULL, 0 },
                                                  { 0 } };
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = children,
        .args_doc = "[MESSAGE]",
        .doc = "Talk to the model; with a MESSAGE, ask that one and end. Its reasoning is printed "
               "dimmed.\v"
               "Example: troupe chat 'What is 946 - 23?'",
    };
    chat_arguments_t given = { .system = NULL };
    generate_defaults(&given.generate);
    parse_options(&argp, count, arguments, &given);
    if (!are_texts(&given)) return EXIT_FAILED;
    const config_loaded_t *loaded = config_open(&given.config, true);
    if (!loaded) return EXIT_CONFIGURATION;
    if (!company_is_running(&loaded->config) && loaded->config.wire.carrier == 0) {
        complain("no company runs here; `troupe up` starts one");
        return EXIT_UNREACHABLE;
    }
    return talk(&given, &loaded->config);
}
