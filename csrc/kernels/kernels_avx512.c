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

#include "kernels/vector.h"

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

/* ---- affine weights times int8 activations ------------------------------------------------ */

#define BLOCKS 512 /* blocks of 32 for which scales are kept side by side: 16384 columns */

/* Scales or biases of one row, spread to blocks of 32. */
static void spread(const fm_matrix *w, const uint8_t *from, int32_t row, int32_t block, int32_t blocks, float *to)
{
    size_t size = fm_number_size(w->quant.scale), groups = (size_t)(w->cols / w->quant.group);
    int32_t wide = w->quant.group / FM_Q8_BLOCK, n = blocks / wide;
    float own[BLOCKS + LANES];
    const uint8_t *p = from + ((size_t)row * groups + (size_t)(block / wide)) * size;
    float *side = wide == 1 ? to : own;
    int32_t i = 0;

    if (w->quant.scale == FM_BF16)
        for (; i + LANES <= n; i += LANES) store(side + i, (vf)load_bf16(p + 2 * (size_t)i));
    else if (w->quant.scale == FM_F16)
        for (; i + LANES <= n; i += LANES) store(side + i, (vf)load_f16(p + 2 * (size_t)i));
    fm_numbers_decode(w->quant.scale, p + (size_t)i * size, n - i, side + i);
    if (wide == 2) {
        const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        for (i = 0; i < n; i += 8)
            _mm512_storeu_ps(to + 2 * i, _mm512_permutexvar_ps(low, _mm512_castps256_ps512(_mm256_loadu_ps(own + i))));
    } else if (wide == 4) {
        for (i = 0; i < n; i++) _mm_storeu_ps(to + 4 * i, _mm_set1_ps(own[i]));
    }
}

/* The scales and biases of up to ROWS weight rows, block by block. */
#define ROWS 4
typedef struct {
    float scale[ROWS][BLOCKS + 2 * LANES], bias[ROWS][BLOCKS + 2 * LANES];
} grid;

/*
 * Blocks [block, block + blocks) of `rows` weight rows against `n` rows of x. Both are constants where
 * it is inlined: a tile of sums stays in registers. Each sum runs over its blocks in order, whatever the tile.
 */
static inline __attribute__((always_inline)) void tile(const fm_matrix *w, const unpacker *u, const grid *g, int32_t row,
                                                       int32_t rows, int32_t block, int32_t blocks, const fm_rows *x, int32_t r,
                                                       int32_t n, float *out, size_t out_stride)
{
    const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    size_t step = 8 * (size_t)w->quant.bits, row_bytes = (size_t)w->cols / 8 * (size_t)w->quant.bits;
    const uint8_t *codes = w->weight + (size_t)row * row_bytes + (size_t)block * FM_Q8_BLOCK / 8 * (size_t)w->quant.bits;
    const int8_t *q = x->q + (size_t)r * x->q_stride + (size_t)block * FM_Q8_BLOCK;
    const float *xs = x->scale + (size_t)r * x->block_stride + block, *xm = x->sum + (size_t)r * x->block_stride + block;
    __m512 sum[ROWS][8];

    for (int32_t i = 0; i < rows; i++)
        for (int32_t k = 0; k < n; k++) sum[i][k] = _mm512_setzero_ps();
    for (int32_t first = 0; first < blocks; first += LANES) {
        int32_t left = blocks - first < LANES ? blocks - first : LANES;
        __mmask16 m = (__mmask16)(0xffff >> (LANES - left));
        __m512 both[ROWS][8];
        for (int32_t i = 0; i < rows; i++) {
            __m512 s = _mm512_maskz_loadu_ps(m, g->scale[i] + first), b = _mm512_maskz_loadu_ps(m, g->bias[i] + first);
            for (int32_t k = 0; k < n; k++) {
                size_t at_ = (size_t)k * x->block_stride + (size_t)first;
                both[i][k] = _mm512_mul_ps(s, _mm512_maskz_loadu_ps(m, xs + at_));
                sum[i][k] = _mm512_fmadd_ps(b, _mm512_maskz_loadu_ps(m, xm + at_), sum[i][k]);
            }
        }
        __m512i which = halves; /* blocks j and j + 1, over the two halves of a vector */
        for (int32_t j = 0; j < left; j += 2, codes += step, q += 64) {
            __mmask64 bytes = left - j == 1 ? u->half : u->whole;
            for (int32_t i = 0; i < rows; i++) {
                /* rows are too short for the hardware to see a stream in each: ask for the next ones */
                _mm_prefetch((const char *)codes + (size_t)(i + rows) * row_bytes, _MM_HINT_T0);
                __m512i c = unpack_64(u, codes + (size_t)i * row_bytes, bytes);
                for (int32_t k = 0; k < n; k++) {
                    __m512i d = _mm512_dpbusd_epi32(_mm512_setzero_si512(), c, _mm512_loadu_si512(q + (size_t)k * x->q_stride));
                    sum[i][k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(d), _mm512_permutexvar_ps(which, both[i][k]), sum[i][k]);
                }
            }
            which = _mm512_add_epi32(which, _mm512_set1_epi32(2));
        }
    }
    for (int32_t i = 0; i < rows; i++)
        for (int32_t k = 0; k < n; k++) {
            float *to = out + (size_t)(r + k) * out_stride + row + i, total = _mm512_reduce_add_ps(sum[i][k]);
            *to = block ? *to + total : total;
        }
}

static void matmul_q8(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    const unpacker u = make_unpacker(w->quant.bits);
    grid g;

    for (int32_t row = first, rows; row < last; row += rows) {
        rows = last - row >= ROWS ? ROWS : 1;
        for (int32_t block = 0, all = w->cols / FM_Q8_BLOCK; block < all; block += BLOCKS) {
            int32_t blocks = all - block < BLOCKS ? all - block : BLOCKS, r = 0;
            for (int32_t i = 0; i < rows; i++) {
                spread(w, w->scales, row + i, block, blocks, g.scale[i]);
                spread(w, w->biases, row + i, block, blocks, g.bias[i]);
            }
            if (rows == ROWS) {
                for (; r + 2 <= x->rows; r += 2) tile(w, &u, &g, row, ROWS, block, blocks, x, r, 2, out, out_stride);
                if (r < x->rows) tile(w, &u, &g, row, ROWS, block, blocks, x, r, 1, out, out_stride);
            } else {
                for (; r < x->rows; r++) tile(w, &u, &g, row, 1, block, blocks, x, r, 1, out, out_stride);
            }
        }
    }
}

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
