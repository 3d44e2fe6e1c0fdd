/* cli/cmd_version.c - troupe version. */
#include "../proto/messages.h"
#include "cli.h"

int cmd_version(int count, char **arguments)
{
    static const struct argp argp = {
        .doc = "Print the version of this build and of the protocol it speaks."
    };
    parse_options(&argp, count, arguments, NULL);
    printf("troupe %s, protocol %d\n", TROUPE_VERSION, PROTOCOL_VERSION);
    return EXIT_OK;
}
