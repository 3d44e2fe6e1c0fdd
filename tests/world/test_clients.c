/* tests/world/test_clients.c - ZeroMQ clients with any routing id are answered, bounded and kept in
 * their place. */
#include "toy.h"

#include <zmq.h>

#include "runtime/zmq/state.h"

static const address_t ingress = { ROLE_ingress, 0 };

typedef struct {
    void *context, *socket;
} client_t;

static void client_open(client_t *self, const config_t *config, const char *id)
{
    char endpoint[256];
    int wait_ms = 10000, frames = 1; /* who reads nothing is full soon */
    assert_true(world_endpoint(config, ingress, endpoint, sizeof endpoint) > 0);
    self->context = zmq_ctx_new();
    self->socket = zmq_socket(self->context, ZMQ_DEALER);
    if (id) assert_int_equal(zmq_setsockopt(self->socket, ZMQ_ROUTING_ID, id, strlen(id)), 0);
    assert_int_equal(zmq_setsockopt(self->socket, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms), 0);
    assert_int_equal(zmq_setsockopt(self->socket, ZMQ_RCVHWM, &frames, sizeof frames), 0);
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

/* One message to each of the first `arg` clients; how many of the links are full. */
static int task_send_all(toy_t *toy, actor_t *world, void *arg)
{
    static const uint8_t text[4096];
    int full = 0;
    msg_t m;
    msg_init(&m, MSG_status_reply);
    m.status_reply.json = (bytes_t){ text, sizeof text };
    for (uint32_t i = 0; i < *(uint32_t *)arg; i++)
        full += actor_send(world, (address_t){ ROLE_client, i }, &m) == ERR_OVERLOAD;
    return full;
}

/* If this failed, a few programs that do not read what they asked for would keep all others from
 * being answered, for as long as they live. */
static void test_clients_who_read_nothing_harm_nobody_and_are_cut(void **state)
{
    enum { DEAF = 80, ROUNDS_MAX = 20000 };
    config_t *config = toy_config();
    config->http.stream_stall_seconds = 3;
    toy_t *toy = toy_start(config, ingress, 5);
    client_t deaf[DEAF], client;
    for (uint32_t i = 0; i < DEAF; i++) {
        client_open(&deaf[i], config, NULL);
        client_say(&deaf[i], MSG_client_cancel, i);
    }
    assert_true(toy_wait(toy, MSG_client_cancel, DEAF));
    uint32_t count = DEAF, rounds = 0;
    while (toy_do(toy, task_send_all, &count) < DEAF) assert_true(++rounds < ROUNDS_MAX);
    client_open(&client, config, NULL);
    client_say(&client, MSG_client_cancel, DEAF);
    assert_true(toy_wait(toy, MSG_client_cancel, DEAF + 1));
    toy_event_t event = toy_event(toy, MSG_client_cancel, DEAF);
    assert_int_equal(toy_do(toy, task_answer, &event), ERR_OK);
    assert_int_equal(client_hear(&client, MSG_client_finished).header.request.lo, DEAF);
    /* What a link could still take after a while is taken. */
    while (!toy_wait_for(toy, MSG_peer_down, DEAF, 20)) {
        (void)toy_do(toy, task_send_all, &count);
        assert_true(++rounds < ROUNDS_MAX);
    }
    assert_int_equal(toy_do(toy, task_answer, &event), ERR_OK);
    assert_int_equal(toy_count(toy, MSG_peer_down), DEAF);
    for (uint32_t i = 0; i < DEAF; i++) client_close(&deaf[i]);
    client_close(&client);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

/* Stand still for as long as a client may be stuck, once it is, and not only for a moment. */
static int task_pause(toy_t *toy, actor_t *world, void *arg)
{
    uint64_t stuck_us = world->clients[0].stuck_us;
    if (stuck_us == 0 || actor_now_us(world) - stuck_us < 300000) return 0;
    usleep((useconds_t)world->config->http.stream_stall_seconds * 1000000);
    *(uint64_t *)arg = toy_now_ms();
    return 1;
}

/* If this failed, an ingress that was stopped for a while would cut everybody whose link was full
 * when it stopped, as if they had not read since. */
static void test_clients_are_not_cut_for_a_pause_of_ours(void **state)
{
    enum { ROUNDS_MAX = 20000 };
    config_t *config = toy_config();
    config->http.stream_stall_seconds = 2;
    toy_t *toy = toy_start(config, ingress, 5);
    client_t deaf;
    client_open(&deaf, config, NULL);
    client_say(&deaf, MSG_client_cancel, 1);
    assert_true(toy_wait(toy, MSG_client_cancel, 1));
    uint32_t count = 1, rounds = 0;
    uint64_t paused_ms = 0; /* until when */
    while (!toy_do(toy, task_pause, &paused_ms)) {
        (void)toy_do(toy, task_send_all, &count);
        assert_true(++rounds < ROUNDS_MAX);
    }
    while (!toy_wait_for(toy, MSG_peer_down, 1, 20)) {
        (void)toy_do(toy, task_send_all, &count);
        assert_true(++rounds < ROUNDS_MAX);
    }
    uint64_t stall_ms = (uint64_t)config->http.stream_stall_seconds * 1000;
    assert_true(toy_now_ms() - paused_ms >= stall_ms);
    client_close(&deaf);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

static peer_t *greet(actor_t *world, uint32_t number)
{
    char id[16];
    int size = snprintf(id, sizeof id, "guest %u", number);
    peer_t *guest = peer_of_id(world, (const uint8_t *)id, (size_t)size);
    if (guest) peer_say_hello(world, guest);
    return guest;
}

/* Every client has an unsent message when one is lost and another takes its place. */
static int task_change_places(toy_t *toy, actor_t *world, void *arg)
{
    for (uint32_t i = 0; i < CLIENTS_MAX; i++)
        if (!greet(world, i)) return -1;
    peer_t *lost = &world->clients[7];
    peer_lose(world, lost);
    peers_deliver_lost(world);
    return greet(world, CLIENTS_MAX) == lost ? (int)world->dirty_count : -1;
}

/* If this failed, places that are used again within a turn would overflow the list of those with
 * unsent messages. */
static void test_clients_place_used_again_is_dirty_once(void **state)
{
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ingress, 5);
    assert_int_equal(toy_do(toy, task_change_places, NULL), CLIENTS_MAX);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

/* If this failed, a thousand idle connections would shut out `troupe status`. */
static void test_clients_who_are_idle_make_room(void **state)
{
    enum { PLACES = 1024 };
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ingress, 5);
    void *context = zmq_ctx_new();
    assert_int_equal(zmq_ctx_set(context, ZMQ_MAX_SOCKETS, PLACES + 8), 0);
    static client_t clients[PLACES + 1];
    uint64_t second_ms = 0; /* when the second spoke, or a little before */
    char endpoint[256];
    assert_true(world_endpoint(config, ingress, endpoint, sizeof endpoint) > 0);
    for (uint32_t i = 0; i <= PLACES; i++) {
        clients[i] = (client_t){ context, zmq_socket(context, ZMQ_DEALER) };
        assert_non_null(clients[i].socket);
        assert_int_equal(zmq_connect(clients[i].socket, endpoint), 0);
        if (i == PLACES) break;
        if (i == 1) second_ms = toy_now_ms();
        client_say(&clients[i], MSG_client_cancel, i);
        if (i < 2) assert_true(toy_wait(toy, MSG_client_cancel, i + 1));
    }
    assert_true(toy_wait(toy, MSG_client_cancel, PLACES));
    uint32_t rounds = 0;
    do { /* the first of them is not idle */
        client_say(&clients[0], MSG_client_cancel, 0);
        assert_true(toy_wait(toy, MSG_client_cancel, PLACES + ++rounds));
        client_say(&clients[PLACES], MSG_client_cancel, PLACES);
    } while (!toy_wait_for(toy, MSG_peer_down, 1, 100) && rounds < 300);
    assert_true(toy_now_ms() - second_ms >= (uint64_t)config->timing.dead_ms * 10);
    toy_event_t lost = toy_event(toy, MSG_peer_down, 0);
    assert_int_equal(lost.peer.index, toy_event(toy, MSG_client_cancel, 1).header.from.index);
    assert_true(toy_wait(toy, MSG_peer_up, PLACES + 1));
    for (uint32_t i = 0; i <= PLACES; i++) {
        int linger_ms = 0;
        (void)zmq_setsockopt(clients[i].socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
        (void)zmq_close(clients[i].socket);
    }
    (void)zmq_ctx_term(context);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clients_any_routing_id_is_answered),
        cmocka_unit_test(test_clients_messages_of_actors_are_refused),
        cmocka_unit_test(test_clients_places_of_gone_clients_are_used_again),
        cmocka_unit_test(test_clients_who_read_nothing_harm_nobody_and_are_cut),
        cmocka_unit_test(test_clients_are_not_cut_for_a_pause_of_ours),
        cmocka_unit_test(test_clients_place_used_again_is_dirty_once),
        cmocka_unit_test(test_clients_who_are_idle_make_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
