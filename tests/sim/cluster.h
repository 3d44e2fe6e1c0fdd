/* tests/sim/cluster.h - the company in one thread: load, faults, checkers, all from one seed. */
#ifndef TESTS_SIM_CLUSTER_H
#define TESTS_SIM_CLUSTER_H

#include "http_client.h"
#include "journal.h"

typedef struct {
    uint64_t seed;
    bool is_verbose;
    bool is_calm;          /* no faults: every request must end well */
    bool has_fake_ingress; /* what lies behind ingress, alone */
} cluster_options_t;

typedef struct {
    uint64_t hash, events;
    uint32_t clients, finished, failed, cancelled, rejected, cut, attempts;
    uint64_t stale, replayed, resumed;
    bool is_failed;
    char failure[512];
} cluster_result_t;

/* Live through one seed: load with faults, healing, more load, rest.  On a failure the seed, what
 * broke and the last events are printed to standard error. */
cluster_result_t cluster_run(const cluster_options_t *options);

/* ---- what its files share ------------------------------------------------------------------- */

enum { SUBMITTED_MAX = 1024 };

typedef struct {
    address_t who;
    uint64_t since_us; /* dead or paused since; 0: neither */
    uint64_t back_us;  /* born or resumed at */
} health_t;

typedef struct {
    cluster_options_t options;
    config_t config;
    sim_t *sim;
    journal_t journal;
    tokenizer_t *tokenizer;
    http_client_t *browsers; /* by number of client */
    uint64_t random_state;
    health_t health[SIM_NODES_MAX];
    uint64_t heal_us;
    uint64_t replayed;
    uint64_t resumed; /* attempts that began with tokens of an earlier one */
    struct {
        request_id_t request;
        uint32_t attempt;
        uint64_t cancelled_us; /* 0: never */
    } submitted[SUBMITTED_MAX];
    uint32_t submitted_count;
    uint32_t prefix[4][512]; /* what prompts have in common */
} cluster_t;

uint64_t cluster_random(cluster_t *self);
uint64_t cluster_below(cluster_t *self, uint64_t below);
bool cluster_chance(cluster_t *self, double rate);
/* A number of least to most. */
uint64_t cluster_between(cluster_t *self, uint64_t least, uint64_t most);
health_t *cluster_health(cluster_t *self, address_t who);

/* faults.c: put this seed's faults into the sim's queue; and undo what is left of them. */
void faults_schedule(cluster_t *self);
double faults_rate(cluster_t *self, double most);
void faults_heal(cluster_t *self);

/* checkers.c */
sim_observer_t checkers_observer(cluster_t *self);
/* The latest attempt that an ingress has submitted of this request; 0: none. */
uint32_t checkers_attempt(const cluster_t *self, request_id_t request);
/* After everything has ended: I6 and I10. */
void checkers_at_rest(cluster_t *self);
bool checkers_is_idle(void *cluster);

#endif
