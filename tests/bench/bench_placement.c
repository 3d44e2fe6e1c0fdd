/* tests/bench/bench_placement.c - one placement decision of prefill_lb: a long prompt among many
 * workers.
 *
 * Every worker and the store hold another depth of the prompt's chain.  The chain is searched by
 * halves, for what is held is always a prefix of it: 11 look-ups per holder where one pass over all
 * keys takes up to 1,562.  Both are timed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/kv/prefix.h"
#include "runtime/policy/placement.h"

enum {
    WORKERS = 100,
    TOKENS = 100000,
    KEYS = TOKENS / BLOCK_TOKENS,
    ROUNDS = 2000,
    OTHERS = 200000
};

static uint64_t random_state = 1;

static uint64_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = random_state;
    x ^= x >> 33;
    return x * 0xff51afd7ed558ccdu;
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print(const char *name, double *us)
{
    qsort(us, ROUNDS, sizeof *us, compare);
    printf("%-42s median %8.1f us   p99 %8.1f us   max %8.1f us\n", name, us[ROUNDS / 2],
           us[ROUNDS * 99 / 100], us[ROUNDS - 1]);
}

static uint32_t depth_by_pass(const prefix_t *prefix, const uint8_t *keys, uint32_t holder)
{
    uint32_t depth = 0; /* as if nothing were known of prefixes: every key is asked for */
    for (; depth < KEYS; depth++)
        if (prefix_depth(prefix, keys + (size_t)depth * KEY_BYTES, 1, holder) == 0) break;
    return depth;
}

static void fill(prefix_t *prefix, uint8_t *keys)
{
    for (uint32_t i = 0; i < KEYS; i++)
        block_key_store(keys, i, (block_key_t){ random_bits(), random_bits() });
    for (uint32_t holder = 0; holder <= WORKERS; holder++) {
        uint32_t depth = (uint32_t)(random_bits() % KEYS);
        for (uint32_t i = 0; i < depth; i++)
            (void)prefix_add(prefix, block_key_load(keys, i), holder);
    }
    for (uint32_t i = 0; i < OTHERS; i++)
        (void)prefix_add(prefix, (block_key_t){ random_bits(), random_bits() },
                         (uint32_t)(random_bits() % (WORKERS + 1)));
}

static uint32_t decide(const prefix_t *prefix, const uint8_t *keys, placement_prefill_t *ranks)
{
    uint32_t in_store = prefix_depth(prefix, keys, KEYS, 0);
    for (uint32_t i = 0; i < WORKERS; i++) {
        uint32_t own = prefix_depth(prefix, keys, KEYS, 1 + i);
        ranks[i].cached_tokens = (own > in_store ? own : in_store) * BLOCK_TOKENS;
    }
    return placement_choose_prefill(ranks, WORKERS, TOKENS);
}

int main(void)
{
    uint32_t capacity = KEYS + OTHERS;
    prefix_memory_t memory = { .cells = calloc(table_cells(capacity), sizeof(table_cell_t)),
                               .keys = calloc(capacity, sizeof(block_key_t)),
                               .holders = calloc((size_t)capacity * prefix_words(WORKERS + 1), 8),
                               .free_list = calloc(capacity, sizeof(uint32_t)) };
    static uint8_t keys[KEYS * KEY_BYTES];
    static placement_prefill_t ranks[WORKERS];
    static double us[ROUNDS];
    prefix_t prefix;
    prefix_init(&prefix, &memory, capacity, WORKERS + 1);
    fill(&prefix, keys);
    for (uint32_t i = 0; i < WORKERS; i++)
        ranks[i] = (placement_prefill_t){
            true, random_bits() % 100000, random_bits() % 1000000000, 50000, 100, 0
        };
    uint64_t sum = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        double start = now_us();
        sum += decide(&prefix, keys, ranks);
        us[round] = now_us() - start;
    }
    printf("a prompt of %d tokens (%d keys), %d workers and the store, %u keys known\n", TOKENS,
           KEYS, WORKERS, prefix.table.count);
    print("decision, chains searched by halves", us);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        double start = now_us();
        sum += depth_by_pass(&prefix, keys, round % (WORKERS + 1));
        us[round] = now_us() - start;
    }
    print("one holder, one pass over its keys", us);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        double start = now_us();
        sum += prefix_depth(&prefix, keys, KEYS, round % (WORKERS + 1));
        us[round] = now_us() - start;
    }
    print("one holder, searched by halves", us);
    free(memory.cells);
    free(memory.keys);
    free(memory.holders);
    free(memory.free_list);
    return sum == 0; /* so that nothing is optimised away */
}
