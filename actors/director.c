/* actors/director.c - knows who is alive and how they do, and tells who asks.
 *
 *   any --report--> director --report--> every ingress (for /metrics)
 *   supervisor --process_state--> director
 *   client --status_request--> director --status_reply--> client
 *   client --stop--> director --stop--> supervisor
 *
 * Nothing on the path of a token waits for it: a director that dies is started again and has its
 * picture back after one report of everybody.  What it tells is the last that it heard, with its
 * age.
 */
#include "director.h"

#include "../runtime/base/company.h"
#include "../runtime/base/json_text.h"
#include "../runtime/base/log.h"

#include <assert.h>
#include <string.h>

enum { JSON_BYTES = 1 << 20, EXIT_TEXT_BYTES = 128 };

typedef struct {
    address_t who;
    bool is_up;      /* the link to it is */
    bool is_managed; /* the supervisor told of its process */
    bool is_running;
    uint32_t pid, restarts;
    char last_exit[EXIT_TEXT_BYTES];
    uint64_t life, uptime_us;
    uint64_t heard_us; /* when its last report came; 0: never */
    double *values;
} member_t;

typedef struct {
    member_t *members;
    uint32_t member_count, slot_count;
    uint64_t born_us;
    bool owes_stop; /* a client's, to the supervisor */
    uint32_t stop_drain_ms;
    char *json;
} director_t;

static member_t *find(director_t *self, uint32_t role, uint32_t index)
{
    for (uint32_t i = 0; i < self->member_count; i++) {
        member_t *member = &self->members[i];
        if (member->who.role == role && member->who.index == index) return member;
    }
    return NULL;
}

static err_t init(void *state, actor_t *world)
{
    director_t *self = state;
    const config_t *config = actor_config(world);
    self->slot_count = metrics_slot_count();
    self->born_us = actor_now_us(world);
    self->members = actor_alloc(world, company_size(config), sizeof *self->members);
    self->json = actor_alloc(world, JSON_BYTES, 1);
    for (role_t role = 0; role < ROLES_MAX; role++) {
        for (uint32_t index = 0; index < company_count(config, role); index++) {
            member_t *member = &self->members[self->member_count++];
            member->who = (address_t){ role, index };
            member->is_up = role == ROLE_director; /* nobody tells it of itself */
            member->values = actor_alloc(world, self->slot_count, sizeof(double));
        }
    }
    invariant(self->member_count == company_size(config));
    return ERR_OK;
}

/* ---- what it hears ---- */

static void forward_to_ingresses(director_t *self, actor_t *world, const msg_t *m)
{
    for (uint32_t i = 0; i < self->member_count; i++) {
        member_t *member = &self->members[i];
        if (member->who.role != ROLE_ingress || !member->is_up) continue;
        /* Refused: a second later the next report says all that this one did. */
        err_t error = actor_send(world, member->who, m);
        (void)error;
    }
}

/* A report is taken only from whom it is about. */
static void on_report(void *state, actor_t *world, const msg_t *m)
{
    director_t *self = state;
    const msg_report_t *report = &m->report;
    member_t *member = find(self, report->role, report->index);
    bool is_own = m->header.from.role == report->role && m->header.from.index == report->index;
    if (member == NULL || !is_own) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    /* An older build may know fewer metrics; the rest stays zero. */
    uint32_t count = report->values_count;
    if (count > self->slot_count) count = self->slot_count;
    memset(member->values, 0, self->slot_count * sizeof(double));
    memcpy(member->values, report->values, count * sizeof(double));
    member->life = report->life;
    member->uptime_us = report->uptime_us;
    member->heard_us = actor_now_us(world);
    forward_to_ingresses(self, world, m);
}

static void on_process_state(void *state, actor_t *world, const msg_t *m)
{
    director_t *self = state;
    const msg_process_state_t *process = &m->process_state;
    member_t *member = find(self, process->role, process->index);
    if (member == NULL || m->header.from.role != ROLE_supervisor) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    member->is_managed = true;
    member->is_running = process->is_running == 1;
    member->pid = process->pid;
    member->restarts = process->restarts;
    static_assert(sizeof member->last_exit >= sizeof process->last_exit, "it is copied whole");
    memcpy(member->last_exit, process->last_exit, sizeof process->last_exit);
}

/* ---- stopping ---- */

/* The supervisor stops its children by a signal, which cannot say how long to drain. */
static void tell_drain(actor_t *world, const msg_t *stop)
{
    uint32_t ingresses = company_count(actor_config(world), ROLE_ingress);
    for (uint32_t i = 0; i < ingresses; i++) {
        err_t lost = actor_send(world, (address_t){ ROLE_ingress, i }, stop);
        (void)lost; /* it drains as after a signal */
    }
}

/* In its first moments a company may serve before the supervisor's link is up: the stop waits for
 * it. */
static void pass_stop(director_t *self, actor_t *world)
{
    msg_t stop;
    msg_init(&stop, MSG_stop);
    stop.stop.drain_ms = self->stop_drain_ms;
    err_t error = actor_send(world, (address_t){ ROLE_supervisor, 0 }, &stop);
    self->owes_stop = error != ERR_OK;
    if (error == ERR_OK) {
        actor_log(world, LOG_INFO, "DIRECTOR-STOP", "a client stops the company, drain %u ms",
                  self->stop_drain_ms);
        tell_drain(world, &stop);
        return;
    }
    actor_log(world, LOG_ERROR, "DIRECTOR-STOP",
              "a client stops the company, which waits for supervisor.0: %s",
              error_descs[error].doc);
}

/* The world stops this actor itself when the supervisor or a signal says so; a client stops the
 * company. */
static void on_stop(void *state, actor_t *world, const msg_t *m)
{
    director_t *self = state;
    if (m->header.from.role != ROLE_client) return;
    self->stop_drain_ms = m->stop.drain_ms;
    pass_stop(self, world);
}

/* ---- who is up ---- */

static void on_peer_up(void *state, actor_t *world, const msg_t *m)
{
    director_t *self = state;
    member_t *member = find(self, m->peer_up.role, m->peer_up.index);
    if (member == NULL) return; /* a client */
    member->is_up = true;
    member->life = m->peer_up.peer_epoch;
    actor_log(world, LOG_INFO, "DIRECTOR-UP", "%s, life %llu", address_text(member->who).text,
              (unsigned long long)member->life);
    if (member->who.role == ROLE_supervisor && self->owes_stop) pass_stop(self, world);
}

static void on_peer_down(void *state, actor_t *world, const msg_t *m)
{
    director_t *self = state;
    member_t *member = find(self, m->peer_down.role, m->peer_down.index);
    if (member == NULL) return;
    member->is_up = false;
    actor_log(world, LOG_WARN, "DIRECTOR-DOWN", "%s, life %llu", address_text(member->who).text,
              (unsigned long long)m->peer_down.peer_epoch);
}

/* ---- what it tells ---- */

/* Zeros are left out: most actors use a few of the metrics. */
static void write_metrics(json_text_t *out, const member_t *member)
{
    json_text_open(out, "metrics", '{');
    for (uint32_t i = 0; i < METRICS_MAX; i++) {
        const metric_desc_t *metric = &metric_descs[i];
        const double *slots = member->values + metric->slot;
        if (metric->kind != METRIC_HISTOGRAM) {
            if (slots[0] != 0) json_text_number(out, metric->name, slots[0]);
            continue;
        }
        double sum = slots[HISTOGRAM_BUCKETS], count = slots[HISTOGRAM_BUCKETS + 1];
        if (count == 0) continue;
        json_text_open(out, metric->name, '{');
        json_text_number(out, "count", count);
        json_text_number(out, "sum", sum);
        json_text_close(out, '}');
    }
    json_text_close(out, '}');
}

static void write_member(json_text_t *out, const member_t *member, uint64_t now_us)
{
    json_text_open(out, NULL, '{');
    json_text_string(out, "role", role_names[member->who.role]);
    json_text_uint(out, "index", member->who.index);
    json_text_bool(out, "is_up", member->is_up);
    json_text_uint(out, "epoch", member->life);
    json_text_uint(out, "uptime_us", member->uptime_us);
    if (member->heard_us > 0) json_text_uint(out, "age_us", now_us - member->heard_us);
    if (member->is_managed) {
        json_text_bool(out, "is_running", member->is_running);
        json_text_uint(out, "pid", member->pid);
        json_text_uint(out, "restarts", member->restarts);
        json_text_string(out, "last_exit", member->last_exit);
    }
}

static size_t write_status(director_t *self, const actor_t *world, bool has_metrics)
{
    json_text_t out;
    uint64_t now_us = actor_now_us(world);
    json_text_init(&out, self->json, JSON_BYTES);
    json_text_open(&out, NULL, '{');
    json_text_string(&out, "version", TROUPE_VERSION);
    json_text_uint(&out, "now_us", now_us);
    json_text_uint(&out, "uptime_us", now_us - self->born_us);
    json_text_string(&out, "listen", actor_config(world)->http.listen);
    json_text_bool(&out, "has_metrics", has_metrics);
    json_text_open(&out, "actors", '[');
    for (uint32_t i = 0; i < self->member_count; i++) {
        write_member(&out, &self->members[i], now_us);
        if (has_metrics) write_metrics(&out, &self->members[i]);
        json_text_close(&out, '}');
    }
    json_text_close(&out, ']');
    json_text_close(&out, '}');
    return out.is_full ? 0 : out.size;
}

static void on_status_request(void *state, actor_t *world, const msg_t *m)
{
    director_t *self = state;
    size_t size = write_status(self, world, true);
    /* Hundreds of busy actors may not fit; without metrics all that can be configured do. */
    if (size == 0) size = write_status(self, world, false);
    invariant(size > 0);
    msg_t reply;
    msg_init(&reply, MSG_status_reply);
    reply.header.request = m->header.request;
    reply.header.attempt = m->header.attempt;
    reply.status_reply.json = (bytes_t){ self->json, size };
    err_t error = actor_send(world, m->header.from, &reply);
    if (error == ERR_OK) return;
    actor_log(world, LOG_WARN, "DIRECTOR-STATUS", "%s asked and cannot be answered: %s",
              address_text(m->header.from).text, error_descs[error].doc);
}

static void check(const void *state)
{
    const director_t *self = state;
    invariant(self->slot_count == metrics_slot_count());
    for (uint32_t i = 0; i < self->member_count; i++) {
        const member_t *member = &self->members[i];
        invariant(member->who.role < ROLES_MAX);
        invariant(member->last_exit[EXIT_TEXT_BYTES - 1] == 0);
        invariant(!member->is_running || member->is_managed);
    }
}

const actor_class_t director_class = {
    .name = "director",
    .role = ROLE_director,
    .state_size = sizeof(director_t),
    .init = init,
    .check = check,
    .on = {
        [MSG_report] = on_report,
        [MSG_process_state] = on_process_state,
        [MSG_status_request] = on_status_request,
        [MSG_stop] = on_stop,
        [MSG_peer_up] = on_peer_up,
        [MSG_peer_down] = on_peer_down,
    },
};
