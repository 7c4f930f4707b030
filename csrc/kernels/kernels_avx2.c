/* AVX2 with FMA and F16C (Haswell, Zen and later). */
#include <immintrin.h>

#include "kernels/kernels.h"

#define LANES 8

static inline __m256 load_f16(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

static inline __m256 load_bf16(const uint8_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16));
}

static inline __m256 widen_bytes(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

static inline void store_f16(uint8_t *p, __m256 x)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline __m256 fma_v(__m256 a, __m256 b, __m256 c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline void store_past(float *p, __m256 x)
{
    _mm256_stream_ps(p, x);
}

static inline void end_past(void)
{
    _mm_sfence();
}

#include "kernels/vector.h"
#include "kernels/vector_tile.h"
#include "kernels/vector_attend.h"
#include "kernels/vector_delta.h"

/* ---- codes ------------------------------------------------------------------------- */

/*
 * How 32 codes of an odd width become bytes. Each 16-bit lane takes the two
 * bytes that hold its code, is multiplied so that the code ends at the top,
 * and shifted down. 16 codes are 2 * bits bytes, one half of a register each.
 */
typedef struct {
    int32_t bits;
    __m256i gather[2], lift[2]; /* codes 0-7 and 16-23; codes 8-15 and 24-31 */
    __m128i down;
} unpacker;

static inline unpacker make_unpacker(int32_t bits)
{
    unpacker u = {.bits = bits, .down = _mm_cvtsi32_si128(16 - bits)};
    for (int32_t part = 0; part < 2; part++) {
        uint8_t gather[32];
        uint16_t lift[16];
        for (int32_t i = 0; i < 16; i++) {
            int32_t bit = (i % 8 + 8 * part) * bits;
            gather[2 * i] = (uint8_t)(bit / 8);
            gather[2 * i + 1] = (uint8_t)(bit / 8 + 1 < 2 * bits ? bit / 8 + 1 : 0x80);
            lift[i] = (uint16_t)(1u << (16 - bits - bit % 8));
        }
        u.gather[part] = _mm256_loadu_si256((const __m256i *)(const void *)gather);
        u.lift[part] = _mm256_loadu_si256((const __m256i *)(const void *)lift);
    }
    return u;
}

/* 2 * bits bytes; where 16 are not there to be read, no more than those. */
static inline __m128i load_bytes(const uint8_t *p, int32_t n, bool roomy)
{
    if (roomy) return _mm_loadu_si128((const __m128i *)(const void *)p);
    uint8_t all[16] = {0};
    memcpy(all, p, (size_t)n);
    return _mm_loadu_si128((const __m128i *)(const void *)all);
}

static inline __attribute__((always_inline)) __m256i unpack_32(const unpacker *u, const uint8_t *codes, bool roomy)
{
    if (u->bits == 8) return _mm256_loadu_si256((const __m256i *)(const void *)codes);
    if (u->bits == 4) {
        __m128i raw = _mm_loadu_si128((const __m128i *)(const void *)codes), low = _mm_and_si128(raw, _mm_set1_epi8(15));
        __m128i high = _mm_and_si128(_mm_srli_epi16(raw, 4), _mm_set1_epi8(15));
        return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
    }
    __m256i raw = _mm256_set_m128i(load_bytes(codes + 2 * u->bits, 2 * u->bits, roomy), load_bytes(codes, 2 * u->bits, roomy));
    __m256i a = _mm256_srl_epi16(_mm256_mullo_epi16(_mm256_shuffle_epi8(raw, u->gather[0]), u->lift[0]), u->down);
    __m256i b = _mm256_srl_epi16(_mm256_mullo_epi16(_mm256_shuffle_epi8(raw, u->gather[1]), u->lift[1]), u->down);
    return _mm256_packus_epi16(a, b);
}

static inline void unpack(const unpacker *u, const uint8_t *codes, uint8_t *to)
{
    _mm256_storeu_si256((__m256i *)(void *)to, unpack_32(u, codes, false));
}

#include "kernels/matmul_float.h"

/* ---- activations ---------------------------------------------------------------------- */

static void quantise(const float *x, int32_t n, int8_t *q, float *scale, float *sum)
{
    for (int32_t first = 0; first < (n + 63) / 64 * 64; first += FM_Q8_BLOCK) {
        float most = 0;
        int32_t total = 0, end = n - first < FM_Q8_BLOCK ? n - first : FM_Q8_BLOCK;
        for (int32_t i = 0; i < end; i++)
            if (!(fabsf(x[first + i]) <= most) && !isnan(most)) most = fabsf(x[first + i]); /* NaN is never lost */
        float s = most / 127, turn = s > 0 ? 1 / s : 0;
        for (int32_t i = 0; i < FM_Q8_BLOCK; i++) {
            int32_t v = i < end ? _mm_cvtss_si32(_mm_set_ss(x[first + i] * turn)) : 0;
            q[first + i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
            total += q[first + i];
        }
        scale[first / FM_Q8_BLOCK] = s;
        sum[first / FM_Q8_BLOCK] = s * (float)total;
    }
}

/* ---- affine weights times int8 activations ------------------------------------------------ */

/* Eight sums of four products each. Sums of two 8-bit codes would saturate, so these are widened first. */
static inline __m256i products(__m256i codes, __m256i q, bool wide)
{
    if (!wide) return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, q), _mm256_set1_epi16(1));
    __m256i low =
        _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(codes)), _mm256_cvtepi8_epi16(_mm256_castsi256_si128(q)));
    __m256i high = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(codes, 1)),
                                     _mm256_cvtepi8_epi16(_mm256_extracti128_si256(q, 1)));
    return _mm256_add_epi32(low, high);
}

/* Blocks [block, block + blocks) of one weight row against `n` rows of x; n is a constant where it is inlined. */
static inline __attribute__((always_inline)) void row_q8(const fm_matrix *w, const unpacker *u, int32_t row, int32_t block,
                                                         int32_t blocks, const fm_rows *x, int32_t r, int32_t n,
                                                         const float *scale, const float *bias, float *out, size_t out_stride)
{
    bool wide = w->quant.bits == 8;
    const uint8_t *end = w->weight + (size_t)w->rows * (size_t)w->cols / 8 * (size_t)w->quant.bits;
    __m256 sum[4];
    float offset[4];
    const uint8_t *codes = w->weight + ((size_t)row * (size_t)w->cols + (size_t)block * FM_Q8_BLOCK) / 8 * (size_t)w->quant.bits;

    for (int32_t k = 0; k < n; k++) {
        const float *xm = x->sum + (size_t)(r + k) * x->block_stride + block;
        sum[k] = _mm256_setzero_ps();
        offset[k] = dot(bias, xm, blocks);
    }
    for (int32_t i = 0; i < blocks; i++, codes += 4 * (size_t)w->quant.bits) {
        __m256i c = unpack_32(u, codes, end - codes >= 32);
        for (int32_t k = 0; k < n; k++) {
            size_t row_at = (size_t)(r + k), col = (size_t)(block + i);
            const int8_t *q = x->q + row_at * x->q_stride + col * FM_Q8_BLOCK;
            __m256i d = products(c, _mm256_loadu_si256((const __m256i *)(const void *)q), wide);
            __m256 s = _mm256_set1_ps(scale[i] * x->scale[row_at * x->block_stride + col]);
            sum[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(d), s, sum[k]);
        }
    }
    for (int32_t k = 0; k < n; k++) {
        float *to = out + (size_t)(r + k) * out_stride + row, s = sum_lanes((vf)sum[k]) + offset[k];
        *to = block ? *to + s : s;
    }
}

#include "kernels/matmul_q8.h"

const fm_kernels fm_kernels_avx2 = {
    .name = "avx2",
    .q8 = true,
#define KERNEL(name, ret, params) .name = name,
#include "kernels/kernels.def"
#undef KERNEL
};
