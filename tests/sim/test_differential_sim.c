/* tests/sim/test_differential_sim.c - the script that both worlds must agree on, in the simulated
 * one; the real one runs it in tests/world/test_differential.c. */
#include "tests/world/script.h"

#include "runtime/base/config.h"
#include "runtime/sim/sim.h"

enum { PATIENCE_US = 60 * 1000 * 1000, SEEDS = 20 };

static seen_list_t lists[ACTORS];

static seen_list_t *list_of(const actor_t *world)
{
    return &lists[actor_self(world).role == script_addresses[ACTOR_A].role ? ACTOR_A : ACTOR_B];
}

static err_t on_init(void *self, actor_t *world)
{
    script_see(list_of(world), SEEN_START, 0);
    return ERR_OK;
}

static void on_message(void *self, actor_t *world, const msg_t *m)
{
    script_on_message(list_of(world), m);
}

static const actor_class_t classes[ACTORS] = {
    { .name = "ingress",
      .role = ROLE_ingress,
      .state_size = 1,
      .init = on_init,
      .on = { [MSG_peer_up] = on_message,
              [MSG_peer_down] = on_message,
              [MSG_cancel] = on_message } },
    { .name = "prefill_lb",
      .role = ROLE_prefill_lb,
      .state_size = 1,
      .init = on_init,
      .on = { [MSG_peer_up] = on_message,
              [MSG_peer_down] = on_message,
              [MSG_cancel] = on_message } },
};

static void sim_start(void *context, who_t who)
{
    sim_restart(context, script_addresses[who]);
}

/* Both belong to the company, as the configuration says in the real world, and neither runs yet. */
static void add_both(sim_t *sim)
{
    for (who_t who = 0; who < ACTORS; who++) {
        assert_int_equal(sim_add(sim, &classes[who], 0), ERR_OK);
        sim_kill(sim, script_addresses[who], true);
    }
    memset(lists, 0, sizeof lists);
}

static void sim_end(void *context, who_t who)
{
    sim_kill(context, script_addresses[who], true);
}

static void sim_stop(void *context, who_t who, bool is_paused)
{
    if (is_paused)
        sim_pause(context, script_addresses[who]);
    else
        sim_resume(context, script_addresses[who]);
}

typedef struct {
    const _Atomic uint32_t *counter;
    uint32_t least;
} wanted_t;

static bool is_reached(void *context)
{
    const wanted_t *wanted = context;
    return atomic_load(wanted->counter) >= wanted->least;
}

static bool sim_wait(void *context, const _Atomic uint32_t *counter, uint32_t least)
{
    wanted_t wanted = { counter, least };
    return sim_run_while(context, sim_now_us(context) + PATIENCE_US, is_reached, &wanted);
}

static err_t sim_say(void *context, who_t who, address_t to, uint64_t first, uint32_t count,
                     uint32_t *accepted)
{
    err_t answer = ERR_OK;
    actor_t *world = sim_actor(context, script_addresses[who]);
    assert_non_null(world);
    for (*accepted = 0; *accepted < count; ++*accepted) {
        msg_t m;
        script_message(&m, first + *accepted);
        answer = actor_send(world, to, &m);
        if (answer) break;
    }
    return answer;
}

/* If this failed, what the simulator proves about the actors would say nothing about the real
 * world. */
static void test_differential_script_in_the_simulator_gives_what_was_expected(void **state)
{
    static config_loaded_t loaded;
    static trace_t trace;
    config_init(&loaded);
    loaded.config.timing.dead_ms = 20000;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        memset(&trace, 0, sizeof trace);
        sim_options_t options = sim_options_default(seed, &loaded.config);
        sim_t *sim = sim_new(&options);
        assert_non_null(sim);
        add_both(sim);
        const script_world_t world = { .context = sim,
                                       .seen = { &lists[0], &lists[1] },
                                       .start = sim_start,
                                       .kill = sim_end,
                                       .pause = sim_stop,
                                       .say = sim_say,
                                       .wait = sim_wait };
        script_run(&world, &trace);
        assert_string_equal(trace.text, script_expected);
        sim_destroy(&sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_differential_script_in_the_simulator_gives_what_was_expected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
