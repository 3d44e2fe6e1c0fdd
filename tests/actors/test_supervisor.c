/* tests/actors/test_supervisor.c - processes are started, restarted with patience, given up,
 * stopped in order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "actors/supervisor.h"
#include "tests/actors/fake_world.h"

enum {
    CHILDREN = 10
}; /* of the default company: 2 workers of each kind and one of every other role */

static actor_t *new_supervisor(void)
{
    actor_t *world = fake_new(&supervisor_class, NULL);
    fake_run(world, 1000);
    return world;
}

/* The pid of the present life of an actor; 0 when it was never started. */
static uint32_t pid_of(const actor_t *world, role_t role, uint32_t index)
{
    uint32_t pid = 0;
    for (uint32_t i = 0; i < world->process_count; i++) {
        const fake_process_t *process = &world->processes[i];
        if (!process->is_stop && process->who.role == role && process->who.index == index)
            pid = process->pid;
    }
    return pid;
}

static uint32_t starts_of(const actor_t *world, role_t role, uint32_t index)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < world->process_count; i++) {
        const fake_process_t *process = &world->processes[i];
        count += !process->is_stop && process->who.role == role && process->who.index == index;
    }
    return count;
}

static uint32_t stops_of(const actor_t *world, uint32_t pid, bool is_forced)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < world->process_count; i++) {
        const fake_process_t *process = &world->processes[i];
        count += process->is_stop && process->pid == pid && process->is_forced == is_forced;
    }
    return count;
}

static void end_life(actor_t *world, role_t role, uint32_t index, const char *how)
{
    msg_t m;
    msg_init(&m, MSG_process_exited);
    m.process_exited.role = (u32)role;
    m.process_exited.index = index;
    m.process_exited.pid = pid_of(world, role, index);
    snprintf(m.process_exited.how, sizeof m.process_exited.how, "%s", how);
    fake_tell(world, (address_t){ ROLE_supervisor, 0 }, &m);
}

static void order_stop(actor_t *world, role_t from, uint32_t drain_ms)
{
    msg_t m;
    msg_init(&m, MSG_stop);
    m.stop.drain_ms = drain_ms;
    fake_tell(world, (address_t){ from, 0 }, &m);
    fake_run(world, 10);
}

/* If it failed, an actor of the company would be missing, or started twice. */
static void test_supervisor_starts_everybody_once(void **state)
{
    actor_t *world = new_supervisor();
    fake_run(world, 60 * 1000000);
    assert_int_equal(world->process_count, CHILDREN);
    for (role_t role = ROLE_ingress; role < ROLE_supervisor; role++) {
        assert_int_equal(starts_of(world, role, 0), 1);
    }
    assert_int_equal(starts_of(world, ROLE_decode_worker, 1), 1);
    assert_int_equal(starts_of(world, ROLE_supervisor, 0), 0);
    assert_int_equal(world->processes[0].who.role, ROLE_director);
    assert_int_equal(world->processes[CHILDREN - 1].who.role, ROLE_ingress);
    fake_destroy(world);
}

/* If it failed, a killed worker would stay away, or come back with an epoch that fences its own
 * messages. */
static void test_supervisor_restarts_the_killed_with_a_larger_epoch(void **state)
{
    actor_t *world = new_supervisor();
    uint64_t epoch = 0;
    for (int i = 0; i < 5; i++) {
        fake_run(world, 20 * 1000000);
        end_life(world, ROLE_decode_worker, 1, "signal 9");
        assert_int_equal(starts_of(world, ROLE_decode_worker, 1), i + 1);
        world->wall_us -= 3600u * 1000000u; /* somebody sets the clock back */
        fake_run(world, 60 * 1000);
        assert_int_equal(starts_of(world, ROLE_decode_worker, 1), i + 2);
        uint64_t now = world->processes[world->process_count - 1].epoch;
        assert_true(now > epoch);
        epoch = now;
    }
    assert_int_equal(starts_of(world, ROLE_decode_worker, 0), 1);
    assert_non_null(strstr(world->log, "SUPERVISOR-EXIT decode_worker.1 (pid "));
    assert_non_null(strstr(world->log, "signal 9"));
    fake_destroy(world);
}

/* If it failed, a process that dies at once would be started thousands of times a minute. */
static void test_supervisor_pauses_double_up_to_five_seconds(void **state)
{
    actor_t *world = new_supervisor();
    uint64_t pauses[9];
    for (int i = 0; i < 9; i++) {
        uint64_t ended_us = world->now_us;
        uint32_t starts = starts_of(world, ROLE_kv_store, 0);
        end_life(world, ROLE_kv_store, 0, "signal 11");
        while (starts_of(world, ROLE_kv_store, 0) == starts) fake_run(world, 1000);
        pauses[i] = world->now_us - ended_us;
    }
    assert_true(pauses[0] >= 50000 && pauses[0] <= 52000);
    for (int i = 1; i < 7; i++) assert_true(pauses[i] > pauses[i - 1] * 19 / 10);
    assert_true(pauses[8] >= 5000000 && pauses[8] <= 5002000);
    fake_run(world, 11 * 1000000);
    end_life(world, ROLE_kv_store, 0, "signal 11");
    uint32_t starts = starts_of(world, ROLE_kv_store, 0);
    fake_run(world, 52000);
    assert_int_equal(starts_of(world, ROLE_kv_store, 0), starts + 1);
    fake_destroy(world);
}

/* Everybody who has been asked to stop does; who is asked because of that, does not yet. */
static void obey_stops(actor_t *world)
{
    uint32_t count = world->process_count;
    for (role_t role = ROLE_ingress; role < ROLE_supervisor; role++) {
        for (uint32_t index = 0; index < 2; index++) {
            uint32_t pid = pid_of(world, role, index);
            bool is_asked = false;
            for (uint32_t i = 0; i < count; i++) {
                is_asked =
                    is_asked || (world->processes[i].is_stop && world->processes[i].pid == pid);
            }
            if (pid > 0 && is_asked) end_life(world, role, index, "exit status 0");
        }
    }
}

/* If it failed, a company whose model cannot be read would restart for ever instead of saying so.
 */
static void test_supervisor_failed_starts_stop_the_company(void **state)
{
    actor_t *world = new_supervisor();
    for (int i = 0; i < 3; i++) {
        end_life(world, ROLE_prefill_worker, 0, "exit status 4");
        fake_run(world, 1000000);
    }
    assert_int_equal(starts_of(world, ROLE_prefill_worker, 0), 3);
    assert_non_null(strstr(
        world->log, "SUPERVISOR-GIVES-UP prefill_worker.0 does not start (last: exit status 4)"));
    for (int i = 0; i < 6; i++) {
        obey_stops(world);
        fake_run(world, 1000);
    }
    assert_true(supervisor_class.is_idle(world->state));
    assert_true(stops_of(world, 0, false) > 0); /* and itself */
    fake_destroy(world);
}

/* If it failed, a process that is killed again and again would keep the company half alive without
 * a word. */
static void test_supervisor_gives_up_after_too_many_ends_within_a_minute(void **state)
{
    actor_t *world = new_supervisor();
    for (int i = 0; i < 14; i++) {
        end_life(world, ROLE_decode_lb, 0, "signal 6");
        fake_run(world, i < 7 ? 3300000 : 5010000);
        if (strstr(world->log, "GIVES-UP") != NULL) break;
    }
    assert_null(strstr(world->log, "GIVES-UP"));
    end_life(world, ROLE_decode_lb, 0, "signal 6");
    assert_non_null(strstr(world->log, "SUPERVISOR-GIVES-UP decode_lb.0 ends again and again"));
    fake_destroy(world);

    world = new_supervisor(); /* the same number of ends, but over more time, is borne */
    for (int i = 0; i < 100; i++) {
        end_life(world, ROLE_decode_lb, 0, "signal 6");
        fake_run(world, 5100000);
    }
    assert_null(strstr(world->log, "GIVES-UP"));
    fake_destroy(world);
}

/* If it failed, a machine that cannot start processes would make the supervisor spin. */
static void test_supervisor_refused_starts_are_tried_with_pauses_and_given_up(void **state)
{
    actor_t *world = fake_new(&supervisor_class, NULL);
    world->start_answer = ERR_IO;
    fake_run(world, 30 * 1000000);
    assert_non_null(strstr(world->log, "SUPERVISOR-START director.0 cannot be started"));
    assert_non_null(strstr(world->log, "SUPERVISOR-GIVES-UP"));
    assert_true(supervisor_class.is_idle(world->state));
    assert_true(stops_of(world, 0, false) > 0);
    fake_destroy(world);
}

/* If it failed, requests that were accepted would be cut off by the stop. */
static void test_supervisor_stops_in_the_order_of_a_request(void **state)
{
    static const role_t order[5] = { ROLE_ingress, ROLE_prefill_lb, ROLE_decode_worker,
                                     ROLE_kv_store, ROLE_director };
    actor_t *world = new_supervisor();
    order_stop(world, ROLE_director, 10000);
    for (int stage = 0; stage < 5; stage++) {
        for (int i = 0; i < 5; i++) {
            uint32_t stops = stops_of(world, pid_of(world, order[i], 0), false);
            assert_int_equal(stops, i <= stage);
        }
        assert_false(supervisor_class.is_idle(world->state));
        obey_stops(world);
        fake_run(world, 1000);
    }
    assert_true(supervisor_class.is_idle(world->state));
    assert_int_equal(world->next_pid, CHILDREN); /* nobody was started again */
    assert_int_equal(stops_of(world, 0, false), 0);
    fake_destroy(world);
}

/* If it failed, a process that hangs would keep the company from ever stopping. */
static void test_supervisor_kills_who_does_not_stop_in_time(void **state)
{
    actor_t *world = new_supervisor();
    uint32_t ingress = pid_of(world, ROLE_ingress, 0);
    order_stop(world, ROLE_supervisor, 1000);
    fake_run(world, 5900000);
    assert_int_equal(stops_of(world, ingress, true), 0);
    fake_run(world, 200000);
    assert_int_equal(stops_of(world, ingress, true), 1);
    assert_false(supervisor_class.is_idle(world->state));
    fake_run(world, 60 * 1000000); /* nobody obeys, not even killed */
    assert_true(supervisor_class.is_idle(world->state));
    assert_int_equal(stops_of(world, pid_of(world, ROLE_director, 0), true), 1);
    assert_non_null(strstr(world->log, "SUPERVISOR-KILL ingress.0"));
    fake_destroy(world);
}

/* If it failed, any actor or client could stop the company, or a late exit restart it. */
static void test_supervisor_ignores_strangers_and_old_lives(void **state)
{
    msg_t m;
    actor_t *world = new_supervisor();
    order_stop(world, ROLE_ingress, 0);
    assert_int_equal(world->process_count, CHILDREN);
    msg_init(&m, MSG_process_exited);
    m.process_exited.role = ROLE_ingress;
    m.process_exited.pid = 4711;
    fake_tell(world, (address_t){ ROLE_supervisor, 0 }, &m);
    fake_run(world, 1000000);
    assert_int_equal(world->process_count, CHILDREN);
    assert_true(world->metrics[METRIC_messages_unexpected_total] == 2);
    fake_destroy(world);
}

/* If it failed, `troupe status` would not know of processes, above all after the director's
 * restart. */
static void test_supervisor_tells_the_director_all_and_again_when_it_is_new(void **state)
{
    msg_t m;
    actor_t *world = new_supervisor();
    assert_int_equal(world->sent_count, 0);
    world->director_epoch = 7;
    world->send_answer = ERR_OVERLOAD;
    msg_init(&m, MSG_peer_up);
    m.peer_up.role = ROLE_director;
    fake_tell(world, (address_t){ ROLE_supervisor, 0 }, &m);
    fake_run(world, 1000000);
    world->send_answer = ERR_OK;
    fake_run(world, 200000);
    assert_int_equal(world->sent_count, 1 + CHILDREN);
    const msg_process_state_t *told = &world->sent[0].message.process_state;
    assert_int_equal(told->role, ROLE_supervisor);
    assert_int_equal(told->is_running, 1);
    assert_int_equal(told->pid, FAKE_OWN_PID);
    end_life(world, ROLE_ingress, 0, "signal 9");
    assert_int_equal(world->sent_count, CHILDREN + 2);
    told = &world->sent[CHILDREN + 1].message.process_state;
    assert_int_equal(world->sent[CHILDREN + 1].to.role, ROLE_director);
    assert_int_equal(told->role, ROLE_ingress);
    assert_int_equal(told->is_running, 0);
    assert_int_equal(told->pid, 0);
    assert_string_equal(told->last_exit, "signal 9");
    fake_run(world, 1000000);
    told = &world->sent[CHILDREN + 2].message.process_state;
    assert_int_equal(told->is_running, 1);
    assert_int_equal(told->restarts, 1);
    fake_tell(world, (address_t){ ROLE_supervisor, 0 }, &m);
    assert_int_equal(world->sent_count, 2 * CHILDREN + 4);
    fake_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_supervisor_starts_everybody_once),
        cmocka_unit_test(test_supervisor_restarts_the_killed_with_a_larger_epoch),
        cmocka_unit_test(test_supervisor_pauses_double_up_to_five_seconds),
        cmocka_unit_test(test_supervisor_failed_starts_stop_the_company),
        cmocka_unit_test(test_supervisor_gives_up_after_too_many_ends_within_a_minute),
        cmocka_unit_test(test_supervisor_refused_starts_are_tried_with_pauses_and_given_up),
        cmocka_unit_test(test_supervisor_stops_in_the_order_of_a_request),
        cmocka_unit_test(test_supervisor_kills_who_does_not_stop_in_time),
        cmocka_unit_test(test_supervisor_ignores_strangers_and_old_lives),
        cmocka_unit_test(test_supervisor_tells_the_director_all_and_again_when_it_is_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
