/* tests/world/zmtp.h - ZMTP 3 spoken by hand (RFC 37), for what libzmq lets no program say. */
#ifndef TESTS_WORLD_ZMTP_H
#define TESTS_WORLD_ZMTP_H

#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "toy.h"

enum { ZMTP_MESSAGE = 0, ZMTP_LONG = 2, ZMTP_COMMAND = 4, ZMTP_FRAME_BYTES = 65536 };

typedef struct {
    uint8_t flags;
    size_t size;
    uint8_t bytes[ZMTP_FRAME_BYTES];
} zmtp_frame_t;

static inline struct sockaddr_un zmtp_path(const char *endpoint)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    assert_int_equal(strncmp(endpoint, "ipc://", 6), 0);
    assert_true(strlen(endpoint + 6) < sizeof address.sun_path);
    memcpy(address.sun_path, endpoint + 6, strlen(endpoint + 6));
    return address;
}

/* To "ipc://PATH", or "tcp://127.0.0.1:PORT"; who listens may need a moment. */
static inline int zmtp_connect(const char *endpoint)
{
    bool is_tcp = strncmp(endpoint, "tcp://", 6) == 0;
    struct sockaddr_in host = { .sin_family = AF_INET,
                                .sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1)),
                                .sin_addr = { htonl(INADDR_LOOPBACK) } };
    struct sockaddr_un file = { .sun_family = AF_UNIX };
    if (!is_tcp) file = zmtp_path(endpoint);
    for (int attempt = 0; attempt < 1000; attempt++) {
        int descriptor = socket(is_tcp ? AF_INET : AF_UNIX, SOCK_STREAM, 0);
        int failed = is_tcp ? connect(descriptor, (struct sockaddr *)&host, sizeof host)
                            : connect(descriptor, (struct sockaddr *)&file, sizeof file);
        if (!failed) return descriptor;
        close(descriptor);
        usleep(10000);
    }
    fail_msg("nobody listens on %s", endpoint);
    return -1;
}

static inline void zmtp_send(int descriptor, const void *bytes, size_t size)
{
    assert_int_equal(send(descriptor, bytes, size, MSG_NOSIGNAL), size);
}

/* False: it did not come in time, or the other side closed. */
static inline bool zmtp_receive(int descriptor, void *bytes, size_t size, int wait_ms)
{
    uint8_t *at = bytes;
    while (size > 0) {
        struct pollfd wait = { .fd = descriptor, .events = POLLIN };
        ssize_t got = poll(&wait, 1, wait_ms) == 1 ? recv(descriptor, at, size, 0) : 0;
        if (got <= 0) return false;
        at += got;
        size -= (size_t)got;
    }
    return true;
}

static inline void zmtp_say(int descriptor, uint8_t flags, const void *bytes, size_t size)
{
    uint8_t head[9] = { flags | ZMTP_LONG };
    for (int i = 0; i < 8; i++) head[1 + i] = (uint8_t)((uint64_t)size >> (56 - 8 * i));
    zmtp_send(descriptor, head, sizeof head);
    zmtp_send(descriptor, bytes, size);
}

static inline bool zmtp_hear(int descriptor, zmtp_frame_t *frame, int wait_ms)
{
    uint8_t size[8];
    if (!zmtp_receive(descriptor, &frame->flags, 1, wait_ms)) return false;
    size_t width = frame->flags & ZMTP_LONG ? 8 : 1;
    if (!zmtp_receive(descriptor, size, width, wait_ms)) return false;
    frame->size = 0;
    for (size_t i = 0; i < width; i++) frame->size = frame->size << 8 | size[i];
    assert_true(frame->size <= sizeof frame->bytes);
    return zmtp_receive(descriptor, frame->bytes, frame->size, wait_ms);
}

static inline bool zmtp_is(const zmtp_frame_t *frame, const char *command)
{
    size_t size = strlen(command);
    return (frame->flags & ZMTP_COMMAND) && frame->size > size && frame->bytes[0] == size &&
           memcmp(frame->bytes + 1, command, size) == 0;
}

static inline void zmtp_greet(int descriptor, const char *mechanism)
{
    uint8_t greeting[64] = { 0xff, [9] = 0x7f, [10] = 3, [11] = 1 };
    memcpy(greeting + 12, mechanism, strlen(mechanism));
    zmtp_send(descriptor, greeting, sizeof greeting);
    assert_true(zmtp_receive(descriptor, greeting, sizeof greeting, 10000));
    assert_int_equal(greeting[10], 3);
}

static inline size_t zmtp_property(uint8_t *out, const char *name, const void *value, size_t size)
{
    size_t used = strlen(name) + 1;
    out[0] = (uint8_t)strlen(name);
    memcpy(out + 1, name, used - 1);
    for (int i = 0; i < 4; i++) out[used++] = (uint8_t)(size >> (24 - 8 * i));
    memcpy(out + used, value, size);
    return used + size;
}

/* The handshake without security, under a routing id of any length. */
static inline void zmtp_ready(int descriptor, const char *type, const void *id, size_t id_size)
{
    static zmtp_frame_t frame;
    zmtp_greet(descriptor, "NULL");
    size_t size = 6;
    memcpy(frame.bytes, "\5READY", size);
    size += zmtp_property(frame.bytes + size, "Socket-Type", type, strlen(type));
    size += zmtp_property(frame.bytes + size, "Identity", id, id_size);
    zmtp_say(descriptor, ZMTP_COMMAND, frame.bytes, size);
    assert_true(zmtp_hear(descriptor, &frame, 10000));
    assert_true(zmtp_is(&frame, "READY"));
}

#endif
