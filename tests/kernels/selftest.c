/* tests/kernels/selftest.c - one static program for a machine without anything: checks tables and
 * prints their speed.
 *
 *   kernels_selftest [--checks] [TABLE...]     by default every table; --checks: no timing
 */
#include "checks_table.h"
#include "rates.h"

static int is_wanted(const char *table, char **names, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], table) == 0) return 1;
    return count == 0;
}

/* Failures of one table, which must also give the same bits with three threads. */
static int check_one(const ops_t *ops)
{
    check_t one = check_table(ops, 1), three = check_table(ops, 3);
    int is_same = one.hash == three.hash;
    printf("%s: %d checks, %d failures; three threads give %s bits\n", ops->name, one.checks,
           one.failures, is_same ? "the same" : "OTHER");
    return one.failures + three.failures + !is_same;
}

int main(int argc, char **argv)
{
    int is_timed = argc < 2 || strcmp(argv[1], "--checks") != 0, skipped = is_timed ? 1 : 2;
    char **names = argv + (argc < skipped ? argc : skipped);
    int count = argc < skipped ? 0 : argc - skipped, failures = 0, tables = 0;
    for (size_t i = 0; i < ops_cpu_choice_count; i++) {
        const ops_t *ops = ops_cpu_choices[i].ops;
        if (!is_wanted(ops->name, names, count)) continue;
        if (ops_cpu_choices[i].is_supported())
            failures += check_one(ops), tables++;
        else
            printf("%s: not supported by this machine\n", ops->name);
    }
    fflush(stdout);
    for (size_t i = 1; is_timed && failures == 0 && i < ops_cpu_choice_count; i++)
        if (is_wanted(ops_cpu_choices[i].ops->name, names, count))
            print_all_rates(ops_cpu_choices[i].ops->name);
    printf("%s\n", failures != 0 ? "THERE ARE FAILURES"
                   : tables == 0 ? "NOTHING WAS CHECKED"
                                 : "all checks passed");
    return failures != 0 || tables == 0;
}
