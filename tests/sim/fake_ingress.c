/* tests/sim/fake_ingress.c - owns requests as ingress does, without HTTP.
 *
 *   prefill_lb <--submit, cancel, request_probe--  ingress  <--tokens, finished, failed-- workers
 * and balancers
 */
#include "fake_ingress.h"

#include <string.h>

#include "../../runtime/kv/key.h"
#include "../../runtime/model/config.h"

enum { RETRY_US = 100000, WAKE_US = 20000, MISSES_MAX = 2, HELD_MAX = 256 };

typedef struct {
    request_id_t request;
    client_t *client; /* NULL: free */
    uint32_t attempt;
    uint64_t heard_us, submit_us; /* submit_us: when to submit the next attempt; 0: submitted */
    uint64_t probed_us;           /* 0: no probe is out */
    uint32_t denials;             /* answers "not held" to this probe */
    uint32_t misses;              /* probes in a row that all denied */
} held_t;

typedef struct {
    journal_t *journal;
    held_t held[HELD_MAX];
    key_maker_t *keys;
    uint64_t model_key;
    uint32_t tokens[PROMPT_MAX + ANSWER_MAX];
    uint8_t key_bytes[(PROMPT_MAX + ANSWER_MAX) / BLOCK_TOKENS * KEY_BYTES + KEY_BYTES];
    uint32_t answers[HELD_MAX][ANSWER_MAX];
} fake_t;

static const address_t balancers[] = { { ROLE_prefill_lb, 0 }, { ROLE_decode_lb, 0 } };

static err_t init(void *state, actor_t *world)
{
    fake_t *self = state;
    self->keys = key_maker_new();
    model_config_t model;
    error_text_t why;
    if (model_config_read(&model, actor_config(world)->model.path, &why) == ERR_OK)
        self->model_key = model_key(&model);
    actor_wake_at(world, actor_now_us(world) + WAKE_US);
    return self->keys ? ERR_OK : ERR_NO_SPACE;
}

/* Its clients see their connections end. */
static void fini(void *state, actor_t *world)
{
    fake_t *self = state;
    key_maker_destroy(&self->keys);
    for (uint32_t i = 0; self->journal && i < HELD_MAX; i++)
        if (self->held[i].client)
            journal_end(self->journal, self->held[i].client, CLIENT_CUT, ERR_LOST);
}

void fake_ingress_attach(void *state, journal_t *journal)
{
    ((fake_t *)state)->journal = journal;
}

static held_t *find(fake_t *self, request_id_t request)
{
    for (uint32_t i = 0; i < HELD_MAX; i++)
        if (self->held[i].client && request_id_equal(self->held[i].request, request))
            return &self->held[i];
    return NULL;
}

static void say_cancel(actor_t *world, address_t to, request_id_t request, uint32_t attempt)
{
    msg_t m;
    msg_init(&m, MSG_cancel);
    m.header = (header_t){ .request = request, .attempt = attempt };
    (void)!actor_send(world, to, &m);
}

static void end(fake_t *self, actor_t *world, held_t *held, client_state_t state, err_t error)
{
    if (state != CLIENT_FINISHED)
        for (int i = 0; i < 2; i++) say_cancel(world, balancers[i], held->request, held->attempt);
    client_t *client = held->client;
    held->client = NULL;
    if (state != CLIENT_FINISHED) journal_end(self->journal, client, state, error);
}

/* ---- submitting ----------------------------------------------------------------------------- */

static err_t submit(fake_t *self, actor_t *world, held_t *held)
{
    const client_t *client = held->client;
    uint32_t count = client->prompt_count + client->answer_count;
    memcpy(self->tokens, client->prompt, client->prompt_count * sizeof(uint32_t));
    memcpy(self->tokens + client->prompt_count, self->answers[held - self->held],
           client->answer_count * sizeof(uint32_t));
    uint32_t keys = key_maker_prompt(self->keys, self->model_key, self->tokens,
                                     client->prompt_count, self->key_bytes);
    msg_t m;
    msg_init(&m, MSG_submit);
    m.header = (header_t){ .request = held->request, .attempt = held->attempt };
    m.submit.ingress = actor_self(world).index;
    m.submit.prompt_count = client->prompt_count;
    m.submit.generated = client->answer_count;
    m.submit.max_tokens = client->max_tokens;
    m.submit.deadline_us = client->deadline_us - actor_now_us(world);
    m.submit.sampling = client->sampling;
    m.submit.tokens = (bytes_t){ self->tokens, count * sizeof(uint32_t) };
    m.submit.keys = (bytes_t){ self->key_bytes, (size_t)keys * KEY_BYTES };
    held->heard_us = actor_now_us(world);
    held->probed_us = held->misses = 0;
    return actor_send(world, balancers[0], &m);
}

void fake_ingress_ask(void *state, actor_t *world, client_t *client)
{
    fake_t *self = state;
    held_t *held = self->held;
    while (held < self->held + HELD_MAX && held->client) held++;
    invariant(held < self->held + HELD_MAX);
    *held = (held_t){ .request = { actor_random(world), actor_random(world) },
                      .client = client,
                      .attempt = 1 };
    err_t error = submit(self, world, held);
    if (error != ERR_OK) {
        held->client = NULL;
        journal_end(self->journal, client, CLIENT_REJECTED,
                    error == ERR_LOST ? ERR_UNAVAILABLE : error);
        return;
    }
    client->state = CLIENT_WAITING;
    client->attempts = 1;
}

void fake_ingress_cancel(void *state, actor_t *world, client_t *client)
{
    fake_t *self = state;
    for (uint32_t i = 0; i < HELD_MAX; i++)
        if (self->held[i].client == client)
            end(self, world, &self->held[i], CLIENT_CANCELLED, ERR_CANCELLED);
}

/* The attempt is lost: another one, after a little rest, or the end. */
static void retry(fake_t *self, actor_t *world, held_t *held, err_t error)
{
    if (held->attempt >= (uint32_t)actor_config(world)->limits.attempts_max ||
        !error_descs[error].is_retry_safe) {
        end(self, world, held, CLIENT_FAILED, error);
        return;
    }
    for (int i = 0; i < 2; i++) say_cancel(world, balancers[i], held->request, held->attempt);
    held->attempt++;
    held->client->attempts = held->attempt;
    held->submit_us = actor_now_us(world) + RETRY_US;
}

/* ---- answers -------------------------------------------------------------------------------- */

/* The request of a message of the present attempt; NULL otherwise, and its sender is told to stop.
 */
static held_t *current(fake_t *self, actor_t *world, const msg_t *m)
{
    held_t *held = find(self, m->header.request);
    if (held && held->attempt == m->header.attempt && held->submit_us == 0) {
        held->heard_us = actor_now_us(world);
        held->probed_us = held->misses = 0;
        return held;
    }
    if (m->type == MSG_tokens)
        say_cancel(world, m->header.from, m->header.request, m->header.attempt);
    return NULL;
}

static void on_tokens(void *state, actor_t *world, const msg_t *m)
{
    fake_t *self = state;
    held_t *held = current(self, world, m);
    if (!held) return;
    client_t *client = held->client;
    for (uint32_t i = 0; i < m->tokens.ids_count; i++) {
        uint32_t index = m->tokens.first_index + i;
        if (index < client->answer_count) {
            journal_duplicate(self->journal, client, index, m->tokens.ids[i]);
            continue;
        }
        if (index > client->answer_count) { /* what was between went down with a connection */
            retry(self, world, held, ERR_LOST);
            return;
        }
        invariant(index < ANSWER_MAX);
        self->answers[held - self->held][index] = m->tokens.ids[i];
        journal_token(self->journal, client, index, m->tokens.ids[i]);
    }
}

static void on_finished(void *state, actor_t *world, const msg_t *m)
{
    fake_t *self = state;
    held_t *held = current(self, world, m);
    if (!held) return;
    client_t *client = held->client;
    if (m->finished.tokens != client->answer_count) {
        if (m->finished.tokens < client->answer_count)
            sim_fail(self->journal->sim, "I2", "client %u has %u tokens, finished says %u",
                     client->number, client->answer_count, m->finished.tokens);
        retry(self, world, held, ERR_LOST);
        return;
    }
    end(self, world, held, CLIENT_FINISHED, ERR_OK);
    journal_finish(self->journal, client, (finish_t)m->finished.reason);
}

static void on_failed(void *state, actor_t *world, const msg_t *m)
{
    fake_t *self = state;
    held_t *held = current(self, world, m);
    if (held) retry(self, world, held, (err_t)m->failed.error);
}

static void on_request_held(void *state, actor_t *world, const msg_t *m)
{
    fake_t *self = state;
    held_t *held = find(self, m->header.request);
    if (!held || held->attempt != m->header.attempt || !held->probed_us) return;
    if (m->request_held.is_held) {
        held->heard_us = actor_now_us(world);
        held->probed_us = held->misses = 0;
        return;
    }
    if (++held->denials < 2) return;
    held->probed_us = 0;
    held->heard_us = actor_now_us(world);
    if (++held->misses == MISSES_MAX) retry(self, world, held, ERR_LOST);
}

/* ---- time ----------------------------------------------------------------------------------- */

static void probe(actor_t *world, held_t *held)
{
    held->probed_us = actor_now_us(world);
    held->denials = 0;
    msg_t m;
    msg_init(&m, MSG_request_probe);
    m.header = (header_t){ .request = held->request, .attempt = held->attempt };
    for (int i = 0; i < 2; i++) (void)!actor_send(world, balancers[i], &m);
}

static void look_after(fake_t *self, actor_t *world, held_t *held)
{
    uint64_t now_us = actor_now_us(world);
    uint64_t probe_us = (uint64_t)actor_config(world)->timing.probe_ms * 1000;
    if (now_us >= held->client->deadline_us) {
        end(self, world, held, CLIENT_FAILED, ERR_DEADLINE);
        return;
    }
    if (held->submit_us) {
        if (now_us < held->submit_us) return;
        held->submit_us = submit(self, world, held) == ERR_OK ? 0 : now_us + RETRY_US;
        return;
    }
    uint64_t since_us = held->probed_us ? held->probed_us : held->heard_us;
    if (now_us - since_us > probe_us) probe(world, held);
}

static void wake(void *state, actor_t *world)
{
    fake_t *self = state;
    for (uint32_t i = 0; i < HELD_MAX; i++)
        if (self->held[i].client) look_after(self, world, &self->held[i]);
    actor_wake_at(world, actor_now_us(world) + WAKE_US);
}

static bool is_idle(const void *state)
{
    const fake_t *self = state;
    for (uint32_t i = 0; i < HELD_MAX; i++)
        if (self->held[i].client) return false;
    return true;
}

const actor_class_t fake_ingress_class = { .name = "ingress",
                                           .role = ROLE_ingress,
                                           .state_size = sizeof(fake_t),
                                           .init = init,
                                           .fini = fini,
                                           .wake = wake,
                                           .is_idle = is_idle,
                                           .on = { [MSG_tokens] = on_tokens,
                                                   [MSG_finished] = on_finished,
                                                   [MSG_failed] = on_failed,
                                                   [MSG_request_held] = on_request_held } };
