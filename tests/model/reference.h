/* tests/model/reference.h - reads what the reference implementation said: prompts, greedy tokens,
 * logits.
 *
 * reference.json and reference.safetensors were written by transformers in float32.  A missing file
 * fails the test.
 */
#ifndef TESTS_MODEL_REFERENCE_H
#define TESTS_MODEL_REFERENCE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "runtime/model/graph.h"
#include "runtime/model/safetensors.h"

enum { REFERENCE_IDS_MAX = 4096 };

typedef struct {
    uint32_t prompt[REFERENCE_IDS_MAX], greedy[64];
    double margin[64]; /* between the best two logits; 1e9 where the reference does not say */
    uint32_t prompt_count, greedy_count;
} reference_case_t;

typedef struct {
    cJSON *root;
    safetensors_t *tensors;
    uint32_t count;
} reference_t;

static inline cJSON *reference_json(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is missing", path);
    char *text = malloc(1 << 20);
    assert_non_null(text);
    size_t size = fread(text, 1, 1 << 20, file);
    fclose(file);
    cJSON *root = cJSON_ParseWithLength(text, size);
    free(text);
    assert_non_null(root);
    return root;
}

static inline reference_t reference_open(const char *dir)
{
    char path[4096];
    error_text_t why;
    reference_t self = { 0 };
    snprintf(path, sizeof path, "%s/reference.json", dir);
    self.root = reference_json(path);
    self.count = (uint32_t)cJSON_GetArraySize(self.root);
    snprintf(path, sizeof path, "%s/reference.safetensors", dir);
    self.tensors = safetensors_open_file(path, &why);
    if (!self.tensors) fail_msg("%s", why.text);
    return self;
}

static inline void reference_close(reference_t *self)
{
    cJSON_Delete(self->root);
    safetensors_close(&self->tensors);
}

static inline uint32_t reference_ids(const cJSON *list, uint32_t *out, uint32_t max)
{
    uint32_t count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        assert_true(count < max);
        out[count++] = (uint32_t)item->valuedouble;
    }
    return count;
}

static inline void reference_read(const reference_t *self, uint32_t index, reference_case_t *out)
{
    const cJSON *item = cJSON_GetArrayItem(self->root, (int)index);
    const cJSON *margins = cJSON_GetObjectItem(item, "top1_margin");
    out->prompt_count =
        reference_ids(cJSON_GetObjectItem(item, "prompt_ids"), out->prompt, REFERENCE_IDS_MAX);
    out->greedy_count = reference_ids(cJSON_GetObjectItem(item, "greedy_ids"), out->greedy, 64);
    for (uint32_t i = 0; i < out->greedy_count; i++) {
        const cJSON *margin = cJSON_GetArrayItem(margins, (int)i);
        out->margin[i] = margin ? margin->valuedouble : 1e9;
    }
}

/* Relative L2 distance of `count` values to the last rows of a reference tensor; the reference must
 * have them. */
static inline double reference_distance(const reference_t *self, const char *name,
                                        const float *values, size_t count)
{
    const safetensor_t *tensor = safetensors_find(self->tensors, name);
    if (!tensor) fail_msg("%s is missing in the reference", name);
    assert_true(tensor->bytes >= count * sizeof(float));
    const char *from = (const char *)tensor->data + tensor->bytes - count * sizeof(float);
    double distance = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        float expected;
        memcpy(&expected, from + i * sizeof expected, sizeof expected);
        double difference = (double)values[i] - (double)expected;
        distance += difference * difference;
        norm += (double)expected * (double)expected;
    }
    assert_true(norm > 0);
    return sqrt(distance / norm);
}

static inline uint32_t reference_argmax(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* A model with a cache and a graph, for one sequence at a time or more. */
typedef struct {
    model_t *model;
    queue_t *queue;
    graph_t *graph;
    char *cache;
    uint32_t blocks[4096 / BLOCK_TOKENS * 4];
    float *logits;
} bench_t;

typedef struct {
    const char *dir;
    const ops_t *ops;
    ep_group_t *group;
    uint32_t rank, ranks;
    uint32_t rows_max;
    int is_cache_f32;
} bench_options_t;

static inline bench_t bench_open(const bench_options_t *options)
{
    error_text_t why;
    bench_t self = { 0 };
    weights_options_t weights = { .dir = options->dir,
                                  .ops = options->ops,
                                  .rank = options->rank,
                                  .ranks = options->ranks ? options->ranks : 1 };
    self.model = model_load(&weights, &why);
    if (!self.model) fail_msg("%s", why.text);
    uint32_t context = self.model->config.context,
             blocks = sizeof self.blocks / sizeof *self.blocks;
    self.queue =
        queue_new_cpu(graph_queue_bytes(&self.model->config, options->rows_max, context, 1), 1);
    self.cache = malloc(blocks * model_block_bytes(&self.model->config) * 2);
    self.logits = malloc((size_t)options->rows_max * self.model->config.vocab * sizeof(float));
    assert_true(self.queue && self.cache && self.logits);
    /* Blocks in an order of their own, so that a block table that is ignored shows. */
    for (uint32_t i = 0; i < blocks; i++) self.blocks[i] = (i * 37 + 11) % blocks;
    graph_options_t graph = { .model = self.model,
                              .ops = options->ops,
                              .queue = self.queue,
                              .group = options->group,
                              .rows_max = options->rows_max,
                              .sequences_max = 64,
                              .context_max = context,
                              .cache = self.cache,
                              .is_cache_f32 = options->is_cache_f32 };
    self.graph = graph_new(&graph, &why);
    if (!self.graph) fail_msg("%s", why.text);
    return self;
}

static inline void bench_close(bench_t *self)
{
    graph_destroy(&self->graph);
    queue_destroy(&self->queue);
    model_destroy(&self->model);
    free(self->cache);
    free(self->logits);
}

/* Tokens first..first+count-1 of one sequence; logits of the last row (or of all) are in
 * self->logits. */
static inline void bench_step(bench_t *self, const uint32_t *ids, uint32_t first, uint32_t count,
                              bool is_decode, float *hidden)
{
    uint32_t last = count - 1;
    sequence_t sequence = { .rows = count, .first_position = first, .blocks = self->blocks };
    graph_step_t step = { .ids = ids + first,
                          .sequences = &sequence,
                          .sequence_count = 1,
                          .row_count = count,
                          .is_decode = is_decode,
                          .logit_rows = &last,
                          .logit_row_count = 1,
                          .logits = self->logits,
                          .hidden = hidden };
    assert_int_equal(graph_step(self->graph, &step), ERR_OK);
}

/* The prompt in chunks of at most `chunk` rows. */
static inline void bench_prefill(bench_t *self, const uint32_t *ids, uint32_t count, uint32_t chunk)
{
    for (uint32_t first = 0; first < count; first += chunk)
        bench_step(self, ids, first, count - first < chunk ? count - first : chunk, false, NULL);
}

#endif
