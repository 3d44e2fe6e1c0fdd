/* kernels/ops.h - the only door between C and device code: tensors, and a table of ops per device.
 *
 * An op enqueues and returns.  It never allocates, never synchronises, never reads the environment,
 * so a decode step can be captured once as a CUDA graph and replayed.  On the CPU "enqueue" means:
 * done at return. Results of a row do not depend on the other rows of its batch (fixed reduction
 * order). Ops return 0, or an errno-like value when an argument is not supported (a wrong dtype, a
 * foreign shape).
 */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { DTYPE_F32, DTYPE_BF16, DTYPE_F8E4M3 } dtype_t;

/* Of one value. */
static inline size_t dtype_bytes(dtype_t dtype)
{
    return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_BF16 ? 2 : 1;
}

/* Rows of a matrix in the device's memory.  F8E4M3 carries scales (value = byte * scale): for
 * weights one F32 per 128x128 block, block row by block row; for activations one per row and 128
 * columns, at scales[row * scale_stride + block] on the CPU and at scales[block * scale_stride +
 * row] on CUDA, where a tile's scales are then one contiguous read. CUDA asks for data and rows
 * aligned to 16 bytes and a scale_stride that is a multiple of 4. */
typedef struct {
    void *data;
    dtype_t dtype;
    uint32_t rows, cols;
    size_t stride; /* elements from one row to the next */
    float *scales; /* F8E4M3 only */
    uint32_t
        scale_stride; /* elements from one row (CUDA activations: block) of scales to the next */
    const void
        *packed; /* weights: the device's own layout, made by prepare; NULL where it needs none */
} tensor_t;

/* Where each row of a step belongs in the paged KV cache. */
typedef struct {
    void *data;    /* blocks x layers x block_tokens x cols; this op's layer is chosen by `layer` */
    dtype_t dtype; /* BF16; F32 for the judge's strictest runs */
    uint32_t layers, layer;
    uint32_t block_tokens; /* 64 */
    uint32_t latent, rope; /* cols = latent + rope: 512 + 64 */
    size_t block_stride;   /* elements from one block to the next */
} cache_t;

/* One sequence of a step: `rows` query rows beginning at row `first_row` of the step's tensors,
 * which are tokens first_position .. first_position + rows - 1 of the sequence.  Its keys are all
 * tokens up to each row. */
typedef struct {
    uint32_t first_row, rows, first_position;
    uint32_t first_key;     /* prefill: row of kv and k_rope that holds its token 0 */
    const uint32_t *blocks; /* block table of the sequence */
} sequence_t;

/* Rows of a step ordered by expert: group g is rows first[g] .. first[g] + rows[g] - 1.  `rows`
 * NULL: a group ends where the next begins, first [count + 1].  Both arrays lie on the device. */
typedef struct {
    const uint32_t *first, *rows;
    uint32_t count;
    uint32_t
        expected_rows; /* of one group; 0: not known.  Chooses tiles, never changes a result. */
} groups_t;

#define NO_ROW UINT32_MAX

/* How `route` orders rows: this rank hosts experts first_expert .. first_expert + experts - 1,
 * groups begin at multiples of `align` rows. */
typedef struct {
    uint32_t tokens, top_k, first_expert, experts, align, capacity;
} route_t;

typedef struct {
    uint32_t heads, nope, rope, value, latent; /* 128, 128, 64, 128, 512 for DeepSeek-V3 */
    float scale;                               /* softmax scale, YaRN's mscale included */
    /* 1: mla_decode may sum a row's keys in an order that its batch suggests; faster where there
     * are many rows, but a row's last bits then follow its batch (D-018). */
    int may_follow_batch;
} heads_t;

typedef enum { GATE_SIGMOID, GATE_SOFTMAX } gate_score_t;
typedef enum { GATE_TOP2_SUM, GATE_MAX } gate_group_t;

/* How experts are chosen; see facts in runtime/model/config.h. */
typedef struct {
    uint32_t experts, top_k, groups, top_groups;
    gate_score_t score;
    gate_group_t group_score; /* how a group is scored: sum of its two best (V3) or its best (V2) */
    int is_normalised;        /* weights divided by their sum (+ 1e-20) */
    float scale;              /* routed_scaling_factor */
} gate_t;

/* How the next token of one row is chosen; ranges and meaning: proto/sampling.def.  Order as in
 * vLLM: bias, penalties, temperature, min_p, top_k, top_p.  The arrays lie on the device. */
typedef struct {
    float temperature, top_p, min_p;
    uint32_t top_k;
    float presence_penalty, frequency_penalty, repetition_penalty;
    uint32_t has_logprobs, top_logprobs;
    uint64_t seed;
    uint32_t
        generated; /* the index of the token to come; with the seed it makes the random number */
    const uint32_t *tokens; /* prompt and generated tokens so far */
    uint32_t token_count;
    const uint32_t *bias_ids;
    const float *bias_values;
    uint32_t bias_count;
} sample_row_t;

enum { SAMPLE_TOP_MAX = 20 };

/* Log probabilities are those of the raw logits; ties go to the lower id. */
typedef struct {
    uint32_t token;
    float logprob;
    uint32_t top_count;
    uint32_t top_ids[SAMPLE_TOP_MAX];
    float top_logprobs[SAMPLE_TOP_MAX];
} sample_result_t;

typedef struct queue queue_t; /* CPU: threads and scratch; CUDA: a stream and scratch */

typedef struct {
    const char *name;
    dtype_t activation; /* dtype of activations between ops: F32 on the CPU, BF16 on CUDA */
    dtype_t carrier; /* dtype in which rows travel to experts on other ranks, and back: F32 for the
                        judge, else BF16 */
/* clang-format off */
#define OP(op, params, doc) int (*op) params;
#include "ops.def"
#undef OP
    /* clang-format on */
} ops_t;

enum { QUEUE_THREAD_BYTES = 1 << 20 };

/* Scratch of at most this many bytes and this many threads; NULL when there is not enough memory.
 * The fast tables need 4 MiB, and QUEUE_THREAD_BYTES for each thread, whatever the batch; the judge
 * copies a sequence's keys as F32 (64 MiB holds 16,000 tokens of 4 heads).  An op that finds too
 * little scratch returns ENOMEM. */
queue_t *queue_new_cpu(size_t scratch_bytes, uint32_t threads);
void queue_destroy(queue_t **self);

/* A stream of one GPU, scratch and counters there.  NULL: no such GPU, not compute capability 9.0,
 * or too little memory.  Only where WITH_CUDA is built. */
queue_t *queue_new_cuda(int device, size_t scratch_bytes);
void queue_destroy_cuda(queue_t **self);

extern const ops_t ops_judge; /* plain loops, sums in double */
extern const ops_t ops_cuda;  /* Hopper; only where WITH_CUDA is built */

/* The CPU tables, fastest last.  is_supported asks the processor (and, for AMX, the kernel's
 * permission).  is_rounding: products take rows of x and scaled weights as BF16, which puts results
 * up to a percent from the reference's; the others keep the accuracy of F32. */
typedef struct {
    const ops_t *ops;
    int (*is_supported)(void);
    int is_rounding;
} ops_choice_t;
extern const ops_choice_t ops_cpu_choices[];
extern const size_t ops_cpu_choice_count;

/* By name ("judge", "avx2", "avx512", "avx512_bf16", "amx"), "auto" for the
 * fastest that the machine supports and that does not round.  NULL: no such table, or the machine
 * cannot run it. */
const ops_t *ops_find(const char *name);

#ifdef __cplusplus
}
#endif
#endif
