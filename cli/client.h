/* cli/client.h - a ZeroMQ client of one actor: the messages of messages.def over a DEALER. */
#ifndef CLI_CLIENT_H
#define CLI_CLIENT_H

#include "../proto/config.h"
#include "../proto/messages.h"

typedef struct client client_t;

/* Connect to an actor of the company that the configuration describes; it need not be up yet. NULL:
 * standard error says why. */
client_t *client_new(const config_t *config, address_t server);
void client_destroy(client_t **self);

/* A request id that nobody else has. */
request_id_t client_request_id(client_t *self);

/* Send one message; its request and attempt are m's.  ERR_OVERLOAD: the link is full. */
MUST_CHECK err_t client_send(client_t *self, msg_t *m);

/* The next message, waiting at most timeout_ms.  BYTES fields are valid until the next call.  hello
 * and heartbeats are not shown.  ERR_DEADLINE: none came; also after a signal, so that a caller can
 * look at its flags. */
MUST_CHECK err_t client_receive(client_t *self, msg_t *m, int timeout_ms);

#endif
