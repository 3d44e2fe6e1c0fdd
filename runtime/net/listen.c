/* runtime/net/listen.c - from the text of an address to a socket that is listened on. */
#include "listen.h"

#include <errno.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <event2/listener.h>

/* "host:port" or "[host]:port" into host and port; false when it is neither. */
static bool split_address(const char *address, char *host, size_t cap, uint32_t *port)
{
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon == address) return false;
    const char *start = address, *end = colon;
    if (*start == '[' && end[-1] == ']') {
        start++;
        end--;
    }
    char *rest;
    unsigned long number = strtoul(colon + 1, &rest, 10);
    if (*rest != 0 || rest == colon + 1 || number > 65535 || (size_t)(end - start) >= cap)
        return false;
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = 0;
    *port = (uint32_t)number;
    return true;
}

struct evconnlistener *listen_open(struct event_base *base, const listen_options_t *options,
                                   char *why, size_t why_cap)
{
    char host[256], service[16];
    uint32_t port = 0;
    /* AI_PASSIVE: "*" is every address; without it, it would be the loopback's of IPv6 alone. */
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_PASSIVE },
                    *found = NULL;
    if (!split_address(options->address, host, sizeof host, &port)) {
        snprintf(why, why_cap, "'%s' is not an address and a port, such as 127.0.0.1:8000",
                 options->address);
        return NULL;
    }
    snprintf(service, sizeof service, "%u", port == 0 ? 0 : port + options->port_offset);
    int error = getaddrinfo(host, service, &hints, &found);
    if (error != 0) {
        snprintf(why, why_cap, "'%s' cannot be resolved: %s", options->address,
                 gai_strerror(error));
        return NULL;
    }
    unsigned flags = LEV_OPT_REUSEABLE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_CLOSE_ON_FREE;
    struct evconnlistener *listener = evconnlistener_new_bind(
        base, NULL, NULL, flags, options->backlog, found->ai_addr, (int)found->ai_addrlen);
    if (listener == NULL)
        snprintf(why, why_cap, "%s:%s cannot be listened on: %s", host, service, strerror(errno));
    freeaddrinfo(found);
    return listener;
}

uint16_t listen_port(struct evconnlistener *listener)
{
    struct sockaddr_storage address = { 0 };
    socklen_t size = sizeof address;
    char service[16] = "0";
    if (getsockname(evconnlistener_get_fd(listener), (struct sockaddr *)&address, &size) != 0)
        return 0;
    getnameinfo((struct sockaddr *)&address, size, NULL, 0, service, sizeof service,
                NI_NUMERICSERV);
    return (uint16_t)strtoul(service, NULL, 10);
}
