/* cli/main.c - the program troupe: finds the subcommand and runs it. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef struct {
    const char *name;
    command_fn *run;
    bool is_shown;
    const char *doc;
} command_t;

static const command_t commands[] = {
#define COMMAND(name, is_shown, doc) { #name, cmd_##name, is_shown, doc },
#include "commands.def"
#undef COMMAND
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void print_help(FILE *to)
{
    fprintf(to,
            "%sTroupe%s serves Mixture-of-Experts language models with a company of actors.\n\n"
            "Usage: troupe COMMAND [OPTION...]\n\n",
            style(to, STYLE_BOLD), style(to, STYLE_PLAIN));
    for (size_t i = 0; i < COMMANDS; i++)
        if (commands[i].is_shown)
            fprintf(to, "  %s%-11s%s %s\n", style(to, STYLE_BOLD), commands[i].name,
                    style(to, STYLE_PLAIN), commands[i].doc);
    fputs("\nBegin with `troupe up`; then, in another terminal, `troupe chat`.\n"
          "`troupe COMMAND --help` tells the options of one.\n\n"
          "Exit codes: 0 success; 1 it did not work; 64 wrong usage; 69 no company answers; 78 "
          "wrong configuration.\n",
          to);
}

static const command_t *find(const char *name)
{
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

static int run(const command_t *command, int count, char **arguments)
{
    char name[64];
    snprintf(name, sizeof name, "troupe %s", command->name);
    arguments[0] = name;
    return command->run(count, arguments);
}

/* `troupe help NAME` is `troupe NAME --help`. */
static int help(int count, char **arguments)
{
    const command_t *command = count > 2 ? find(arguments[2]) : NULL;
    if (command) return run(command, 2, (char *[]){ NULL, (char[]){ "--help" }, NULL });
    print_help(stdout);
    return EXIT_OK;
}

int main(int count, char **arguments)
{
    if (count < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    const char *name = arguments[1];
    if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return help(count, arguments);
    if (strcmp(name, "--version") == 0) name = "version";
    const command_t *command = find(name);
    if (command) return run(command, count - 1, arguments + 1);
    complain("there is no command \"%s\"; `troupe help` lists them", name);
    return EXIT_USAGE;
}
