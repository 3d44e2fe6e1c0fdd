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

/* The rows first .. end - 1 of an activation tensor, as a tensor. */
tensor_t rows_slice(const tensor_t *x, uint32_t first, uint32_t end);

/* How many tokens the last row of a sequence sees. */
static inline uint32_t sequence_keys(const sequence_t *sequence)
{
    return sequence->first_position + sequence->rows;
}

/* Its rows and its keys lie inside these tensors. */
static inline int sequence_fits(const sequence_t *sequence, const tensor_t *query,
                                const tensor_t *kv)
{
    return sequence->first_row + sequence->rows <= query->rows &&
           sequence->first_key + sequence_keys(sequence) <= kv->rows;
}

/* One past the last row of a group. */
static inline uint32_t group_end(const groups_t *groups, uint32_t group)
{
    return groups->rows ? groups->first[group] + groups->rows[group] : groups->first[group + 1];
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
