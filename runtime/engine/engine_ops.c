/* runtime/engine/engine_ops.c - the engine that computes: sequences in slots, steps on the model's
 * graph.
 *
 * A step is one pass over its prompt rows and one over its decode rows.  In an expert-parallel
 * group all ranks make the same passes: a step begins with one word that tells who needs which
 * pass, and a pass that nobody needs is left out; ranks without rows take part with none.  Which
 * form of attention a row takes depends on the row alone: tokens of the prompt are prompt rows,
 * generated ones are decode rows, those of an earlier attempt too.  So neither chunks nor
 * neighbours nor a new beginning change a result.
 */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../base/config.h"
#include "../base/log.h"
#include "../model/graph.h"
#include "../model/sample.h"

enum { PASS_PREFILL, PASS_DECODE, PASSES };
enum { PROGRESS_LINE_SECONDS = 5 };

typedef struct {
    bool is_open;
    sampling_t sampling;
    uint32_t *tokens; /* [context_max + 1] */
    uint32_t *blocks; /* [blocks_max] */
    uint32_t token_count, prompt_count, block_count;
    uint32_t bias_ids[LOGIT_BIAS_MAX];
    float bias_values[LOGIT_BIAS_MAX];
    uint32_t bias_count;
} slot_t;

/* What one pass of a step computes. */
typedef struct {
    uint32_t *ids;         /* [rows_max] */
    sequence_t *sequences; /* [sequences_max] */
    uint32_t *logit_rows;  /* [rows_max] */
    uint32_t row_count, sequence_count, logit_row_count;
} pass_t;

typedef struct {
    engine_core_options_t options;
    uint32_t blocks_max;  /* of one slot */
    uint32_t context_max; /* of a sequence that the model can compute; a pool may hold more */
    slot_t *slots;
    pass_t passes[PASSES];
    uint32_t *first_logits; /* [sequences_max]: where the logits of each entry of the step begin in
                               its pass */
    float *logits; /* [rows_max][vocab]: the prefill pass's first, then the decode pass's */
    model_t *model;
    queue_t *queue;
    ep_group_t *group; /* NULL: a group of one */
    graph_t *graph;
    sampler_t sampler;
} engine_t;

/* ---- opened and closed ---- */

static size_t block_bytes(const config_t *config, error_text_t *why)
{
    model_config_t model;
    return model_config_read(&model, config->model.path, why) ? 0 : model_block_bytes(&model);
}

static void close_engine(void **core)
{
    engine_t *self = *core;
    *core = NULL;
    if (!self) return;
    graph_destroy(&self->graph);
    ep_group_destroy(&self->group);
    queue_destroy(&self->queue);
    model_destroy(&self->model);
    for (uint32_t i = 0; self->slots && i < self->options.limits.slots; i++) {
        free(self->slots[i].tokens);
        free(self->slots[i].blocks);
    }
    for (int i = 0; i < PASSES; i++) {
        free(self->passes[i].ids);
        free(self->passes[i].sequences);
        free(self->passes[i].logit_rows);
    }
    free(self->slots);
    free(self->first_logits);
    free(self->logits);
    free(self);
}

/* Untouched pages cost nothing, so slots may be as long as the context allows. */
static bool make_slots(engine_t *self)
{
    const engine_limits_t *limits = &self->options.limits;
    self->blocks_max = limits->context_max / BLOCK_TOKENS + 1;
    self->slots = calloc(limits->slots, sizeof *self->slots);
    for (uint32_t i = 0; self->slots && i < limits->slots; i++) {
        slot_t *slot = &self->slots[i];
        slot->tokens = calloc(limits->context_max + (size_t)1, sizeof *slot->tokens);
        slot->blocks = calloc(self->blocks_max, sizeof *slot->blocks);
        if (!slot->tokens || !slot->blocks) return false;
    }
    return self->slots != NULL;
}

static bool make_passes(engine_t *self)
{
    const engine_limits_t *limits = &self->options.limits;
    for (int i = 0; i < PASSES; i++) {
        pass_t *pass = &self->passes[i];
        pass->ids = calloc(limits->rows_max, sizeof *pass->ids);
        pass->sequences = calloc(limits->sequences_max, sizeof *pass->sequences);
        pass->logit_rows = calloc(limits->rows_max, sizeof *pass->logit_rows);
        if (!pass->ids || !pass->sequences || !pass->logit_rows) return false;
    }
    size_t vocab = self->model->config.vocab;
    self->first_logits = calloc(limits->sequences_max, sizeof *self->first_logits);
    self->logits = calloc(limits->rows_max, vocab * sizeof *self->logits);
    return self->first_logits && self->logits;
}

static uint32_t ranks_of(const engine_core_options_t *options)
{
    const config_t *config = options->config;
    bool is_prefill = options->self.role == ROLE_prefill_worker;
    return (uint32_t)(is_prefill ? config->company.prefill_ep : config->company.decode_ep);
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Loading that takes long: a line now and then. */
typedef struct {
    address_t who;
    double told_s;
} loading_t;

static void log_progress(void *context, double fraction)
{
    loading_t *self = context;
    double now_s = seconds_now();
    if (now_s - self->told_s < PROGRESS_LINE_SECONDS) return;
    self->told_s = now_s;
    log_write(self->who, LOG_INFO, "ENGINE-LOADING", "%.0f %% of the weights", fraction * 100);
}

static err_t load(engine_t *self, const ops_t *ops, error_text_t *why)
{
    const engine_core_options_t *options = &self->options;
    uint32_t ranks = ranks_of(options);
    double began_s = seconds_now();
    loading_t loading = { options->self, began_s };
    bool is_told = options->progress != NULL;
    weights_options_t weights = { .dir = options->config->model.path,
                                  .ops = ops,
                                  .rank = options->self.index % ranks,
                                  .ranks = ranks,
                                  .progress = is_told ? options->progress : log_progress,
                                  .progress_context =
                                      is_told ? options->progress_context : &loading };
    self->model = model_load(&weights, why);
    if (!self->model) return ERR_MODEL;
    double seconds = seconds_now() - began_s;
    log_write(options->self, LOG_INFO, "ENGINE-LOADED",
              "%s with operations %s, rank %u of %u, in %.2f s", options->config->model.path,
              ops->name, weights.rank, ranks, seconds);
    return ERR_OK;
}

/* Where dispatch is fp8 even a group of one rounds its rows that way, so that results do not depend
 * on its size. */
static err_t open_group(engine_t *self, const ops_t *ops, error_text_t *why)
{
    const engine_core_options_t *options = &self->options;
    const model_config_t *model = &self->model->config;
    char path[4096];
    uint32_t ranks = self->model->ranks;
    snprintf(path, sizeof path, "%s/ep-%s-%u", options->directory,
             options->self.role == ROLE_prefill_worker ? "prefill" : "decode",
             options->self.index / ranks);
    ep_options_t group = { .path = ranks > 1 ? path : NULL,
                           .rank = self->model->rank,
                           .ranks = ranks,
                           .rows_max = options->limits.rows_max,
                           .hidden = model->hidden,
                           .top_k = model->top_k,
                           .experts = model->experts,
                           .carrier =
                               options->config->engine.dispatch ? DTYPE_F8E4M3 : ops->carrier,
                           .wait_ms = (uint32_t)options->config->timing.ep_wait_ms,
                           .who = options->self };
    self->group = ep_group_new(&group);
    if (self->group) return ERR_OK;
    snprintf(why->text, sizeof why->text,
             "the expert-parallel group's region %.200s cannot be used",
             group.path ? group.path : "in memory");
    return ERR_IO;
}

static err_t open_graph(engine_t *self, const ops_t *ops, error_text_t *why)
{
    const engine_limits_t *limits = &self->options.limits;
    uint32_t context = self->model->config.context;
    self->context_max = limits->context_max < context ? limits->context_max : context;
    uint32_t threads = (uint32_t)self->options.config->engine.threads;
    size_t scratch =
        graph_queue_bytes(&self->model->config, limits->rows_max, self->context_max, threads);
    self->queue = queue_new_cpu(scratch, threads);
    if (!self->queue || !make_slots(self) || !make_passes(self)) {
        snprintf(why->text, sizeof why->text, "no memory for %u sequences of %u tokens",
                 limits->slots, limits->context_max);
        return ERR_NO_SPACE;
    }
    self->sampler = (sampler_t){ ops, self->queue, self->model->config.vocab };
    graph_options_t graph = { .model = self->model,
                              .ops = ops,
                              .queue = self->queue,
                              .group = self->group,
                              .rows_max = limits->rows_max,
                              .sequences_max = limits->sequences_max,
                              .context_max = self->context_max,
                              .cache = self->options.pool };
    self->graph = graph_new(&graph, why);
    return self->graph ? ERR_OK : ERR_NO_SPACE;
}

static err_t check_pool(const engine_t *self, error_text_t *why)
{
    size_t needed = model_block_bytes(&self->model->config);
    if (self->options.block_bytes == needed) return ERR_OK;
    snprintf(why->text, sizeof why->text,
             "the pool's blocks have %zu bytes; allowed: %zu, the model's",
             self->options.block_bytes, needed);
    return ERR_CONFIG;
}

static err_t open_engine(void **core, const engine_core_options_t *options, error_text_t *why)
{
    config_word_t name = config_word(CONFIG_engine_ops, options->config->engine.ops);
    const ops_t *ops = ops_find(name.text);
    if (!ops) {
        snprintf(why->text, sizeof why->text,
                 "engine.ops is %s; allowed: what this machine can run", name.text);
        return ERR_UNSUPPORTED;
    }
    engine_t *self = calloc(1, sizeof *self);
    if (!self) return ERR_NO_SPACE;
    self->options = *options;
    err_t error = load(self, ops, why);
    if (!error) error = check_pool(self, why);
    if (!error) error = open_group(self, ops, why);
    if (!error) error = open_graph(self, ops, why);
    void *made = self;
    if (error) close_engine(&made);
    *core = made;
    return error;
}

/* ---- sequences ---- */

static slot_t *slot_at(engine_t *self, uint32_t index)
{
    invariant(index < self->options.limits.slots);
    return &self->slots[index];
}

/* Ids come from clients: one past the vocabulary would read past the embedding. */
static bool are_known(const engine_t *self, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] >= self->model->config.vocab) return false;
    return true;
}

/* What the model cannot compute: ids past its vocabulary, more tokens than its context. */
static bool is_usable(const engine_t *self, const engine_open_t *sequence)
{
    return sequence->token_count <= self->context_max &&
           sequence->generated <= sequence->token_count &&
           are_known(self, sequence->tokens, sequence->token_count);
}

/* A sequence that the model cannot compute stays open without tokens: its own steps fail, and
 * nobody else's. */
static err_t start(void *core, uint32_t index, const engine_open_t *sequence)
{
    engine_t *self = core;
    slot_t *slot = slot_at(self, index);
    invariant(!slot->is_open);
    if (!sequence->token_count || sequence->token_count > self->options.limits.context_max ||
        sequence->bias_count > LOGIT_BIAS_MAX)
        return ERR_INVALID;
    slot->is_open = true;
    slot->sampling = *sequence->sampling;
    slot->block_count = 0;
    slot->bias_count = sequence->bias_count;
    if (slot->bias_count) {
        memcpy(slot->bias_ids, sequence->bias_ids, slot->bias_count * sizeof(uint32_t));
        memcpy(slot->bias_values, sequence->bias_values, slot->bias_count * sizeof(float));
    }
    bool can_run = is_usable(self, sequence);
    slot->token_count = can_run ? sequence->token_count : 0;
    slot->prompt_count = can_run ? sequence->token_count - sequence->generated : 0;
    memcpy(slot->tokens, sequence->tokens, slot->token_count * sizeof(uint32_t));
    return ERR_OK;
}

static void extend(void *core, uint32_t index, const uint32_t *blocks, uint32_t count)
{
    engine_t *self = core;
    slot_t *slot = slot_at(self, index);
    invariant(slot->is_open && count <= self->blocks_max - slot->block_count);
    for (uint32_t i = 0; i < count; i++) {
        invariant(blocks[i] < self->options.blocks);
        slot->blocks[slot->block_count++] = blocks[i];
    }
}

static void append(void *core, uint32_t index, uint32_t token)
{
    engine_t *self = core;
    slot_t *slot = slot_at(self, index);
    invariant(slot->is_open && slot->token_count <= self->options.limits.context_max);
    slot->tokens[slot->token_count++] = token;
}

static void release(void *core, uint32_t index)
{
    slot_t *slot = slot_at(core, index);
    invariant(slot->is_open);
    slot->is_open = false;
}

/* ---- from rows to passes ---- */

static bool is_sound(const engine_t *self, const engine_row_t *row)
{
    invariant(row->slot < self->options.limits.slots);
    const slot_t *slot = &self->slots[row->slot];
    uint64_t end = (uint64_t)row->first + row->count;
    if (!slot->is_open || !row->count || end > slot->token_count) return false;
    if (row->first < slot->prompt_count && end > slot->prompt_count) return false;
    if (end > (uint64_t)slot->block_count * BLOCK_TOKENS || end > self->context_max) return false;
    if (!are_known(self, slot->tokens + row->first, row->count)) return false;
    return !row->is_last ||
           (end == slot->token_count && slot->token_count <= self->options.limits.context_max);
}

static int pass_of(const slot_t *slot, const engine_row_t *row)
{
    return row->first >= slot->prompt_count ? PASS_DECODE : PASS_PREFILL;
}

static bool wants_prompt(const slot_t *slot, uint32_t position)
{
    return slot->sampling.prompt_logprobs && position + 1 < slot->prompt_count;
}

/* Rows whose logits are wanted: those before prompt tokens that are to be reported, and the last.
 */
static void add_row(engine_t *self, uint32_t entry, const engine_row_t *row)
{
    const slot_t *slot = &self->slots[row->slot];
    pass_t *pass = &self->passes[pass_of(slot, row)];
    pass->sequences[pass->sequence_count++] = (sequence_t){ .first_row = pass->row_count,
                                                            .rows = row->count,
                                                            .first_position = row->first,
                                                            .blocks = slot->blocks };
    memcpy(pass->ids + pass->row_count, slot->tokens + row->first, row->count * sizeof *pass->ids);
    self->first_logits[entry] = pass->logit_row_count;
    for (uint32_t i = 0; i < row->count; i++)
        if (wants_prompt(slot, row->first + i) || (row->is_last && i + 1 == row->count))
            pass->logit_rows[pass->logit_row_count++] = pass->row_count + i;
    pass->row_count += row->count;
}

static err_t lay_out(engine_t *self, const engine_row_t *rows, uint32_t row_count)
{
    const engine_limits_t *limits = &self->options.limits;
    uint64_t total = 0;
    if (!row_count || row_count > limits->sequences_max) return ERR_INVALID;
    for (uint32_t i = 0; i < row_count; i++) {
        if (!is_sound(self, &rows[i])) return ERR_INVALID;
        total += rows[i].count;
    }
    if (total > limits->rows_max) return ERR_INVALID;
    for (uint32_t i = 0; i < row_count; i++) add_row(self, i, &rows[i]);
    return ERR_OK;
}

static void clear_passes(engine_t *self)
{
    for (int i = 0; i < PASSES; i++) {
        pass_t *pass = &self->passes[i];
        pass->row_count = pass->sequence_count = pass->logit_row_count = 0;
    }
}

/* ---- steps of the group ---- */

static float *logits_of(const engine_t *self, int pass)
{
    uint32_t before = pass == PASS_DECODE ? self->passes[PASS_PREFILL].logit_row_count : 0;
    return self->logits + (size_t)before * self->model->config.vocab;
}

static err_t run_pass(engine_t *self, int index)
{
    const pass_t *pass = &self->passes[index];
    graph_step_t step = { .ids = pass->ids,
                          .sequences = pass->sequences,
                          .sequence_count = pass->sequence_count,
                          .row_count = pass->row_count,
                          .is_decode = index == PASS_DECODE,
                          .logit_rows = pass->logit_rows,
                          .logit_row_count = pass->logit_row_count,
                          .logits = logits_of(self, index) };
    return graph_step(self->graph, &step);
}

/* One step of the whole group, with the rows in self->passes or none. */
static err_t step_group(engine_t *self)
{
    uint32_t mine = 0, all;
    for (uint32_t i = 0; i < PASSES; i++)
        if (self->passes[i].row_count) mine |= 1u << i;
    err_t error = ep_group_is_joined(self->group) ? ERR_OK : ep_group_join(self->group);
    if (error) return error;
    ep_group_ring(self->group);
    error = ep_group_agree(self->group, mine, &all);
    for (int i = 0; !error && i < PASSES; i++)
        if (all & (1u << i)) error = run_pass(self, i);
    if (error && error != ERR_EP_PEER) ep_group_break(self->group);
    return error;
}

/* ---- results ---- */

typedef struct {
    engine_result_t *items;
    uint32_t count, max;
} results_t;

static engine_result_t *add_result(results_t *results, uint32_t slot, uint32_t position)
{
    invariant(results->count < results->max);
    engine_result_t *result = &results->items[results->count++];
    memset(result, 0, sizeof *result);
    result->slot = slot;
    result->position = position;
    return result;
}

static void report_prompt(engine_t *self, const engine_row_t *row, uint32_t position,
                          const float *logits, results_t *results)
{
    const slot_t *slot = &self->slots[row->slot];
    engine_result_t *result = add_result(results, row->slot, position + 1);
    sample_logprobs(&self->sampler, logits, slot->tokens[position + 1], slot->sampling.top_logprobs,
                    result);
    result->is_prompt = 1;
}

static void choose_token(engine_t *self, const engine_row_t *row, const float *logits,
                         results_t *results)
{
    slot_t *slot = &self->slots[row->slot];
    engine_result_t *result = add_result(results, row->slot, slot->token_count);
    sample_context_t context = { .sampling = &slot->sampling,
                                 .tokens = slot->tokens,
                                 .token_count = slot->token_count,
                                 .generated = slot->token_count - slot->prompt_count,
                                 .bias_ids = slot->bias_ids,
                                 .bias_values = slot->bias_values,
                                 .bias_count = slot->bias_count };
    sample_token(&self->sampler, logits, &context, result);
    slot->tokens[slot->token_count++] = result->token;
}

static void report_row(engine_t *self, uint32_t entry, const engine_row_t *row, results_t *results)
{
    const slot_t *slot = &self->slots[row->slot];
    size_t vocab = self->model->config.vocab;
    const float *logits = logits_of(self, pass_of(slot, row)) + self->first_logits[entry] * vocab;
    for (uint32_t i = 0; i < row->count; i++) {
        if (!wants_prompt(slot, row->first + i)) continue;
        report_prompt(self, row, row->first + i, logits, results);
        logits += vocab;
    }
    if (row->is_last) choose_token(self, row, logits, results);
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static err_t step(void *core, const engine_row_t *rows, uint32_t row_count,
                  engine_result_t *results, uint32_t results_max, uint32_t *result_count,
                  uint64_t *model_us)
{
    engine_t *self = core;
    uint64_t began = now_us();
    clear_passes(self);
    err_t error = lay_out(self, rows, row_count);
    if (!error) error = step_group(self);
    if (error) return error;
    results_t list = { .items = results, .max = results_max };
    for (uint32_t i = 0; i < row_count; i++) report_row(self, i, &rows[i], &list);
    *result_count = list.count;
    *model_us = now_us() - began;
    return ERR_OK;
}

/* A follower's error is told to nobody here: the rank whose step it was has it too, and will step
 * again. */
static void idle(void *core, const uint32_t *word, uint32_t seen, uint64_t wait_us)
{
    engine_t *self = core;
    if (!ep_group_is_rung(self->group)) ep_group_wait(self->group, word, seen, wait_us);
    if (!ep_group_is_rung(self->group)) return;
    clear_passes(self);
    err_t error = ep_group_is_joined(self->group) ? step_group(self) : ep_group_join(self->group);
    if (error)
        log_write(self->options.self, LOG_DEBUG, "ENGINE-FOLLOW", "a step of another rank failed");
}

static uint32_t end_tokens(const void *core, const uint32_t **ids)
{
    const engine_t *self = core;
    *ids = self->model->config.end_tokens;
    return self->model->config.end_token_count;
}

const engine_class_t engine_ops_class = { .name = "model",
                                          .block_bytes = block_bytes,
                                          .open = open_engine,
                                          .close = close_engine,
                                          .start = start,
                                          .extend = extend,
                                          .append = append,
                                          .release = release,
                                          .step = step,
                                          .idle = idle,
                                          .end_tokens = end_tokens };
