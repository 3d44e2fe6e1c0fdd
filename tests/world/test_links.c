/* tests/world/test_links.c - actors in the real world find each other, talk, and notice when the
 * other is gone. */
#include "zmtp.h"

#include <sys/resource.h>
#include <zmq.h>

#include "runtime/zmq/state.h"

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

typedef struct {
    double refused, stale, unexpected;
} counts_t;

static int task_counts(toy_t *toy, actor_t *world, void *arg)
{
    const double *slots = world->metrics.slots;
    *(counts_t *)arg =
        (counts_t){ .refused = slots[metric_descs[METRIC_frames_refused_total].slot],
                    .stale = slots[metric_descs[METRIC_messages_stale_total].slot],
                    .unexpected = slots[metric_descs[METRIC_messages_unexpected_total].slot] };
    return 0;
}

static counts_t counts_of(toy_t *toy)
{
    counts_t counts;
    assert_int_equal(toy_do(toy, task_counts, &counts), 0);
    return counts;
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
    while (counts_of(b).refused < 134)
        usleep(10000); /* each message of one part, each group of parts */
    assert_true(counts_of(b).refused < 202);
    assert_int_equal(toy_count(b, MSG_peer_down), 0);
    (void)zmq_close(socket);
    (void)zmq_ctx_term(context);
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

/* Somebody who speaks ZeroMQ, but is none of ours. */
typedef struct {
    void *context, *socket;
} stranger_t;

static stranger_t stranger_open_to(const config_t *config, address_t to, const char *id,
                                   size_t id_size)
{
    char endpoint[256];
    int linger_ms = 0;
    stranger_t self = { zmq_ctx_new(), NULL };
    self.socket = zmq_socket(self.context, ZMQ_DEALER);
    assert_true(world_endpoint(config, to, endpoint, sizeof endpoint) > 0);
    if (id_size > 0) assert_int_equal(zmq_setsockopt(self.socket, ZMQ_ROUTING_ID, id, id_size), 0);
    assert_int_equal(zmq_setsockopt(self.socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms), 0);
    assert_int_equal(zmq_connect(self.socket, endpoint), 0);
    return self;
}

static stranger_t stranger_open(const config_t *config, const char *id)
{
    return stranger_open_to(config, prefill_lb, id, strlen(id));
}

static void stranger_close(stranger_t *self)
{
    (void)zmq_close(self->socket);
    (void)zmq_ctx_term(self->context);
}

static void stranger_says(stranger_t *self, const msg_t *m)
{
    uint8_t buf[8192];
    size_t size = msg_encode(m, buf, sizeof buf);
    assert_true(size > 0);
    assert_int_equal(zmq_send(self->socket, buf, size, 0), size);
}

static void stranger_cancels(stranger_t *self, u64 epoch, u64 to_epoch, u64 number)
{
    msg_t m;
    msg_init(&m, MSG_cancel);
    m.header.epoch = epoch;
    m.header.to_epoch = to_epoch;
    m.header.request.lo = number;
    stranger_says(self, &m);
}

static void stranger_greets(stranger_t *self, u64 epoch, u32 role, u64 model_key)
{
    msg_t m;
    msg_init(&m, MSG_hello);
    m.header.epoch = epoch;
    m.hello.role = role;
    m.hello.model_key = model_key;
    stranger_says(self, &m);
}

/* If this failed, a message of a dead life, or meant for one, would change an actor's state (I8).
 */
static void test_links_messages_of_other_epochs_are_dropped_and_counted(void **state)
{
    config_t *config = toy_config();
    config->timing.dead_ms = 20000; /* the stranger does not beat */
    toy_t *b = toy_start(config, prefill_lb, 22);
    stranger_t stranger = stranger_open(config, "ingress.0");
    stranger_cancels(&stranger, 5, 0, 1); /* before hello */
    stranger_greets(&stranger, 5, ROLE_ingress, 0);
    stranger_cancels(&stranger, 5, 22, 2);
    stranger_cancels(&stranger, 4, 22, 3); /* of an older life */
    stranger_cancels(&stranger, 6, 22, 4); /* of a life that did not greet */
    stranger_cancels(&stranger, 5, 21, 5); /* for an older life of ours */
    stranger_greets(&stranger, 4, ROLE_ingress, 0);
    stranger_greets(&stranger, 5, ROLE_kv_store, 0); /* not who its routing id says */
    stranger_cancels(&stranger, 5, 22, 6);
    assert_true(toy_wait(b, MSG_cancel, 2));
    assert_int_equal(toy_event(b, MSG_cancel, 0).header.request.lo, 2);
    assert_int_equal(toy_event(b, MSG_cancel, 1).header.request.lo, 6);
    assert_int_equal(toy_count(b, MSG_peer_up), 1);
    assert_int_equal((int)counts_of(b).stale, 5);
    assert_int_equal((int)counts_of(b).refused, 1);
    stranger_close(&stranger);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

/* If this failed, KV of one model would be decoded with the weights of another. */
static void test_links_other_model_is_refused(void **state)
{
    config_t *config = toy_config();
    toy_t *b = toy_start_model(config, prefill_lb, 22, 1234);
    stranger_t other = stranger_open(config, "ingress.0");
    stranger_greets(&other, 5, ROLE_ingress, 1235);
    stranger_cancels(&other, 5, 22, 1);
    while (counts_of(b).stale < 1) usleep(10000);
    assert_int_equal(toy_count(b, MSG_peer_up), 0);
    stranger_greets(&other, 5, ROLE_ingress, 1234);
    assert_true(toy_wait(b, MSG_peer_up, 1));
    stranger_close(&other);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

static size_t encode_client_cancel(uint8_t *buf, size_t cap, u64 number)
{
    msg_t m;
    msg_init(&m, MSG_client_cancel);
    m.header.epoch = 77;
    m.header.request.lo = number;
    return msg_encode(&m, buf, cap);
}

static void wait_heard_and_refused(toy_t *toy, uint32_t heard, uint32_t refused)
{
    for (int i = 0; i < 1000 && (int)counts_of(toy).refused < (int)refused; i++) usleep(10000);
    assert_true(toy_wait(toy, MSG_client_cancel, heard));
    assert_int_equal(toy_count(toy, MSG_client_cancel), heard);
    assert_int_equal((int)counts_of(toy).refused, refused);
}

/* If this failed, whoever reaches an actor could speak in the name of one that is not there, or
 * end it by a name that fits no buffer. */
static void test_links_odd_routing_ids_are_clients_or_refused(void **state)
{
    static char longest[255];
    memset(longest, 'a', sizeof longest);
    memcpy(longest, "ingress.", 8);
    const struct {
        const char *id;
        size_t size;
        bool is_client;
    } cases[] = {
        { "ingress.99", 10, false }, { "ingress.0", 9, false },
        { "director.0", 10, false }, /* it binds to ingress, and does not connect */
        { "kv_store.0", 10, false }, { "decode_worker.4096", 18, false },
        { "ingress.", 8, true },     { "prefill_worker.00", 17, true },
        { "ingress.0x", 10, true },  { "client.0", 8, true },
        { ".0", 2, true },           { "\xff\xfe", 2, true },
        { longest, 200, true },      { longest, 255, true },
        { NULL, 0, true },
    };
    enum { CASES = sizeof cases / sizeof *cases };
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ingress, 5);
    stranger_t strangers[CASES];
    uint32_t heard = 0, refused = 0;
    for (uint32_t i = 0; i < CASES; i++) {
        uint8_t buf[256];
        size_t size = encode_client_cancel(buf, sizeof buf, i);
        strangers[i] = stranger_open_to(config, ingress, cases[i].id, cases[i].size);
        assert_int_equal(zmq_send(strangers[i].socket, buf, size, 0), size);
        if (cases[i].is_client)
            heard++;
        else
            refused++;
        wait_heard_and_refused(toy, heard, refused);
    }
    for (uint32_t i = 0; i < CASES; i++) stranger_close(&strangers[i]);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

/* If this failed, a routing id longer than ZMTP allows, which libzmq takes all the same, would be
 * read and written past the end of buffers. */
static void test_links_routing_ids_longer_than_any_are_refused(void **state)
{
    static const size_t sizes[] = { 256, 257, 300, 60000 };
    static uint8_t id[60000];
    char endpoint[256];
    uint8_t buf[256];
    memset(id, 'a', sizeof id);
    config_t *config = toy_config();
    toy_t *toy = toy_start(config, ingress, 5);
    assert_true(world_endpoint(config, ingress, endpoint, sizeof endpoint) > 0);
    for (uint32_t i = 0; i < 4; i++) {
        int descriptor = zmtp_connect(endpoint);
        zmtp_ready(descriptor, "DEALER", id, sizes[i]);
        zmtp_say(descriptor, ZMTP_MESSAGE, buf, encode_client_cancel(buf, sizeof buf, i));
        wait_heard_and_refused(toy, 0, i + 1);
        close(descriptor);
    }
    /* Proof that it would have been heard. */
    int descriptor = zmtp_connect(endpoint);
    zmtp_ready(descriptor, "DEALER", id, 255);
    zmtp_say(descriptor, ZMTP_MESSAGE, buf, encode_client_cancel(buf, sizeof buf, 9));
    wait_heard_and_refused(toy, 1, 4);
    close(descriptor);
    assert_int_equal(toy_stop(toy), ERR_OK);
    toy_config_free(config);
}

/* Whether the other side pings within so long. */
static bool is_pinged(int descriptor, uint64_t wait_ms)
{
    static zmtp_frame_t frame;
    uint64_t end_ms = toy_now_ms() + wait_ms;
    for (uint64_t now_ms; (now_ms = toy_now_ms()) < end_ms;)
        if (zmtp_hear(descriptor, &frame, (int)(end_ms - now_ms)) && zmtp_is(&frame, "PING"))
            return true;
    return false;
}

/* If this failed, a peer that closes while its frames wait at a ROUTER would end the actor: an
 * assertion of libzmq 4.3.4 in the ROUTER's own heartbeats.  Only who connects may send them, and
 * must, for else a host that vanished is noticed by nobody. */
static void test_links_only_who_connects_sends_heartbeats_of_zmtp(void **state)
{
    char endpoint[256];
    config_t *config = toy_config();
    struct sockaddr_un path;
    assert_true(world_endpoint(config, prefill_lb, endpoint, sizeof endpoint) > 0);
    path = zmtp_path(endpoint);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&path, sizeof path), 0);
    assert_int_equal(listen(listener, 1), 0);
    toy_t *a = toy_start(config, ingress, 1);
    int accepted = accept(listener, NULL, NULL);
    zmtp_ready(accepted, "ROUTER", "", 0);
    assert_true(is_pinged(accepted, 10000));
    close(accepted);
    close(listener);
    assert_int_equal(unlink(path.sun_path), 0);
    assert_int_equal(toy_stop(a), ERR_OK);
    toy_t *b = toy_start(config, prefill_lb, 2);
    int connected = zmtp_connect(endpoint);
    zmtp_ready(connected, "DEALER", "kv_store.0", 10);
    assert_false(is_pinged(connected, 3 * (uint64_t)config->timing.dead_ms));
    close(connected);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

static int task_stop(toy_t *toy, actor_t *world, void *arg)
{
    msg_t m;
    msg_init(&m, MSG_stop);
    m.stop.drain_ms = *(uint32_t *)arg;
    return (int)actor_send(world, ingress, &m);
}

/* If this failed, `troupe down --drain` would not count for actors that its signal reached first.
 */
static void test_links_stop_says_how_long_to_drain_after_a_signal_too(void **state)
{
    config_t *config = toy_config();
    toy_t *director = toy_start(config, (address_t){ ROLE_director, 0 }, 1);
    toy_t *busy = toy_start_as(config, ingress, (toy_options_t){ .epoch = 2, .is_busy = true });
    assert_true(toy_wait(director, MSG_peer_up, 1));
    uint64_t one = 1, began_ms = toy_now_ms();
    assert_int_equal(write(busy->options.stop_descriptor, &one, sizeof one), sizeof one);
    assert_true(toy_wait(busy, MSG_stop, 1));
    uint32_t drain_ms = 300;
    assert_int_equal(toy_do(director, task_stop, &drain_ms), ERR_OK);
    assert_false(toy_wait(busy, MSG_stop, 3)); /* it ends instead */
    uint64_t took_ms = toy_now_ms() - began_ms;
    assert_in_range(took_ms, drain_ms, 5000); /* a signal's own drain is 10 s */
    assert_int_equal(toy_stop(busy), ERR_OK);
    assert_int_equal(toy_stop(director), ERR_OK);
    toy_config_free(config);
}

/* If this failed, an actor that is started again after somebody cleaned up the directory would
 * reach nobody, for ever. */
static void test_links_deleted_name_comes_back(void **state)
{
    char path[512];
    config_t *config = toy_config();
    toy_t *binder = toy_start(config, prefill_lb, 1), *old = toy_start(config, ingress, 2);
    assert_true(toy_wait(binder, MSG_peer_up, 1) && toy_wait(old, MSG_peer_up, 1));
    snprintf(path, sizeof path, "%s/prefill_lb-0.sock", config->wire.directory);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(toy_stop(old), ERR_OK);
    toy_t *new = toy_start(config, ingress, 3);
    assert_true(toy_wait(new, MSG_peer_up, 1));
    assert_int_equal(toy_send(binder, ingress, 5, 1), ERR_OK);
    assert_true(toy_wait(new, MSG_cancel, 1));
    assert_int_equal(toy_stop(new), ERR_OK);
    assert_int_equal(toy_stop(binder), ERR_OK);
    assert_int_equal(access(path, F_OK), -1);
    toy_config_free(config);
}

/* If this failed, an actor whose name cannot come back would go on where nobody finds it, instead
 * of ending, so that it is started again. */
static void test_links_name_that_cannot_come_back_ends_the_actor(void **state)
{
    char path[512];
    struct rlimit before, none;
    config_t *config = toy_config();
    toy_t *binder = toy_start(config, prefill_lb, 1), *peer = toy_start(config, ingress, 2);
    assert_true(toy_wait(binder, MSG_peer_up, 1));
    assert_int_equal(toy_stop(peer), ERR_OK);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){ 3, before.rlim_max }; /* as when connections have taken them all */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    snprintf(path, sizeof path, "%s/prefill_lb-0.sock", config->wire.directory);
    assert_int_equal(unlink(path), 0);
    assert_false(toy_wait_for(binder, MSG_stop, 1, 5000)); /* it ends by itself */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(toy_stop(binder), ERR_IO);
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
        cmocka_unit_test(test_links_messages_of_other_epochs_are_dropped_and_counted),
        cmocka_unit_test(test_links_other_model_is_refused),
        cmocka_unit_test(test_links_odd_routing_ids_are_clients_or_refused),
        cmocka_unit_test(test_links_routing_ids_longer_than_any_are_refused),
        cmocka_unit_test(test_links_only_who_connects_sends_heartbeats_of_zmtp),
        cmocka_unit_test(test_links_stop_says_how_long_to_drain_after_a_signal_too),
        cmocka_unit_test(test_links_deleted_name_comes_back),
        cmocka_unit_test(test_links_name_that_cannot_come_back_ends_the_actor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
