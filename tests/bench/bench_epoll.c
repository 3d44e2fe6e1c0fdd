/* tests/bench/bench_epoll.c - the least that streams can cost on this machine: a plain epoll loop
 * writes an event to every stream ten times a second.
 *
 *   bench_epoll [STREAMS, by default 1000] [SECONDS, 5]
 *
 * Prints the CPU time of the writing process per event.  System calls cost several times as much on
 * one virtual machine as on another, so figures of ingress are read beside it.
 */
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { STREAMS_MAX = 20000, EVENT_BYTES = 230 /* a token in OpenAI's form, as a chunk */ };

static void must(int is_so, const char *what)
{
    if (is_so) return;
    perror(what);
    exit(1);
}

static double cpu_seconds(void)
{
    struct rusage used;
    must(getrusage(RUSAGE_SELF, &used) == 0, "getrusage");
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

/* The readers' process. */
static void read_all(uint16_t port, int streams)
{
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons(port),
                              .sin_addr = { htonl(INADDR_LOOPBACK) } };
    int poller = epoll_create1(0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < streams; i++) {
        int reader = socket(AF_INET, SOCK_STREAM, 0);
        must(reader >= 0 && connect(reader, (struct sockaddr *)&to, sizeof to) == 0, "connect");
        struct epoll_event event = { .events = EPOLLIN, .data.fd = reader };
        must(epoll_ctl(poller, EPOLL_CTL_ADD, reader, &event) == 0, "epoll_ctl");
    }
    for (;;) {
        struct epoll_event ready[256];
        char bytes[4096];
        int count = epoll_wait(poller, ready, 256, -1);
        for (int i = 0; i < count; i++)
            if (recv(ready[i].data.fd, bytes, sizeof bytes, 0) <= 0) exit(0);
    }
}

int main(int argc, char **argv)
{
    int streams = argc > 1 ? atoi(argv[1]) : 1000, seconds = argc > 2 ? atoi(argv[2]) : 5;
    if (streams < 1 || streams > STREAMS_MAX || seconds < 1) {
        fprintf(stderr, "usage: bench_epoll [STREAMS, 1 to %d] [SECONDS]\n", STREAMS_MAX);
        return 2;
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in own = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t size = sizeof own;
    must(bind(listener, (struct sockaddr *)&own, size) == 0 && listen(listener, 4096) == 0 &&
             getsockname(listener, (struct sockaddr *)&own, &size) == 0,
         "listen");
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) read_all(ntohs(own.sin_port), streams);

    static int writers[STREAMS_MAX];
    int poller = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    for (int i = 0; i < streams; i++) {
        writers[i] = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        struct epoll_event event = { .events = EPOLLIN, .data.fd = writers[i] };
        must(writers[i] >= 0 && epoll_ctl(poller, EPOLL_CTL_ADD, writers[i], &event) == 0,
             "accept");
    }
    struct itimerspec tick = { { 0, 100000000 }, { 0, 100000000 } };
    struct epoll_event event = { .events = EPOLLIN, .data.fd = timer };
    must(timerfd_settime(timer, 0, &tick, NULL) == 0 &&
             epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event) == 0,
         "timer");

    char bytes[EVENT_BYTES];
    memset(bytes, 'x', sizeof bytes);
    uint64_t sent = 0;
    double begin = cpu_seconds();
    for (int turn = 0; turn < 10 * seconds; turn++) {
        uint64_t ticks;
        must(epoll_wait(poller, &event, 1, -1) == 1 && event.data.fd == timer, "a stream ended");
        must(read(timer, &ticks, sizeof ticks) == sizeof ticks, "timer");
        for (int i = 0; i < streams; i++)
            sent += send(writers[i], bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes;
    }
    double spent = cpu_seconds() - begin;
    printf("%.2f us of CPU per event, %d streams\n", spent * 1e6 / (double)sent, streams);
    kill(child, SIGKILL);
    return 0;
}
