/* AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later). */
#include <immintrin.h>

#include "kernels/kernels.h"

#define LANES 16

static inline __m512 load_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

static inline __m512 load_bf16(const uint8_t *p)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16));
}

static inline __m512 widen_bytes(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

static inline void store_f16(uint8_t *p, __m512 x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline __m512 fma_v(__m512 a, __m512 b, __m512 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline void store_past(float *p, __m512 x)
{
    _mm512_stream_ps(p, x);
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

/* How 64 codes of a width become bytes: 8 codes are `bits` bytes, gathered into a quadword each. */
typedef struct {
    __m512i gather, shift, keep;
    __mmask64 whole, half; /* bytes of 64 codes, and of 32 */
} unpacker;

static inline unpacker make_unpacker(int32_t bits)
{
    uint8_t gather[64], shift[64];
    for (int32_t q = 0; q < 8; q++)
        for (int32_t i = 0; i < 8; i++) {
            gather[8 * q + i] = (uint8_t)(q * bits + (i < bits ? i : 0));
            shift[8 * q + i] = (uint8_t)(i * bits);
        }
    int32_t bytes = 8 * bits;
    return (unpacker){
        _mm512_loadu_si512(gather),
        _mm512_loadu_si512(shift),
        _mm512_set1_epi8((char)((1 << bits) - 1)),
        bytes == 64 ? ~(__mmask64)0 : ((__mmask64)1 << bytes) - 1,
        ((__mmask64)1 << bytes / 2) - 1,
    };
}

static inline __m512i unpack_64(const unpacker *u, const uint8_t *codes, __mmask64 bytes)
{
    __m512i raw = _mm512_maskz_loadu_epi8(bytes, codes);
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(u->shift, _mm512_permutexvar_epi8(u->gather, raw)), u->keep);
}

static inline void unpack(const unpacker *u, const uint8_t *codes, uint8_t *to)
{
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_castsi512_si256(unpack_64(u, codes, u->half)));
}

#include "kernels/matmul_float.h"

/* ---- activations ---------------------------------------------------------------------- */

static void quantise(const float *x, int32_t n, int8_t *q, float *scale, float *sum)
{
    for (int32_t first = 0; first < (n + 63) / 64 * 64; first += FM_Q8_BLOCK) {
        __mmask16 m0 = n - first >= 16 ? 0xffff : n - first <= 0 ? 0 : (__mmask16)((1 << (n - first)) - 1);
        __mmask16 m1 = n - first >= 32 ? 0xffff : n - first <= 16 ? 0 : (__mmask16)((1 << (n - first - 16)) - 1);
        __m512 a = _mm512_maskz_loadu_ps(m0, x + first), b = _mm512_maskz_loadu_ps(m1, x + first + 16);
        __mmask16 odd = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q);
        float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        float s = odd ? NAN : most / 127;
        __m512 turn = _mm512_set1_ps(s > 0 ? 1 / s : 0);
        __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(a, turn)), r = _mm512_cvtps_epi32(_mm512_mul_ps(b, turn));
        _mm_storeu_si128((__m128i *)(void *)(q + first), _mm512_cvtsepi32_epi8(p));
        _mm_storeu_si128((__m128i *)(void *)(q + first + 16), _mm512_cvtsepi32_epi8(r));
        scale[first / FM_Q8_BLOCK] = s;
        sum[first / FM_Q8_BLOCK] = s * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(p, r));
    }
}

#include "kernels/matmul_avx512.h"

static void matmul(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    if (w->quant.kind == FM_AFFINE && x->q) matmul_q8(w, first, last, x, out, out_stride);
    else matmul_float(w, first, last, x, out, out_stride);
}

const fm_kernels fm_kernels_avx512 = {
    .name = "avx512",
    .q8 = true,
#define KERNEL(name, ret, params) .name = name,
#include "kernels/kernels.def"
#undef KERNEL
};
