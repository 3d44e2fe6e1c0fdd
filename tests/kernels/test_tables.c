/* tests/kernels/test_tables.c - every table that this machine can run, op by op, against sums in
 * double. */
#include "checks_table.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* A fast table that computes something else than the judge would change tokens. */
static void test_tables_every_op_agrees_with_sums_in_double(void **state)
{
    int tables = 0;
    for (size_t i = 0; i < ops_cpu_choice_count; i++) {
        if (!ops_cpu_choices[i].is_supported()) {
            print_message("not supported by this machine: %s\n", ops_cpu_choices[i].ops->name);
            continue;
        }
        check_t result = check_table(ops_cpu_choices[i].ops, 1);
        print_message("%s: %d checks, %d failures\n", ops_cpu_choices[i].ops->name, result.checks,
                      result.failures);
        assert_int_equal(result.failures, 0);
        assert_true(result.checks > 300);
        tables++;
    }
    assert_true(tables >= 1);
}

/* A result that depends on the number of threads would make a replay on another machine give other
 * tokens. */
static void test_tables_more_threads_give_the_same_bits(void **state)
{
    for (size_t i = 1; i < ops_cpu_choice_count; i++) {
        if (!ops_cpu_choices[i].is_supported()) continue;
        check_t one = check_table(ops_cpu_choices[i].ops, 1),
                three = check_table(ops_cpu_choices[i].ops, 3);
        assert_int_equal(three.failures, 0);
        assert_true(one.hash == three.hash);
    }
}

/* A name that is not known, or that the machine cannot run, must not give some other table. */
static void test_ops_find_unknown_name_is_refused(void **state)
{
    assert_null(ops_find("sse9"));
    assert_ptr_equal(ops_find("judge"), &ops_judge);
    assert_non_null(ops_find("auto"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables_every_op_agrees_with_sums_in_double),
        cmocka_unit_test(test_tables_more_threads_give_the_same_bits),
        cmocka_unit_test(test_ops_find_unknown_name_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
