/* cli/cli.h - what the subcommands of troupe share. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../runtime/base/config.h"

/* Exit codes, those of sysexits.h where one fits.  In the manual: `troupe --help`. */
enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,       /* it was tried and did not work; standard error says why */
    EXIT_USAGE = 64,       /* the command line is wrong */
    EXIT_UNREACHABLE = 69, /* no company answers */
    EXIT_CONFIGURATION = 78,
};

/* A subcommand; arguments[0] is "troupe NAME".  Returns an exit code. */
typedef int command_fn(int count, char **arguments);
#define COMMAND(name, is_shown, doc) command_fn cmd_##name;
#include "commands.def"
#undef COMMAND

/* ---- configuration from --config and --set (options.c) ---- */

/* Directory of the model that Troupe brings along: models/tiny here, else beside the program where
 * it was built or installed; models/tiny when it is nowhere. */
const char *embedded_model(void);

/* An argp child with these two options; its input is a config_options_t, zeroed before. */
enum { SETS_MAX = 64 };
typedef struct {
    const char *file;
    const char *sets[SETS_MAX];
    uint32_t set_count;
} config_options_t;
extern const struct argp config_argp;

/* Read what the options name; without --config the file of the company that runs in the default
 * directory, if one does and is_client.  NULL: refused, and standard error has said why. */
config_loaded_t *config_open(const config_options_t *options, bool is_client);

/* Parse with argp; wrong usage ends the program with EXIT_USAGE. */
void parse_options(const struct argp *argp, int count, char **arguments, void *input);

/* The value of an option that takes a whole number; any other value is wrong usage. */
uint64_t option_number(const char *option, const char *value, uint64_t least, uint64_t most,
                       const struct argp_state *state);

/* Log as the configuration says.  False: standard error has said why. */
bool open_log(const config_t *config);

/* Hash of the model served, for hello; 0 with a stub engine, which serves none.  False: no usable
 * model, and standard error has said why. */
bool served_model_key(const config_t *config, uint64_t *key);

/* ---- the terminal (terminal.c) ---- */

bool is_terminal(FILE *file);

/* Escape sequences when the file is a terminal and NO_COLOR is not set, else "". */
typedef enum { STYLE_PLAIN, STYLE_BOLD, STYLE_DIM, STYLE_RED, STYLE_GREEN, STYLE_YELLOW } style_t;
const char *style(FILE *file, style_t which);

/* One line of progress on standard error, rewritten in place; nothing when that is no terminal. */
void progress_show(const char *what, uint64_t done, uint64_t all);
void progress_clear(void);

/* "troupe: text" on standard error, in red on a terminal. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Monotonic time; us. */
uint64_t now_us(void);

#endif
