/* cli/certificates.h - CURVE certificates of the company: one file pair per actor in a private
 * directory.
 *
 * DIR/ROLE-INDEX.cert holds the public key, DIR/ROLE-INDEX.cert_secret both (ZPL, as CZMQ's zcert
 * writes them). All clients share the certificate client-0.
 */
#ifndef CLI_CERTIFICATES_H
#define CLI_CERTIFICATES_H

#include <stdbool.h>

#include "../proto/config.h"
#include "../proto/messages.h"

/* Make those that are missing, for every actor of the configuration and for clients.  Counts them
 * into *made. False: standard error says why. */
bool certificates_make(const config_t *config, const char *dir, uint32_t *made);

/* Give a socket that will connect to server its keys; nothing to do for ipc or wire.insecure.
 * False: standard error says why. */
bool certificates_use(const config_t *config, void *socket, address_t server);

#endif
