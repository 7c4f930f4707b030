/*
 * Elementwise kernels, norms and the short convolution on float vectors, in
 * the compilers' own vector types: one text for every instruction set. The
 * file that includes it first defines LANES and
 *   load_f16, load_bf16    LANES numbers of the cache as floats
 *   store_f16              and back
 *   fma_v                  a * b + c, rounded once
 *   store_past, end_past   a store that leaves the caches alone; after the last one
 *
 * Every sum runs in one order, fixed by the length alone.
 */
#ifndef LANES
#error "define LANES and what it takes first"
#endif

#include <math.h>
#include <string.h>

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

/* One number of each vector in turn: of their first halves, or of their second halves. */
#if LANES == 16
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#endif
#ifdef __clang__
#define ZIP(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ZIP(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

static inline vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

/* The first n < LANES numbers, the rest 0; and back. */
static inline vf load_some(const float *p, int32_t n)
{
    float all[LANES] = {0};
    memcpy(all, p, (size_t)n * sizeof *p);
    return load(all);
}

static inline void store_some(float *p, vf v, int32_t n)
{
    float all[LANES];
    store(all, v);
    memcpy(p, all, (size_t)n * sizeof *p);
}

static inline vf splat(float x)
{
    return x - (vf){0}; /* + would have to turn -0 into 0 */
}

/* Pairs, then pairs of pairs: the same tree on every CPU of this width. */
static inline float sum_lanes(vf v)
{
    float all[LANES];
    store(all, v);
    for (int32_t step = LANES / 2; step; step /= 2)
        for (int32_t i = 0; i < step; i++) all[i] += all[i + step];
    return all[0];
}

/* [LANES][n] numbers become [n][LANES], for n a power of two up to LANES: log2(LANES) perfect shuffles. */
INLINE void transpose(vf *v, int32_t n)
{
    vf next[LANES];
#pragma GCC unroll 4
    for (int32_t step = 1; step < LANES; step *= 2) {
#pragma GCC unroll 8
        for (int32_t i = 0; i < n / 2; i++) {
            next[2 * i] = ZIP(v[i], v[i + n / 2], ZIP_LOW);
            next[2 * i + 1] = ZIP(v[i], v[i + n / 2], ZIP_HIGH);
        }
#pragma GCC unroll 16
        for (int32_t i = 0; i < n; i++) v[i] = next[i];
    }
}

static inline vf pick(vi mask, vf yes, vf no)
{
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

/* e^x to 2e-7 of itself: 2^n by the exponent, the rest by a polynomial on [-ln2/2, ln2/2]. NaN stays NaN. */
static inline vf exp_v(vf x)
{
    const float low = -87.0f, high = 88.0f, magic = 12582912.0f;
    vf y = pick(x < low, splat(low), pick(x > high, splat(high), x));
    vf t = fma_v(y, splat(1.44269504f), splat(magic));
    vf n = t - magic;
    vf r = fma_v(n, splat(2.12194440e-4f), fma_v(n, splat(-0.693359375f), y));
    vf p = splat(1.9875691500e-4f);
    p = fma_v(p, r, splat(1.3981999507e-3f));
    p = fma_v(p, r, splat(8.3334519073e-3f));
    p = fma_v(p, r, splat(4.1665795894e-2f));
    p = fma_v(p, r, splat(1.6666665459e-1f));
    p = fma_v(p, r, splat(5.0000001201e-1f));
    p = fma_v(p * r, r, r) + 1.0f;
    vi power = ((vi)t - 0x4b400000) << 23; /* n, where a float keeps its exponent */
    vf e = (vf)((vi)p + power);
    e = pick(x < low, splat(0), e);
    return pick(x > high, splat(INFINITY), pick(x == x, e, x));
}

static inline vf sigmoid_v(vf x)
{
    return 1.0f / (1.0f + exp_v(-x));
}

/* ---- rows ------------------------------------------------------------------------- */

static float sum_of_squares(const float *x, int32_t n)
{
    vf a = {0}, b = {0};
    int32_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vf p = load(x + i), q = load(x + i + LANES);
        a = fma_v(p, p, a);
        b = fma_v(q, q, b);
    }
    for (; i < n; i += LANES) {
        vf p = n - i >= LANES ? load(x + i) : load_some(x + i, n - i);
        a = fma_v(p, p, a);
    }
    return sum_lanes(a + b);
}

/* Numbers i .. of n, short at the end. */
static inline vf at(const float *p, int32_t i, int32_t n)
{
    return n - i >= LANES ? load(p + i) : load_some(p + i, n - i);
}

static inline void put(float *p, int32_t i, int32_t n, vf v)
{
    if (n - i >= LANES) store(p + i, v);
    else store_some(p + i, v, n - i);
}

static void norm(float *out, const float *x, const float *w, int32_t n, float eps)
{
    float turn = 1 / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    for (int32_t i = 0; i < n; i += LANES) put(out, i, n, at(x, i, n) * turn * at(w, i, n));
}

static void unit(float *out, const float *x, int32_t n, float scale)
{
    float turn = scale / sqrtf(sum_of_squares(x, n) + 1e-6f);
    for (int32_t i = 0; i < n; i += LANES) put(out, i, n, at(x, i, n) * turn);
}

static void gated_norm(float *out, const float *x, const float *w, const float *z, int32_t n, float eps)
{
    float turn = 1 / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    for (int32_t i = 0; i < n; i += LANES) {
        vf g = at(z, i, n);
        put(out, i, n, at(x, i, n) * turn * at(w, i, n) * (g * sigmoid_v(g)));
    }
}

static void swiglu(float *out, const float *by, const float *up, int32_t n)
{
    for (int32_t i = 0; i < n; i += LANES) {
        vf g = at(by, i, n);
        put(out, i, n, g * sigmoid_v(g) * at(up, i, n));
    }
}

static void gate(float *out, const float *x, const float *by, int32_t n)
{
    for (int32_t i = 0; i < n; i += LANES) put(out, i, n, at(x, i, n) * sigmoid_v(at(by, i, n)));
}

static void axpy(float *y, float a, const float *x, int32_t n)
{
    for (int32_t i = 0; i < n; i += LANES) put(y, i, n, fma_v(at(x, i, n), splat(a), at(y, i, n)));
}

static void rope(float *x, const float *cosine, const float *sine, int32_t half)
{
    for (int32_t i = 0; i < half; i += LANES) {
        vf a = at(x, i, half), b = at(x + half, i, half), c = at(cosine, i, half), s = at(sine, i, half);
        put(x, i, half, a * c - b * s);
        put(x + half, i, half, b * c + a * s);
    }
}

/* Tap t of LANES channels; the weights lie channel by channel. */
static inline vf one_tap(const float *weight, int32_t taps, int32_t t, int32_t channels)
{
    float turned[LANES] = {0};
    for (int32_t c = 0; c < channels; c++) turned[c] = weight[(size_t)c * (size_t)taps + (size_t)t];
    return load(turned);
}

static void conv(float *out, const float *const *row, const float *weight, int32_t taps, int32_t channels)
{
    int32_t i = 0;
    for (; taps == 4 && i + LANES <= channels; i += LANES) {
        vf w[LANES], sum = {0};
        for (int32_t t = 0; t < 4; t++) w[t] = load(weight + 4 * (size_t)i + (size_t)t * LANES);
        transpose(w, 4);
        for (int32_t t = 0; t < 4; t++) sum = fma_v(w[t], load(row[t] + i), sum);
        store(out + i, sum * sigmoid_v(sum));
    }
    for (; i < channels; i += LANES) {
        vf sum = {0};
        for (int32_t t = 0; t < taps; t++)
            sum = fma_v(one_tap(weight + (size_t)i * (size_t)taps, taps, t, channels - i < LANES ? channels - i : LANES),
                        at(row[t], i, channels), sum);
        put(out, i, channels, sum * sigmoid_v(sum));
    }
}

/* Numbers as the cache keeps them: what fm_numbers_encode gives. */
static void narrow(fm_number kind, const float *x, int32_t n, void *to)
{
    int32_t i = 0;
    for (; kind == FM_F16 && i + LANES <= n; i += LANES) store_f16((uint8_t *)to + 2 * (size_t)i, load(x + i));
    fm_numbers_encode(kind, x + i, n - i, (uint8_t *)to + (size_t)i * fm_number_size(kind));
}

static float dot(const float *a, const float *b, int32_t n)
{
    vf s = {0}, t = {0};
    int32_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        s = fma_v(load(a + i), load(b + i), s);
        t = fma_v(load(a + i + LANES), load(b + i + LANES), t);
    }
    for (; i < n; i += LANES) s = fma_v(at(a, i, n), at(b, i, n), s);
    return sum_lanes(s + t);
}
