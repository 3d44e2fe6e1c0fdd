/* tests/base/test_log.c - lines that can be read and grepped, and the last words of a failed
 * process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "runtime/base/log.h"

#include <pthread.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const address_t who = { ROLE_prefill_lb, 0 };

static char name[] = "/tmp/test-log-XXXXXX";
static char text[1 << 20];

static void read_back(void)
{
    FILE *file = fopen(name, "r");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
}

static void open_new(log_level_t level)
{
    memcpy(name, "/tmp/test-log-XXXXXX", sizeof name);
    int file = mkstemp(name);
    assert_true(file >= 0);
    close(file);
    assert_int_equal(log_open(name, level), ERR_OK);
}

static void close_and_read(void)
{
    log_close();
    read_back();
    unlink(name);
}

/* If it failed, programs that parse our lines would not understand them. */
static void test_log_line_has_time_level_actor_id_and_text(void **state)
{
    regex_t shape;
    open_new(LOG_INFO);
    log_write(who, LOG_WARN, "PREFILL-LB-FULL", "queue holds %d", 7);
    close_and_read();
    assert_int_equal(regcomp(&shape,
                             "^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z "
                             "warn  prefill_lb\\.0 PREFILL-LB-FULL queue holds 7\n$",
                             REG_EXTENDED),
                     0);
    assert_int_equal(regexec(&shape, text, 0, NULL, 0), 0);
    regfree(&shape);
}

static size_t format(char *line, const log_event_t *event, const char *pattern, ...)
{
    va_list args;
    va_start(args, pattern);
    size_t size = log_format(line, event, pattern, args);
    va_end(args);
    return size;
}

/* If it failed, the simulator's lines would carry the wrong time. */
static void test_log_format_shows_the_given_time(void **state)
{
    char line[LOG_LINE_BYTES];
    log_event_t event = { .wall_us = 1767225600123456, .who = who, .level = LOG_INFO, .id = "X" };
    size_t size = format(line, &event, "a %s", "b");
    assert_string_equal(line, "2026-01-01T00:00:00.123Z info  prefill_lb.0 X a b\n");
    assert_int_equal(size, strlen(line));
}

/* If it failed, debug lines would fill disks, or errors would be lost. */
static void test_log_level_filters(void **state)
{
    open_new(LOG_WARN);
    log_write(who, LOG_DEBUG, "A", "no");
    log_write(who, LOG_INFO, "B", "no");
    log_write(who, LOG_WARN, "C", "yes");
    log_write(who, LOG_ERROR, "D", "yes");
    assert_false(log_is_on(LOG_INFO));
    assert_true(log_is_on(LOG_WARN));
    close_and_read();
    assert_null(strstr(text, " no\n"));
    assert_non_null(strstr(text, " C yes\n"));
    assert_non_null(strstr(text, " D yes\n"));
}

/* If it failed, a client could forge lines, or a long text would overrun the buffer. */
static void test_log_foreign_text_stays_one_short_line(void **state)
{
    static char huge[5000];
    memset(huge, 'x', sizeof huge - 1);
    open_new(LOG_INFO);
    log_write(who, LOG_INFO, "A", "%s", "one\ntwo\x1b[31m");
    log_write(who, LOG_INFO, "B", "%s", huge);
    close_and_read();
    assert_non_null(strstr(text, "one two [31m\n"));
    char *second = strchr(text, '\n') + 1;
    assert_int_equal(strlen(second), LOG_LINE_BYTES - 1);
    assert_int_equal(second[LOG_LINE_BYTES - 2], '\n');
}

/* If it failed, what was said before an invariant failed would be lost with the process. */
static void test_log_recent_keeps_the_last_lines_in_order(void **state)
{
    static char recent[LOG_RECENT_LINES * LOG_LINE_BYTES];
    open_new(LOG_ERROR);
    for (int i = 0; i < 200; i++) log_write(who, LOG_DEBUG, "A", "line %d", i);
    close_and_read();
    size_t size = log_recent(recent, sizeof recent);
    assert_int_equal(size, strlen(recent));
    assert_null(strstr(recent, "line 135\n"));
    char *first = strstr(recent, "line 136\n"), *last = strstr(recent, "line 199\n");
    assert_non_null(first);
    assert_non_null(last);
    assert_true(first < last);
}

static void *write_many(void *context)
{
    for (int i = 0; i < 500; i++) log_write(who, LOG_INFO, "T", "from %s end", (char *)context);
    return NULL;
}

/* If it failed, actors that are threads of one process would mix their lines. */
static void test_log_lines_of_threads_are_whole(void **state)
{
    pthread_t threads[4];
    char *names[] = { "a", "bb", "ccc", "dddd" };
    int lines = 0;
    open_new(LOG_INFO);
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, write_many, names[i]);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    close_and_read();
    char *rest = NULL;
    for (char *at = strtok_r(text, "\n", &rest); at != NULL; at = strtok_r(NULL, "\n", &rest)) {
        lines++;
        assert_non_null(strstr(at, " T from "));
        assert_string_equal(at + strlen(at) - 4, " end");
    }
    assert_int_equal(lines, 2000);
}

/* If it failed, a bug of ours would end a process without a word, or not at all. */
static void test_invariant_failed_says_where_and_aborts(void **state)
{
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], STDERR_FILENO);
        log_write(who, LOG_INFO, "BEFORE", "the last thing that happened");
        invariant(1 + 1 == 3);
        _exit(0);
    }
    close(pipes[1]);
    size_t size = 0;
    for (ssize_t got = 1; got > 0; size += (size_t)got) {
        got = read(pipes[0], text + size, sizeof text - 1 - size);
        assert_true(got >= 0);
    }
    text[size] = 0;
    close(pipes[0]);
    int status = 0;
    waitpid(child, &status, 0);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(text, "test_log.c:"));
    assert_non_null(strstr(text, "1 + 1 == 3"));
    assert_non_null(strstr(text, "BEFORE the last thing that happened"));
}

/* If it failed, request ids would look different in different actors. */
static void test_request_text_is_32_hex_digits(void **state)
{
    request_text_t shown = request_text((request_id_t){ 0x0123456789abcdef, 0x10 });
    assert_string_equal(shown.text, "0123456789abcdef0000000000000010");
}

/* If it failed, a log that cannot be opened would be taken for one. */
static void test_log_open_refuses_what_cannot_be_opened(void **state)
{
    assert_int_equal(log_open("/nowhere/at/all", LOG_INFO), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log_line_has_time_level_actor_id_and_text),
        cmocka_unit_test(test_log_format_shows_the_given_time),
        cmocka_unit_test(test_log_level_filters),
        cmocka_unit_test(test_log_foreign_text_stays_one_short_line),
        cmocka_unit_test(test_log_recent_keeps_the_last_lines_in_order),
        cmocka_unit_test(test_log_lines_of_threads_are_whole),
        cmocka_unit_test(test_invariant_failed_says_where_and_aborts),
        cmocka_unit_test(test_request_text_is_32_hex_digits),
        cmocka_unit_test(test_log_open_refuses_what_cannot_be_opened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
