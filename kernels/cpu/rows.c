/* kernels/cpu/rows.c - rows of tensors and of the paged cache, read and written as F32 whatever
 * their dtype. */
#include "rows.h"

#include "number.h"

#include <math.h>

static void load_bf16(const uint16_t *from, uint32_t count, float *out)
{
    for (uint32_t i = 0; i < count; i++) out[i] = f32_from_bf16(from[i]);
}

static void store_bf16(uint16_t *to, uint32_t count, const float *values)
{
    for (uint32_t i = 0; i < count; i++) to[i] = bf16_from_f32(values[i]);
}

static void load_e4m3(const uint8_t *from, uint32_t count, const float *scales, float *out)
{
    for (uint32_t i = 0; i < count; i++) out[i] = f32_from_e4m3(from[i]) * scales[i / BLOCK_COLS];
}

static void store_e4m3(uint8_t *to, uint32_t count, float *scales, const float *values)
{
    for (uint32_t first = 0; first < count; first += BLOCK_COLS) {
        uint32_t last = count - first < BLOCK_COLS ? count : first + BLOCK_COLS;
        float amax = AMAX_MIN;
        for (uint32_t i = first; i < last; i++) amax = fmaxf(amax, fabsf(values[i]));
        float scale = amax / E4M3_MAX;
        scales[first / BLOCK_COLS] = scale;
        for (uint32_t i = first; i < last; i++) to[i] = e4m3_from_f32(values[i] / scale);
    }
}

static void load(const tensor_t *x, uint32_t row, const float *scales, float *out)
{
    size_t at = (size_t)row * x->stride;
    switch (x->dtype) {
    case DTYPE_F32:
        memcpy(out, (const float *)x->data + at, x->cols * sizeof(float));
        break;
    case DTYPE_BF16:
        load_bf16((const uint16_t *)x->data + at, x->cols, out);
        break;
    case DTYPE_F8E4M3:
        load_e4m3((const uint8_t *)x->data + at, x->cols, scales, out);
        break;
    }
}

void row_load(const tensor_t *x, uint32_t row, float *out)
{
    load(x, row, x->scales ? x->scales + (size_t)row * x->scale_stride : NULL, out);
}

void weight_load(const tensor_t *w, uint32_t row, float *out)
{
    load(w, row, w->scales ? w->scales + (size_t)(row / BLOCK_COLS) * w->scale_stride : NULL, out);
}

void row_store(const tensor_t *x, uint32_t row, const float *values)
{
    size_t at = (size_t)row * x->stride;
    switch (x->dtype) {
    case DTYPE_F32:
        memmove((float *)x->data + at, values, x->cols * sizeof(float));
        break;
    case DTYPE_BF16:
        store_bf16((uint16_t *)x->data + at, x->cols, values);
        break;
    case DTYPE_F8E4M3:
        store_e4m3((uint8_t *)x->data + at, x->cols, x->scales + (size_t)row * x->scale_stride,
                   values);
        break;
    }
}

void cache_load(const cache_t *cache, const uint32_t *blocks, uint32_t position, float *out)
{
    size_t at = cache_offset(cache, blocks, position);
    uint32_t cols = cache->latent + cache->rope;
    if (cache->dtype == DTYPE_F32)
        memcpy(out, (const float *)cache->data + at, cols * sizeof(float));
    else
        load_bf16((const uint16_t *)cache->data + at, cols, out);
}

void cache_store(const cache_t *cache, const uint32_t *blocks, uint32_t position,
                 const float *values)
{
    size_t at = cache_offset(cache, blocks, position);
    uint32_t cols = cache->latent + cache->rope;
    if (cache->dtype == DTYPE_F32)
        memcpy((float *)cache->data + at, values, cols * sizeof(float));
    else
        store_bf16((uint16_t *)cache->data + at, cols, values);
}

tensor_t rows_slice(const tensor_t *x, uint32_t first, uint32_t end)
{
    static const size_t sizes[] = { [DTYPE_F32] = 4, [DTYPE_BF16] = 2, [DTYPE_F8E4M3] = 1 };
    tensor_t part = *x;
    part.data = (char *)x->data + (size_t)first * x->stride * sizes[x->dtype];
    part.rows = end - first;
    if (x->scales) part.scales = x->scales + (size_t)first * x->scale_stride;
    return part;
}
