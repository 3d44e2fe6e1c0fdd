/* tests/kernels/cuda/layer.cu - a layer's tensors, on the device and copied to the host, and its
 * list of op calls. */
#include "layer.cuh"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

enum { BLOCK_TOKENS = 64 };

/* ---- tensors ---- */

__global__ static void multiply(void *data, int dtype, size_t count, float factor)
{
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += step) {
        if (dtype == DTYPE_F32) ((float *)data)[i] *= factor;
        if (dtype != DTYPE_BF16) continue;
        __nv_bfloat16 *value = (__nv_bfloat16 *)data + i;
        *value = __float2bfloat16(__bfloat162float(*value) * factor);
    }
}

/* Products of normed rows with these weights are about N(0, 1). */
static tensor_t weights_new(harness_t *harness, dtype_t dtype, uint32_t rows, uint32_t cols)
{
    tensor_t w = tensor_random(harness, dtype, rows, cols, true);
    float factor = 1.0f / sqrtf((float)cols);
    if (dtype == DTYPE_F8E4M3) {
        size_t count = (size_t)(rows + 127) / 128 * w.scale_stride;
        LAUNCH(multiply, (64, 256), w.scales, DTYPE_F32, count, factor);
    } else {
        LAUNCH(multiply, (1024, 256), w.data, dtype, (size_t)rows * cols, factor);
    }
    CUDA(cudaGetLastError());
    return w;
}

/* Experts lie one after another, as grouped_gemm asks on CUDA. */
static tensor_t *experts_new(harness_t *harness, uint32_t experts, uint32_t rows, uint32_t cols)
{
    tensor_t all = weights_new(harness, DTYPE_F8E4M3, experts * rows, cols);
    tensor_t *each = (tensor_t *)calloc(experts, sizeof *each);
    for (uint32_t e = 0; e < experts; e++) {
        each[e] = all;
        each[e].rows = rows;
        each[e].data = (char *)all.data + (size_t)e * rows * cols;
        each[e].scales = all.scales + (size_t)e * (rows / 128) * all.scale_stride;
    }
    return each;
}

static void init_weights(layer_t *self, harness_t *harness)
{
    const layer_shape_t *s = &self->shape;
    const heads_t *h = &s->heads;
    uint32_t kv = h->latent + h->rope;
    self->input_norm = tensor_random(harness, DTYPE_BF16, 1, s->hidden, true);
    self->post_norm = tensor_random(harness, DTYPE_BF16, 1, s->hidden, true);
    self->q_norm = tensor_random(harness, DTYPE_BF16, 1, s->q_lora, true);
    self->kv_norm = tensor_random(harness, DTYPE_BF16, 1, h->latent, true);
    self->qkv_a = weights_new(harness, DTYPE_F8E4M3, s->q_lora + kv, s->hidden);
    self->q_b = weights_new(harness, DTYPE_F8E4M3, h->heads * (h->nope + h->rope), s->q_lora);
    self->kv_b = weights_new(harness, DTYPE_F8E4M3, h->heads * (h->nope + h->value), h->latent);
    self->o = weights_new(harness, DTYPE_F8E4M3, s->hidden, h->heads * h->value);
    self->gate = weights_new(harness, DTYPE_BF16, s->routers, s->hidden);
    self->shared_gate_up = weights_new(harness, DTYPE_F8E4M3, 2 * s->inner, s->hidden);
    self->shared_down = weights_new(harness, DTYPE_F8E4M3, s->hidden, s->inner);
    self->expert_gate_up = experts_new(harness, s->experts, 2 * s->inner, s->hidden);
    self->expert_down = experts_new(harness, s->experts, s->hidden, s->inner);
    self->bias = (float *)tensor_random(harness, DTYPE_F32, 1, s->routers, true).data;
}

static void init_activations(layer_t *self, harness_t *harness)
{
    const layer_shape_t *s = &self->shape;
    const heads_t *h = &s->heads;
    uint32_t rows = self->step.rows, keys = self->step.is_decode ? 0 : self->step.keys;
    uint32_t work = rows * s->gate.top_k, width = h->latent + h->rope;
    self->residual = tensor_random(harness, DTYPE_BF16, rows, s->hidden, false);
    self->branch = tensor_random(harness, DTYPE_BF16, rows, s->hidden, false);
    self->normed = tensor_new(DTYPE_BF16, rows, s->hidden, false);
    self->quantised = tensor_new(DTYPE_F8E4M3, rows, s->hidden, false);
    self->low = tensor_new(DTYPE_BF16, rows, s->q_lora + width, false);
    self->low_quantised = tensor_new(DTYPE_F8E4M3, rows, s->q_lora, false);
    self->query = tensor_new(DTYPE_BF16, rows, h->heads * (h->nope + h->rope), false);
    if (self->step.is_decode) {
        self->absorbed = tensor_new(DTYPE_BF16, rows, h->heads * width, false);
        self->latents = tensor_new(DTYPE_BF16, rows, h->heads * h->latent, false);
    }
    self->attended = tensor_new(DTYPE_BF16, rows, h->heads * h->value, false);
    self->attended_quantised = tensor_new(DTYPE_F8E4M3, rows, h->heads * h->value, false);
    self->past_latent = tensor_new(DTYPE_BF16, keys, h->latent, false);
    self->past_quantised = tensor_new(DTYPE_F8E4M3, keys, h->latent, false);
    self->past_rope = tensor_new(DTYPE_BF16, keys, h->rope, false);
    self->past_kv = tensor_new(DTYPE_BF16, keys, h->heads * (h->nope + h->value), false);
    self->gate_up = tensor_new(DTYPE_BF16, rows, 2 * s->inner, false);
    self->activated = tensor_new(DTYPE_F8E4M3, rows, s->inner, false);
    self->out = tensor_new(DTYPE_BF16, rows, s->hidden, false);
    self->routed = tensor_new(DTYPE_F8E4M3, work, s->hidden, false);
    self->routed_gate_up = tensor_new(DTYPE_BF16, work, 2 * s->inner, false);
    self->routed_activated = tensor_new(DTYPE_F8E4M3, work, s->inner, false);
    self->routed_out = tensor_new(DTYPE_BF16, work, s->hidden, false);
}

/* Pages of a sequence are scattered over the pool. */
static void init_cache(layer_t *self, harness_t *harness)
{
    const heads_t *h = &self->shape.heads;
    uint32_t width = h->latent + h->rope, count = self->step.sequences;
    uint32_t context = self->step.keys / count, pages = context / BLOCK_TOKENS + 1;
    tensor_t pool = tensor_random(harness, DTYPE_BF16, count * pages * BLOCK_TOKENS, width, false);
    self->cache = cache_t{ pool.data,    DTYPE_BF16, 1,       0,
                           BLOCK_TOKENS, h->latent,  h->rope, (size_t)BLOCK_TOKENS * width };
    std::vector<uint32_t> blocks(count * pages), positions(self->step.rows);
    for (uint32_t i = 0; i < blocks.size(); i++) blocks[i] = i % pages * count + i / pages;
    uint32_t *table = (uint32_t *)memory_upload(blocks.data(), blocks.size() * sizeof blocks[0]);
    std::vector<sequence_t> sequences(count);
    uint32_t each = self->step.rows / count;
    for (uint32_t i = 0; i < count; i++) {
        sequences[i] = sequence_t{ i * each, each, context - each, i * context, table + i * pages };
        for (uint32_t r = 0; r < each; r++) positions[i * each + r] = context - each + r;
    }
    self->sequences = (sequence_t *)memory_upload(sequences.data(), count * sizeof sequences[0]);
    self->positions =
        (uint32_t *)memory_upload(positions.data(), positions.size() * sizeof positions[0]);
    std::vector<float> angles((size_t)(context + 1) * h->rope);
    for (uint32_t p = 0; p <= context; p++)
        for (uint32_t i = 0; i < h->rope / 2; i++) {
            float angle = (float)p * powf(10000.0f, -2.0f * (float)i / (float)h->rope);
            angles[(size_t)p * h->rope + 2 * i] = cosf(angle);
            angles[(size_t)p * h->rope + 2 * i + 1] = sinf(angle);
        }
    self->rope_table = (float *)memory_upload(angles.data(), angles.size() * sizeof angles[0]);
}

static void init_routes(layer_t *self)
{
    uint32_t work = self->step.rows * self->shape.gate.top_k;
    std::vector<uint32_t> forced(work);
    for (uint32_t i = 0; i < work; i++) forced[i] = i % self->shape.experts;
    self->forced = (uint32_t *)memory_upload(forced.data(), work * sizeof forced[0]);
    self->ids = (uint32_t *)memory_new(work * sizeof *self->ids);
    self->index = (uint32_t *)memory_new(work * sizeof *self->index);
    self->source = (uint32_t *)memory_new(work * sizeof *self->source);
    self->weights = (float *)memory_new(work * sizeof *self->weights);
    self->first = (uint32_t *)memory_new((self->shape.experts + 1) * sizeof *self->first);
    self->counts = (uint32_t *)memory_new(self->shape.experts * sizeof *self->counts);
}

void layer_init(layer_t *self, harness_t *harness, const layer_shape_t *shape,
                const layer_step_t *step)
{
    *self = layer_t{};
    self->shape = *shape;
    self->step = *step;
    init_weights(self, harness);
    init_activations(self, harness);
    init_cache(self, harness);
    init_routes(self);
    CUDA(cudaDeviceSynchronize());
}

/* ---- the same on the host ---- */

template <typename value_t> static value_t *download(const value_t *device, size_t count)
{
    value_t *host = (value_t *)calloc(count + 1, sizeof *host);
    memory_download(host, device, count * sizeof *host);
    return host;
}

static void copy_cache(layer_t *host, const layer_t *device)
{
    uint32_t count = device->step.sequences, context = device->step.keys / count;
    uint32_t pages = context / BLOCK_TOKENS + 1,
             work = device->step.rows * device->shape.gate.top_k;
    host->cache.data = download((const uint16_t *)device->cache.data,
                                (size_t)count * pages * device->cache.block_stride);
    host->sequences = download(device->sequences, count);
    uint32_t *table = download(host->sequences[0].blocks, (size_t)count * pages);
    for (uint32_t i = 0; i < count; i++) host->sequences[i].blocks = table + (size_t)i * pages;
    host->positions = download(device->positions, device->step.rows);
    host->rope_table =
        download(device->rope_table, (size_t)(context + 1) * device->shape.heads.rope);
    host->bias = download(device->bias, device->shape.routers);
    host->forced = download(device->forced, work);
    host->ids = download(device->ids, work);
    host->index = download(device->index, work);
    host->source = download(device->source, work);
    host->weights = download(device->weights, work);
    host->first = download(device->first, device->shape.experts + 1);
    host->counts = download(device->counts, device->shape.experts);
}

void layer_to_host(layer_t *host, const layer_t *device)
{
    *host = *device;
    tensor_t *weights[] = { &host->input_norm,     &host->q_norm,     &host->kv_norm,
                            &host->post_norm,      &host->qkv_a,      &host->q_b,
                            &host->kv_b,           &host->o,          &host->gate,
                            &host->shared_gate_up, &host->shared_down };
    tensor_t *activations[] = { &host->residual,
                                &host->branch,
                                &host->normed,
                                &host->quantised,
                                &host->low,
                                &host->low_quantised,
                                &host->query,
                                &host->absorbed,
                                &host->latents,
                                &host->attended,
                                &host->attended_quantised,
                                &host->past_latent,
                                &host->past_quantised,
                                &host->past_rope,
                                &host->past_kv,
                                &host->gate_up,
                                &host->activated,
                                &host->out,
                                &host->routed,
                                &host->routed_gate_up,
                                &host->routed_activated,
                                &host->routed_out };
    for (tensor_t *w : weights) *w = tensor_to_host(w, true);
    for (tensor_t *x : activations) *x = tensor_to_host(x, false);
    uint32_t experts = device->shape.experts;
    host->expert_gate_up = (tensor_t *)calloc(experts, sizeof(tensor_t));
    host->expert_down = (tensor_t *)calloc(experts, sizeof(tensor_t));
    for (uint32_t e = 0; e < experts; e++) {
        host->expert_gate_up[e] = tensor_to_host(&device->expert_gate_up[e], true);
        host->expert_down[e] = tensor_to_host(&device->expert_down[e], true);
    }
    copy_cache(host, device);
}

/* ---- the layer ---- */

/* Columns first .. first + cols of an activation. */
static tensor_t columns(const tensor_t *x, uint32_t first, uint32_t cols)
{
    tensor_t view = *x;
    view.data = (char *)x->data + (size_t)first * 2;
    view.cols = cols;
    return view;
}

static int attend(const ops_t *ops, queue_t *q, layer_t *self)
{
    const heads_t *h = &self->shape.heads;
    uint32_t count = self->step.sequences;
    if (self->step.is_decode)
        return ops->absorb_query(q, &self->absorbed, &self->query, &self->kv_b, h) ||
               ops->mla_decode(q, &self->latents, &self->absorbed, &self->cache, h, self->sequences,
                               count) ||
               ops->absorb_value(q, &self->attended, &self->latents, &self->kv_b, h);
    return ops->kv_gather(q, &self->past_latent, &self->past_rope, &self->cache, self->sequences,
                          count) ||
           ops->cast(q, &self->past_quantised, &self->past_latent) ||
           ops->gemm(q, &self->past_kv, &self->past_quantised, &self->kv_b) ||
           ops->mha_prefill(q, &self->attended, &self->query, &self->past_kv, &self->past_rope, h,
                            self->sequences, count);
}

static int run_attention(const ops_t *ops, queue_t *q, layer_t *self)
{
    const layer_shape_t *s = &self->shape;
    const heads_t *h = &s->heads;
    tensor_t low = columns(&self->low, 0, s->q_lora),
             kv = columns(&self->low, s->q_lora, h->latent + h->rope);
    return ops->add_rmsnorm(q, NULL, &self->quantised, &self->residual, &self->branch,
                            &self->input_norm, 1e-6f) ||
           ops->gemm(q, &self->low, &self->quantised, &self->qkv_a) ||
           ops->rmsnorm(q, &self->low_quantised, &low, &self->q_norm, 1e-6f) ||
           ops->gemm(q, &self->query, &self->low_quantised, &self->q_b) ||
           ops->rope(q, &self->query, h->heads, h->nope + h->rope, h->nope, h->rope,
                     self->rope_table, self->positions) ||
           ops->kv_write(q, &self->cache, &kv, &self->kv_norm, 1e-6f, self->rope_table,
                         self->positions, self->sequences, self->step.sequences) ||
           attend(ops, q, self) || ops->cast(q, &self->attended_quantised, &self->attended) ||
           ops->gemm(q, &self->branch, &self->attended_quantised, &self->o);
}

static int run_experts(const ops_t *ops, queue_t *q, layer_t *self)
{
    const layer_shape_t *s = &self->shape;
    uint32_t work = self->step.rows * s->gate.top_k;
    route_t route = { self->step.rows, s->gate.top_k, 0, s->experts, 1, work };
    groups_t groups = { self->first, self->counts, s->experts, work / s->experts };
    return ops->gate(q, self->ids, self->weights, &self->normed, &self->gate, self->bias,
                     &s->gate) ||
           ops->route(q, self->first, self->counts, self->source, self->index,
                      self->step.is_forced ? self->forced : self->ids, &route) ||
           ops->gather_rows(q, &self->routed, &self->normed, self->source) ||
           ops->grouped_gemm(q, &self->routed_gate_up, &self->routed, self->expert_gate_up,
                             &groups) ||
           ops->grouped_silu_mul(q, &self->routed_activated, &self->routed_gate_up, &groups) ||
           ops->grouped_gemm(q, &self->routed_out, &self->routed_activated, self->expert_down,
                             &groups) ||
           ops->combine(q, &self->out, &self->routed_out, self->index, self->weights,
                        s->gate.top_k);
}

int layer_run(const ops_t *ops, queue_t *q, layer_t *self)
{
    return run_attention(ops, q, self) ||
           ops->add_rmsnorm(q, &self->normed, &self->quantised, &self->residual, &self->branch,
                            &self->post_norm, 1e-6f) ||
           ops->gemm(q, &self->gate_up, &self->quantised, &self->shared_gate_up) ||
           ops->silu_mul(q, &self->activated, &self->gate_up) ||
           ops->gemm(q, &self->out, &self->activated, &self->shared_down) ||
           run_experts(ops, q, self);
}
