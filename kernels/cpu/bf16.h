/* kernels/cpu/bf16.h - of the matrix products on bfloat16: how weights and rows of x lie in memory,
 * and the work of one call of the inner loop.
 *
 * Packed weights: [panel][k / 2][PANEL][2], k padded with zeros to whole K_STEPs and columns to
 * whole panels: pairs of k lie together, as VDPBF16PS takes them.  BF16 stays what it
 * is, F32 is rounded, FP8 stays FP8: a block of it becomes bfloat16 in scratch, multiplied
 * by its scales and rounded, whenever rows pass over it.
 *
 * Rows of x are rounded into [block of k][block of rows][step of k][row][K_STEP]: what one inner
 * loop reads is one stretch of memory.  (Rows side by side at 4096 bytes would share one set of
 * L1.)
 */
#ifndef KERNELS_CPU_BF16_H
#define KERNELS_CPU_BF16_H

#include "bf16_instructions.h"
#include "fast.h"
#include "judge.h"
#include "queue.h"
#include "rows.h"

/* Columns of a panel; k of one step, and of the block of a panel that stays in L1 while rows pass;
 * rows of x per pass over the weights; panels whose sums are kept while all of k goes by. */
enum { PANEL = 32, K_STEP = 32, K_BLOCK = 256, GEMM_ROWS_MAX = 512, GROUP_PANELS = 8 };

/* to[rows][panels x PANEL] = from[same] + x[rows][depth] b[depth][panels x PANEL]; strides in
 * elements. */
typedef struct {
    const uint16_t *x, *b;
    size_t x_block;      /* from one block of rows to the next */
    size_t panel_stride; /* from one panel of b to the next */
    const float *from;   /* NULL: zeros */
    float *to;
    size_t from_stride, to_stride;
    uint32_t depth;   /* a multiple of K_STEP */
    const char *next; /* memory to fetch meanwhile, `next_lines` cache lines per step of k, panel
                         and inner loop; next_stride bytes from panel to panel */
    size_t next_stride;
    uint32_t next_lines;
} bf16_tile_t;

/* The next `lines` of `next`, into L2; returns what follows them. */
INLINE const char *fetch_lines(const char *next, uint32_t lines)
{
    for (uint32_t i = 0; i < lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    return next;
}

INLINE uint32_t round_up(uint32_t value, uint32_t step)
{
    return (value + step - 1) / step * step;
}

#endif
