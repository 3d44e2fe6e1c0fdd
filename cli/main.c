/* cli/main.c - the program troupe: finds the subcommand and runs it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* As with `troupe status | head`: who read standard output has had enough, which is no failure. */
static bool is_reader_gone(void)
{
    struct pollfd output = { .fd = STDOUT_FILENO, .events = POLLOUT };
    return poll(&output, 1, 0) == 1 && (output.revents & (POLLERR | POLLHUP));
}

static int refuse(const char *name)
{
    complain("there is no command \"%s\"; `troupe help` lists them", name);
    return EXIT_USAGE;
}

/* What was printed may reach its file only now; that it did not is a failure of the command. Called
 * by exit, for argp ends the program itself when it has printed help. */
static void finish(int code, void *unused)
{
    (void)unused;
    errno = 0;
    bool is_written = fflush(stdout) == 0 && !ferror(stdout);
    if (code != EXIT_OK || is_written || is_reader_gone()) return;
    complain("standard output cannot be written%s%s", errno ? ": " : "",
             errno ? strerror(errno) : "");
    _exit(EXIT_FAILED);
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
    if (count < 3) {
        print_help(stdout);
        return EXIT_OK;
    }
    const command_t *command = find(arguments[2]);
    if (command) return run(command, 2, (char *[]){ NULL, (char[]){ "--help" }, NULL });
    return refuse(arguments[2]);
}

/* A standard stream that is closed must not become a socket of ours: its number is taken by a file
 * that can only be used the other way round, so that reading or writing it fails as before. */
static void hold_closed_streams(void)
{
    static const int modes[] = { O_WRONLY, O_RDONLY, O_RDONLY };
    for (int stream = 0; stream < 3; stream++)
        if (fcntl(stream, F_GETFD) < 0) (void)open("/dev/null", modes[stream]);
}

int main(int count, char **arguments)
{
    hold_closed_streams();
    (void)on_exit(finish, NULL);
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
    return refuse(name);
}
