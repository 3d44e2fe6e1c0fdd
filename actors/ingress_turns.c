/* actors/ingress_turns.c - what takes ingress more than one turn: large bodies on their way to
 * tokens, large answers on their way to the client.
 *
 * Everybody who waits for a token, or for a sign of life, would wait for the whole of them.  So a
 * turn does one step of each kind, and those that wait have their steps by turns.
 */
#include <string.h>

#include "../runtime/base/config.h"
#include "../runtime/base/memory.h"
#include "ingress_parts.h"

/* What jobs may hold of bodies: several times that becomes resident while they are in work; and of
 * address space. */
static const size_t bodies_bytes_max = (size_t)64 << 20, arenas_bytes_max = (size_t)2 << 30;

enum {
    ARENA_BODIES = 4,     /* a body, its texts, their rendering, and what lists and tables need */
    JOBS_LEAST = 4,       /* however large bodies may be */
    STEP_WORK = 65536,    /* of a body in a turn: some 3 ms */
    FULL_LINK_US = 50000, /* until a client's full link is tried again */
};

void turns_set_wake(const ingress_t *self, actor_t *world)
{
    uint64_t next_us = alarms_next_us(&self->alarms), now_us = actor_now_us(world);
    if (self->in_print != NONE && (next_us == 0 || self->print_at_us < next_us))
        next_us = self->print_at_us;
    if (self->in_work != NONE && (next_us == 0 || now_us < next_us)) next_us = now_us;
    actor_wake_at(world, next_us);
}

/* ---- jobs ---- */

static size_t body_bytes_max(const ingress_t *self)
{
    size_t body = (size_t)self->config->http.body_bytes_max;
    return body > CONTENT_MAX ? body : CONTENT_MAX;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Scratch for the largest text that can come, so that nothing allocates it while serving: address
 * space now, memory only once such a text comes. */
static err_t reserve_text(ingress_t *self, actor_t *world)
{
    enum { LITERALS_MAX = 4096 }; /* what a template puts between two special tokens */
    self->text_max = (size_t)self->context_max * tokenizer_token_bytes_max(self->tokenizer);
    size_t text = least(ARENA_BODIES * body_bytes_max(self), self->text_max) + LITERALS_MAX;
    if (tokenizer_reserve(self->tokenizer, AT_ONCE_BYTES + LITERALS_MAX) &&
        tokenizer_reserve_steps(self->tokenizer, text))
        return ERR_OK;
    actor_log(world, LOG_ERROR, "INGRESS-MEMORY", "no memory to tokenise %zu bytes", text);
    return ERR_NO_SPACE;
}

/* Address space, most of it: a body's memory is touched as far as the body needs, and given back.
 * In one piece, for what is small enough malloc takes from memory that is resident already. */
static void make_jobs(ingress_t *self, actor_t *world)
{
    size_t size = ARENA_BODIES * body_bytes_max(self),
           room = least(JOBS_MAX, arenas_bytes_max / size);
    uint32_t count = room < JOBS_LEAST ? JOBS_LEAST : (uint32_t)room;
    self->jobs = actor_alloc(world, 1 + count, sizeof *self->jobs);
    openai_call_t *parsed = actor_alloc(world, 1 + count, sizeof *parsed);
    uint8_t *arenas = actor_alloc(world, 1 + count, size);
    uint32_t *ids = actor_alloc(world, 1 + count, CONTEXT_MAX * sizeof *ids);
    for (uint32_t i = 0; i <= count; i++) {
        job_t *job = &self->jobs[i];
        job->arena = (arena_t){ .bytes = arenas + i * size, .size = size };
        job->parsed = &parsed[i];
        job->ids = ids + (size_t)i * CONTEXT_MAX;
        job->next = i < count ? i + 1 : NONE;
    }
    self->free_job = 1;
    self->in_work = NONE;
    self->at_once_left = AT_ONCE_TURN;
}

err_t turns_init(ingress_t *self, actor_t *world)
{
    err_t error = reserve_text(self, world);
    if (error == ERR_OK) make_jobs(self, world);
    return error;
}

/* NULL: all are in use, or hold as much as they may. */
static job_t *job_take(ingress_t *self, size_t bytes)
{
    bool has_room = self->job_bytes == 0 || self->job_bytes + bytes <= bodies_bytes_max;
    if (self->free_job == NONE || !has_room) return NULL;
    job_t *job = &self->jobs[self->free_job];
    self->free_job = job->next;
    self->job_bytes += bytes;
    job->bytes = bytes;
    return job;
}

/* Memory that a large body made resident goes back. */
void job_free(ingress_t *self, job_t *job)
{
    uint32_t index = (uint32_t)(job - self->jobs);
    invariant(self->calls[job->call].job == index);
    self->calls[job->call].job = NONE;
    tokenizer_encode_drop(self->tokenizer, &job->encoding);
    job->state = JOB_OVER;
    if (job->is_at_once) return;
    self->job_bytes -= job->bytes;
    memory_rest(job->arena.bytes, job->arena.size);
    memory_rest(job->ids, CONTEXT_MAX * sizeof *job->ids);
    uint32_t *link = &self->in_work;
    while (*link != NONE && *link != index) link = &self->jobs[*link].next;
    if (*link != NONE) *link = job->next;
    job->next = self->free_job;
    self->free_job = index;
}

/* ---- bodies ---- */

static err_t refuse_jobs(openai_error_t *why)
{
    return openai_refuse(why, ERR_OVERLOAD, "",
                         "This server reads as many large requests as it can; retry later.");
}

static void refuse(ingress_t *self, actor_t *world, call_t *call, openai_kind_t kind,
                   const openai_error_t *why)
{
    if (is_generation(kind) && !call->is_admitted)
        actor_count(world, METRIC_requests_rejected_total, 1);
    call_fail(self, world, call, why);
}

static err_t check_deadline(actor_t *world, const call_t *call, openai_error_t *why)
{
    if (actor_now_us(world) < call->deadline_us) return ERR_OK;
    return openai_refuse(why, ERR_DEADLINE, "", "The request ended before it was tokenised: %s.",
                         error_descs[ERR_DEADLINE].doc);
}

static void run(ingress_t *self, actor_t *world, job_t *job, size_t work)
{
    call_t *call = &self->calls[job->call];
    openai_error_t why;
    err_t error = check_deadline(world, call, &why);
    while (error == ERR_OK && work > 0 && job->state != JOB_OVER)
        error = admit_step(self, world, job, &work, &why);
    if (error != ERR_OK) refuse(self, world, call, job->kind, &why);
}

static void queue(ingress_t *self, actor_t *world, job_t *job)
{
    uint32_t *link = &self->in_work;
    while (*link != NONE) link = &self->jobs[*link].next;
    *link = (uint32_t)(job - self->jobs);
    job->next = NONE;
    turns_set_wake(self, world);
}

static void copy(arena_t *arena, bytes_t *bytes)
{
    void *to = arena_take(arena, bytes->size, 1);
    invariant(to != NULL); /* no body is larger than a part of it */
    if (bytes->size > 0) memcpy(to, bytes->data, bytes->size);
    bytes->data = to;
}

/* Behind the turn nobody knows what the message held. */
static void keep_body(job_t *job)
{
    copy(&job->arena, &job->body);
    copy(&job->arena, &job->submit.content);
    copy(&job->arena, &job->submit.stop);
}

/* NULL: it is too large for now, and there is no room to work it off later. */
static job_t *choose_job(ingress_t *self, size_t bytes)
{
    bool is_small = bytes <= AT_ONCE_BYTES;
    bool is_at_once = is_small && bytes <= self->at_once_left;
    job_t *job = is_at_once ? NULL : job_take(self, bytes);
    if (job != NULL || !is_small) return job;
    self->at_once_left -= is_at_once ? bytes : self->at_once_left;
    return &self->jobs[0];
}

static void begin(ingress_t *self, job_t *job, call_t *call, const said_t *said)
{
    job->state = JOB_BODY;
    job->is_at_once = job == self->jobs;
    job->call = call_index(self, call);
    call->job = (uint32_t)(job - self->jobs);
    job->kind = said->kind;
    job->body = said->body;
    job->submit = said->submit == NULL ? (msg_client_submit_t){ 0 } : *said->submit;
    job->arena.used = 0;
}

void call_work(ingress_t *self, actor_t *world, call_t *call, const said_t *said)
{
    size_t content = said->submit == NULL ? 0 : said->submit->content.size;
    job_t *job = choose_job(self, said->body.size + content);
    openai_error_t why;
    if (job == NULL) {
        refuse_jobs(&why);
        refuse(self, world, call, said->kind, &why);
        return;
    }
    begin(self, job, call, said);
    if (job->is_at_once) {
        run(self, world, job, SIZE_MAX);
        invariant(job->state == JOB_OVER);
        return;
    }
    keep_body(job);
    queue(self, world, job);
}

static void work_next(ingress_t *self, actor_t *world)
{
    if (self->in_work == NONE) return;
    job_t *job = &self->jobs[self->in_work];
    self->in_work = job->next;
    run(self, world, job, STEP_WORK);
    if (job->state != JOB_OVER) queue(self, world, job);
}

/* ---- answers ---- */

static void print_later(ingress_t *self, actor_t *world, call_t *call)
{
    uint32_t *link = &self->in_print;
    while (*link != NONE) link = &self->calls[*link].next;
    *link = call_index(self, call);
    call->next = NONE;
    self->print_at_us = actor_now_us(world) + (call->is_client ? FULL_LINK_US : 0);
    turns_set_wake(self, world);
}

void call_end(ingress_t *self, actor_t *world, call_t *call)
{
    if (answer_call_end(self, world, call))
        call_free(self, call);
    else
        print_later(self, world, call);
}

/* In turn, for one client that takes nothing must not keep the others waiting. */
static void print_next(ingress_t *self, actor_t *world)
{
    if (self->in_print == NONE || actor_now_us(world) < self->print_at_us) return;
    call_t *call = &self->calls[self->in_print];
    self->in_print = call->next;
    call_end(self, world, call);
}

void turns_go_on(ingress_t *self, actor_t *world)
{
    work_next(self, world);
    print_next(self, world);
}
