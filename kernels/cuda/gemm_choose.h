/* kernels/cuda/gemm_choose.h - which kernel an FP8 product takes: that for few rows, or which tile
 * shape of fp8_gemm.def: the one that needs the least time when its tiles are dealt out to all
 * multiprocessors.  Plain C, tested on the CPU. */
#ifndef KERNELS_CUDA_GEMM_CHOOSE_H
#define KERNELS_CUDA_GEMM_CHOOSE_H

#include "../ops.h"
#include "gemm_tiles.h"

typedef struct {
    uint32_t rows, cols, k, groups; /* rows of each group, as far as the host knows */
} gemm_size_t;

/* groups: NULL for a product of one weight. */
static inline gemm_size_t gemm_size(const tensor_t *x, const tensor_t *w, const groups_t *groups)
{
    gemm_size_t size = { x->rows, w->rows, w->cols, 1 };
    if (!groups) return size;
    size.groups = groups->count;
    size.rows = groups->expected_rows;
    if (size.rows == 0 && groups->count > 0) size.rows = x->rows / groups->count;
    if (size.rows == 0) size.rows = 1;
    return size;
}

/* A multiprocessor's share of the weights: rows of w, of all groups. */
static inline uint32_t gemm_weights(const gemm_size_t *size, uint32_t sm_count)
{
    return (uint32_t)((uint64_t)size->cols * size->groups / sm_count);
}

/* The kernel for few rows is the faster one up to 64 rows; up to 128 where a multiprocessor's share
 * of the weights is small, see kernels/NOTES.md. */
enum { FEW_ROWS = 64, FEW_ROWS_MAX = 128, FEW_WEIGHTS = 200, FEW_WEIGHTS_GROUPED = 100 };

static inline int gemm_is_few(const gemm_size_t *size, uint32_t sm_count)
{
    uint32_t most = size->groups > 1 ? FEW_WEIGHTS_GROUPED : FEW_WEIGHTS;
    return size->rows <= FEW_ROWS ||
           (size->rows <= FEW_ROWS_MAX && gemm_weights(size, sm_count) < most);
}

typedef struct {
    uint32_t rows, cols, cluster_rows, cluster_cols, block_ns, tile_ns;
} gemm_shape_t;

/* clang-format off */
static const gemm_shape_t gemm_shapes[] = {
#define FP8_GEMM_SHAPE(rows, cols, stages, cluster_rows, cluster_cols, block_ns, tile_ns) \
    { rows, cols, cluster_rows, cluster_cols, block_ns, tile_ns },
#include "fp8_gemm.def"
#undef FP8_GEMM_SHAPE
};
/* clang-format on */

/* Clusters take turns; the longest row of tiles that one of them gets decides. */
static inline uint64_t gemm_time(const gemm_shape_t *shape, const gemm_size_t *size,
                                 uint32_t sm_count)
{
    uint64_t clusters = sm_count / (shape->cluster_rows * shape->cluster_cols);
    uint64_t tiles = (uint64_t)size->groups *
                     gemm_tiles(size->rows, shape->rows * shape->cluster_rows) *
                     gemm_tiles(size->cols, shape->cols * shape->cluster_cols);
    uint64_t turns = (tiles + clusters - 1) / clusters;
    return turns * ((uint64_t)gemm_tiles(size->k, 128) * shape->block_ns + shape->tile_ns);
}

/* An index of gemm_shapes. */
static inline size_t gemm_choose(const gemm_size_t *size, uint32_t sm_count)
{
    size_t best = 0;
    for (size_t i = 1; i < sizeof gemm_shapes / sizeof *gemm_shapes; i++)
        if (gemm_time(&gemm_shapes[i], size, sm_count) <
            gemm_time(&gemm_shapes[best], size, sm_count))
            best = i;
    return best;
}

#endif
