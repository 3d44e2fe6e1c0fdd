/* tests/bench/bench_sim.c - how many messages of a simulated company pass in a second of real time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../runtime/sim/sim.h"

enum { PARTNERS = 8, SIMULATED_SECONDS = 20 };

/* Each partner answers every probe; the asker asks the next thing as soon as it has an answer. */

static void ask(actor_t *world, address_t to, uint64_t number)
{
    msg_t m;
    msg_init(&m, MSG_request_probe);
    m.header = (header_t){ .request = { 1, number }, .attempt = 1 };
    if (actor_send(world, to, &m) != ERR_OK) abort();
}

static void on_up(void *state, actor_t *world, const msg_t *m)
{
    ask(world, m->header.from, 0);
}

static void on_request_held(void *state, actor_t *world, const msg_t *m)
{
    ask(world, m->header.from, m->header.request.lo + 1);
}

static const actor_class_t asker_class = {
    .name = "decode_lb",
    .role = ROLE_decode_lb,
    .on = { [MSG_request_held] = on_request_held, [MSG_peer_up] = on_up }
};

static void on_request_probe(void *state, actor_t *world, const msg_t *m)
{
    msg_t answer;
    msg_init(&answer, MSG_request_held);
    answer.header = m->header;
    answer.request_held.is_held = 1;
    if (actor_send(world, m->header.from, &answer) != ERR_OK) abort();
}

static const actor_class_t partner_class = { .name = "decode_worker",
                                             .role = ROLE_decode_worker,
                                             .on = { [MSG_request_probe] = on_request_probe } };

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(void)
{
    config_t *config = calloc(1, sizeof *config);
    if (!config) return 1;
    config->timing.heartbeat_ms = 200;
    config->timing.dead_ms = 1000;
    sim_options_t options = sim_options_default(1, config);
    sim_t *sim = sim_new(&options);
    if (sim_add(sim, &asker_class, 0) != ERR_OK) return 1;
    for (uint32_t i = 0; i < PARTNERS; i++)
        if (sim_add(sim, &partner_class, i) != ERR_OK) return 1;
    double before = seconds();
    if (!sim_run_until(sim, (uint64_t)SIMULATED_SECONDS * 1000000)) return 1;
    double spent = seconds() - before;
    double messages =
        sim_metric(sim, (address_t){ ROLE_decode_lb, 0 }, METRIC_messages_received_total) * 2;
    printf("%d actors, %d simulated seconds: %.0f messages in %.3f s, %.0f ns each, %.2f M/s\n",
           PARTNERS + 1, SIMULATED_SECONDS, messages, spent, spent / messages * 1e9,
           messages / spent / 1e6);
    sim_destroy(&sim);
    free(config);
    return 0;
}
