/* runtime/zmq/certificate.h - one CURVE certificate of `troupe keys`, read by CZMQ. */
#ifndef RUNTIME_ZMQ_CERTIFICATE_H
#define RUNTIME_ZMQ_CERTIFICATE_H

#include <stdbool.h>
#include <stdint.h>

enum { CURVE_KEY_BYTES = 32 };

typedef struct {
    uint8_t public_key[CURVE_KEY_BYTES];
    uint8_t secret_key[CURVE_KEY_BYTES]; /* zeros where only the public half was there */
} certificate_t;

/* Read path, or path_secret where it exists.  false: neither is a certificate. */
bool certificate_load(certificate_t *self, const char *path);

#endif
