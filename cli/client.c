/* cli/client.c - a ZeroMQ client of one actor: the messages of messages.def over a DEALER. */
#include "client.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <zmq.h>

#include "../runtime/invariant.h"
#include "../runtime/world.h"
#include "certificates.h"
#include "cli.h"

/* An actor that was started anew says nothing to clients that it has not heard of: after this
 * silence it is asked who it is. */
enum { ASK_US = 1000000 };

struct client {
    void *context, *socket;
    uint64_t epoch, sequence;
    uint64_t life; /* epoch of the actor that has what was sent since client_greet; 0: not known */
    uint64_t spoke_us, asked_us; /* when the actor said anything; when it was asked */
    uint64_t heard_us;           /* when it said what counts in client_silence_us */
    /* It was silent: it lives, but drops the requests of a client whose connection broke.  Until
     * more of them is heard its heartbeats prove nothing. */
    bool is_doubtful;
    zmq_msg_t frame; /* what BYTES of the message received last point into */
    size_t used;     /* of the frame; the rest holds further messages */
    uint8_t *out;
};

static uint64_t random_word(void)
{
    uint64_t word = 0;
    invariant(getrandom(&word, sizeof word, 0) == (ssize_t)sizeof word);
    return word;
}

static bool connect_to(client_t *self, const config_t *config, address_t server)
{
    char endpoint[512], id[64];
    int linger_ms = 500, zero = 0;
    if (world_endpoint(config, server, endpoint, sizeof endpoint) >= sizeof endpoint) return false;
    int size = snprintf(id, sizeof id, "client.%d-%08x", (int)getpid(), (unsigned)random_word());
    zmq_setsockopt(self->socket, ZMQ_ROUTING_ID, id, (size_t)size);
    zmq_setsockopt(self->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_setsockopt(self->socket, ZMQ_SNDTIMEO, &zero, sizeof zero);
    if (!certificates_use(config, self->socket, server)) return false;
    return zmq_connect(self->socket, endpoint) == 0;
}

client_t *client_new(const config_t *config, address_t server)
{
    client_t *self = calloc(1, sizeof *self);
    invariant(self != NULL);
    self->out = malloc(MESSAGE_BYTES_MAX);
    self->context = zmq_ctx_new();
    self->socket = self->context ? zmq_socket(self->context, ZMQ_DEALER) : NULL;
    self->epoch = random_word() | 1;
    zmq_msg_init(&self->frame);
    if (self->out && self->socket && connect_to(self, config, server)) return self;
    complain("no socket to %s.%u: %s", role_names[server.role], server.index,
             zmq_strerror(zmq_errno()));
    client_destroy(&self);
    return NULL;
}

void client_destroy(client_t **self)
{
    client_t *dead = *self;
    if (!dead) return;
    zmq_msg_close(&dead->frame);
    if (dead->socket) zmq_close(dead->socket);
    if (dead->context) zmq_ctx_term(dead->context);
    free(dead->out);
    free(dead);
    *self = NULL;
}

request_id_t client_request_id(client_t *self)
{
    (void)self;
    return (request_id_t){ random_word(), random_word() | 1 };
}

err_t client_send(client_t *self, msg_t *m)
{
    m->header.epoch = self->epoch;
    m->header.sequence = ++self->sequence;
    m->header.sent_us = now_us();
    size_t size = msg_encode(m, self->out, MESSAGE_BYTES_MAX);
    if (size == 0) return ERR_TOO_LARGE;
    return zmq_send(self->socket, self->out, size, ZMQ_DONTWAIT) < 0 ? ERR_OVERLOAD : ERR_OK;
}

/* It is answered by a hello. */
static err_t say_hello(client_t *self)
{
    msg_t hello;
    msg_init(&hello, MSG_hello);
    return client_send(self, &hello);
}

err_t client_greet(client_t *self)
{
    self->life = 0; /* it may have been started anew since it was heard last */
    self->heard_us = now_us();
    self->is_doubtful = false;
    return say_hello(self);
}

uint64_t client_silence_us(const client_t *self)
{
    return now_us() - self->heard_us;
}

/* Where nothing came: ask, but not before the first hello was answered. */
static void ask(client_t *self)
{
    uint64_t now = now_us();
    if (self->life == 0 || now - self->spoke_us < ASK_US || now - self->asked_us < ASK_US) return;
    self->asked_us = now;
    self->is_doubtful = true;
    err_t error = say_hello(self);
    (void)error; /* a link that is full holds earlier questions */
}

static bool is_of_link(const msg_t *m)
{
    return m->type == MSG_hello || m->type == MSG_heartbeat;
}

/* Learn which life of the actor speaks, and that it does.  False: another one than before. */
static bool meet(client_t *self, const msg_t *m)
{
    self->spoke_us = now_us();
    if (self->life == 0 && m->type == MSG_hello) self->life = m->header.epoch;
    if (self->life && self->life != m->header.epoch) {
        self->life = m->header.epoch;
        return false;
    }
    if (!is_of_link(m)) self->is_doubtful = false;
    if (!is_of_link(m) || (self->life && !self->is_doubtful)) self->heard_us = self->spoke_us;
    return true;
}

/* Have unread bytes in the frame, waiting for the next one if need be. */
static err_t fill(client_t *self, int timeout_ms)
{
    if (self->used < zmq_msg_size(&self->frame)) return ERR_OK;
    zmq_pollitem_t item = { .socket = self->socket, .events = ZMQ_POLLIN };
    if (zmq_poll(&item, 1, timeout_ms) <= 0) return ERR_DEADLINE;
    self->used = 0;
    return zmq_msg_recv(&self->frame, self->socket, ZMQ_DONTWAIT) < 0 ? ERR_DEADLINE : ERR_OK;
}

err_t client_receive(client_t *self, msg_t *m, int timeout_ms)
{
    uint64_t end_us = now_us() + (uint64_t)timeout_ms * 1000;
    for (;;) {
        uint64_t now = now_us();
        err_t error = fill(self, now < end_us ? (int)((end_us - now) / 1000) : 0);
        if (error) {
            ask(self);
            return error;
        }
        const uint8_t *bytes = zmq_msg_data(&self->frame);
        size_t used = 0;
        if (msg_decode(m, bytes + self->used, zmq_msg_size(&self->frame) - self->used, &used) !=
            ERR_OK) {
            self->used = zmq_msg_size(&self->frame); /* nonsense: the rest cannot be found either */
            continue;
        }
        self->used += used;
        if (!meet(self, m)) return ERR_LOST;
        if (!is_of_link(m)) return ERR_OK;
    }
}
