/* kernels/cpu/vector.h - one vocabulary of F32 vectors over AVX-512 and AVX2, chosen by the flags
 * of the file.
 *
 * Only table_*.c include it: everything is static, so that no code of one instruction set leaks
 * into another's file.
 */
#ifndef KERNELS_CPU_VECTOR_H
#define KERNELS_CPU_VECTOR_H

#include "number.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

#ifdef __AVX512F__

typedef __m512 vector_t;
enum { LANES = 16, TILE_VECTORS_MAX = 24 };

INLINE vector_t vector_load(const float *from)
{
    return _mm512_loadu_ps(from);
}

INLINE vector_t vector_load_some(const float *from, uint32_t count)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1U << count) - 1U), from);
}

INLINE void vector_store(float *to, vector_t x)
{
    _mm512_storeu_ps(to, x);
}

INLINE void vector_store_some(float *to, vector_t x, uint32_t count)
{
    _mm512_mask_storeu_ps(to, (__mmask16)((1U << count) - 1U), x);
}

INLINE vector_t vector_set(float value)
{
    return _mm512_set1_ps(value);
}

INLINE vector_t vector_fma(vector_t a, vector_t b, vector_t c)
{
    return _mm512_fmadd_ps(a, b, c);
}

INLINE vector_t vector_max(vector_t a, vector_t b)
{
    return _mm512_max_ps(a, b);
}

INLINE float vector_sum(vector_t x)
{
    return _mm512_reduce_add_ps(x);
}

INLINE float vector_largest(vector_t x)
{
    return _mm512_reduce_max_ps(x);
}

INLINE vector_t vector_expand_bf16(const uint16_t *from)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* e4m3 bits moved into float16's places are the value times 2^-8, subnormals included.  Extending
 * the sign and clearing its lower copy puts it where it belongs. */
INLINE vector_t vector_expand_e4m3(const uint8_t *from)
{
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)from));
    return _mm512_cvtph_ps(
        _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(-0x4001)));
}

/* The first (odd = 0) or the second of each pair, for two vectors: one instruction moves both. */
INLINE void vector_expand_e4m3_pairs(const uint8_t *from, const uint32_t odd, vector_t out[2])
{
    __m512i pairs = _mm512_loadu_si512(from), high = odd ? pairs : _mm512_slli_epi16(pairs, 8);
    __m512i half = _mm512_and_si512(_mm512_srai_epi16(high, 1), _mm512_set1_epi16(-0x4080));
    out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
    out[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
}

/* Zero where x is below `least`, y elsewhere. */
INLINE vector_t vector_keep_from(vector_t x, float least, vector_t y)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_GE_OQ), y);
}

INLINE vector_t vector_round(vector_t x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* x times 2^n for whole n that leave the result normal. */
INLINE vector_t vector_scale_by_power(vector_t x, vector_t n)
{
    __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
}

#else

typedef __m256 vector_t;
enum { LANES = 8, TILE_VECTORS_MAX = 12 };

INLINE __m256i lane_mask(uint32_t count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vector_t vector_load(const float *from)
{
    return _mm256_loadu_ps(from);
}

INLINE vector_t vector_load_some(const float *from, uint32_t count)
{
    return _mm256_maskload_ps(from, lane_mask(count));
}

INLINE void vector_store(float *to, vector_t x)
{
    _mm256_storeu_ps(to, x);
}

INLINE void vector_store_some(float *to, vector_t x, uint32_t count)
{
    _mm256_maskstore_ps(to, lane_mask(count), x);
}

INLINE vector_t vector_set(float value)
{
    return _mm256_set1_ps(value);
}

INLINE vector_t vector_fma(vector_t a, vector_t b, vector_t c)
{
    return _mm256_fmadd_ps(a, b, c);
}

INLINE vector_t vector_max(vector_t a, vector_t b)
{
    return _mm256_max_ps(a, b);
}

INLINE float vector_sum(vector_t x)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float vector_largest(vector_t x)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

INLINE vector_t vector_expand_bf16(const uint16_t *from)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* e4m3 bits moved into float16's places are the value times 2^-8, subnormals included.  Extending
 * the sign and clearing its lower copy puts it where it belongs. */
INLINE vector_t vector_expand_e4m3(const uint8_t *from)
{
    __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)from));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(-0x4001)));
}

/* The first (odd = 0) or the second of each pair, for two vectors: one instruction moves both. */
INLINE void vector_expand_e4m3_pairs(const uint8_t *from, const uint32_t odd, vector_t out[2])
{
    __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)from);
    __m256i high = odd ? pairs : _mm256_slli_epi16(pairs, 8);
    __m256i half = _mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16(-0x4080));
    out[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
    out[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
}

/* Zero where x is below `least`, y elsewhere. */
INLINE vector_t vector_keep_from(vector_t x, float least, vector_t y)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(least), _CMP_GE_OQ), y);
}

INLINE vector_t vector_round(vector_t x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* x times 2^n for whole n that leave the result normal. */
INLINE vector_t vector_scale_by_power(vector_t x, vector_t n)
{
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}

#endif

INLINE __m256 fold_to_eight(vector_t x)
{
#ifdef __AVX512F__
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    return x;
#endif
}

/* out[i] = the sum of x[i], all eight in one tree. */
INLINE void vector_sum_eight(const vector_t *x, float *out)
{
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(fold_to_eight(x[0]), fold_to_eight(x[1])),
                                _mm256_hadd_ps(fold_to_eight(x[2]), fold_to_eight(x[3])));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(fold_to_eight(x[4]), fold_to_eight(x[5])),
                                 _mm256_hadd_ps(fold_to_eight(x[6]), fold_to_eight(x[7])));
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                                        _mm256_permute2f128_ps(low, high, 0x31)));
}

/* exp for x up to 88; zero below -87, where results would be subnormal.  Relative error about 1e-7:
 * x = n ln 2 + r, the series of exp(r) to the seventh power for |r| <= ln 2 / 2. */
INLINE vector_t vector_exp(vector_t x)
{
    vector_t clamped = vector_max(x, vector_set(-87.0F));
    vector_t n = vector_round(clamped * vector_set(1.44269504F));
    vector_t r = vector_fma(n, vector_set(-0.693359375F), clamped);
    r = vector_fma(n, vector_set(2.12194440e-4F), r);
    vector_t y = vector_set(1.0F / 5040.0F);
    y = vector_fma(y, r, vector_set(1.0F / 720.0F));
    y = vector_fma(y, r, vector_set(1.0F / 120.0F));
    y = vector_fma(y, r, vector_set(1.0F / 24.0F));
    y = vector_fma(y, r, vector_set(1.0F / 6.0F));
    y = vector_fma(y, r, vector_set(0.5F));
    y = vector_fma(y, r, vector_set(1.0F));
    y = vector_fma(y, r, vector_set(1.0F));
    return vector_keep_from(x, -87.0F, vector_scale_by_power(y, n));
}

#endif
