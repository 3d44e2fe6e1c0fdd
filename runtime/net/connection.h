/* runtime/net/connection.h - the server's record of one of evhttp's connections; for server.c only.
 *
 *   IDLE --bytes--> RECEIVE --whole--> ANSWER --complete--> FLUSH --sent--> IDLE, or LAST
 *                      +--refused--> REFUSE --sent--> LAST --evhttp lets go--> LINGER
 *
 * evhttp owns its connections and requests and frees them under us; a record lives from the making
 * of the bufferevent to the close callback, and through LINGER on a descriptor of its own.
 */
#ifndef RUNTIME_NET_CONNECTION_H
#define RUNTIME_NET_CONNECTION_H

#include <sys/queue.h>

#include "server.h"
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <event2/http.h>
#include <event2/listener.h>

enum { SLOT_BITS = 20 }; /* of an exchange's number: which record */

typedef enum {
    AT_FREE,
    AT_IDLE, /* between requests */
    AT_RECEIVE,
    AT_ANSWER, /* its exchange runs */
    AT_FLUSH,  /* the answer is complete, not all of it is sent */
    AT_REFUSE, /* the same for a refusal of our own */
    AT_LAST,   /* all is sent, evhttp lets go of the connection */
    AT_LINGER, /* it has: what still arrives is thrown away */
} place_t;

typedef struct connection {
    TAILQ_ENTRY(connection) timed;
    TAILQ_ENTRY(connection) marked_link;
    server_t *server;
    struct timed_list *list; /* the deadline it is under; NULL: none */
    struct bufferevent *stream;
    struct evhttp_connection *handle; /* NULL: evhttp has just made it */
    struct evhttp_request *request;   /* the one that is answered */
    struct event readable;            /* in LINGER */
    place_t place;
    uint64_t deadline_ms, exchange;
    uint64_t crowded_ms; /* since when too much of its stream waits; 0: it does not */
    size_t received;     /* bytes since the request began */
    uint32_t next_free;
    bool is_marked, is_paused, is_doomed, is_head, is_begun, is_last;
} connection_t;

TAILQ_HEAD(timed_list, connection);
TAILQ_HEAD(marked_list, connection);

struct server {
    struct event_base *base;
    server_options_t options;
    struct evhttp *http;
    struct evconnlistener *listener, *refuser; /* of one socket; at connections_max the other */
    uint16_t port;
    struct event sweep, attention;
    struct evbuffer *scratch;
    connection_t *connections, *current; /* current: evhttp takes bytes of this one */
    uint32_t count, fresh, free_head;
    uint64_t exchanges;
    struct timed_list idle, receiving, lingering;
    struct marked_list marked;
    bool is_ending;
};

uint64_t connection_now_ms(void);

/* Arrive at a place, under its deadline. */
void connection_go(connection_t *self, place_t place);

/* evhttp is in the middle of something: look at the connection right after, before anything is
 * sent. */
void connection_mark(connection_t *self);

/* What an event of the server's attention does: look at what is marked. */
void connection_attend(evutil_socket_t descriptor, short what, void *server);

/* evhttp asks for the stream of a connection that it has accepted; context is the server. */
struct bufferevent *connection_make(struct event_base *base, void *context);

/* The next request may arrive: bound how much of it may wait unread.  evhttp leaves a body there
 * until it is whole, and bounds no line between chunks. */
void connection_await_request(connection_t *self);

/* A request is being answered: evhttp would read nothing meanwhile, and notice late that the client
 * left. */
void connection_await_close(connection_t *self);

/* Give the socket what it takes, without waiting for the loop. */
void connection_send_now(connection_t *self);

/* An answer of the server's own, to what is no request; the connection ends with it. */
void connection_refuse(connection_t *self, int status, const char *text);

/* The deadline of its place has passed: refuse it, or end it. */
void connection_expire(connection_t *self);
void connections_expire(struct timed_list *list);

/* Read again from those that send little at a time. */
void connections_resume(struct timed_list *list);

/* Accept new connections, or close them at once, by how many there are. */
void server_choose_listener(server_t *self);

#endif
