/* runtime/model/prefill.c - attention of prompt rows: keys and values are made again from the
 * cached latents.
 *
 * Everything a row sees comes from the cache, its own chunk too, so how a prompt was cut into
 * chunks does not show.
 */
#include "graph_parts.h"

/* Scratch holds the keys of one sequence, so first_key is 0 for each. */
static bool attend_sequence(graph_t *self, const layer_t *layer, const sequence_t *sequence,
                            uint32_t rows)
{
    const ops_t *ops = self->options.ops;
    queue_t *q = self->options.queue;
    uint32_t keys = sequence->first_position + sequence->rows;
    tensor_t latent = graph_head(&self->past_latent, keys);
    tensor_t rope = graph_head(&self->past_rope, keys);
    tensor_t kv = graph_head(&self->past_kv, keys);
    tensor_t query = graph_head(&self->query, rows), out = graph_head(&self->attended, rows);
    return !ops->kv_gather(q, &latent, &rope, &self->cache, sequence, 1) &&
           !ops->gemm(q, &kv, &latent, &layer->kv_b) &&
           !ops->mha_prefill(q, &out, &query, &kv, &rope, &self->heads, sequence, 1);
}

bool graph_attend_prefill(graph_t *self, const layer_t *layer, const graph_step_t *step)
{
    for (uint32_t i = 0; i < step->sequence_count; i++)
        if (!attend_sequence(self, layer, &step->sequences[i], step->row_count)) return false;
    return true;
}
