/* tests/world/test_processes.c - the supervisor's port starts actors as processes or threads, stops
 * them and hears how they ended. */
#include "toy.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "runtime/process.h"

static const address_t supervisor = { ROLE_supervisor, 0 }, director = { ROLE_director, 0 },
                       kv_store = { ROLE_kv_store, 0 };

/* Stands before libc's: the first call of a child, where a signal may already reach it. */
static int signal_after_fork;

int setpgid(pid_t pid, pid_t group)
{
    if (signal_after_fork) (void)kill(getpid(), signal_after_fork);
    return (int)syscall(SYS_setpgid, pid, group);
}

/* The director of these tests answers nothing; it is only there. */
static const actor_class_t quiet_class = { .name = "director",
                                           .role = ROLE_director,
                                           .state_size = 1 };
static err_t fail_init(void *self, actor_t *world)
{
    actor_log(world, LOG_ERROR, "TEST-INIT", "the weights are torn");
    return ERR_MODEL;
}
static const actor_class_t failing_class = {
    .name = "kv_store", .role = ROLE_kv_store, .state_size = 1, .init = fail_init
};

const actor_class_t *const actor_classes[ROLES_MAX] = {
    [ROLE_director] = &quiet_class, [ROLE_kv_store] = &failing_class
};

/* As `troupe actor --role R --index I --epoch E --config DIRECTORY` would. */
static int run_child(char **arguments)
{
    static config_loaded_t loaded;
    static const char *const names[] = { "actor", "--role",  NULL, "--index",
                                         "0",     "--epoch", NULL, "--config" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i] && strcmp(arguments[i + 1], names[i]) != 0) return 90;
    config_init(&loaded);
    snprintf(loaded.config.wire.directory, sizeof loaded.config.wire.directory, "%s", arguments[9]);
    bool is_director = strcmp(arguments[3], "director") == 0;
    world_options_t options = { .class = is_director ? &quiet_class : &failing_class,
                                .epoch = strtoull(arguments[7], NULL, 10),
                                .config = &loaded.config };
    return (int)world_run(&options);
}

typedef struct {
    address_t who;
    uint64_t epoch;
    uint32_t pid;
    bool is_forced;
} order_t;

static int task_start(toy_t *toy, actor_t *world, void *arg)
{
    order_t *order = arg;
    return (int)actor_process_start(world, order->who, order->epoch, &order->pid);
}

static int task_stop(toy_t *toy, actor_t *world, void *arg)
{
    const order_t *order = arg;
    actor_process_stop(world, order->pid, order->is_forced);
    return 0;
}

static toy_t *start_supervisor(const config_t *config, bool is_one_process)
{
    return toy_start_as(config, supervisor,
                        (toy_options_t){ .epoch = 1,
                                         .setup = actor_process_open,
                                         .program = "/proc/self/exe",
                                         .config_file = config->wire.directory,
                                         .is_one_process = is_one_process });
}

static msg_process_exited_t exit_of(toy_t *toy, uint32_t nth)
{
    assert_true(toy_wait(toy, MSG_process_exited, nth + 1));
    return toy_event(toy, MSG_process_exited, nth).exited;
}

/* If this failed, a dead worker would not be restarted, or two of them would run. */
static void start_stop_and_fail(bool is_one_process)
{
    config_t *config = toy_config();
    toy_t *toy = start_supervisor(config, is_one_process);
    order_t first = { .who = director, .epoch = 10 }, second = { .who = director, .epoch = 11 },
            failing = { .who = kv_store, .epoch = 12 };
    assert_int_equal(toy_do(toy, task_start, &first), ERR_OK);
    assert_true(first.pid > 0);
    assert_true(toy_wait(toy, MSG_peer_up, 1));
    assert_int_equal(toy_event(toy, MSG_peer_up, 0).epoch, 10);
    assert_int_equal(toy_do(toy, task_stop, &first), 0);
    msg_process_exited_t ended = exit_of(toy, 0);
    assert_int_equal(ended.pid, first.pid);
    assert_int_equal(ended.role, ROLE_director);
    assert_string_equal(ended.how, "exit status 0");
    assert_int_equal(toy_do(toy, task_start, &second), ERR_OK);
    assert_true(second.pid != first.pid);
    assert_true(toy_wait(toy, MSG_peer_up, 2));
    second.is_forced = true;
    assert_int_equal(toy_do(toy, task_stop, &second), 0);
    ended = exit_of(toy, 1);
    assert_int_equal(ended.pid, second.pid);
    assert_string_equal(ended.how, is_one_process ? "exit status 0" : "signal 9 (Killed)");
    assert_int_equal(toy_do(toy, task_start, &failing), ERR_OK);
    char expected[128];
    snprintf(expected, sizeof expected, "exit status %d: the weights are torn", (int)ERR_MODEL);
    assert_string_equal(exit_of(toy, 2).how, expected); /* said by init, across processes too */
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

static void test_processes_children_are_started_stopped_and_mourned(void **state)
{
    start_stop_and_fail(false);
}

static void test_processes_threads_are_started_stopped_and_mourned(void **state)
{
    start_stop_and_fail(true);
}

static void hear(int number)
{
}

/* If this failed, what is to stop a child would go to its parent's handlers, which share a pipe
 * with those of the child: the company would stop, or the child would never hear of it. */
static void test_processes_signal_before_exec_is_the_childs_own(void **state)
{
    static const int signals[] = { SIGTERM, SIGINT, SIGHUP };
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        config_t *config = toy_config();
        toy_t *toy = start_supervisor(config, false);
        order_t order = { .who = director, .epoch = 10 };
        void (*before)(int) = signal(signals[i], hear);
        signal_after_fork = signals[i];
        assert_int_equal(toy_do(toy, task_start, &order), ERR_OK);
        char expected[64];
        snprintf(expected, sizeof expected, "signal %d", signals[i]);
        assert_memory_equal(exit_of(toy, 0).how, expected, strlen(expected));
        signal_after_fork = 0;
        (void)signal(signals[i], before);
        assert_int_equal(toy_stop(toy), ERR_OK);
        toy_config_free(config);
    }
}

static bool is_hangup_ignored(uint32_t pid)
{
    char path[64], line[256];
    unsigned long long ignored = 0;
    snprintf(path, sizeof path, "/proc/%u/status", pid);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "SigIgn: %llx", &ignored) == 1) break;
    fclose(file);
    return ignored >> (SIGHUP - 1) & 1;
}

/* If this failed, a company under nohup would end with its terminal after all. */
static void test_processes_hangup_that_is_ignored_stays_so(void **state)
{
    config_t *config = toy_config();
    toy_t *toy = start_supervisor(config, false);
    order_t order = { .who = director, .epoch = 10 };
    void (*before)(int) = signal(SIGHUP, SIG_IGN);
    assert_int_equal(toy_do(toy, task_start, &order), ERR_OK);
    assert_true(toy_wait(toy, MSG_peer_up, 1));
    assert_true(is_hangup_ignored(order.pid));
    assert_int_equal(toy_do(toy, task_stop, &order), 0);
    assert_string_equal(exit_of(toy, 0).how, "exit status 0");
    (void)signal(SIGHUP, before);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

/* If this failed, a supervisor that was killed would leave a company behind that nobody watches. */
static void test_processes_supervisor_ends_children_end_too(void **state)
{
    for (int is_one_process = 0; is_one_process < 2; is_one_process++) {
        config_t *config = toy_config();
        toy_t *toy = start_supervisor(config, is_one_process);
        order_t order = { .who = director, .epoch = 10 };
        assert_int_equal(toy_do(toy, task_start, &order), ERR_OK);
        assert_true(toy_wait(toy, MSG_peer_up, 1));
        assert_int_equal(toy_stop(toy), ERR_OK);
        int tries = 0;
        while (!is_one_process && waitpid((pid_t)order.pid, NULL, WNOHANG) == 0) {
            assert_true(++tries < 1000);
            usleep(10000);
        }
        toy_config_free(config);
    }
}

/* If this failed, a program that cannot be run would look like one that runs. */
static void test_processes_missing_program_exit_is_told(void **state)
{
    config_t *config = toy_config();
    toy_t *toy = toy_start_as(config, supervisor,
                              (toy_options_t){ .epoch = 1,
                                               .setup = actor_process_open,
                                               .program = "/nonexistent/troupe" });
    order_t order = { .who = director, .epoch = 10 };
    assert_int_equal(toy_do(toy, task_start, &order), ERR_OK);
    assert_string_equal(exit_of(toy, 0).how, "exit status 127");
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

static int task_give_up(toy_t *toy, actor_t *world, void *arg)
{
    actor_log(world, LOG_ERROR, "TEST-GIVES-UP", "it does not start");
    actor_process_stop(world, 0, false);
    return 0;
}

/* If this failed, `troupe up` would end with success when nothing could be served. */
static void test_processes_supervisor_gives_up_world_ends_with_its_reason(void **state)
{
    config_t *config = toy_config();
    world_why_t why = { "" };
    toy_t *toy =
        toy_start_as(config, supervisor,
                     (toy_options_t){ .epoch = 1, .setup = actor_process_open, .why = &why });
    assert_int_equal(toy_do(toy, task_give_up, NULL), 0);
    assert_int_equal(toy_stop(toy), ERR_INTERNAL);
    assert_string_equal(why.text, "it does not start");
    toy_config_free(config);
}

static void leave(const config_t *config, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", config->wire.directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fclose(file);
}

static uint32_t count_files(const config_t *config)
{
    uint32_t count = 0;
    DIR *directory = opendir(config->wire.directory);
    assert_non_null(directory);
    for (const struct dirent *entry; (entry = readdir(directory));)
        count += entry->d_name[0] != '.';
    closedir(directory);
    return count;
}

/* If this failed, what a killed company left would stay for ever, or a company that lives would
 * lose its memory to another's supervisor. */
static void test_processes_supervisor_ends_directory_holds_nothing_of_the_dead(void **state)
{
    static const char *const names[] = { "ep-decode-0",          "decode_worker-7.lock",
                                         "decode_worker-7.sock", "decode_worker-7-0012.pool",
                                         "decode_worker-7.why",  "of somebody else" };
    config_t *config = toy_config();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) leave(config, names[i]);
    toy_t *other = toy_start(config, director, 10);
    while (!world_is_inhabited(config)) usleep(1000);
    toy_t *toy = start_supervisor(config, false);
    assert_true(toy_wait(toy, MSG_peer_up, 1));
    assert_int_equal(toy_stop(toy), ERR_OK);
    assert_int_equal(count_files(config), 6 + 2); /* the director's lock and socket */
    assert_int_equal(toy_stop(other), ERR_OK);
    assert_false(world_is_inhabited(config));
    assert_int_equal(count_files(config), 6);
    toy = start_supervisor(config, false);
    assert_int_equal(toy_stop(toy), ERR_OK);
    assert_int_equal(count_files(config), 1);
    toy_config_free(config);
}

int main(int count, char **arguments)
{
    if (count == 10) return run_child(arguments);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_processes_children_are_started_stopped_and_mourned),
        cmocka_unit_test(test_processes_threads_are_started_stopped_and_mourned),
        cmocka_unit_test(test_processes_signal_before_exec_is_the_childs_own),
        cmocka_unit_test(test_processes_hangup_that_is_ignored_stays_so),
        cmocka_unit_test(test_processes_supervisor_ends_children_end_too),
        cmocka_unit_test(test_processes_missing_program_exit_is_told),
        cmocka_unit_test(test_processes_supervisor_gives_up_world_ends_with_its_reason),
        cmocka_unit_test(test_processes_supervisor_ends_directory_holds_nothing_of_the_dead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
