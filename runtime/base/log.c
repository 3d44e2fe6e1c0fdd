/* runtime/base/log.c - one line per event, for every world. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The one mutable global of a process besides metrics: actors that are threads of one process share
 * it. */
static struct {
    pthread_mutex_t lock;
    int file;
    log_level_t level;
    uint32_t next; /* where in `recent` the next line goes */
    char recent[LOG_RECENT_LINES][LOG_LINE_BYTES];
} shared = { .lock = PTHREAD_MUTEX_INITIALIZER, .file = STDERR_FILENO, .level = LOG_WARN };

static const char *const level_names[] = { "debug", "info ", "warn ", "error" };

address_text_t address_text(address_t who)
{
    address_text_t out;
    const char *name = who.role < ROLES_MAX ? role_names[who.role] : "unknown";
    snprintf(out.text, sizeof out.text, "%s.%" PRIu32, name, who.index);
    return out;
}

request_text_t request_text(request_id_t request)
{
    request_text_t out;
    snprintf(out.text, sizeof out.text, "%016" PRIx64 "%016" PRIx64, request.hi, request.lo);
    return out;
}

err_t log_open(const char *file, log_level_t level)
{
    int opened = STDERR_FILENO;
    if (file[0] != 0) {
        opened = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (opened < 0) return ERR_IO;
    }
    log_close();
    pthread_mutex_lock(&shared.lock);
    shared.file = opened;
    shared.level = level;
    pthread_mutex_unlock(&shared.lock);
    return ERR_OK;
}

void log_close(void)
{
    pthread_mutex_lock(&shared.lock);
    if (shared.file != STDERR_FILENO) close(shared.file);
    shared.file = STDERR_FILENO;
    pthread_mutex_unlock(&shared.lock);
}

bool log_is_on(log_level_t level)
{
    return level >= shared.level;
}

/* Time, level, actor and id; returns the length. */
static size_t format_head(char *line, size_t cap, const log_event_t *event)
{
    time_t seconds = (time_t)(event->wall_us / 1000000);
    struct tm parts;
    char when[32];
    gmtime_r(&seconds, &parts);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &parts);
    int size =
        snprintf(line, cap, "%s.%03uZ %s %s %s ", when, (unsigned)(event->wall_us / 1000 % 1000),
                 level_names[event->level], address_text(event->who).text, event->id);
    return size < 0 ? 0 : (size_t)size < cap ? (size_t)size : cap - 1;
}

static void keep(const char *line, size_t size)
{
    memcpy(shared.recent[shared.next], line, size);
    shared.recent[shared.next][size] = 0;
    shared.next = (shared.next + 1) % LOG_RECENT_LINES;
}

size_t log_format(char *line, const log_event_t *event, const char *format, va_list args)
{
    size_t size = format_head(line, LOG_LINE_BYTES - 1, event);
    size_t room = LOG_LINE_BYTES - 1 - size;
    int text = vsnprintf(line + size, room, format, args);
    if (text > 0) size += (size_t)text < room ? (size_t)text : room - 1;
    /* A peer's text inside a line must not look like a line of its own. */
    for (char *at = line; at < line + size; at++) {
        if ((unsigned char)*at < 0x20 || *at == 0x7f) *at = ' ';
    }
    line[size++] = '\n';
    line[size] = 0;
    pthread_mutex_lock(&shared.lock);
    keep(line, size);
    pthread_mutex_unlock(&shared.lock);
    return size;
}

static uint64_t wall_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

void log_writev(address_t who, log_level_t level, const char *id, const char *format, va_list args)
{
    char line[LOG_LINE_BYTES];
    log_event_t event = { .wall_us = wall_us(), .who = who, .level = level, .id = id };
    size_t size = log_format(line, &event, format, args);
    if (!log_is_on(level)) return;
    pthread_mutex_lock(&shared.lock);
    /* A full disk must not stop an actor; there is nowhere left to say it. */
    ssize_t written = write(shared.file, line, size);
    (void)written;
    pthread_mutex_unlock(&shared.lock);
}

void log_write(address_t who, log_level_t level, const char *id, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_writev(who, level, id, format, args);
    va_end(args);
}

size_t log_recent(char *buf, size_t cap)
{
    size_t size = 0;
    if (cap == 0) return 0;
    /* The holder of the lock may be the thread that failed: then the lines are read without it. */
    int locked = pthread_mutex_trylock(&shared.lock);
    for (uint32_t i = 0; i < LOG_RECENT_LINES; i++) {
        const char *line = shared.recent[(shared.next + i) % LOG_RECENT_LINES];
        size_t length = strnlen(line, LOG_LINE_BYTES);
        if (size + length >= cap) break;
        memcpy(buf + size, line, length);
        size += length;
    }
    buf[size] = 0;
    if (locked == 0) pthread_mutex_unlock(&shared.lock);
    return size;
}
