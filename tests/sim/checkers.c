/* tests/sim/checkers.c - invariants that only an onlooker can check: I6, I7, I10. */
#include "cluster.h"

enum { BOUND_SLACK_MS = 500, CANCEL_US = 500000 };

static uint32_t find(const cluster_t *self, request_id_t request)
{
    uint32_t at = 0;
    while (at < self->submitted_count && !request_id_equal(self->submitted[at].request, request))
        at++;
    return at;
}

uint32_t checkers_attempt(const cluster_t *self, request_id_t request)
{
    uint32_t at = find(self, request);
    return at < self->submitted_count ? self->submitted[at].attempt : 0;
}

/* An ingress counts attempts upwards. */
static void note_submit(cluster_t *self, const msg_t *m)
{
    uint32_t at = find(self, m->header.request);
    invariant(at < SUBMITTED_MAX);
    if (at == self->submitted_count) {
        self->submitted[self->submitted_count++].request = m->header.request;
        self->submitted[at].attempt = 0;
        self->submitted[at].cancelled_us = 0;
    }
    if (m->header.attempt < self->submitted[at].attempt)
        sim_fail(self->sim, "I8", "an ingress goes back from attempt %u to %u",
                 self->submitted[at].attempt, m->header.attempt);
    self->submitted[at].attempt = m->header.attempt;
    if (m->submit.generated > 0) self->resumed++;
}

/* What a client gave up is not worked on for long.  Only where no fault delays the cancel. */
static void watch_cancel(cluster_t *self, address_t from, const msg_t *m)
{
    uint32_t at = find(self, m->header.request);
    if (at == self->submitted_count || !self->options.is_calm) return;
    uint64_t *cancelled_us = &self->submitted[at].cancelled_us;
    uint64_t now_us = sim_now_us(self->sim);
    if (m->type == MSG_cancel && from.role == ROLE_ingress && *cancelled_us == 0)
        *cancelled_us = now_us;
    if (m->type == MSG_tokens && *cancelled_us && now_us - *cancelled_us > CANCEL_US)
        sim_fail(self->sim, "cancel", "%s.%u still generates %llu us after the cancel",
                 role_names[from.role], from.index, (unsigned long long)(now_us - *cancelled_us));
}

/* I7: nobody gives work to a worker that has been dead or stopped for longer than the detection
 * bound.  Who was itself away needs as long to notice. */
static void on_send(void *context, address_t from, address_t to, const msg_t *m, err_t answer)
{
    cluster_t *self = context;
    if (m->type == MSG_submit) note_submit(self, m);
    if (answer != ERR_OK) return;
    if (m->type == MSG_cancel || m->type == MSG_tokens) watch_cancel(self, from, m);
    if (m->type == MSG_decode_placed)
        to = (address_t){ ROLE_decode_worker, m->decode_placed.decode_worker };
    else if (m->type != MSG_prefill_assign && m->type != MSG_decode_assign)
        return;
    if (self->sim == NULL) return;
    uint64_t now_us = sim_now_us(self->sim);
    uint64_t bound_us = (uint64_t)(self->config.timing.dead_ms +
                                   2 * self->config.timing.heartbeat_ms + BOUND_SLACK_MS) *
                        1000;
    const health_t *worker = cluster_health(self, to);
    const health_t *sender = cluster_health(self, from);
    if (worker->since_us && now_us - worker->since_us > bound_us &&
        now_us - sender->back_us > bound_us)
        sim_fail(self->sim, "I7", "%s.%u sends %s for %s.%u, which is away since %.6f s",
                 role_names[from.role], from.index, msg_descs[m->type].name, role_names[to.role],
                 to.index, (double)worker->since_us / 1e6);
}

sim_observer_t checkers_observer(cluster_t *self)
{
    return (sim_observer_t){ .context = self, .on_send = on_send };
}

bool checkers_is_idle(void *context)
{
    cluster_t *self = context;
    for (uint32_t i = 0; i < sim_count(self->sim); i++) {
        address_t who = sim_address(self->sim, i);
        const actor_class_t *class = sim_class(self->sim, who);
        const void *state = sim_state(self->sim, who);
        if (state && class->is_idle && !class->is_idle(state)) return false;
    }
    return true;
}

/* I10, as each ingress of this life counts. */
static void check_counters(cluster_t *self, address_t ingress)
{
    double accepted = sim_metric(self->sim, ingress, METRIC_requests_accepted_total);
    double finished = sim_metric(self->sim, ingress, METRIC_requests_finished_total);
    double failed = sim_metric(self->sim, ingress, METRIC_requests_failed_total);
    double cancelled = sim_metric(self->sim, ingress, METRIC_requests_cancelled_total);
    if (accepted != finished + failed + cancelled)
        sim_fail(self->sim, "I10",
                 "ingress.%u accepted %.0f, but %.0f finished, %.0f failed, %.0f were cancelled",
                 ingress.index, accepted, finished, failed, cancelled);
    if (!self->options.has_fake_ingress && self->options.is_calm && accepted == 0)
        sim_fail(self->sim, "I10", "ingress.%u has accepted nothing", ingress.index);
}

void checkers_at_rest(cluster_t *self)
{
    for (uint32_t i = 0; i < sim_count(self->sim); i++) {
        address_t who = sim_address(self->sim, i);
        const actor_class_t *class = sim_class(self->sim, who);
        const void *state = sim_state(self->sim, who);
        if (who.role == ROLE_ingress) check_counters(self, who);
        if (!state)
            sim_fail(self->sim, "I6", "%s.%u is dead at rest", role_names[who.role], who.index);
        if (state && class->is_idle && !class->is_idle(state))
            sim_fail(self->sim, "I6", "%s.%u still holds something at rest", role_names[who.role],
                     who.index);
    }
    const journal_t *journal = &self->journal;
    uint32_t ended = 0;
    for (int state = CLIENT_FINISHED; state <= CLIENT_CUT; state++)
        ended += journal_tally(journal, (client_state_t)state);
    if (ended != journal->count)
        sim_fail(self->sim, "I10", "%u clients came, %u ended", journal->count, ended);
}
