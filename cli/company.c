/* cli/company.c - the company that runs on this machine, as a command sees it. */
#include "company.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "../runtime/world.h"
#include "cli.h"

bool company_file(const config_t *config, char *path, size_t cap)
{
    char directory[256];
    if (world_directory(config, directory, sizeof directory) != ERR_OK) return false;
    return (size_t)snprintf(path, cap, "%s/company.yaml", directory) < cap;
}

bool company_is_running(const config_t *config)
{
    char directory[256];
    if (world_directory(config, directory, sizeof directory) != ERR_OK) return false;
    int descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return false;
    bool is_held = flock(descriptor, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(descriptor);
    return is_held;
}

/* The process id that the supervisor wrote into its lock; "PID" where somebody deleted that. */
static void read_supervisor(const config_t *config, char *pid, size_t cap)
{
    char directory[256], path[320];
    snprintf(pid, cap, "PID");
    if (world_directory(config, directory, sizeof directory) != ERR_OK) return;
    snprintf(path, sizeof path, "%s/supervisor-0.lock", directory);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (descriptor < 0) return;
    ssize_t size = read(descriptor, pid, cap - 1);
    if (size > 0) pid[size] = 0;
    close(descriptor);
}

int company_unreachable(const config_t *config)
{
    char pid[16];
    read_supervisor(config, pid, sizeof pid);
    if (!company_is_running(config))
        complain("no company answers; `troupe up` starts one");
    else
        complain("the company runs, but its director does not answer; `kill %s`, to its "
                 "supervisor, stops it in order",
                 pid);
    return EXIT_UNREACHABLE;
}

cJSON *company_status(client_t *director, int timeout_ms)
{
    static msg_t m; /* too large for a thread's stack; one thread of a command asks */
    uint64_t end_us = now_us() + (uint64_t)timeout_ms * 1000;
    request_id_t request = client_request_id(director);
    msg_init(&m, MSG_status_request);
    m.header.request = request;
    if (client_send(director, &m) != ERR_OK) return NULL;
    for (uint64_t now = now_us(); now < end_us; now = now_us()) {
        if (client_receive(director, &m, (int)((end_us - now) / 1000) + 1) != ERR_OK) continue;
        if (m.type == MSG_status_reply && request_id_equal(m.header.request, request))
            return cJSON_ParseWithLength(m.status_reply.json.data, m.status_reply.json.size);
    }
    return NULL;
}

uint32_t company_up_count(const cJSON *status)
{
    uint32_t count = 0;
    const cJSON *actor, *actors = cJSON_GetObjectItem(status, "actors");
    cJSON_ArrayForEach(actor, actors) count +=
        (uint32_t)cJSON_IsTrue(cJSON_GetObjectItem(actor, "is_up"));
    return count;
}

company_address_t company_address(const char *listen)
{
    static const char *const wildcards[][2] = { { "*", "127.0.0.1" },
                                                { "0.0.0.0", "127.0.0.1" },
                                                { "[::]", "[::1]" } };
    const char *colon = strrchr(listen, ':');
    size_t size = colon ? (size_t)(colon - listen) : strlen(listen);
    company_address_t out;
    snprintf(out.text, sizeof out.text, "%s", listen);
    for (size_t i = 0; i < sizeof wildcards / sizeof wildcards[0]; i++)
        if (strlen(wildcards[i][0]) == size && strncmp(wildcards[i][0], listen, size) == 0)
            snprintf(out.text, sizeof out.text, "%s%s", wildcards[i][1], listen + size);
    return out;
}

/* A connection to "host:port" or "[host]:port" with a second's patience; -1: none. */
static int connect_to(const char *listen)
{
    char host[256];
    const char *colon = strrchr(listen, ':');
    size_t size = colon ? (size_t)(colon - listen) : 0;
    if (size == 0 || size >= sizeof host) return -1;
    bool is_bracketed = listen[0] == '[' && listen[size - 1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)size - 2 * is_bracketed, listen + is_bracketed);
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV },
                    *found = NULL;
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0) return -1;
    int descriptor = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval second = { .tv_sec = 1 };
    if (descriptor >= 0) {
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof second);
        if (connect(descriptor, found->ai_addr, found->ai_addrlen) != 0) {
            close(descriptor);
            descriptor = -1;
        }
    }
    freeaddrinfo(found);
    return descriptor;
}

bool company_is_ready(const config_t *config)
{
    static const char request[] = "GET /ready HTTP/1.0\r\nHost: localhost\r\n\r\n";
    char answer[16] = "";
    int descriptor = connect_to(company_address(config->http.listen).text);
    if (descriptor < 0) return false;
    size_t got = 0;
    if (send(descriptor, request, sizeof request - 1, MSG_NOSIGNAL) == (ssize_t)sizeof request - 1)
        for (ssize_t more; got < 12 && (more = recv(descriptor, answer + got, 12 - got, 0)) > 0;)
            got += (size_t)more;
    close(descriptor);
    return got == 12 && strncmp(answer, "HTTP/1.", 7) == 0 && strcmp(answer + 8, " 200") == 0;
}
