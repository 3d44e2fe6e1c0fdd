/* kernels/cpu/roof.c - the measuring of roofs. */
#include "roof.h"

#include <string.h>
#include <time.h>

enum { TRIES = 5, ROUNDS = 200000 };

double roof_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double roof_operations(const char *table)
{
    double (*loop)(uint32_t) = avx2_peak_loop;
    if (strcmp(table, "avx512") == 0) loop = avx512_peak_loop;
    if (strcmp(table, "avx512_bf16") == 0) loop = avx512_bf16_peak_loop;
    if (strcmp(table, "amx") == 0) loop = amx_peak_loop;
    double best = 0;
    for (int i = 0; i < TRIES; i++) {
        double begin = roof_seconds(), operations = loop(ROUNDS);
        double rate = operations / (roof_seconds() - begin);
        if (rate > best) best = rate;
    }
    return best;
}

/* Several streams at once, each fetched ahead: one alone does not keep the memory busy. */
double roof_read_bytes(const void *buffer, size_t bytes)
{
    enum { STREAMS = 4, LINE_WORDS = 8, AHEAD_WORDS = 32 * LINE_WORDS };
    const uint64_t *words = buffer;
    size_t count = bytes / sizeof *words / (STREAMS * LINE_WORDS) * LINE_WORDS;
    double best = 0;
    for (int i = 0; i < TRIES; i++) {
        uint64_t sums[LINE_WORDS] = { 0 };
        double begin = roof_seconds();
        for (size_t at = 0; at < count; at += LINE_WORDS)
            for (size_t stream = 0; stream < STREAMS; stream++) {
                const uint64_t *line = words + stream * count + at;
                __builtin_prefetch(line + AHEAD_WORDS);
                for (size_t lane = 0; lane < LINE_WORDS; lane++) sums[lane] += line[lane];
            }
        double rate = (double)(STREAMS * count * sizeof *words) / (roof_seconds() - begin);
        for (size_t lane = 0; lane < LINE_WORDS; lane++) __asm__ volatile("" ::"r"(sums[lane]));
        if (rate > best) best = rate;
    }
    return best;
}
