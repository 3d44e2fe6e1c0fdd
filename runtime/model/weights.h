/* runtime/model/weights.h - safetensors by mmap; names become pointers once.
 *
 * Headers are validated before use: sizes, offsets, overlaps, dtypes, shapes against config.json; a
 * missing, extra-shaped or truncated tensor is refused by name.  Each rank reads only its experts.
 */
#ifndef RUNTIME_MODEL_WEIGHTS_H
#define RUNTIME_MODEL_WEIGHTS_H

#include "config.h"

typedef struct {
    tensor_t input_norm, post_norm;
    tensor_t q_a, q_a_norm, q_b; /* q_a.data NULL: q_b is q_proj */
    tensor_t kv_a, kv_a_norm, kv_b, o;
    tensor_t gate_up,
        down;      /* dense layers: the FFN; MoE layers: the shared experts.  gate over up; only
                    * `packed` where the operations have a layout of their own, else only `data` */
    tensor_t gate; /* MoE layers: router */
    const float *gate_bias;                 /* NULL without one */
    tensor_t *expert_gate_up, *expert_down; /* [experts of this rank], in the same form */
} layer_t;

typedef struct {
    model_config_t config;
    uint32_t rank, ranks; /* expert e lives on rank e / (experts / ranks) */
    uint32_t experts_here, first_expert;
    tensor_t embed, norm, head;
    layer_t *layers; /* config.layers of them */
} model_t;

/* Progress of loading, 0..1; called now and then from the loading thread. */
typedef void weights_progress_fn(void *context, double fraction);

typedef struct {
    const char *dir;
    const ops_t *ops;     /* whose layout weights are prepared for */
    uint32_t rank, ranks; /* 0, 1: all experts */
    weights_progress_fn *progress;
    void *progress_context;
} weights_options_t;

/* NULL: *why says what does not fit, by name. */
model_t *model_load(const weights_options_t *options, error_text_t *why);
void model_destroy(model_t **self);

/* The safetensors header alone, for the fuzzer: ERR_OK or ERR_MODEL with *why; never reads past
 * size. */
MUST_CHECK err_t safetensors_check(const void *data, size_t size, error_text_t *why);

#endif
