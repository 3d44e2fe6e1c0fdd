/* tests/world/test_clients.c - ZeroMQ clients with any routing id are answered, bounded and kept in
 * their place. */
#include "toy.h"

#include <zmq.h>

static const address_t ingress = { ROLE_ingress, 0 };

typedef struct {
    void *context, *socket;
} client_t;

static void client_open(client_t *self, const config_t *config, const char *id)
{
    char endpoint[256];
    int wait_ms = 10000;
    assert_true(world_endpoint(config, ingress, endpoint, sizeof endpoint) > 0);
    self->context = zmq_ctx_new();
    self->socket = zmq_socket(self->context, ZMQ_DEALER);
    if (id) assert_int_equal(zmq_setsockopt(self->socket, ZMQ_ROUTING_ID, id, strlen(id)), 0);
    assert_int_equal(zmq_setsockopt(self->socket, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms), 0);
    assert_int_equal(zmq_connect(self->socket, endpoint), 0);
}

static void client_close(client_t *self)
{
    int linger_ms = 0;
    assert_int_equal(zmq_setsockopt(self->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms), 0);
    (void)zmq_close(self->socket);
    (void)zmq_ctx_term(self->context);
}

static void client_say(client_t *self, msg_type_t type, uint64_t request)
{
    msg_t m;
    uint8_t buf[4096];
    msg_init(&m, type);
    m.header.epoch = 77;
    m.header.request.lo = request;
    size_t size = msg_encode(&m, buf, sizeof buf);
    assert_true(size > 0);
    assert_int_equal(zmq_send(self->socket, buf, size, 0), size);
}

/* The next message of this type; heartbeats and hellos before it are passed over. */
static msg_t client_hear(client_t *self, msg_type_t type)
{
    static uint8_t buf[300000];
    static size_t size, used;
    msg_t m;
    for (;;) {
        size_t took = 0;
        if (used >= size) {
            int got = zmq_recv(self->socket, buf, sizeof buf, 0);
            assert_true(got > 0);
            size = (size_t)got;
            used = 0;
        }
        assert_int_equal(msg_decode(&m, buf + used, size - used, &took), ERR_OK);
        used += took;
        if (m.type == type) {
            used = size = 0;
            return m;
        }
    }
}

static int task_answer(toy_t *toy, actor_t *world, void *arg)
{
    const toy_event_t *event = arg;
    msg_t m;
    msg_init(&m, MSG_client_finished);
    m.header.request = event->header.request;
    return (int)actor_send(world, event->header.from, &m);
}

/* If this failed, programs could not use the company over ZeroMQ. */
static void test_clients_any_routing_id_is_answered(void **state)
{
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ingress, 5);
    client_t named, nameless;
    client_open(&named, config, "my program");
    client_open(&nameless, config, NULL);
    client_say(&named, MSG_hello, 0);
    msg_t hello = client_hear(&named, MSG_hello);
    assert_int_equal(hello.header.epoch, 5);
    assert_int_equal(hello.header.to_epoch, 77);
    client_say(&named, MSG_client_cancel, 1);
    client_say(&nameless, MSG_client_cancel, 2);
    assert_true(toy_wait(toy, MSG_client_cancel, 2));
    for (uint32_t i = 0; i < 2; i++) {
        toy_event_t event = toy_event(toy, MSG_client_cancel, i);
        assert_int_equal(event.header.from.role, ROLE_client);
        assert_int_equal(toy_do(toy, task_answer, &event), ERR_OK);
    }
    assert_int_equal(client_hear(&named, MSG_client_finished).header.request.lo, 1);
    assert_int_equal(client_hear(&nameless, MSG_client_finished).header.request.lo, 2);
    client_close(&named);
    client_close(&nameless);
    assert_true(toy_wait(toy, MSG_peer_down, 2));
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

/* If this failed, any client could end other people's requests by speaking like a worker. */
static void test_clients_messages_of_actors_are_refused(void **state)
{
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ingress, 5);
    client_t client;
    client_open(&client, config, "client");
    client_say(&client, MSG_tokens, 1);
    client_say(&client, MSG_finished, 1);
    client_say(&client, MSG_failed, 1);
    client_say(&client, MSG_cancel, 1);
    client_say(&client, MSG_client_cancel, 9);
    assert_true(toy_wait(toy, MSG_client_cancel, 1));
    assert_int_equal(toy_count(toy, MSG_tokens), 0);
    assert_int_equal(toy_count(toy, MSG_finished), 0);
    assert_int_equal(toy_count(toy, MSG_failed), 0);
    assert_int_equal(toy_count(toy, MSG_cancel), 0);
    client_close(&client);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

/* If this failed, clients that came and went would fill the table until nobody is served. */
static void test_clients_places_of_gone_clients_are_used_again(void **state)
{
    enum { ROUNDS = 1500 }; /* more than there are places */
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ingress, 5);
    void *context = zmq_ctx_new();
    char endpoint[256];
    assert_true(world_endpoint(config, ingress, endpoint, sizeof endpoint) > 0);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        int linger_ms = 1000;
        client_t client = { context, zmq_socket(context, ZMQ_DEALER) };
        assert_int_equal(zmq_setsockopt(client.socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms),
                         0);
        assert_int_equal(zmq_connect(client.socket, endpoint), 0);
        client_say(&client, MSG_client_cancel, i);
        (void)zmq_close(client.socket);
        /* In batches, for it takes a heartbeat to notice that they are gone. */
        if (i % 250 == 249) {
            assert_true(toy_wait(toy, MSG_client_cancel, i + 1));
            assert_true(toy_wait(toy, MSG_peer_down, i + 1));
        }
    }
    (void)zmq_ctx_term(context);
    assert_int_equal(toy_count(toy, MSG_peer_up), ROUNDS);
    assert_int_equal(toy_count(toy, MSG_peer_down), ROUNDS);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clients_any_routing_id_is_answered),
        cmocka_unit_test(test_clients_messages_of_actors_are_refused),
        cmocka_unit_test(test_clients_places_of_gone_clients_are_used_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
