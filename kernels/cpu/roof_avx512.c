/* kernels/cpu/roof_avx512.c - the most multiply-adds in F32 that AVX512 can do. */
#include "roof.h"
#include "vector.h"

enum { CHAINS = 10 };

double avx512_peak_loop(uint32_t rounds)
{
    vector_t sums[CHAINS], factor = vector_set(0.999F), term = vector_set(0.001F);
    for (uint32_t i = 0; i < CHAINS; i++) sums[i] = vector_set((float)i);
    for (uint32_t round = 0; round < rounds; round++) {
        UNROLL for (uint32_t i = 0; i < CHAINS; i++) sums[i] = vector_fma(sums[i], factor, term);
        __asm__ volatile("" : "+v"(factor), "+v"(term));
    }
    for (uint32_t i = 0; i < CHAINS; i++) __asm__ volatile("" ::"v"(sums[i]));
    return 2.0 * LANES * CHAINS * (double)rounds;
}
