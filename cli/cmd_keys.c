/* cli/cmd_keys.c - troupe keys: certificates for actors on tcp. */
#include <czmq.h>
#include <string.h>

#include "certificates.h"
#include "cli.h"

typedef struct {
    config_options_t config;
    const char *dir;
} keys_arguments_t;

static error_t parse(int key, char *value, struct argp_state *state)
{
    keys_arguments_t *self = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &self->config;
        return 0;
    case ARGP_KEY_ARG:
        if (self->dir) argp_error(state, "one DIR");
        self->dir = value;
        return 0;
    case ARGP_KEY_END:
        if (!self->dir) argp_error(state, "a DIR is needed: where the certificates go");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int cmd_keys(int count, char **arguments)
{
    static const struct argp_child children[] = { { &config_argp, 0, NULL, 0 }, { 0 } };
    static const struct argp argp = {
        .parser = parse,
        .children = children,
        .args_doc = "DIR",
        .doc =
            "Make a CURVE certificate for every actor of the configuration, and one for clients, "
            "in DIR (mode 0700).\v"
            "Certificates that exist are kept. Copy DIR to every host of the company and name it "
            "in wire.keys. On each host "
            "only the _secret files of its own actors are needed, besides everybody's public ones.",
    };
    keys_arguments_t given = { .dir = NULL };
    uint32_t made = 0;
    parse_options(&argp, count, arguments, &given);
    const config_loaded_t *loaded = config_open(&given.config, false);
    if (!loaded) return EXIT_CONFIGURATION;
    if (!zsys_has_curve()) {
        complain("this build of libzmq has no CURVE");
        return EXIT_FAILED;
    }
    if (!certificates_make(&loaded->config, given.dir, &made)) return EXIT_FAILED;
    printf("%u certificates made in %s\n", made, given.dir);
    return EXIT_OK;
}
