/* actors/decode_worker_slot.h - what the decode worker's two files share: its state and one
 * request's slot. */
#ifndef ACTORS_DECODE_WORKER_SLOT_H
#define ACTORS_DECODE_WORKER_SLOT_H

#include "../runtime/engine.h"
#include "../runtime/kv/key.h"
#include "../runtime/kv/lease.h"
#include "../runtime/kv/table.h"
#include "../runtime/kv/transfer.h"
#include "say.h"
#include "worker.h"

typedef struct {
    transfer_t transfer;
    request_id_t request;
    uint32_t attempt, ingress, prefill_worker;
    uint64_t deadline_us, prefill_epoch; /* the life of the prefill worker that opened it */
    bool is_assigned,
        is_open; /* decode_assign, kv_open: they come over different links, in any order */
    /* from kv_open */
    uint32_t prompt_count, generated, max_tokens, reused;
    bool is_end_ignored, has_logprobs;
    uint32_t stop_ids_count, stop_ids[STOP_IDS_MAX];
    /* blocks: the table, and what the prefill worker offered for the first prompt_blocks of them */
    uint32_t *blocks, *source;
    uint64_t *checksums;
    uint32_t block_count, prompt_blocks, offered, landed;
    bool has_blocks, is_pulling, is_prefilled;
    lease_t lease; /* that the prefill side still cares; until `prefilled` */
    engine_result_t first;
    /* the stream: `known` tokens of the sequence, those before `computed` with KV; `total`
     * generated in all attempts */
    uint32_t known, computed, total;
    engine_result_t outbox[TOKENS_PER_MESSAGE_MAX]; /* not yet accepted by the link, oldest first */
    uint32_t outbox_count;
    finish_t reason;
    bool is_in_step, is_finish_said, is_started;
    /* generated blocks for the store: keys of blocks stored .. keyed - 1, tokens of the one that
     * fills up */
    block_key_t *keys;
    uint32_t tail[BLOCK_TOKENS];
    uint32_t tail_count, keyed, stored, sealing;
    bool is_keyed, is_sealing;
    uint64_t offer, ending_until_us;
    uint64_t unheard_us; /* see worker_is_said */
    uint32_t jobs;       /* pool jobs under way */
} slot_t;

typedef struct {
    slot_t *slots;
    table_t table;   /* request -> slot, but for CLOSING ones */
    uint32_t *order; /* slots in use, in order of arrival */
    uint32_t slot_max, batch_max, in_use, context_max;
    block_pool_t pool;
    offers_t offers;
    jobs_t jobs;
    key_maker_t *key_maker;
    engine_row_t *rows; /* of the step under way */
    uint32_t row_count;
    worker_retry_t retry;
    uint64_t step, step_us, held_us;
    renewals_t renewals; /* to prefill workers */
    uint32_t prefill_count;
    bool is_ready; /* the engine */
    uint64_t lease_us, heartbeat_us;
} decode_worker_t;

/* ---- decode_worker.c: the request's life ---------------------------------------------------- */

uint32_t decode_worker_index_of(const decode_worker_t *self, const slot_t *slot);

/* The request in this attempt, for say.h. */
header_t decode_worker_about(const slot_t *slot);

/* Send about this slot's request. */
err_t decode_worker_say(actor_t *world, address_t to, msg_t *m, const slot_t *slot);

/* Let go of the request, silently; its blocks come back once no step, job or offer uses them. */
void decode_worker_close(decode_worker_t *self, actor_t *world, slot_t *slot);

/* Let go of it and tell ingress, and the prefill worker while it still offers. */
void decode_worker_fail(decode_worker_t *self, actor_t *world, slot_t *slot, err_t error);

/* Free a CLOSING slot if nothing uses its blocks any more. */
void decode_worker_try_free(decode_worker_t *self, actor_t *world, slot_t *slot);

/* ---- decode_worker_stream.c: steps, tokens, generated blocks -------------------------------- */

/* Prepare the chain of keys that continues the prompt's, up to the last token that is known. */
void decode_stream_begin_keys(decode_worker_t *self, slot_t *slot, const msg_kv_open_t *open);

/* All blocks have landed and the first token is here: the request joins the next step. */
void decode_stream_start(decode_worker_t *self, actor_t *world, slot_t *slot);

/* Submit a step of all requests that can go on, if none is under way. */
void decode_stream_step(decode_worker_t *self, actor_t *world);

/* Send what waits to be sent, offer what is full, end what has ended. */
void decode_stream_tend(decode_worker_t *self, actor_t *world, slot_t *slot);

/* A checksum job of this slot is over. */
void decode_stream_sealed(decode_worker_t *self, actor_t *world, slot_t *slot, const job_t *job,
                          const msg_t *m);

void decode_stream_on_engine_done(void *state, actor_t *world, const msg_t *m);
void decode_stream_on_store_taken(void *state, actor_t *world, const msg_t *m);

#endif
