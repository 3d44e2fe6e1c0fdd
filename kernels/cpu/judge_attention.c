/* kernels/cpu/judge_attention.c - the judge's attention: rope, the paged cache, MLA in both of its
 * forms. */
#include "judge.h"
#include "queue.h"
#include "rows.h"

#include <errno.h>
#include <math.h>
#include <string.h>

static void rotate(float *pairs, uint32_t dim, const float *table)
{
    for (uint32_t i = 0; i < dim; i += 2) {
        double real = (double)pairs[i], imaginary = (double)pairs[i + 1];
        double cosine = (double)table[i], sine = (double)table[i + 1];
        pairs[i] = (float)(real * cosine - imaginary * sine);
        pairs[i + 1] = (float)(real * sine + imaginary * cosine);
    }
}

int judge_rope(queue_t *q, const tensor_t *x, uint32_t heads, uint32_t head_stride, uint32_t offset,
               uint32_t dim, const float *table, const uint32_t *positions)
{
    if (heads == 0 || dim % 2 != 0 || (heads - 1) * head_stride + offset + dim > x->cols)
        return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, x->cols * sizeof *row);
    if (!row) return ENOMEM;
    for (uint32_t t = 0; t < x->rows; t++) {
        row_load(x, t, row);
        for (uint32_t h = 0; h < heads; h++)
            rotate(row + (size_t)h * head_stride + offset, dim, table + (size_t)positions[t] * dim);
        row_store(x, t, row);
    }
    return 0;
}

static void normalise(float *row, const float *weights, uint32_t count, float eps)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) sum += (double)row[i] * (double)row[i];
    double factor = 1.0 / sqrt(sum / count + (double)eps);
    for (uint32_t i = 0; i < count; i++)
        row[i] = (float)((double)row[i] * factor * (double)weights[i]);
}

int judge_kv_write(queue_t *q, const cache_t *cache, const tensor_t *kv, const tensor_t *weight,
                   float eps, const float *table, const uint32_t *positions,
                   const sequence_t *sequences, uint32_t count)
{
    if (kv->cols != cache->latent + cache->rope || weight->cols != cache->latent ||
        cache->rope % 2 != 0)
        return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, kv->cols * sizeof *row),
          *weights = queue_take(q, weight->cols * sizeof *weights);
    if (!row || !weights) return ENOMEM;
    weight_load(weight, 0, weights);
    for (uint32_t s = 0; s < count; s++) {
        const sequence_t *sequence = &sequences[s];
        for (uint32_t i = 0; i < sequence->rows; i++) {
            uint32_t t = sequence->first_row + i;
            row_load(kv, t, row);
            normalise(row, weights, cache->latent, eps);
            rotate(row + cache->latent, cache->rope, table + (size_t)positions[t] * cache->rope);
            cache_store(cache, sequence->blocks, sequence->first_position + i, row);
        }
    }
    return 0;
}

int judge_kv_gather(queue_t *q, const tensor_t *latent, const tensor_t *rope, const cache_t *cache,
                    const sequence_t *sequences, uint32_t count)
{
    if (latent->cols != cache->latent || rope->cols != cache->rope) return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, ((size_t)cache->latent + cache->rope) * sizeof *row);
    if (!row) return ENOMEM;
    for (uint32_t s = 0; s < count; s++) {
        uint32_t first = sequences[s].first_key, keys = sequence_keys(&sequences[s]);
        if (latent->rows < first + keys || rope->rows < first + keys) return EINVAL;
        for (uint32_t i = 0; i < keys; i++) {
            cache_load(cache, sequences[s].blocks, i, row);
            row_store(latent, first + i, row);
            row_store(rope, first + i, row + cache->latent);
        }
    }
    return 0;
}

/* From scores to weights that sum to one. */
static void softmax(double *scores, uint32_t count)
{
    double max = scores[0], sum = 0;
    for (uint32_t s = 1; s < count; s++) max = fmax(max, scores[s]);
    for (uint32_t s = 0; s < count; s++) {
        scores[s] = exp(scores[s] - max);
        sum += scores[s];
    }
    for (uint32_t s = 0; s < count; s++) scores[s] /= sum;
}

static double dot(const float *a, const float *b, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static void add_scaled(double *sums, const float *values, double weight, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) sums[i] += weight * (double)values[i];
}

static void round_to_f32(const double *sums, uint32_t count, float *out)
{
    for (uint32_t i = 0; i < count; i++) out[i] = (float)sums[i];
}

/* Everything that the heads of one query row need: its keys as F32, room for scores and sums. */
typedef struct {
    float *query, *kv, *k_rope, *out;
    double *scores, *sums;
} attention_room_t;

static void attend_prefill(const attention_room_t *room, const heads_t *heads, uint32_t keys)
{
    uint32_t kv_head = heads->nope + heads->value;
    for (uint32_t h = 0; h < heads->heads; h++) {
        const float *query = room->query + (size_t)h * (heads->nope + heads->rope);
        const float *kv = room->kv + (size_t)h * kv_head;
        size_t kv_cols = (size_t)heads->heads * kv_head;
        for (uint32_t s = 0; s < keys; s++)
            room->scores[s] =
                (double)heads->scale *
                (dot(query, kv + s * kv_cols, heads->nope) +
                 dot(query + heads->nope, room->k_rope + (size_t)s * heads->rope, heads->rope));
        softmax(room->scores, keys);
        memset(room->sums, 0, heads->value * sizeof *room->sums);
        for (uint32_t s = 0; s < keys; s++)
            add_scaled(room->sums, kv + s * kv_cols + heads->nope, room->scores[s], heads->value);
        round_to_f32(room->sums, heads->value, room->out + (size_t)h * heads->value);
    }
}

static int attend_sequence(queue_t *q, const prefill_call_t *sequence)
{
    const tensor_t *query = &sequence->query, *kv = &sequence->kv;
    const heads_t *heads = sequence->heads;
    queue_reset(q);
    attention_room_t room = { .query = queue_take(q, query->cols * sizeof(float)),
                              .out = queue_take(q, sequence->out.cols * sizeof(float)),
                              .scores = queue_take(q, kv->rows * sizeof(double)),
                              .sums = queue_take(q, heads->value * sizeof(double)),
                              .kv = queue_take(q, (size_t)kv->rows * kv->cols * sizeof(float)),
                              .k_rope =
                                  queue_take(q, (size_t)kv->rows * heads->rope * sizeof(float)) };
    if (!room.query || !room.out || !room.scores || !room.sums || !room.kv || !room.k_rope)
        return ENOMEM;
    for (uint32_t s = 0; s < kv->rows; s++) {
        row_load(kv, s, room.kv + (size_t)s * kv->cols);
        row_load(&sequence->k_rope, s, room.k_rope + (size_t)s * heads->rope);
    }
    for (uint32_t r = 0; r < query->rows; r++) {
        row_load(query, r, room.query);
        attend_prefill(&room, heads, sequence->first_position + r + 1);
        row_store(&sequence->out, r, room.out);
    }
    return 0;
}

int judge_prefill_each(queue_t *q, const prefill_call_t *step, const sequence_t *sequences,
                       uint32_t count, prefill_attend_t attend)
{
    const tensor_t *query = &step->query, *kv = &step->kv;
    const heads_t *heads = step->heads;
    if (query->cols != heads->heads * (heads->nope + heads->rope) ||
        step->k_rope.cols != heads->rope ||
        kv->cols != heads->heads * (heads->nope + heads->value) ||
        step->out.cols != heads->heads * heads->value || step->out.rows != query->rows ||
        step->k_rope.rows < kv->rows)
        return EINVAL;
    for (uint32_t s = 0; s < count; s++) {
        if (!sequence_fits(&sequences[s], query, kv)) return EINVAL;
        uint32_t row = sequences[s].first_row, row_end = row + sequences[s].rows;
        uint32_t key = sequences[s].first_key, key_end = key + sequence_keys(&sequences[s]);
        prefill_call_t sequence = { .out = rows_slice(&step->out, row, row_end),
                                    .query = rows_slice(query, row, row_end),
                                    .kv = rows_slice(kv, key, key_end),
                                    .k_rope = rows_slice(&step->k_rope, key, key_end),
                                    .heads = heads,
                                    .first_position = sequences[s].first_position };
        int status = attend(q, &sequence);
        if (status != 0) return status;
    }
    return 0;
}

int judge_mha_prefill(queue_t *q, const tensor_t *out, const tensor_t *query, const tensor_t *kv,
                      const tensor_t *k_rope, const heads_t *heads, const sequence_t *sequences,
                      uint32_t count)
{
    const prefill_call_t step = {
        .out = *out, .query = *query, .kv = *kv, .k_rope = *k_rope, .heads = heads
    };
    return judge_prefill_each(q, &step, sequences, count, attend_sequence);
}

/* The first cols of `head` values each: W_UK rows turn a query around, W_UV rows bring a latent
 * back. */
int judge_absorb_query(queue_t *q, const tensor_t *out, const tensor_t *query, const tensor_t *kv_b,
                       const heads_t *heads)
{
    uint32_t from = heads->nope + heads->rope, to = heads->latent + heads->rope;
    if (query->cols != heads->heads * from || out->cols != heads->heads * to ||
        kv_b->cols != heads->latent || kv_b->rows != heads->heads * (heads->nope + heads->value))
        return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, query->cols * sizeof *row),
          *turned = queue_take(q, out->cols * sizeof *turned);
    float *weights = queue_take(q, kv_b->cols * sizeof *weights);
    double *sums = queue_take(q, heads->latent * sizeof *sums);
    if (!row || !turned || !weights || !sums) return ENOMEM;
    for (uint32_t t = 0; t < query->rows; t++) {
        row_load(query, t, row);
        for (uint32_t h = 0; h < heads->heads; h++) {
            const float *head = row + (size_t)h * from;
            memset(sums, 0, heads->latent * sizeof *sums);
            for (uint32_t i = 0; i < heads->nope; i++) {
                weight_load(kv_b, h * (heads->nope + heads->value) + i, weights);
                add_scaled(sums, weights, (double)head[i], heads->latent);
            }
            round_to_f32(sums, heads->latent, turned + (size_t)h * to);
            memcpy(turned + (size_t)h * to + heads->latent, head + heads->nope,
                   heads->rope * sizeof *turned);
        }
        row_store(out, t, turned);
    }
    return 0;
}

int judge_absorb_value(queue_t *q, const tensor_t *out, const tensor_t *latent,
                       const tensor_t *kv_b, const heads_t *heads)
{
    if (latent->cols != heads->heads * heads->latent || out->cols != heads->heads * heads->value ||
        kv_b->cols != heads->latent || kv_b->rows != heads->heads * (heads->nope + heads->value))
        return EINVAL;
    queue_reset(q);
    float *row = queue_take(q, latent->cols * sizeof *row),
          *values = queue_take(q, out->cols * sizeof *values);
    float *weights = queue_take(q, kv_b->cols * sizeof *weights);
    if (!row || !values || !weights) return ENOMEM;
    for (uint32_t t = 0; t < latent->rows; t++) {
        row_load(latent, t, row);
        for (uint32_t h = 0; h < heads->heads; h++)
            for (uint32_t v = 0; v < heads->value; v++) {
                weight_load(kv_b, h * (heads->nope + heads->value) + heads->nope + v, weights);
                values[h * heads->value + v] =
                    (float)dot(row + (size_t)h * heads->latent, weights, heads->latent);
            }
        row_store(out, t, values);
    }
    return 0;
}

static void attend_decode(const attention_room_t *room, const heads_t *heads, uint32_t keys)
{
    uint32_t cols = heads->latent + heads->rope;
    for (uint32_t h = 0; h < heads->heads; h++) {
        for (uint32_t s = 0; s < keys; s++)
            room->scores[s] = (double)heads->scale * dot(room->query + (size_t)h * cols,
                                                         room->kv + (size_t)s * cols, cols);
        softmax(room->scores, keys);
        memset(room->sums, 0, heads->latent * sizeof *room->sums);
        for (uint32_t s = 0; s < keys; s++)
            add_scaled(room->sums, room->kv + (size_t)s * cols, room->scores[s], heads->latent);
        round_to_f32(room->sums, heads->latent, room->out + (size_t)h * heads->latent);
    }
}

static int decode_sequence(queue_t *q, const tensor_t *out, const tensor_t *query,
                           const cache_t *cache, const heads_t *heads, const sequence_t *sequence)
{
    uint32_t keys = sequence->first_position + sequence->rows, cols = heads->latent + heads->rope;
    queue_reset(q);
    attention_room_t room = { .query = queue_take(q, query->cols * sizeof(float)),
                              .out = queue_take(q, out->cols * sizeof(float)),
                              .scores = queue_take(q, keys * sizeof(double)),
                              .sums = queue_take(q, heads->latent * sizeof(double)),
                              .kv = queue_take(q, (size_t)keys * cols * sizeof(float)) };
    if (!room.query || !room.out || !room.scores || !room.sums || !room.kv) return ENOMEM;
    for (uint32_t s = 0; s < keys; s++)
        cache_load(cache, sequence->blocks, s, room.kv + (size_t)s * cols);
    for (uint32_t r = 0; r < sequence->rows; r++) {
        row_load(query, sequence->first_row + r, room.query);
        attend_decode(&room, heads, sequence->first_position + r + 1);
        row_store(out, sequence->first_row + r, room.out);
    }
    return 0;
}

int judge_mla_decode(queue_t *q, const tensor_t *out, const tensor_t *query, const cache_t *cache,
                     const heads_t *heads, const sequence_t *sequences, uint32_t count)
{
    if (query->cols != heads->heads * (heads->latent + heads->rope) ||
        out->cols != heads->heads * heads->latent || cache->latent != heads->latent ||
        cache->rope != heads->rope)
        return EINVAL;
    for (uint32_t s = 0; s < count; s++) {
        int status = decode_sequence(q, out, query, cache, heads, &sequences[s]);
        if (status != 0) return status;
    }
    return 0;
}
