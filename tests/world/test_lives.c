/* tests/world/test_lives.c - actors as processes: killed, stopped, paused and restarted, and what
 * the others are told. */
#include "toy.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static const address_t ingress = { ROLE_ingress, 0 }, prefill_lb = { ROLE_prefill_lb, 0 };

/* Detection must come within dead_ms and a margin for a machine that is busy with other tests. */
enum { MARGIN_MS = 3000 };

static const char *own_path;

/* What the child of start_process does: an actor that answers each cancel with a cancel. */
static void echo(void *self, actor_t *world, const msg_t *m)
{
    msg_t answer;
    msg_init(&answer, MSG_cancel);
    answer.header.request = m->header.request;
    answer.header.attempt = 1;
    if (actor_send(world, m->header.from, &answer)) exit(3);
}

static int run_child(char **arguments)
{
    static config_loaded_t loaded;
    static actor_class_t class;
    config_init(&loaded);
    snprintf(loaded.config.wire.directory, sizeof loaded.config.wire.directory, "%s", arguments[2]);
    loaded.config.timing.heartbeat_ms = 50;
    loaded.config.timing.dead_ms = 400;
    class = (actor_class_t){ .name = "child",
                             .role = (role_t)atoi(arguments[3]),
                             .state_size = 8,
                             .on = { [MSG_cancel] = echo } };
    world_options_t options = { .class = &class,
                                .epoch = strtoull(arguments[4], NULL, 10),
                                .config = &loaded.config };
    return (int)world_run(&options);
}

static pid_t start_process(const config_t *config, address_t who, uint64_t epoch)
{
    char role[16], life[32];
    snprintf(role, sizeof role, "%d", (int)who.role);
    snprintf(life, sizeof life, "%llu", (unsigned long long)epoch);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed assertion must not leave it behind */
        execl(own_path, own_path, "child", config->wire.directory, role, life, (char *)NULL);
        _exit(127);
    }
    return child;
}

static int end_process(pid_t child, int number)
{
    int status = 0;
    assert_int_equal(kill(child, number), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

/* If this failed, work given to a killed worker would wait for ever, or be answered by a life that
 * never had it. */
static void kill_and_restart(address_t ours, address_t theirs)
{
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ours, 1);
    pid_t child = start_process(config, theirs, 10);
    assert_true(toy_wait(toy, MSG_peer_up, 1));
    assert_int_equal(toy_send(toy, theirs, 100, 1), ERR_OK);
    assert_true(toy_wait(toy, MSG_cancel, 1));
    uint64_t killed_ms = toy_now_ms();
    assert_true(WIFSIGNALED(end_process(child, SIGKILL)));
    assert_true(toy_wait(toy, MSG_peer_down, 1));
    assert_true(toy_now_ms() - killed_ms < (uint64_t)config->timing.dead_ms + MARGIN_MS);
    assert_int_equal(toy_event(toy, MSG_peer_down, 0).epoch, 10);
    assert_int_equal(toy_send(toy, theirs, 200, 1), ERR_LOST);
    child = start_process(config, theirs, 11);
    assert_true(toy_wait(toy, MSG_peer_up, 2));
    assert_int_equal(toy_event(toy, MSG_peer_up, 1).epoch, 11);
    assert_int_equal(toy_send(toy, theirs, 300, 1), ERR_OK);
    assert_true(toy_wait(toy, MSG_cancel, 2));
    assert_int_equal(toy_event(toy, MSG_cancel, 1).header.request.lo, 300);
    assert_int_equal(end_process(child, SIGTERM), 0);
    assert_true(toy_wait(toy, MSG_peer_down, 2));
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

static void test_lives_binder_killed_connector_is_told_and_meets_the_next(void **state)
{
    kill_and_restart(ingress, prefill_lb);
}

static void test_lives_connector_killed_binder_is_told_and_meets_the_next(void **state)
{
    kill_and_restart(prefill_lb, ingress);
}

/* If this failed, a process that hangs without dying would hold its requests until their deadlines.
 */
static void pause_and_resume(address_t ours, address_t theirs)
{
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ours, 1);
    pid_t child = start_process(config, theirs, 10);
    assert_true(toy_wait(toy, MSG_peer_up, 1));
    assert_int_equal(kill(child, SIGSTOP), 0);
    assert_true(toy_wait(toy, MSG_peer_down, 1));
    assert_int_equal(kill(child, SIGCONT), 0);
    /* The same life may be met again, but only after it was told to be down. */
    assert_true(toy_wait(toy, MSG_peer_up, 2));
    assert_int_equal(toy_event(toy, MSG_peer_up, 1).epoch, 10);
    for (uint32_t tries = 0; toy_send(toy, theirs, 300, 1) != ERR_OK; tries++) {
        assert_true(tries < 100);
        usleep(50000);
    }
    assert_true(toy_wait(toy, MSG_cancel, 1));
    assert_int_equal(end_process(child, SIGTERM), 0);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

static void test_lives_binder_paused_is_down_then_up_again(void **state)
{
    pause_and_resume(ingress, prefill_lb);
}

static void test_lives_connector_paused_is_down_then_up_again(void **state)
{
    pause_and_resume(prefill_lb, ingress);
}

/* If this failed, an old process that was replaced while it hung would speak for its successor
 * (I8). */
static void test_lives_older_epoch_is_not_heard(void **state)
{
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, prefill_lb, 1);
    pid_t child = start_process(config, ingress, 10);
    assert_true(toy_wait(toy, MSG_peer_up, 1));
    assert_true(WIFSIGNALED(end_process(child, SIGKILL)));
    assert_true(toy_wait(toy, MSG_peer_down, 1));
    child = start_process(config, ingress, 9);
    usleep(600000);
    assert_int_equal(toy_count(toy, MSG_peer_up), 1);
    assert_int_equal(toy_send(toy, ingress, 1, 1), ERR_LOST);
    assert_int_equal(end_process(child, SIGTERM), 0);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

int main(int count, char **arguments)
{
    if (count == 5 && strcmp(arguments[1], "child") == 0) return run_child(arguments);
    own_path = "/proc/self/exe";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lives_binder_killed_connector_is_told_and_meets_the_next),
        cmocka_unit_test(test_lives_connector_killed_binder_is_told_and_meets_the_next),
        cmocka_unit_test(test_lives_binder_paused_is_down_then_up_again),
        cmocka_unit_test(test_lives_connector_paused_is_down_then_up_again),
        cmocka_unit_test(test_lives_older_epoch_is_not_heard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
