/* float32, float16 and bfloat16 as bits in memory. */
#include <math.h>
#include <string.h>

#include "quant/quant.h"

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 0x1p-24f;
    return sign ? -tiny : tiny;
}

static uint16_t float_to_half(float x)
{
    uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to 65536 or more */
    if (magnitude < 0x38800000u)                                     /* below 2^-14: multiples of 2^-24 */
        return (uint16_t)(sign | (uint32_t)rintf(from_bits(magnitude) * 0x1p24f));
    magnitude += 0xfffu + (magnitude >> 13 & 1);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}

static uint16_t float_to_bfloat(float x)
{
    uint32_t bits = to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

void fm_numbers_decode(fm_number kind, const void *from, int32_t n, float *to)
{
    const uint8_t *at = from;
    if (kind == FM_F32) {
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, at + 2 * (size_t)i, 2);
        to[i] = kind == FM_F16 ? half_to_float(half) : from_bits((uint32_t)half << 16);
    }
}

void fm_numbers_encode(fm_number kind, const float *from, int32_t n, void *to)
{
    uint8_t *at = to;
    if (kind == FM_F32) {
        memcpy(to, from, (size_t)n * sizeof *from);
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        uint16_t half = kind == FM_F16 ? float_to_half(from[i]) : float_to_bfloat(from[i]);
        memcpy(at + 2 * (size_t)i, &half, 2);
    }
}

/* NaN and infinity have every exponent bit set. Counted first: the common case is one pass without a branch. */
/* Whether every number has an exponent below the one of infinity. Without a way out of the loops, so that they become vectors. */
static bool finite_halves(const uint8_t *at, size_t n, uint16_t mask)
{
    uint16_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, at + 2 * i, 2);
        bad |= (uint16_t)((half & mask) == mask);
    }
    return !bad;
}

static bool finite_words(const uint8_t *at, size_t n, uint32_t mask)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, at + 4 * i, 4);
        bad |= (uint32_t)((word & mask) == mask);
    }
    return !bad;
}

bool fm_numbers_finite(fm_number kind, const void *from, size_t n, size_t *where)
{
    uint16_t mask = kind == FM_F16 ? 0x7c00 : 0x7f80;
    if (kind == FM_F32 ? finite_words(from, n, 0x7f800000) : finite_halves(from, n, mask)) return true;
    const uint8_t *at = from;
    size_t step = fm_number_size(kind), top = step - 2; /* the two bytes that hold sign and exponent */
    for (*where = 0; *where + 1 < n; ++*where) {
        uint16_t high;
        memcpy(&high, at + *where * step + top, 2);
        if ((high & mask) == mask) break;
    }
    return false;
}
