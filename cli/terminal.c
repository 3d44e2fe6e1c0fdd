/* cli/terminal.c - colours, progress and complaints: only where a person looks on. */
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

bool is_terminal(FILE *file)
{
    return isatty(fileno(file)) == 1;
}

const char *style(FILE *file, style_t which)
{
    static const char *const sequences[] = { "\033[0m",  "\033[1m",  "\033[2m",
                                             "\033[31m", "\033[32m", "\033[33m" };
    return is_terminal(file) && !getenv("NO_COLOR") ? sequences[which] : "";
}

void progress_show(const char *what, uint64_t done, uint64_t all)
{
    enum { WIDTH = 30 };
    static const char full[] = "##############################",
                      empty[] = "..............................";
    if (!is_terminal(stderr)) return;
    int filled = all == 0 ? 0 : (int)((done < all ? done : all) * WIDTH / all);
    fprintf(stderr, "\r\033[K%-28s [%.*s%.*s] %3d%%", what, filled, full, WIDTH - filled, empty,
            filled * 100 / WIDTH);
    fflush(stderr);
}

void progress_clear(void)
{
    if (is_terminal(stderr)) fputs("\r\033[K", stderr);
}

void complain(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%stroupe:%s ", style(stderr, STYLE_RED), style(stderr, STYLE_PLAIN));
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}
