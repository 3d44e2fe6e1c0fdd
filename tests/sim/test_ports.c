/* tests/sim/test_ports.c - engine, pool, HTTP and process ports under the virtual clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "../../runtime/engine/stub.h"
#include "../../runtime/pool.h"
#include "../../runtime/process.h"
#include "../../runtime/sim/sim.h"

static const address_t owner_address = { ROLE_prefill_worker, 0 };
static const address_t reader_address = { ROLE_decode_worker, 0 };
static const address_t ingress_address = { ROLE_ingress, 0 };

/* ---- a worker that does what the test tells it, and remembers what came back ---------------- */

typedef struct {
    uint32_t ready, steps, pools;
    err_t step_error, pool_error;
    uint64_t step, elapsed_us, checksum;
    engine_result_t result;
    uint32_t result_count;
} worker_t;

static err_t init_worker(void *state, actor_t *world)
{
    err_t error = actor_pool_open(world, 8);
    engine_limits_t limits = {
        .slots = 2, .rows_max = 128, .sequences_max = 2, .context_max = 256
    };
    return error == ERR_OK ? actor_engine_open(world, &limits) : error;
}

static void on_ready(void *state, actor_t *world, const msg_t *m)
{
    ((worker_t *)state)->ready++;
}

static void on_step(void *state, actor_t *world, const msg_t *m)
{
    worker_t *self = state;
    self->steps++;
    self->step = m->engine_done.step;
    self->step_error = (err_t)m->engine_done.error;
    self->elapsed_us = m->engine_done.elapsed_us;
    self->result_count = (uint32_t)(m->engine_done.results.size / sizeof(engine_result_t));
    if (self->result_count) memcpy(&self->result, m->engine_done.results.data, sizeof self->result);
}

static void on_pool(void *state, actor_t *world, const msg_t *m)
{
    worker_t *self = state;
    self->pools++;
    self->pool_error = (err_t)m->pool_done.error;
    if (m->pool_done.checksums_count) self->checksum = m->pool_done.checksums[0];
}

#define WORKER(role_name)                                                                          \
    {                                                                                              \
        .name = #role_name, .role = ROLE_##role_name, .state_size = sizeof(worker_t),              \
        .init = init_worker, .on = {                                                               \
            [MSG_engine_ready] = on_ready,                                                         \
            [MSG_engine_done] = on_step,                                                           \
            [MSG_pool_done] = on_pool                                                              \
        }                                                                                          \
    }
static const actor_class_t owner_class = WORKER(prefill_worker);
static const actor_class_t reader_class = WORKER(decode_worker);

typedef struct {
    config_t config;
    sim_t *sim;
} stage_t;

static void stage_open(stage_t *stage, double failure_rate, double corrupt_rate)
{
    memset(&stage->config, 0, sizeof stage->config);
    stage->config.timing.heartbeat_ms = 200;
    stage->config.timing.dead_ms = 1000;
    stage->config.company.prefill_ep = stage->config.company.decode_ep = 1;
    stage->config.engine.stub_token_us = 1000;
    stage->config.engine.stub_prefill_token_ns = 100000;
    sim_options_t options = sim_options_default(11, &stage->config);
    options.engine = &engine_stub_timeless_class;
    options.engine_failure_rate = failure_rate;
    options.pull_corrupt_rate = corrupt_rate;
    stage->sim = sim_new(&options);
    assert_int_equal(sim_add(stage->sim, &owner_class, 0), ERR_OK);
    assert_int_equal(sim_add(stage->sim, &reader_class, 0), ERR_OK);
    assert_true(sim_run_until(stage->sim, 2000000));
}

static worker_t *worker(stage_t *stage, address_t who)
{
    return sim_state(stage->sim, who);
}

static void go(stage_t *stage, uint64_t for_us)
{
    assert_true(sim_run_until(stage->sim, sim_now_us(stage->sim) + for_us));
}

/* Prefill 70 tokens in the owner's blocks 2 and 5. */
static void prefill(stage_t *stage, uint64_t step)
{
    uint32_t tokens[70], blocks[] = { 2, 5 };
    for (uint32_t i = 0; i < 70; i++) tokens[i] = 400 + i;
    sampling_t sampling;
    memset(&sampling, 0, sizeof sampling);
    sampling.seed = 3;
    actor_t *world = sim_actor(stage->sim, owner_address);
    engine_open_t open = { .tokens = tokens, .token_count = 70, .sampling = &sampling };
    assert_int_equal(actor_engine_start(world, 0, &open), ERR_OK);
    actor_engine_extend(world, 0, blocks, 2);
    engine_row_t row = { 0, 0, 70, 1 };
    assert_int_equal(actor_engine_step(world, step, &row, 1), ERR_OK);
}

/* Would be broken: a step ends at once, gives another token, or never ends. */
static void test_ports_engine_step_takes_modelled_time_and_gives_the_token(void **unused)
{
    stage_t stage;
    stage_open(&stage, 0, 0);
    worker_t *owner = worker(&stage, owner_address);
    assert_int_equal(owner->ready, 1);
    prefill(&stage, 42);
    go(&stage, 6900);
    assert_int_equal(owner->steps, 0); /* 70 tokens of 100 us each */
    go(&stage, 10000);
    assert_int_equal(owner->steps, 1);
    assert_int_equal(owner->step, 42);
    assert_int_equal(owner->step_error, ERR_OK);
    assert_true(owner->elapsed_us >= 7000);
    assert_int_equal(owner->result_count, 1);
    sampling_t sampling;
    memset(&sampling, 0, sizeof sampling);
    sampling.seed = 3;
    assert_int_equal(owner->result.token, engine_stub_token(STUB_VOCAB_DEFAULT, 1, &sampling, 0));
    sim_destroy(&stage.sim);
}

/* Would be broken: more steps are queued than the contract allows, or out of order. */
static void test_ports_engine_third_outstanding_step_is_refused(void **unused)
{
    stage_t stage;
    stage_open(&stage, 0, 0);
    prefill(&stage, 1);
    actor_t *world = sim_actor(stage.sim, owner_address);
    engine_row_t next = { 0, 70, 1, 1 };
    assert_int_equal(actor_engine_step(world, 2, &next, 1), ERR_OK);
    assert_int_equal(actor_engine_step(world, 3, &next, 1), ERR_OVERLOAD);
    actor_engine_close(world, 0); /* behind both */
    go(&stage, 100000);
    assert_int_equal(worker(&stage, owner_address)->steps, 2);
    assert_int_equal(worker(&stage, owner_address)->result.position, 71);
    prefill(&stage, 4); /* the slot is free again */
    go(&stage, 100000);
    assert_int_equal(worker(&stage, owner_address)->step_error, ERR_OK);
    sim_destroy(&stage.sim);
}

/* Would be broken: a failed step leaves traces, or a step behind it counts although it stands on
 * nothing. */
static void test_ports_engine_failed_step_fails_those_behind_it(void **unused)
{
    stage_t stage;
    stage_open(&stage, 1, 0);
    prefill(&stage, 1);
    engine_row_t next = { 0, 70, 1, 1 };
    assert_int_equal(actor_engine_step(sim_actor(stage.sim, owner_address), 2, &next, 1), ERR_OK);
    go(&stage, 100000);
    worker_t *owner = worker(&stage, owner_address);
    assert_int_equal(owner->steps, 2);
    assert_true(owner->step_error == ERR_ENGINE || owner->step_error == ERR_EP_PEER);
    assert_int_equal(owner->result_count, 0);
    sim_heal(stage.sim);
    engine_row_t again = { 0, 0, 70, 1 };
    assert_int_equal(actor_engine_step(sim_actor(stage.sim, owner_address), 3, &again, 1), ERR_OK);
    go(&stage, 100000);
    assert_int_equal(owner->step_error, ERR_OK);
    sim_destroy(&stage.sim);
}

static void pull(stage_t *stage, uint64_t epoch)
{
    uint32_t source = 2, target = 7;
    uint64_t checksum = worker(stage, owner_address)->checksum;
    pool_pull_t order = { .job = 9,
                          .peer = owner_address,
                          .peer_epoch = epoch,
                          .source = &source,
                          .target = &target,
                          .checksums = &checksum,
                          .count = 1 };
    assert_int_equal(actor_pool_pull(sim_actor(stage->sim, reader_address), &order), ERR_OK);
    go(stage, 20000);
}

static void offer(stage_t *stage)
{
    prefill(stage, 1);
    go(stage, 50000);
    uint32_t block = 2;
    assert_int_equal(actor_pool_checksum(sim_actor(stage->sim, owner_address), 1, &block, 1),
                     ERR_OK);
    go(stage, 20000);
    assert_int_not_equal(worker(stage, owner_address)->checksum, 0);
}

/* Decode behind the pulled block; it stands only on what the pull brought. */
static err_t decode_on_pulled(stage_t *stage)
{
    uint32_t tokens[65], block[] = { 7, 1 };
    for (uint32_t i = 0; i < 65; i++) tokens[i] = 400 + i;
    sampling_t sampling;
    memset(&sampling, 0, sizeof sampling);
    actor_t *world = sim_actor(stage->sim, reader_address);
    engine_open_t open = { .tokens = tokens, .token_count = 65, .sampling = &sampling };
    assert_int_equal(actor_engine_start(world, 0, &open), ERR_OK);
    actor_engine_extend(world, 0, block, 2);
    engine_row_t row = { 0, 64, 1, 1 };
    assert_int_equal(actor_engine_step(world, 1, &row, 1), ERR_OK);
    sim_run_until(stage->sim, sim_now_us(stage->sim) + 50000);
    return worker(stage, reader_address)->step_error;
}

/* Would be broken: pulled KV is not what was computed. */
static void test_ports_pool_pulled_block_serves_decode(void **unused)
{
    stage_t stage;
    stage_open(&stage, 0, 0);
    offer(&stage);
    pull(&stage, 1);
    assert_int_equal(worker(&stage, reader_address)->pools, 1);
    assert_int_equal(worker(&stage, reader_address)->pool_error, ERR_OK);
    assert_int_equal(decode_on_pulled(&stage), ERR_OK);
    assert_null(sim_failure(stage.sim));
    sim_destroy(&stage.sim);
}

/* Would be broken: nobody notices a decode on KV that was never pulled. */
static void test_ports_engine_on_missing_kv_fails_the_sim(void **unused)
{
    stage_t stage;
    stage_open(&stage, 0, 0);
    (void)decode_on_pulled(&stage); /* the sim stops before its answer arrives */
    assert_non_null(sim_failure(stage.sim));
    assert_memory_equal(sim_failure(stage.sim), "I3", 2);
    sim_destroy(&stage.sim);
}

/* Would be broken: a flipped bit passes, or a pull from another life counts. */
static void test_ports_pool_corrupt_or_foreign_pull_is_refused(void **unused)
{
    stage_t stage;
    stage_open(&stage, 0, 1);
    offer(&stage);
    pull(&stage, 1);
    assert_int_equal(worker(&stage, reader_address)->pool_error, ERR_CHECKSUM);
    pull(&stage, 2);
    assert_int_equal(worker(&stage, reader_address)->pool_error, ERR_LOST);
    sim_heal(stage.sim);
    pull(&stage, 1);
    assert_int_equal(worker(&stage, reader_address)->pool_error, ERR_OK);
    sim_destroy(&stage.sim);
}

/* ---- HTTP ----------------------------------------------------------------------------------- */

typedef struct {
    uint32_t requests, closed;
    uint64_t exchange;
    char body[32];
} door_t;

static err_t init_door(void *state, actor_t *world)
{
    return actor_http_open(world);
}

static void on_http_request(void *state, actor_t *world, const msg_t *m)
{
    door_t *self = state;
    self->requests++;
    self->exchange = m->http_request.exchange;
    memcpy(self->body, m->http_request.body.data, m->http_request.body.size);
    http_answer_t answer = { .status = 200, .content_type = "text/plain" };
    if (m->http_request.method[0] == 'G') {
        actor_http_answer(world, self->exchange, &answer, "whole", 5);
        return;
    }
    actor_http_begin(world, self->exchange, &answer);
    actor_http_write(world, self->exchange, "part", 4);
}

static void on_http_closed(void *state, actor_t *world, const msg_t *m)
{
    door_t *self = state;
    self->closed += m->http_closed.exchange == self->exchange;
}

static const actor_class_t door_class = {
    .name = "ingress",
    .role = ROLE_ingress,
    .state_size = sizeof(door_t),
    .init = init_door,
    .on = { [MSG_http_request] = on_http_request, [MSG_http_closed] = on_http_closed }
};

typedef struct {
    int status;
    uint32_t begins, ends, lost;
    size_t bytes;
} browser_t;

static void browser_answer(void *context, const http_answer_t *answer, const void *body,
                           size_t size)
{
    browser_t *self = context;
    self->status = answer->status;
    self->bytes += size;
}

static void browser_begin(void *context, const http_answer_t *answer)
{
    ((browser_t *)context)->begins++;
}

static void browser_data(void *context, const void *data, size_t size)
{
    ((browser_t *)context)->bytes += size;
}

static void browser_end(void *context)
{
    ((browser_t *)context)->ends++;
}

static void browser_lost(void *context)
{
    ((browser_t *)context)->lost++;
}

static uint64_t browse(sim_t *sim, const char *method, browser_t *browser)
{
    memset(browser, 0, sizeof *browser);
    sim_http_client_t client = { browser,      browser_answer, browser_begin,
                                 browser_data, browser_end,    browser_lost };
    sim_http_t request = { .method = method, .path = "/", .body = "question", .body_size = 8 };
    return sim_http_request(sim, 0, &request, &client);
}

/* Would be broken: answers reach nobody, clients that leave are not noticed, or writes after the
 * end count. */
static void test_ports_http_answers_streams_and_closes(void **unused)
{
    config_t config;
    memset(&config, 0, sizeof config);
    config.timing.heartbeat_ms = 200;
    config.timing.dead_ms = 1000;
    sim_options_t options = sim_options_default(1, &config);
    sim_t *sim = sim_new(&options);
    browser_t first, second, third;
    assert_int_equal(browse(sim, "GET", &first), 0);
    assert_int_equal(sim_add(sim, &door_class, 0), ERR_OK);
    door_t *door = sim_state(sim, ingress_address);
    assert_int_not_equal(browse(sim, "GET", &first), 0);
    assert_true(sim_run_until(sim, 1100000));
    assert_int_equal(first.status, 200);
    assert_int_equal(first.bytes, 5);
    assert_string_equal(door->body, "question");
    uint64_t exchange = browse(sim, "POST", &second);
    assert_true(sim_run_until(sim, 1200000));
    assert_int_equal(second.begins, 1);
    actor_http_end(sim_actor(sim, ingress_address), exchange);
    actor_http_write(sim_actor(sim, ingress_address), exchange, "late", 4);
    assert_int_equal(second.ends, 1);
    assert_int_equal(second.bytes, 4);
    exchange = browse(sim, "POST", &third);
    assert_true(sim_run_until(sim, 1300000));
    sim_http_close(sim, 0, exchange);
    assert_true(sim_run_until(sim, 1400000));
    assert_int_equal(door->closed, 1);
    actor_http_write(sim_actor(sim, ingress_address), exchange, "late", 4);
    assert_int_equal(third.bytes, 4);
    assert_int_not_equal(browse(sim, "POST", &third), 0);
    assert_true(sim_run_until(sim, 1500000));
    sim_kill(sim, ingress_address, true);
    assert_int_equal(third.lost, 1);
    sim_destroy(&sim);
}

/* ---- processes ------------------------------------------------------------------------------ */

typedef struct {
    uint32_t exits;
} keeper_t;

static void on_exited(void *state, actor_t *world, const msg_t *m)
{
    ((keeper_t *)state)->exits++;
    uint32_t pid;
    address_t who = { (role_t)m->process_exited.role, m->process_exited.index };
    assert_int_equal(actor_process_start(world, who, 50, &pid), ERR_OK);
    assert_int_equal(pid, m->process_exited.pid);
}

static const actor_class_t keeper_class = { .name = "supervisor",
                                            .role = ROLE_supervisor,
                                            .state_size = sizeof(keeper_t),
                                            .on = { [MSG_process_exited] = on_exited } };

/* Would be broken: a supervisor does not learn of a death, or its restart has no new epoch. */
static void test_ports_process_death_is_told_and_restart_has_the_epoch(void **unused)
{
    stage_t stage;
    stage_open(&stage, 0, 0);
    assert_int_equal(sim_add(stage.sim, &keeper_class, 0), ERR_OK);
    sim_kill(stage.sim, owner_address, true);
    assert_false(sim_is_alive(stage.sim, owner_address));
    go(&stage, 100000);
    assert_true(sim_is_alive(stage.sim, owner_address));
    assert_int_equal(sim_epoch(stage.sim, owner_address), 50);
    keeper_t *keeper = sim_state(stage.sim, (address_t){ ROLE_supervisor, 0 });
    assert_int_equal(keeper->exits, 1);
    sim_destroy(&stage.sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ports_engine_step_takes_modelled_time_and_gives_the_token),
        cmocka_unit_test(test_ports_engine_third_outstanding_step_is_refused),
        cmocka_unit_test(test_ports_engine_failed_step_fails_those_behind_it),
        cmocka_unit_test(test_ports_pool_pulled_block_serves_decode),
        cmocka_unit_test(test_ports_engine_on_missing_kv_fails_the_sim),
        cmocka_unit_test(test_ports_pool_corrupt_or_foreign_pull_is_refused),
        cmocka_unit_test(test_ports_http_answers_streams_and_closes),
        cmocka_unit_test(test_ports_process_death_is_told_and_restart_has_the_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
