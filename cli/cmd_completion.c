/* cli/cmd_completion.c - troupe completion: what a shell offers after Tab. */
#include <string.h>

#include "cli.h"

static error_t parse(int key, char *value, struct argp_state *state)
{
    const char **shell = state->input;
    if (key == ARGP_KEY_ARG) {
        if (*shell || (strcmp(value, "bash") != 0 && strcmp(value, "zsh") != 0))
            argp_error(state, "`bash` or `zsh` is needed");
        *shell = value;
        return 0;
    }
    if (key == ARGP_KEY_END && !*shell) argp_error(state, "`bash` or `zsh` is needed");
    return key == ARGP_KEY_END ? 0 : ARGP_ERR_UNKNOWN;
}

/* Options are asked of the command itself, so the script cannot grow stale. */
static const char script[] =
    "troupe_complete() {\n"
    "    local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]}\n"
    "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
    "        COMPREPLY=($(compgen -W \"$troupe_commands\" -- \"$word\"))\n"
    "    elif [[ $word == -* ]]; then\n"
    "        COMPREPLY=($(compgen -W \"$(\"${COMP_WORDS[0]}\" \"$command\" --help 2>/dev/null | "
    "grep -oE -- '--[a-z-]+')\" -- \"$word\"))\n"
    "    elif [ \"$command\" = config ] && [ \"$COMP_CWORD\" -eq 2 ]; then\n"
    "        COMPREPLY=($(compgen -W 'check show' -- \"$word\"))\n"
    "    elif [ \"$command\" = completion ]; then\n"
    "        COMPREPLY=($(compgen -W 'bash zsh' -- \"$word\"))\n"
    "    else\n"
    "        COMPREPLY=($(compgen -f -- \"$word\"))\n"
    "    fi\n"
    "}\n"
    "complete -o default -F troupe_complete troupe\n";

int cmd_completion(int count, char **arguments)
{
    static const struct argp argp = {
        .parser = parse,
        .args_doc = "bash|zsh",
        .doc =
            "Print a completion script.\vFor bash: troupe completion bash >> ~/.bash_completion\n"
            "For zsh:  troupe completion zsh >> ~/.zshrc",
    };
    const char *shell = NULL;
    parse_options(&argp, count, arguments, &shell);
    if (strcmp(shell, "zsh") == 0)
        puts("autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit");
    fputs("troupe_commands='", stdout);
#define COMMAND(name, is_shown, doc)                                                               \
    if (is_shown) fputs(#name " ", stdout);
#include "commands.def"
#undef COMMAND
    printf("help'\n%s", script);
    return EXIT_OK;
}
