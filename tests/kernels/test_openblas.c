/* tests/kernels/test_openblas.c - the judge's matrix product beside OpenBLAS's, which nobody here
 * wrote. */
#include "checks.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

/* If the judge and our own sums in double shared a misunderstanding (a transposed operand), only
 * another hand would see it. */
static void test_judge_gemm_equals_openblas(void **state)
{
#ifdef HAVE_OPENBLAS
    enum { M = 37, N = 130, K = 257 };
    check_t self = { .ops = &ops_judge, .q = queue_new_cpu(1 << 20, 1), .random = 7 };
    tensor_t x = random_tensor(&self, DTYPE_F32, M, K, 0),
             w = random_tensor(&self, DTYPE_F32, N, K, 1);
    tensor_t out = new_tensor(DTYPE_F32, M, N, 0);
    float *wanted = calloc((size_t)M * N, sizeof *wanted);
    assert_int_equal(ops_judge.gemm(self.q, &out, &x, &w), 0);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1.0F, x.data, (blasint)x.stride,
                w.data, (blasint)w.stride, 0.0F, wanted, N);
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t n = 0; n < N; n++)
            assert_true(fabs(element_of(&out, m, n, 0) - (double)wanted[m * N + n]) < 1e-4);
    free(wanted);
    free_tensor(&x);
    free_tensor(&w);
    free_tensor(&out);
    queue_destroy(&self.q);
#else
    print_message("OpenBLAS is not installed (pkg-config openblas): nothing to compare with\n");
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_judge_gemm_equals_openblas) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
