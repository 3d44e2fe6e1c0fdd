/* tests/kernels/selftest.c - one static program for a machine without anything: checks every table,
 * prints its speed. */
#include "checks.h"
#include "rates.h"

int main(int argc, char **argv)
{
    int failures = 0;
    for (size_t i = 0; i < ops_cpu_choice_count; i++) {
        const ops_t *ops = ops_cpu_choices[i].ops;
        if (!ops_cpu_choices[i].is_supported()) {
            printf("%s: not supported by this machine\n", ops->name);
            continue;
        }
        check_t one = check_table(ops, 1), three = check_table(ops, 3);
        int is_same = one.hash == three.hash;
        printf("%s: %d checks, %d failures; three threads give %s bits\n", ops->name, one.checks,
               one.failures, is_same ? "the same" : "OTHER");
        failures += one.failures + three.failures + !is_same;
    }
    fflush(stdout);
    if (failures == 0 && argc < 2) print_all_rates(NULL);
    printf("%s\n", failures == 0 ? "all checks passed" : "THERE ARE FAILURES");
    return failures != 0;
}
