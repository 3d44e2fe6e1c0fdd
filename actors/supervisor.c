/* actors/supervisor.c - starts, watches and restarts the processes of one host.
 *
 *   processes --process_exited--> supervisor --process_state--> director
 *   director, a signal --stop--> supervisor
 *
 * Policy: each process is restarted alone (actors find each other again by themselves), after a
 * pause that doubles from 50 ms to 5 s and is forgotten once it has run for 10 s.  Who ends
 * RESTARTS_MAX times within a minute, or cannot even start three times in a row, is beyond the help
 * of restarts: the company stops and says so.  It stops in the order of a request, so that what was
 * accepted is finished: ingress first (it drains), then balancers, workers, store, and director
 * last.  Each stage is bounded; who stays is killed.
 */
#include "supervisor.h"

#include "../runtime/base/company.h"
#include "../runtime/base/log.h"
#include "../runtime/process.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    PAUSE_LEAST_US = 50 * 1000,
    PAUSE_MOST_US = 5 * 1000 * 1000,
    HEALTHY_US = 10 * 1000 * 1000, /* a life this long clears the pause */
    RESTARTS_MAX = 15,             /* ends of one process ... */
    PERIOD_US = 60 * 1000 * 1000,  /* ... within this time */
    FAILED_STARTS_MAX = 3,         /* lives in a row that ended by themselves before HEALTHY_US */
    GRACE_US = 5 * 1000 * 1000,    /* a stage's time to end when asked, besides draining */
    KILL_US = 2 * 1000 * 1000,     /* and to be gone when killed */
    TELL_US = 100 * 1000,          /* until the director is told again what it could not be told */
    EXIT_TEXT_BYTES = 512,
};

typedef struct {
    address_t who;
    bool is_running;
    bool is_told; /* the director knows its present state */
    uint32_t pid, restarts;
    uint32_t failed_starts; /* in a row */
    uint64_t epoch;
    uint64_t started_us;
    uint64_t due_us;             /* when to start it; 0: not to be started */
    uint64_t pause_us;           /* before the next restart */
    uint64_t ends[RESTARTS_MAX]; /* when it last ended; a ring */
    uint32_t end_count;
    char last_exit[EXIT_TEXT_BYTES];
} child_t;

typedef struct {
    child_t own; /* the supervisor's process, of which the director is told as of the others */
    child_t *children;
    uint32_t child_count;
    bool is_stopping, is_stage_killed, is_hopeless;
    uint32_t stage;       /* of stopping; STAGES: all done */
    uint64_t stage_at_us; /* when the stage's patience ends */
    uint64_t drain_us;
} supervisor_t;

/* Who is started first is needed first; director, so that the others' reports find it. */
static const role_t start_order[] = {
    ROLE_director,    ROLE_kv_store,      ROLE_decode_lb,      ROLE_prefill_lb,
    ROLE_ep_balancer, ROLE_decode_worker, ROLE_prefill_worker, ROLE_ingress,
};

enum { STAGES = 5, STAGE_ROLES = 2 };
static const role_t stop_order[STAGES][STAGE_ROLES] = {
    { ROLE_ingress, ROLE_ingress },
    { ROLE_prefill_lb, ROLE_decode_lb },
    { ROLE_prefill_worker, ROLE_decode_worker },
    { ROLE_kv_store, ROLE_ep_balancer },
    { ROLE_director, ROLE_director },
};

static bool is_in_stage(const child_t *child, uint32_t stage)
{
    return child->who.role == stop_order[stage][0] || child->who.role == stop_order[stage][1];
}

/* ---- telling the director ---- */

static void tell(child_t *child, actor_t *world)
{
    msg_t m;
    msg_init(&m, MSG_process_state);
    m.process_state.role = child->who.role;
    m.process_state.index = child->who.index;
    m.process_state.pid = child->is_running ? child->pid : 0;
    m.process_state.restarts = child->restarts;
    m.process_state.is_running = child->is_running;
    snprintf(m.process_state.last_exit, sizeof m.process_state.last_exit, "%.*s",
             (int)sizeof m.process_state.last_exit - 1, child->last_exit);
    child->is_told = actor_send(world, (address_t){ ROLE_director, 0 }, &m) == ERR_OK;
}

/* Only while the director is up; it hears all anew when it comes up. */
static bool tell_all(supervisor_t *self, actor_t *world)
{
    if (actor_peer_epoch(world, (address_t){ ROLE_director, 0 }) == 0) return true;
    if (!self->own.is_told) tell(&self->own, world);
    bool is_complete = self->own.is_told;
    for (uint32_t i = 0; i < self->child_count; i++) {
        child_t *child = &self->children[i];
        if (!child->is_told) tell(child, world);
        is_complete = is_complete && child->is_told;
    }
    return is_complete;
}

/* ---- starting and restarting ---- */

static void begin_stop(supervisor_t *self, actor_t *world, uint64_t drain_us);

static void give_up(supervisor_t *self, actor_t *world, const child_t *child, const char *why)
{
    actor_log(world, LOG_ERROR, "SUPERVISOR-GIVES-UP", "%s %s (last: %s); the company stops",
              address_text(child->who).text, why, child->last_exit);
    self->is_hopeless = true;
    begin_stop(self, world, 0);
}

static bool is_too_often(const child_t *child, uint64_t now_us)
{
    if (child->end_count < RESTARTS_MAX) return false;
    uint64_t oldest_us = child->ends[child->end_count % RESTARTS_MAX];
    return now_us - oldest_us < PERIOD_US;
}

/* Books the end of a life and decides on the next. */
static void plan_restart(supervisor_t *self, actor_t *world, child_t *child)
{
    uint64_t now_us = actor_now_us(world);
    bool was_healthy = now_us - child->started_us >= HEALTHY_US;
    /* Who is killed or told to stop from outside did not fail to start. */
    bool is_own_end = strncmp(child->last_exit, "signal", 6) != 0 &&
                      strcmp(child->last_exit, "exit status 0") != 0;
    child->failed_starts = is_own_end && !was_healthy ? child->failed_starts + 1 : 0;
    if (was_healthy) child->pause_us = PAUSE_LEAST_US;
    child->ends[child->end_count % RESTARTS_MAX] = now_us;
    child->end_count++;
    if (child->failed_starts >= FAILED_STARTS_MAX) {
        give_up(self, world, child, "does not start");
        return;
    }
    if (is_too_often(child, now_us)) {
        give_up(self, world, child, "ends again and again");
        return;
    }
    child->due_us = now_us + child->pause_us;
    child->pause_us = child->pause_us * 2 < PAUSE_MOST_US ? child->pause_us * 2 : PAUSE_MOST_US;
}

static void start(supervisor_t *self, actor_t *world, child_t *child)
{
    uint64_t wall_us = actor_wall_us(world);
    invariant(!child->is_running && !self->is_stopping);
    /* Lives only grow, even if the wall clock was set back. */
    child->epoch = wall_us > child->epoch ? wall_us : child->epoch + 1;
    child->due_us = 0;
    child->started_us = actor_now_us(world);
    child->is_told = false;
    err_t error = actor_process_start(world, child->who, child->epoch, &child->pid);
    child->is_running = error == ERR_OK;
    if (error == ERR_OK) return;
    snprintf(child->last_exit, sizeof child->last_exit, "cannot be started: %s",
             error_descs[error].doc);
    actor_log(world, LOG_ERROR, "SUPERVISOR-START", "%s %s", address_text(child->who).text,
              child->last_exit);
    plan_restart(self, world, child);
}

static void start_due(supervisor_t *self, actor_t *world)
{
    for (uint32_t i = 0; i < self->child_count && !self->is_stopping; i++) {
        child_t *child = &self->children[i];
        if (child->due_us == 0 || child->due_us > actor_now_us(world)) continue;
        if (child->end_count > 0) child->restarts++;
        start(self, world, child);
    }
}

/* ---- stopping ---- */

static bool is_stage_over(const supervisor_t *self)
{
    for (uint32_t i = 0; i < self->child_count; i++) {
        const child_t *child = &self->children[i];
        if (child->is_running && is_in_stage(child, self->stage)) return false;
    }
    return true;
}

static void stop_stage(supervisor_t *self, actor_t *world, bool is_forced)
{
    for (uint32_t i = 0; i < self->child_count; i++) {
        child_t *child = &self->children[i];
        if (!child->is_running || !is_in_stage(child, self->stage)) continue;
        if (is_forced) {
            actor_log(world, LOG_WARN, "SUPERVISOR-KILL",
                      "%s (pid %" PRIu32 ") did not stop in time", address_text(child->who).text,
                      child->pid);
        }
        actor_process_stop(world, child->pid, is_forced);
    }
    uint64_t patience_us = is_forced ? KILL_US : GRACE_US;
    if (!is_forced && self->stage == 0) patience_us += self->drain_us;
    self->is_stage_killed = is_forced;
    self->stage_at_us = actor_now_us(world) + patience_us;
}

/* Moves on when a stage's processes are gone or, having been killed, do not even so. */
static void advance_stop(supervisor_t *self, actor_t *world)
{
    while (self->stage < STAGES) {
        bool is_late = actor_now_us(world) >= self->stage_at_us;
        if (!is_stage_over(self) && !is_late) return;
        if (!is_stage_over(self) && !self->is_stage_killed) {
            stop_stage(self, world, true);
            return;
        }
        self->stage++;
        if (self->stage < STAGES) stop_stage(self, world, false);
    }
    /* Pid 0 is the supervisor itself: nobody else would end it when restarts did not help. */
    if (self->is_hopeless) actor_process_stop(world, 0, false);
    self->is_hopeless = false;
}

static void begin_stop(supervisor_t *self, actor_t *world, uint64_t drain_us)
{
    if (self->is_stopping) return;
    self->is_stopping = true;
    self->drain_us = drain_us;
    for (uint32_t i = 0; i < self->child_count; i++) self->children[i].due_us = 0;
    stop_stage(self, world, false);
    actor_wake_at(world, actor_now_us(world) + 1);
}

/* ---- the alarm ---- */

static void set_alarm(supervisor_t *self, actor_t *world, bool is_told)
{
    uint64_t at_us = is_told ? UINT64_MAX : actor_now_us(world) + TELL_US;
    if (self->is_stopping && self->stage < STAGES && self->stage_at_us < at_us) {
        at_us = self->stage_at_us;
    }
    for (uint32_t i = 0; i < self->child_count; i++) {
        uint64_t due_us = self->children[i].due_us;
        if (due_us > 0 && due_us < at_us) at_us = due_us;
    }
    actor_wake_at(world, at_us == UINT64_MAX ? 0 : at_us);
}

/* All that time brings; called after everything that may have changed something. */
static void go_on(supervisor_t *self, actor_t *world)
{
    start_due(self, world);
    if (self->is_stopping) advance_stop(self, world);
    set_alarm(self, world, tell_all(self, world));
}

static void wake(void *state, actor_t *world)
{
    go_on(state, world);
}

/* ---- messages ---- */

static void on_process_exited(void *state, actor_t *world, const msg_t *m)
{
    supervisor_t *self = state;
    const msg_process_exited_t *ended = &m->process_exited;
    child_t *child = NULL;
    for (uint32_t i = 0; i < self->child_count; i++) {
        child_t *candidate = &self->children[i];
        bool is_it = candidate->who.role == ended->role && candidate->who.index == ended->index;
        if (is_it && candidate->is_running && candidate->pid == ended->pid) child = candidate;
    }
    if (child == NULL) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    child->is_running = false;
    child->is_told = false;
    snprintf(child->last_exit, sizeof child->last_exit, "%s", ended->how);
    if (!self->is_stopping) {
        actor_log(world, LOG_WARN, "SUPERVISOR-EXIT",
                  "%s (pid %" PRIu32 ") ended after %" PRIu64 " ms: %s",
                  address_text(child->who).text, child->pid,
                  (actor_now_us(world) - child->started_us) / 1000, child->last_exit);
        plan_restart(self, world, child);
    }
    go_on(self, world);
}

static void on_stop(void *state, actor_t *world, const msg_t *m)
{
    supervisor_t *self = state;
    role_t from = m->header.from.role;
    if (from != ROLE_director && from != ROLE_supervisor) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    actor_log(world, LOG_INFO, "SUPERVISOR-STOP", "the company stops, drain %" PRIu32 " ms",
              m->stop.drain_ms);
    begin_stop(self, world, (uint64_t)m->stop.drain_ms * 1000);
}

/* A director that comes up knows nothing of the processes. */
static void on_peer_up(void *state, actor_t *world, const msg_t *m)
{
    supervisor_t *self = state;
    self->own.is_told = false;
    for (uint32_t i = 0; i < self->child_count; i++) self->children[i].is_told = false;
    go_on(self, world);
}

static void add_child(supervisor_t *self, actor_t *world, address_t who)
{
    self->children[self->child_count++] = (child_t){
        .who = who,
        .due_us = actor_now_us(world) + 1,
        .pause_us = PAUSE_LEAST_US,
    };
}

static err_t init(void *state, actor_t *world)
{
    supervisor_t *self = state;
    const config_t *config = actor_config(world);
    uint32_t size = company_size(config);
    self->own = (child_t){ .who = { ROLE_supervisor, 0 },
                           .is_running = true,
                           .pid = actor_process_self(world) };
    self->children = actor_alloc(world, size, sizeof *self->children);
    for (size_t i = 0; i < sizeof start_order / sizeof start_order[0]; i++) {
        for (uint32_t index = 0; index < company_count(config, start_order[i]); index++) {
            add_child(self, world, (address_t){ start_order[i], index });
        }
    }
    invariant(self->child_count == size - 1); /* all but itself */
    actor_wake_at(world, actor_now_us(world) + 1);
    return actor_process_open(world);
}

static void check(const void *state)
{
    const supervisor_t *self = state;
    invariant(self->stage <= STAGES);
    for (uint32_t i = 0; i < self->child_count; i++) {
        const child_t *child = &self->children[i];
        invariant(!child->is_running || child->due_us == 0);
        invariant(!child->is_running || child->epoch > 0);
        invariant(!self->is_stopping || child->due_us == 0);
        invariant(child->pause_us >= PAUSE_LEAST_US && child->pause_us <= PAUSE_MOST_US);
        invariant(child->failed_starts <= FAILED_STARTS_MAX);
    }
}

/* Asked when it has been told to stop: the world ends it when nobody is left. */
static bool is_idle(const void *state)
{
    const supervisor_t *self = state;
    for (uint32_t i = 0; i < self->child_count; i++) {
        if (self->children[i].is_running && self->stage < STAGES) return false;
    }
    return true;
}

const actor_class_t supervisor_class = {
    .name = "supervisor",
    .role = ROLE_supervisor,
    .state_size = sizeof(supervisor_t),
    .init = init,
    .wake = wake,
    .check = check,
    .is_idle = is_idle,
    .on = {
        [MSG_process_exited] = on_process_exited,
        [MSG_stop] = on_stop,
        [MSG_peer_up] = on_peer_up,
    },
};
