/* runtime/zmq/curve.c - CURVE on tcp: every actor has a certificate, and only those of the company
 * are let in.
 *
 * The ZAP handler (RFC 27) lives in the actor's own loop and context.  It answers with the owner of
 * the key as User-Id, and the ROUTER takes a frame only from a routing id that this owner may use.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "certificate.h"
#include "state.h"

static const char zap_domain[] = "troupe";
enum { ZAP_FIELDS = 7, ZAP_FIELD_BYTES = 256, OWNER_BYTES = 32, CARRIER_TCP = 1 };

typedef struct {
    char owner[OWNER_BYTES]; /* "role.index", also what its routing id must be */
    address_t who;
    certificate_t certificate;
} known_t;

typedef struct {
    known_t *known; /* [0] is ours */
    uint32_t count;
    void *zap;
    struct event *event;
    actor_t *world;
} curve_t;

static bool is_wanted(const config_t *config)
{
    return config->wire.carrier == CARRIER_TCP && !config->wire.insecure;
}

/* ---- certificates ---- */

static bool load(actor_t *world, known_t *known, address_t who)
{
    char path[5000];
    known->who = who;
    (void)snprintf(known->owner, sizeof known->owner, "%s.%u", role_names[who.role], who.index);
    (void)snprintf(path, sizeof path, "%s/%s-%u.cert", world->config->wire.keys,
                   role_names[who.role], who.index);
    return certificate_load(&known->certificate, path);
}

static bool is_private(actor_t *world)
{
    char path[5000];
    struct stat found;
    (void)snprintf(path, sizeof path, "%s/%s-%u.cert_secret", world->config->wire.keys,
                   role_names[world->self.role], world->self.index);
    if (stat(path, &found)) {
        actor_log(world, LOG_ERROR, "CURVE-KEY",
                  "%s: %s; tcp needs certificates (`troupe keys`), or wire.insecure: true", path,
                  strerror(errno));
        return false;
    }
    if ((found.st_mode & 077) == 0) return true;
    actor_log(world, LOG_ERROR, "CURVE-KEY", "%s can be read by others; chmod 600 it", path);
    return false;
}

/* Ours, those of all whom we have a link with, and the one that clients share. */
static err_t load_all(actor_t *world, curve_t *self)
{
    if (!is_private(world)) return ERR_CONFIG;
    self->known = calloc(world->peer_count + 2, sizeof *self->known);
    if (!self->known) return ERR_NO_SPACE;
    if (!load(world, &self->known[self->count++], world->self)) return ERR_CONFIG;
    for (uint32_t i = 0; i < world->peer_count; i++) {
        address_t who = world->peers[i].address;
        if (load(world, &self->known[self->count], who)) {
            self->count++;
            continue;
        }
        actor_log(world, LOG_ERROR, "CURVE-KEY",
                  "%s holds no certificate of %s.%u; make it with `troupe keys`",
                  world->config->wire.keys, role_names[who.role], who.index);
        return ERR_CONFIG;
    }
    const address_t client = { ROLE_client, 0 };
    if (world->clients && load(world, &self->known[self->count], client)) self->count++;
    return ERR_OK;
}

/* ---- the ZAP handler ---- */

static const known_t *find_key(const curve_t *self, const uint8_t *key)
{
    for (uint32_t i = 1; i < self->count; i++)
        if (memcmp(self->known[i].certificate.public_key, key, CURVE_KEY_BYTES) == 0)
            return &self->known[i];
    return NULL;
}

static void answer(const curve_t *self, const char *request, size_t size, const known_t *who)
{
    const char *status = who ? "200" : "400";
    const char *text = who ? "OK" : "this key is not of the company";
    const char *owner = who ? who->owner : "";
    (void)zmq_send(self->zap, "1.0", 3, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    (void)zmq_send(self->zap, request, size, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    (void)zmq_send(self->zap, status, 3, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    (void)zmq_send(self->zap, text, strlen(text), ZMQ_SNDMORE | ZMQ_DONTWAIT);
    (void)zmq_send(self->zap, owner, strlen(owner), ZMQ_SNDMORE | ZMQ_DONTWAIT);
    (void)zmq_send(self->zap, "", 0, ZMQ_DONTWAIT);
}

/* version, request id, domain, address, identity, mechanism, key; false: nothing to read. */
static bool handle_request(curve_t *self)
{
    char fields[ZAP_FIELDS][ZAP_FIELD_BYTES];
    int sizes[ZAP_FIELDS] = { 0 };
    int count = 0, more = 1;
    size_t more_size = sizeof more;
    while (more) {
        char rest[ZAP_FIELD_BYTES];
        char *place = count < ZAP_FIELDS ? fields[count] : rest;
        int size = zmq_recv(self->zap, place, ZAP_FIELD_BYTES, ZMQ_DONTWAIT);
        if (size < 0) return false;
        if (count < ZAP_FIELDS) sizes[count] = size < ZAP_FIELD_BYTES ? size : ZAP_FIELD_BYTES;
        count++;
        invariant(zmq_getsockopt(self->zap, ZMQ_RCVMORE, &more, &more_size) == 0);
    }
    bool is_curve = count == ZAP_FIELDS && sizes[5] == 5 && memcmp(fields[5], "CURVE", 5) == 0 &&
                    sizes[6] == CURVE_KEY_BYTES;
    const known_t *who = is_curve ? find_key(self, (const uint8_t *)fields[6]) : NULL;
    if (!who)
        actor_log(self->world, LOG_WARN, "CURVE-REFUSED",
                  "a connection from %.*s with an unknown key", sizes[3], fields[3]);
    answer(self, fields[1], (size_t)sizes[1], who);
    return true;
}

static void on_zap(evutil_socket_t descriptor, short what, void *arg)
{
    curve_t *self = arg;
    int events = ZMQ_POLLIN;
    size_t size = sizeof events;
    while (events & ZMQ_POLLIN) { /* ZMQ_FD is edge-triggered, and an answer may swallow an edge */
        (void)handle_request(self);
        if (zmq_getsockopt(self->zap, ZMQ_EVENTS, &events, &size)) return;
    }
}

static err_t open_handler(actor_t *world, curve_t *self)
{
    int descriptor = -1;
    size_t size = sizeof descriptor;
    self->zap = zmq_socket(world->context, ZMQ_REP);
    if (!self->zap || zmq_bind(self->zap, "inproc://zeromq.zap.01")) return ERR_IO;
    if (zmq_getsockopt(self->zap, ZMQ_FD, &descriptor, &size)) return ERR_IO;
    self->event = event_new(world->base, descriptor, EV_READ | EV_PERSIST | EV_ET, on_zap, self);
    return self->event && !event_add(self->event, NULL) ? ERR_OK : ERR_IO;
}

err_t curve_open(actor_t *world)
{
    if (!is_wanted(world->config)) return ERR_OK;
    curve_t *self = calloc(1, sizeof *self);
    if (!self) return ERR_NO_SPACE;
    self->world = world;
    world->curve = self;
    err_t error = load_all(world, self);
    return error ? error : open_handler(world, self);
}

void curve_close(actor_t *world)
{
    curve_t *self = world->curve;
    if (!self) return;
    if (self->event) event_free(self->event);
    if (self->zap) (void)zmq_close(self->zap);
    free(self->known);
    free(self);
    world->curve = NULL;
}

/* ---- sockets ---- */

static err_t set_key(void *socket, int option, const uint8_t *key)
{
    return zmq_setsockopt(socket, option, key, CURVE_KEY_BYTES) ? ERR_CONFIG : ERR_OK;
}

err_t curve_bind(actor_t *world, void *socket)
{
    const curve_t *self = world->curve;
    int is_server = 1;
    if (!self) return ERR_OK;
    if (zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &is_server, sizeof is_server) ||
        zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, zap_domain, sizeof zap_domain - 1))
        return ERR_UNSUPPORTED;
    return set_key(socket, ZMQ_CURVE_SECRETKEY, self->known[0].certificate.secret_key);
}

err_t curve_connect(actor_t *world, void *socket, address_t server)
{
    const curve_t *self = world->curve;
    if (!self) return ERR_OK;
    const certificate_t *own = &self->known[0].certificate;
    for (uint32_t i = 1; i < self->count; i++) {
        const known_t *known = &self->known[i];
        if (known->who.role != server.role || known->who.index != server.index) continue;
        err_t error = set_key(socket, ZMQ_CURVE_SERVERKEY, known->certificate.public_key);
        if (!error) error = set_key(socket, ZMQ_CURVE_PUBLICKEY, own->public_key);
        return error ? error : set_key(socket, ZMQ_CURVE_SECRETKEY, own->secret_key);
    }
    return ERR_CONFIG;
}

/* Clients share one certificate and choose their routing ids, but not those of actors. */
bool curve_agrees(const actor_t *world, zmq_msg_t *frame, const uint8_t *id, size_t size)
{
    if (!world->curve) return true;
    const char *owner = zmq_msg_gets(frame, "User-Id");
    if (!owner) return false;
    if (strlen(owner) == size && memcmp(owner, id, size) == 0) return true;
    return strcmp(owner, "client.0") == 0 && !is_actor_id(id, size);
}
