/* tests/world/test_pressure.c - a full link refuses, and nothing that was accepted is lost. */
#include "toy.h"

static const address_t ingress = { ROLE_ingress, 0 }, prefill_lb = { ROLE_prefill_lb, 0 };

enum { MARK = 4096, MOST = 4000000 };

/* The actor stands still until the test writes into the eventfd. */
static int task_stall(toy_t *toy, actor_t *world, void *arg)
{
    uint64_t count;
    return read(*(int *)arg, &count, sizeof count) == (ssize_t)sizeof count ? 0 : -1;
}

typedef struct {
    toy_t *toy;
    int descriptor;
} stall_t;

static void *stall_thread(void *arg)
{
    stall_t *stall = arg;
    assert_int_equal(toy_do(stall->toy, task_stall, &stall->descriptor), 0);
    return NULL;
}

static uint64_t send_until_refused(toy_t *toy, address_t to, uint64_t first)
{
    for (uint64_t sent = 0;;) {
        toy_sends_t sends = { .to = to, .first = first + sent, .count = 100000 };
        int error = toy_do(toy, toy_task_send, &sends);
        sent += sends.sent;
        if (error == ERR_OVERLOAD) {
            /* Once more after a while: what the socket could still take is taken. */
            usleep(100000);
            sends = (toy_sends_t){ .to = to, .first = first + sent, .count = 100000 };
            error = toy_do(toy, toy_task_send, &sends);
            sent += sends.sent;
            if (error == ERR_OVERLOAD && sends.sent < MARK) return sent;
        }
        assert_true(error == ERR_OK || error == ERR_OVERLOAD);
        assert_true(sent < MOST);
    }
}

/* If this failed, an overloaded actor would lose requests in silence instead of pushing back. */
static void overload(address_t from, address_t to)
{
    config_t *config = toy_config();
    uint64_t one = 1;
    config->timing.dead_ms = 20000;
    toy_t *sender = toy_start(config, from, 1), *receiver = toy_start(config, to, 2);
    assert_true(toy_wait(sender, MSG_peer_up, 1) && toy_wait(receiver, MSG_peer_up, 1));
    stall_t stall = { receiver, eventfd(0, EFD_CLOEXEC) };
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, stall_thread, &stall), 0);
    uint64_t sent = send_until_refused(sender, to, 0);
    assert_true(sent >= MARK);
    assert_int_equal(write(stall.descriptor, &one, sizeof one), sizeof one);
    pthread_join(thread, NULL);
    assert_true(toy_wait(receiver, MSG_cancel, (uint32_t)sent));
    assert_int_equal(toy_count(receiver, MSG_cancel), sent);
    uint64_t next = 0;
    pthread_mutex_lock(&receiver->lock);
    for (uint32_t i = 0; i < receiver->count; i++)
        if (receiver->events[i].type == MSG_cancel)
            assert_int_equal(receiver->events[i].header.request.lo, next++);
    pthread_mutex_unlock(&receiver->lock);
    assert_true(next >= MARK);
    assert_int_equal(toy_send(sender, to, sent, 10), ERR_OK);
    assert_true(toy_wait(receiver, MSG_cancel, (uint32_t)sent + 10));
    assert_int_equal(toy_count(sender, MSG_peer_down), 0);
    close(stall.descriptor);
    assert_int_equal(toy_stop(sender), ERR_OK);
    assert_int_equal(toy_stop(receiver), ERR_OK);
    toy_config_free(config);
}

static void test_pressure_stalled_binder_connector_is_refused_nothing_lost(void **state)
{
    overload(ingress, prefill_lb);
}

static void test_pressure_stalled_connector_binder_is_refused_nothing_lost(void **state)
{
    overload(prefill_lb, ingress);
}

/* If this failed, a long prompt or a status page would not arrive, or arrive out of order. */
static int task_send_large(toy_t *toy, actor_t *world, void *arg)
{
    msg_t m;
    static uint8_t tokens[4 * CONTEXT_MAX];
    msg_init(&m, MSG_submit);
    m.submit.prompt_count = CONTEXT_MAX;
    m.submit.max_tokens = 1;
    m.submit.sampling = sampling_default;
    m.submit.tokens = (bytes_t){ tokens, sizeof tokens };
    m.header.request.lo = *(uint64_t *)arg;
    return (int)actor_send(world, prefill_lb, &m);
}

static void test_pressure_message_larger_than_a_batch_arrives_in_order(void **state)
{
    config_t *config = toy_config();
    toy_t *a = toy_start(config, ingress, 1), *b = toy_start(config, prefill_lb, 2);
    assert_true(toy_wait(a, MSG_peer_up, 1));
    for (uint64_t i = 0; i < 20; i++) {
        uint64_t large = 2 * i + 1;
        assert_int_equal(toy_send(a, prefill_lb, 2 * i, 1), ERR_OK);
        assert_int_equal(toy_do(a, task_send_large, &large), ERR_OK);
    }
    assert_true(toy_wait(b, MSG_submit, 20));
    for (uint32_t i = 0; i < 20; i++) {
        assert_int_equal(toy_event(b, MSG_cancel, i).header.request.lo, 2 * i);
        assert_int_equal(toy_event(b, MSG_submit, i).header.request.lo, 2 * i + 1);
        assert_int_equal(toy_event(b, MSG_submit, i).header.sequence,
                         toy_event(b, MSG_cancel, i).header.sequence + 1);
    }
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pressure_stalled_binder_connector_is_refused_nothing_lost),
        cmocka_unit_test(test_pressure_stalled_connector_binder_is_refused_nothing_lost),
        cmocka_unit_test(test_pressure_message_larger_than_a_batch_arrives_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
