/* tests/sim/faults.c - what goes wrong: a random subset of faults with random rates. */
#include "cluster.h"

#include "fake_ingress.h"

enum { SECOND_US = 1000000, FIRST_US = 2500000, LAST_US = 15000000 };

/* Swarm testing: most seeds leave most faults out, so that rare combinations of few get their turn.
 */
double faults_rate(cluster_t *self, double most)
{
    if (!cluster_chance(self, 0.35)) return 0;
    return most * (double)(cluster_random(self) >> 11) * 0x1p-53;
}

static address_t any_actor(cluster_t *self)
{
    return sim_address(self->sim, (uint32_t)cluster_below(self, sim_count(self->sim)));
}

static bool is_well(cluster_t *self, address_t who)
{
    return sim_is_alive(self->sim, who) && !sim_is_paused(self->sim, who);
}

/* The fault atlas: one prefill worker and one decode worker always live. */
static bool may_go(cluster_t *self, address_t who)
{
    if (who.role != ROLE_prefill_worker && who.role != ROLE_decode_worker) return true;
    for (uint32_t i = 0; i < sim_count(self->sim); i++) {
        address_t other = sim_address(self->sim, i);
        if (other.role == who.role && other.index != who.index && is_well(self, other)) return true;
    }
    return false;
}

static void bring_back(void *context, uint64_t number)
{
    cluster_t *self = context;
    address_t who = sim_address(self->sim, (uint32_t)number);
    if (is_well(self, who)) return;
    if (sim_is_paused(self->sim, who))
        sim_resume(self->sim, who);
    else
        sim_restart(self->sim, who);
    if (who.role == ROLE_ingress && self->options.has_fake_ingress)
        fake_ingress_attach(sim_state(self->sim, who), &self->journal);
    if (who.role == ROLE_ingress)
        self->journal.paused_us[who.index] += sim_now_us(self->sim) - self->health[number].since_us;
    self->health[number].since_us = 0;
    self->health[number].back_us = sim_now_us(self->sim);
}

static uint32_t number_of(cluster_t *self, address_t who)
{
    return (uint32_t)(cluster_health(self, who) - self->health);
}

static void take_away(cluster_t *self, address_t who, bool is_pause)
{
    if (who.role == ROLE_client || !is_well(self, who) || !may_go(self, who)) return;
    health_t *health = cluster_health(self, who);
    health->since_us = sim_now_us(self->sim);
    if (is_pause)
        sim_pause(self->sim, who);
    else
        sim_kill(self->sim, who, cluster_chance(self, 0.5));
    /* Often back before anybody has noticed. */
    uint64_t away_us = cluster_below(self, cluster_chance(self, 0.5) ? 800000 : 5 * SECOND_US);
    sim_at(self->sim, sim_now_us(self->sim) + away_us, bring_back, self, number_of(self, who));
}

static void do_kill(void *context, uint64_t argument)
{
    (void)argument;
    take_away(context, any_actor(context), false);
}

static void do_pause(void *context, uint64_t argument)
{
    (void)argument;
    take_away(context, any_actor(context), true);
}

static void do_disconnect(void *context, uint64_t argument)
{
    cluster_t *self = context;
    (void)argument;
    sim_disconnect(self->sim, any_actor(self), any_actor(self), cluster_below(self, 2 * SECOND_US));
}

static void do_clog(void *context, uint64_t argument)
{
    cluster_t *self = context;
    (void)argument;
    sim_clog(self->sim, any_actor(self), any_actor(self), cluster_below(self, 3 * SECOND_US));
}

static void do_slow(void *context, uint64_t argument)
{
    cluster_t *self = context;
    (void)argument;
    sim_slow(self->sim, any_actor(self), (uint32_t)cluster_below(self, 50000));
}

/* What comes again is of an attempt or of a life that is over: nobody may take it for news. */
static bool is_ghost(void *context, address_t to, const msg_t *m)
{
    cluster_t *self = context;
    if (m->header.from.role == ROLE_client || to.role == ROLE_client) return false;
    if (m->header.to_epoch != sim_epoch(self->sim, to)) return true;
    return m->header.attempt != 0 && m->header.attempt < checkers_attempt(self, m->header.request);
}

static void do_replay(void *context, uint64_t argument)
{
    cluster_t *self = context;
    (void)argument;
    self->replayed += sim_replay(self->sim, is_ghost, self);
}

typedef struct {
    void (*act)(void *context, uint64_t argument);
    uint32_t most; /* in one life */
} fault_t;

static const fault_t faults[] = {
    { do_kill, 20 },  { do_pause, 15 }, { do_disconnect, 120 },
    { do_clog, 120 }, { do_slow, 8 },   { do_replay, 200 },
};

void faults_schedule(cluster_t *self)
{
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        if (cluster_chance(self, 0.5)) continue;
        uint64_t count = cluster_between(self, 1, faults[i].most);
        for (uint64_t n = 0; n < count; n++)
            sim_at(self->sim, cluster_between(self, FIRST_US, LAST_US), faults[i].act, self, 0);
    }
}

void faults_heal(cluster_t *self)
{
    for (uint32_t i = 0; i < sim_count(self->sim); i++) bring_back(self, i);
    sim_heal(self->sim);
    for (uint32_t i = 0; i < sim_count(self->sim); i++) {
        self->health[i] = (health_t){ .back_us = sim_now_us(self->sim) };
    }
}
