/* NEON with dot products (armv8.2: Apple M1, Cortex-A76 and later). */
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

/* Blocks [block, block + blocks) of one weight row against `n` rows of x; n is a constant where it is inlined. */
static inline __attribute__((always_inline)) void row_q8(const fm_matrix *w, const unpacker *u, int32_t row, int32_t block,
                                                         int32_t blocks, const fm_rows *x, int32_t r, int32_t n,
                                                         const float *scale, const float *bias, float *out, size_t out_stride)
{
    /* 8-bit codes come less 128, as signed bytes; what that takes away is 128 * scale * sum */
    const int8x16_t turn = vdupq_n_s8(u->bits == 8 ? (int8_t)-128 : 0);
    const uint8_t *end = w->weight + (size_t)w->rows * (size_t)w->cols / 8 * (size_t)w->quant.bits;
    const uint8_t *codes = w->weight + ((size_t)row * (size_t)w->cols + (size_t)block * FM_Q8_BLOCK) / 8 * (size_t)w->quant.bits;
    float32x4_t sum[4];
    float offset[4];

    for (int32_t k = 0; k < n; k++) {
        const float *xm = x->sum + (size_t)(r + k) * x->block_stride + block;
        sum[k] = vdupq_n_f32(0);
        offset[k] = dot(bias, xm, blocks);
        if (u->bits == 8) offset[k] += 128 * dot(scale, xm, blocks);
    }
    for (int32_t i = 0; i < blocks; i++, codes += 4 * (size_t)w->quant.bits) {
        bool roomy = end - codes >= 32;
        int8x16_t a = veorq_s8(vreinterpretq_s8_u8(unpack_16(u, codes, roomy)), turn);
        int8x16_t b = veorq_s8(vreinterpretq_s8_u8(unpack_16(u, codes + 2 * u->bits, roomy)), turn);
        for (int32_t k = 0; k < n; k++) {
            size_t row_at = (size_t)(r + k), col = (size_t)(block + i);
            const int8_t *q = x->q + row_at * x->q_stride + col * FM_Q8_BLOCK;
            int32x4_t d = vdotq_s32(vdotq_s32(vdupq_n_s32(0), a, vld1q_s8(q)), b, vld1q_s8(q + 16));
            sum[k] = vfmaq_n_f32(sum[k], vcvtq_f32_s32(d), scale[i] * x->scale[row_at * x->block_stride + col]);
        }
    }
    for (int32_t k = 0; k < n; k++) {
        float *to = out + (size_t)(r + k) * out_stride + row, s = sum_lanes((vf)sum[k]) + offset[k];
        *to = block ? *to + s : s;
    }
}

#include "kernels/matmul_q8.h"

const fm_kernels fm_kernels_neon = {
    .name = "neon",
    .q8 = true,
#define KERNEL(name, ret, params) .name = name,
#include "kernels/kernels.def"
#undef KERNEL
};
