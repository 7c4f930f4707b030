/* NEON; kernels_neon_dot.c and kernels_neon_i8mm.c compile the same text with more instructions. */
#include <arm_neon.h>
#include <string.h>

#include "kernels/kernels.h"

#define LANES 4

static inline float32x4_t load_f16(const uint8_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}

static inline float32x4_t load_bf16(const uint8_t *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}

static inline float32x4_t widen_bytes(const uint8_t *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}

static inline void store_f16(uint8_t *p, float32x4_t x)
{
    vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x)));
}

static inline float32x4_t fma_v(float32x4_t a, float32x4_t b, float32x4_t c)
{
    return vfmaq_f32(c, a, b);
}

static inline void store_past(float *p, float32x4_t x)
{
    vst1q_f32(p, x); /* whole lines are not read first here */
}

static inline void end_past(void) {}

#include "kernels/vector.h"
#include "kernels/vector_tile.h"
#include "kernels/vector_attend.h"
#include "kernels/vector_delta.h"

/* ---- codes ------------------------------------------------------------------------- */

/*
 * How 16 codes, 2 * bits bytes, become bytes: each 16-bit lane takes the two
 * bytes that hold its code, is shifted down and masked.
 */
typedef struct {
    int32_t bits;
    uint8x16_t gather[2];
    int16x8_t shift[2];
    uint16x8_t keep;
} unpacker;

static inline unpacker make_unpacker(int32_t bits)
{
    unpacker u = {.bits = bits, .keep = vdupq_n_u16((uint16_t)((1 << bits) - 1))};
    for (int32_t part = 0; part < 2; part++) {
        uint8_t gather[16];
        int16_t shift[8];
        for (int32_t i = 0; i < 8; i++) {
            int32_t bit = (8 * part + i) * bits;
            gather[2 * i] = (uint8_t)(bit / 8);
            gather[2 * i + 1] = (uint8_t)(bit / 8 + 1 < 2 * bits ? bit / 8 + 1 : 0xff); /* 0xff: a zero */
            shift[i] = (int16_t)-(bit % 8);
        }
        u.gather[part] = vld1q_u8(gather);
        u.shift[part] = vld1q_s16(shift);
    }
    return u;
}

/* 2 * bits bytes; where 16 are not there to be read, no more than those. */
static inline uint8x16_t load_bytes(const uint8_t *p, int32_t n, bool roomy)
{
    if (roomy) return vld1q_u8(p);
    uint8_t all[16] = {0};
    memcpy(all, p, (size_t)n);
    return vld1q_u8(all);
}

static inline uint8x16_t unpack_16(const unpacker *u, const uint8_t *codes, bool roomy)
{
    if (u->bits == 8) return vld1q_u8(codes);
    uint8x16_t raw = load_bytes(codes, 2 * u->bits, roomy);
    uint16x8_t a = vandq_u16(vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(raw, u->gather[0])), u->shift[0]), u->keep);
    uint16x8_t b = vandq_u16(vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(raw, u->gather[1])), u->shift[1]), u->keep);
    return vcombine_u8(vmovn_u16(a), vmovn_u16(b));
}

static inline void unpack(const unpacker *u, const uint8_t *codes, uint8_t *to)
{
    vst1q_u8(to, unpack_16(u, codes, false));
    vst1q_u8(to + 16, unpack_16(u, codes + 2 * u->bits, false));
}

#include "kernels/matmul_float.h"

/* ---- activations ---------------------------------------------------------------------- */

static void quantise(const float *x, int32_t n, int8_t *q, float *scale, float *sum)
{
    for (int32_t first = 0; first < (n + 63) / 64 * 64; first += FM_Q8_BLOCK) {
        float block[FM_Q8_BLOCK] = {0};
        int32_t end = n - first < FM_Q8_BLOCK ? n - first : FM_Q8_BLOCK;
        if (end > 0) memcpy(block, x + first, (size_t)end * sizeof *block);
        float32x4_t most = vdupq_n_f32(0);
        for (int32_t i = 0; i < FM_Q8_BLOCK; i += 4) most = vmaxq_f32(most, vabsq_f32(vld1q_f32(block + i))); /* NaN stays */
        float s = vmaxvq_f32(most) / 127, turn = s > 0 ? 1 / s : 0;
        int32x4_t total = vdupq_n_s32(0);
        for (int32_t i = 0; i < FM_Q8_BLOCK; i += 8) {
            int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(block + i), turn));
            int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(block + i + 4), turn));
            vst1_s8(q + first + i, vqmovn_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b))));
            total = vaddq_s32(total, vaddq_s32(a, b));
        }
        scale[first / FM_Q8_BLOCK] = s;
        sum[first / FM_Q8_BLOCK] = s * (float)vaddvq_s32(total);
    }
}

/* ---- affine weights times int8 activations ------------------------------------------------ */

#define TILE 4 /* rows of x whose sums stay in registers, for two panels */
#define MOST 4 /* the most rows of x at once */

typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

INLINE void turn_words(const uint8x16_t row[4], vu v[4])
{
    uint32x4_t t[4];
    for (int32_t i = 0; i < 4; i++) t[i] = vreinterpretq_u32_u8(row[i]);
    uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(t[0], t[1])), b = vreinterpretq_u64_u32(vtrn2q_u32(t[0], t[1]));
    uint64x2_t c = vreinterpretq_u64_u32(vtrn1q_u32(t[2], t[3])), d = vreinterpretq_u64_u32(vtrn2q_u32(t[2], t[3]));
    v[0] = (vu)vtrn1q_u64(a, c);
    v[1] = (vu)vtrn1q_u64(b, d);
    v[2] = (vu)vtrn2q_u64(a, c);
    v[3] = (vu)vtrn2q_u64(b, d);
}

INLINE void turn(const uint8_t *const *row, size_t at_, vu v[4])
{
    uint8x16_t t[4];
    for (int32_t i = 0; i < 4; i++) t[i] = vld1q_u8(row[i] + at_);
    turn_words(t, v);
}

INLINE void turn_8(const uint8_t *const *row, size_t at_, vu v[2])
{
    uint32x4_t a = vreinterpretq_u32_u8(vcombine_u8(vld1_u8(row[0] + at_), vld1_u8(row[1] + at_)));
    uint32x4_t b = vreinterpretq_u32_u8(vcombine_u8(vld1_u8(row[2] + at_), vld1_u8(row[3] + at_)));
    v[0] = (vu)vuzp1q_u32(a, b);
    v[1] = (vu)vuzp2q_u32(a, b);
}

INLINE void turn_12(const uint8_t *const *row, size_t at_, vu v[4])
{
    static const uint8_t thirds[16] = {0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 255, 255, 255, 255};
    uint8x16_t t[4];
    for (int32_t i = 0; i < 4; i++) {
        uint32_t last;
        memcpy(&last, row[i] + at_ + 8, sizeof last);
        uint8x8_t rest = vreinterpret_u8_u32(vdup_n_u32(last));
        t[i] = vqtbl1q_u8(vcombine_u8(vld1_u8(row[i] + at_), rest), vld1q_u8(thirds));
    }
    turn_words(t, v);
}

static inline vf f16_lanes(vu v)
{
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32((uint32x4_t)v)));
}

INLINE void arrange(int32_t bits, const int8_t *from, int8_t *to)
{
    static const uint8_t order[3][32] = {
        {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 16, 20, 24, 28, 17, 21, 25, 29, 18, 22, 26, 30, 19, 23, 27, 31},
        {0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27, 4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31},
        {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 16, 18, 20, 22, 17, 19, 21, 23, 24, 26, 28, 30, 25, 27, 29, 31},
    };
    int8x16x2_t x = {{vld1q_s8(from), vld1q_s8(from + 16)}};
    if (bits == 2 || bits == 3 || bits == 4) {
        int8x16_t a = vqtbl2q_s8(x, vld1q_u8(order[bits - 2]));
        x.val[1] = vqtbl2q_s8(x, vld1q_u8(order[bits - 2] + 16));
        x.val[0] = a;
    }
    vst1q_s8(to, x.val[0]);
    vst1q_s8(to + 16, x.val[1]);
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define PLANES(bits) 1

INLINE int32x4_t add_products(int32x4_t sum, const vu *codes, const int8_t *x)
{
    int8x16_t a = vld1q_s8(x), b = vld1q_s8(x + 16);
    sum = vusdotq_laneq_s32(sum, (uint8x16_t)codes[0], a, 0);
    sum = vusdotq_laneq_s32(sum, (uint8x16_t)codes[1], a, 1);
    sum = vusdotq_laneq_s32(sum, (uint8x16_t)codes[2], a, 2);
    sum = vusdotq_laneq_s32(sum, (uint8x16_t)codes[3], a, 3);
    sum = vusdotq_laneq_s32(sum, (uint8x16_t)codes[4], b, 0);
    sum = vusdotq_laneq_s32(sum, (uint8x16_t)codes[5], b, 1);
    sum = vusdotq_laneq_s32(sum, (uint8x16_t)codes[6], b, 2);
    return vusdotq_laneq_s32(sum, (uint8x16_t)codes[7], b, 3);
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define PLANES(bits) ((bits) == 8 ? 2 : 1) /* both sides of a product are signed bytes */

INLINE int32x4_t add_products(int32x4_t sum, const vu *codes, const int8_t *x)
{
    int8x16_t a = vld1q_s8(x), b = vld1q_s8(x + 16);
    sum = vdotq_laneq_s32(sum, (int8x16_t)codes[0], a, 0);
    sum = vdotq_laneq_s32(sum, (int8x16_t)codes[1], a, 1);
    sum = vdotq_laneq_s32(sum, (int8x16_t)codes[2], a, 2);
    sum = vdotq_laneq_s32(sum, (int8x16_t)codes[3], a, 3);
    sum = vdotq_laneq_s32(sum, (int8x16_t)codes[4], b, 0);
    sum = vdotq_laneq_s32(sum, (int8x16_t)codes[5], b, 1);
    sum = vdotq_laneq_s32(sum, (int8x16_t)codes[6], b, 2);
    return vdotq_laneq_s32(sum, (int8x16_t)codes[7], b, 3);
}
#else
/* Codes below 16: 8 products of a byte, twice that in pairs, stay below 2 * 8 * 15 * 127 = 30480 and fit 16 bits. */
#define PLANES(bits) ((bits) > 4 ? 2 : 1)

INLINE int32x4_t add_products(int32x4_t sum, const vu *codes, const int8_t *x)
{
    int16x8_t low = vdupq_n_s16(0), high = vdupq_n_s16(0);
    for (int32_t i = 0; i < 8; i++) {
        int32_t word;
        memcpy(&word, x + 4 * i, sizeof word);
        int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(word));
        low = vmlal_s8(low, vget_low_s8((int8x16_t)codes[i]), vget_low_s8(four));
        high = vmlal_high_s8(high, (int8x16_t)codes[i], four);
    }
    return vpadalq_s16(sum, vpaddq_s16(low, high));
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
/* Pairs of vectors become 8 columns of rows 0 and 1, and of rows 2 and 3: what a product of 2 x 8 matrices takes. */
static inline void pack(vu *v, int32_t n)
{
    for (int32_t i = 0; i < n; i += 2) {
        uint32x4_t a = (uint32x4_t)v[i], b = (uint32x4_t)v[i + 1];
        v[i] = (vu)vzip1q_u32(a, b);
        v[i + 1] = (vu)vzip2q_u32(a, b);
    }
}

/* Panels of packed codes against rows k and l of x. */
INLINE void dots_of_two(const vu *codes, int32_t panels, const int8_t *x, size_t x_stride, int32_t k, int32_t l, vi dot[2][MOST])
{
    int8x16_t both[4];
    for (int32_t i = 0; i < 4; i++)
        both[i] = vcombine_s8(vld1_s8(x + (size_t)k * x_stride + 8 * i), vld1_s8(x + (size_t)l * x_stride + 8 * i));
    for (int32_t p = 0; p < panels; p++, codes += 8) {
        int32x4_t top = vdupq_n_s32(0), bottom = vdupq_n_s32(0);
        for (int32_t i = 0; i < 4; i++) {
            top = vusmmlaq_s32(top, (uint8x16_t)codes[2 * i], both[i]);
            bottom = vusmmlaq_s32(bottom, (uint8x16_t)codes[2 * i + 1], both[i]);
        }
        dot[p][k] = (vi)vuzp1q_s32(top, bottom);
        if (l > k) dot[p][l] = (vi)vuzp2q_s32(top, bottom);
    }
}
#else
static inline void pack(vu *v, int32_t n)
{
    (void)v, (void)n;
}
#endif

/* dot[p][k] = 32 columns of panel p times those of row k of x: exact. */
INLINE void dots(const vu *codes, bool packed, int32_t panels, int32_t planes, const int8_t *x, size_t x_stride, int32_t n,
                 vi dot[2][MOST])
{
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if (packed) {
        for (int32_t k = 0; k < n; k += 2) dots_of_two(codes, panels, x, x_stride, k, k + 1 < n ? k + 1 : k, dot);
        return;
    }
#else
    (void)packed;
#endif
    for (int32_t k = 0; k < n; k++)
        for (int32_t p = 0; p < panels; p++) {
            int32x4_t sum = vdupq_n_s32(0);
            for (int32_t plane = planes - 1; plane >= 0; plane--)
                sum = add_products(vshlq_n_s32(sum, 4), codes + (p * planes + plane) * 8, x + (size_t)k * x_stride);
            dot[p][k] = (vi)sum;
        }
}

#include "kernels/matmul_q8.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define TABLE fm_kernels_neon_i8mm
#define NAME "neon_i8mm"
#elif defined(__ARM_FEATURE_DOTPROD)
#define TABLE fm_kernels_neon_dot
#define NAME "neon_dot"
#else
#define TABLE fm_kernels_neon
#define NAME "neon"
#endif

const fm_kernels TABLE = {
    .name = NAME,
    .q8 = true,
#define KERNEL(name, ret, params) .name = name,
#include "kernels/kernels.def"
#undef KERNEL
};
