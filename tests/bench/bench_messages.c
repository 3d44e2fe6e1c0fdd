/* tests/bench/bench_messages.c - messages a second from actor to actor over ipc, beside a bare
 * ZeroMQ DEALER and ROUTER.
 *
 *   bench_messages [seconds]
 *
 * Two processes each time; bodies of 256 bytes.  The goal is 100,000 messages/s.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "runtime/base/config.h"
#include "runtime/world.h"

enum { BODY_BYTES = 256, BURST = 256, GOAL = 100000 };

/* Shared by both processes. */
typedef struct {
    _Atomic uint64_t received, first_us, last_us;
} shared_t;

static shared_t *shared;
static uint64_t end_us;
static uint64_t refused;
static int stop_descriptor;
static uint8_t body[BODY_BYTES];

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static double cpu_seconds(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void count_one(void)
{
    if (atomic_fetch_add_explicit(&shared->received, 1, memory_order_relaxed) == 0)
        atomic_store(&shared->first_us, now_us());
}

/* ---- actors ---- */

static void stop_self(void)
{
    uint64_t one = 1;
    if (write(stop_descriptor, &one, sizeof one) != (ssize_t)sizeof one) abort();
}

static void on_added(void *self, actor_t *world, const msg_t *m)
{
    count_one();
}

static void on_down(void *self, actor_t *world, const msg_t *m)
{
    stop_self();
}

static void mark_turn(void *self, actor_t *world)
{
    atomic_store(&shared->last_us, now_us());
}

static const actor_class_t receiver = {
    .name = "prefill_lb",
    .role = ROLE_prefill_lb,
    .state_size = 8,
    .turn = mark_turn,
    .on = { [MSG_prefix_added] = on_added, [MSG_peer_down] = on_down },
};

static void send_burst(void *self, actor_t *world)
{
    msg_t m;
    if (now_us() >= end_us) {
        stop_self();
        return;
    }
    msg_init(&m, MSG_prefix_added);
    m.prefix_added.keys = (bytes_t){ body, sizeof body };
    for (int i = 0; i < BURST; i++) {
        m.prefix_added.version++;
        if (actor_send(world, (address_t){ ROLE_prefill_lb, 0 }, &m)) {
            refused++;
            actor_wake_at(world, actor_now_us(world) + 200);
            return;
        }
    }
    actor_wake_at(world, actor_now_us(world));
}

static void on_up(void *self, actor_t *world, const msg_t *m)
{
    actor_wake_at(world, actor_now_us(world));
}

static const actor_class_t sender = {
    .name = "kv_store",
    .role = ROLE_kv_store,
    .state_size = 8,
    .wake = send_burst,
    .on = { [MSG_peer_up] = on_up },
};

static void run_actor(const config_t *config, const actor_class_t *class)
{
    stop_descriptor = eventfd(0, EFD_CLOEXEC);
    world_options_t options = { .class = class,
                                .config = config,
                                .stop_descriptor = stop_descriptor };
    if (world_run(&options)) exit(1);
}

/* ---- bare sockets ---- */

static void bare_receive(const char *endpoint)
{
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_ROUTER);
    char id[256], buf[BODY_BYTES];
    int wait_ms = 1000;
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms);
    if (zmq_bind(socket, endpoint)) exit(1);
    while (zmq_recv(socket, id, sizeof id, 0) >= 0) {
        if (zmq_recv(socket, buf, sizeof buf, 0) < 0) break;
        count_one();
        if ((shared->received & 255) == 0) atomic_store(&shared->last_us, now_us());
    }
    zmq_close(socket);
    zmq_ctx_term(context);
}

static void bare_send(const char *endpoint)
{
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
    if (zmq_connect(socket, endpoint)) exit(1);
    while (now_us() < end_us)
        for (int i = 0; i < BURST; i++) zmq_send(socket, body, sizeof body, 0);
    zmq_close(socket);
    zmq_ctx_term(context);
}

/* ---- both ---- */

typedef struct {
    double rate, cpu_us;
} outcome_t;

/* A child that receives, and we, who send for this long. */
static outcome_t measure(const config_t *config, bool is_bare, double seconds)
{
    char endpoint[300];
    shared->received = shared->first_us = shared->last_us = 0;
    snprintf(endpoint, sizeof endpoint, "ipc://%s/bare.sock", config->wire.directory);
    double cpu = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN);
    pid_t child = fork();
    if (child == 0) {
        if (is_bare)
            bare_receive(endpoint);
        else
            run_actor(config, &receiver);
        _exit(0);
    }
    end_us = now_us() + (uint64_t)(seconds * 1e6);
    if (is_bare)
        bare_send(endpoint);
    else
        run_actor(config, &sender);
    waitpid(child, NULL, 0);
    cpu = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN) - cpu;
    double spent = (double)(shared->last_us - shared->first_us) / 1e6;
    return (outcome_t){ (double)shared->received / spent, cpu / (double)shared->received * 1e6 };
}

int main(int count, char **arguments)
{
    static config_loaded_t loaded;
    double seconds = count > 1 ? atof(arguments[1]) : 2.0;
    char directory[] = "/tmp/troupe-bench-XXXXXX", command[64];
    config_init(&loaded);
    if (!mkdtemp(directory)) return 1;
    snprintf(loaded.config.wire.directory, sizeof loaded.config.wire.directory, "%s", directory);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    outcome_t bare = measure(&loaded.config, true, seconds);
    outcome_t actors = measure(&loaded.config, false, seconds);
    printf("bare DEALER to ROUTER  %9.0f messages/s  %5.2f us of CPU each (both ends)\n", bare.rate,
           bare.cpu_us);
    printf("actor to actor         %9.0f messages/s  %5.2f us of CPU each (both ends)\n",
           actors.rate, actors.cpu_us);
    printf(
        "ratio to bare %.2f; ratio to the goal of %d: %.2f; sends refused and tried again %llu\n",
        actors.rate / bare.rate, GOAL, actors.rate / GOAL, (unsigned long long)refused);
    snprintf(command, sizeof command, "%s/bare.sock", directory);
    unlink(command);
    for (int i = 0; i < 2; i++) {
        snprintf(command, sizeof command, "%s/%s-0.lock", directory, i ? "kv_store" : "prefill_lb");
        unlink(command);
        snprintf(command, sizeof command, "%s/%s-0.sock", directory, i ? "kv_store" : "prefill_lb");
        unlink(command);
    }
    return rmdir(directory) ? 1 : 0;
}
