/* kernels/cuda/sequences.cuh - which sequence a row belongs to, and where the paged cache holds a
 * token. */
#ifndef KERNELS_CUDA_SEQUENCES_CUH
#define KERNELS_CUDA_SEQUENCES_CUH

#include "pieces.cuh"

/* The last sequence, of `count` in order of first_row, that begins at or before `row`; false where
 * the row lies behind its end.  The whole warp asks for one row: 32 probes at a time, so that a
 * thousand sequences take two loads. */
__device__ __forceinline__ bool sequence_of_row(const sequence_t *sequences, uint32_t count,
                                                uint32_t row, sequence_t *found)
{
    uint32_t first = 0;
    while (count > 1) {
        uint32_t step = (count + 31) / 32, probe = threadIdx.x % 32 * step;
        bool is_before = probe < count && sequences[first + probe].first_row <= row;
        uint32_t passed = __popc(__ballot_sync(0xffffffff, is_before));
        if (passed == 0) return false;
        uint32_t skipped = (passed - 1) * step;
        first += skipped;
        count = count - skipped < step ? count - skipped : step;
    }
    if (count == 0) return false;
    *found = sequences[first];
    return row >= found->first_row && row - found->first_row < found->rows;
}

__device__ __forceinline__ bf16_t *cache_row(const cache_t &cache, const uint32_t *blocks,
                                             uint32_t position)
{
    uint32_t block = blocks[position / cache.block_tokens], slot = position % cache.block_tokens;
    return (bf16_t *)cache.data + (size_t)block * cache.block_stride +
           ((size_t)cache.layer * cache.block_tokens + slot) * (cache.latent + cache.rope);
}

/* ---- on the host ---- */

/* What kernels of whole pieces ask of a cache. */
inline bool cache_has_pieces(const cache_t *cache)
{
    return cache->dtype == DTYPE_BF16 && (uintptr_t)cache->data % 16 == 0 &&
           cache->latent % PIECE == 0 && cache->rope % PIECE == 0 &&
           cache->block_stride % PIECE == 0 && cache->block_tokens > 0;
}

#endif
