/* actors/prefill_worker_slot.h - what the prefill worker's files share: its state and one request's
 * slot. */
#ifndef ACTORS_PREFILL_WORKER_SLOT_H
#define ACTORS_PREFILL_WORKER_SLOT_H

#include "../runtime/engine.h"
#include "../runtime/kv/key.h"
#include "../runtime/kv/lease.h"
#include "../runtime/kv/table.h"
#include "../runtime/policy/batch.h"
#include "../runtime/policy/speed.h"
#include "say.h"
#include "worker.h"

typedef enum { FREE, WAITING, ASKING, COMPUTING, OFFERED, CLOSING } slot_state_t;

typedef struct {
    slot_state_t state;
    request_id_t request;
    uint32_t attempt, ingress;
    uint64_t deadline_us;
    uint64_t unheard_us;         /* see worker_is_said */
    msg_prefill_assign_t assign; /* its BYTES point into the slot's own memory */
    uint32_t *blocks;
    uint64_t *checksums; /* of the first `sealed` blocks */
    uint32_t block_count, key_count;
    /* the store's answer: messages of BLOCKS_PER_MESSAGE_MAX blocks, a bit each */
    uint64_t ask_until_us;
    uint32_t found, parts_seen, parts_pulled;
    /* progress: in tokens, then in blocks */
    uint32_t reused, computed;
    uint32_t sealed, stored, ready, landed;
    uint32_t jobs; /* pool jobs under way */
    bool is_sealing, is_in_step, is_started;
    /* the way to decode */
    bool is_requested, is_placed, is_opened, is_prefilled;
    uint32_t decode_worker;
    lease_t lease;
    /* the first token */
    bool has_token, is_told; /* told: also when an earlier attempt has told it */
    engine_result_t first;
    err_t error; /* for prefill_done */
} slot_t;

typedef struct {
    slot_t *slots;
    table_t table;   /* request -> slot, but for CLOSING ones */
    uint32_t *order; /* slots in use, in order of arrival */
    uint32_t slot_max, requests_max, in_use, context_max, chunk_tokens;
    block_pool_t pool;
    offers_t offers;
    jobs_t jobs;
    batch_want_t *wants;
    batch_part_t *parts; /* of the step under way */
    engine_row_t *rows;
    uint32_t part_count; /* 0: no step under way */
    worker_retry_t retry;
    uint64_t step, held_us;
    speed_t speed;
    renewals_t renewals; /* to decode workers */
    uint32_t decode_count;
    bool is_ready; /* the engine */
    uint64_t lease_us, heartbeat_us;
} prefill_worker_t;

/* ---- prefill_worker.c: the request's life --------------------------------------------------- */

uint32_t prefill_worker_index_of(const prefill_worker_t *self, const slot_t *slot);

/* The slot of a request in just this attempt; NULL, counted, for another attempt. */
slot_t *prefill_worker_find(prefill_worker_t *self, actor_t *world, const header_t *header);

/* The request in this attempt, for say.h. */
header_t prefill_worker_about(const slot_t *slot);

/* Send about this slot's request. */
err_t prefill_worker_say(actor_t *world, address_t to, msg_t *m, const slot_t *slot);
void prefill_worker_say_plain(actor_t *world, address_t to, msg_type_t type, const slot_t *slot);
void prefill_worker_say_progress(actor_t *world, const slot_t *slot);

/* Let go of the request; its blocks come back once no step and no pool job uses them. */
void prefill_worker_close(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error);

/* Let go of it, and of whatever decode has set aside for it. */
void prefill_worker_abandon(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error);

/* Abandon it and tell ingress. */
void prefill_worker_fail(prefill_worker_t *self, actor_t *world, slot_t *slot, err_t error);

/* Free a CLOSING slot if nothing uses its blocks any more. */
void prefill_worker_try_free(prefill_worker_t *self, actor_t *world, slot_t *slot);

/* ---- prefill_worker_offer.c: KV to and from others ------------------------------------------ */

/* Ask the store for what it is believed to have; without that the request is computed from its
 * start. */
void prefill_offer_ask_store(prefill_worker_t *self, actor_t *world, slot_t *slot);

/* Compute, if the store has answered in full or too late. */
void prefill_offer_consider_computing(prefill_worker_t *self, actor_t *world, slot_t *slot);

/* More than the first token is to be generated. */
bool prefill_offer_needs_decode(const slot_t *slot);
void prefill_offer_request_decode(actor_t *world, slot_t *slot);

/* Say to the decode worker whatever can be said now. */
void prefill_offer_push(actor_t *world, slot_t *slot);

/* Take checksums of blocks that have become final. */
void prefill_offer_seal(prefill_worker_t *self, actor_t *world, slot_t *slot);

void prefill_offer_on_decode_placed(void *state, actor_t *world, const msg_t *m);
void prefill_offer_on_kv_landed(void *state, actor_t *world, const msg_t *m);
void prefill_offer_on_lease_renew(void *state, actor_t *world, const msg_t *m);
void prefill_offer_on_store_found(void *state, actor_t *world, const msg_t *m);
void prefill_offer_on_store_taken(void *state, actor_t *world, const msg_t *m);
void prefill_offer_on_pool_done(void *state, actor_t *world, const msg_t *m);

/* ---- prefill_worker_step.c: chunks and the first token -------------------------------------- */

/* Submit a step of all that wait, within the budget, if none is under way. */
void prefill_step_submit(prefill_worker_t *self, actor_t *world);

/* The prompt is computed: on to decode, or to the end.  Does nothing before the first token is
 * here. */
void prefill_step_conclude(prefill_worker_t *self, actor_t *world, slot_t *slot);

void prefill_step_on_engine_done(void *state, actor_t *world, const msg_t *m);

#endif
