/* kernels/philox.h - counter-based random numbers, alike on every device.
 *
 * Philox 4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.  A number
 * depends on the seed and the index of the token alone: a resumed or repeated stream draws the
 * same.
 */
#ifndef KERNELS_PHILOX_H
#define KERNELS_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FUNCTION __host__ __device__ __forceinline__
#else
#define PHILOX_FUNCTION static inline
#endif

enum { PHILOX_ROUNDS = 10, RANDOM_BITS = 24 };

PHILOX_FUNCTION void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
    uint32_t key0 = key[0], key1 = key[1];
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        /* The paper's multipliers and, below, its Weyl increments. */
        uint64_t a = (uint64_t)0xd2511f53 * x0, b = (uint64_t)0xcd9e8d57 * x2;
        x0 = (uint32_t)(b >> 32) ^ x1 ^ key0;
        x1 = (uint32_t)b;
        x2 = (uint32_t)(a >> 32) ^ x3 ^ key1;
        x3 = (uint32_t)a;
        key0 += 0x9e3779b9;
        key1 += 0xbb67ae85;
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

/* RANDOM_BITS uniform bits for token `index` of a stream with this seed. */
PHILOX_FUNCTION uint32_t random_bits(uint64_t seed, uint32_t index)
{
    const uint32_t counter[4] = { index, 0, 0, 0 };
    const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
    uint32_t out[4];
    philox(counter, key, out);
    return out[0] >> (32 - RANDOM_BITS);
}

#endif
