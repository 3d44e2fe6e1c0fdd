/* tests/kernels/test_emulated.c - the tables for AMX and BF16 with their instructions in plain C,
 * on machines that only have AVX-512 with VBMI.
 *
 * The linker takes the emulated tables, compiled with EMULATE_TILES, before it looks for real ones.
 */
#include "checks_table.h"

#include "kernels/cpu/fast.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void check_emulated(const ops_t *ops)
{
    check_t one = check_table(ops, 1), three = check_table(ops, 3);
    assert_int_equal(one.failures, 0);
    assert_int_equal(three.failures, 0);
    assert_true(one.checks > 300);
    assert_true(one.hash == three.hash);
}

/* Tiles cut, padded or stored at the wrong place would change tokens on machines with AMX only. */
static void test_emulated_amx_agrees_with_sums_in_double(void **state)
{
    check_emulated(&ops_amx);
}

/* The same for rows and columns of the dot products on pairs. */
static void test_emulated_avx512_bf16_agrees_with_sums_in_double(void **state)
{
    check_emulated(&ops_avx512_bf16);
}

int main(void)
{
    if (!avx512_is_supported() || !__builtin_cpu_supports("avx512vbmi")) {
        puts("this machine has no AVX-512 with VBMI: amx and avx512_bf16 cannot be emulated");
        return 77; /* CTest can tell it from success */
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_emulated_amx_agrees_with_sums_in_double),
        cmocka_unit_test(test_emulated_avx512_bf16_agrees_with_sums_in_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
