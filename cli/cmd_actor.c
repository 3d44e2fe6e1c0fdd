/* cli/cmd_actor.c - troupe actor: one actor in this process; what the supervisor starts. */
#include <string.h>

#include "../runtime/world.h"
#include "cli.h"

typedef struct {
    config_options_t config;
    int role; /* -1: not given */
    uint32_t index;
    uint64_t epoch;
} actor_arguments_t;

static const struct argp_option options[] = {
    { "role", 'r', "ROLE", 0, "which actor: ingress, prefill_lb, ...", 0 },
    { "index", 'i', "N", 0, "its index within the role (default: 0)", 0 },
    { "epoch", 'e', "N", 0, "its life; larger than that of any life before (default: the clock)",
      0 },
    { 0 },
};

static int role_of(const char *name)
{
    for (int role = 0; role < ROLES_MAX; role++)
        if (strcmp(role_names[role], name) == 0 && actor_classes[role]) return role;
    return -1;
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    actor_arguments_t *self = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &self->config;
        return 0;
    case 'r':
        self->role = role_of(value);
        if (self->role < 0) argp_error(state, "there is no actor \"%s\"", value);
        return 0;
    case 'i':
        self->index = (uint32_t)option_number("--index", value, 0, INDEX_MAX, state);
        return 0;
    case 'e':
        self->epoch = option_number("--epoch", value, 0, UINT64_MAX, state);
        return 0;
    case ARGP_KEY_END:
        if (self->role < 0) argp_error(state, "--role is needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int cmd_actor(int count, char **arguments)
{
    static const struct argp_child children[] = { { &config_argp, 0, NULL, 0 }, { 0 } };
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = children,
        .doc = "Run one actor until it is told to stop. The supervisor of `troupe up` starts these."
    };
    actor_arguments_t given = { .role = -1 };
    world_why_t why = { "" };
    parse_options(&argp, count, arguments, &given);
    const config_loaded_t *loaded = config_open(&given.config, false);
    if (!loaded || !open_log(&loaded->config)) return EXIT_CONFIGURATION;
    world_options_t world = {
        .class = actor_classes[given.role],
        .index = given.index,
        .epoch = given.epoch,
        .config = &loaded->config,
        .config_file = given.config.file,
    };
    if (world_raise_descriptors(&loaded->config, false, &why) != ERR_OK) {
        complain("%s", why.text);
        return EXIT_CONFIGURATION;
    }
    if (!served_model_key(&loaded->config, &world.model_key)) return EXIT_CONFIGURATION;
    err_t error = world_run(&world);
    /* Its supervisor tells the reason, once. */
    if (error && !given.epoch)
        complain("%s.%u: %s", role_names[given.role], given.index, error_descs[error].doc);
    return error ? EXIT_FAILED : EXIT_OK;
}
