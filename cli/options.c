/* cli/options.c - the configuration that a subcommand works with. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../runtime/base/log.h"
#include "../runtime/model/config.h"
#include "cli.h"
#include "company.h"

static const struct argp_option options[] = {
    { "config", 'c', "FILE", 0,
      "configuration file (YAML); `troupe config show` tells what can be in it", 0 },
    { "set", 's', "SECTION.KEY=VALUE", 0,
      "set one key, over the file; may be given again; a list is one,two or [\"one\", \"two\"]",
      0 },
    { 0 },
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    config_options_t *self = state->input;
    if (key == 'c') {
        self->file = value;
        return 0;
    }
    if (key != 's') return ARGP_ERR_UNKNOWN;
    if (self->set_count == SETS_MAX) argp_error(state, "at most %d --set are possible", SETS_MAX);
    self->sets[self->set_count++] = value;
    return 0;
}

const struct argp config_argp = { .options = options, .parser = parse_option };

void parse_options(const struct argp *argp, int count, char **arguments, void *input)
{
    argp_err_exit_status = EXIT_USAGE;
    argp_parse(argp, count, arguments, 0, NULL, input);
}

uint64_t option_number(const char *option, const char *value, uint64_t least, uint64_t most,
                       const struct argp_state *state)
{
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    /* strtoull would take spaces and signs, and wrap -1 round. */
    if (*value < '0' || *value > '9' || *end || errno || number < least || number > most)
        argp_error(state, "%s must be a whole number from %llu to %llu, not \"%s\"", option,
                   (unsigned long long)least, (unsigned long long)most, value);
    return number;
}

const char *embedded_model(void)
{
    static const char *const places[] = { "../models/tiny", "../../models/tiny",
                                          "../share/troupe/models/tiny" };
    static char found[4096];
    const char *here = "models/tiny";
    if (access("models/tiny/config.json", R_OK) == 0) return here;
    char program[2048], config[4096];
    ssize_t size = readlink("/proc/self/exe", program, sizeof program - 1);
    if (size <= 0) return here;
    program[size] = 0;
    *strrchr(program, '/') = 0;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        snprintf(found, sizeof found, "%s/%s", program, places[i]);
        snprintf(config, sizeof config, "%.4000s/config.json", found);
        if (access(config, R_OK) == 0) return found;
    }
    return here;
}

/* What --set says of the directory counts before the file in that directory can be found. */
static err_t apply_sets(config_loaded_t *loaded, const config_options_t *given)
{
    err_t error = ERR_OK;
    for (uint32_t i = 0; !error && i < given->set_count; i++)
        error = config_set(loaded, given->sets[i]);
    return error;
}

config_loaded_t *config_open(const config_options_t *given, bool is_client)
{
    static config_loaded_t loaded; /* too large for a stack; a program needs one */
    static char path[4096];
    const char *file = given->file;
    config_init(&loaded);
    if (!file && is_client && apply_sets(&loaded, given) == ERR_OK &&
        company_file(&loaded.config, path, sizeof path) && access(path, R_OK) == 0)
        file = path;
    config_init(&loaded);
    err_t error = file ? config_read_file(&loaded, file) : ERR_OK;
    if (!error) error = apply_sets(&loaded, given);
    if (!error && loaded.origins[CONFIG_model_path].kind == ORIGIN_DEFAULT)
        snprintf(loaded.config.model.path, sizeof loaded.config.model.path, "%s", embedded_model());
    if (!error) error = config_check(&loaded);
    if (!error) return &loaded;
    complain("%s", loaded.error);
    return NULL;
}

bool open_log(const config_t *config)
{
    if (log_open(config->log.file, (log_level_t)config->log.level) == ERR_OK) return true;
    complain("log.file %s cannot be opened", config->log.file);
    return false;
}

bool served_model_key(const config_t *config, uint64_t *key)
{
    static const int kind_stub = 1; /* the second word of engine.kind */
    model_config_t model;
    error_text_t why;
    *key = 0;
    if (config->engine.kind == kind_stub) return true;
    if (model_config_read(&model, config->model.path, &why) == ERR_OK) {
        *key = model_key(&model);
        return true;
    }
    complain("%s", why.text);
    return false;
}
