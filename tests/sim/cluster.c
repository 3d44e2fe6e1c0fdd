/* tests/sim/cluster.c - builds the company, sends clients through it, lets faults loose. */
#include "cluster.h"

#include <stdlib.h>
#include <string.h>

#include "../../actors/decode_lb.h"
#include "../../actors/decode_worker.h"
#include "../../actors/director.h"
#include "../../actors/ep_balancer.h"
#include "../../actors/ingress.h"
#include "../../actors/kv_store.h"
#include "../../actors/prefill_lb.h"
#include "../../actors/prefill_worker.h"
#include "../../runtime/base/config.h"
#include "../../runtime/engine/stub.h"
#include "fake_ingress.h"
#include "message_client.h"

enum {
    SECOND_US = 1000000,
    START_US = 2 * SECOND_US, /* the company has found itself */
    HEAL_US = 16 * SECOND_US, /* until then things go wrong */
    LATE_US = 20 * SECOND_US, /* clients of the healed company */
    PATIENCE_US = 12 * SECOND_US,
    REST_US = 8 * SECOND_US,
    CLIENTS = 130,
    CLIENTS_LATE = 12,
};

uint64_t cluster_random(cluster_t *self)
{
    uint64_t z = (self->random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t cluster_below(cluster_t *self, uint64_t below)
{
    return below ? cluster_random(self) % below : 0;
}

uint64_t cluster_between(cluster_t *self, uint64_t least, uint64_t most)
{
    return least + cluster_below(self, most - least + 1);
}

bool cluster_chance(cluster_t *self, double rate)
{
    return (double)(cluster_random(self) >> 11) * 0x1p-53 < rate;
}

health_t *cluster_health(cluster_t *self, address_t who)
{
    for (uint32_t i = 0; i < sim_count(self->sim); i++) {
        address_t other = sim_address(self->sim, i);
        if (other.role == who.role && other.index == who.index) return &self->health[i];
    }
    abort();
}

/* ---- the company ---------------------------------------------------------------------------- */

/* Small tables and pools, so that they fill up. */
static void configure(cluster_t *self)
{
    config_t *config = &self->config;
    config_loaded_t *defaults = malloc(sizeof *defaults);
    invariant(defaults);
    config_init(defaults);
    *config = defaults->config;
    free(defaults);
    snprintf(config->model.path, sizeof config->model.path, "%s", SOURCE_DIR "/models/tiny");
    config->engine.kind = 1;
    config->engine.stub_token_us = (int64_t)cluster_between(self, 2000, 40000);
    config->engine.stub_prefill_token_ns = (int64_t)cluster_between(self, 10000, 200000);
    config->company.ingresses = 1 + (int64_t)cluster_below(self, 2);
    config->company.prefill_ep = 1 + (int64_t)cluster_below(self, 2);
    config->company.decode_ep = 1 + (int64_t)cluster_below(self, 2);
    config->company.prefill_workers =
        config->company.prefill_ep * (2 + (int64_t)cluster_below(self, 2)) / 2 * 2;
    config->company.decode_workers =
        config->company.decode_ep * (2 + (int64_t)cluster_below(self, 2)) / 2 * 2;
    config->limits.requests_max = 256;
    config->limits.queue_max = self->options.is_calm ? 128 : (int64_t)cluster_between(self, 16, 64);
    config->limits.context_max = 1024;
    config->limits.deadline_seconds = 12;
    config->prefill.kv_blocks = (int64_t)cluster_between(self, 20, 80);
    config->prefill.requests_max = (int64_t)cluster_between(self, 4, 16);
    config->prefill.chunk_tokens = 64 * (int64_t)cluster_between(self, 1, 6);
    config->decode.kv_blocks = (int64_t)cluster_between(self, 20, 120);
    config->decode.batch_max = (int64_t)cluster_between(self, 2, 16);
    config->store.kv_blocks = (int64_t)cluster_between(self, 8, 64);
    config->timing.ep_wait_ms = 300;
}

static void add(cluster_t *self, const actor_class_t *class, int64_t count)
{
    for (int64_t index = 0; index < count; index++) {
        err_t error = sim_add(self->sim, class, (uint32_t)index);
        if (error != ERR_OK)
            sim_fail(self->sim, "START", "%s.%d: %s", class->name, (int)index,
                     error_descs[error].name);
    }
}

/* Tell those who speak for clients whose books they keep. */
static void attach(cluster_t *self)
{
    if (!self->options.has_fake_ingress) {
        message_client_attach(sim_state(self->sim, (address_t){ ROLE_client, 0 }), &self->journal);
        return;
    }
    for (uint32_t i = 0; i < (uint32_t)self->config.company.ingresses; i++) {
        void *state = sim_state(self->sim, (address_t){ ROLE_ingress, i });
        if (state) fake_ingress_attach(state, &self->journal);
    }
}

static void build(cluster_t *self)
{
    sim_options_t options = sim_options_default(self->options.seed, &self->config);
    options.engine = &engine_stub_timeless_class;
    options.observer = checkers_observer(self);
    options.is_verbose = self->options.is_verbose;
    options.delay_mean_us = (uint32_t)cluster_between(self, 50, 3000);
    options.turn_us = (uint32_t)cluster_between(self, 1, 200);
    if (!self->options.is_calm) {
        options.engine_failure_rate = faults_rate(self, 0.1);
        options.engine_slow_rate = faults_rate(self, 0.02);
        options.pull_lost_rate = faults_rate(self, 0.2);
        options.pull_corrupt_rate = faults_rate(self, 0.2);
        options.duplicate_rate = faults_rate(self, 0.3);
    }
    self->sim = self->journal.sim = sim_new(&options);
    engine_stub_vocabulary(&self->config, &self->journal.vocab, &self->journal.end_token);
    if (!self->options.has_fake_ingress) add(self, &message_client_class, 1);
    add(self, self->options.has_fake_ingress ? &fake_ingress_class : &ingress_class,
        self->config.company.ingresses);
    add(self, &prefill_lb_class, 1);
    add(self, &prefill_worker_class, self->config.company.prefill_workers);
    add(self, &kv_store_class, 1);
    add(self, &decode_lb_class, 1);
    add(self, &decode_worker_class, self->config.company.decode_workers);
    add(self, &ep_balancer_class, 1);
    add(self, &director_class, 1);
    attach(self);
}

/* ---- the clients ---------------------------------------------------------------------------- */

static uint32_t word(cluster_t *self)
{
    return (uint32_t)cluster_between(self, 256, self->journal.vocab - 257);
}

static void write_prompt(cluster_t *self, client_t *client)
{
    uint32_t shared = 0;
    if (cluster_chance(self, 0.7)) {
        shared = (uint32_t)cluster_between(self, 1, 500);
        memcpy(client->prompt, self->prefix[cluster_below(self, 4)], shared * sizeof(uint32_t));
    }
    client->prompt_count = shared + (uint32_t)cluster_between(self, 1, 200);
    for (uint32_t i = shared; i < client->prompt_count; i++) client->prompt[i] = word(self);
}

static void invite(cluster_t *self, uint64_t asked_us, bool is_late)
{
    client_t *client = &self->journal.clients[self->journal.count];
    client->number = self->journal.count++;
    client->is_after_heal = is_late || self->options.is_calm;
    client->ingress = (uint32_t)cluster_below(self, (uint64_t)self->config.company.ingresses);
    write_prompt(self, client);
    client->max_tokens = (uint32_t)cluster_between(self, 1, 80);
    client->sampling = sampling_default;
    client->sampling.seed = cluster_random(self) >> 32;
    client->is_http = !self->options.has_fake_ingress && cluster_chance(self, 0.5);
    /* JSON's numbers are too short for such a seed. */
    if (!client->is_http && cluster_chance(self, 0.3)) client->sampling.seed |= STUB_ENDING_SEED;
    client->asked_us = asked_us;
    uint64_t time_us = is_late ? 30 * SECOND_US : cluster_between(self, SECOND_US, 12 * SECOND_US);
    if (self->options.is_calm) time_us = 30 * SECOND_US;
    /* An HTTP request cannot name its deadline. */
    if (client->is_http) time_us = (uint64_t)self->config.limits.deadline_seconds * SECOND_US;
    client->deadline_us = asked_us + time_us;
    if (client->is_http)
        self->browsers[client->number] = (http_client_t){ .journal = &self->journal,
                                                          .client = client,
                                                          .tokenizer = self->tokenizer };
    if (cluster_chance(self, 0.15))
        client->cancel_us = asked_us + cluster_below(self, 2 * SECOND_US);
}

/* Who speaks for this client. */
static address_t speaker(const cluster_t *self, const client_t *client)
{
    if (self->options.has_fake_ingress) return (address_t){ ROLE_ingress, client->ingress };
    return (address_t){ ROLE_client, 0 };
}

static void ask(void *context, uint64_t number)
{
    cluster_t *self = context;
    client_t *client = &self->journal.clients[number];
    if (client->is_http) {
        http_client_ask(&self->browsers[number]);
        return;
    }
    address_t who = speaker(self, client);
    actor_t *world = sim_actor(self->sim, who);
    if (!world)
        journal_end(&self->journal, client, CLIENT_REJECTED, ERR_UNAVAILABLE);
    else if (self->options.has_fake_ingress)
        fake_ingress_ask(sim_state(self->sim, who), world, client);
    else
        message_client_ask(sim_state(self->sim, who), world, client);
}

static void go_away(void *context, uint64_t number)
{
    cluster_t *self = context;
    client_t *client = &self->journal.clients[number];
    if (client->is_http) {
        http_client_go_away(&self->browsers[number]);
        return;
    }
    address_t who = speaker(self, client);
    actor_t *world = sim_actor(self->sim, who);
    if (client->state != CLIENT_WAITING || !world) return;
    if (self->options.has_fake_ingress)
        fake_ingress_cancel(sim_state(self->sim, who), world, client);
    else
        message_client_cancel(sim_state(self->sim, who), world, client);
}

static void invite_all(cluster_t *self)
{
    for (int group = 0; group < 4; group++)
        for (int i = 0; i < 512; i++) self->prefix[group][i] = word(self);
    for (uint32_t i = 0; i < CLIENTS + CLIENTS_LATE; i++) {
        bool is_late = i >= CLIENTS;
        uint64_t from_us = is_late ? LATE_US : START_US;
        uint64_t for_us = is_late ? 2 * SECOND_US : HEAL_US - START_US;
        invite(self, from_us + cluster_below(self, for_us), is_late);
        const client_t *client = &self->journal.clients[i];
        sim_at(self->sim, client->asked_us, ask, self, i);
        if (client->cancel_us) sim_at(self->sim, client->cancel_us, go_away, self, i);
    }
}

/* ---- one life ------------------------------------------------------------------------------- */

static void conclude(cluster_t *self, cluster_result_t *result)
{
    const journal_t *journal = &self->journal;
    *result = (cluster_result_t){ .hash = sim_hash(self->sim),
                                  .events = sim_event_count(self->sim),
                                  .clients = journal->count,
                                  .finished = journal_tally(journal, CLIENT_FINISHED),
                                  .failed = journal_tally(journal, CLIENT_FAILED),
                                  .cancelled = journal_tally(journal, CLIENT_CANCELLED),
                                  .rejected = journal_tally(journal, CLIENT_REJECTED),
                                  .cut = journal_tally(journal, CLIENT_CUT),
                                  .replayed = self->replayed,
                                  .resumed = self->resumed };
    for (uint32_t i = 0; i < journal->count; i++) result->attempts += journal->clients[i].attempts;
    for (uint32_t i = 0; i < sim_count(self->sim); i++)
        result->stale +=
            (uint64_t)sim_metric(self->sim, sim_address(self->sim, i), METRIC_messages_stale_total);
    const char *failure = sim_failure(self->sim);
    if (!failure) return;
    result->is_failed = true;
    snprintf(result->failure, sizeof result->failure, "%s", failure);
    fprintf(stderr, "seed %llu broke %s\nits last events:\n",
            (unsigned long long)self->options.seed, failure);
    sim_print_tail(self->sim, stderr);
}

static void blame_waiting(cluster_t *self)
{
    for (uint32_t i = 0; i < self->journal.count; i++) {
        const client_t *client = &self->journal.clients[i];
        if (client->state == CLIENT_NEW || client->state == CLIENT_WAITING)
            sim_fail(
                self->sim, "I1",
                "client %u, asked at %.6f s of ingress %u by %s, still waits with %u of %u tokens",
                i, (double)client->asked_us / SECOND_US, client->ingress,
                client->is_http ? "HTTP" : "message", client->answer_count, client->max_tokens);
    }
}

static void live(cluster_t *self)
{
    invite_all(self);
    if (!self->options.is_calm) faults_schedule(self);
    if (!sim_run_until(self->sim, HEAL_US)) return;
    faults_heal(self);
    attach(self);
    if (!sim_run_until(self->sim, LATE_US + 2 * SECOND_US)) return;
    uint64_t until_us = sim_now_us(self->sim) + PATIENCE_US;
    if (!sim_run_while(self->sim, until_us, journal_is_over, &self->journal) &&
        !sim_failure(self->sim)) {
        blame_waiting(self);
        return;
    }
    until_us = sim_now_us(self->sim) + REST_US;
    if (sim_run_while(self->sim, until_us, checkers_is_idle, self) || !sim_failure(self->sim))
        checkers_at_rest(self);
}

cluster_result_t cluster_run(const cluster_options_t *options)
{
    cluster_t *self = calloc(1, sizeof *self);
    invariant(self);
    self->options = *options;
    self->random_state = options->seed ^ 0xc0ffee;
    configure(self);
    error_text_t why;
    self->tokenizer = tokenizer_new(self->config.model.path, &why);
    self->browsers = calloc(JOURNAL_MAX, sizeof *self->browsers);
    invariant(self->tokenizer && self->browsers);
    build(self);
    live(self);
    cluster_result_t result;
    conclude(self, &result);
    sim_destroy(&self->sim);
    tokenizer_destroy(&self->tokenizer);
    free(self->browsers);
    free(self);
    return result;
}
