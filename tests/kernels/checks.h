/* tests/kernels/checks.h - every op of a table against sums in double written here, for the tests
 * and the self-test. */
#ifndef TESTS_KERNELS_CHECKS_H
#define TESTS_KERNELS_CHECKS_H

#include "kernels/cpu/number.h"
#include "kernels/cpu/queue.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* What a run of the checks has found; `hash` covers the bits of every output. */
typedef struct {
    const ops_t *ops;
    queue_t *q;
    double gemm_tolerance; /* relative L2 error of matrix products */
    uint64_t random, hash;
    int failures, checks;
} check_t;

static inline double uniform(check_t *self)
{
    self->random += 0x9e3779b97f4a7c15U;
    uint64_t z = self->random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53 * 2 - 1;
}

static inline void expect(check_t *self, int is_good, const char *what, double found,
                          double allowed)
{
    self->checks++;
    if (is_good) return;
    self->failures++;
    printf("FAILED %s: %s: found %g, allowed %g\n", self->ops->name, what, found, allowed);
}

static inline void hash_bytes(check_t *self, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        self->hash = (self->hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3U;
}

/* Scratch full of NaN: an op that reads what it has not written shows it. */
static inline void poison_scratch(check_t *self)
{
    queue_reset(self->q);
    size_t bytes = queue_left(self->q);
    memset(queue_take(self->q, bytes), 0xff, bytes);
    queue_reset(self->q);
}

enum { EXTRA_COLS = 5 };

static inline size_t bytes_of(dtype_t dtype)
{
    return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_BF16 ? 2 : 1;
}

/* A tensor on the heap, all NaN, rows EXTRA_COLS apart; weights have scales per 128 x 128,
 * activations per row. */
static inline tensor_t new_tensor(dtype_t dtype, uint32_t rows, uint32_t cols, int is_weight)
{
    tensor_t x = { .dtype = dtype, .rows = rows, .cols = cols, .stride = cols + EXTRA_COLS };
    size_t bytes = ((size_t)rows * x.stride + 1) * bytes_of(dtype);
    x.data = malloc(bytes);
    memset(x.data, 0xff, bytes);
    if (dtype == DTYPE_F8E4M3) {
        x.scale_stride = (cols + 127) / 128;
        uint32_t scale_rows = is_weight ? (rows + 127) / 128 : rows;
        x.scales = malloc(((size_t)scale_rows * x.scale_stride + 1) * sizeof(float));
    }
    return x;
}

static inline void free_tensor(tensor_t *x)
{
    free(x->data);
    free(x->scales);
    free((void *)(uintptr_t)x->packed);
    *x = (tensor_t){ 0 };
}

/* The value of an element; `is_weight` says how scales lie. */
static inline double element_of(const tensor_t *x, uint32_t row, uint32_t col, int is_weight)
{
    size_t at = (size_t)row * x->stride + col;
    if (x->dtype == DTYPE_F32) return (double)((const float *)x->data)[at];
    if (x->dtype == DTYPE_BF16) return (double)f32_from_bf16(((const uint16_t *)x->data)[at]);
    uint32_t bits = ((const uint8_t *)x->data)[at], exponent = bits >> 3 & 15;
    double value = exponent ? ldexp(8 + (bits & 7), (int)exponent - 10) : ldexp(bits & 7, -9);
    double scale =
        (double)x->scales[(size_t)(is_weight ? row / 128 : row) * x->scale_stride + col / 128];
    return (bits & 0x80 ? -value : value) * scale;
}

static inline tensor_t random_tensor(check_t *self, dtype_t dtype, uint32_t rows, uint32_t cols,
                                     int is_weight)
{
    tensor_t x = new_tensor(dtype, rows, cols, is_weight);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < cols; c++) {
            size_t at = (size_t)r * x.stride + c;
            float value = (float)(uniform(self) + uniform(self));
            if (dtype == DTYPE_F32) ((float *)x.data)[at] = value;
            if (dtype == DTYPE_BF16) ((uint16_t *)x.data)[at] = bf16_from_f32(value);
            if (dtype == DTYPE_F8E4M3) ((uint8_t *)x.data)[at] = e4m3_from_f32(value * 200);
        }
    if (dtype != DTYPE_F8E4M3) return x;
    for (uint32_t i = 0; i < (is_weight ? (rows + 127) / 128 : rows) * x.scale_stride; i++)
        x.scales[i] = (float)(0.004 + 0.003 * uniform(self));
    return x;
}

static inline void prepare_weights(const check_t *self, tensor_t *w)
{
    size_t bytes = 0;
    if (self->ops->prepare_size(w, &bytes) != 0 || bytes == 0) return;
    void *packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(packed, 0xff, bytes);
    if (self->ops->prepare(w, packed) != 0) abort();
    w->packed = packed;
}

/* Compares an output with what it should be, and that nothing between its rows was touched. */
static inline void compare(check_t *self, const char *what, const tensor_t *out,
                           const double *wanted, double tolerance)
{
    double error = 0, size = 0;
    int is_clean = 1;
    for (uint32_t r = 0; r < out->rows; r++) {
        for (uint32_t c = 0; c < out->cols; c++) {
            double target = wanted[(size_t)r * out->cols + c],
                   difference = element_of(out, r, c, 0) - target;
            error += difference * difference;
            size += target * target;
        }
        const uint8_t *gap = (const uint8_t *)out->data +
                             ((size_t)r * out->stride + out->cols) * bytes_of(out->dtype);
        for (size_t i = 0; i < EXTRA_COLS * bytes_of(out->dtype); i++) is_clean &= gap[i] == 0xff;
        hash_bytes(self,
                   (const uint8_t *)out->data + (size_t)r * out->stride * bytes_of(out->dtype),
                   out->cols * bytes_of(out->dtype));
    }
    double relative = size > 0 ? sqrt(error / size) : sqrt(error);
    expect(self, relative <= tolerance, what, relative, tolerance);
    expect(self, is_clean, "written beyond the columns of a row", 1, 0);
}

static inline tensor_t rows_between(const tensor_t *x, uint32_t first, uint32_t last)
{
    tensor_t part = *x;
    part.data = (char *)x->data + (size_t)first * x->stride * bytes_of(x->dtype);
    part.rows = last - first;
    if (x->scales) part.scales = x->scales + (size_t)first * x->scale_stride;
    return part;
}

static inline int is_same_rows(const tensor_t *a, const tensor_t *b)
{
    for (uint32_t r = 0; r < a->rows; r++)
        if (memcmp((char *)a->data + (size_t)r * a->stride * bytes_of(a->dtype),
                   (char *)b->data + (size_t)r * b->stride * bytes_of(b->dtype),
                   a->cols * bytes_of(a->dtype)) != 0)
            return 0;
    return 1;
}

typedef struct {
    uint32_t m, n, k;
    dtype_t x, w, out;
} gemm_shape_t;

static inline double *wanted_product(const tensor_t *x, const tensor_t *w)
{
    double *wanted = calloc((size_t)x->rows * w->rows + 1, sizeof *wanted);
    for (uint32_t m = 0; m < x->rows; m++)
        for (uint32_t n = 0; n < w->rows; n++)
            for (uint32_t k = 0; k < x->cols; k++)
                wanted[(size_t)m * w->rows + n] += element_of(x, m, k, 0) * element_of(w, n, k, 1);
    return wanted;
}

static inline void check_gemm(check_t *self, const gemm_shape_t *shape)
{
    tensor_t x = random_tensor(self, shape->x, shape->m, shape->k, 0);
    tensor_t w = random_tensor(self, shape->w, shape->n, shape->k, 1);
    tensor_t out = new_tensor(shape->out, shape->m, shape->n, 0),
             alone = new_tensor(shape->out, 1, shape->n, 0);
    prepare_weights(self, &w);
    poison_scratch(self);
    char what[100];
    snprintf(what, sizeof what, "gemm m %u n %u k %u dtypes %d %d %d", shape->m, shape->n, shape->k,
             shape->x, shape->w, shape->out);
    expect(self, self->ops->gemm(self->q, &out, &x, &w) == 0, what, 1, 0);
    double *wanted = wanted_product(&x, &w);
    compare(self, what, &out, wanted, self->gemm_tolerance + (shape->out == DTYPE_BF16 ? 4e-3 : 0));
    for (uint32_t m = 0; m < shape->m; m += 1 + m / 3) {
        tensor_t row = rows_between(&x, m, m + 1), in_batch = rows_between(&out, m, m + 1);
        expect(self, self->ops->gemm(self->q, &alone, &row, &w) == 0, what, 1, 0);
        expect(self, is_same_rows(&alone, &in_batch),
               "a row alone differs from the row in its batch", m, 0);
    }
    free(wanted);
    free_tensor(&x);
    free_tensor(&w);
    free_tensor(&out);
    free_tensor(&alone);
}

/* Large enough for several passes over the rows and groups of columns, and for results that leave
 * past the caches: lines of 64 bytes, without gaps.  Bits are those of rows alone, and a row alone
 * is right in every column. */
static inline void check_large_gemm(check_t *self, dtype_t dtype)
{
    enum { ROWS = 490, COLS = 1088, DEPTH = 160 };
    tensor_t x = random_tensor(self, DTYPE_F32, ROWS, DEPTH, 0);
    tensor_t w = random_tensor(self, dtype, COLS, DEPTH, 1);
    tensor_t out = { .dtype = DTYPE_F32, .rows = ROWS, .cols = COLS, .stride = COLS },
             alone = new_tensor(DTYPE_F32, 1, COLS, 0);
    size_t bytes = sizeof(float) * ROWS * COLS;
    out.data = aligned_alloc(64, bytes);
    memset(out.data, 0xff, bytes);
    prepare_weights(self, &w);
    poison_scratch(self);
    expect(self, self->ops->gemm(self->q, &out, &x, &w) == 0, "a large gemm", 1, 0);
    for (uint32_t m = 0; m < ROWS; m += 1 + m / 3) {
        tensor_t row = rows_between(&x, m, m + 1), in_batch = rows_between(&out, m, m + 1);
        expect(self, self->ops->gemm(self->q, &alone, &row, &w) == 0, "a row of it", 1, 0);
        expect(self, is_same_rows(&alone, &in_batch),
               "a row alone differs from that of a large gemm", m, 0);
        if (m > 0) continue;
        double *wanted = wanted_product(&row, &w);
        compare(self, "a row of a large gemm", &alone, wanted, self->gemm_tolerance);
        free(wanted);
    }
    free_tensor(&x);
    free_tensor(&w);
    free_tensor(&out);
    free_tensor(&alone);
}

static inline void check_gemms(check_t *self)
{
    static const uint32_t sizes[][3] = { { 1, 3, 130 },    { 1, 1, 1 },      { 2, 256, 256 },
                                         { 3, 129, 96 },   { 37, 100, 65 },  { 13, 33, 300 },
                                         { 64, 288, 256 }, { 250, 70, 129 }, { 16, 64, 513 },
                                         { 17, 576, 520 }, { 530, 64, 288 }, { 31, 300, 600 } };
    static const dtype_t dtypes[] = { DTYPE_F32, DTYPE_BF16, DTYPE_F8E4M3 };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (size_t w = 0; w < 3; w++)
            check_gemm(self, &(gemm_shape_t){ sizes[i][0], sizes[i][1], sizes[i][2], DTYPE_F32,
                                              dtypes[w], DTYPE_F32 });
    /* Each number of few rows has a loop of its own. */
    for (uint32_t m = 1; m <= 14; m++)
        for (size_t w = 0; w < 3; w++)
            check_gemm(self, &(gemm_shape_t){ m, 168, 300, DTYPE_F32, dtypes[w], DTYPE_F32 });
    check_gemm(self, &(gemm_shape_t){ 5, 70, 200, DTYPE_BF16, DTYPE_F8E4M3, DTYPE_F32 });
    check_gemm(self, &(gemm_shape_t){ 35, 70, 200, DTYPE_F8E4M3, DTYPE_F8E4M3, DTYPE_BF16 });
    check_gemm(self, &(gemm_shape_t){ 35, 64, 256, DTYPE_F32, DTYPE_BF16, DTYPE_BF16 });
    for (size_t w = 0; w < 3; w++) check_large_gemm(self, dtypes[w]);
}

/* Groups: empty ones, one row, all rows in one; each must equal the plain product to the bit. */
static inline void check_grouped_gemm(check_t *self, const uint32_t *offsets, uint32_t groups)
{
    enum { N = 70, K = 136, GROUPS_MAX = 8 };
    uint32_t rows = offsets[groups];
    tensor_t x = random_tensor(self, DTYPE_F32, rows, K, 0),
             out = new_tensor(DTYPE_F32, rows, N, 0);
    tensor_t plain = new_tensor(DTYPE_F32, rows, N, 0), w[GROUPS_MAX];
    for (uint32_t g = 0; g < groups; g++) {
        w[g] = random_tensor(self, g % 2 ? DTYPE_F8E4M3 : DTYPE_BF16, N, K, 1);
        prepare_weights(self, &w[g]);
    }
    poison_scratch(self);
    groups_t ranges = { .first = offsets, .count = groups };
    expect(self, self->ops->grouped_gemm(self->q, &out, &x, w, &ranges) == 0, "grouped_gemm", 1, 0);
    for (uint32_t g = 0; g < groups; g++) {
        tensor_t part = rows_between(&x, offsets[g], offsets[g + 1]);
        tensor_t wanted = rows_between(&plain, offsets[g], offsets[g + 1]);
        expect(self, self->ops->gemm(self->q, &wanted, &part, &w[g]) == 0, "gemm of a group", 1, 0);
        free_tensor(&w[g]);
    }
    expect(self, is_same_rows(&out, &plain), "grouped_gemm differs from gemm", 1, 0);
    free_tensor(&x);
    free_tensor(&out);
    free_tensor(&plain);
}

static inline void check_grouped_gemms(check_t *self)
{
    check_grouped_gemm(self, (const uint32_t[]){ 0, 0, 1, 1, 18, 18 }, 5);
    check_grouped_gemm(self, (const uint32_t[]){ 0, 0, 40, 40 }, 3);
    check_grouped_gemm(self, (const uint32_t[]){ 0, 1, 2, 3, 4, 5, 6, 7, 8 }, 8);
    check_grouped_gemm(self, (const uint32_t[]){ 0, 0 }, 1);
}

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

/* Each byte is the nearest to value / scale, and each scale its block's amax / 448. */
static inline void expect_quantised(check_t *self, const char *what, const tensor_t *out,
                                    const double *wanted)
{
    for (uint32_t r = 0; r < out->rows; r++)
        for (uint32_t first = 0; first < out->cols; first += 128) {
            uint32_t end = first + 128 < out->cols ? first + 128 : out->cols;
            const double *values = wanted + (size_t)r * out->cols;
            double amax = 1e-4, worst = 0,
                   scale = (double)out->scales[r * out->scale_stride + first / 128];
            for (uint32_t c = first; c < end; c++) amax = fmax(amax, fabs(values[c]));
            for (uint32_t c = first; c < end; c++) {
                double allowed = fmax(fabs(values[c]) / 16, scale * 0x1p-10) * 1.0001;
                worst = fmax(worst, fabs(element_of(out, r, c, 0) - values[c]) / allowed);
            }
            expect(self, fabs(scale - amax / 448) <= 2e-6 * scale, what, scale, amax / 448);
            expect(self, worst <= 1, what, worst, 1);
        }
}

static inline void check_norms(check_t *self, uint32_t rows, uint32_t cols)
{
    tensor_t x = random_tensor(self, DTYPE_F32, rows, cols, 0),
             weight = random_tensor(self, DTYPE_BF16, 1, cols, 0);
    tensor_t residual = random_tensor(self, DTYPE_F32, rows, cols, 0),
             out = new_tensor(DTYPE_F32, rows, cols, 0);
    tensor_t quantised = new_tensor(DTYPE_F8E4M3, rows, cols, 0);
    double *wanted = calloc((size_t)rows * cols, sizeof *wanted),
           *sums = calloc((size_t)rows * cols, sizeof *sums);
    for (int is_added = 0; is_added < 2; is_added++) {
        for (uint32_t r = 0; r < rows; r++) {
            double squares = 0;
            for (uint32_t c = 0; c < cols; c++) {
                sums[(size_t)r * cols + c] =
                    element_of(&x, r, c, 0) + (is_added ? element_of(&residual, r, c, 0) : 0);
                squares += sums[(size_t)r * cols + c] * sums[(size_t)r * cols + c];
            }
            for (uint32_t c = 0; c < cols; c++)
                wanted[(size_t)r * cols + c] = sums[(size_t)r * cols + c] /
                                               sqrt(squares / cols + 1e-6) *
                                               element_of(&weight, 0, c, 0);
        }
        poison_scratch(self);
        if (is_added)
            expect(self,
                   self->ops->add_rmsnorm(self->q, &out, &quantised, &residual, &x, &weight,
                                          1e-6F) == 0,
                   "add_rmsnorm", 1, 0);
        else
            expect(self, self->ops->rmsnorm(self->q, &out, &x, &weight, 1e-6F) == 0, "rmsnorm", 1,
                   0);
        compare(self, "rmsnorm", &out, wanted, 1e-6);
    }
    compare(self, "add_rmsnorm's residual", &residual, sums, 1e-7);
    expect_quantised(self, "add_rmsnorm's bytes", &quantised, wanted);
    expect(self,
           self->ops->add_rmsnorm(self->q, NULL, &quantised, &residual, NULL, &weight, 1e-6F) == 0,
           "add_rmsnorm of nothing", 1, 0);
    compare(self, "add_rmsnorm of nothing leaves the residual", &residual, sums, 1e-7);
    expect_quantised(self, "add_rmsnorm's bytes alone", &quantised, wanted);
    free(wanted);
    free(sums);
    free_tensor(&x);
    free_tensor(&weight);
    free_tensor(&residual);
    free_tensor(&out);
    free_tensor(&quantised);
}

static inline void check_silu(check_t *self, uint32_t rows, uint32_t cols, dtype_t dtype)
{
    tensor_t both = random_tensor(self, dtype, rows, 2 * cols, 0),
             out = new_tensor(DTYPE_F32, rows, cols, 0);
    if (dtype == DTYPE_F32) {
        ((float *)both.data)[0] = -200.0F;
        ((float *)both.data)[cols / 2] = 90.0F;
    }
    double *wanted = calloc((size_t)rows * cols, sizeof *wanted);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < cols; c++) {
            double gate = element_of(&both, r, c, 0);
            wanted[(size_t)r * cols + c] =
                gate / (1 + exp(-gate)) * element_of(&both, r, cols + c, 0);
        }
    poison_scratch(self);
    expect(self, self->ops->silu_mul(self->q, &out, &both) == 0, "silu_mul", 1, 0);
    compare(self, "silu_mul", &out, wanted, 1e-6);
    free(wanted);
    free_tensor(&both);
    free_tensor(&out);
}

/* Groups far apart, one of them empty: each row is silu_mul's, and rows of no group stay. */
static inline void check_grouped_silu(check_t *self)
{
    enum { ROWS = 12, COLS = 70, GROUPS = 4 };
    static const uint32_t first[GROUPS + 1] = { 0, 4, 4, 8, ROWS }, counts[] = { 3, 0, 4, 1 };
    tensor_t both = random_tensor(self, DTYPE_F32, ROWS, 2 * COLS, 0),
             out = new_tensor(DTYPE_F32, ROWS, COLS, 0),
             plain = new_tensor(DTYPE_F32, ROWS, COLS, 0);
    groups_t groups = { .first = first, .rows = counts, .count = GROUPS };
    poison_scratch(self);
    expect(self, self->ops->grouped_silu_mul(self->q, &out, &both, &groups) == 0,
           "grouped_silu_mul", 1, 0);
    expect(self, self->ops->silu_mul(self->q, &plain, &both) == 0, "silu_mul", 1, 0);
    for (uint32_t g = 0; g < GROUPS; g++)
        for (uint32_t r = first[g]; r < first[g + 1]; r++) {
            tensor_t row = rows_between(&out, r, r + 1), wanted = rows_between(&plain, r, r + 1);
            int is_good = r < first[g] + counts[g] ? is_same_rows(&row, &wanted)
                                                   : isnan(element_of(&out, r, 0, 0));
            expect(self, is_good, "a row of grouped_silu_mul", r, g);
        }
    groups.rows = NULL;
    expect(self, self->ops->grouped_silu_mul(self->q, &out, &both, &groups) == 0,
           "grouped_silu_mul without counts", 1, 0);
    expect(self, is_same_rows(&out, &plain), "grouped_silu_mul of all rows", 1, 0);
    free_tensor(&both);
    free_tensor(&out);
    free_tensor(&plain);
}

static inline void check_combine(check_t *self, dtype_t dtype)
{
    enum { TOKENS = 5, TOP_K = 3, ROWS = 9, COLS = 133 };
    tensor_t rows = random_tensor(self, dtype, ROWS, COLS, 0),
             out = random_tensor(self, DTYPE_F32, TOKENS, COLS, 0);
    uint32_t index[TOKENS * TOP_K];
    float weights[TOKENS * TOP_K];
    double *wanted = calloc(TOKENS * COLS, sizeof *wanted);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t c = 0; c < COLS; c++) wanted[t * COLS + c] = element_of(&out, t, c, 0);
    for (uint32_t i = 0; i < TOKENS * TOP_K; i++) {
        index[i] = (i * 7 + 2) % ROWS;
        weights[i] = (float)uniform(self);
        if (i % 4 == 3) index[i] = NO_ROW;
        for (uint32_t c = 0; c < COLS && index[i] != NO_ROW; c++)
            wanted[i / TOP_K * COLS + c] += (double)weights[i] * element_of(&rows, index[i], c, 0);
    }
    poison_scratch(self);
    expect(self, self->ops->combine(self->q, &out, &rows, index, weights, TOP_K) == 0, "combine", 1,
           0);
    compare(self, "combine", &out, wanted, 1e-6);
    index[4] = ROWS;
    expect(self, self->ops->combine(self->q, &out, &rows, index, weights, TOP_K) != 0,
           "combine takes a row too far", 1, 0);
    free(wanted);
    free_tensor(&rows);
    free_tensor(&out);
}

/* The gate's choice must be the judge's: sums in F32 may only exchange experts whose scores agree
 * to six digits. */
static inline void check_gate(check_t *self, const gate_t *gate, uint32_t rows, uint32_t cols)
{
    tensor_t x = random_tensor(self, DTYPE_F32, rows, cols, 0),
             w = random_tensor(self, DTYPE_BF16, gate->experts, cols, 1);
    float *bias = calloc(gate->experts, sizeof *bias),
          *weights = calloc((size_t)rows * gate->top_k, sizeof *weights);
    float *judged = calloc((size_t)rows * gate->top_k, sizeof *judged),
          *alone = calloc(gate->top_k, sizeof *alone);
    uint32_t *ids = calloc((size_t)rows * gate->top_k, sizeof *ids),
             *judged_ids = calloc((size_t)rows * gate->top_k, sizeof *ids);
    for (uint32_t e = 0; e < gate->experts; e++) bias[e] = (float)uniform(self) * 0.1F;
    poison_scratch(self);
    expect(self, self->ops->gate(self->q, ids, weights, &x, &w, bias, gate) == 0, "gate", 1, 0);
    expect(self, ops_judge.gate(self->q, judged_ids, judged, &x, &w, bias, gate) == 0,
           "the judge's gate", 1, 0);
    hash_bytes(self, ids, (size_t)rows * gate->top_k * sizeof *ids);
    hash_bytes(self, weights, (size_t)rows * gate->top_k * sizeof *weights);
    for (uint32_t i = 0; i < rows * gate->top_k; i++)
        expect(self,
               ids[i] == judged_ids[i] &&
                   fabsf(weights[i] - judged[i]) <= 1e-5F * fabsf(judged[i]) + 1e-9F,
               "gate", (double)weights[i], (double)judged[i]);
    for (uint32_t r = 0; r < rows; r++) {
        tensor_t row = rows_between(&x, r, r + 1);
        expect(self, self->ops->gate(self->q, judged_ids, alone, &row, &w, bias, gate) == 0,
               "gate of one row", 1, 0);
        expect(self,
               memcmp(alone, weights + (size_t)r * gate->top_k, gate->top_k * sizeof *alone) == 0,
               "the gate of a row alone differs from its batch", r, 0);
    }
    free(bias);
    free(weights);
    free(judged);
    free(alone);
    free(ids);
    free(judged_ids);
    free_tensor(&x);
    free_tensor(&w);
}

static inline void check_rows(check_t *self)
{
    check_norms(self, 1, 256);
    check_norms(self, 5, 131);
    check_silu(self, 3, 130, DTYPE_F32);
    check_silu(self, 2, 64, DTYPE_BF16);
    check_grouped_silu(self);
    check_combine(self, DTYPE_F32);
    check_combine(self, DTYPE_BF16);
    check_combine(self, DTYPE_F8E4M3);
    check_gate(self,
               &(gate_t){ .experts = 32,
                          .top_k = 4,
                          .groups = 4,
                          .top_groups = 2,
                          .is_normalised = 1,
                          .scale = 2.5F },
               7, 250);
    check_gate(self,
               &(gate_t){ .experts = 15,
                          .top_k = 6,
                          .groups = 5,
                          .top_groups = 3,
                          .score = GATE_SOFTMAX,
                          .group_score = GATE_MAX,
                          .scale = 16.0F },
               6, 100);
}

/* Everything, on a queue of its own; the hash must not depend on the threads. */
static inline check_t check_table(const ops_t *ops, uint32_t threads)
{
    int is_bf16 = strcmp(ops->name, "avx512_bf16") == 0, is_amx = strcmp(ops->name, "amx") == 0;
    check_t self = { .ops = ops,
                     .q = queue_new_cpu((size_t)8 << 20, threads),
                     .random = 42,
                     .hash = 0xcbf29ce484222325U,
                     .gemm_tolerance = is_bf16  ? 5e-3
                                       : is_amx ? 1e-5
                                                : 2e-6 };
    check_gemms(&self);
    check_grouped_gemms(&self);
    check_attention(&self);
    check_rows(&self);
    queue_destroy(&self.q);
    return self;
}

#endif
