/* actors/say.h - what several actors say alike about a request: failures, cancels, renewals. */
#ifndef ACTORS_SAY_H
#define ACTORS_SAY_H

#include "../runtime/actor.h"

/* Send about a request: of `about` only request and attempt count. */
err_t say_about(actor_t *world, address_t to, msg_t *m, const header_t *about);

/* The same for a message without fields.  A refused send is a lost message, which leases, probes
 * and `held` heal. */
void say_plain(actor_t *world, address_t to, msg_type_t type, const header_t *about);

/* `failed` to the ingress that owns the request; as lost as any other if it is refused. */
void say_failed(actor_t *world, uint32_t ingress, const header_t *about, err_t error);

/* Answer the `request_probe` of an ingress that came with this header. */
void say_request_held(actor_t *world, const header_t *probe, bool is_held);

/* ---- renewals of leases --------------------------------------------------------------------- */

typedef struct {
    msg_lease_renew_t *batches; /* one per worker */
    role_t role;                /* of those workers */
    uint32_t worker_count;
} renewals_t;

/* Only inside init: takes memory of the world. */
void renewals_init(renewals_t *self, actor_t *world, role_t role, uint32_t worker_count);

/* One request more for the worker that keeps its blocks; a batch that is full is sent. */
void renewals_add(renewals_t *self, actor_t *world, uint32_t worker, const header_t *about);

/* Send whatever was added and is not sent yet. */
void renewals_send(renewals_t *self, actor_t *world);

#endif
