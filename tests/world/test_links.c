/* tests/world/test_links.c - actors in the real world find each other, talk, and notice when the
 * other is gone. */
#include "toy.h"

#include <zmq.h>

static const address_t ingress = { ROLE_ingress, 0 }, prefill_lb = { ROLE_prefill_lb, 0 };

/* If this failed, no actor could speak to any other. */
static void test_links_two_actors_messages_arrive_in_order(void **state)
{
    config_t *config = toy_config();
    toy_t *a = toy_start(config, ingress, 11), *b = toy_start(config, prefill_lb, 22);
    assert_true(toy_wait(a, MSG_peer_up, 1));
    assert_true(toy_wait(b, MSG_peer_up, 1));
    assert_int_equal(toy_event(a, MSG_peer_up, 0).epoch, 22);
    assert_int_equal(toy_event(b, MSG_peer_up, 0).epoch, 11);
    assert_int_equal(toy_send(a, prefill_lb, 1000, 3000), ERR_OK);
    assert_true(toy_wait(b, MSG_cancel, 3000));
    for (uint32_t i = 0; i < 3000; i++) {
        toy_event_t event = toy_event(b, MSG_cancel, i);
        assert_int_equal(event.header.request.lo, 1000 + i);
        assert_int_equal(event.header.epoch, 11);
        assert_int_equal(event.header.to_epoch, 22);
        assert_int_equal(event.header.from.role, ROLE_ingress);
    }
    assert_int_equal(toy_send(b, ingress, 5, 1), ERR_OK);
    assert_true(toy_wait(a, MSG_cancel, 1));
    assert_int_equal(toy_event(a, MSG_cancel, 0).header.from.role, ROLE_prefill_lb);
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

/* If this failed, work would be sent to actors that are gone, or that were never there. */
static void test_links_peer_gone_or_unknown_send_is_refused(void **state)
{
    config_t *config = toy_config();
    toy_t *a = toy_start(config, ingress, 1);
    assert_int_equal(toy_send(a, prefill_lb, 0, 1), ERR_LOST);
    assert_int_equal(toy_send(a, (address_t){ ROLE_kv_store, 0 }, 0, 1), ERR_INVALID);
    assert_int_equal(toy_send(a, (address_t){ ROLE_prefill_lb, 7 }, 0, 1), ERR_INVALID);
    assert_int_equal(toy_send(a, (address_t){ ROLE_client, 3 }, 0, 1), ERR_LOST);
    toy_t *b = toy_start(config, prefill_lb, 2);
    assert_true(toy_wait(a, MSG_peer_up, 1));
    assert_int_equal(toy_send(a, prefill_lb, 0, 1), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    assert_true(toy_wait(a, MSG_peer_down, 1));
    assert_int_equal(toy_event(a, MSG_peer_down, 0).epoch, 2);
    assert_int_equal(toy_send(a, prefill_lb, 0, 1), ERR_LOST);
    assert_int_equal(toy_stop(a), ERR_OK);
    toy_config_free(config);
}

/* If this failed, an actor that came back would be taken for its dead predecessor. */
static void test_links_peer_restarts_new_epoch_is_told(void **state)
{
    config_t *config = toy_config();
    toy_t *a = toy_start(config, ingress, 1), *b = toy_start(config, prefill_lb, 2);
    assert_true(toy_wait(a, MSG_peer_up, 1) && toy_wait(b, MSG_peer_up, 1));
    assert_int_equal(toy_stop(b), ERR_OK);
    b = toy_start(config, prefill_lb, 3);
    assert_true(toy_wait(a, MSG_peer_up, 2));
    assert_int_equal(toy_event(a, MSG_peer_down, 0).epoch, 2);
    assert_int_equal(toy_event(a, MSG_peer_up, 1).epoch, 3);
    assert_true(toy_wait(b, MSG_peer_up, 1));
    /* The connector restarts as well: the binder hears of it through its own socket. */
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_true(toy_wait(b, MSG_peer_down, 1));
    a = toy_start(config, ingress, 4);
    assert_true(toy_wait(b, MSG_peer_up, 2));
    assert_int_equal(toy_event(b, MSG_peer_up, 1).epoch, 4);
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

/* If this failed, two processes would answer under one name and take each other's messages. */
static void test_links_second_instance_is_refused_first_unharmed(void **state)
{
    config_t *config = toy_config();
    toy_t *a = toy_start(config, ingress, 1), *b = toy_start(config, prefill_lb, 2);
    assert_true(toy_wait(a, MSG_peer_up, 1));
    actor_class_t class;
    toy_class(&class, ROLE_prefill_lb);
    world_options_t options = { .class = &class, .config = config, .epoch = 3 };
    assert_int_equal(world_run(&options), ERR_CONFIG);
    assert_int_equal(toy_send(a, prefill_lb, 0, 1), ERR_OK);
    assert_true(toy_wait(b, MSG_cancel, 1));
    assert_int_equal(toy_count(a, MSG_peer_down), 0);
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

static int task_check_garbage(toy_t *toy, actor_t *world, void *arg)
{
    return 0;
}

/* If this failed, any process of this user could stop an actor by sending it rubbish. */
static void test_links_garbage_frames_are_counted_and_survived(void **state)
{
    config_t *config = toy_config();
    toy_t *a = toy_start(config, ingress, 1), *b = toy_start(config, prefill_lb, 2);
    assert_true(toy_wait(a, MSG_peer_up, 1));
    char endpoint[256];
    assert_true(world_endpoint(config, prefill_lb, endpoint, sizeof endpoint) > 0);
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_ROUTING_ID, "kv_store.0", 10), 0);
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    uint8_t bytes[512];
    uint32_t seed = 1;
    for (int i = 0; i < 200; i++) {
        for (size_t j = 0; j < sizeof bytes; j++)
            bytes[j] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
        assert_true(zmq_send(socket, bytes, (size_t)i + 1, i % 3 == 0 ? ZMQ_SNDMORE : 0) >= 0);
    }
    assert_true(zmq_send(socket, bytes, 1, 0) >= 0);
    assert_int_equal(toy_send(a, prefill_lb, 7, 1), ERR_OK);
    assert_true(toy_wait(b, MSG_cancel, 1));
    assert_int_equal(toy_event(b, MSG_cancel, 0).header.request.lo, 7);
    assert_int_equal(toy_do(b, task_check_garbage, NULL), 0);
    (void)zmq_close(socket);
    (void)zmq_ctx_term(context);
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_links_two_actors_messages_arrive_in_order),
        cmocka_unit_test(test_links_peer_gone_or_unknown_send_is_refused),
        cmocka_unit_test(test_links_peer_restarts_new_epoch_is_told),
        cmocka_unit_test(test_links_second_instance_is_refused_first_unharmed),
        cmocka_unit_test(test_links_garbage_frames_are_counted_and_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
