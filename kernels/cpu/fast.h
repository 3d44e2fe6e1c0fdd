/* kernels/cpu/fast.h - the fast tables and what they borrow from each other.
 *
 * The bodies in fast_*.h are written once over vector.h; table_avx2.c and table_avx512.c compile
 * them under their own names.  The tables for bfloat16 and AMX bring matrix products of their own
 * and take the rest from AVX-512.
 */
#ifndef KERNELS_CPU_FAST_H
#define KERNELS_CPU_FAST_H

#include "../ops.h"

extern const ops_t ops_avx2, ops_avx512, ops_avx512_bf16, ops_amx;

#define OP(op, params, doc)                                                                        \
    int avx2_##op params;                                                                          \
    int avx512_##op params;                                                                        \
    int avx512_bf16_##op params;                                                                   \
    int amx_##op params;
#include "../ops.def"
#undef OP

int avx2_is_supported(void);
int avx512_is_supported(void);
int avx512_bf16_is_supported(void);

/* Also asks the kernel, once per process, for leave to use the tile registers. */
int amx_is_supported(void);

#endif
