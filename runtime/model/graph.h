/* runtime/model/graph.h - one forward step of the model: a straight list of op calls.
 *
 * Prefill rows run MLA in MHA form (chunked: the keys are read back from the cache), decode rows
 * run the absorbed MQA form; see facts in ARCHITECTURE.md.  Nothing is allocated after graph_new.
 */
#ifndef RUNTIME_MODEL_GRAPH_H
#define RUNTIME_MODEL_GRAPH_H

#include "../ep/group.h"
#include "weights.h"

typedef struct {
    const model_t *model;
    const ops_t *ops;
    queue_t *queue;
    ep_group_t *group; /* made for this model and rows_max, and joined before a step; NULL: all
                          experts are here */
    uint32_t rows_max, sequences_max, context_max;
    void *cache;      /* the KV pool: blocks x model_block_bytes (twice that with is_cache_f32) */
    int is_cache_f32; /* the judge's strictest runs, outside the company */
} graph_options_t;

/* Scratch that the queue of a graph needs (queue_new_cpu). */
size_t graph_queue_bytes(const model_config_t *config, uint32_t rows_max, uint32_t context_max,
                         uint32_t threads);

typedef struct graph graph_t;
graph_t *graph_new(const graph_options_t *options, error_text_t *why);
void graph_destroy(graph_t **self);

typedef struct {
    const uint32_t *ids;         /* [rows] token ids */
    const sequence_t *sequences; /* in the order of their rows */
    uint32_t sequence_count, row_count;
    int is_decode;              /* 1: absorbed form; every sequence has few rows */
    const uint32_t *logit_rows; /* rows whose logits are wanted */
    uint32_t logit_row_count;
    float *logits; /* [logit_row_count][vocab] */
    float *hidden; /* tests: [layers + 1][rows][hidden], embedding first, last after the final norm;
                      or NULL */
} graph_step_t;

/* All ranks of the group must call it together; row_count may be 0.  ERR_EP_PEER: a rank did not
 * answer in time. ERR_ENGINE: an op refused its arguments.  Requires rows, sequences and contexts
 * within the options' limits. */
MUST_CHECK err_t graph_step(graph_t *self, const graph_step_t *step);

#endif
