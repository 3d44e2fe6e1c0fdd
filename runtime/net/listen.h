/* runtime/net/listen.h - from the text of an address to a socket that is listened on. */
#ifndef RUNTIME_NET_LISTEN_H
#define RUNTIME_NET_LISTEN_H

#include <stddef.h>
#include <stdint.h>

struct event_base;
struct evconnlistener;

typedef struct {
    const char *address;  /* "127.0.0.1:8000", "[::1]:8000"; port 0: any */
    uint32_t port_offset; /* added to a port that is not 0 */
    int backlog;
} listen_options_t;

/* A listener without a callback; it closes its socket when freed.  NULL: *why says which address
 * could not be listened on. */
struct evconnlistener *listen_open(struct event_base *base, const listen_options_t *options,
                                   char *why, size_t why_cap);

/* The port that is listened on. */
uint16_t listen_port(struct evconnlistener *listener);

#endif
