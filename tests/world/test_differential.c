/* tests/world/test_differential.c - the script that both worlds must agree on, in the real one:
 * processes, killed and stopped for real. */
#include "script.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/config.h"
#include "runtime/world.h"

/* Orders to an actor's process; the parent raises `asked`, the child raises `done`. */
typedef struct {
    seen_list_t seen;
    _Atomic uint32_t asked, done;
    address_t to;
    uint64_t first;
    uint32_t count, accepted;
    err_t answer;
} shared_t;

typedef struct {
    config_loaded_t loaded;
    shared_t *shared[ACTORS];
    pid_t processes[ACTORS];
    uint64_t epoch;
} scene_t;

/* ---- in the child ---- */

static shared_t *mine;

static err_t on_init(void *self, actor_t *world)
{
    script_see(&mine->seen, SEEN_START, 0);
    actor_wake_at(world, actor_now_us(world) + 1000);
    return ERR_OK;
}

static void on_message(void *self, actor_t *world, const msg_t *m)
{
    script_on_message(&mine->seen, m);
}

static void on_wake(void *self, actor_t *world)
{
    uint32_t asked = atomic_load(&mine->asked);
    actor_wake_at(world, actor_now_us(world) + 1000);
    if (asked == atomic_load(&mine->done)) return;
    mine->answer = ERR_OK;
    for (mine->accepted = 0; mine->accepted < mine->count; mine->accepted++) {
        msg_t m;
        script_message(&m, mine->first + mine->accepted);
        mine->answer = actor_send(world, mine->to, &m);
        if (mine->answer) break;
    }
    atomic_store(&mine->done, asked);
}

static _Noreturn void run_child(scene_t *scene, who_t who)
{
    const actor_class_t class = {
        .name = role_names[script_addresses[who].role],
        .role = script_addresses[who].role,
        .state_size = 1,
        .init = on_init,
        .wake = on_wake,
        .on = { [MSG_peer_up] = on_message,
                [MSG_peer_down] = on_message,
                [MSG_cancel] = on_message },
    };
    mine = scene->shared[who];
    world_options_t options = { .class = &class,
                                .config = &scene->loaded.config,
                                .epoch = scene->epoch };
    _exit((int)world_run(&options));
}

/* ---- in the parent ---- */

static void real_start(void *context, who_t who)
{
    scene_t *scene = context;
    scene->epoch++;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed assertion must not leave it behind */
        run_child(scene, who);
    }
    scene->processes[who] = child;
}

static void real_kill(void *context, who_t who)
{
    scene_t *scene = context;
    int status;
    assert_int_equal(kill(scene->processes[who], SIGKILL), 0);
    assert_int_equal(waitpid(scene->processes[who], &status, 0), scene->processes[who]);
    assert_true(WIFSIGNALED(status));
    scene->shared[who]->done = scene->shared[who]->asked;
}

static void real_pause(void *context, who_t who, bool is_paused)
{
    const scene_t *scene = context;
    assert_int_equal(kill(scene->processes[who], is_paused ? SIGSTOP : SIGCONT), 0);
}

static bool real_wait(void *context, const _Atomic uint32_t *counter, uint32_t least)
{
    for (int i = 0; i < 20000 && atomic_load(counter) < least; i++) usleep(1000);
    return atomic_load(counter) >= least;
}

static err_t real_say(void *context, who_t who, address_t to, uint64_t first, uint32_t count,
                      uint32_t *accepted)
{
    scene_t *scene = context;
    shared_t *shared = scene->shared[who];
    shared->to = to;
    shared->first = first;
    shared->count = count;
    uint32_t asked = atomic_load(&shared->asked) + 1;
    atomic_store(&shared->asked, asked);
    assert_true(real_wait(context, &shared->done, asked));
    *accepted = shared->accepted;
    return shared->answer;
}

static void scene_open(scene_t *self)
{
    char directory[] = "/tmp/troupe-test-XXXXXX";
    assert_non_null(mkdtemp(directory));
    config_init(&self->loaded);
    config_t *config = &self->loaded.config;
    snprintf(config->wire.directory, sizeof config->wire.directory, "%s", directory);
    config->timing.dead_ms = 20000;
    for (who_t who = 0; who < ACTORS; who++) {
        self->shared[who] =
            mmap(NULL, sizeof(shared_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(self->shared[who] != MAP_FAILED);
    }
}

static void scene_close(scene_t *self)
{
    for (who_t who = 0; who < ACTORS; who++) {
        int status;
        assert_int_equal(kill(self->processes[who], SIGTERM), 0);
        assert_int_equal(waitpid(self->processes[who], &status, 0), self->processes[who]);
        assert_int_equal(status, 0);
        assert_int_equal(munmap(self->shared[who], sizeof(shared_t)), 0);
    }
    DIR *directory = opendir(self->loaded.config.wire.directory);
    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory));)
        (void)unlinkat(dirfd(directory), entry->d_name, 0);
    closedir(directory);
    assert_int_equal(rmdir(self->loaded.config.wire.directory), 0);
}

/* If this failed, what the simulator proves about the actors would say nothing about the real
 * world. */
static void test_differential_script_in_the_real_world_gives_what_was_expected(void **state)
{
    static scene_t scene;
    static trace_t trace;
    scene_open(&scene);
    const script_world_t world = { .context = &scene,
                                   .seen = { &scene.shared[0]->seen, &scene.shared[1]->seen },
                                   .start = real_start,
                                   .kill = real_kill,
                                   .pause = real_pause,
                                   .say = real_say,
                                   .wait = real_wait };
    script_run(&world, &trace);
    assert_string_equal(trace.text, script_expected);
    scene_close(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_differential_script_in_the_real_world_gives_what_was_expected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
