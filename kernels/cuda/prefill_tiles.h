/* kernels/cuda/prefill_tiles.h - which tile of query rows of which head comes when in mha_prefill:
 * arithmetic that the kernel and its test on the CPU share.
 *
 * Heads go in groups whose keys and values fit the L2 cache together; within a group the last tiles
 * of a sequence come first, because causal attention makes them the longest, and what is left for
 * the end is short; the heads of one tile follow each other.  The order never changes a result.
 */
#ifndef KERNELS_CUDA_PREFILL_TILES_H
#define KERNELS_CUDA_PREFILL_TILES_H

#include <stdint.h>

#ifdef __CUDACC__
#define PREFILL_FUNCTION __host__ __device__ __forceinline__
#else
#define PREFILL_FUNCTION static inline
#endif

enum {
    PREFILL_ROWS = 128,                 /* query rows of a tile */
    PREFILL_GROUP_BYTES = 16 << 20,     /* keys and values of a group of heads */
    PREFILL_KEY_BYTES = 2 * (128 + 128) /* of one key and value of one head */
};

typedef struct {
    uint32_t tile; /* rows tile * PREFILL_ROWS .. of the sequence */
    uint32_t head;
} prefill_place_t;

PREFILL_FUNCTION uint32_t prefill_tiles(uint32_t rows)
{
    return (rows + PREFILL_ROWS - 1) / PREFILL_ROWS;
}

/* Heads that go together when a sequence has this many keys; at least four, so that the tiles which
 * run at one time are of nearly one length. */
PREFILL_FUNCTION uint32_t prefill_group_heads(uint32_t heads, uint32_t keys)
{
    uint32_t fitting = PREFILL_GROUP_BYTES / PREFILL_KEY_BYTES / (keys ? keys : 1);
    if (fitting < 4) fitting = 4;
    return fitting < heads ? fitting : heads;
}

/* The item `index` of the tiles x heads of one sequence. */
PREFILL_FUNCTION prefill_place_t prefill_place(uint32_t index, uint32_t tiles, uint32_t heads,
                                               uint32_t group_heads)
{
    uint32_t group = index / (tiles * group_heads), first_head = group * group_heads;
    uint32_t rest = index - tiles * first_head;
    uint32_t own_heads = heads - first_head < group_heads ? heads - first_head : group_heads;
    prefill_place_t place;
    place.tile = tiles - 1 - rest / own_heads;
    place.head = first_head + rest % own_heads;
    return place;
}

/* Which sequence holds tile `wanted`, ends[i] being the tiles of sequences 0..i; count: none. */
PREFILL_FUNCTION uint32_t prefill_sequence(const uint32_t *ends, uint32_t count, uint32_t wanted)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (ends[middle] > wanted)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Blocks of block_keys keys that the last row of a tile sees, the tile's first row being token
 * `position`. */
PREFILL_FUNCTION uint32_t prefill_blocks(uint32_t position, uint32_t rows, uint32_t block_keys)
{
    return (position + rows + block_keys - 1) / block_keys;
}

#endif
