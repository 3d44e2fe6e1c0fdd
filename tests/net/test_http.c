/* tests/net/test_http.c - the HTTP port of the real world: it takes no more connections than there
 * are descriptors for. */
#include "tests/world/toy.h"

#include <arpa/inet.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "runtime/net/http.h"
#include "runtime/net/server.h"
#include "runtime/zmq/world_internal.h"

static const address_t ingress = { ROLE_ingress, 0 }, prefill_lb = { ROLE_prefill_lb, 0 };

enum { DESCRIPTORS = 600, CONNECTIONS = 580 }; /* what one process may have; what comes to it */

static int open_connections(const int *connections)
{
    int count = 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        char byte;
        count += recv(connections[i], &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
    }
    return count;
}

/* In a process of its own, which has descriptors of its own: be told a port, come, see who stays,
 * ask once, and go when told.  Returns how many stayed. */
static int crowd(int orders)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    static int connections[CONNECTIONS];
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) return 0;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit)) return 0;
    if (read(orders, &address.sin_port, sizeof address.sin_port) != sizeof address.sin_port)
        return 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        connections[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(connections[i], (struct sockaddr *)&address, sizeof address)) return 0;
    }
    int count = CONNECTIONS;
    for (int i = 0; i < 500 && count > DESCRIPTORS / 2; i++) {
        usleep(10000);
        count = open_connections(connections);
    }
    if (send(connections[0], request, sizeof request - 1, MSG_NOSIGNAL) < 0) return 0;
    char byte;
    return read(orders, &byte, 1) == 0 ? count : 0;
}

static int task_port(toy_t *toy, actor_t *world, void *arg)
{
    return server_port(*(server_t **)world_http_slot(world));
}

static int task_connections(toy_t *toy, actor_t *world, void *arg)
{
    return (int)server_connections(*(server_t **)world_http_slot(world));
}

/* If this failed, as many clients as a process may have descriptors would end ingress: libzmq does
 * not live without one to spare. */
static void test_http_connections_leave_descriptors_for_links(void **state)
{
    const struct rlimit few = { DESCRIPTORS, DESCRIPTORS };
    int orders[2], status = 0;
    assert_int_equal(pipe(orders), 0);
    pid_t child = fork();
    if (child == 0) {
        close(orders[1]);
        _exit(crowd(orders[0]) == DESCRIPTORS / 2 ? 0 : 1);
    }
    close(orders[0]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0); /* an actor raises what it may raise */
    config_t *config = toy_config();
    snprintf(config->http.listen, sizeof config->http.listen, "127.0.0.1:0");
    toy_t *a = toy_start_with(config, ingress, 1, actor_http_open);
    uint16_t port = htons((uint16_t)toy_do(a, task_port, NULL));
    assert_int_equal(write(orders[1], &port, sizeof port), sizeof port);
    assert_true(toy_wait(a, MSG_http_request, 1));
    assert_int_equal(toy_do(a, task_connections, NULL), DESCRIPTORS / 2);
    toy_t *b = toy_start(config, prefill_lb, 2);
    assert_true(toy_wait(a, MSG_peer_up, 1) && toy_wait(b, MSG_peer_up, 1));
    assert_int_equal(toy_send(a, prefill_lb, 7, 1), ERR_OK);
    assert_true(toy_wait(b, MSG_cancel, 1));
    close(orders[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    toy_config_free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_connections_leave_descriptors_for_links),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
