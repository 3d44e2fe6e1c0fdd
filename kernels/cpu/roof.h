/* kernels/cpu/roof.h - what one core can do at most: arithmetic in registers, and reading from
 * memory. */
#ifndef KERNELS_CPU_ROOF_H
#define KERNELS_CPU_ROOF_H

#include <stddef.h>
#include <stdint.h>

/* Loops of independent multiply-adds in registers; each returns the floating-point operations it
 * did. */
double avx2_peak_loop(uint32_t rounds);
double avx512_peak_loop(uint32_t rounds);
double avx512_bf16_peak_loop(uint32_t rounds);
double amx_peak_loop(uint32_t rounds);

/* Seconds on a clock that never goes back. */
double roof_seconds(void);

/* Operations per second of the peak loop that belongs to a table ("judge": avx2's), the best of a
 * few tries.  The caller has made sure that the machine supports the table. */
double roof_operations(const char *table);

/* Bytes per second that one thread reads from a buffer of this size, the best of a few passes. */
double roof_read_bytes(const void *buffer, size_t bytes);

#endif
