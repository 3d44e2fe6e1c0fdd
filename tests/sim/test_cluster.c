/* tests/sim/test_cluster.c - the whole company under faults; `--seed N [--verbose]`: one life. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cluster.h"

enum { CALM_SEEDS = 10 }; /* CLUSTER_SEEDS, of seeds with faults, comes from CMake */

static uint64_t seed_now; /* for the handler of aborts, which has nothing else to go by */

static void on_abort(int signal_number)
{
    char text[64];
    int size = snprintf(text, sizeof text, "aborted in seed %llu\n", (unsigned long long)seed_now);
    if (write(STDERR_FILENO, text, (size_t)size) < 0) _exit(3);
    signal(signal_number, SIG_DFL);
}

/* One seed in four leaves the real ingress out, and so drives what lies behind it harder. */
static cluster_result_t run(uint64_t seed, bool is_calm, bool is_verbose)
{
    seed_now = seed;
    cluster_options_t options = { .seed = seed,
                                  .is_calm = is_calm,
                                  .is_verbose = is_verbose,
                                  .has_fake_ingress = seed % 4 == 0 };
    return cluster_run(&options);
}

static void print(const cluster_result_t *result)
{
    printf("%llu events, %u clients: %u finished, %u failed, %u cancelled, %u rejected, %u cut; %u "
           "attempts, "
           "%llu stale, %llu replayed, %llu resumed, hash %016llx\n",
           (unsigned long long)result->events, result->clients, result->finished, result->failed,
           result->cancelled, result->rejected, result->cut, result->attempts,
           (unsigned long long)result->stale, (unsigned long long)result->replayed,
           (unsigned long long)result->resumed, (unsigned long long)result->hash);
}

/* Would be broken: without any fault a request fails, or something is held at rest. */
static void test_cluster_calm_seeds_end_well(void **unused)
{
    for (uint64_t seed = 1; seed <= CALM_SEEDS; seed++) {
        cluster_result_t result = run(seed, true, false);
        assert_false(result.is_failed);
        assert_int_equal(result.finished + result.cancelled, result.clients);
    }
}

/* Would be broken: some fault loses, doubles or alters a token, leaks a block, or hangs a request;
 * or a failure could not be run again. */
static void test_cluster_seeds_with_faults_keep_invariants_and_repeat(void **unused)
{
    cluster_result_t sum;
    memset(&sum, 0, sizeof sum);
    for (uint64_t seed = 1; seed <= CLUSTER_SEEDS; seed++) {
        cluster_result_t first = run(seed, false, false);
        assert_false(first.is_failed);
        cluster_result_t second = run(seed, false, false);
        if (first.hash != second.hash)
            fprintf(stderr, "seed %llu does not repeat\n", (unsigned long long)seed);
        assert_true(first.hash == second.hash);
        sum.events += first.events;
        sum.clients += first.clients;
        sum.finished += first.finished;
        sum.failed += first.failed;
        sum.cancelled += first.cancelled;
        sum.rejected += first.rejected;
        sum.cut += first.cut;
        sum.attempts += first.attempts;
        sum.stale += first.stale;
        sum.replayed += first.replayed;
        sum.resumed += first.resumed;
    }
    print(&sum);
    assert_true(sum.finished > sum.clients / 2);
    assert_true(sum.stale > 0);
    assert_true(sum.replayed > 0);
    assert_true(sum.resumed > sum.clients / 20); /* else I3 is hardly tried */
}

int main(int argc, char **argv)
{
    signal(SIGABRT, on_abort);
    uint64_t seed = 0;
    bool is_verbose = false, is_calm = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = strtoull(argv[++i], NULL, 10);
        if (strcmp(argv[i], "--verbose") == 0) is_verbose = true;
        if (strcmp(argv[i], "--calm") == 0) is_calm = true;
    }
    if (seed) {
        cluster_result_t result = run(seed, is_calm, is_verbose);
        print(&result);
        return result.is_failed;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cluster_calm_seeds_end_well),
        cmocka_unit_test(test_cluster_seeds_with_faults_keep_invariants_and_repeat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
