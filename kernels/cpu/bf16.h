/* kernels/cpu/bf16.h - what the matrix products on bfloat16 share: the layout of packed weights and
 * the work of one tile.
 *
 * Packed weights: [panel][k / 2][PANEL][2] bfloat16, k padded with zeros to whole K_STEPs and
 * columns to whole panels: pairs of k lie together, as VDPBF16PS and TDPBF16PS take them.  FP8
 * weights are multiplied by their scales and rounded once, when they are packed.  Rows of x are
 * rounded to bfloat16 and padded alike.
 */
#ifndef KERNELS_CPU_BF16_H
#define KERNELS_CPU_BF16_H

#include "fast.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"
#include "vector.h"

enum { PANEL = 32, K_STEP = 32, GEMM_ROWS_MAX = 256, ROWS_STEP = 32 };

/* sums[rows][panels x PANEL] (+)= x[rows][depth] b[depth][panels x PANEL]; all strides in elements.
 */
typedef struct {
    const uint16_t *x, *b;
    size_t x_stride, panel_stride;
    float *sums;
    size_t sums_stride;
    uint32_t depth; /* a multiple of K_STEP */
    int is_first;   /* sums are written, not added to */
} bf16_tile_t;

INLINE uint32_t round_up(uint32_t value, uint32_t step)
{
    return (value + step - 1) / step * step;
}

#endif
