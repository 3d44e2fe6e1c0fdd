/* kernels/cuda/quantise.cuh - rows written in any dtype, F8E4M3 with a scale per 128 columns: amax
 * over the 16 threads that hold them, scale, bytes.
 *
 * The bytes are the judge's: scale = max(amax, 1e-4) / 448 and value / scale, both rounded as IEEE
 * division rounds.
 */
#ifndef KERNELS_CUDA_QUANTISE_CUH
#define KERNELS_CUDA_QUANTISE_CUH

#include "pieces.cuh"

enum { SCALE_COLS = 128, SCALE_PIECES = SCALE_COLS / PIECE };

/* Of the aligned 16 lanes; the whole warp calls. */
__device__ __forceinline__ float amax_of_block(const float *values)
{
    float amax = 1e-4f;
#pragma unroll
    for (int i = 0; i < PIECE; i++) amax = fmaxf(amax, fabsf(values[i]));
#pragma unroll
    for (int distance = SCALE_PIECES / 2; distance > 0; distance /= 2)
        amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, distance));
    return amax;
}

/* value / divisor, correctly rounded: with the correctly rounded reciprocal one step of Newton is
 * enough (Markstein 1990).  Neither overflows here, so the division's checks and branches are left
 * out. */
__device__ __forceinline__ float divide(float value, float divisor, float reciprocal)
{
    float quotient = value * reciprocal;
    return fmaf(fmaf(-quotient, divisor, value), reciprocal, quotient);
}

/* 1 / scale, scale being at least 2e-7. */
__device__ __forceinline__ float reciprocal_of(float scale)
{
    float guess = reciprocal_approximate(scale);
    return fmaf(guess, fmaf(-guess, scale, 1.0f), guess);
}

__device__ __forceinline__ uint32_t four_codes(const float *values, float scale, float reciprocal)
{
    uint32_t codes = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float2 pair = make_float2(divide(values[2 * i], scale, reciprocal),
                                  divide(values[2 * i + 1], scale, reciprocal));
        codes |= (uint32_t)__nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3) << (16 * i);
    }
    return codes;
}

/* The whole warp calls; 16 aligned lanes hold the 128 columns, zeros beyond the row. */
__device__ __forceinline__ piece_t<e4m3_t> piece_quantise(const float *values, float *scale)
{
    *scale = divide(amax_of_block(values), 448.0f, 1.0f / 448.0f);
    float reciprocal = reciprocal_of(*scale);
    piece_t<e4m3_t> codes;
    codes.bits = make_uint2(four_codes(values, *scale, reciprocal),
                            four_codes(values + 4, *scale, reciprocal));
    return codes;
}

__device__ __forceinline__ bool is_first_of_block(uint32_t piece)
{
    return piece % SCALE_PIECES == 0;
}

__device__ __forceinline__ float *scale_of(const tensor_t &x, uint32_t row, uint32_t piece)
{
    return x.scales + (size_t)(piece / SCALE_PIECES) * x.scale_stride + row;
}

/* Eight values of a row in out's dtype.  The whole warp calls, with zeros where is_inside is false.
 */
__device__ __forceinline__ void store_values(const tensor_t &out, uint32_t row, uint32_t piece,
                                             bool is_inside, const float *values)
{
    if (out.dtype == DTYPE_F8E4M3) {
        float scale;
        piece_t<e4m3_t> codes = piece_quantise(values, &scale);
        if (!is_inside) return;
        piece_store(piece_of<e4m3_t>(out, row, piece), codes);
        if (is_first_of_block(piece)) *scale_of(out, row, piece) = scale;
        return;
    }
    if (!is_inside) return;
    if (out.dtype == DTYPE_BF16) {
        piece_t<bf16_t> rounded;
        piece_pack(&rounded, values);
        piece_store(piece_of<bf16_t>(out, row, piece), rounded);
    } else {
        piece_t<float> same;
        piece_pack(&same, values);
        piece_store(piece_of<float>(out, row, piece), same);
    }
}

#endif
