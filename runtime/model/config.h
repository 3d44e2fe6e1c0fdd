/* runtime/model/config.h - config.json of a checkpoint, validated as a whole.
 *
 * The architecture is known in all its published variants: DeepSeek-V3, R1, V3.1, Moonlight,
 * Kimi-K2 (sigmoid gate, noaux_tc), DeepSeek-V2 and V2-Lite (softmax gate, greedy or
 * group_limited_greedy). What it does not know is refused by name.
 */
#ifndef RUNTIME_MODEL_CONFIG_H
#define RUNTIME_MODEL_CONFIG_H

#include <stdarg.h>

#include "../../kernels/ops.h"
#include "../../proto/messages.h"

enum { ERROR_TEXT_MAX = 512 };

/* Why something was refused: what was found and what is allowed.  For people. */
typedef struct {
    char text[ERROR_TEXT_MAX];
} error_text_t;

/* As vprintf, on one line of valid UTF-8: texts quote files of strangers, and go to terminals. What
 * would steer those becomes a space, what is no UTF-8 a question mark. */
void error_text_write(error_text_t *self, const char *format, va_list arguments)
    __attribute__((format(printf, 2, 0)));

/* Write down why a checkpoint is refused, "KEY is FOUND; allowed: ALLOWED"; returns ERR_MODEL. */
err_t model_refuse(error_text_t *why, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

typedef struct {
    char model_type[32];
    uint32_t vocab, hidden, layers, dense_layers; /* dense_layers: the first that have no experts */
    uint32_t dense_intermediate, expert_intermediate;
    uint32_t experts, shared_experts, top_k;
    uint32_t heads, q_lora; /* q_lora 0: one q_proj */
    uint32_t kv_lora, nope, rope, value;
    uint32_t context; /* max_position_embeddings */
    uint32_t mtp_layers;
    float rms_eps;
    float softmax_scale; /* (nope + rope)^-0.5 * mscale^2 where YaRN says so */
    gate_t gate;
    int has_gate_bias; /* noaux_tc: e_score_correction_bias */
    int has_tied_head;
    int is_fp8; /* weights e4m3 with 128x128 weight_scale_inv */
    uint32_t end_tokens[STOP_IDS_MAX], end_token_count;
    uint32_t begin_token;
    /* YaRN; factor 1 means none */
    float rope_theta, rope_factor, beta_fast, beta_slow, mscale, mscale_all_dim;
    uint32_t rope_original_context;
    float rope_cos_scale; /* multiplies cos and sin: mscale / mscale_all_dim's ratio; 1 for V3 */
    uint64_t weights;     /* digest of the weights beside config.json, 0 without any; digest.h */
} model_config_t;

/* Read dir/config.json (and dir/generation_config.json for further end tokens, and samples of the
 * weights).  ERR_MODEL: *why says what is wrong. */
MUST_CHECK err_t model_config_read(model_config_t *self, const char *dir, error_text_t *why);

/* The same from memory, for tests and the fuzzer. */
MUST_CHECK err_t model_config_parse(model_config_t *self, const char *json, size_t size,
                                    error_text_t *why);

/* rope table [positions][rope / 2][cos, sin], YaRN applied; table has positions * rope floats. */
void model_rope_table(const model_config_t *self, float *table, uint32_t positions);

/* Bytes of one KV block: layers * BLOCK_TOKENS * (kv_lora + rope) * 2 (BF16). */
size_t model_block_bytes(const model_config_t *self);

/* Hash of everything that makes KV of two processes exchangeable, the weights' digest included;
 * goes into block keys and hello. */
uint64_t model_key(const model_config_t *self);

#endif
