/* kernels/cpu/rows.h - rows of tensors and of the paged cache, read and written as F32 whatever
 * their dtype. */
#ifndef KERNELS_CPU_ROWS_H
#define KERNELS_CPU_ROWS_H

#include "../ops.h"

/* An activation row: F8E4M3 has one scale per 128 columns of the row. */
void row_load(const tensor_t *x, uint32_t row, float *out);

/* Writes x->cols values; F8E4M3 is quantised per 128 columns. */
void row_store(const tensor_t *x, uint32_t row, const float *values);

/* A weight row: F8E4M3 has one scale per block of 128 x 128. */
void weight_load(const tensor_t *w, uint32_t row, float *out);

/* A row of an F32 tensor, in place. */
static inline float *row_f32(const tensor_t *x, uint32_t row)
{
    return (float *)x->data + (size_t)row * x->stride;
}

/* The latent + rope values of the cache row of the token at `position` of the sequence with these
 * blocks. */
void cache_load(const cache_t *cache, const uint32_t *blocks, uint32_t position, float *out);
void cache_store(const cache_t *cache, const uint32_t *blocks, uint32_t position,
                 const float *values);

/* The address of the cache row of the token at `position`, in elements from cache->data. */
static inline size_t cache_offset(const cache_t *cache, const uint32_t *blocks, uint32_t position)
{
    uint32_t block = blocks[position / cache->block_tokens], slot = position % cache->block_tokens;
    size_t cols = (size_t)cache->latent + cache->rope;
    return (size_t)block * cache->block_stride +
           ((size_t)cache->layer * cache->block_tokens + slot) * cols;
}

#endif
