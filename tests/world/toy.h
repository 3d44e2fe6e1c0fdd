/* tests/world/toy.h - toy actors for tests of the real world: each runs in a thread or a process,
 * tells what it hears, sends what the test says. */
#ifndef TESTS_WORLD_TOY_H
#define TESTS_WORLD_TOY_H

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/base/config.h"
#include "runtime/world.h"

enum { TOY_EVENTS = 65536, TOYS_MAX = 8 };

typedef struct {
    msg_type_t type;
    header_t header;
    address_t peer; /* of peer_up, peer_down */
    u64 epoch;      /* of peer_up, peer_down */
    msg_pool_done_t pool_done;
    msg_process_exited_t exited;
} toy_event_t;

typedef struct toy toy_t;

/* What the test wants done on the actor's thread; returns what toy_do returns. */
typedef int toy_task_fn(toy_t *toy, actor_t *world, void *arg);

struct toy {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const config_t *config;
    actor_class_t class;
    world_options_t options;
    err_t (*setup)(actor_t *world); /* inside init; may be NULL */
    err_t result;
    bool is_started, is_ended;
    toy_task_fn *task;
    void *task_arg;
    int task_result;
    uint32_t count;
    uint32_t counts[MSG_COUNT];
    toy_event_t *events;
    metrics_t *metrics;
};

static toy_t *toys[TOYS_MAX];

static inline uint64_t toy_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline toy_t *toy_of(const actor_t *world)
{
    address_t self = actor_self(world);
    for (int i = 0; i < TOYS_MAX; i++)
        if (toys[i] && toys[i]->class.role == self.role && toys[i]->options.index == self.index &&
            !toys[i]->is_ended && toys[i]->is_started)
            return toys[i];
    abort();
}

static inline void toy_on_any(void *self, actor_t *world, const msg_t *m)
{
    toy_t *toy = *(toy_t **)self;
    pthread_mutex_lock(&toy->lock);
    if (toy->count < TOY_EVENTS) {
        toy_event_t *event = &toy->events[toy->count];
        event->type = m->type;
        event->header = m->header;
        if (m->type == MSG_peer_up) {
            event->peer = (address_t){ (role_t)m->peer_up.role, m->peer_up.index };
            event->epoch = m->peer_up.peer_epoch;
        }
        if (m->type == MSG_peer_down) {
            event->peer = (address_t){ (role_t)m->peer_down.role, m->peer_down.index };
            event->epoch = m->peer_down.peer_epoch;
        }
        if (m->type == MSG_process_exited) event->exited = m->process_exited;
        if (m->type == MSG_pool_done) event->pool_done = m->pool_done;
        toy->count++;
    }
    toy->counts[m->type]++;
    pthread_cond_broadcast(&toy->changed);
    pthread_mutex_unlock(&toy->lock);
}

static inline void toy_wake(void *self, actor_t *world)
{
    toy_t *toy = *(toy_t **)self;
    pthread_mutex_lock(&toy->lock);
    toy_task_fn *task = toy->task;
    void *arg = toy->task_arg;
    pthread_mutex_unlock(&toy->lock);
    if (task) {
        int result = task(toy, world, arg);
        pthread_mutex_lock(&toy->lock);
        toy->task = NULL;
        toy->task_result = result;
        pthread_cond_broadcast(&toy->changed);
        pthread_mutex_unlock(&toy->lock);
    }
    actor_wake_at(world, actor_now_us(world) + 1000);
}

static inline err_t toy_init(void *self, actor_t *world)
{
    toy_t *toy = toy_of(world);
    *(toy_t **)self = toy;
    actor_wake_at(world, actor_now_us(world) + 1000);
    return toy->setup ? toy->setup(world) : ERR_OK;
}

static inline void *toy_thread(void *arg)
{
    toy_t *toy = arg;
    toy->result = world_run(&toy->options);
    pthread_mutex_lock(&toy->lock);
    toy->is_ended = true;
    pthread_cond_broadcast(&toy->changed);
    pthread_mutex_unlock(&toy->lock);
    return NULL;
}

static inline void toy_class(actor_class_t *class, role_t role)
{
    *class = (actor_class_t){ .name = role_names[role],
                              .role = role,
                              .state_size = sizeof(toy_t *),
                              .init = toy_init,
                              .wake = toy_wake };
    for (int i = 0; i < MSG_COUNT; i++) class->on[i] = toy_on_any;
    class->on[MSG_report] = NULL;
}

typedef struct {
    uint64_t epoch, model_key;
    err_t (*setup)(actor_t *world); /* inside init; may be NULL */
    const char *program, *config_file;
    bool is_one_process;
    bool is_busy;     /* has always work left */
    world_why_t *why; /* may be NULL */
} toy_options_t;

static inline bool toy_never_idle(const void *self)
{
    return false;
}

static inline toy_t *toy_start_as(const config_t *config, address_t who, toy_options_t options)
{
    toy_t *toy = calloc(1, sizeof *toy);
    assert_non_null(toy);
    toy->events = calloc(TOY_EVENTS, sizeof *toy->events);
    assert_non_null(toy->events);
    pthread_mutex_init(&toy->lock, NULL);
    pthread_cond_init(&toy->changed, NULL);
    toy->config = config;
    toy->setup = options.setup;
    toy_class(&toy->class, who.role);
    if (options.is_busy) toy->class.is_idle = toy_never_idle;
    toy->options = (world_options_t){ .class = &toy->class,
                                      .index = who.index,
                                      .epoch = options.epoch,
                                      .model_key = options.model_key,
                                      .program = options.program,
                                      .config_file = options.config_file,
                                      .is_one_process = options.is_one_process,
                                      .why = options.why,
                                      .config = config,
                                      .stop_descriptor = eventfd(0, EFD_CLOEXEC) };
    toy->is_started = true;
    for (int i = 0; i < TOYS_MAX; i++) {
        if (toys[i]) continue;
        toys[i] = toy;
        break;
    }
    assert_int_equal(pthread_create(&toy->thread, NULL, toy_thread, toy), 0);
    return toy;
}

static inline toy_t *toy_start_with(const config_t *config, address_t who, uint64_t epoch,
                                    err_t (*setup)(actor_t *world))
{
    return toy_start_as(config, who, (toy_options_t){ .epoch = epoch, .setup = setup });
}

static inline toy_t *toy_start_model(const config_t *config, address_t who, uint64_t epoch,
                                     uint64_t model_key)
{
    return toy_start_as(config, who, (toy_options_t){ .epoch = epoch, .model_key = model_key });
}

static inline toy_t *toy_start(const config_t *config, address_t who, uint64_t epoch)
{
    return toy_start_with(config, who, epoch, NULL);
}

/* Stop it in order and free it; returns what world_run returned. */
static inline err_t toy_stop(toy_t *toy)
{
    uint64_t one = 1;
    assert_int_equal(write(toy->options.stop_descriptor, &one, sizeof one), sizeof one);
    pthread_join(toy->thread, NULL);
    err_t result = toy->result;
    for (int i = 0; i < TOYS_MAX; i++)
        if (toys[i] == toy) toys[i] = NULL;
    close(toy->options.stop_descriptor);
    pthread_mutex_destroy(&toy->lock);
    pthread_cond_destroy(&toy->changed);
    free(toy->events);
    free(toy);
    return result;
}

static inline struct timespec toy_deadline(uint32_t milliseconds)
{
    struct timespec when;
    clock_gettime(CLOCK_REALTIME, &when);
    when.tv_sec += milliseconds / 1000;
    when.tv_nsec += (long)(milliseconds % 1000) * 1000000;
    if (when.tv_nsec >= 1000000000) {
        when.tv_nsec -= 1000000000;
        when.tv_sec++;
    }
    return when;
}

/* Run a task on the actor's thread and wait for it. */
static inline int toy_do(toy_t *toy, toy_task_fn *task, void *arg)
{
    struct timespec deadline = toy_deadline(30000);
    pthread_mutex_lock(&toy->lock);
    toy->task = task;
    toy->task_arg = arg;
    while (toy->task && !toy->is_ended)
        if (pthread_cond_timedwait(&toy->changed, &toy->lock, &deadline)) break;
    int result = toy->task ? -1 : toy->task_result;
    pthread_mutex_unlock(&toy->lock);
    return result;
}

/* Wait until `count` messages of this type were heard; false after so many milliseconds. */
static inline bool toy_wait_for(toy_t *toy, msg_type_t type, uint32_t count, uint32_t milliseconds)
{
    struct timespec deadline = toy_deadline(milliseconds);
    pthread_mutex_lock(&toy->lock);
    while (toy->counts[type] < count && !toy->is_ended)
        if (pthread_cond_timedwait(&toy->changed, &toy->lock, &deadline)) break;
    bool is_there = toy->counts[type] >= count;
    pthread_mutex_unlock(&toy->lock);
    return is_there;
}

static inline bool toy_wait(toy_t *toy, msg_type_t type, uint32_t count)
{
    return toy_wait_for(toy, type, count, 20000);
}

/* The nth (from 0) message of a type that was heard. */
static inline toy_event_t toy_event(toy_t *toy, msg_type_t type, uint32_t nth)
{
    toy_event_t event = { .type = MSG_COUNT };
    pthread_mutex_lock(&toy->lock);
    for (uint32_t i = 0, seen = 0; i < toy->count; i++) {
        if (toy->events[i].type != type || seen++ != nth) continue;
        event = toy->events[i];
        break;
    }
    pthread_mutex_unlock(&toy->lock);
    return event;
}

static inline uint32_t toy_count(toy_t *toy, msg_type_t type)
{
    pthread_mutex_lock(&toy->lock);
    uint32_t count = toy->counts[type];
    pthread_mutex_unlock(&toy->lock);
    return count;
}

typedef struct {
    address_t to;
    u64 first, count; /* request ids lo = first... */
    u64 sent;
} toy_sends_t;

/* Send `count` cancels with growing request ids, until one is refused; returns the last error. */
static inline int toy_task_send(toy_t *toy, actor_t *world, void *arg)
{
    toy_sends_t *sends = arg;
    msg_t m;
    err_t error = ERR_OK;
    msg_init(&m, MSG_cancel);
    for (sends->sent = 0; sends->sent < sends->count && !error; sends->sent++) {
        m.header.request.lo = sends->first + sends->sent;
        error = actor_send(world, sends->to, &m);
        if (error) break;
    }
    return (int)error;
}

static inline int toy_send(toy_t *toy, address_t to, u64 first, u64 count)
{
    toy_sends_t sends = { .to = to, .first = first, .count = count };
    return toy_do(toy, toy_task_send, &sends);
}

/* Remove the wire directory with what is in it, and the configuration. */
static inline void toy_config_free(config_t *config)
{
    DIR *directory = opendir(config->wire.directory);
    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory));)
        (void)unlinkat(dirfd(directory), entry->d_name, 0);
    closedir(directory);
    assert_int_equal(rmdir(config->wire.directory), 0);
    free(config);
}

/* A configuration with the defaults, a wire directory of its own and quick detection. */
static inline config_t *toy_config(void)
{
    config_loaded_t *loaded = calloc(1, sizeof *loaded);
    assert_non_null(loaded);
    config_init(loaded);
    config_t *config = &loaded->config; /* its first member: free(config) frees all */
    char directory[] = "/tmp/troupe-test-XXXXXX";
    assert_non_null(mkdtemp(directory));
    snprintf(config->wire.directory, sizeof config->wire.directory, "%s", directory);
    config->timing.heartbeat_ms = 50;
    config->timing.dead_ms = 400;
    return config;
}

#endif
