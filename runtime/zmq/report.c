/* runtime/zmq/report.c - every second the director is told all metrics of this actor. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "state.h"

/* Entries of a directory of /proc, without opendir's allocation. */
static uint32_t count_entries(const char *path)
{
    _Alignas(16) char buf[4096];
    uint32_t count = 0;
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return 0;
    for (;;) {
        long size = syscall(SYS_getdents64, descriptor, buf, sizeof buf);
        if (size <= 0) break;
        for (long at = 0; at < size;) {
            uint16_t length; /* struct linux_dirent64: 8 bytes inode, 8 bytes offset, then this */
            memcpy(&length, buf + at + 16, sizeof length);
            count++;
            at += length;
        }
    }
    (void)close(descriptor);
    return count < 2 ? 0 : count - 2; /* . and .. */
}

static double resident_bytes(void)
{
    char text[128] = "";
    int descriptor = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return 0;
    ssize_t size = read(descriptor, text, sizeof text - 1);
    (void)close(descriptor);
    const char *second = size > 0 ? strchr(text, ' ') : NULL;
    return second ? (double)strtoul(second, NULL, 10) * (double)sysconf(_SC_PAGESIZE) : 0;
}

/* Counting thousands of descriptors takes milliseconds; it need not be done every second. */
enum { COUNT_EVERY = 5 };

static void measure(actor_t *world)
{
    metrics_gauge(&world->metrics, METRIC_resident_bytes, resident_bytes());
    if (world->reports++ % COUNT_EVERY != 0) return;
    uint32_t descriptors = count_entries("/proc/self/fd");
    metrics_gauge(&world->metrics, METRIC_open_descriptors, descriptors ? descriptors - 1 : 0);
    metrics_gauge(&world->metrics, METRIC_threads, count_entries("/proc/self/task"));
}

void report_send(actor_t *world)
{
    const address_t director = { ROLE_director, 0 };
    peer_t *peer = peer_find(world, director);
    bool is_director = world->self.role == ROLE_director;
    measure(world);
    if (!is_director && (!peer || peer->epoch == 0 || peer->is_lost)) return;
    msg_t report;
    msg_init(&report, MSG_report);
    report.report.role = world->self.role;
    report.report.index = world->self.index;
    report.report.life = world->epoch;
    report.report.uptime_us = actor_now_us(world) - world->started_us;
    report.report.values_count = metrics_slot_count();
    memcpy(report.report.values, world->metrics.slots, metrics_slot_count() * sizeof(double));
    report.header.from = world->self;
    if (!is_director)
        (void)peer_queue(world, peer, &report); /* the next one says all that this one did */
    else if (world->class->on[MSG_report])
        deliver(world, &report);
}
