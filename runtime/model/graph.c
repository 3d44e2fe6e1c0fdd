/* runtime/model/graph.c - the layers of the model as a straight list of op calls, on scratch sized
 * at the start. */
#include "graph_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../invariant.h"

enum { ALIGNMENT = 64 };

/* ---- scratch ---- */

tensor_t graph_rows(const tensor_t *x, uint32_t first, uint32_t rows)
{
    tensor_t part = *x;
    invariant((uint64_t)first + rows <= x->rows);
    part.data = (char *)x->data + first * x->stride * dtype_bytes(x->dtype);
    part.rows = rows;
    return part;
}

tensor_t graph_head(const tensor_t *x, uint32_t rows)
{
    return graph_rows(x, 0, rows);
}

/* Hands out pieces of the arena.  Run twice: with arena NULL it only counts. */
typedef struct {
    char *arena;
    size_t used;
} carver_t;

static void *carve(carver_t *carver, size_t bytes)
{
    void *piece = carver->arena ? carver->arena + carver->used : NULL;
    carver->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
}

static tensor_t carve_tensor(carver_t *carver, dtype_t dtype, uint32_t rows, uint32_t cols)
{
    void *data = carve(carver, (size_t)rows * cols * dtype_bytes(dtype));
    return (tensor_t){ .data = data, .dtype = dtype, .rows = rows, .cols = cols, .stride = cols };
}

static ep_options_t local_group(const graph_options_t *options)
{
    const model_config_t *config = &options->model->config;
    return (ep_options_t){ .ranks = 1,
                           .rows_max = options->rows_max,
                           .hidden = config->hidden,
                           .top_k = config->top_k,
                           .experts = config->experts,
                           .carrier = options->ops->carrier };
}

static uint32_t work_max(const graph_options_t *options)
{
    ep_options_t group = local_group(options);
    group.ranks = options->model->ranks;
    return ep_work_max(&group);
}

static void carve_attention(graph_t *self, carver_t *carver)
{
    const model_config_t *c = &self->options.model->config;
    dtype_t type = self->options.ops->activation;
    uint32_t rows = self->options.rows_max, context = self->options.context_max, heads = c->heads;
    if (c->q_lora) self->query_low = carve_tensor(carver, type, rows, c->q_lora);
    if (c->q_lora) self->query_normed = carve_tensor(carver, type, rows, c->q_lora);
    self->query = carve_tensor(carver, type, rows, heads * (c->nope + c->rope));
    self->kv = carve_tensor(carver, type, rows, c->kv_lora + c->rope);
    self->attended = carve_tensor(carver, type, rows, heads * c->value);
    self->past_latent = carve_tensor(carver, type, context, c->kv_lora);
    self->past_rope = carve_tensor(carver, type, context, c->rope);
    self->past_kv = carve_tensor(carver, type, context, heads * (c->nope + c->value));
    self->absorbed = carve_tensor(carver, type, rows, heads * (c->kv_lora + c->rope));
    self->attended_latent = carve_tensor(carver, type, rows, heads * c->kv_lora);
    self->rope_table = carve(carver, (size_t)context * c->rope * sizeof(float));
}

static void carve_ffn(graph_t *self, carver_t *carver)
{
    const model_config_t *c = &self->options.model->config;
    dtype_t type = self->options.ops->activation;
    uint32_t rows = self->options.rows_max, work = work_max(&self->options);
    uint32_t shared = c->shared_experts * c->expert_intermediate;
    uint32_t wide = c->dense_intermediate > shared ? c->dense_intermediate : shared;
    self->gate_up = carve_tensor(carver, type, rows, 2 * wide);
    self->activated = carve_tensor(carver, type, rows, wide);
    self->expert_gate_up = carve_tensor(carver, type, work, 2 * c->expert_intermediate);
    self->expert_activated = carve_tensor(carver, type, work, c->expert_intermediate);
    self->expert_ids = carve(carver, (size_t)rows * c->top_k * sizeof(uint32_t));
    self->expert_weights = carve(carver, (size_t)rows * c->top_k * sizeof(float));
}

static size_t carve_all(graph_t *self, void *arena)
{
    const model_config_t *c = &self->options.model->config;
    dtype_t type = self->options.ops->activation;
    carver_t carver = { arena, 0 };
    uint32_t rows = self->options.rows_max;
    self->residual = carve_tensor(&carver, type, rows, c->hidden);
    self->normed = carve_tensor(&carver, type, rows, c->hidden);
    self->branch = carve_tensor(&carver, type, rows, c->hidden);
    self->last = carve_tensor(&carver, type, rows, c->hidden);
    self->positions = carve(&carver, rows * sizeof(uint32_t));
    carve_attention(self, &carver);
    carve_ffn(self, &carver);
    return carver.used;
}

/* The judge's attention holds all keys as F32 beside its rows; products hold a few rows. */
size_t graph_queue_bytes(const model_config_t *c, uint32_t rows_max, uint32_t context_max,
                         uint32_t threads)
{
    size_t key = (size_t)c->heads * (c->nope + c->value) + c->kv_lora + 2 * (size_t)c->rope + 16;
    size_t row = (size_t)c->heads * (c->kv_lora + c->rope + c->nope + c->value) +
                 4 * (size_t)c->hidden + 2 * (size_t)c->dense_intermediate + c->vocab;
    return context_max * key * sizeof(float) + (rows_max + (size_t)64) * row * sizeof(float) +
           (size_t)threads * QUEUE_THREAD_BYTES;
}

/* ---- a graph ---- */

static void set_shapes(graph_t *self)
{
    const model_config_t *c = &self->options.model->config;
    self->heads = (heads_t){ .heads = c->heads,
                             .nope = c->nope,
                             .rope = c->rope,
                             .value = c->value,
                             .latent = c->kv_lora,
                             .scale = c->softmax_scale };
    self->cache =
        (cache_t){ .data = self->options.cache,
                   .dtype = self->options.is_cache_f32 ? DTYPE_F32 : DTYPE_BF16,
                   .layers = c->layers,
                   .block_tokens = BLOCK_TOKENS,
                   .latent = c->kv_lora,
                   .rope = c->rope,
                   .block_stride = (size_t)c->layers * BLOCK_TOKENS * (c->kv_lora + c->rope) };
}

/* Pages of the arena that no step touches cost nothing: a large context is paid for when it comes.
 */
static bool allocate(graph_t *self)
{
    self->arena_bytes = carve_all(self, NULL);
    void *arena = mmap(NULL, self->arena_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) return false;
    self->arena = arena;
    carve_all(self, arena);
    return true;
}

static bool join_group(graph_t *self)
{
    self->group = self->options.group;
    if (self->group) return true;
    ep_options_t options = local_group(&self->options);
    self->own_group = self->group = ep_group_new(&options);
    return self->group && !ep_group_join(self->group);
}

graph_t *graph_new(const graph_options_t *options, error_text_t *why)
{
    const model_config_t *config = &options->model->config;
    invariant(options->group || options->model->ranks == 1);
    graph_t *self = calloc(1, sizeof *self);
    if (self) self->options = *options;
    if (!self || !allocate(self) || !join_group(self)) {
        snprintf(why->text, sizeof why->text,
                 "no memory for steps of %u rows and contexts of %u tokens", options->rows_max,
                 options->context_max);
        graph_destroy(&self);
        return NULL;
    }
    set_shapes(self);
    model_rope_table(config, self->rope_table, options->context_max);
    return self;
}

void graph_destroy(graph_t **self)
{
    graph_t *closing = *self;
    *self = NULL;
    if (!closing) return;
    ep_group_destroy(&closing->own_group);
    if (closing->arena) munmap(closing->arena, closing->arena_bytes);
    free(closing);
}

/* ---- one layer ---- */

static bool make_query(graph_t *self, const layer_t *layer, uint32_t rows)
{
    const ops_t *ops = self->options.ops;
    queue_t *q = self->options.queue;
    const model_config_t *c = &self->options.model->config;
    uint32_t head = c->nope + c->rope;
    tensor_t x = graph_head(&self->normed, rows), query = graph_head(&self->query, rows);
    if (c->q_lora) {
        tensor_t low = graph_head(&self->query_low, rows);
        tensor_t normed = graph_head(&self->query_normed, rows);
        if (ops->gemm(q, &low, &x, &layer->q_a) ||
            ops->rmsnorm(q, &normed, &low, &layer->q_a_norm, c->rms_eps))
            return false;
        x = normed;
    }
    return !ops->gemm(q, &query, &x, &layer->q_b) &&
           !ops->rope(q, &query, c->heads, head, c->nope, c->rope, self->rope_table,
                      self->positions);
}

static bool write_cache(graph_t *self, const layer_t *layer, const graph_step_t *step)
{
    const ops_t *ops = self->options.ops;
    queue_t *q = self->options.queue;
    tensor_t x = graph_head(&self->normed, step->row_count);
    tensor_t kv = graph_head(&self->kv, step->row_count);
    return !ops->gemm(q, &kv, &x, &layer->kv_a) &&
           !ops->kv_write(q, &self->cache, &kv, &layer->kv_a_norm,
                          self->options.model->config.rms_eps, self->rope_table, self->positions,
                          step->sequences, step->sequence_count);
}

/* From normed to branch. */
static bool attend(graph_t *self, const layer_t *layer, const graph_step_t *step)
{
    tensor_t attended = graph_head(&self->attended, step->row_count);
    tensor_t branch = graph_head(&self->branch, step->row_count);
    bool is_done = make_query(self, layer, step->row_count) && write_cache(self, layer, step);
    if (is_done)
        is_done = step->is_decode ? graph_attend_decode(self, layer, step)
                                  : graph_attend_prefill(self, layer, step);
    return is_done && !self->options.ops->gemm(self->options.queue, &branch, &attended, &layer->o);
}

/* The dense FFN or the shared experts: from normed to branch. */
static bool feed_forward(graph_t *self, const layer_t *layer, uint32_t rows)
{
    const ops_t *ops = self->options.ops;
    queue_t *q = self->options.queue;
    tensor_t x = graph_head(&self->normed, rows), out = graph_head(&self->branch, rows);
    tensor_t gate_up = graph_head(&self->gate_up, rows);
    tensor_t activated = graph_head(&self->activated, rows);
    gate_up.cols = layer->gate_up.rows;
    gate_up.stride = gate_up.cols;
    activated.cols = layer->down.cols;
    activated.stride = activated.cols;
    return !ops->gemm(q, &gate_up, &x, &layer->gate_up) &&
           !ops->silu_mul(q, &activated, &gate_up) && !ops->gemm(q, &out, &activated, &layer->down);
}

/* This rank's experts on the rows that all ranks sent. */
static bool run_experts(graph_t *self, const layer_t *layer, const ep_work_t *work)
{
    const ops_t *ops = self->options.ops;
    queue_t *q = self->options.queue;
    tensor_t gate_up = graph_head(&self->expert_gate_up, work->count);
    tensor_t activated = graph_head(&self->expert_activated, work->count);
    if (!work->count) return true;
    groups_t groups = { .first = work->offsets, .count = self->options.model->experts_here };
    return !ops->grouped_gemm(q, &gate_up, &work->rows, layer->expert_gate_up, &groups) &&
           !ops->silu_mul(q, &activated, &gate_up) &&
           !ops->grouped_gemm(q, &work->outputs, &activated, layer->expert_down, &groups);
}

static err_t mix_experts(graph_t *self, const layer_t *layer, uint32_t rows)
{
    const ops_t *ops = self->options.ops;
    queue_t *q = self->options.queue;
    const model_config_t *c = &self->options.model->config;
    tensor_t x = graph_head(&self->normed, rows), out = graph_head(&self->branch, rows), outputs;
    const uint32_t *index;
    ep_work_t work;
    if (rows && ops->gate(q, self->expert_ids, self->expert_weights, &x, &layer->gate,
                          layer->gate_bias, &c->gate))
        return ERR_ENGINE;
    err_t error = ep_dispatch(self->group, ops, q, &x, self->expert_ids, &work);
    if (error) return error;
    if (!run_experts(self, layer, &work)) return ERR_ENGINE;
    if (rows && !feed_forward(self, layer, rows)) return ERR_ENGINE;
    error = ep_combine(self->group, &outputs, &index);
    if (error || !rows) return error;
    return ops->combine(q, &out, &outputs, index, self->expert_weights, c->top_k) ? ERR_ENGINE
                                                                                  : ERR_OK;
}

/* residual += branch (if there is one), normed = rmsnorm(residual). */
static bool enter_branch(graph_t *self, const tensor_t *weight, uint32_t rows, bool has_branch)
{
    tensor_t normed = graph_head(&self->normed, rows), residual = graph_head(&self->residual, rows);
    tensor_t branch = graph_head(&self->branch, rows);
    return !self->options.ops->add_rmsnorm(self->options.queue, &normed, NULL, &residual,
                                           has_branch ? &branch : NULL, weight,
                                           self->options.model->config.rms_eps);
}

/* For tests: what the stream holds now. */
static bool show_hidden(graph_t *self, const graph_step_t *step, uint32_t index)
{
    uint32_t rows = step->row_count, cols = self->residual.cols;
    if (!step->hidden || !rows) return true;
    tensor_t from = graph_head(&self->residual, rows);
    tensor_t to = { .data = step->hidden + (size_t)index * rows * cols,
                    .dtype = DTYPE_F32,
                    .rows = rows,
                    .cols = cols,
                    .stride = cols };
    return !self->options.ops->cast(self->options.queue, &to, &from);
}

static err_t run_layer(graph_t *self, uint32_t index, const graph_step_t *step)
{
    const model_t *model = self->options.model;
    const layer_t *layer = &model->layers[index];
    uint32_t rows = step->row_count;
    bool is_dense = index < model->config.dense_layers;
    self->cache.layer = index;
    if (!rows) return is_dense ? ERR_OK : mix_experts(self, layer, 0);
    if (!enter_branch(self, &layer->input_norm, rows, index > 0) ||
        !show_hidden(self, step, index) || !attend(self, layer, step) ||
        !enter_branch(self, &layer->post_norm, rows, true))
        return ERR_ENGINE;
    if (!is_dense) return mix_experts(self, layer, rows);
    return feed_forward(self, layer, rows) ? ERR_OK : ERR_ENGINE;
}

/* ---- a step ---- */

static void set_positions(graph_t *self, const graph_step_t *step)
{
    const graph_options_t *options = &self->options;
    invariant(step->row_count <= options->rows_max &&
              step->sequence_count <= options->sequences_max);
    uint32_t row = 0;
    for (uint32_t i = 0; i < step->sequence_count; i++) {
        const sequence_t *sequence = &step->sequences[i];
        invariant(sequence->first_row == row && sequence->rows <= step->row_count - row);
        invariant(sequence->first_position < options->context_max &&
                  sequence->rows <= options->context_max - sequence->first_position);
        for (uint32_t r = 0; r < sequence->rows; r++)
            self->positions[row++] = sequence->first_position + r;
    }
    invariant(row == step->row_count);
}

static bool embed(graph_t *self, const graph_step_t *step)
{
    tensor_t out = graph_head(&self->residual, step->row_count);
    return !step->row_count || !self->options.ops->embed(self->options.queue, &out,
                                                         &self->options.model->embed, step->ids);
}

/* The head runs only for rows whose logits are wanted. */
static bool make_logits(graph_t *self, const graph_step_t *step)
{
    const ops_t *ops = self->options.ops;
    queue_t *q = self->options.queue;
    const model_t *model = self->options.model;
    uint32_t count = step->logit_row_count;
    if (!count) return true;
    tensor_t residual = graph_head(&self->residual, step->row_count);
    tensor_t picked = graph_head(&self->last, count), normed = graph_head(&self->normed, count);
    tensor_t logits = { .data = step->logits,
                        .dtype = DTYPE_F32,
                        .rows = count,
                        .cols = model->config.vocab,
                        .stride = model->config.vocab };
    return !ops->gather_rows(q, &picked, &residual, step->logit_rows) &&
           !ops->rmsnorm(q, &normed, &picked, &model->norm, model->config.rms_eps) &&
           !ops->gemm(q, &logits, &normed, &model->head);
}

static bool finish(graph_t *self, const graph_step_t *step)
{
    const model_t *model = self->options.model;
    uint32_t rows = step->row_count;
    if (!rows) return true;
    if (!enter_branch(self, &model->norm, rows, true)) return false;
    if (step->hidden) {
        tensor_t kept = self->residual;
        self->residual = self->normed;
        bool is_done = show_hidden(self, step, model->config.layers);
        self->residual = kept;
        if (!is_done) return false;
    }
    return make_logits(self, step);
}

err_t graph_step(graph_t *self, const graph_step_t *step)
{
    set_positions(self, step);
    if (!embed(self, step)) return ERR_ENGINE;
    for (uint32_t i = 0; i < self->options.model->config.layers; i++) {
        err_t error = run_layer(self, i, step);
        if (error) return error;
    }
    return finish(self, step) ? ERR_OK : ERR_ENGINE;
}
