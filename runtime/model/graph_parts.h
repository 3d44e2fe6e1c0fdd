/* runtime/model/graph_parts.h - the inside of a graph, shared by graph.c, prefill.c and decode.c
 * only. */
#ifndef RUNTIME_MODEL_GRAPH_PARTS_H
#define RUNTIME_MODEL_GRAPH_PARTS_H

#include "graph.h"

/* All scratch is sized for rows_max rows and a context of context_max; a step looks at the first
 * rows of it. */
struct graph {
    graph_options_t options;
    ep_group_t *own_group; /* of one rank, where the options name none */
    ep_group_t *group;
    heads_t heads;
    cache_t cache;
    float *rope_table;     /* [context_max][rope / 2][cos, sin] */
    uint32_t *positions;   /* [rows] */
    uint32_t *expert_ids;  /* [rows][top_k] */
    float *expert_weights; /* [rows][top_k] */
    tensor_t residual, normed,
        branch; /* [rows, hidden]: the stream, what enters a branch, what leaves it */
    tensor_t query_low, query_normed, query,
        kv; /* [rows, q_lora] twice, [rows, heads * (nope + rope)], [rows, kv_lora + rope] */
    tensor_t attended;                        /* [rows, heads * value] */
    tensor_t past_latent, past_rope, past_kv; /* prefill: [context, ...] of one sequence */
    tensor_t absorbed,
        attended_latent; /* decode: [rows, heads * (kv_lora + rope)], [rows, heads * kv_lora] */
    tensor_t gate_up, activated;               /* [rows, 2n], [rows, n] of dense or shared FFN */
    tensor_t expert_gate_up, expert_activated; /* [work, 2n], [work, n] */
    tensor_t last;                             /* [rows, hidden]: rows whose logits are wanted */
    void *arena;
    size_t arena_bytes;
};

/* The first rows of a scratch tensor; or `rows` of them from `first` on. */
tensor_t graph_head(const tensor_t *x, uint32_t rows);
tensor_t graph_rows(const tensor_t *x, uint32_t first, uint32_t rows);

/* Core attention of one layer, query and cache written: fills attended.  False: an op refused. */
bool graph_attend_prefill(graph_t *self, const layer_t *layer, const graph_step_t *step);
bool graph_attend_decode(graph_t *self, const layer_t *layer, const graph_step_t *step);

#endif
