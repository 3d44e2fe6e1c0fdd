/* runtime/zmq/certificate.c - one CURVE certificate of `troupe keys`, read by CZMQ; a file of its
 * own, for czmq.h brings syslog's names with it. */
#include "certificate.h"

#include <czmq.h>
#include <string.h>

bool certificate_load(certificate_t *self, const char *path)
{
    zcert_t *certificate = zcert_load(path);
    if (!certificate) return false;
    memcpy(self->public_key, zcert_public_key(certificate), CURVE_KEY_BYTES);
    memcpy(self->secret_key, zcert_secret_key(certificate), CURVE_KEY_BYTES);
    zcert_destroy(&certificate);
    return true;
}
