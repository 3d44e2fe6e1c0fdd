/* runtime/engine/engine_thread.c - an engine core on a thread of its own: commands go in through a
 * ring, finished steps come back. */
#include "engine_thread.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine_ring.h"

enum { IDLE_US = 50000, RING_SLACK_BYTES = 65536 };

typedef enum {
    COMMAND_START,
    COMMAND_EXTEND,
    COMMAND_APPEND,
    COMMAND_STEP,
    COMMAND_RELEASE,
} command_kind_t;

/* What the commands need lies behind the struct: START tokens, bias ids, bias values; EXTEND
 * blocks; STEP rows. */
typedef struct {
    command_kind_t kind;
    uint32_t slot, count, generated, bias_count, token;
    uint32_t failures_told; /* STEP: failures that the worker knew of */
    uint64_t step;
    sampling_t sampling;
    uint32_t data[];
} command_t;

typedef struct {
    bool is_ready;
    err_t error;
    uint64_t step, elapsed_us;
    uint32_t result_count;
    engine_result_t *results;
} news_t;

/* One more than may be outstanding: the entry that was accepted last is still being read.
 * engine_ready comes before any step. */
enum { NEWS_MAX = ENGINE_STEPS_MAX + 1 };

struct engine_thread {
    const engine_class_t *class;
    engine_core_options_t options;
    error_text_t why;
    pthread_t thread;
    engine_ring_t ring;
    int descriptor;
    uint32_t results_max;
    atomic_bool is_closing;
    atomic_bool is_idle;
    _Atomic uint32_t word; /* counts commands; what the core's idle watches */
    news_t news[NEWS_MAX];
    _Atomic uint32_t told;  /* news ever made; the engine's */
    _Atomic uint32_t heard; /* news ever accepted; the worker's */
    uint32_t outstanding;   /* steps; the worker's */
    uint32_t failures_told; /* the worker's */
    uint32_t failures;      /* the engine's */
    err_t last_error;
    void *core;
};

static uint64_t now_us(void)
{
    struct timespec now;
    invariant(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* ---- the engine's side ---- */

static news_t *news_next(engine_thread_t *self)
{
    uint32_t told = atomic_load_explicit(&self->told, memory_order_relaxed);
    uint32_t heard = atomic_load_explicit(&self->heard, memory_order_acquire); /* of accept */
    invariant(told - heard < NEWS_MAX);
    return &self->news[told % NEWS_MAX];
}

static void news_tell(engine_thread_t *self)
{
    uint64_t one = 1;
    (void)atomic_fetch_add_explicit(&self->told, 1, memory_order_release); /* for poll */
    invariant(write(self->descriptor, &one, sizeof one) == (ssize_t)sizeof one);
}

static void run_start(engine_thread_t *self, const command_t *command)
{
    const uint32_t *bias_ids = command->data + command->count;
    const engine_open_t sequence = {
        .tokens = command->data,
        .token_count = command->count,
        .generated = command->generated,
        .sampling = &command->sampling,
        .bias_ids = bias_ids,
        .bias_values = (const float *)(const void *)(bias_ids + command->bias_count),
        .bias_count = command->bias_count,
    };
    invariant(self->class->start(self->core, command->slot, &sequence) == ERR_OK);
}

static void run_step(engine_thread_t *self, const command_t *command)
{
    news_t *news = news_next(self);
    uint64_t began_us = now_us(), model_us = 0;
    const engine_row_t *rows = (const engine_row_t *)(const void *)command->data;
    news->is_ready = false;
    news->step = command->step;
    news->result_count = 0;
    bool is_sequel = command->failures_told != self->failures;
    news->error = is_sequel ? self->last_error
                            : self->class->step(self->core, rows, command->count, news->results,
                                                self->results_max, &news->result_count, &model_us);
    if (news->error) {
        news->result_count = 0;
        self->last_error = news->error;
        self->failures++;
    }
    news->elapsed_us = now_us() - began_us;
    news_tell(self);
}

static void run_command(engine_thread_t *self, const command_t *command)
{
    switch (command->kind) {
    case COMMAND_START:
        run_start(self, command);
        return;
    case COMMAND_EXTEND:
        self->class->extend(self->core, command->slot, command->data, command->count);
        return;
    case COMMAND_APPEND:
        self->class->append(self->core, command->slot, command->token);
        return;
    case COMMAND_STEP:
        run_step(self, command);
        return;
    case COMMAND_RELEASE:
        self->class->release(self->core, command->slot);
        return;
    }
}

/* Commands in order; without one, whatever the other ranks of the group need of us. */
static void run_commands(engine_thread_t *self)
{
    while (!atomic_load(&self->is_closing)) {
        uint32_t seen = atomic_load(&self->word); /* of wake */
        const command_t *command = engine_ring_peek(&self->ring);
        if (command) {
            run_command(self, command);
            engine_ring_release(&self->ring);
        } else {
            atomic_store(&self->is_idle, true);
            self->class->idle(self->core, (const uint32_t *)(const void *)&self->word, seen,
                              IDLE_US);
            atomic_store(&self->is_idle, false);
        }
    }
}

static void *run_engine(void *arg)
{
    engine_thread_t *self = arg;
    news_t *news = news_next(self);
    news->is_ready = true;
    news->error = self->class->open(&self->core, &self->options, &self->why);
    err_t error = news->error;
    news_tell(self);
    if (!error) run_commands(self);
    if (self->core) self->class->close(&self->core);
    return NULL;
}

/* ---- the worker's side ---- */

/* Sequentially consistent: whoever is found not idle here sets is_idle after the word has changed,
 * and so its idle returns at once.  Of a burst of commands only the first pays for the system
 * calls. Both kinds of futex, for the core chooses how it waits. */
static void wake(engine_thread_t *self)
{
    (void)atomic_fetch_add(&self->word, 1);
    if (!atomic_exchange(&self->is_idle, false)) return;
    (void)syscall(SYS_futex, &self->word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    (void)syscall(SYS_futex, &self->word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Every slot's longest sequence twice, the steps, and some. */
static size_t ring_bytes(const engine_limits_t *limits)
{
    size_t context = limits->context_max;
    size_t start = sizeof(command_t) + (context + 2 * LOGIT_BIAS_MAX) * 4 + 64;
    size_t blocks = (context / BLOCK_TOKENS + 1) * (4 + sizeof(command_t) + 32);
    size_t step = sizeof(command_t) + limits->sequences_max * sizeof(engine_row_t) + 64;
    return 2 * (limits->slots + 1) * (start + blocks) + 4 * ENGINE_STEPS_MAX * step +
           RING_SLACK_BYTES;
}

static bool make_news(engine_thread_t *self)
{
    self->results_max = self->options.limits.rows_max + self->options.limits.sequences_max;
    for (int i = 0; i < NEWS_MAX; i++) {
        self->news[i].results = calloc(self->results_max, sizeof(engine_result_t));
        if (!self->news[i].results) return false;
    }
    return true;
}

static void free_thread(engine_thread_t *self)
{
    for (int i = 0; i < NEWS_MAX; i++) free(self->news[i].results);
    engine_ring_fini(&self->ring);
    if (self->descriptor >= 0) (void)close(self->descriptor);
    free(self);
}

engine_thread_t *engine_thread_new(const engine_class_t *class,
                                   const engine_core_options_t *options)
{
    engine_thread_t *self = calloc(1, sizeof *self);
    if (!self) return NULL;
    self->class = class;
    self->options = *options;
    self->descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    bool is_made = self->descriptor >= 0 && make_news(self) &&
                   engine_ring_init(&self->ring, ring_bytes(&options->limits));
    if (is_made && pthread_create(&self->thread, NULL, run_engine, self) == 0) return self;
    free_thread(self);
    return NULL;
}

void engine_thread_destroy(engine_thread_t **self)
{
    if (!*self) return;
    atomic_store(&(*self)->is_closing, true);
    wake(*self);
    invariant(pthread_join((*self)->thread, NULL) == 0);
    free_thread(*self);
    *self = NULL;
}

int engine_thread_descriptor(const engine_thread_t *self)
{
    return self->descriptor;
}

static command_t *command_begin(engine_thread_t *self, command_kind_t kind, uint32_t slot,
                                size_t words)
{
    const struct timespec rest = { .tv_nsec = 50000 };
    command_t *command;
    invariant(slot < self->options.limits.slots);
    while (!(command = engine_ring_reserve(&self->ring, sizeof *command + words * 4))) {
        wake(self); /* for what is published may be a filler, of which nobody told the engine */
        (void)nanosleep(&rest, NULL);
    }
    memset(command, 0, sizeof *command);
    command->kind = kind;
    command->slot = slot;
    return command;
}

static void command_end(engine_thread_t *self)
{
    engine_ring_publish(&self->ring);
    wake(self);
}

err_t engine_thread_start(engine_thread_t *self, uint32_t slot, const engine_open_t *sequence)
{
    uint32_t count = sequence->token_count, bias = sequence->bias_count;
    if (count == 0 || count > self->options.limits.context_max || bias > LOGIT_BIAS_MAX)
        return ERR_INVALID;
    command_t *command = command_begin(self, COMMAND_START, slot, count + 2 * (size_t)bias);
    command->count = count;
    command->generated = sequence->generated;
    command->bias_count = bias;
    command->sampling = *sequence->sampling;
    memcpy(command->data, sequence->tokens, count * sizeof(uint32_t));
    if (bias) {
        memcpy(command->data + count, sequence->bias_ids, bias * sizeof(uint32_t));
        memcpy(command->data + count + bias, sequence->bias_values, bias * sizeof(float));
    }
    command_end(self);
    return ERR_OK;
}

void engine_thread_extend(engine_thread_t *self, uint32_t slot, const uint32_t *blocks,
                          uint32_t count)
{
    if (count == 0) return;
    invariant(count <= self->options.limits.context_max / BLOCK_TOKENS + 1);
    command_t *command = command_begin(self, COMMAND_EXTEND, slot, count);
    command->count = count;
    memcpy(command->data, blocks, count * sizeof *blocks);
    command_end(self);
}

void engine_thread_append(engine_thread_t *self, uint32_t slot, uint32_t token)
{
    command_begin(self, COMMAND_APPEND, slot, 0)->token = token;
    command_end(self);
}

err_t engine_thread_step(engine_thread_t *self, uint64_t step, const engine_row_t *rows,
                         uint32_t count)
{
    if (count == 0) return ERR_INVALID;
    if (self->outstanding >= ENGINE_STEPS_MAX) return ERR_OVERLOAD;
    invariant(count <= self->options.limits.sequences_max);
    command_t *command =
        command_begin(self, COMMAND_STEP, rows[0].slot, count * sizeof *rows / sizeof(uint32_t));
    command->step = step;
    command->count = count;
    command->failures_told = self->failures_told;
    memcpy(command->data, rows, count * sizeof *rows);
    self->outstanding++;
    command_end(self);
    return ERR_OK;
}

void engine_thread_release(engine_thread_t *self, uint32_t slot)
{
    (void)command_begin(self, COMMAND_RELEASE, slot, 0);
    command_end(self);
}

bool engine_thread_poll(engine_thread_t *self, engine_news_t *news)
{
    uint32_t heard = atomic_load_explicit(&self->heard, memory_order_relaxed);
    if (heard == atomic_load_explicit(&self->told, memory_order_acquire)) return false;
    const news_t *next = &self->news[heard % NEWS_MAX];
    *news = (engine_news_t){ .is_ready = next->is_ready,
                             .error = next->error,
                             .why = self->why.text,
                             .step = next->step,
                             .elapsed_us = next->elapsed_us,
                             .results = next->results,
                             .result_count = next->result_count };
    return true;
}

void engine_thread_accept(engine_thread_t *self)
{
    uint32_t heard = atomic_load_explicit(&self->heard, memory_order_relaxed);
    const news_t *news = &self->news[heard % NEWS_MAX];
    invariant(heard != atomic_load_explicit(&self->told, memory_order_acquire));
    if (!news->is_ready) {
        invariant(self->outstanding > 0);
        self->outstanding--;
        if (news->error) self->failures_told++;
    }
    atomic_store_explicit(&self->heard, heard + 1, memory_order_release); /* for news_next */
}
