/* kernels/cpu/fast_attention.h - attention in F32 with a running softmax over blocks of KEYS tokens
 * from position 0.
 *
 * The blocks begin at position 0 whatever the chunk or the batch, so a row's result does not depend
 * on how its prompt was cut.  A block of keys is copied to contiguous F32 first: rows of the cache
 * and of kv lie whole pages apart.
 */
#include "fast.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"
#include "tile.h"

#include <errno.h>
#include <math.h>

enum {
    KEYS = 64,
    ROW_TILE = 4,
    QUERY_ROWS = 64,
    HEADS_PER_ITEM = 16,
    VALUE_VECTORS = LANES == 16 ? 4 : 2
};

typedef struct {
    const float *keys, *values;
    size_t key_stride, value_stride;
    uint32_t depth, value; /* of a key, of a value */
    float scale;
} key_block_t;

/* Queries that look at the block, and what is known of their softmax so far. */
typedef struct {
    const float *query;
    float *out;
    size_t query_stride, out_stride;
    float *max, *sum;
} queries_t;

/* Keys that row r sees of a block: the first visible + r x step, as far as there are any. */
typedef struct {
    int64_t visible;
    uint32_t step;
} sight_t;

static inline uint32_t keys_seen(const sight_t *sight, uint32_t row)
{
    int64_t seen = sight->visible + (int64_t)row * sight->step;
    return seen < 0 ? 0 : seen > KEYS ? KEYS : (uint32_t)seen;
}

/* From scores to weights relative to the new maximum; returns the factor for everything summed
 * before. */
static float weigh(float *scores, uint32_t seen, float scale, float *max, float *sum)
{
    vector_t largest = vector_set(*max);
    for (uint32_t s = seen; s < KEYS; s++) scores[s] = -INFINITY;
    for (uint32_t s = 0; s < KEYS; s += LANES) {
        vector_t scaled = vector_load(scores + s) * vector_set(scale);
        vector_store(scores + s, scaled);
        largest = vector_max(largest, scaled);
    }
    float new_max = vector_largest(largest);
    vector_t total = vector_set(0);
    for (uint32_t s = 0; s < KEYS; s += LANES) {
        vector_t weights = vector_exp(vector_load(scores + s) - vector_set(new_max));
        vector_store(scores + s, weights);
        total = total + weights;
    }
    float lanes[LANES];
    vector_store(lanes, vector_exp(vector_set(*max - new_max)));
    *max = new_max;
    *sum = *sum * lanes[0] + vector_sum(total);
    return lanes[0];
}

/* out[r] = out[r] x factors[r] + the sum of weights[r][s] x values[s]. */
typedef struct {
    const float *values, *weights, *factors;
    float *out;
    size_t value_stride, out_stride;
    uint32_t value, keys;
} sums_t;

INLINE void add_columns(const sums_t *self, uint32_t col, const uint32_t rows)
{
    vector_t sums[ROW_TILE * VALUE_VECTORS];
    float *out = self->out + col;
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        UNROLL for (uint32_t v = 0; v < VALUE_VECTORS; v++) sums[r * VALUE_VECTORS + v] =
            vector_set(self->factors[r]) * vector_load(out + r * self->out_stride + v * LANES);
    }
    const float *values = self->values + col;
    for (uint32_t s = 0; s < self->keys; s++, values += self->value_stride) {
        vector_t columns[VALUE_VECTORS];
        UNROLL for (uint32_t v = 0; v < VALUE_VECTORS; v++) columns[v] =
            vector_load(values + v * LANES);
        UNROLL for (uint32_t r = 0; r < rows; r++)
        {
            vector_t weight = vector_set(self->weights[r * KEYS + s]);
            UNROLL for (uint32_t v = 0; v < VALUE_VECTORS; v++) sums[r * VALUE_VECTORS + v] =
                vector_fma(weight, columns[v], sums[r * VALUE_VECTORS + v]);
        }
    }
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        UNROLL for (uint32_t v = 0; v < VALUE_VECTORS; v++)
            vector_store(out + r * self->out_stride + v * LANES, sums[r * VALUE_VECTORS + v]);
    }
}

/* Functions of their own: inlined into their callers, the sums would no longer fit into the
 * registers. */
static __attribute__((noinline)) void add_columns_of_tile(const sums_t *self, uint32_t col)
{
    add_columns(self, col, ROW_TILE);
}

static __attribute__((noinline)) void add_columns_of_row(const sums_t *self, uint32_t col)
{
    add_columns(self, col, 1);
}

/* At most one vector of columns. */
static void add_last_columns(const sums_t *self, uint32_t col, uint32_t row)
{
    uint32_t count = self->value - col < LANES ? self->value - col : LANES;
    float *out = self->out + row * self->out_stride + col;
    vector_t total = vector_load_some(out, count) * vector_set(self->factors[row]);
    for (uint32_t s = 0; s < self->keys; s++)
        total =
            vector_fma(vector_set(self->weights[row * KEYS + s]),
                       vector_load_some(self->values + s * self->value_stride + col, count), total);
    vector_store_some(out, total, count);
}

static void add_values(const sums_t *self, uint32_t rows)
{
    uint32_t col = 0;
    for (; col + VALUE_VECTORS * LANES <= self->value; col += VALUE_VECTORS * LANES) {
        if (rows == ROW_TILE)
            add_columns_of_tile(self, col);
        else
            add_columns_of_row(self, col);
    }
    for (; col < self->value; col += LANES)
        for (uint32_t r = 0; r < rows; r++) add_last_columns(self, col, r);
}

INLINE void attend_tile(const key_block_t *block, const queries_t *queries, uint32_t first,
                        const sight_t *sight, const uint32_t rows)
{
    float scores[ROW_TILE * KEYS], factors[ROW_TILE];
    uint32_t keys = keys_seen(sight, first + rows - 1);
    dots_t dots = { .a = queries->query + first * queries->query_stride,
                    .a_stride = queries->query_stride,
                    .depth = block->depth,
                    .out_stride = KEYS };
    for (uint32_t s = 0; s < keys; s += DOT_COLUMNS) {
        for (uint32_t j = 0; j < DOT_COLUMNS; j++)
            dots.b[j] = block->keys + (s + j < keys ? s + j : keys - 1) * block->key_stride;
        dots.out = scores + s;
        dot_tile(&dots, rows);
    }
    for (uint32_t r = 0; r < rows; r++)
        factors[r] = weigh(scores + r * KEYS, keys_seen(sight, first + r), block->scale,
                           &queries->max[first + r], &queries->sum[first + r]);
    const sums_t sums = { .values = block->values,
                          .weights = scores,
                          .factors = factors,
                          .out = queries->out + first * queries->out_stride,
                          .value_stride = block->value_stride,
                          .out_stride = queries->out_stride,
                          .value = block->value,
                          .keys = keys };
    add_values(&sums, rows);
}

static void attend(const key_block_t *block, const queries_t *queries, uint32_t count,
                   const sight_t *sight)
{
    uint32_t first = 0;
    for (; first + ROW_TILE <= count; first += ROW_TILE)
        if (keys_seen(sight, first + ROW_TILE - 1) > 0)
            attend_tile(block, queries, first, sight, ROW_TILE);
    for (; first < count; first++)
        if (keys_seen(sight, first) > 0) attend_tile(block, queries, first, sight, 1);
}

static void begin_softmax(const queries_t *queries, uint32_t count, uint32_t value)
{
    for (uint32_t r = 0; r < count; r++) {
        queries->max[r] = -INFINITY;
        queries->sum[r] = 0;
        memset(queries->out + r * queries->out_stride, 0, value * sizeof(float));
    }
}

static void end_softmax(const queries_t *queries, uint32_t count, uint32_t value)
{
    for (uint32_t r = 0; r < count; r++) {
        float factor = 1.0F / queries->sum[r];
        for (uint32_t i = 0; i < value; i++) queries->out[r * queries->out_stride + i] *= factor;
    }
}

typedef struct {
    const tensor_t *out, *query, *kv, *k_rope;
    const heads_t *heads;
    uint32_t first_position, row_blocks;
    float *scratch;
    size_t scratch_floats;
} prefill_t;

static void copy_keys(const prefill_t *self, uint32_t head, uint32_t first, uint32_t count,
                      float *keys, float *values)
{
    const heads_t *heads = self->heads;
    uint32_t depth = heads->nope + heads->rope, from = head * (heads->nope + heads->value);
    for (uint32_t s = 0; s < count; s++) {
        size_t at = (size_t)(first + s) * self->kv->stride + from;
        float *key = keys + (size_t)s * depth;
        expand(element(self->kv->data, self->kv->dtype, at), self->kv->dtype, 1, heads->nope, key);
        expand(element(self->k_rope->data, self->k_rope->dtype,
                       (size_t)(first + s) * self->k_rope->stride),
               self->k_rope->dtype, 1, heads->rope, key + heads->nope);
        expand(element(self->kv->data, self->kv->dtype, at + heads->nope), self->kv->dtype, 1,
               heads->value, values + (size_t)s * heads->value);
    }
}

static void prefill_item(const prefill_t *self, uint32_t head, uint32_t first_row, float *scratch)
{
    const heads_t *heads = self->heads;
    uint32_t depth = heads->nope + heads->rope, rows = self->query->rows - first_row;
    if (rows > QUERY_ROWS) rows = QUERY_ROWS;
    float max[QUERY_ROWS], sum[QUERY_ROWS], *values = scratch + (size_t)KEYS * depth;
    queries_t queries = { .query = row_f32(self->query, first_row) + (size_t)head * depth,
                          .query_stride = self->query->stride,
                          .out = row_f32(self->out, first_row) + (size_t)head * heads->value,
                          .out_stride = self->out->stride,
                          .max = max,
                          .sum = sum };
    key_block_t block = { .keys = scratch,
                          .values = values,
                          .key_stride = depth,
                          .value_stride = heads->value,
                          .depth = depth,
                          .value = heads->value,
                          .scale = heads->scale };
    uint32_t first_position = self->first_position + first_row, end = first_position + rows;
    begin_softmax(&queries, rows, heads->value);
    for (uint32_t key = 0; key < end; key += KEYS) {
        copy_keys(self, head, key, end - key < KEYS ? end - key : KEYS, scratch, values);
        sight_t sight = { .visible = (int64_t)first_position + 1 - key, .step = 1 };
        attend(&block, &queries, rows, &sight);
    }
    end_softmax(&queries, rows, heads->value);
}

static void prefill_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const prefill_t *self = context;
    for (uint32_t item = first; item < last; item++)
        prefill_item(self, item % self->heads->heads, item / self->heads->heads * QUERY_ROWS,
                     self->scratch + thread * self->scratch_floats);
}

static int prefill_sequence(queue_t *q, const prefill_call_t *sequence)
{
    const heads_t *heads = sequence->heads;
    queue_reset(q);
    prefill_t self = { .out = &sequence->out,
                       .query = &sequence->query,
                       .kv = &sequence->kv,
                       .k_rope = &sequence->k_rope,
                       .heads = heads,
                       .first_position = sequence->first_position,
                       .row_blocks = (sequence->query.rows + QUERY_ROWS - 1) / QUERY_ROWS };
    self.scratch_floats = (size_t)KEYS * (heads->nope + heads->rope + heads->value);
    self.scratch = queue_take(q, queue_threads(q) * self.scratch_floats * sizeof(float));
    if (!self.scratch) return ENOMEM;
    queue_share(q, self.row_blocks * heads->heads, 1, prefill_part, &self);
    return 0;
}

int NAME(mha_prefill)(queue_t *q, const tensor_t *out, const tensor_t *query, const tensor_t *kv,
                      const tensor_t *k_rope, const heads_t *heads, const sequence_t *sequences,
                      uint32_t count)
{
    if (out->dtype != DTYPE_F32 || query->dtype != DTYPE_F32 || kv->dtype == DTYPE_F8E4M3 ||
        k_rope->dtype == DTYPE_F8E4M3)
        return judge_mha_prefill(q, out, query, kv, k_rope, heads, sequences, count);
    const prefill_call_t step = {
        .out = *out, .query = *query, .kv = *kv, .k_rope = *k_rope, .heads = heads
    };
    return judge_prefill_each(q, &step, sequences, count, prefill_sequence);
}

typedef struct {
    const tensor_t *out, *query;
    const cache_t *cache;
    const heads_t *heads;
    const sequence_t *sequences;
    uint32_t count, groups;
    float *scratch;
    size_t scratch_floats;
} decode_t;

static void decode_item(const decode_t *self, const sequence_t *sequence, uint32_t row,
                        uint32_t head, float *keys)
{
    const heads_t *heads = self->heads;
    uint32_t depth = heads->latent + heads->rope, count = heads->heads - head;
    if (count > HEADS_PER_ITEM) count = HEADS_PER_ITEM;
    float max[HEADS_PER_ITEM], sum[HEADS_PER_ITEM];
    queries_t queries = { .query = row_f32(self->query, row) + (size_t)head * depth,
                          .query_stride = depth,
                          .out = row_f32(self->out, row) + (size_t)head * heads->latent,
                          .out_stride = heads->latent,
                          .max = max,
                          .sum = sum };
    key_block_t block = { .keys = keys,
                          .values = keys,
                          .key_stride = depth,
                          .value_stride = depth,
                          .depth = depth,
                          .value = heads->latent,
                          .scale = heads->scale };
    uint32_t end = sequence->first_position + (row - sequence->first_row) + 1;
    begin_softmax(&queries, count, heads->latent);
    for (uint32_t key = 0; key < end; key += KEYS) {
        uint32_t seen = end - key < KEYS ? end - key : KEYS;
        for (uint32_t s = 0; s < seen; s++)
            expand(element(self->cache->data, self->cache->dtype,
                           cache_offset(self->cache, sequence->blocks, key + s)),
                   self->cache->dtype, 1, depth, keys + (size_t)s * depth);
        sight_t sight = { .visible = seen, .step = 0 };
        attend(&block, &queries, count, &sight);
    }
    end_softmax(&queries, count, heads->latent);
}

static void decode_part(void *context, uint32_t thread, uint32_t first, uint32_t last)
{
    const decode_t *self = context;
    float *keys = self->scratch + thread * self->scratch_floats;
    for (uint32_t item = first; item < last; item++) {
        uint32_t row = item / self->groups, head = item % self->groups * HEADS_PER_ITEM;
        for (uint32_t s = 0; s < self->count; s++) {
            const sequence_t *sequence = &self->sequences[s];
            if (row >= sequence->first_row && row - sequence->first_row < sequence->rows)
                decode_item(self, sequence, row, head, keys);
        }
    }
}

int NAME(mla_decode)(queue_t *q, const tensor_t *out, const tensor_t *query, const cache_t *cache,
                     const heads_t *heads, const sequence_t *sequences, uint32_t count)
{
    if (out->dtype != DTYPE_F32 || query->dtype != DTYPE_F32 || cache->dtype == DTYPE_F8E4M3)
        return judge_mla_decode(q, out, query, cache, heads, sequences, count);
    if (query->cols != heads->heads * (heads->latent + heads->rope) ||
        out->cols != heads->heads * heads->latent || cache->latent != heads->latent ||
        cache->rope != heads->rope)
        return EINVAL;
    queue_reset(q);
    decode_t self = { .out = out,
                      .query = query,
                      .cache = cache,
                      .heads = heads,
                      .sequences = sequences,
                      .count = count,
                      .groups = (heads->heads + HEADS_PER_ITEM - 1) / HEADS_PER_ITEM };
    self.scratch_floats = (size_t)KEYS * (heads->latent + heads->rope);
    self.scratch = queue_take(q, queue_threads(q) * self.scratch_floats * sizeof(float));
    if (!self.scratch) return ENOMEM;
    queue_share(q, query->rows * self.groups, 1, decode_part, &self);
    return 0;
}
