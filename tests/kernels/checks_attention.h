/* tests/kernels/checks_attention.h - prefill, decode and the absorbed products against sums in
 * double. */
#ifndef TESTS_KERNELS_CHECKS_ATTENTION_H
#define TESTS_KERNELS_CHECKS_ATTENTION_H

#include "checks.h"

#include <math.h>
#include <stdlib.h>

static inline void naive_softmax(double *scores, uint32_t count)
{
    double sum = 0, max = -INFINITY;
    for (uint32_t i = 0; i < count; i++) max = fmax(max, scores[i]);
    for (uint32_t i = 0; i < count; i++) sum += exp(scores[i] - max);
    for (uint32_t i = 0; i < count; i++) scores[i] = exp(scores[i] - max) / sum;
}

static inline double *wanted_prefill(const tensor_t *query, const tensor_t *kv,
                                     const tensor_t *k_rope, const heads_t *heads,
                                     uint32_t first_position)
{
    uint32_t d = heads->nope + heads->rope, kv_head = heads->nope + heads->value;
    double *wanted = calloc((size_t)query->rows * heads->heads * heads->value, sizeof *wanted);
    double *scores = calloc(kv->rows, sizeof *scores);
    for (uint32_t r = 0; r < query->rows; r++)
        for (uint32_t h = 0; h < heads->heads; h++) {
            uint32_t keys = first_position + r + 1;
            for (uint32_t s = 0; s < keys; s++) {
                scores[s] = 0;
                for (uint32_t i = 0; i < d; i++)
                    scores[s] += element_of(query, r, h * d + i, 0) *
                                 (i < heads->nope ? element_of(kv, s, h * kv_head + i, 0)
                                                  : element_of(k_rope, s, i - heads->nope, 0));
                scores[s] *= (double)heads->scale;
            }
            naive_softmax(scores, keys);
            for (uint32_t s = 0; s < keys; s++)
                for (uint32_t v = 0; v < heads->value; v++)
                    wanted[((size_t)r * heads->heads + h) * heads->value + v] +=
                        scores[s] * element_of(kv, s, h * kv_head + heads->nope + v, 0);
        }
    free(scores);
    return wanted;
}

/* The prompt at once against naive sums; then cut into chunks, which are sequences of one call and
 * share its keys, against itself.  Its keys begin at row 2 of kv. */
static inline void check_prefill(check_t *self, const heads_t *heads, uint32_t rows,
                                 uint32_t first_position)
{
    enum { FIRST_KEY = 2, CHUNKS_MAX = 8 };
    uint32_t keys = first_position + rows, chunks = 0;
    tensor_t query =
        random_tensor(self, DTYPE_F32, rows, heads->heads * (heads->nope + heads->rope), 0);
    tensor_t kv = random_tensor(self, DTYPE_F32, FIRST_KEY + keys,
                                heads->heads * (heads->nope + heads->value), 0);
    tensor_t k_rope = random_tensor(self, DTYPE_F32, FIRST_KEY + keys, heads->rope, 0);
    tensor_t own_kv = rows_between(&kv, FIRST_KEY, FIRST_KEY + keys),
             own_rope = rows_between(&k_rope, FIRST_KEY, FIRST_KEY + keys);
    tensor_t out = new_tensor(DTYPE_F32, rows, heads->heads * heads->value, 0);
    tensor_t chunked = new_tensor(DTYPE_F32, rows, heads->heads * heads->value, 0);
    poison_scratch(self);
    sequence_t whole = { .rows = rows, .first_position = first_position, .first_key = FIRST_KEY };
    expect(self, self->ops->mha_prefill(self->q, &out, &query, &kv, &k_rope, heads, &whole, 1) == 0,
           "mha_prefill", 1, 0);
    double *wanted = wanted_prefill(&query, &own_kv, &own_rope, heads, first_position);
    compare(self, "mha_prefill", &out, wanted, 3e-6);
    sequence_t parts[CHUNKS_MAX];
    for (uint32_t first = 0, step = 1; first < rows; first += step, step = step * 3 + 1) {
        parts[chunks] = whole;
        parts[chunks].first_row = first;
        parts[chunks].rows = first + step < rows ? step : rows - first;
        parts[chunks++].first_position = first_position + first;
    }
    expect(self,
           self->ops->mha_prefill(self->q, &chunked, &query, &kv, &k_rope, heads, parts, chunks) ==
               0,
           "mha_prefill of chunks", 1, 0);
    expect(self, is_same_rows(&out, &chunked), "a chunked prompt differs from the whole", rows, 0);
    free(wanted);
    free_tensor(&query);
    free_tensor(&kv);
    free_tensor(&k_rope);
    free_tensor(&out);
    free_tensor(&chunked);
}

enum { BLOCK_TOKENS = 64, POOL_BLOCKS = 24, LAYERS = 2 };

static inline cache_t new_cache(check_t *self, const heads_t *heads, dtype_t dtype)
{
    cache_t cache = { .dtype = dtype,
                      .layers = LAYERS,
                      .layer = 1,
                      .block_tokens = BLOCK_TOKENS,
                      .latent = heads->latent,
                      .rope = heads->rope };
    cache.block_stride = (size_t)LAYERS * BLOCK_TOKENS * (heads->latent + heads->rope);
    cache.data = malloc(POOL_BLOCKS * cache.block_stride * bytes_of(dtype));
    for (size_t i = 0; i < POOL_BLOCKS * cache.block_stride; i++) {
        float value = (float)(uniform(self) + uniform(self));
        if (dtype == DTYPE_F32)
            ((float *)cache.data)[i] = value;
        else
            ((uint16_t *)cache.data)[i] = bf16_from_f32(value);
    }
    return cache;
}

static inline double cache_element(const cache_t *cache, const sequence_t *sequence,
                                   uint32_t position, uint32_t col)
{
    size_t token = (size_t)cache->layer * cache->block_tokens + position % cache->block_tokens;
    size_t at = sequence->blocks[position / cache->block_tokens] * cache->block_stride +
                token * (cache->latent + cache->rope) + col;
    return cache->dtype == DTYPE_F32 ? (double)((const float *)cache->data)[at]
                                     : (double)f32_from_bf16(((const uint16_t *)cache->data)[at]);
}

static inline void wanted_decode(double *wanted, const tensor_t *query, const cache_t *cache,
                                 const heads_t *heads, const sequence_t *sequence)
{
    uint32_t d = heads->latent + heads->rope;
    double *scores = calloc(sequence->first_position + sequence->rows, sizeof *scores);
    for (uint32_t r = sequence->first_row; r < sequence->first_row + sequence->rows; r++)
        for (uint32_t h = 0; h < heads->heads; h++) {
            uint32_t keys = sequence->first_position + (r - sequence->first_row) + 1;
            for (uint32_t s = 0; s < keys; s++) {
                scores[s] = 0;
                for (uint32_t i = 0; i < d; i++)
                    scores[s] +=
                        element_of(query, r, h * d + i, 0) * cache_element(cache, sequence, s, i);
                scores[s] *= (double)heads->scale;
            }
            naive_softmax(scores, keys);
            for (uint32_t s = 0; s < keys; s++)
                for (uint32_t v = 0; v < heads->latent; v++)
                    wanted[((size_t)r * heads->heads + h) * heads->latent + v] +=
                        scores[s] * cache_element(cache, sequence, s, v);
        }
    free(scores);
}

/* Three sequences of a batch against naive sums, then each alone against the batch. */
static inline void check_decode(check_t *self, const heads_t *heads, dtype_t dtype)
{
    static const uint32_t blocks[3][5] = { { 7, 1, 12, 3, 20 },
                                           { 2, 4, 5, 6, 8 },
                                           { 23, 0, 9, 10, 11 } };
    sequence_t sequences[3] = {
        { .first_row = 0, .rows = 1, .first_position = 0, .blocks = blocks[0] },
        { .first_row = 1, .rows = 3, .first_position = 126, .blocks = blocks[1] },
        { .first_row = 4, .rows = 1, .first_position = 290, .blocks = blocks[2] }
    };
    cache_t cache = new_cache(self, heads, dtype);
    tensor_t query =
        random_tensor(self, DTYPE_F32, 5, heads->heads * (heads->latent + heads->rope), 0);
    tensor_t out = new_tensor(DTYPE_F32, 5, heads->heads * heads->latent, 0);
    tensor_t alone = new_tensor(DTYPE_F32, 5, heads->heads * heads->latent, 0);
    double *wanted = calloc(5 * out.cols, sizeof *wanted);
    poison_scratch(self);
    expect(self, self->ops->mla_decode(self->q, &out, &query, &cache, heads, sequences, 3) == 0,
           "mla_decode", 1, 0);
    for (uint32_t s = 0; s < 3; s++) {
        wanted_decode(wanted, &query, &cache, heads, &sequences[s]);
        tensor_t part_query =
            rows_between(&query, sequences[s].first_row, sequences[s].first_row + 1);
        tensor_t part_out =
            rows_between(&alone, sequences[s].first_row, sequences[s].first_row + 1);
        tensor_t in_batch = rows_between(&out, sequences[s].first_row, sequences[s].first_row + 1);
        sequence_t one = { .rows = 1,
                           .first_position = sequences[s].first_position,
                           .blocks = sequences[s].blocks };
        expect(self,
               self->ops->mla_decode(self->q, &part_out, &part_query, &cache, heads, &one, 1) == 0,
               "mla_decode", 1, 0);
        expect(self, is_same_rows(&part_out, &in_batch), "a sequence alone differs from its batch",
               s, 0);
    }
    compare(self, "mla_decode", &out, wanted, 3e-6);
    free(wanted);
    free(cache.data);
    free_tensor(&query);
    free_tensor(&out);
    free_tensor(&alone);
}

static inline void check_absorb(check_t *self, const heads_t *heads, dtype_t dtype, uint32_t rows)
{
    uint32_t d = heads->nope + heads->rope, to = heads->latent + heads->rope,
             kv_head = heads->nope + heads->value;
    tensor_t kv_b = random_tensor(self, dtype, heads->heads * kv_head, heads->latent, 1);
    tensor_t query = random_tensor(self, DTYPE_F32, rows, heads->heads * d, 0);
    tensor_t latent = random_tensor(self, DTYPE_F32, rows, heads->heads * heads->latent, 0);
    tensor_t turned = new_tensor(DTYPE_F32, rows, heads->heads * to, 0);
    tensor_t values = new_tensor(DTYPE_F32, rows, heads->heads * heads->value, 0);
    double *wanted_query = calloc((size_t)rows * turned.cols, sizeof(double));
    double *wanted_value = calloc((size_t)rows * values.cols, sizeof(double));
    for (uint32_t t = 0; t < rows; t++)
        for (uint32_t h = 0; h < heads->heads; h++) {
            for (uint32_t l = 0; l < heads->latent; l++) {
                for (uint32_t i = 0; i < heads->nope; i++)
                    wanted_query[(size_t)t * turned.cols + h * to + l] +=
                        element_of(&query, t, h * d + i, 0) *
                        element_of(&kv_b, h * kv_head + i, l, 1);
                for (uint32_t v = 0; v < heads->value; v++)
                    wanted_value[(size_t)t * values.cols + h * heads->value + v] +=
                        element_of(&latent, t, h * heads->latent + l, 0) *
                        element_of(&kv_b, h * kv_head + heads->nope + v, l, 1);
            }
            for (uint32_t i = 0; i < heads->rope; i++)
                wanted_query[(size_t)t * turned.cols + h * to + heads->latent + i] =
                    element_of(&query, t, h * d + heads->nope + i, 0);
        }
    poison_scratch(self);
    expect(self, self->ops->absorb_query(self->q, &turned, &query, &kv_b, heads) == 0,
           "absorb_query", 1, 0);
    poison_scratch(self);
    expect(self, self->ops->absorb_value(self->q, &values, &latent, &kv_b, heads) == 0,
           "absorb_value", 1, 0);
    compare(self, "absorb_query", &turned, wanted_query, 2e-6);
    compare(self, "absorb_value", &values, wanted_value, 2e-6);
    free(wanted_query);
    free(wanted_value);
    free_tensor(&kv_b);
    free_tensor(&query);
    free_tensor(&latent);
    free_tensor(&turned);
    free_tensor(&values);
}

/* Head dimensions of the published models, and odd ones. */
static inline void check_attention(check_t *self)
{
    static const heads_t shapes[] = {
        { .heads = 4, .nope = 128, .rope = 64, .value = 128, .latent = 512, .scale = 0.1F },
        { .heads = 2, .nope = 32, .rope = 16, .value = 32, .latent = 64, .scale = 0.2F },
        { .heads = 19, .nope = 6, .rope = 2, .value = 11, .latent = 37, .scale = 0.5F }
    };
    for (size_t i = 0; i < 3; i++) {
        check_prefill(self, &shapes[i], 1, 0);
        check_prefill(self, &shapes[i], 70, 0);
        check_prefill(self, &shapes[i], 33, 95);
        check_decode(self, &shapes[i], DTYPE_BF16);
        check_decode(self, &shapes[i], DTYPE_F32);
        check_absorb(self, &shapes[i], DTYPE_F8E4M3, 1);
        check_absorb(self, &shapes[i], DTYPE_BF16, 14);
    }
}

#endif
