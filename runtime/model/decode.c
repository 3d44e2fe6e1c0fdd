/* runtime/model/decode.c - attention of new rows in absorbed form: W_UK moves to the query and W_UV
 * to the output, so that the cached latents are read once for all heads and never expanded. */
#include "graph_parts.h"

bool graph_attend_decode(graph_t *self, const layer_t *layer, const graph_step_t *step)
{
    const ops_t *ops = self->options.ops;
    queue_t *q = self->options.queue;
    tensor_t query = graph_head(&self->query, step->row_count);
    tensor_t absorbed = graph_head(&self->absorbed, step->row_count);
    tensor_t latent = graph_head(&self->attended_latent, step->row_count);
    tensor_t out = graph_head(&self->attended, step->row_count);
    return !ops->absorb_query(q, &absorbed, &query, &layer->kv_b, &self->heads) &&
           !ops->mla_decode(q, &latent, &absorbed, &self->cache, &self->heads, step->sequences,
                            step->sequence_count) &&
           !ops->absorb_value(q, &out, &latent, &layer->kv_b, &self->heads);
}
