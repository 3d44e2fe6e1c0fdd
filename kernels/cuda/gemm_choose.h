/* kernels/cuda/gemm_choose.h - which tile shape of fp8_gemm.def a product takes: the one that needs
 * the least time when its tiles are dealt out to all multiprocessors.  Plain C, tested on the
 * CPU. */
#ifndef KERNELS_CUDA_GEMM_CHOOSE_H
#define KERNELS_CUDA_GEMM_CHOOSE_H

#include "gemm_tiles.h"

#include <stddef.h>

typedef struct {
    uint32_t rows, cols, k, groups; /* rows of each group */
} gemm_size_t;

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
