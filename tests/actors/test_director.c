/* tests/actors/test_director.c - the picture of the company: complete, honest about age, and given
 * to who asks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "actors/director.h"
#include "tests/actors/fake_world.h"

#include <cjson/cJSON.h>

static const address_t client = { ROLE_client, 77 };

static void tell_peer(actor_t *world, msg_type_t type, role_t role, uint64_t epoch)
{
    msg_t m;
    msg_init(&m, type); /* both messages have the same fields */
    m.peer_up.role = (u32)role;
    m.peer_up.peer_epoch = epoch;
    fake_tell(world, (address_t){ ROLE_director, 0 }, &m);
}

static void tell_report(actor_t *world, address_t from, role_t about, double running)
{
    msg_t m;
    msg_init(&m, MSG_report);
    m.report.role = (u32)about;
    m.report.life = 5;
    m.report.uptime_us = 123;
    m.report.values_count = metrics_slot_count();
    m.report.values[metric_descs[METRIC_requests_running].slot] = running;
    m.report.values[metric_descs[METRIC_step_seconds].slot + HISTOGRAM_BUCKETS] = 1.5;
    m.report.values[metric_descs[METRIC_step_seconds].slot + HISTOGRAM_BUCKETS + 1] = 3;
    fake_tell(world, from, &m);
}

/* Asks, and parses what is answered; the caller deletes it. */
static cJSON *ask(actor_t *world)
{
    msg_t m;
    msg_init(&m, MSG_status_request);
    m.header.request = (request_id_t){ 8, 9 };
    world->sent_count = 0;
    fake_tell(world, client, &m);
    assert_int_equal(world->sent_count, 1);
    const fake_sent_t *sent = &world->sent[0];
    assert_int_equal(sent->to.role, ROLE_client);
    assert_int_equal(sent->to.index, 77);
    assert_int_equal(sent->message.type, MSG_status_reply);
    assert_true(request_id_equal(sent->message.header.request, m.header.request));
    bytes_t json = sent->message.status_reply.json;
    cJSON *status = cJSON_ParseWithLength(json.data, json.size);
    assert_non_null(status);
    return status;
}

static cJSON *find(cJSON *status, const char *role, int index)
{
    cJSON *actor = NULL;
    cJSON_ArrayForEach(actor, cJSON_GetObjectItem(status, "actors"))
    {
        if (strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(actor, "role")), role) != 0) continue;
        if (cJSON_GetObjectItem(actor, "index")->valueint == index) return actor;
    }
    fail_msg("no %s.%d in the status", role, index);
    return NULL;
}

static double number(cJSON *object, const char *key)
{
    cJSON *item = cJSON_GetObjectItem(object, key);
    assert_true(cJSON_IsNumber(item));
    return item->valuedouble;
}

/* If it failed, `troupe status` would miss actors or show what nobody said. */
static void test_director_status_lists_everybody_before_anybody_spoke(void **state)
{
    actor_t *world = fake_new(&director_class, NULL);
    cJSON *status = ask(world);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(status, "listen")),
                        "127.0.0.1:8000");
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(status, "actors")), 11);
    cJSON *worker = find(status, "decode_worker", 1);
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(worker, "is_up")));
    assert_null(cJSON_GetObjectItem(worker, "age_us"));
    assert_null(cJSON_GetObjectItem(worker, "pid"));
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(find(status, "director", 0), "is_up")));
    cJSON_Delete(status);
    fake_destroy(world);
}

/* If it failed, the status would not be what was reported, or not tell how old it is. */
static void test_director_status_shows_reports_processes_and_ages(void **state)
{
    actor_t *world = fake_new(&director_class, NULL);
    msg_t m;
    tell_peer(world, MSG_peer_up, ROLE_decode_lb, 5);
    tell_report(world, (address_t){ ROLE_decode_lb, 0 }, ROLE_decode_lb, 4);
    msg_init(&m, MSG_process_state);
    m.process_state.role = ROLE_decode_lb;
    m.process_state.pid = 4711;
    m.process_state.restarts = 2;
    m.process_state.is_running = 1;
    snprintf(m.process_state.last_exit, sizeof m.process_state.last_exit, "signal 9 \"x\"");
    fake_tell(world, (address_t){ ROLE_supervisor, 0 }, &m);
    world->now_us += 1500;
    cJSON *status = ask(world), *lb = find(status, "decode_lb", 0);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(lb, "is_up")));
    assert_true(number(lb, "epoch") == 5);
    assert_true(number(lb, "uptime_us") == 123);
    assert_true(number(lb, "age_us") == 1500);
    assert_true(number(lb, "pid") == 4711);
    assert_true(number(lb, "restarts") == 2);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(lb, "last_exit")),
                        "signal 9 \"x\"");
    cJSON *metrics = cJSON_GetObjectItem(lb, "metrics");
    assert_true(number(metrics, "requests_running") == 4);
    assert_true(number(cJSON_GetObjectItem(metrics, "step_seconds"), "count") == 3);
    assert_null(cJSON_GetObjectItem(metrics, "requests_waiting"));
    cJSON_Delete(status);
    tell_peer(world, MSG_peer_down, ROLE_decode_lb, 5);
    status = ask(world);
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(find(status, "decode_lb", 0), "is_up")));
    assert_non_null(strstr(world->log, "DIRECTOR-DOWN decode_lb.0"));
    cJSON_Delete(status);
    fake_destroy(world);
}

/* If it failed, /metrics of an ingress would lack actors, or sends would pile up for one that is
 * down. */
static void test_director_reports_reach_every_ingress_that_is_up(void **state)
{
    const char *const settings[] = { "company.ingresses=3", NULL };
    actor_t *world = fake_new(&director_class, settings);
    msg_t m;
    tell_peer(world, MSG_peer_up, ROLE_ingress, 5);
    msg_init(&m, MSG_peer_up);
    m.peer_up.role = ROLE_ingress;
    m.peer_up.index = 2;
    fake_tell(world, (address_t){ ROLE_director, 0 }, &m);
    tell_report(world, (address_t){ ROLE_kv_store, 0 }, ROLE_kv_store, 6);
    assert_int_equal(world->sent_count, 2);
    assert_int_equal(world->sent[0].to.index, 0);
    assert_int_equal(world->sent[1].to.index, 2);
    assert_int_equal(world->sent[1].message.type, MSG_report);
    assert_int_equal(world->sent[1].message.report.role, ROLE_kv_store);
    tell_report(world, (address_t){ ROLE_ingress, 0 }, ROLE_ingress, 1);
    assert_int_equal(world->sent_count,
                     4); /* to itself too: an ingress does not see its own slots */
    fake_destroy(world);
}

/* If it failed, one actor could speak for another, or a stranger crash the director. */
static void test_director_drops_reports_about_others_and_strangers(void **state)
{
    actor_t *world = fake_new(&director_class, NULL);
    msg_t m;
    tell_report(world, (address_t){ ROLE_kv_store, 0 }, ROLE_decode_lb, 6);
    tell_report(world, (address_t){ ROLE_client, 0 }, ROLE_client, 6);
    msg_init(&m, MSG_process_state);
    m.process_state.role = ROLE_ingress;
    fake_tell(world, (address_t){ ROLE_ingress, 0 }, &m);
    m.process_state.index = 9999;
    fake_tell(world, (address_t){ ROLE_supervisor, 0 }, &m);
    tell_peer(world, MSG_peer_up, ROLE_client, 1);
    assert_true(world->metrics[METRIC_messages_unexpected_total] == 4);
    assert_int_equal(world->sent_count, 0);
    fake_destroy(world);
}

/* If it failed, `troupe down` would do nothing, or a stop of the director alone stop everybody. */
static void test_director_only_a_clients_stop_goes_to_the_supervisor(void **state)
{
    actor_t *world = fake_new(&director_class, NULL);
    msg_t m;
    msg_init(&m, MSG_stop);
    m.stop.drain_ms = 1234;
    fake_tell(world, (address_t){ ROLE_supervisor, 0 }, &m);
    fake_tell(world, (address_t){ ROLE_director, 0 }, &m);
    assert_int_equal(world->sent_count, 0);
    fake_tell(world, client, &m);
    /* Ingress hears how long to drain: the supervisor's signal cannot say it. */
    assert_int_equal(world->sent_count, 2);
    assert_int_equal(world->sent[0].to.role, ROLE_supervisor);
    assert_int_equal(world->sent[0].message.stop.drain_ms, 1234);
    assert_int_equal(world->sent[1].to.role, ROLE_ingress);
    assert_int_equal(world->sent[1].message.stop.drain_ms, 1234);
    world->send_answer = ERR_LOST;
    fake_tell(world, client, &m);
    assert_non_null(strstr(world->log, "error director.0 DIRECTOR-STOP"));
    /* `troupe down` may come before the supervisor's link is up. */
    world->send_answer = ERR_OK;
    uint32_t sent = world->sent_count;
    msg_init(&m, MSG_peer_up);
    m.peer_up.role = ROLE_supervisor;
    for (int times = 0; times < 2; times++) {
        fake_tell(world, (address_t){ ROLE_director, 0 }, &m);
        assert_int_equal(world->sent_count, sent + 2);
    }
    assert_int_equal(world->sent[sent].to.role, ROLE_supervisor);
    assert_int_equal(world->sent[sent].message.stop.drain_ms, 1234);
    fake_destroy(world);
}

/* If it failed, the largest company could not be looked at. */
static void test_director_largest_company_is_answered_without_metrics(void **state)
{
    const char *const settings[] = { "company.ingresses=64", "company.prefill_workers=256",
                                     "company.decode_workers=256", NULL };
    actor_t *world = fake_new(&director_class, settings);
    msg_t m;
    msg_init(&m, MSG_report);
    m.report.values_count = metrics_slot_count();
    for (uint32_t i = 0; i < m.report.values_count; i++) m.report.values[i] = -1e-200 / (i + 3);
    for (u32 i = 0; i < 256; i++) {
        for (int is_decode = 0; is_decode < 2; is_decode++) {
            m.report.role = is_decode ? ROLE_decode_worker : ROLE_prefill_worker;
            m.report.index = i;
            fake_tell(world, (address_t){ (role_t)m.report.role, i }, &m);
        }
        if (i >= 64) continue;
        m.report.role = ROLE_ingress;
        fake_tell(world, (address_t){ ROLE_ingress, i }, &m);
    }
    cJSON *status = ask(world);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(status, "actors")), 582);
    bool has_metrics = cJSON_IsTrue(cJSON_GetObjectItem(status, "has_metrics"));
    cJSON *metrics = cJSON_GetObjectItem(find(status, "decode_worker", 255), "metrics");
    assert_false(has_metrics);
    assert_null(metrics);
    cJSON_Delete(status);
    fake_destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_director_status_lists_everybody_before_anybody_spoke),
        cmocka_unit_test(test_director_status_shows_reports_processes_and_ages),
        cmocka_unit_test(test_director_reports_reach_every_ingress_that_is_up),
        cmocka_unit_test(test_director_drops_reports_about_others_and_strangers),
        cmocka_unit_test(test_director_only_a_clients_stop_goes_to_the_supervisor),
        cmocka_unit_test(test_director_largest_company_is_answered_without_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
