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

/* Say hello before the first message of a request: the answer tells client_receive which life of
 * the actor has what follows. */
MUST_CHECK err_t client_greet(client_t *self);

/* The next message, waiting at most timeout_ms.  BYTES fields are valid until the next call.  hello
 * and heartbeats are not shown.  ERR_DEADLINE: none came; also after a signal, so that a caller can
 * look at its flags.  ERR_LOST: the actor was started anew since client_greet and knows nothing of
 * what was asked before. */
MUST_CHECK err_t client_receive(client_t *self, msg_t *m, int timeout_ms);

/* How long the actor that was greeted has said nothing, not even a heartbeat, of which follows that
 * it still has what was asked; us. */
uint64_t client_silence_us(const client_t *self);

#endif
