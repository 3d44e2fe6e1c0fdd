/* actors/decode_lb.c - chooses the decode worker for each prompt, early: the pull overlaps prefill.
 *
 *   prefill_worker --decode_request--> decode_lb --decode_placed, lease_renew--> prefill_worker
 *   decode_lb --decode_assign, cancel--> decode_worker
 *   decode_worker --decode_done, decode_load, held--> decode_lb
 *   ingress --cancel, request_probe--> decode_lb --failed, request_held--> ingress
 *
 * Policy: of the workers with room for the whole request, prompt and all it may generate, the one
 * whose fuller resource is least full afterwards; strictly in order of arrival.  Decode therefore
 * never runs out of blocks.
 *
 * We alone keep the ledger.  A worker's load report gives only its totals: what it holds would
 * cross our assigns on the wire and arrive wrong.  The ledger heals itself: a worker says again and
 * again what it holds (`held`), and what nobody speaks of for a lease is dropped, so that no lost
 * message leaks a block.
 */
#include "decode_lb.h"

#include "../runtime/kv/book.h"
#include "../runtime/kv/lease.h"
#include "../runtime/policy/placement.h"
#include "say.h"

#define NONE BOOK_NONE

typedef struct {
    request_id_t request;
    uint32_t attempt, ingress, prefill_worker, blocks;
    uint32_t worker; /* NONE: queued */
    uint64_t queued_us;
    lease_t lease; /* assigned: until then we believe that the worker holds it */
} entry_t;

typedef struct {
    book_t book;
    entry_t *entries; /* by place in the book */
    uint32_t assigned;
    uint64_t *worker_epochs;     /* 0: down */
    placement_decode_t *workers; /* the ledger */
    renewals_t renewals;         /* to prefill workers */
    uint32_t group;              /* decode workers that step together */
    uint32_t worker_count, prefill_count, queue_max;
    uint64_t lease_us, heartbeat_us;
} decode_lb_t;

static err_t init(void *state, actor_t *world)
{
    decode_lb_t *self = state;
    const config_t *config = actor_config(world);
    self->worker_count = (uint32_t)config->company.decode_workers;
    self->group = (uint32_t)config->company.decode_ep;
    self->prefill_count = (uint32_t)config->company.prefill_workers;
    self->queue_max = (uint32_t)config->limits.queue_max;
    self->lease_us = (uint64_t)config->timing.lease_ms * 1000;
    self->heartbeat_us = (uint64_t)config->timing.heartbeat_ms * 1000;
    uint32_t entry_max = self->queue_max + self->worker_count * (uint32_t)config->decode.batch_max;
    self->entries = actor_alloc(world, entry_max, sizeof *self->entries);
    self->worker_epochs = actor_alloc(world, self->worker_count, sizeof *self->worker_epochs);
    self->workers = actor_alloc(world, self->worker_count, sizeof *self->workers);
    renewals_init(&self->renewals, world, ROLE_prefill_worker, self->prefill_count);
    book_init(&self->book, actor_alloc(world, table_cells(entry_max), sizeof(table_cell_t)),
              actor_alloc(world, entry_max, sizeof(book_place_t)), entry_max);
    actor_wake_at(world, actor_now_us(world) + self->heartbeat_us);
    return ERR_OK;
}

/* ---- entries and the ledger ----------------------------------------------------------------- */

static entry_t *find(decode_lb_t *self, request_id_t request)
{
    uint32_t place = book_find(&self->book, request);
    return place == NONE ? NULL : &self->entries[place];
}

static uint32_t place_of(const decode_lb_t *self, const entry_t *entry)
{
    return (uint32_t)(entry - self->entries);
}

/* Neither queued nor assigned yet; NULL when the book is full. */
static entry_t *add(decode_lb_t *self, const header_t *header)
{
    uint32_t place = book_add(&self->book, header->request);
    if (place == NONE) return NULL;
    entry_t *entry = &self->entries[place];
    *entry = (entry_t){ .request = header->request, .attempt = header->attempt, .worker = NONE };
    return entry;
}

static void charge(decode_lb_t *self, entry_t *entry, uint32_t worker)
{
    invariant(entry->worker == NONE && worker < self->worker_count);
    entry->worker = worker;
    self->workers[worker].blocks_used += entry->blocks;
    self->workers[worker].requests += 1;
    self->assigned += 1;
}

/* Out of queue or ledger, and forgotten. */
static void drop(decode_lb_t *self, entry_t *entry)
{
    if (entry->worker == NONE) {
        book_dequeue(&self->book, place_of(self, entry));
    } else {
        placement_decode_t *worker = &self->workers[entry->worker];
        invariant(worker->requests > 0 && worker->blocks_used >= entry->blocks);
        worker->blocks_used -= entry->blocks;
        worker->requests -= 1;
        self->assigned -= 1;
    }
    book_remove(&self->book, entry->request, place_of(self, entry));
}

/* ---- what we say ---------------------------------------------------------------------------- */

static header_t about(const entry_t *entry)
{
    return (header_t){ .request = entry->request, .attempt = entry->attempt };
}

static void say_cancel(actor_t *world, role_t role, uint32_t index, const header_t *header)
{
    say_plain(world, (address_t){ role, index }, MSG_cancel, header);
}

static void say_lost(actor_t *world, const entry_t *entry)
{
    header_t header = about(entry);
    say_failed(world, entry->ingress, &header, ERR_LOST);
}

static void cancel_at_worker(actor_t *world, const entry_t *entry)
{
    if (entry->worker == NONE) return;
    header_t header = about(entry);
    say_cancel(world, ROLE_decode_worker, entry->worker, &header);
}

static err_t say_assign(decode_lb_t *self, actor_t *world, const entry_t *entry, uint32_t worker)
{
    msg_t m;
    msg_init(&m, MSG_decode_assign);
    m.decode_assign.ingress = entry->ingress;
    m.decode_assign.prefill_worker = entry->prefill_worker;
    m.decode_assign.prefill_epoch =
        actor_peer_epoch(world, (address_t){ ROLE_prefill_worker, entry->prefill_worker });
    m.decode_assign.blocks = entry->blocks;
    header_t header = about(entry);
    return say_about(world, (address_t){ ROLE_decode_worker, worker }, &m, &header);
}

static void say_placed(decode_lb_t *self, actor_t *world, const entry_t *entry)
{
    msg_t m;
    msg_init(&m, MSG_decode_placed);
    m.decode_placed.decode_worker = entry->worker;
    m.decode_placed.decode_epoch = self->worker_epochs[entry->worker];
    header_t header = about(entry);
    (void)say_about(world, (address_t){ ROLE_prefill_worker, entry->prefill_worker }, &m, &header);
}

/* ---- placing -------------------------------------------------------------------------------- */

static bool assign(decode_lb_t *self, actor_t *world, entry_t *entry)
{
    uint32_t worker =
        placement_choose_decode(self->workers, self->worker_count, self->group, entry->blocks);
    if (worker == PLACEMENT_NONE) return false;
    invariant(self->worker_epochs[worker] != 0);
    if (say_assign(self, world, entry, worker) != ERR_OK) return false;
    book_dequeue(&self->book, place_of(self, entry));
    charge(self, entry, worker);
    invariant(self->workers[worker].blocks_used <= self->workers[worker].blocks_total);
    uint64_t now = actor_now_us(world);
    lease_extend(&entry->lease, now, self->lease_us);
    actor_observe(world, METRIC_queue_seconds, (double)(now - entry->queued_us) * 1e-6);
    say_placed(self, world, entry);
    return true;
}

/* Strictly in order: if short prompts could overtake, long ones would starve. */
static void drain(decode_lb_t *self, actor_t *world)
{
    while (book_first(&self->book) != NONE &&
           assign(self, world, &self->entries[book_first(&self->book)]))
        continue;
    actor_gauge(world, METRIC_requests_waiting, self->book.queued);
    actor_gauge(world, METRIC_requests_running, self->assigned);
}

/* No worker that we know could ever hold it.  While none has reported, nobody knows. */
static bool is_too_large(const decode_lb_t *self, uint32_t blocks)
{
    uint32_t largest = 0;
    for (uint32_t i = 0; i < self->worker_count; i++)
        if (self->workers[i].blocks_total > largest) largest = self->workers[i].blocks_total;
    return largest > 0 && blocks > largest;
}

/* Neither ingress nor the prefill worker shall wait for what will not come. */
static void refuse(decode_lb_t *self, actor_t *world, const msg_t *m, err_t error)
{
    say_failed(world, m->decode_request.ingress, &m->header, error);
    say_cancel(world, ROLE_prefill_worker, m->header.from.index, &m->header);
}

/* Said again, for the placement or the assignment was lost. */
static void repeat(decode_lb_t *self, actor_t *world, entry_t *entry, const msg_t *m)
{
    if (entry->worker == NONE || entry->prefill_worker != m->header.from.index) return;
    if (say_assign(self, world, entry, entry->worker) == ERR_OK) say_placed(self, world, entry);
}

static void on_decode_request(void *state, actor_t *world, const msg_t *m)
{
    decode_lb_t *self = state;
    const msg_decode_request_t *request = &m->decode_request;
    if (m->header.from.role != ROLE_prefill_worker || m->header.from.index >= self->prefill_count ||
        request->blocks == 0) {
        actor_count(world, METRIC_messages_unexpected_total, 1);
        return;
    }
    entry_t *entry = find(self, m->header.request);
    if (entry != NULL && m->header.attempt < entry->attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    if (entry != NULL && m->header.attempt == entry->attempt) {
        repeat(self, world, entry, m);
        return;
    }
    if (entry != NULL) { /* an attempt is newer knowledge */
        cancel_at_worker(world, entry);
        drop(self, entry);
    }
    if (is_too_large(self, request->blocks)) {
        refuse(self, world, m, ERR_UNPROCESSABLE);
        return;
    }
    entry = self->book.queued < self->queue_max ? add(self, &m->header) : NULL;
    if (entry == NULL) {
        refuse(self, world, m, ERR_OVERLOAD);
        return;
    }
    entry->ingress = request->ingress;
    entry->prefill_worker = m->header.from.index;
    entry->blocks = request->blocks;
    entry->queued_us = actor_now_us(world);
    book_enqueue(&self->book, place_of(self, entry));
    drain(self, world);
}

/* ---- what workers report -------------------------------------------------------------------- */

/* The worker a message comes from, while it is up; NONE otherwise. */
static uint32_t sender(decode_lb_t *self, actor_t *world, const msg_t *m)
{
    uint32_t index = m->header.from.index;
    if (m->header.from.role == ROLE_decode_worker && index < self->worker_count &&
        self->worker_epochs[index] == m->header.epoch)
        return index;
    actor_count(world, METRIC_messages_unexpected_total, 1);
    return NONE;
}

static void on_decode_done(void *state, actor_t *world, const msg_t *m)
{
    decode_lb_t *self = state;
    uint32_t worker = sender(self, world, m);
    entry_t *entry = find(self, m->header.request);
    if (worker == NONE) return;
    if (entry == NULL || entry->attempt != m->header.attempt || entry->worker != worker) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    drop(self, entry);
    drain(self, world);
}

static void on_decode_load(void *state, actor_t *world, const msg_t *m)
{
    decode_lb_t *self = state;
    uint32_t worker = sender(self, world, m);
    if (worker == NONE) return;
    self->workers[worker].blocks_total = m->decode_load.blocks_total;
    self->workers[worker].requests_max = m->decode_load.requests_max;
    drain(self, world);
}

/* Take what a worker holds into the ledger: we are new, or had believed it lost. */
static void adopt(decode_lb_t *self, actor_t *world, const msg_t *m, uint32_t worker)
{
    entry_t *entry = add(self, &m->header);
    if (entry == NULL) return;
    entry->ingress = m->held.ingress;
    entry->blocks = m->held.blocks;
    entry->queued_us = actor_now_us(world);
    charge(self, entry, worker);
    lease_extend(&entry->lease, actor_now_us(world), self->lease_us);
}

static void on_held(void *state, actor_t *world, const msg_t *m)
{
    decode_lb_t *self = state;
    uint32_t worker = sender(self, world, m);
    if (worker == NONE) return;
    entry_t *entry = find(self, m->header.request);
    if (entry != NULL && entry->attempt == m->header.attempt && entry->worker == worker) {
        lease_extend(&entry->lease, actor_now_us(world), self->lease_us);
        return;
    }
    bool is_newer = entry == NULL || m->header.attempt > entry->attempt ||
                    (m->header.attempt == entry->attempt && entry->worker == NONE);
    if (!is_newer) { /* an old attempt, or a second holder: one of them must go */
        say_cancel(world, ROLE_decode_worker, worker, &m->header);
        return;
    }
    if (entry != NULL) {
        cancel_at_worker(world, entry);
        drop(self, entry);
    }
    adopt(self, world, m, worker);
}

/* ---- ingress -------------------------------------------------------------------------------- */

static void on_cancel(void *state, actor_t *world, const msg_t *m)
{
    decode_lb_t *self = state;
    entry_t *entry = find(self, m->header.request);
    if (entry == NULL) return; /* it was never here, or is over */
    if (m->header.attempt < entry->attempt) {
        actor_count(world, METRIC_messages_stale_total, 1);
        return;
    }
    if (entry->worker != NONE) {
        cancel_at_worker(world, entry); /* its blocks come back with decode_done */
        return;
    }
    if (m->header.from.role == ROLE_ingress)
        say_cancel(world, ROLE_prefill_worker, entry->prefill_worker, &m->header);
    drop(self, entry);
    drain(self, world);
}

static void on_request_probe(void *state, actor_t *world, const msg_t *m)
{
    decode_lb_t *self = state;
    const entry_t *entry = find(self, m->header.request);
    bool is_held = entry != NULL && entry->attempt == m->header.attempt;
    say_request_held(world, &m->header, is_held);
}

/* ---- peers ---------------------------------------------------------------------------------- */

static void lose_worker(decode_lb_t *self, actor_t *world, uint32_t worker)
{
    for (uint32_t i = 0; i < self->book.capacity && self->workers[worker].requests > 0; i++) {
        entry_t *entry = &self->entries[i];
        if (!book_is_used(&self->book, i) || entry->worker != worker) continue;
        say_lost(world, entry);
        drop(self, entry);
    }
    invariant(self->workers[worker].requests == 0 && self->workers[worker].blocks_used == 0);
    self->workers[worker] = (placement_decode_t){ 0 };
    self->worker_epochs[worker] = 0;
}

/* What waits for room and has lost its KV waits in vain; what is assigned is the decode worker's to
 * decide. */
static void lose_prefill_worker(decode_lb_t *self, actor_t *world, uint32_t worker)
{
    for (uint32_t i = book_first(&self->book), next; i != NONE; i = next) {
        entry_t *entry = &self->entries[i];
        next = book_next(&self->book, i);
        if (entry->prefill_worker != worker) continue;
        say_lost(world, entry);
        drop(self, entry);
    }
}

static void lose_ingress(decode_lb_t *self, actor_t *world, uint32_t ingress)
{
    for (uint32_t i = 0; i < self->book.capacity; i++) {
        entry_t *entry = &self->entries[i];
        if (!book_is_used(&self->book, i) || entry->ingress != ingress) continue;
        if (entry->worker == NONE)
            drop(self, entry);
        else
            cancel_at_worker(world, entry);
    }
}

static void on_peer_down(void *state, actor_t *world, const msg_t *m)
{
    decode_lb_t *self = state;
    uint32_t index = m->peer_down.index;
    if (m->peer_down.role == ROLE_decode_worker && index < self->worker_count)
        lose_worker(self, world, index);
    if (m->peer_down.role == ROLE_prefill_worker) lose_prefill_worker(self, world, index);
    if (m->peer_down.role == ROLE_ingress) lose_ingress(self, world, index);
    drain(self, world);
}

/* A worker gets nothing before its first load report, which follows what it still holds. */
static void on_peer_up(void *state, actor_t *world, const msg_t *m)
{
    decode_lb_t *self = state;
    uint32_t index = m->peer_up.index;
    if (m->peer_up.role != ROLE_decode_worker || index >= self->worker_count) return;
    if (self->worker_epochs[index] != 0 && self->worker_epochs[index] != m->peer_up.peer_epoch)
        lose_worker(self, world, index);
    self->worker_epochs[index] = m->peer_up.peer_epoch;
}

/* ---- time ----------------------------------------------------------------------------------- */

static void expire(decode_lb_t *self, actor_t *world, uint64_t now)
{
    for (uint32_t i = 0; i < self->book.capacity && self->assigned > 0; i++) {
        entry_t *entry = &self->entries[i];
        if (!book_is_used(&self->book, i) || entry->worker == NONE ||
            !lease_is_over(&entry->lease, now))
            continue;
        cancel_at_worker(world, entry);
        drop(self, entry);
        actor_count(world, METRIC_kv_leases_expired_total, 1);
    }
}

/* Prompts that wait here keep their KV. */
static void renew(decode_lb_t *self, actor_t *world)
{
    for (uint32_t i = book_first(&self->book); i != NONE; i = book_next(&self->book, i)) {
        const entry_t *entry = &self->entries[i];
        header_t header = about(entry);
        renewals_add(&self->renewals, world, entry->prefill_worker, &header);
    }
    renewals_send(&self->renewals, world);
}

static void wake(void *state, actor_t *world)
{
    decode_lb_t *self = state;
    uint64_t now = actor_now_us(world);
    expire(self, world, now);
    drain(self, world);
    renew(self, world);
    uint64_t total = 0, used = 0;
    for (uint32_t i = 0; i < self->worker_count; i++) {
        total += self->workers[i].blocks_total;
        used += self->workers[i].blocks_used;
    }
    actor_gauge(world, METRIC_kv_blocks, (double)total);
    actor_gauge(world, METRIC_kv_blocks_used, (double)used);
    actor_wake_at(world, now + self->heartbeat_us);
}

/* ---- the class ------------------------------------------------------------------------------ */

static void check(const void *state)
{
    const decode_lb_t *self = state;
    uint32_t requests = 0;
    for (uint32_t i = 0; i < self->worker_count; i++) {
        requests += self->workers[i].requests;
        invariant(self->worker_epochs[i] != 0 || self->workers[i].requests == 0);
        invariant(self->workers[i].requests > 0 || self->workers[i].blocks_used == 0);
        invariant(self->worker_epochs[i] != 0 || self->workers[i].blocks_total == 0);
    }
    invariant(requests == self->assigned);
    book_check(&self->book);
    invariant(self->assigned + self->book.queued == book_count(&self->book));
    invariant(self->book.queued <= self->queue_max);
}

static bool is_idle(const void *state)
{
    const decode_lb_t *self = state;
    return book_count(&self->book) == 0;
}

const actor_class_t decode_lb_class = {
    .name = "decode_lb",
    .role = ROLE_decode_lb,
    .state_size = sizeof(decode_lb_t),
    .init = init,
    .wake = wake,
    .check = check,
    .is_idle = is_idle,
    .on = { [MSG_decode_request] = on_decode_request,
            [MSG_decode_done] = on_decode_done,
            [MSG_decode_load] = on_decode_load,
            [MSG_held] = on_held,
            [MSG_cancel] = on_cancel,
            [MSG_request_probe] = on_request_probe,
            [MSG_peer_up] = on_peer_up,
            [MSG_peer_down] = on_peer_down },
};
