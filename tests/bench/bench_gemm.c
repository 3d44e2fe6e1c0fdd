/* tests/bench/bench_gemm.c - the CPU's matrix products beside OpenBLAS and the machine's roofs:
 * bench_gemm [TABLE]. */
#include "tests/kernels/rates.h"

#include <unistd.h>

/* OpenBLAS chooses its kernels before main, and does not know some virtual processors: it gets
 * told, by starting anew. */
static void tell_openblas(char **argv)
{
    if (getenv("OPENBLAS_CORETYPE") || !ops_find("avx512")) return;
    setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
    tell_openblas(argv);
#ifdef HAVE_OPENBLAS
    openblas_set_num_threads(1);
    printf("OpenBLAS: %s\n", openblas_get_config());
#endif
    print_all_rates(argc > 1 ? argv[1] : NULL);
    return 0;
}
