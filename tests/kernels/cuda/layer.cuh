/* tests/kernels/cuda/layer.cuh - one MoE layer of the DeepSeek-V3 architecture as a straight list
 * of op calls, on tensors of the device or of the host: the same list runs with ops_cuda and with
 * the judge. */
#ifndef TESTS_KERNELS_CUDA_LAYER_CUH
#define TESTS_KERNELS_CUDA_LAYER_CUH

#include "harness.cuh"

struct layer_shape_t {
    uint32_t hidden, q_lora, inner;
    uint32_t routers; /* experts that the gate knows */
    uint32_t experts; /* of them on this rank: 0 .. experts - 1 */
    heads_t heads;
    gate_t gate;
};

struct layer_step_t {
    uint32_t rows, keys, sequences;
    bool is_decode;
    bool is_forced; /* experts are those of `forced`, not the gate's: a given load */
};

/* Weights, activations and indices of one layer; everything lies on one device. */
struct layer_t {
    layer_shape_t shape;
    layer_step_t step;
    tensor_t input_norm, q_norm, kv_norm, post_norm; /* [1, cols] BF16 */
    tensor_t qkv_a, q_b, kv_b, o, gate, shared_gate_up, shared_down;
    tensor_t *expert_gate_up, *expert_down; /* [experts] */
    float *bias;                            /* [routers] */
    tensor_t residual, branch, normed, quantised, low, low_quantised, query, absorbed, latents,
        attended, attended_quantised, past_latent, past_quantised, past_rope, past_kv;
    tensor_t gate_up, activated, out, routed, routed_gate_up, routed_activated, routed_out;
    cache_t cache;
    sequence_t *sequences;
    uint32_t *positions, *ids, *forced, *index, *first, *counts, *source;
    float *weights, *rope_table;
};

/* Made on the device with random numbers; `context` tokens per sequence are in the cache or, for
 * prefill, are the prompt. */
void layer_init(layer_t *self, harness_t *harness, const layer_shape_t *shape,
                const layer_step_t *step);

/* The same in host memory, before the layer has run. */
void layer_to_host(layer_t *host, const layer_t *device);

/* From residual to out, which the next layer would add.  What the ops returned. */
int layer_run(const ops_t *ops, queue_t *q, layer_t *self);

#endif
