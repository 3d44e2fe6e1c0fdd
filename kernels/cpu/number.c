/* kernels/cpu/number.c - float8 e4m3fn in both directions. */
#include "number.h"

/* clang-format off */
#define SIGNED_8(s, a, b, c, d, e, f, g, h) s(a), s(b), s(c), s(d), s(e), s(f), s(g), s(h)
/* One binade: eight mantissas from 1.0 to 1.875 times a power of two. */
#define BINADE(s, p) SIGNED_8(s, 1.0F * (p), 1.125F * (p), 1.25F * (p), 1.375F * (p), 1.5F * (p), 1.625F * (p), 1.75F * (p), 1.875F * (p))
#define SUBNORMAL(s, p) SIGNED_8(s, 0.0F * (p), 0.125F * (p), 0.25F * (p), 0.375F * (p), 0.5F * (p), 0.625F * (p), 0.75F * (p), 0.875F * (p))
#define HALF(s) \
    SUBNORMAL(s, 0x1p-6F), BINADE(s, 0x1p-6F), BINADE(s, 0x1p-5F), BINADE(s, 0x1p-4F), BINADE(s, 0x1p-3F), BINADE(s, 0x1p-2F), \
    BINADE(s, 0x1p-1F), BINADE(s, 0x1p0F), BINADE(s, 0x1p1F), BINADE(s, 0x1p2F), BINADE(s, 0x1p3F), BINADE(s, 0x1p4F), \
    BINADE(s, 0x1p5F), BINADE(s, 0x1p6F), BINADE(s, 0x1p7F), \
    s(256.0F), s(288.0F), s(320.0F), s(352.0F), s(384.0F), s(416.0F), s(448.0F), s(__builtin_nanf(""))
#define PLUS(x) (x)
#define MINUS(x) (-(x))
const float e4m3_values[256] = { HALF(PLUS), HALF(MINUS) };
/* clang-format on */

uint8_t e4m3_from_f32(float value)
{
    uint32_t bits = bits_from_f32(value);
    uint8_t sign = (uint8_t)((bits >> 24) & 0x80U);
    uint32_t magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) return sign | 0x7fU;
    if (magnitude >= bits_from_f32(E4M3_MAX)) return sign | 0x7eU;
    if (magnitude < bits_from_f32(0x1p-6F)) {
        /* Subnormals are multiples of 2^-9: adding 1.5 x 2^14 leaves the rounded multiple in the
         * low bits. */
        float shifted = f32_from_bits(magnitude) + 0x1.8p14F;
        return (uint8_t)(sign | (bits_from_f32(shifted) - bits_from_f32(0x1.8p14F)));
    }
    magnitude += 0x7ffffU + ((magnitude >> 20) & 1U);
    uint32_t code = (magnitude >> 20) - ((127U - 7U) << 3);
    return (uint8_t)(sign | (code > 0x7eU ? 0x7eU : code));
}
