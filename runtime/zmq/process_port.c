/* runtime/zmq/process_port.c - the process port of the supervisor: children of this host, or
 * threads of this process. */
#include "../process.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "state.h"

enum {
    CHILDREN_MAX = 1024,
    THREAD_PID =
        1 << 30, /* what stands for a process id where a child is a thread; above all real ones */
    NUMBER_BYTES = 24,
    WHY_TOLD_BYTES = 380, /* with the status it fits process_exited */
};

typedef struct {
    uint32_t pid; /* 0: free */
    address_t who;
    /* of a thread */
    pthread_t thread;
    world_options_t options;
    err_t result;
    atomic_bool has_ended;
    int news; /* the supervisor's eventfd */
} child_t;

typedef struct {
    struct event *event; /* SIGCHLD, or the threads' eventfd */
    int descriptor;
    uint32_t threads_started;
    child_t children[CHILDREN_MAX];
} processes_t;

/* A status and, where the child said one, the reason. */
static void tell_exit(actor_t *world, child_t *child, const char *how)
{
    msg_t m;
    world_why_t why;
    why_take(world, child->who, &why);
    msg_init(&m, MSG_process_exited);
    m.header.from = world->self;
    m.process_exited.role = child->who.role;
    m.process_exited.index = child->who.index;
    m.process_exited.pid = child->pid;
    (void)snprintf(m.process_exited.how, sizeof m.process_exited.how, "%s%s%.*s", how,
                   why.text[0] ? ": " : "", WHY_TOLD_BYTES, why.text);
    child->pid = 0;
    deliver(world, &m);
}

/* ---- processes ---- */

static void on_child(evutil_socket_t number, short what, void *arg)
{
    actor_t *world = arg;
    processes_t *self = world->ports[PORT_PROCESS].state;
    char how[128];
    for (int i = 0; i < CHILDREN_MAX; i++) {
        child_t *child = &self->children[i];
        int status;
        if (child->pid == 0 || waitpid((pid_t)child->pid, &status, WNOHANG) <= 0) continue;
        if (WIFSIGNALED(status))
            (void)snprintf(how, sizeof how, "signal %d (%s)", WTERMSIG(status),
                           strsignal(WTERMSIG(status)));
        else
            (void)snprintf(how, sizeof how, "exit status %d", WEXITSTATUS(status));
        tell_exit(world, child, how);
    }
}

/* Between fork and exec: only what may be called there.  The child has a process group of its own,
 * so that Ctrl-C reaches the supervisor alone, which stops the company in order; when the
 * supervisor dies, so does the child. */
static _Noreturn void become(const char *program, char *const *arguments, pid_t parent)
{
    sigset_t none;
    (void)setpgid(0, 0);
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);
    (void)signal(SIGTERM, SIG_DFL); /* libevent's handlers would write into the parent's pipe */
    (void)signal(SIGINT, SIG_DFL);
    if (signal(SIGHUP, SIG_DFL) == SIG_IGN) (void)signal(SIGHUP, SIG_IGN);
    (void)signal(SIGCHLD, SIG_DFL);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)syscall(SYS_close_range, 3u, ~0u, 0u);
    (void)execv(program, arguments);
    _exit(127);
}

static err_t start_process(actor_t *world, child_t *child, uint64_t epoch)
{
    char index[NUMBER_BYTES], life[NUMBER_BYTES];
    const char *config = world->options.config_file;
    (void)snprintf(index, sizeof index, "%u", child->who.index);
    (void)snprintf(life, sizeof life, "%" PRIu64, epoch);
    const char *arguments[] = { world->options.program,
                                "actor",
                                "--role",
                                role_names[child->who.role],
                                "--index",
                                index,
                                "--epoch",
                                life,
                                config ? "--config" : NULL,
                                config,
                                NULL };
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &before);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(world->options.program, (char *const *)(uintptr_t)arguments, parent);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) return ERR_IO;
    child->pid = (uint32_t)pid;
    return ERR_OK;
}

/* ---- threads ---- */

static void *run_thread(void *arg)
{
    child_t *child = arg;
    uint64_t one = 1;
    child->result = world_run(&child->options);
    atomic_store(&child->has_ended, true);
    invariant(write(child->news, &one, sizeof one) == (ssize_t)sizeof one);
    return NULL;
}

static void on_thread(evutil_socket_t descriptor, short what, void *arg)
{
    actor_t *world = arg;
    processes_t *self = world->ports[PORT_PROCESS].state;
    uint64_t count;
    char how[128];
    if (read(descriptor, &count, sizeof count) < 0) return;
    for (int i = 0; i < CHILDREN_MAX; i++) {
        child_t *child = &self->children[i];
        if (child->pid == 0 || !atomic_load(&child->has_ended)) continue;
        invariant(pthread_join(child->thread, NULL) == 0);
        (void)close(child->options.stop_descriptor);
        (void)snprintf(how, sizeof how, "exit status %d", (int)child->result);
        tell_exit(world, child, how);
    }
}

static err_t start_thread(actor_t *world, processes_t *self, child_t *child, uint64_t epoch)
{
    const actor_class_t *class = actor_classes[child->who.role];
    int stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!class || stop < 0) return class ? ERR_IO : ERR_UNSUPPORTED;
    child->options = (world_options_t){ .class = class,
                                        .index = child->who.index,
                                        .epoch = epoch,
                                        .config = world->config,
                                        .stop_descriptor = stop,
                                        .model_key = world->model_key };
    atomic_store(&child->has_ended, false);
    child->news = self->descriptor;
    if (pthread_create(&child->thread, NULL, run_thread, child)) {
        (void)close(stop);
        return ERR_IO;
    }
    child->pid = THREAD_PID + ++self->threads_started;
    return ERR_OK;
}

static void stop_thread(const child_t *child, bool is_forced)
{
    uint64_t times = is_forced ? 2 : 1; /* asked twice it does not drain */
    invariant(write(child->options.stop_descriptor, &times, sizeof times) == (ssize_t)sizeof times);
}

/* ---- the port ---- */

/* Who is left is not left behind. */
static void close_port(actor_t *world)
{
    processes_t *self = world->ports[PORT_PROCESS].state;
    if (!self) return;
    for (int i = 0; i < CHILDREN_MAX; i++) {
        child_t *child = &self->children[i];
        if (child->pid == 0) continue;
        if (world->options.is_one_process) {
            if (!atomic_load(&child->has_ended)) stop_thread(child, true);
            invariant(pthread_join(child->thread, NULL) == 0);
            (void)close(child->options.stop_descriptor);
        } else {
            (void)kill((pid_t)child->pid, SIGTERM);
        }
    }
    if (self->event) event_free(self->event);
    if (self->descriptor >= 0) (void)close(self->descriptor);
    free(self);
    world->ports[PORT_PROCESS].state = NULL;
}

err_t actor_process_open(actor_t *world)
{
    invariant(world->is_in_init && !world->ports[PORT_PROCESS].state);
    processes_t *self = calloc(1, sizeof *self);
    if (!self) return ERR_NO_SPACE;
    self->descriptor = -1;
    world->ports[PORT_PROCESS].state = self;
    world->ports[PORT_PROCESS].hooks.close = close_port;
    if (world->options.is_one_process) {
        self->descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        self->event =
            event_new(world->base, self->descriptor, EV_READ | EV_PERSIST, on_thread, world);
    } else {
        self->event = event_new(world->base, SIGCHLD, EV_SIGNAL | EV_PERSIST, on_child, world);
    }
    return self->event && !event_add(self->event, NULL) ? ERR_OK : ERR_IO;
}

err_t actor_process_start(actor_t *world, address_t who, uint64_t epoch, uint32_t *pid)
{
    processes_t *self = world->ports[PORT_PROCESS].state;
    invariant(self != NULL);
    child_t *child = self->children;
    while (child < self->children + CHILDREN_MAX && child->pid) child++;
    if (child == self->children + CHILDREN_MAX) return ERR_NO_SPACE;
    child->who = who;
    err_t error = world->options.is_one_process ? start_thread(world, self, child, epoch)
                                                : start_process(world, child, epoch);
    if (!error) *pid = child->pid;
    return error;
}

uint32_t actor_process_self(const actor_t *world)
{
    return (uint32_t)getpid();
}

void actor_process_stop(actor_t *world, uint32_t pid, bool is_forced)
{
    processes_t *self = world->ports[PORT_PROCESS].state;
    if (pid == 0) {
        world_fail(world, ERR_INTERNAL);
        return;
    }
    for (int i = 0; self && i < CHILDREN_MAX; i++) {
        const child_t *child = &self->children[i];
        if (child->pid != pid) continue;
        if (world->options.is_one_process)
            stop_thread(child, is_forced);
        else
            (void)kill((pid_t)pid, is_forced ? SIGKILL : SIGTERM);
    }
}
