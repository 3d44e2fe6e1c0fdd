/* kernels/cpu/roof_avx512_bf16.c - the most multiply-adds that VDPBF16PS can do. */
#include "roof.h"
#include "vector.h"

/* More chains than its latency needs where each port starts one per cycle. */
enum { CHAINS = 24 };

double avx512_bf16_peak_loop(uint32_t rounds)
{
    __m512 sums[CHAINS];
    __m512bh factor = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (uint32_t i = 0; i < CHAINS; i++) sums[i] = vector_set((float)i);
    for (uint32_t round = 0; round < rounds; round++) {
        UNROLL for (uint32_t i = 0; i < CHAINS; i++) sums[i] =
            _mm512_dpbf16_ps(sums[i], factor, factor);
        __asm__ volatile("" : "+v"(factor));
    }
    for (uint32_t i = 0; i < CHAINS; i++) __asm__ volatile("" ::"v"(sums[i]));
    return 4.0 * LANES * CHAINS * (double)rounds;
}
