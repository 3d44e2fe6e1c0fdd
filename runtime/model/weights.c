/* runtime/model/weights.c - gives every tensor of the graph its place in the checkpoint, once. */
#include "weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../invariant.h"
#include "safetensors.h"

enum { SCALE_BLOCK = 128, NAME_BYTES = 160, ALIGNMENT = 64 };

/* The model as its users see it, and what has to be freed with it. */
typedef struct {
    model_t model; /* first: a model_t pointer is a loaded_t pointer */
    const ops_t *ops;
    safetensors_t *files;
    void **owned;
    size_t owned_count, owned_capacity;
    const weights_options_t *options;
    size_t taken, expected; /* tensors, for progress */
    error_text_t *why;
} loaded_t;

/* ---- memory ---- */

static void *allocate(loaded_t *self, size_t bytes)
{
    if (self->owned_count == self->owned_capacity) {
        size_t capacity = self->owned_capacity * 2 + 64;
        void **owned = realloc(self->owned, capacity * sizeof *owned);
        if (!owned) return NULL;
        self->owned = owned;
        self->owned_capacity = capacity;
    }
    size_t rounded = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    void *memory = rounded > bytes ? aligned_alloc(ALIGNMENT, rounded) : NULL;
    if (memory) self->owned[self->owned_count++] = memory;
    return memory;
}

static uint32_t scale_blocks(uint32_t count)
{
    return (count + SCALE_BLOCK - 1) / SCALE_BLOCK;
}

/* ---- one tensor ---- */

typedef struct {
    const char *name;
    uint32_t rows, cols; /* rows 1: a vector is as good as a matrix of one row */
} wanted_t;

static void show_shape(const safetensor_t *tensor, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "[");
    for (uint32_t i = 0; i < tensor->dim_count && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%llu", i ? ", " : "",
                                 (unsigned long long)tensor->dims[i]);
    if (used < size) snprintf(text + used, size - used, "]");
}

static bool has_shape(const safetensor_t *tensor, wanted_t wanted)
{
    if (wanted.rows == 1 && tensor->dim_count == 1) return tensor->dims[0] == wanted.cols;
    return tensor->dim_count == 2 && tensor->dims[0] == wanted.rows &&
           tensor->dims[1] == wanted.cols;
}

static const safetensor_t *find(loaded_t *self, wanted_t wanted)
{
    char shape[256];
    const safetensor_t *tensor = safetensors_find(self->files, wanted.name);
    if (!tensor) {
        (void)model_refuse(self->why, "%.200s: tensor %s is missing", self->options->dir,
                           wanted.name);
        return NULL;
    }
    if (has_shape(tensor, wanted)) return tensor;
    show_shape(tensor, shape, sizeof shape);
    (void)model_refuse(
        self->why, "%.100s: tensor %s has shape %.120s; allowed: [%u, %u], as config.json says",
        safetensors_file(self->files, tensor), wanted.name, shape, wanted.rows, wanted.cols);
    return NULL;
}

static err_t read_dtype(loaded_t *self, const safetensor_t *tensor, dtype_t *out)
{
    static const struct {
        const char *name;
        dtype_t dtype;
    } known[] = { { "F32", DTYPE_F32 }, { "BF16", DTYPE_BF16 }, { "F8_E4M3", DTYPE_F8E4M3 } };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(tensor->dtype, known[i].name) != 0) continue;
        *out = known[i].dtype;
        return ERR_OK;
    }
    return model_refuse(self->why, "%.200s: tensor %s is %s; allowed: F8_E4M3, BF16, F32",
                        safetensors_file(self->files, tensor), tensor->name, tensor->dtype);
}

/* Bytes of a tensor where the processor can read them: in the mapping, or copied when they lie
 * askew. */
static void *place(loaded_t *self, const safetensor_t *tensor, size_t alignment)
{
    void *mapped = (void *)(uintptr_t)tensor->data;
    if ((uintptr_t)mapped % alignment == 0) return mapped;
    void *copy = allocate(self, tensor->bytes);
    if (copy)
        memcpy(copy, mapped, tensor->bytes);
    else
        (void)model_refuse(self->why, "no memory for %s", tensor->name);
    return copy;
}

static err_t take_scales(loaded_t *self, tensor_t *out, wanted_t wanted)
{
    char name[NAME_BYTES + sizeof "_scale_inv"];
    if (!self->model.config.is_fp8)
        return model_refuse(
            self->why, "%.200s: tensor %s is F8_E4M3, but config.json has no quantization_config",
            self->options->dir, wanted.name);
    snprintf(name, sizeof name, "%s_scale_inv", wanted.name);
    const safetensor_t *scales =
        find(self, (wanted_t){ name, scale_blocks(wanted.rows), scale_blocks(wanted.cols) });
    if (!scales) return ERR_MODEL;
    if (strcmp(scales->dtype, "F32") != 0)
        return model_refuse(self->why, "%.200s: tensor %s is %s; allowed: F32", self->options->dir,
                            name, scales->dtype);
    out->scales = place(self, scales, sizeof(float));
    out->scale_stride = scale_blocks(wanted.cols);
    return out->scales ? ERR_OK : ERR_MODEL;
}

static void report(loaded_t *self)
{
    self->taken++;
    if (self->options->progress && (self->taken % 64 == 0 || self->taken == self->expected))
        self->options->progress(self->options->progress_context,
                                (double)self->taken / (double)self->expected);
}

static err_t take_raw(loaded_t *self, tensor_t *out, wanted_t wanted)
{
    dtype_t dtype = DTYPE_F32;
    const safetensor_t *tensor = find(self, wanted);
    if (!tensor) return ERR_MODEL;
    err_t error = read_dtype(self, tensor, &dtype);
    if (error) return error;
    *out = (tensor_t){
        .dtype = dtype, .rows = wanted.rows, .cols = wanted.cols, .stride = wanted.cols
    };
    out->data = place(self, tensor, dtype_bytes(dtype));
    if (!out->data) return ERR_MODEL;
    report(self);
    return dtype == DTYPE_F8E4M3 ? take_scales(self, out, wanted) : ERR_OK;
}

/* Norms, embedding and router are read by plain rows: block scales would be one dtype too many
 * there. */
static err_t take_plain(loaded_t *self, tensor_t *out, wanted_t wanted)
{
    err_t error = take_raw(self, out, wanted);
    if (!error && out->dtype == DTYPE_F8E4M3)
        error = model_refuse(self->why, "%.200s: tensor %s is F8_E4M3; allowed: BF16, F32",
                             self->options->dir, wanted.name);
    return error;
}

/* ---- weights of products ---- */

/* The layout that the chosen table of operations wants, beside the raw bytes. */
static err_t prepare(loaded_t *self, tensor_t *w, const char *name)
{
    size_t bytes = 0;
    int status = self->ops->prepare_size(w, &bytes);
    if (!status && !bytes) return ERR_OK;
    void *packed = status ? NULL : allocate(self, bytes);
    if (!packed)
        return model_refuse(self->why, "tensor %s: %s", name,
                            status ? "the operations do not take its shape" : "no memory");
    if (self->ops->prepare(w, packed))
        return model_refuse(self->why, "tensor %s: cannot be prepared for %s", name,
                            self->ops->name);
    w->packed = packed;
    return ERR_OK;
}

static err_t take(loaded_t *self, tensor_t *out, wanted_t wanted)
{
    err_t error = take_raw(self, out, wanted);
    return error ? error : prepare(self, out, wanted.name);
}

static void copy_half(const tensor_t *fused, const tensor_t *half, uint32_t first_row)
{
    size_t row_bytes = half->cols * dtype_bytes(half->dtype);
    memcpy((char *)fused->data + first_row * row_bytes, half->data, half->rows * row_bytes);
    if (!half->scales) return;
    size_t scale_row = first_row / SCALE_BLOCK;
    memcpy(fused->scales + scale_row * half->scale_stride, half->scales,
           (size_t)scale_blocks(half->rows) * half->scale_stride * sizeof(float));
}

/* gate over up in one tensor, so that one product computes both.  Halves are whole scale blocks
 * (config.c). */
static err_t fuse(loaded_t *self, tensor_t *out, const tensor_t *gate, const tensor_t *up)
{
    size_t scales = 2 * (size_t)scale_blocks(gate->rows) * gate->scale_stride * sizeof(float);
    *out = *gate;
    out->rows = gate->rows + up->rows;
    if (gate->scales) out->scales = allocate(self, scales);
    out->data = allocate(self, (size_t)out->rows * out->cols * dtype_bytes(out->dtype));
    if (!out->data || (gate->scales && !out->scales))
        return model_refuse(self->why, "no memory for weights");
    copy_half(out, gate, 0);
    copy_half(out, up, gate->rows);
    return ERR_OK;
}

/* Once the operations have their own layout the fused bytes would be a second copy of most of the
 * model. */
static void drop_raw(loaded_t *self, tensor_t *fused, size_t owned_index)
{
    invariant(self->owned[owned_index] == fused->data);
    free(fused->data);
    self->owned[owned_index] = self->owned[--self->owned_count];
    fused->data = NULL;
}

static err_t take_gate_up(loaded_t *self, tensor_t *out, const char *prefix, uint32_t intermediate)
{
    char gate_name[NAME_BYTES], up_name[NAME_BYTES];
    tensor_t gate, up;
    snprintf(gate_name, sizeof gate_name, "%.120s.gate_proj.weight", prefix);
    snprintf(up_name, sizeof up_name, "%.120s.up_proj.weight", prefix);
    uint32_t hidden = self->model.config.hidden;
    err_t error = take_raw(self, &gate, (wanted_t){ gate_name, intermediate, hidden });
    if (!error) error = take_raw(self, &up, (wanted_t){ up_name, intermediate, hidden });
    if (error) return error;
    if (gate.dtype != up.dtype)
        return model_refuse(self->why,
                            "%.200s: tensors %s and %s differ in dtype; allowed: the same",
                            self->options->dir, gate_name, up_name);
    error = fuse(self, out, &gate, &up);
    size_t raw = self->owned_count - 1;
    if (!error) error = prepare(self, out, gate_name);
    if (!error && out->packed) drop_raw(self, out, raw);
    return error;
}

static err_t take_ffn(loaded_t *self, tensor_t *gate_up, tensor_t *down, const char *prefix,
                      uint32_t intermediate)
{
    char name[NAME_BYTES];
    err_t error = take_gate_up(self, gate_up, prefix, intermediate);
    snprintf(name, sizeof name, "%.120s.down_proj.weight", prefix);
    if (!error)
        error = take(self, down, (wanted_t){ name, self->model.config.hidden, intermediate });
    return error;
}

/* ---- one layer ---- */

typedef struct {
    tensor_t *out;
    const char *suffix;
    uint32_t rows, cols;
    bool is_plain;
} slot_t;

static err_t take_slots(loaded_t *self, uint32_t layer, const slot_t *slots, size_t count)
{
    char name[NAME_BYTES];
    for (size_t i = 0; i < count; i++) {
        const slot_t *slot = &slots[i];
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", layer, slot->suffix);
        wanted_t wanted = { name, slot->rows, slot->cols };
        err_t error =
            slot->is_plain ? take_plain(self, slot->out, wanted) : take(self, slot->out, wanted);
        if (error) return error;
    }
    return ERR_OK;
}

static err_t take_query(loaded_t *self, uint32_t index)
{
    const model_config_t *config = &self->model.config;
    layer_t *layer = &self->model.layers[index];
    uint32_t rows = config->heads * (config->nope + config->rope);
    const slot_t direct[] = { { &layer->q_b, "self_attn.q_proj", rows, config->hidden, false } };
    const slot_t low_rank[] = {
        { &layer->q_a, "self_attn.q_a_proj", config->q_lora, config->hidden, false },
        { &layer->q_a_norm, "self_attn.q_a_layernorm", 1, config->q_lora, true },
        { &layer->q_b, "self_attn.q_b_proj", rows, config->q_lora, false },
    };
    return config->q_lora ? take_slots(self, index, low_rank, 3)
                          : take_slots(self, index, direct, 1);
}

static err_t take_attention(loaded_t *self, uint32_t index)
{
    const model_config_t *c = &self->model.config;
    layer_t *layer = &self->model.layers[index];
    const slot_t slots[] = {
        { &layer->input_norm, "input_layernorm", 1, c->hidden, true },
        { &layer->post_norm, "post_attention_layernorm", 1, c->hidden, true },
        { &layer->kv_a, "self_attn.kv_a_proj_with_mqa", c->kv_lora + c->rope, c->hidden, false },
        { &layer->kv_a_norm, "self_attn.kv_a_layernorm", 1, c->kv_lora, true },
        { &layer->kv_b, "self_attn.kv_b_proj", c->heads * (c->nope + c->value), c->kv_lora, false },
        { &layer->o, "self_attn.o_proj", c->hidden, c->heads * c->value, false },
    };
    err_t error = take_query(self, index);
    return error ? error : take_slots(self, index, slots, sizeof slots / sizeof *slots);
}

/* The correction bias is F32; a BF16 one is widened. */
static err_t take_bias(loaded_t *self, uint32_t index)
{
    char name[NAME_BYTES];
    tensor_t bias;
    uint32_t experts = self->model.config.experts;
    snprintf(name, sizeof name, "model.layers.%u.mlp.gate.e_score_correction_bias", index);
    err_t error = take_plain(self, &bias, (wanted_t){ name, 1, experts });
    if (error) return error;
    self->model.layers[index].gate_bias = bias.data;
    if (bias.dtype == DTYPE_F32) return ERR_OK;
    uint32_t *wide = allocate(self, experts * sizeof *wide);
    if (!wide) return model_refuse(self->why, "no memory for %s", name);
    for (uint32_t i = 0; i < experts; i++)
        wide[i] = (uint32_t)((const uint16_t *)bias.data)[i] << 16;
    self->model.layers[index].gate_bias = (const float *)(const void *)wide;
    return ERR_OK;
}

static err_t take_experts(loaded_t *self, uint32_t index)
{
    char prefix[NAME_BYTES];
    model_t *model = &self->model;
    layer_t *layer = &model->layers[index];
    layer->expert_gate_up = calloc(model->experts_here, sizeof(tensor_t));
    layer->expert_down = calloc(model->experts_here, sizeof(tensor_t));
    if (!layer->expert_gate_up || !layer->expert_down)
        return model_refuse(self->why, "no memory for the experts of layer %u", index);
    for (uint32_t i = 0; i < model->experts_here; i++) {
        snprintf(prefix, sizeof prefix, "model.layers.%u.mlp.experts.%u", index,
                 model->first_expert + i);
        err_t error = take_ffn(self, &layer->expert_gate_up[i], &layer->expert_down[i], prefix,
                               model->config.expert_intermediate);
        if (error) return error;
    }
    return ERR_OK;
}

static err_t take_moe(loaded_t *self, uint32_t index)
{
    char prefix[NAME_BYTES];
    const model_config_t *config = &self->model.config;
    layer_t *layer = &self->model.layers[index];
    const slot_t router = { &layer->gate, "mlp.gate", config->experts, config->hidden, true };
    err_t error = take_slots(self, index, &router, 1);
    if (!error && config->has_gate_bias) error = take_bias(self, index);
    snprintf(prefix, sizeof prefix, "model.layers.%u.mlp.shared_experts", index);
    if (!error)
        error = take_ffn(self, &layer->gate_up, &layer->down, prefix,
                         config->shared_experts * config->expert_intermediate);
    return error ? error : take_experts(self, index);
}

static err_t take_layer(loaded_t *self, uint32_t index)
{
    char prefix[NAME_BYTES];
    layer_t *layer = &self->model.layers[index];
    err_t error = take_attention(self, index);
    if (error || index >= self->model.config.dense_layers)
        return error ? error : take_moe(self, index);
    snprintf(prefix, sizeof prefix, "model.layers.%u.mlp", index);
    return take_ffn(self, &layer->gate_up, &layer->down, prefix,
                    self->model.config.dense_intermediate);
}

/* ---- layers of the file ---- */

/* Layers that predict further tokens come after num_hidden_layers and begin with eh_proj, which no
 * other has.  We do not run them. */
static bool predicts_further(const loaded_t *self, unsigned long layer)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "model.layers.%lu.eh_proj.weight", layer);
    return safetensors_find(self->files, name) != NULL;
}

/* False: the tensor belongs to no layer. */
static bool read_layer(const char *name, unsigned long *layer)
{
    static const char prefix[] = "model.layers.";
    char *end = NULL;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return false;
    *layer = strtoul(name + sizeof prefix - 1, &end, 10);
    return *end == '.';
}

/* With another num_hidden_layers than the file's the model would answer, but wrongly. */
static err_t check_layers(loaded_t *self)
{
    uint32_t layers = self->model.config.layers;
    unsigned long layer = 0;
    for (uint32_t i = 0; i < layers; i++)
        if (predicts_further(self, i))
            return model_refuse(self->why,
                                "%.200s: num_hidden_layers is %u, but model.layers.%u predicts "
                                "further tokens; allowed: at most %u",
                                self->options->dir, layers, i, i);
    for (size_t i = 0; i < safetensors_count(self->files); i++) {
        const char *name = safetensors_at(self->files, i)->name;
        if (!read_layer(name, &layer) || layer < layers || predicts_further(self, layer)) continue;
        return model_refuse(self->why,
                            "%.200s: num_hidden_layers is %u, but there is tensor %.150s; allowed: "
                            "more than %lu",
                            self->options->dir, layers, name, layer);
    }
    return ERR_OK;
}

/* ---- the whole ---- */

static err_t take_ends(loaded_t *self)
{
    model_t *model = &self->model;
    const model_config_t *config = &model->config;
    wanted_t embed = { "model.embed_tokens.weight", config->vocab, config->hidden };
    wanted_t head = { "lm_head.weight", config->vocab, config->hidden };
    err_t error = take_plain(self, &model->embed, embed);
    if (!error)
        error =
            take_plain(self, &model->norm, (wanted_t){ "model.norm.weight", 1, config->hidden });
    if (error || !config->has_tied_head) return error ? error : take(self, &model->head, head);
    model->head = model->embed;
    return prepare(self, &model->head, embed.name);
}

/* How many tensors this rank takes: only for the progress it reports. */
static size_t count_tensors(const model_t *model)
{
    const model_config_t *config = &model->config;
    size_t attention = config->q_lora ? 9 : 7, dense = 3;
    size_t moe = 4 + 3 * (size_t)model->experts_here;
    if (config->has_gate_bias) moe++;
    return (config->has_tied_head ? 2u : 3u) + config->layers * attention +
           config->dense_layers * dense + (config->layers - config->dense_layers) * moe;
}

static err_t load(loaded_t *self)
{
    model_t *model = &self->model;
    err_t error = model_config_read(&model->config, self->options->dir, self->why);
    if (error) return error;
    if (!model->ranks || model->config.experts % model->ranks || model->rank >= model->ranks)
        return model_refuse(self->why, "%u ranks for %u experts; allowed: a divisor", model->ranks,
                            model->config.experts);
    model->experts_here = model->config.experts / model->ranks;
    model->first_expert = model->rank * model->experts_here;
    self->expected = count_tensors(model);
    self->files = safetensors_open(self->options->dir, self->why);
    if (!self->files) return ERR_MODEL;
    error = check_layers(self);
    if (error) return error;
    model->layers = calloc(model->config.layers, sizeof *model->layers);
    if (!model->layers)
        return model_refuse(self->why, "no memory for %u layers", model->config.layers);
    error = take_ends(self);
    for (uint32_t i = 0; !error && i < model->config.layers; i++) error = take_layer(self, i);
    return error;
}

model_t *model_load(const weights_options_t *options, error_text_t *why)
{
    loaded_t *self = calloc(1, sizeof *self);
    if (!self) {
        (void)model_refuse(why, "no memory");
        return NULL;
    }
    self->ops = options->ops;
    self->options = options;
    self->why = why;
    self->model.rank = options->rank;
    self->model.ranks = options->ranks;
    err_t error = load(self);
    self->options = NULL;
    self->why = NULL;
    model_t *model = &self->model;
    if (error) model_destroy(&model);
    return model;
}

void model_destroy(model_t **self)
{
    loaded_t *loaded = (loaded_t *)(void *)*self;
    *self = NULL;
    if (!loaded) return;
    for (uint32_t i = 0; loaded->model.layers && i < loaded->model.config.layers; i++) {
        free(loaded->model.layers[i].expert_gate_up);
        free(loaded->model.layers[i].expert_down);
    }
    free(loaded->model.layers);
    while (loaded->owned_count) free(loaded->owned[--loaded->owned_count]);
    free(loaded->owned);
    safetensors_close(&loaded->files);
    free(loaded);
}
