/* runtime/engine/solo.c - loads a model and runs one sequence on it, prompt in chunks, then token
 * by token. */
#include "solo.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../model/graph.h"
#include "../model/sample.h"

enum { CHUNK_ROWS = 256 };

struct solo {
    model_t *model;
    const ops_t *ops;
    queue_t *queue;
    graph_t *graph;
    void *cache;
    size_t cache_bytes;
    uint32_t context_max;
    uint32_t *blocks; /* 0, 1, 2...: one sequence owns the whole cache */
    uint32_t *tokens; /* [context_max] */
    uint32_t token_count;
    float *logits; /* of the last row */
};

__attribute__((format(printf, 3, 4))) static err_t refuse(error_text_t *why, err_t error,
                                                          const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why->text, sizeof why->text, format, arguments);
    va_end(arguments);
    return error;
}

/* Pages of the cache that no token reaches cost nothing. */
static bool make_memory(solo_t *self, uint32_t threads)
{
    const model_config_t *config = &self->model->config;
    uint32_t blocks = (self->context_max + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    self->cache_bytes = blocks * model_block_bytes(config);
    self->cache = mmap(NULL, self->cache_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (self->cache == MAP_FAILED) self->cache = NULL;
    self->blocks = calloc(blocks, sizeof *self->blocks);
    self->tokens = calloc(self->context_max, sizeof *self->tokens);
    self->logits = calloc(config->vocab, sizeof *self->logits);
    size_t scratch = graph_queue_bytes(config, CHUNK_ROWS, self->context_max, threads);
    self->queue = queue_new_cpu(scratch, threads);
    for (uint32_t i = 0; self->blocks && i < blocks; i++) self->blocks[i] = i;
    return self->cache && self->blocks && self->tokens && self->logits && self->queue;
}

static err_t open_solo(solo_t *self, const solo_options_t *options, error_text_t *why)
{
    self->ops = ops_find(options->ops);
    if (!self->ops)
        return refuse(why, ERR_UNSUPPORTED, "operations %s; allowed: what this machine can run",
                      options->ops);
    weights_options_t weights = { .dir = options->dir,
                                  .ops = self->ops,
                                  .ranks = 1,
                                  .progress = options->progress,
                                  .progress_context = options->progress_context };
    self->model = model_load(&weights, why);
    if (!self->model) return ERR_MODEL;
    uint32_t context = self->model->config.context;
    self->context_max =
        options->context_max && options->context_max < context ? options->context_max : context;
    if (!make_memory(self, options->threads))
        return refuse(why, ERR_NO_SPACE, "no memory for a context of %u tokens", self->context_max);
    graph_options_t graph = { .model = self->model,
                              .ops = self->ops,
                              .queue = self->queue,
                              .rows_max = CHUNK_ROWS,
                              .sequences_max = 1,
                              .context_max = self->context_max,
                              .cache = self->cache };
    self->graph = graph_new(&graph, why);
    return self->graph ? ERR_OK : ERR_NO_SPACE;
}

solo_t *solo_new(const solo_options_t *options, error_text_t *why)
{
    solo_t *self = calloc(1, sizeof *self);
    if (!self) {
        (void)refuse(why, ERR_NO_SPACE, "no memory");
        return NULL;
    }
    if (open_solo(self, options, why)) solo_destroy(&self);
    return self;
}

void solo_destroy(solo_t **self)
{
    solo_t *closing = *self;
    *self = NULL;
    if (!closing) return;
    graph_destroy(&closing->graph);
    queue_destroy(&closing->queue);
    model_destroy(&closing->model);
    if (closing->cache) munmap(closing->cache, closing->cache_bytes);
    free(closing->blocks);
    free(closing->tokens);
    free(closing->logits);
    free(closing);
}

const model_config_t *solo_config(const solo_t *self)
{
    return &self->model->config;
}

const char *solo_ops(const solo_t *self)
{
    return self->ops->name;
}

/* Tokens first .. first + rows - 1; logits of the last of them. */
static err_t compute(solo_t *self, uint32_t first, uint32_t rows, bool is_decode)
{
    uint32_t last = rows - 1;
    sequence_t sequence = { .rows = rows, .first_position = first, .blocks = self->blocks };
    graph_step_t step = { .ids = self->tokens + first,
                          .sequences = &sequence,
                          .sequence_count = 1,
                          .row_count = rows,
                          .is_decode = is_decode,
                          .logit_rows = &last,
                          .logit_row_count = first + rows == self->token_count,
                          .logits = self->logits };
    return graph_step(self->graph, &step);
}

static err_t take_prompt(solo_t *self, const solo_request_t *request, error_text_t *why)
{
    uint32_t vocab = self->model->config.vocab;
    if (!request->count)
        return refuse(why, ERR_INVALID, "the prompt is empty; allowed: 1 token or more");
    if (request->count >= self->context_max)
        return refuse(why, ERR_CONTEXT, "the prompt has %u tokens; allowed: up to %u",
                      request->count, self->context_max - 1);
    for (uint32_t i = 0; i < request->count; i++)
        if (request->ids[i] >= vocab)
            return refuse(why, ERR_INVALID, "id %u at position %u; allowed: 0 to %u",
                          request->ids[i], i, vocab - 1);
    memcpy(self->tokens, request->ids, request->count * sizeof *self->tokens);
    self->token_count = request->count;
    return ERR_OK;
}

static err_t prefill(solo_t *self)
{
    for (uint32_t first = 0; first < self->token_count; first += CHUNK_ROWS) {
        uint32_t left = self->token_count - first;
        err_t error = compute(self, first, left < CHUNK_ROWS ? left : CHUNK_ROWS, false);
        if (error) return error;
    }
    return ERR_OK;
}

static solo_token_t choose(solo_t *self, const solo_request_t *request, uint32_t index)
{
    engine_result_t result = { 0 };
    const sampler_t sampler = { self->ops, self->queue, self->model->config.vocab };
    sample_context_t context = { .sampling = &request->sampling,
                                 .tokens = self->tokens,
                                 .token_count = self->token_count,
                                 .generated = index };
    sample_token(&sampler, self->logits, &context, &result);
    solo_token_t token = { .index = index,
                           .id = result.token,
                           .logit = self->logits[result.token] };
    sample_logprobs(&sampler, self->logits, result.token, request->sampling.top_logprobs, &result);
    token.top_count = result.top_count;
    for (uint32_t i = 0; i < result.top_count; i++) {
        token.top_ids[i] = result.top_ids[i];
        token.top_logits[i] = self->logits[result.top_ids[i]];
    }
    return token;
}

static bool is_end(const solo_t *self, const solo_request_t *request, uint32_t id)
{
    const model_config_t *config = &self->model->config;
    for (uint32_t i = 0; i < config->end_token_count; i++)
        if (config->end_tokens[i] == id) return !request->sampling.ignore_eos;
    return false;
}

err_t solo_run(solo_t *self, const solo_request_t *request, error_text_t *why)
{
    err_t error = take_prompt(self, request, why);
    if (error) return error;
    if (prefill(self)) return refuse(why, ERR_ENGINE, "the model refused the prompt");
    for (uint32_t index = 0; index < request->tokens_max; index++) {
        solo_token_t token = choose(self, request, index);
        if (!request->on_token(request->context, &token) || is_end(self, request, token.id)) break;
        if (index + 1 == request->tokens_max || self->token_count == self->context_max) break;
        self->tokens[self->token_count++] = token.id;
        if (compute(self, self->token_count - 1, 1, true))
            return refuse(why, ERR_ENGINE, "the model refused token %u", index);
    }
    return ERR_OK;
}
