/* tests/bench/bench_sample.c - microseconds per sampled token over DeepSeek-V3's vocabulary, beside
 * one pass of expf.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "runtime/model/sample.h"

enum { VOCAB = 129280, ROUNDS = 200 };

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now); /* of this core, whoever else is busy */
    return 1e6 * (double)now.tv_sec + 1e-3 * (double)now.tv_nsec;
}

/* Logits as a model's: a few likely tokens above a broad bulk. */
static void fill(float *logits)
{
    uint64_t state = 1;
    for (uint32_t i = 0; i < VOCAB; i++) {
        float sum = 0;
        for (int j = 0; j < 4; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += (float)(state >> 40) * 0x1p-24f;
        }
        logits[i] = 6 * (sum - 2) + (i % 9973 == 0 ? 12.0f : 0.0f);
    }
}

static double time_sampling(const float *logits, const sampling_t *sampling)
{
    sampler_t sampler = { &ops_judge, queue_new_cpu((size_t)VOCAB * 24, 1), VOCAB };
    engine_result_t out;
    double start = now_us();
    for (uint32_t i = 0; i < ROUNDS; i++) {
        static uint32_t tokens[ROUNDS];
        sample_context_t context = {
            .sampling = sampling, .tokens = tokens, .token_count = i, .generated = i
        };
        sample_token(&sampler, logits, &context, &out);
        tokens[i] = out.token;
    }
    double each = (now_us() - start) / ROUNDS;
    queue_destroy(&sampler.queue);
    return each;
}

int main(void)
{
    static float logits[VOCAB];
    static const struct {
        const char *name;
        sampling_t sampling;
    } cases[] = {
        { "greedy", { .temperature = 0, .top_p = 1, .repetition_penalty = 1 } },
        { "temperature 1", { .temperature = 1, .top_p = 1, .repetition_penalty = 1 } },
        { "top_p 0.95, temperature 0.6",
          { .temperature = 0.6f, .top_p = 0.95f, .repetition_penalty = 1 } },
        { "top_k 50", { .temperature = 1, .top_p = 1, .top_k = 50, .repetition_penalty = 1 } },
        { "min_p 0.05, penalties",
          { .temperature = 1,
            .top_p = 1,
            .min_p = 0.05f,
            .repetition_penalty = 1.1f,
            .presence_penalty = 1 } },
        { "greedy, 20 logprobs",
          { .temperature = 0,
            .top_p = 1,
            .repetition_penalty = 1,
            .logprobs = 1,
            .top_logprobs = 20 } },
    };
    fill(logits);
    double start = now_us(), sum = 0;
    for (int i = 0; i < ROUNDS; i++)
        for (uint32_t j = 0; j < VOCAB; j++) sum += (double)expf(logits[j] - (float)(i % 3));
    double pass = (now_us() - start) / ROUNDS;
    printf("%-30s %8.1f us (sum %.3g)\n", "expf of every logit", pass, sum);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double each = time_sampling(logits, &cases[i].sampling);
        printf("%-30s %8.1f us  %5.2f of that\n", cases[i].name, each, each / pass);
    }
    return 0;
}
