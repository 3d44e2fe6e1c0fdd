/* cli/cmd_config.c - troupe config check | show. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef struct {
    config_options_t config;
    const char *action;
} config_arguments_t;

static error_t parse(int key, char *value, struct argp_state *state)
{
    config_arguments_t *self = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &self->config;
        return 0;
    case ARGP_KEY_ARG:
        if (!self->action)
            self->action = value;
        else if (!self->config.file)
            self->config.file = value;
        else
            argp_error(state, "one FILE at most");
        return 0;
    case ARGP_KEY_END:
        if (!self->action ||
            (strcmp(self->action, "check") != 0 && strcmp(self->action, "show") != 0))
            argp_error(state, "`check` or `show` is needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int show(const config_loaded_t *loaded)
{
    size_t size = config_show(loaded, NULL, 0);
    char *text = malloc(size + 1);
    if (!text) return EXIT_FAILED;
    config_show(loaded, text, size + 1);
    fputs(text, stdout);
    free(text);
    return EXIT_OK;
}

int cmd_config(int count, char **arguments)
{
    static const struct argp_child children[] = { { &config_argp, 0, NULL, 0 }, { 0 } };
    static const struct argp argp = {
        .parser = parse,
        .children = children,
        .args_doc = "check FILE\nshow [FILE]",
        .doc = "Check a configuration file, or show every key with its value, where the value "
               "comes from and what it means.\v"
               "What `show` prints is itself a configuration file. Exit code 78 when something is "
               "refused.",
    };
    config_arguments_t given = { .action = NULL };
    parse_options(&argp, count, arguments, &given);
    const config_loaded_t *loaded = config_open(&given.config, false);
    if (!loaded) return EXIT_CONFIGURATION;
    if (strcmp(given.action, "show") == 0) return show(loaded);
    printf("%s is good\n", given.config.file ? given.config.file : "the default configuration");
    return EXIT_OK;
}
