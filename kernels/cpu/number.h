/* kernels/cpu/number.h - the number formats of weights and caches: bfloat16 and float8 e4m3fn. */
#ifndef KERNELS_CPU_NUMBER_H
#define KERNELS_CPU_NUMBER_H

#include <stdint.h>
#include <string.h>

/* Quantisation: one scale per 128 columns; the largest e4m3fn value; the floor that keeps scales of
 * zero rows finite. */
enum { BLOCK_COLS = 128 };
#define E4M3_MAX 448.0F
#define AMAX_MIN 1e-4F

/* All 256 values of float8 e4m3fn; 0x7f and 0xff are NaN. */
extern const float e4m3_values[256];

/* The nearest e4m3fn, ties to even; beyond 448 saturates, NaN stays NaN. */
uint8_t e4m3_from_f32(float value);

static inline float f32_from_e4m3(uint8_t bits)
{
    return e4m3_values[bits];
}

static inline uint32_t bits_from_f32(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float f32_from_bf16(uint16_t bits)
{
    return f32_from_bits((uint32_t)bits << 16);
}

/* The nearest bfloat16, ties to even; NaN stays NaN. */
static inline uint16_t bf16_from_f32(float value)
{
    uint32_t bits = bits_from_f32(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return (uint16_t)((bits >> 16) | 0x40U);
    bits += 0x7fffU + ((bits >> 16) & 1U);
    return (uint16_t)(bits >> 16);
}

#endif
