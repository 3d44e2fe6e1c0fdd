/* runtime/engine/engine_stub.c - an engine without weights, whose KV proves itself.
 *
 * Token = hash of seed and index.  The KV of a token is the chained hash of all tokens of its
 * sequence up to it, turned over when decode computed it: real KV differs in its last bits, too.
 * Every step compares the KV in the slot's blocks with what its tokens demand, so a block that is
 * wrong, missing, stale or given away too early is noticed at the step that would have read it, and
 * so is an answer whose beginning was computed as a prompt.
 */
#include "stub.h"

#include "timings.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_ORDINARY = 256, END_TOKEN_DEFAULT = 1 };
static const uint64_t CHAIN_START = 0x74726f7570650001u;

typedef struct {
    bool is_open;
    sampling_t sampling;
    uint32_t prompt_count; /* the tokens after them are the answer's, from index 0 */
    uint32_t token_count;
    uint32_t block_count;
    uint32_t *tokens;
    uint64_t
        *chain; /* chain[i]: KV of token i as prefill computes it; decode's has all bits turned */
    uint32_t *blocks;
} slot_t;

typedef struct {
    engine_core_options_t options;
    uint32_t vocab, end_token;
    uint32_t blocks_max; /* of one slot */
    slot_t *slots;
    uint64_t violations;
    timings_t timings; /* empty: engine.stub_token_us and stub_prefill_token_ns say it */
} stub_t;

/* ---- the oracle ----------------------------------------------------------------------------- */

/* The finaliser of MurmurHash3 (Appleby, public domain algorithm). */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 33)) * 0xff51afd7ed558ccdu;
    z = (z ^ (z >> 33)) * 0xc4ceb9fe1a85ec53u;
    return z ^ (z >> 33);
}

static uint64_t draw(uint64_t seed, uint32_t index)
{
    return mix(mix(seed + 0x9e3779b97f4a7c15u) + index);
}

uint32_t engine_stub_token(uint32_t vocab, uint32_t end_token, const sampling_t *sampling,
                           uint32_t index)
{
    uint64_t bits = draw(sampling->seed, index);
    bool may_end = sampling->seed >> 32 == STUB_ENDING_SEED >> 32 && !sampling->ignore_eos;
    if (may_end && (bits >> 40) % STUB_ENDING_ONE_IN == 0) return end_token;
    invariant(vocab > 2 * FIRST_ORDINARY);
    return FIRST_ORDINARY + (uint32_t)(bits % (vocab - 2 * FIRST_ORDINARY));
}

float engine_stub_logprob(uint64_t seed, uint32_t index)
{
    return -(float)(draw(~seed, index) % 4096) / 1024.0f;
}

void engine_stub_vocabulary(const config_t *config, uint32_t *vocab, uint32_t *end_token)
{
    model_config_t model;
    error_text_t why;
    *vocab = STUB_VOCAB_DEFAULT;
    *end_token = END_TOKEN_DEFAULT;
    if (config->model.path[0] == '\0' ||
        model_config_read(&model, config->model.path, &why) != ERR_OK)
        return;
    *vocab = model.vocab;
    if (model.end_token_count) *end_token = model.end_tokens[0];
}

uint64_t engine_stub_violations(const void *core)
{
    return ((const stub_t *)core)->violations;
}

/* ---- opened and closed ---------------------------------------------------------------------- */

static size_t block_bytes(const config_t *config, error_text_t *why)
{
    (void)config;
    (void)why;
    return BLOCK_TOKENS * STUB_ENTRY_BYTES;
}

static void close_stub(void **core)
{
    stub_t *self = *core;
    if (!self) return;
    for (uint32_t i = 0; self->slots && i < self->options.limits.slots; i++) {
        free(self->slots[i].tokens);
        free(self->slots[i].chain);
        free(self->slots[i].blocks);
    }
    free(self->slots);
    free(self);
    *core = NULL;
}

/* Untouched pages cost nothing, so slots may be as long as the context allows. */
static bool make_slot(slot_t *slot, uint32_t tokens, uint32_t blocks)
{
    slot->tokens = calloc(tokens, sizeof *slot->tokens);
    slot->chain = calloc(tokens, sizeof *slot->chain);
    slot->blocks = calloc(blocks, sizeof *slot->blocks);
    return slot->tokens && slot->chain && slot->blocks;
}

static err_t open_stub(void **core, const engine_core_options_t *options, error_text_t *why)
{
    invariant(options->block_bytes >= BLOCK_TOKENS * STUB_ENTRY_BYTES);
    stub_t *self = calloc(1, sizeof *self);
    if (!self) return ERR_NO_SPACE;
    self->options = *options;
    const char *timings = options->config->engine.stub_timings;
    if (timings[0] && timings_read(&self->timings, timings, why)) {
        free(self);
        return ERR_MODEL;
    }
    engine_stub_vocabulary(options->config, &self->vocab, &self->end_token);
    self->blocks_max = options->limits.context_max / BLOCK_TOKENS + 1;
    self->slots = calloc(options->limits.slots, sizeof *self->slots);
    bool is_whole = self->slots != NULL;
    for (uint32_t i = 0; is_whole && i < options->limits.slots; i++)
        is_whole = make_slot(&self->slots[i], options->limits.context_max + 1, self->blocks_max);
    if (is_whole) {
        *core = self;
        return ERR_OK;
    }
    snprintf(why->text, sizeof why->text, "no memory for %u sequences of %u tokens",
             options->limits.slots, options->limits.context_max);
    void *half = self;
    close_stub(&half);
    return ERR_NO_SPACE;
}

/* ---- sequences ------------------------------------------------------------------------------ */

static void push_token(slot_t *slot, uint32_t token)
{
    uint64_t before = slot->token_count ? slot->chain[slot->token_count - 1] : CHAIN_START;
    slot->tokens[slot->token_count] = token;
    slot->chain[slot->token_count] = mix(before * 31 + token + 1);
    slot->token_count++;
}

static slot_t *slot_at(stub_t *self, uint32_t index)
{
    invariant(index < self->options.limits.slots);
    return &self->slots[index];
}

static err_t start(void *core, uint32_t index, const engine_open_t *sequence)
{
    stub_t *self = core;
    slot_t *slot = slot_at(self, index);
    invariant(!slot->is_open);
    if (sequence->token_count == 0 || sequence->token_count > self->options.limits.context_max)
        return ERR_INVALID;
    invariant(sequence->generated < sequence->token_count);
    slot->is_open = true;
    slot->sampling = *sequence->sampling;
    slot->prompt_count = sequence->token_count - sequence->generated;
    slot->token_count = slot->block_count = 0;
    for (uint32_t i = 0; i < sequence->token_count; i++) push_token(slot, sequence->tokens[i]);
    return ERR_OK;
}

static void extend(void *core, uint32_t index, const uint32_t *blocks, uint32_t count)
{
    stub_t *self = core;
    slot_t *slot = slot_at(self, index);
    invariant(slot->is_open && slot->block_count + count <= self->blocks_max);
    for (uint32_t i = 0; i < count; i++) {
        invariant(blocks[i] < self->options.blocks);
        slot->blocks[slot->block_count++] = blocks[i];
    }
}

static void append(void *core, uint32_t index, uint32_t token)
{
    stub_t *self = core;
    slot_t *slot = slot_at(self, index);
    invariant(slot->is_open && slot->token_count < self->options.limits.context_max + 1);
    push_token(slot, token);
}

static void release(void *core, uint32_t index)
{
    slot_t *slot = slot_at(core, index);
    invariant(slot->is_open);
    slot->is_open = false;
}

/* ---- steps ---------------------------------------------------------------------------------- */

static uint8_t *entry(const stub_t *self, const slot_t *slot, uint32_t position)
{
    uint32_t block = slot->blocks[position / BLOCK_TOKENS];
    return (uint8_t *)self->options.pool + (size_t)block * self->options.block_bytes +
           (size_t)(position % BLOCK_TOKENS) * STUB_ENTRY_BYTES;
}

/* Is the KV of the first `count` tokens what the tokens demand?  A prompt's may be decode's: the
 * store has answers, which are part of a chat's next prompt. */
static bool is_kv_right(const stub_t *self, const slot_t *slot, uint32_t count)
{
    for (uint32_t at = 0; at < count; at++) {
        uint64_t kv;
        memcpy(&kv, entry(self, slot, at), sizeof kv);
        bool is_prefills = kv == slot->chain[at] && at < slot->prompt_count;
        if (!is_prefills && kv != ~slot->chain[at]) return false;
    }
    return true;
}

static err_t verify(stub_t *self, const engine_row_t *row)
{
    const slot_t *slot = slot_at(self, row->slot);
    uint64_t end = (uint64_t)row->first + row->count;
    bool is_sound = slot->is_open && row->count > 0 && end <= slot->token_count &&
                    (end + BLOCK_TOKENS - 1) / BLOCK_TOKENS <= slot->block_count &&
                    (row->first >= slot->prompt_count || end <= slot->prompt_count) &&
                    (!row->is_last || (end == slot->token_count &&
                                       slot->token_count <= self->options.limits.context_max));
    if (!is_sound) return ERR_INVALID;
    if (is_kv_right(self, slot, row->first)) return ERR_OK;
    self->violations++;
    return ERR_ENGINE;
}

static void write_kv(const stub_t *self, const slot_t *slot, const engine_row_t *row)
{
    for (uint32_t i = row->first; i < row->first + row->count; i++) {
        uint64_t kv = i < slot->prompt_count ? slot->chain[i] : ~slot->chain[i];
        memcpy(entry(self, slot, i), &kv, sizeof kv);
    }
}

static engine_result_t report(const stub_t *self, const slot_t *slot, uint32_t position,
                              uint32_t token)
{
    engine_result_t result = { .position = position, .token = token };
    uint64_t seed = slot->sampling.seed;
    result.logprob = engine_stub_logprob(seed, position);
    result.top_count = slot->sampling.top_logprobs;
    for (uint32_t i = 0; i < result.top_count; i++) {
        result.top_ids[i] =
            i == 0 ? token : FIRST_ORDINARY + (token + i) % (self->vocab - 2 * FIRST_ORDINARY);
        result.top_logprobs[i] = result.logprob - (float)i;
    }
    return result;
}

typedef struct {
    engine_result_t *items;
    uint32_t count, max;
} results_t;

static void add_result(results_t *results, const engine_row_t *row, engine_result_t result,
                       bool is_prompt)
{
    invariant(results->count < results->max);
    result.slot = row->slot;
    result.is_prompt = is_prompt;
    results->items[results->count++] = result;
}

static void run_row(stub_t *self, const engine_row_t *row, results_t *results)
{
    slot_t *slot = slot_at(self, row->slot);
    write_kv(self, slot, row);
    for (uint32_t i = row->first; slot->sampling.prompt_logprobs && i < row->first + row->count;
         i++)
        if (i + 1 < slot->prompt_count)
            add_result(results, row, report(self, slot, i + 1, slot->tokens[i + 1]), true);
    if (!row->is_last) return;
    uint32_t index = slot->token_count - slot->prompt_count;
    uint32_t token = engine_stub_token(self->vocab, self->end_token, &slot->sampling, index);
    add_result(results, row, report(self, slot, slot->token_count, token), false);
    push_token(slot, token);
}

static void sleep_us(uint64_t us)
{
    struct timespec rest = { .tv_sec = (time_t)(us / 1000000),
                             .tv_nsec = (long)(us % 1000000) * 1000 };
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR) continue;
}

static uint64_t step_us(const void *core, const engine_row_t *rows, uint32_t row_count)
{
    const stub_t *self = core;
    const config_t *config = self->options.config;
    uint64_t prompt_rows = 0, prompt_keys = 0, decode_rows = 0, decode_keys = 0;
    for (uint32_t i = 0; i < row_count; i++) {
        bool is_prompt = rows[i].first < self->slots[rows[i].slot].prompt_count;
        *(is_prompt ? &prompt_rows : &decode_rows) += rows[i].count;
        *(is_prompt ? &prompt_keys : &decode_keys) += rows[i].first + rows[i].count;
    }
    if (self->timings.decode.count > 0)
        return (uint64_t)((double)config->engine.stub_layers *
                          (step_table_us(&self->timings.prefill, (double)prompt_rows,
                                         (double)prompt_keys) +
                           step_table_us(&self->timings.decode, (double)decode_rows,
                                         (double)decode_keys)));
    return (decode_rows ? (uint64_t)config->engine.stub_token_us : 0) +
           prompt_rows * (uint64_t)config->engine.stub_prefill_token_ns / 1000;
}

/* Nothing is written before all rows are known to be sound.  A slot has at most one row in a step.
 */
static err_t step(void *core, const engine_row_t *rows, uint32_t row_count,
                  engine_result_t *results, uint32_t results_max, uint32_t *result_count,
                  uint64_t *model_us)
{
    stub_t *self = core;
    if (row_count == 0) return ERR_INVALID;
    for (uint32_t i = 0; i < row_count; i++) {
        err_t error = verify(self, &rows[i]);
        if (error != ERR_OK) return error;
    }
    results_t list = { .items = results, .max = results_max };
    for (uint32_t i = 0; i < row_count; i++) run_row(self, &rows[i], &list);
    *result_count = list.count;
    *model_us = step_us(self, rows, row_count);
    return ERR_OK;
}

/* In real time the step takes as long as it says; the simulator's clock is not ours to wait for. */
static err_t step_real(void *core, const engine_row_t *rows, uint32_t row_count,
                       engine_result_t *results, uint32_t results_max, uint32_t *result_count,
                       uint64_t *model_us)
{
    err_t error = step(core, rows, row_count, results, results_max, result_count, model_us);
    if (error == ERR_OK && *model_us > 0) sleep_us(*model_us);
    return error;
}

/* A group of stubs needs nothing of each other: wait for work. */
static void idle(void *core, const uint32_t *word, uint32_t seen, uint64_t wait_us)
{
    struct timespec most = { .tv_sec = (time_t)(wait_us / 1000000),
                             .tv_nsec = (long)(wait_us % 1000000) * 1000 };
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &most, NULL, 0);
}

static uint32_t end_tokens(const void *core, const uint32_t **ids)
{
    *ids = &((const stub_t *)core)->end_token;
    return 1;
}

/* The two differ in whether a step takes its time. */
/* clang-format off */
#define STUB_CLASS(called, stepping) \
    {                                \
        .name = called,              \
        .block_bytes = block_bytes,  \
        .open = open_stub,           \
        .close = close_stub,         \
        .start = start,              \
        .extend = extend,            \
        .append = append,            \
        .release = release,          \
        .step = stepping,            \
        .step_us = step_us,          \
        .idle = idle,                \
        .end_tokens = end_tokens,    \
    }
/* clang-format on */

const engine_class_t engine_stub_class = STUB_CLASS("stub", step_real);
const engine_class_t engine_stub_timeless_class = STUB_CLASS("stub without sleep", step);
