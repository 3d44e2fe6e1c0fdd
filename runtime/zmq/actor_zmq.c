/* runtime/zmq/actor_zmq.c - the real world: one thread and one libevent loop for each actor, ZeroMQ
 * between them.
 *
 *   wait for descriptors -> a turn: receive, alarm, class->turn, ports, send -> wait ...
 *
 * Callbacks of descriptors only mark what to look at; everything that may call a handler happens in
 * the turn, so handlers never nest.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../base/company.h"
#include "../process.h"
#include "state.h"

/* ---- events ---- */

static void on_tick(evutil_socket_t descriptor, short what, void *arg)
{
    actor_t *world = arg;
    peers_tick(world);
    batches_flush(world);
}

static void on_alarm(evutil_socket_t descriptor, short what, void *arg)
{
    actor_t *world = arg;
    world->is_alarm_due = true;
}

static void on_stop_event(evutil_socket_t descriptor, short what, void *arg)
{
    actor_t *world = arg;
    uint64_t count = 0;
    if (read(descriptor, &count, sizeof count) == (ssize_t)sizeof count)
        world->stop_signals += (uint32_t)count;
}

/* One wish may arrive as two signals, to the process and to its group: only a later one is a
 * second. */
static void on_stop_signal(evutil_socket_t number, short what, void *arg)
{
    actor_t *world = arg;
    uint64_t now_us = actor_now_us(world);
    if (now_us - world->stop_signal_us < STOP_AGAIN_MS * 1000) return;
    world->stop_signal_us = now_us;
    world->stop_signals++;
}

/* ---- stopping ---- */

/* A supervisor ends when its children have; it knows better than we how long to wait for them. */
static void begin_stop(actor_t *world, uint32_t drain_ms)
{
    uint64_t patience_ms = world->self.role == ROLE_supervisor ? drain_ms + 60000u : drain_ms;
    world->is_stopping = true;
    world->stop_deadline_us = actor_now_us(world) + patience_ms * 1000;
}

static void stop_by_signal(actor_t *world)
{
    if (world->stop_signals == 0) return;
    if (world->stop_signals > 1) world->stop_deadline_us = 0; /* asked twice */
    if (world->is_stopping) return;
    msg_t stop;
    msg_init(&stop, MSG_stop);
    stop.header.from = world->self;
    stop.stop.drain_ms = STOP_DRAIN_MS;
    begin_stop(world, STOP_DRAIN_MS);
    if (world->class->on[MSG_stop]) deliver(world, &stop);
}

void stop_by_message(actor_t *world, const msg_t *m)
{
    /* Also after a signal, which did not say how long. */
    if (m->header.from.role != ROLE_client && world->stop_signals < 2)
        begin_stop(world, m->stop.drain_ms);
}

void world_fail(actor_t *world, err_t error)
{
    invariant(error != ERR_OK);
    if (!world->is_failed) world->failure = error;
    world->is_failed = true;
}

static bool is_over(actor_t *world)
{
    if (world->is_failed) return true;
    if (!world->is_stopping) return false;
    if (!world->class->is_idle || world->class->is_idle(world->state)) return true;
    if (actor_now_us(world) < world->stop_deadline_us) return false;
    actor_log(world, LOG_WARN, "WORLD-DRAIN",
              "stopped with work left: the time to drain it is over");
    return true;
}

/* ---- the turn ---- */

static void run_alarm(actor_t *world)
{
    if (world->alarm_us == 0 || actor_now_us(world) < world->alarm_us) return;
    world->alarm_us = 0;
    if (world->class->wake) world->class->wake(world->state, world);
}

static void run_ports(actor_t *world)
{
    for (int i = 0; i < PORTS_MAX; i++)
        if (world->ports[i].hooks.turn) world->ports[i].hooks.turn(world);
}

static void report_when_due(actor_t *world)
{
    uint64_t now_us = actor_now_us(world);
    if (now_us - world->reported_us < 1000000) return;
    world->reported_us = now_us;
    links_keep(world);
    report_send(world);
}

/* Returns whether work is left for the next turn. */
static bool run_turn(actor_t *world)
{
    uint32_t budget = TURN_MESSAGES_MAX;
    stop_by_signal(world);
    peers_deliver_lost(world);
    posted_deliver(world, &budget);
    links_receive(world, &budget);
    run_alarm(world);
    if (world->class->turn) world->class->turn(world->state, world);
    run_ports(world);
    report_when_due(world);
    batches_flush(world);
    bool is_stop_asked = world->stop_signals > 0 && !world->is_stopping;
    return links_have_more(world) || world->posted_first || world->has_lost || is_stop_asked;
}

/* The alarm's timer is set again only when the actor asked for another time. */
static void arm_alarm(actor_t *world, uint64_t *armed_us)
{
    if (world->alarm_us == *armed_us && !world->is_alarm_due) return;
    world->is_alarm_due = false;
    *armed_us = world->alarm_us;
    (void)event_del(world->alarm);
    if (world->alarm_us == 0) return;
    uint64_t now_us = actor_now_us(world);
    uint64_t wait_us = world->alarm_us > now_us ? world->alarm_us - now_us : 0;
    struct timeval wait = { (time_t)(wait_us / 1000000), (suseconds_t)(wait_us % 1000000) };
    invariant(event_add(world->alarm, &wait) == 0);
}

/* Peers must not reach an actor that is not ready, and a worker is when its engine is. */
static void link_when_ready(actor_t *world)
{
    if (world->is_linked || world->is_loading || world->is_failed) return;
    err_t error = links_open(world);
    if (error) {
        world_fail(world, error);
        return;
    }
    world->is_linked = true;
    actor_log(world, LOG_INFO, "WORLD-UP", "epoch %llu, process %d",
              (unsigned long long)world->epoch, (int)getpid());
}

static void run_loop(actor_t *world)
{
    uint64_t armed_us = 0;
    bool has_more = true;
    for (link_when_ready(world); !is_over(world); link_when_ready(world)) {
        arm_alarm(world, &armed_us);
        (void)event_base_loop(world->base, EVLOOP_ONCE | (has_more ? EVLOOP_NONBLOCK : 0));
        has_more = run_turn(world);
    }
    batches_flush(world);
}

/* ---- start and end ---- */

/* What the signal does now it does again when the loop is closed: asked once more in the last
 * moments, we must not leave files behind. */
static err_t add_signal(actor_t *world, int which, int number)
{
    (void)signal(number, SIG_IGN);
    world->stop_events[which] =
        event_new(world->base, number, EV_SIGNAL | EV_PERSIST, on_stop_signal, world);
    return world->stop_events[which] && !event_add(world->stop_events[which], NULL) ? ERR_OK
                                                                                    : ERR_IO;
}

static bool is_ignored(int number)
{
    struct sigaction action;
    return sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

static err_t watch_stop(actor_t *world)
{
    int descriptor = world->options.stop_descriptor;
    if (descriptor <= 0) {
        err_t error = add_signal(world, 0, SIGTERM);
        if (!error) error = add_signal(world, 1, SIGINT);
        /* A terminal that closes ends what runs in it, but not under nohup. */
        return error || is_ignored(SIGHUP) ? error : add_signal(world, 2, SIGHUP);
    }
    world->stop_events[0] =
        event_new(world->base, descriptor, EV_READ | EV_PERSIST, on_stop_event, world);
    return world->stop_events[0] && !event_add(world->stop_events[0], NULL) ? ERR_OK : ERR_IO;
}

static err_t open_loop(actor_t *world)
{
    struct timeval tick = { 0, TICK_MS * 1000 };
    struct event_config *config = event_config_new();
    if (!config) return ERR_NO_SPACE;
    (void)event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
    world->base = event_base_new_with_config(config);
    event_config_free(config);
    if (!world->base) return ERR_NO_SPACE;
    world->tick = event_new(world->base, -1, EV_PERSIST, on_tick, world);
    world->alarm = event_new(world->base, -1, 0, on_alarm, world);
    if (!world->tick || !world->alarm || event_add(world->tick, &tick)) return ERR_NO_SPACE;
    return watch_stop(world);
}

static void close_loop(actor_t *world)
{
    struct event *events[] = { world->tick, world->alarm, world->stop_events[0],
                               world->stop_events[1], world->stop_events[2] };
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i]) event_free(events[i]);
    if (world->base) event_base_free(world->base);
}

static err_t init_class(actor_t *world)
{
    world->state = calloc(1, world->class->state_size ? world->class->state_size : 1);
    if (!world->state) return ERR_NO_SPACE;
    if (!world->class->init) return ERR_OK;
    world->is_in_init = true;
    err_t error = world->class->init(world->state, world);
    world->is_in_init = false;
    if (error && !world->why.text[0])
        actor_log(world, LOG_ERROR, "WORLD-INIT", "the actor cannot start: %s, %s",
                  error_descs[error].name, error_descs[error].doc);
    return error;
}

static err_t identify(actor_t *world, const world_options_t *options)
{
    const char *check = getenv("TROUPE_CHECK");
    world->options = *options;
    world->class = options->class;
    world->config = options->config;
    world->self = (address_t){ options->class->role, options->index };
    world->epoch = options->epoch ? options->epoch : actor_wall_us(world);
    world->started_us = world->reported_us = actor_now_us(world);
    world->is_check_always = check && check[0] == '1';
    world->lock_descriptor = -1;
    world->model_key = options->model_key;
    world->metrics.slots = calloc(metrics_slot_count(), sizeof(double));
    if (!world->metrics.slots) return ERR_NO_SPACE;
    uint32_t instances = company_count(world->config, world->self.role);
    if (options->index >= instances) {
        actor_log(world, LOG_ERROR, "WORLD-INDEX",
                  "found index %u, allowed are 0 to %u as company says", options->index,
                  instances ? instances - 1 : 0);
        return ERR_CONFIG;
    }
    return world_directory(world->config, world->directory, sizeof world->directory);
}

static err_t start(actor_t *world, const world_options_t *options)
{
    err_t error = identify(world, options);
    if (!error) error = identity_lock(world);
    if (!error) error = open_loop(world);
    if (error) return error;
    world->context = zmq_ctx_new();
    if (!world->context) return ERR_NO_SPACE;
    error = peers_open(world);
    if (!error) error = batches_open(world);
    if (!error) error = init_class(world);
    if (!error) error = curve_open(world);
    return error;
}

static void free_memory(actor_t *world)
{
    while (world->memory) {
        memory_t *next = world->memory->next;
        free(world->memory);
        world->memory = next;
    }
    free(world->state);
    free(world->metrics.slots);
}

static void end(actor_t *world)
{
    if (world->state && world->class->fini) world->class->fini(world->state, world);
    for (int i = 0; i < PORTS_MAX; i++)
        if (world->ports[i].hooks.close) world->ports[i].hooks.close(world);
    posted_drop(world);
    links_close(world);
    curve_close(world);
    if (world->context) (void)zmq_ctx_term(world->context);
    batches_close(world);
    peers_close(world);
    close_loop(world);
    free_memory(world);
    if (world->failure && world->options.epoch) why_leave(world);
    identity_unlock(world);
}

/* Debian gives a process 1024 descriptors at first; an ingress holds thousands of connections.
 * Returns how many there may be now. */
static rlim_t raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) return RLIM_INFINITY;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_max;
}

/* Said before the first socket: libzmq ends a process that has no descriptor left. */
err_t world_raise_descriptors(const config_t *config, bool is_one_process, world_why_t *why)
{
    rlim_t allowed = raise_descriptor_limit(), all = 0, most = 0;
    for (role_t role = 0; role < ROLES_MAX; role++) {
        if (company_count(config, role) == 0) continue;
        rlim_t needed = role_descriptors(config, role);
        all += needed * company_count(config, role);
        if (needed > most) most = needed;
    }
    rlim_t needed = is_one_process ? all : most;
    if (needed <= allowed) return ERR_OK;
    (void)snprintf(why->text, sizeof why->text,
                   "%llu open files are allowed (ulimit -n), but %s may need %llu",
                   (unsigned long long)allowed, is_one_process ? "the company" : "an actor",
                   (unsigned long long)needed);
    return ERR_CONFIG;
}

err_t world_run(const world_options_t *options)
{
    invariant(options->class && options->config);
    actor_t *world = calloc(1, sizeof *world);
    if (!world) return ERR_NO_SPACE;
    (void)signal(SIGPIPE, SIG_IGN);
    (void)raise_descriptor_limit();
    err_t error = start(world, options);
    if (error) {
        world_fail(world, error);
    } else {
        run_loop(world);
        actor_log(world, LOG_INFO, "WORLD-END", "%s",
                  world->failure ? "cannot go on" : "stopped in order");
    }
    end(world);
    error = world->failure;
    if (error && options->why) *options->why = world->why;
    free(world);
    return error;
}
