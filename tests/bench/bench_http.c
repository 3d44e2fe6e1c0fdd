/* tests/bench/bench_http.c - a closed loop of requests over kept connections: requests/s, latency,
 * and what each actor's process spent on a request.
 *
 *   bench_http [--requests N] [--connections N] [--max-tokens N] [--stream] [--prompt TEXT]
 *              [--troupe PATH] [--set SECTION.KEY=VALUE ...] [--port N]
 *
 * Run it at the top of the source tree.  Without --port it starts a company with the stub engine,
 * one worker of each kind, and stops it at the end; the load comes from this process, beside it on
 * the same cores.  CPU times are those of the processes' own clocks, so that whoever else is busy
 * changes requests/s, but hardly them.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    ANSWER_BYTES = 32768,
    TAIL_BYTES = 8,
    SETS_MAX = 32,
    ACTORS_MAX = 64,
    NAME_BYTES = 64,
    PATH_BYTES = 4096,
    READY_SECONDS = 60,
    EVENTS_MAX = 512,
};

typedef struct {
    uint32_t requests, connections, max_tokens;
    bool is_stream;
    const char *prompt, *troupe;
    const char *sets[SETS_MAX];
    int set_count;
    uint16_t port;
} options_t;

typedef struct {
    int descriptor;
    bool has_begun; /* an event of the stream has come */
    uint64_t sent_us;
    size_t used;
    char answer[ANSWER_BYTES]; /* of a stream: only its last TAIL_BYTES stay */
} connection_t;

typedef struct {
    pid_t pid;
    char name[NAME_BYTES];
    uint64_t cpu_ns, switches;
} usage_t;

typedef struct {
    options_t options;
    char request[PATH_BYTES];
    size_t request_bytes;
    pid_t company;
    char directory[64];
    int epoll;
    connection_t *connections;
    uint64_t *latencies_us, *firsts_us; /* to the end; of a stream, to its first event */
    uint32_t sent, done, begun, target, refused;
    uint64_t events;
    usage_t usages[ACTORS_MAX];
    int usage_count;
} bench_t;

static _Noreturn void give_up(const bench_t *self, const char *what)
{
    fprintf(stderr, "bench_http: %s: %s\n", what, strerror(errno));
    if (self->company > 0) (void)kill(self->company, SIGTERM);
    exit(1);
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* ---- the company ---- */

static int open_socket(void)
{
    int one = 1, descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return descriptor;
}

static struct sockaddr_in local(uint16_t port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static uint16_t free_port(void)
{
    struct sockaddr_in address = local(0);
    socklen_t size = sizeof address;
    int descriptor = open_socket();
    bool is_bound = bind(descriptor, (struct sockaddr *)&address, size) == 0 &&
                    getsockname(descriptor, (struct sockaddr *)&address, &size) == 0;
    (void)close(descriptor);
    return is_bound ? ntohs(address.sin_port) : 0;
}

static _Noreturn void become_company(const bench_t *self, const char *program)
{
    char listen_set[64], directory_set[128], log_path[128];
    const char *arguments[2 * SETS_MAX + 32] = { program, "up" };
    int count = 2;
    (void)snprintf(listen_set, sizeof listen_set, "http.listen=127.0.0.1:%u", self->options.port);
    (void)snprintf(directory_set, sizeof directory_set, "wire.directory=%s/wire", self->directory);
    (void)snprintf(log_path, sizeof log_path, "%s/log", self->directory);
    const char *sets[] = { "engine.kind=stub",     "company.prefill_workers=1",
                           "company.prefill_ep=1", "company.decode_workers=1",
                           "company.decode_ep=1",  listen_set,
                           directory_set };
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        arguments[count++] = "--set";
        arguments[count++] = sets[i];
    }
    for (int i = 0; i < self->options.set_count; i++) {
        arguments[count++] = "--set";
        arguments[count++] = self->options.sets[i];
    }
    int log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    (void)dup2(log, STDOUT_FILENO);
    (void)dup2(log, STDERR_FILENO);
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM); /* nobody else would stop it */
    (void)execv(program, (char *const *)(uintptr_t)arguments);
    _exit(127);
}

static bool is_ready(const bench_t *self)
{
    static const char question[] = "GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    char answer[256] = "";
    struct sockaddr_in address = local(self->options.port);
    int descriptor = open_socket();
    if (connect(descriptor, (struct sockaddr *)&address, sizeof address) == 0 &&
        send(descriptor, question, sizeof question - 1, MSG_NOSIGNAL) > 0)
        (void)recv(descriptor, answer, sizeof answer - 1, MSG_WAITALL);
    (void)close(descriptor);
    return strstr(answer, " 200 ") != NULL;
}

/* The binary beside the directory of benchmarks, unless told. */
static void find_program(const bench_t *self, char *program, size_t cap)
{
    char own[PATH_BYTES];
    ssize_t size = readlink("/proc/self/exe", own, sizeof own - 1);
    if (size < 0) give_up(self, "/proc/self/exe");
    own[size] = 0;
    for (int i = 0; i < 2 && strrchr(own, '/'); i++) *strrchr(own, '/') = 0;
    (void)snprintf(program, cap, "%s/troupe", own);
}

static void start_company(bench_t *self)
{
    char program[PATH_BYTES + 16];
    find_program(self, program, sizeof program);
    (void)snprintf(self->directory, sizeof self->directory, "/tmp/bench-http-XXXXXX");
    if (!mkdtemp(self->directory)) give_up(self, self->directory);
    self->options.port = free_port();
    self->company = fork();
    if (self->company == 0)
        become_company(self, self->options.troupe ? self->options.troupe : program);
    uint64_t end_us = now_us() + (uint64_t)READY_SECONDS * 1000000;
    while (!is_ready(self)) {
        if (now_us() > end_us || waitpid(self->company, NULL, WNOHANG) != 0) {
            fprintf(stderr, "the company is not ready; its log is %s/log\n", self->directory);
            give_up(self, "company");
        }
        (void)usleep(50000);
    }
}

/* Its directory stays when it did not end well, for whoever wants to know why. */
static void stop_company(bench_t *self)
{
    char path[128];
    int status = 0;
    (void)kill(self->company, SIGTERM);
    (void)waitpid(self->company, &status, 0);
    if (status) fprintf(stderr, "the company ended with %d; see %s\n", status, self->directory);
    if (status) return;
    (void)snprintf(path, sizeof path, "%s/log", self->directory);
    (void)unlink(path);
    (void)snprintf(path, sizeof path, "%s/wire", self->directory);
    (void)rmdir(path);
    (void)rmdir(self->directory);
}

/* ---- what the actors spend ---- */

static size_t read_file(const char *path, char *text, size_t cap)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = descriptor < 0 ? -1 : read(descriptor, text, cap - 1);
    if (descriptor >= 0) (void)close(descriptor);
    text[size > 0 ? size : 0] = 0;
    return size > 0 ? (size_t)size : 0;
}

static pid_t parent_of(pid_t pid)
{
    char path[64], text[1024];
    (void)snprintf(path, sizeof path, "/proc/%d/stat", pid);
    (void)read_file(path, text, sizeof text);
    const char *end = strrchr(text, ')');
    return end && strlen(end) > 4 ? (pid_t)strtol(end + 4, NULL, 10) : 0;
}

/* "troupe actor --role R --index I ..." */
static void name_of(pid_t pid, char *name, size_t cap)
{
    char path[64], text[PATH_BYTES];
    (void)snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    size_t size = read_file(path, text, sizeof text);
    const char *role = "supervisor", *index = "0";
    for (const char *at = text; at < text + size; at += strlen(at) + 1) {
        if (strcmp(at, "--role") == 0) role = at + strlen(at) + 1;
        if (strcmp(at, "--index") == 0) index = at + strlen(at) + 1;
    }
    (void)snprintf(name, cap, "%.40s.%.8s", role, index);
}

/* Switches of all threads, wished for or not: each wake-up costs one. */
static uint64_t switches_of(pid_t pid)
{
    char path[PATH_BYTES], text[4096];
    uint64_t sum = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    const struct dirent *task;
    while (tasks && (task = readdir(tasks))) {
        if (!isdigit((unsigned char)task->d_name[0])) continue;
        (void)snprintf(path, sizeof path, "/proc/%d/task/%s/status", pid, task->d_name);
        (void)read_file(path, text, sizeof text);
        const char *at = strstr(text, "voluntary_ctxt_switches:");
        if (at) sum += strtoull(at + strlen("voluntary_ctxt_switches:"), NULL, 10);
        at = strstr(text, "nonvoluntary_ctxt_switches:");
        if (at) sum += strtoull(at + strlen("nonvoluntary_ctxt_switches:"), NULL, 10);
    }
    if (tasks) (void)closedir(tasks);
    return sum;
}

static uint64_t cpu_ns_of(pid_t pid)
{
    clockid_t clock;
    struct timespec spent = { 0 };
    if (clock_getcpuclockid(pid, &clock) == 0) (void)clock_gettime(clock, &spent);
    return (uint64_t)spent.tv_sec * 1000000000 + (uint64_t)spent.tv_nsec;
}

static void find_actors(bench_t *self)
{
    DIR *processes = opendir("/proc");
    const struct dirent *entry;
    self->usage_count = 0;
    while (processes && (entry = readdir(processes)) && self->usage_count < ACTORS_MAX) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid <= 0 || (pid != self->company && parent_of(pid) != self->company)) continue;
        usage_t *usage = &self->usages[self->usage_count++];
        *usage = (usage_t){ .pid = pid, .cpu_ns = cpu_ns_of(pid), .switches = switches_of(pid) };
        name_of(pid, usage->name, sizeof usage->name);
    }
    if (processes) (void)closedir(processes);
}

static void print_usages(const bench_t *self)
{
    double all_us = 0;
    printf("%-20s %14s %12s %17s\n", "process", "CPU us/request", "us/event", "switches/request");
    for (int i = 0; i < self->usage_count; i++) {
        const usage_t *usage = &self->usages[i];
        double us = (double)(cpu_ns_of(usage->pid) - usage->cpu_ns) / 1e3;
        double switches = (double)(switches_of(usage->pid) - usage->switches);
        all_us += us;
        printf("%-20s %14.1f", usage->name, us / self->done);
        if (self->options.is_stream)
            printf(" %12.2f", us / (double)self->events);
        else
            printf(" %12s", "");
        printf(" %17.2f\n", switches / self->done);
    }
    printf("%-20s %14.1f\n", "all", all_us / self->done);
}

/* ---- the load ---- */

static void send_request(bench_t *self, connection_t *connection)
{
    connection->used = 0;
    connection->has_begun = false;
    connection->sent_us = now_us();
    self->sent++;
    ssize_t sent = send(connection->descriptor, self->request, self->request_bytes, MSG_NOSIGNAL);
    if (sent != (ssize_t)self->request_bytes) give_up(self, "send");
}

static void open_connection(bench_t *self, connection_t *connection)
{
    struct sockaddr_in address = local(self->options.port);
    connection->descriptor = open_socket();
    if (connect(connection->descriptor, (struct sockaddr *)&address, sizeof address))
        give_up(self, "connect");
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = connection };
    if (epoll_ctl(self->epoll, EPOLL_CTL_ADD, connection->descriptor, &event))
        give_up(self, "epoll_ctl");
}

static void count_events(bench_t *self, const char *at, const char *end)
{
    static const char word[] = "data: ";
    while ((at = memmem(at, (size_t)(end - at), word, sizeof word - 1))) {
        self->events++;
        at += sizeof word - 1;
    }
}

/* Of what was read only so much stays that neither a word nor the end can hide in a seam. */
static bool take_stream(bench_t *self, connection_t *connection, size_t fresh)
{
    static const char end[] = "\r\n0\r\n\r\n";
    size_t size = connection->used, before = size - fresh;
    size_t from = before > 5 ? before - 5 : 0;
    uint64_t events = self->events;
    count_events(self, connection->answer + from, connection->answer + size);
    if (!connection->has_begun && self->events > events) {
        connection->has_begun = true;
        self->firsts_us[self->begun++] = now_us() - connection->sent_us;
    }
    size_t length = sizeof end - 1;
    bool is_over = size >= length && memcmp(connection->answer + size - length, end, length) == 0;
    if (size > TAIL_BYTES)
        memmove(connection->answer, connection->answer + size - TAIL_BYTES, TAIL_BYTES);
    connection->used = size < TAIL_BYTES ? size : TAIL_BYTES;
    return is_over;
}

static bool is_whole(connection_t *connection)
{
    connection->answer[connection->used] = 0;
    const char *body = strstr(connection->answer, "\r\n\r\n");
    const char *length = strcasestr(connection->answer, "\r\ncontent-length:");
    if (!body || !length) return false;
    size_t bytes = strtoul(length + strlen("\r\ncontent-length:"), NULL, 10);
    return (size_t)(body + 4 - connection->answer) + bytes <= connection->used;
}

static void end_request(bench_t *self, connection_t *connection)
{
    self->latencies_us[self->done++] = now_us() - connection->sent_us;
    if (self->sent < self->target) send_request(self, connection);
}

static void on_readable(bench_t *self, connection_t *connection)
{
    size_t room = ANSWER_BYTES - 1 - connection->used;
    ssize_t size = recv(connection->descriptor, connection->answer + connection->used, room, 0);
    if (size <= 0) give_up(self, "the connection ended");
    bool is_first = connection->used == 0;
    connection->used += (size_t)size;
    if (is_first && size > 12 && memcmp(connection->answer + 9, "200", 3) != 0) self->refused++;
    bool is_over = self->options.is_stream ? take_stream(self, connection, (size_t)size)
                                           : is_whole(connection);
    if (is_over) end_request(self, connection);
}

static void run_requests(bench_t *self, uint32_t target)
{
    struct epoll_event events[EVENTS_MAX];
    self->sent = self->done = self->begun = 0;
    self->events = 0;
    self->target = target;
    for (uint32_t i = 0; i < self->options.connections && self->sent < target; i++)
        send_request(self, &self->connections[i]);
    while (self->done < target) {
        int count = epoll_wait(self->epoll, events, EVENTS_MAX, 30000);
        if (count <= 0 && errno != EINTR) give_up(self, "nothing came for 30 s");
        for (int i = 0; i < count; i++) on_readable(self, events[i].data.ptr);
    }
}

static void open_load(bench_t *self)
{
    const options_t *options = &self->options;
    char body[PATH_BYTES / 2];
    int size =
        snprintf(body, sizeof body,
                 "{\"prompt\":\"%s\",\"max_tokens\":%u,\"ignore_eos\":true,\"stream\":%s}",
                 options->prompt, options->max_tokens, options->is_stream ? "true" : "false");
    self->request_bytes = (size_t)snprintf(
        self->request, sizeof self->request,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: %d\r\n\r\n%s",
        size, body);
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    self->connections = calloc(options->connections, sizeof *self->connections);
    self->latencies_us = calloc(options->requests, sizeof(uint64_t));
    self->firsts_us = calloc(options->requests, sizeof(uint64_t));
    if (!self->connections || !self->latencies_us || !self->firsts_us) give_up(self, "memory");
    for (uint32_t i = 0; i < options->connections; i++)
        open_connection(self, &self->connections[i]);
}

/* ---- what it was ---- */

static int compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

static void print_latency(const char *name, uint64_t *us, uint32_t count)
{
    if (count == 0) return;
    qsort(us, count, sizeof *us, compare);
    printf("%s p50 %.2f ms, p99 %.2f ms\n", name, (double)us[count / 2] / 1e3,
           (double)us[(uint64_t)count * 99 / 100] / 1e3);
}

static void print_results(bench_t *self, double seconds, double own_us)
{
    const options_t *options = &self->options;
    printf("%u requests, %u connections, max_tokens %u%s: %.0f requests/s, refused %u\n",
           self->done, options->connections, options->max_tokens,
           options->is_stream ? ", streamed" : "", self->done / seconds, self->refused);
    print_latency("latency", self->latencies_us, self->done);
    print_latency("first event", self->firsts_us, self->begun);
    if (options->is_stream) printf("%.0f events/s\n", (double)self->events / seconds);
    if (self->company > 0) print_usages(self);
    printf("%-20s %14.1f\n", "this generator", own_us / self->done);
}

static void measure(bench_t *self)
{
    uint32_t warm = self->options.connections < self->options.requests ? self->options.connections
                                                                       : self->options.requests;
    open_load(self);
    if (!self->options.is_stream) run_requests(self, warm);
    find_actors(self);
    uint64_t began_us = now_us(), own_ns = cpu_ns_of(getpid());
    run_requests(self, self->options.requests);
    double seconds = (double)(now_us() - began_us) / 1e6;
    print_results(self, seconds, (double)(cpu_ns_of(getpid()) - own_ns) / 1e3);
    for (uint32_t i = 0; i < self->options.connections; i++)
        (void)close(self->connections[i].descriptor);
}

static void read_option(options_t *options, int key)
{
    uint32_t number = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;
    if (key == 'r') options->requests = number;
    if (key == 'c') options->connections = number;
    if (key == 'm') options->max_tokens = number;
    if (key == 's') options->is_stream = true;
    if (key == 'p') options->prompt = optarg;
    if (key == 't') options->troupe = optarg;
    if (key == 'P') options->port = (uint16_t)number;
    if (key == 'S' && options->set_count < SETS_MAX) options->sets[options->set_count++] = optarg;
}

int main(int count, char **arguments)
{
    static const struct option names[] = {
        { "requests", required_argument, NULL, 'r' },
        { "connections", required_argument, NULL, 'c' },
        { "max-tokens", required_argument, NULL, 'm' },
        { "stream", no_argument, NULL, 's' },
        { "prompt", required_argument, NULL, 'p' },
        { "troupe", required_argument, NULL, 't' },
        { "port", required_argument, NULL, 'P' },
        { "set", required_argument, NULL, 'S' },
        { 0 },
    };
    static bench_t bench;
    bench.options =
        (options_t){ .requests = 5000, .connections = 64, .max_tokens = 1, .prompt = "x" };
    int key;
    while ((key = getopt_long(count, arguments, "", names, NULL)) != -1) {
        if (key == '?') return 2;
        read_option(&bench.options, key);
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (bench.options.port == 0) start_company(&bench);
    measure(&bench);
    if (bench.company > 0) stop_company(&bench);
    return bench.refused ? 1 : 0;
}
