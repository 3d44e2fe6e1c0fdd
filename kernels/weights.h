/* kernels/weights.h - how likely a token is, in whole numbers that come out alike on every device.
 *
 * Sampling adds up exp(logit / temperature) over a vocabulary.  Sums of floating point depend on
 * their order and exp on the machine's library, so tokens would too.  Here a weight is an integer
 * made from its logit by a fixed sequence of rounded steps, and sums of integers have no order.
 *
 * A token `behind` the best one's logit has the weight 2^-x, x = behind * log2(e) / temperature,
 * rounded up to a multiple of 2^-20.  Its *code* orders tokens, likeliest first, and holds the
 * weight: x's whole part (how often the weight is halved) above 22 bits of what the mantissa lacks
 * to 2^23.  Codes of different x differ; code 0 is the best token and nobody else.
 */
#ifndef KERNELS_WEIGHTS_H
#define KERNELS_WEIGHTS_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define WEIGHT_FUNCTION __host__ __device__ __forceinline__
#else
#define WEIGHT_FUNCTION static inline
#endif

enum {
    WEIGHT_STEP_BITS = 20, /* x is a multiple of 2^-20 */
    WEIGHT_CODE_BITS = 22, /* of a code, below the halvings */
    WEIGHT_HALVINGS = 39,  /* lighter tokens count as nothing: all of a vocabulary of 2^17 together
                              are less than 2^-22 of the best one */
    WEIGHT_UNIT_BITS = 44, /* the best token weighs 2^44, so 2^19 tokens fit 64 bits */
    WEIGHT_HALVED_EXACTLY = 21
};
#define WEIGHT_CODE_END  ((uint32_t)WEIGHT_HALVINGS << WEIGHT_CODE_BITS)
#define WEIGHT_CODE_NONE UINT32_MAX /* no weight: a hopeless token, or one whose logit is NaN */

/* Compilers must not fuse these: fused and not fused differ in the last bit. */
WEIGHT_FUNCTION float weight_multiply(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

WEIGHT_FUNCTION float weight_add(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

WEIGHT_FUNCTION uint32_t weight_bits(float value)
{
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

WEIGHT_FUNCTION float weight_float(uint32_t bits)
{
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

/* Steps of x per unit of the logit.  Finite even for the least temperatures, so that the best token
 * itself stays at 0. */
WEIGHT_FUNCTION float weight_scale(float temperature)
{
    const double scale = 1.4426950408889634 * (1 << WEIGHT_STEP_BITS) / (double)temperature;
    return scale < 0x1p100 ? (float)scale : 0x1p100f;
}

/* What a mantissa of 2^23 loses by 2^-(fraction / 2^20): less than 2^22, more with every step. The
 * polynomial is 1 + 2^-(h + 1/2) at six Chebyshev nodes; one is added so that the sum lies in
 * [1.5, 2], where a float has 23 binary places. */
WEIGHT_FUNCTION uint32_t weight_lack(uint32_t fraction)
{
    float h = weight_add(weight_float(0x3f800000 | fraction << 3), -1.5f);
    float sum = weight_add(weight_multiply(h, -0x1.f06faep-11f), 0x1.c06582p-8f);
    sum = weight_add(weight_multiply(sum, h), -0x1.4182d2p-5f);
    sum = weight_add(weight_multiply(sum, h), 0x1.5be096p-3f);
    sum = weight_add(weight_multiply(sum, h), -0x1.f5e466p-2f);
    sum = weight_add(weight_multiply(sum, h), 0x1.b504f4p+0f);
    return 0x40000000 - weight_bits(sum);
}

/* behind >= 0 or NaN: the best logit minus this one.  Without branches, so that compilers make
 * vectors of it: what is too far behind, or NaN, is as far as `end`. */
WEIGHT_FUNCTION uint32_t weight_code(float behind, float scale)
{
    const uint32_t end = (uint32_t)WEIGHT_HALVINGS << WEIGHT_STEP_BITS;
    float steps = weight_multiply(behind, scale);
    /* Floats that are not negative are ordered as their bits, and NaN is past them all. */
    uint32_t bits = weight_bits(steps), end_bits = weight_bits((float)end);
    steps = weight_float(bits < end_bits ? bits : end_bits);
#ifdef __CUDA_ARCH__
    uint32_t x = (uint32_t)__float2int_ru(steps);
#else
    int32_t whole = (int32_t)steps;
    uint32_t x = (uint32_t)(whole + ((float)whole < steps));
#endif
    uint32_t lack = weight_lack(x & ((1u << WEIGHT_STEP_BITS) - 1));
    uint32_t none = 0 - (uint32_t)(x >= end);
    return x >> WEIGHT_STEP_BITS << WEIGHT_CODE_BITS | lack | none;
}

/* Of a code below WEIGHT_CODE_END. */
WEIGHT_FUNCTION uint64_t weight_of(uint32_t code)
{
    uint32_t mantissa = (1u << 23) - (code & ((1u << WEIGHT_CODE_BITS) - 1));
    return (uint64_t)mantissa << WEIGHT_HALVED_EXACTLY >> (code >> WEIGHT_CODE_BITS);
}

/* The last code whose weight is at least min_p (at most 1) times the best one's. */
WEIGHT_FUNCTION uint32_t weight_code_last(float min_p)
{
    uint64_t least = (uint64_t)((double)min_p * 0x1p44);
    if (least == 0) return WEIGHT_CODE_END - 1;
    uint32_t halvings = 0;
    while (least <= (uint64_t)1 << (WEIGHT_UNIT_BITS - 1)) {
        least <<= 1;
        if (++halvings == WEIGHT_HALVINGS) return WEIGHT_CODE_END - 1;
    }
    uint64_t up = ((uint64_t)1 << WEIGHT_HALVED_EXACTLY) - 1;
    uint32_t mantissa = (uint32_t)((least + up) >> WEIGHT_HALVED_EXACTLY);
    return halvings << WEIGHT_CODE_BITS | ((1u << 23) - mantissa);
}

/* How much of `mass` the likeliest tokens must have together; at least one token's. */
WEIGHT_FUNCTION uint64_t weight_share(uint64_t mass, float top_p)
{
    uint64_t share = (uint64_t)((double)top_p * (double)mass);
    return share ? share : 1;
}

/* Where in `mass` a random number of 24 bits points: the token is the first, by id, at which the
 * sum of weights is greater. */
WEIGHT_FUNCTION uint64_t weight_target(uint64_t mass, uint32_t random)
{
    uint64_t low = mass & 0xffffff;
    return (mass >> 24) * random + (low * random >> 24);
}

#endif
