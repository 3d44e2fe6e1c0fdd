/* actors/say.c - messages that differ only in whom they are about. */
#include "say.h"

#include "../runtime/kv/lease.h"

err_t say_about(actor_t *world, address_t to, msg_t *m, const header_t *about)
{
    m->header.request = about->request;
    m->header.attempt = about->attempt;
    return actor_send(world, to, m);
}

void say_plain(actor_t *world, address_t to, msg_type_t type, const header_t *about)
{
    msg_t m;
    msg_init(&m, type);
    (void)say_about(world, to, &m, about);
}

void say_failed(actor_t *world, uint32_t ingress, const header_t *about, err_t error)
{
    msg_t m;
    msg_init(&m, MSG_failed);
    m.failed.error = (u32)error;
    (void)say_about(world, (address_t){ ROLE_ingress, ingress }, &m, about);
}

void say_request_held(actor_t *world, const header_t *probe, bool is_held)
{
    msg_t m;
    msg_init(&m, MSG_request_held);
    m.request_held.is_held = is_held;
    (void)say_about(world, (address_t){ ROLE_ingress, probe->from.index }, &m, probe);
}

void renewals_init(renewals_t *self, actor_t *world, role_t role, uint32_t worker_count)
{
    *self = (renewals_t){ .role = role, .worker_count = worker_count };
    self->batches = actor_alloc(world, worker_count, sizeof *self->batches);
}

static void send_batch(renewals_t *self, actor_t *world, uint32_t worker)
{
    msg_t m;
    msg_init(&m, MSG_lease_renew);
    m.lease_renew = self->batches[worker];
    (void)actor_send(world, (address_t){ self->role, worker }, &m);
    self->batches[worker].ids_hi_count = 0;
}

void renewals_add(renewals_t *self, actor_t *world, uint32_t worker, const header_t *about)
{
    invariant(worker < self->worker_count);
    if (lease_batch_add(&self->batches[worker], about->request, about->attempt))
        send_batch(self, world, worker);
}

void renewals_send(renewals_t *self, actor_t *world)
{
    for (uint32_t i = 0; i < self->worker_count; i++)
        if (self->batches[i].ids_hi_count > 0) send_batch(self, world, i);
}
