/* tests/bench/bench_gemm.c - the CPU's matrix products beside OpenBLAS and the machine's roofs:
 * bench_gemm [TABLE]. */
#include "tests/kernels/rates.h"

int main(int argc, char **argv)
{
    setenv("OPENBLAS_NUM_THREADS", "1", 0);
#ifdef HAVE_OPENBLAS
    openblas_set_num_threads(1);
    printf("OpenBLAS: %s\n", openblas_get_config());
#endif
    print_all_rates(argc > 1 ? argv[1] : NULL);
    return 0;
}
