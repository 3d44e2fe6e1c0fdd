/* kernels/cuda/gemm_tiles.h - which tile of a product comes when: arithmetic that the kernel, its
 * launcher and a test on the CPU share.
 *
 * Tiles go in panels: a few tiles of rows (neighbours first, they share weights), then the next
 * tile of columns, so that what runs at one time reads about as many rows of x as of w, both few
 * enough to stay in the L2 cache.  The order never changes a result.
 */
#ifndef KERNELS_CUDA_GEMM_TILES_H
#define KERNELS_CUDA_GEMM_TILES_H

#include <stdint.h>

#ifdef __CUDACC__
#define GEMM_FUNCTION __host__ __device__ __forceinline__
#else
#define GEMM_FUNCTION static inline
#endif

enum { GEMM_GROUPS_MAX = 512 };

typedef struct {
    uint32_t row_tile, col_tile;
} gemm_place_t;

/* Where a block is on its way through the tiles, which it takes in ascending order: going on from
 * the last panel spares divisions. */
typedef struct {
    uint32_t panel; /* its first tile of rows */
} gemm_walk_t;

GEMM_FUNCTION uint32_t gemm_tiles(uint32_t length, uint32_t tile)
{
    return (length + tile - 1) / tile;
}

/* The tile `index` of row_tiles x col_tiles, in panels of `height` tiles of rows. */
GEMM_FUNCTION gemm_place_t gemm_place(gemm_walk_t *walk, uint32_t index, uint32_t row_tiles,
                                      uint32_t col_tiles, uint32_t height)
{
    uint32_t rest = index - walk->panel * col_tiles;
    while (rest >= height * col_tiles) {
        rest -= height * col_tiles;
        walk->panel += height;
    }
    uint32_t own = row_tiles - walk->panel < height ? row_tiles - walk->panel : height;
    gemm_place_t place;
    place.col_tile = rest / own;
    place.row_tile = walk->panel + rest - place.col_tile * own;
    return place;
}

#endif
