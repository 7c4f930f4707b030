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

INLINE __m256i unpack_32(const unpacker *u, const uint8_t *codes, bool roomy)
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

#define TILE 3 /* rows of x whose sums stay in registers, for two panels */
#define MOST 4 /* the most rows of x at once */

typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

static inline __m128i load_16(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

static inline __m128i load_8(const uint8_t *p)
{
    return _mm_loadl_epi64((const __m128i *)(const void *)p);
}

static inline __m128i load_12(const uint8_t *p)
{
    int32_t last;
    memcpy(&last, p + 8, sizeof last);
    return _mm_insert_epi32(load_8(p), last, 2);
}

/* t[i] holds words 0-3 of row i and of row i + 4. */
INLINE void turn_words(const __m256i t[4], vu v[4])
{
    __m256i a = _mm256_unpacklo_epi32(t[0], t[1]), b = _mm256_unpackhi_epi32(t[0], t[1]);
    __m256i c = _mm256_unpacklo_epi32(t[2], t[3]), d = _mm256_unpackhi_epi32(t[2], t[3]);
    v[0] = (vu)_mm256_unpacklo_epi64(a, c);
    v[1] = (vu)_mm256_unpackhi_epi64(a, c);
    v[2] = (vu)_mm256_unpacklo_epi64(b, d);
    v[3] = (vu)_mm256_unpackhi_epi64(b, d);
}

INLINE void turn(const uint8_t *const *row, size_t at_, vu v[4])
{
    __m256i t[4];
    for (int32_t i = 0; i < 4; i++) t[i] = _mm256_set_m128i(load_16(row[i + 4] + at_), load_16(row[i] + at_));
    turn_words(t, v);
}

INLINE void turn_8(const uint8_t *const *row, size_t at_, vu v[2])
{
    __m128i t[4];
    for (int32_t i = 0; i < 4; i++) t[i] = _mm_unpacklo_epi32(load_8(row[2 * i] + at_), load_8(row[2 * i + 1] + at_));
    __m256i a = _mm256_set_m128i(t[2], t[0]), b = _mm256_set_m128i(t[3], t[1]);
    v[0] = (vu)_mm256_unpacklo_epi64(a, b);
    v[1] = (vu)_mm256_unpackhi_epi64(a, b);
}

INLINE void turn_12(const uint8_t *const *row, size_t at_, vu v[4])
{
    const __m256i thirds = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    __m256i t[4];
    for (int32_t i = 0; i < 4; i++)
        t[i] = _mm256_shuffle_epi8(_mm256_set_m128i(load_12(row[i + 4] + at_), load_12(row[i] + at_)), thirds);
    turn_words(t, v);
}

static inline vf f16_lanes(vu v)
{
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)v, (__m256i)v), 0x08);
    return (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}

INLINE void arrange(int32_t bits, const int8_t *from, int8_t *to)
{
    const __m128i by_2 = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const __m128i by_4 = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i by_8 = _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    __m128i a = _mm_loadu_si128((const __m128i *)(const void *)from);
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(from + 16));
    if (bits == 2 || bits == 3 || bits == 4) {
        __m128i order = bits == 4 ? by_2 : bits == 2 ? by_4 : by_8;
        a = _mm_shuffle_epi8(a, order);
        b = _mm_shuffle_epi8(b, order);
    }
    if (bits == 3) {
        __m128i low = _mm_unpacklo_epi16(a, b);
        b = _mm_unpackhi_epi16(a, b);
        a = low;
    }
    _mm_storeu_si128((__m128i *)(void *)to, a);
    _mm_storeu_si128((__m128i *)(void *)(to + 16), b);
}

#ifdef __AVXVNNI__
#define PLANES(bits) 1

static inline __m256i add_products(__m256i sum, __m256i codes, __m256i four)
{
    return _mm256_dpbusd_avx_epi32(sum, codes, four);
}

static inline __m256i whole(__m256i sum, int32_t plane)
{
    (void)plane;
    return sum;
}
#else
/* Codes below 16: a block's 8 sums of two products stay below 8 * 2 * 15 * 127 = 30480 and fit 16 bits. */
#define PLANES(bits) ((bits) > 4 ? 2 : 1)

static inline __m256i add_products(__m256i sum, __m256i codes, __m256i four)
{
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, four));
    __asm__("" : "+x"(sum)); /* or gcc turns a block's sums into trees that no longer fit the registers */
    return sum;
}

static inline __m256i whole(__m256i sum, int32_t plane)
{
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(plane ? 16 : 1));
}
#endif

static inline void pack(vu *v, int32_t n)
{
    (void)v, (void)n;
}

/* dot[p][k] = 32 columns of panel p times those of row k of x: exact. */
INLINE void dots(const vu *codes, bool packed, int32_t panels, int32_t planes, const int8_t *x, size_t x_stride, int32_t n,
                 vi dot[2][MOST])
{
    (void)packed;
    for (int32_t plane = 0; plane < planes; plane++) {
        __m256i sum[2][MOST];
        for (int32_t p = 0; p < panels; p++)
            for (int32_t k = 0; k < n; k++) sum[p][k] = _mm256_setzero_si256();
        for (int32_t i = 0; i < 8; i++)
            for (int32_t k = 0; k < n; k++) {
                int32_t word;
                memcpy(&word, x + (size_t)k * x_stride + 4 * i, sizeof word);
                __m256i four = _mm256_set1_epi32(word);
                for (int32_t p = 0; p < panels; p++)
                    sum[p][k] = add_products(sum[p][k], (__m256i)codes[(p * planes + plane) * 8 + i], four);
            }
        for (int32_t p = 0; p < panels; p++)
            for (int32_t k = 0; k < n; k++) {
                vi d = (vi)whole(sum[p][k], plane);
                dot[p][k] = plane ? dot[p][k] + d : d;
            }
    }
}

#include "kernels/matmul_q8.h"

#ifdef __AVXVNNI__
#define TABLE fm_kernels_avxvnni
#define NAME "avxvnni"
#else
#define TABLE fm_kernels_avx2
#define NAME "avx2"
#endif

const fm_kernels TABLE = {
    .name = NAME,
    .q8 = true,
#define KERNEL(name, ret, params) .name = name,
#include "kernels/kernels.def"
#undef KERNEL
};
