/* tests/kernels/test_numbers.c - float8 e4m3fn and bfloat16 against their definitions. */
#include "checks.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* The definition: bias 7, no infinity, only the all-ones pattern is NaN. */
static double defined_e4m3(uint32_t code)
{
    int exponent = (int)(code >> 3 & 15), mantissa = (int)(code & 7);
    double sign = code & 0x80 ? -1 : 1;
    if (exponent == 15 && mantissa == 7) return NAN;
    if (exponent == 0) return sign * mantissa / 8.0 * pow(2, -6);
    return sign * (1 + mantissa / 8.0) * pow(2, exponent - 7);
}

/* One wrong entry of the table would bend every weight that uses it. */
static void test_e4m3_all_256_values_are_as_defined(void **state)
{
    for (uint32_t code = 0; code < 256; code++) {
        double wanted = defined_e4m3(code), found = (double)f32_from_e4m3((uint8_t)code);
        if (isnan(wanted)) {
            assert_true(isnan(found));
            continue;
        }
        assert_true(found == wanted && signbit(found) == signbit(wanted));
        assert_int_equal(e4m3_from_f32((float)wanted), code);
    }
}

/* The nearest of all codes; of two equally near ones the even. */
static uint32_t nearest_code(double value)
{
    uint32_t best = 0;
    for (uint32_t code = 1; code < 0x7f; code++) {
        double distance = fabs(defined_e4m3(code) - fabs(value)),
               least = fabs(defined_e4m3(best) - fabs(value));
        if (distance < least || (distance == least && code % 2 == 0)) best = code;
    }
    return best | (value < 0 ? 0x80U : 0);
}

/* Rounding up or to odd would shift the mean of quantised activations. */
static void test_e4m3_rounding_takes_the_nearest_ties_to_even(void **state)
{
    check_t self = { .random = 3 };
    for (int i = 0; i < 20000; i++) {
        float value = (float)ldexp(uniform(&self), (int)(uniform(&self) * 11));
        if (value == 0) continue;
        assert_int_equal(e4m3_from_f32(value), nearest_code((double)value));
    }
    for (uint32_t code = 0; code < 0x7e; code++) {
        float middle = (float)((defined_e4m3(code) + defined_e4m3(code + 1)) / 2);
        assert_int_equal(e4m3_from_f32(middle), code % 2 ? code + 1 : code);
        assert_int_equal(e4m3_from_f32(-middle), (code % 2 ? code + 1 : code) | 0x80);
    }
}

/* Without saturation a large activation would become NaN and spread over the whole answer. */
static void test_e4m3_beyond_the_largest_saturates_and_nan_stays(void **state)
{
    assert_int_equal(e4m3_from_f32(464.0F), 0x7e);
    assert_int_equal(e4m3_from_f32(1e30F), 0x7e);
    assert_int_equal(e4m3_from_f32(-INFINITY), 0xfe);
    assert_int_equal(e4m3_from_f32(NAN) & 0x7f, 0x7f);
}

/* A truncating conversion would pull the whole KV cache towards zero. */
static void test_bf16_rounding_takes_the_nearest_ties_to_even(void **state)
{
    check_t self = { .random = 4 };
    for (int i = 0; i < 20000; i++) {
        float value = (float)ldexp(uniform(&self), (int)(uniform(&self) * 40));
        uint16_t found = bf16_from_f32(value);
        double error = fabs((double)f32_from_bf16(found) - (double)value);
        double below = fabs((double)f32_from_bf16((uint16_t)(found - 1)) - (double)value);
        double above = fabs((double)f32_from_bf16((uint16_t)(found + 1)) - (double)value);
        assert_true(error <= below && error <= above);
    }
    assert_int_equal(bf16_from_f32(f32_from_bits(0x3f808000U)), 0x3f80);
    assert_int_equal(bf16_from_f32(f32_from_bits(0x3f818000U)), 0x3f82);
    assert_true(isnan(f32_from_bf16(bf16_from_f32(f32_from_bits(0x7f800001U)))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_e4m3_all_256_values_are_as_defined),
        cmocka_unit_test(test_e4m3_rounding_takes_the_nearest_ties_to_even),
        cmocka_unit_test(test_e4m3_beyond_the_largest_saturates_and_nan_stays),
        cmocka_unit_test(test_bf16_rounding_takes_the_nearest_ties_to_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
