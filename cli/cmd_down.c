/* cli/cmd_down.c - troupe down: stop the company. */
#include <unistd.h>

#include "cli.h"
#include "company.h"

typedef struct {
    config_options_t config;
    uint32_t drain_seconds;
} down_arguments_t;

enum { DRAIN_SECONDS = 10, DRAIN_SECONDS_MAX = 600, END_SECONDS = 45 };

static const struct argp_option options[] = {
    { "drain", 'd', "SECONDS", 0, "how long running requests may take to finish (default: 10)", 0 },
    { 0 },
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    down_arguments_t *self = state->input;
    if (key == ARGP_KEY_INIT)
        state->child_inputs[0] = &self->config;
    else if (key == 'd')
        self->drain_seconds =
            (uint32_t)option_number("--drain", value, 0, DRAIN_SECONDS_MAX, state);
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static bool send_stop(const config_t *config, uint32_t drain_seconds)
{
    static msg_t m;
    client_t *director = client_new(config, (address_t){ ROLE_director, 0 });
    if (!director) return false;
    cJSON *status = company_status(director, 3000); /* it is there: what is sent now arrives */
    bool is_there = status != NULL;
    cJSON_Delete(status);
    msg_init(&m, MSG_stop);
    m.stop.drain_ms = drain_seconds * 1000;
    if (is_there) is_there = client_send(director, &m) == ERR_OK;
    client_destroy(&director);
    return is_there;
}

int cmd_down(int count, char **arguments)
{
    static const struct argp_child children[] = { { &config_argp, 0, NULL, 0 }, { 0 } };
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = children,
        .doc = "Stop the company that runs on this machine: running requests are finished first."
    };
    down_arguments_t given = { .drain_seconds = DRAIN_SECONDS };
    parse_options(&argp, count, arguments, &given);
    const config_loaded_t *loaded = config_open(&given.config, true);
    if (!loaded) return EXIT_CONFIGURATION;
    if (!send_stop(&loaded->config, given.drain_seconds))
        return company_unreachable(&loaded->config);
    uint64_t patience_us = (given.drain_seconds + END_SECONDS) * 1000000ull, start_us = now_us();
    while (company_is_running(&loaded->config) && now_us() - start_us < patience_us) {
        progress_show("stopping", now_us() - start_us, patience_us);
        usleep(50 * 1000);
    }
    progress_clear();
    if (company_is_running(&loaded->config)) {
        complain("it still runs after %u s", given.drain_seconds + END_SECONDS);
        return EXIT_FAILED;
    }
    puts("stopped");
    return EXIT_OK;
}
