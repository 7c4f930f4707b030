/*
 * Elementwise kernels, norms, attention and the delta rule on float vectors,
 * in the compilers' own vector types: one text for every instruction set.
 * The file that includes it defines LANES, load_f16 and load_bf16 first.
 *
 * Every sum runs in one order, fixed by the length alone.
 */
#ifndef LANES
#error "define LANES, load_f16 and load_bf16 first"
#endif

#include <math.h>
#include <string.h>

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

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
    return (vf){0} + x;
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

static inline vf pick(vi mask, vf yes, vf no)
{
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

/* e^x to 2e-7 of itself: 2^n by the exponent, the rest by a polynomial on [-ln2/2, ln2/2]. NaN stays NaN. */
static inline vf exp_v(vf x)
{
    const float low = -87.0f, high = 88.0f, magic = 12582912.0f;
    vf y = pick(x < low, splat(low), pick(x > high, splat(high), x));
    vf t = y * 1.44269504f + magic;
    vf n = t - magic;
    vf r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
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
        a += p * p;
        b += q * q;
    }
    for (; i < n; i += LANES) {
        vf p = n - i >= LANES ? load(x + i) : load_some(x + i, n - i);
        a += p * p;
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
    for (int32_t i = 0; i < n; i += LANES) put(y, i, n, at(y, i, n) + at(x, i, n) * a);
}

static void rope(float *x, const float *cosine, const float *sine, int32_t half)
{
    for (int32_t i = 0; i < half; i += LANES) {
        vf a = at(x, i, half), b = at(x + half, i, half), c = at(cosine, i, half), s = at(sine, i, half);
        put(x, i, half, a * c - b * s);
        put(x + half, i, half, b * c + a * s);
    }
}

static void conv(float *out, const float *const *row, const float *weight, int32_t taps, int32_t channels)
{
    float turned[LANES]; /* one tap of LANES channels: the weights lie channel by channel */
    for (int32_t i = 0; i < channels; i += LANES) {
        int32_t left = channels - i < LANES ? channels - i : LANES;
        vf sum = {0};
        for (int32_t t = 0; t < taps; t++) {
            for (int32_t c = 0; c < left; c++) turned[c] = weight[(size_t)(i + c) * (size_t)taps + (size_t)t];
            sum += (left == LANES ? load(turned) : load_some(turned, left)) * at(row[t], i, channels);
        }
        put(out, i, channels, sum * sigmoid_v(sum));
    }
}

/* ---- attention --------------------------------------------------------------------- */

/* Rows of the cache as floats, side by side. */
static void widen(const fm_attention *a, const void *cache, int32_t first, int32_t n, float *to)
{
    const uint8_t *from = cache;
    size_t size = fm_number_size(a->kind);
    for (int32_t j = 0; j < n; j++, to += a->head_dim) {
        const uint8_t *row = from + (size_t)(first + j) * a->stride * size;
        int32_t i = 0;
        if (a->kind == FM_F32) {
            memcpy(to, row, (size_t)a->head_dim * sizeof *to);
            continue;
        }
        for (; i + LANES <= a->head_dim; i += LANES)
            store(to + i, a->kind == FM_F16 ? load_f16(row + 2 * (size_t)i) : load_bf16(row + 2 * (size_t)i));
        fm_numbers_decode(a->kind, row + 2 * (size_t)i, a->head_dim - i, to + i);
    }
}

static float dot(const float *a, const float *b, int32_t n)
{
    vf s = {0}, t = {0};
    int32_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        s += load(a + i) * load(b + i);
        t += load(a + i + LANES) * load(b + i + LANES);
    }
    for (; i < n; i += LANES) s += at(a, i, n) * at(b, i, n);
    return sum_lanes(s + t);
}

/* The scores of one head against a block of keys, then the block's part of its output. */
static void attend_block(const fm_attention *a, int32_t h, int32_t n, const float *keys, const float *values, float *score,
                         float *top, float *total, bool first)
{
    const float *q = a->q + (size_t)h * a->q_stride;
    float *out = a->out + (size_t)h * a->q_stride, most = first ? -INFINITY : *top;

    for (int32_t j = 0; j < n; j++) {
        score[j] = dot(q, keys + (size_t)j * (size_t)a->head_dim, a->head_dim) * a->scale;
        if (!(score[j] <= most)) most = score[j];
    }
    vf sum = {0};
    for (int32_t j = 0; j < n; j += LANES) {
        vf e = exp_v(at(score, j, n) - most);
        put(score, j, n, e);
        sum += n - j >= LANES ? e : load_some(score + j, n - j);
    }
    float shrink = first ? 0 : expf(*top - most);
    *total = (first ? 0 : *total * shrink) + sum_lanes(sum);
    *top = most;
    for (int32_t i = 0; i < a->head_dim; i += LANES) {
        vf o = first ? (vf){0} : at(out, i, a->head_dim) * shrink;
        for (int32_t j = 0; j < n; j++) o += at(values + (size_t)j * (size_t)a->head_dim, i, a->head_dim) * score[j];
        put(out, i, a->head_dim, o);
    }
}

static void attend(const fm_attention *a)
{
    float *score = a->scratch, *top = score + FM_ATTEND_BLOCK, *total = top + a->heads;
    float *keys = total + a->heads, *values = keys + (size_t)FM_ATTEND_BLOCK * (size_t)a->head_dim;

    for (int32_t at_ = 0; at_ < a->positions; at_ += FM_ATTEND_BLOCK) {
        int32_t n = a->positions - at_ < FM_ATTEND_BLOCK ? a->positions - at_ : FM_ATTEND_BLOCK;
        widen(a, a->keys, at_, n, keys);
        widen(a, a->values, at_, n, values);
        for (int32_t h = 0; h < a->heads; h++) attend_block(a, h, n, keys, values, score, &top[h], &total[h], at_ == 0);
    }
    for (int32_t h = 0; h < a->heads; h++) {
        float *out = a->out + (size_t)h * a->q_stride;
        for (int32_t i = 0; i < a->head_dim; i += LANES) put(out, i, a->head_dim, at(out, i, a->head_dim) / total[h]);
    }
}

/* ---- delta rule ---------------------------------------------------------------------- */

static void delta_step(const fm_delta *d)
{
    int32_t dv = d->value_dim;
    float keep = expf(d->decay[0]), beta = d->beta[0], *write = d->scratch;

    for (int32_t j = 0; j < dv; j += LANES) {
        vf seen = {0};
        for (int32_t i = 0; i < d->key_dim; i++) seen += at(d->from + (size_t)i * (size_t)dv, j, dv) * d->k[i];
        put(write, j, dv, (at(d->v, j, dv) - seen * keep) * beta);
    }
    for (int32_t j = 0; j < dv; j += LANES) {
        vf out = {0}, w = at(write, j, dv);
        for (int32_t i = 0; i < d->key_dim; i++) {
            vf s = at(d->from + (size_t)i * (size_t)dv, j, dv) * keep + w * d->k[i];
            put(d->to + (size_t)i * (size_t)dv, j, dv, s);
            out += s * d->q[i];
        }
        put(d->out, j, dv, out);
    }
}

/* to[r] = sum over c of a[r][c] * b[c], for up to 4 rows of a at once; b and to have `cols` columns. */
static void rows_times(const float *const *a, int32_t rows, const float *b, int32_t inner, int32_t cols, float *const *to)
{
    for (int32_t j = 0; j < cols; j += LANES) {
        vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (int32_t c = 0; c < inner; c++) {
            vf v = at(b + (size_t)c * (size_t)cols, j, cols);
            s0 += v * a[0][c];
            if (rows > 1) s1 += v * a[1][c];
            if (rows > 2) s2 += v * a[2][c];
            if (rows > 3) s3 += v * a[3][c];
        }
        put(to[0], j, cols, s0);
        if (rows > 1) put(to[1], j, cols, s1);
        if (rows > 2) put(to[2], j, cols, s2);
        if (rows > 3) put(to[3], j, cols, s3);
    }
}

/* All rows of q or k times the state. */
static void times_state(const fm_delta *d, const float *x, float *to)
{
    for (int32_t r = 0; r < d->n; r += 4) {
        const float *a[4];
        float *out[4];
        int32_t rows = d->n - r < 4 ? d->n - r : 4;
        for (int32_t i = 0; i < rows; i++) {
            a[i] = x + (size_t)(r + i) * d->qk_stride;
            out[i] = to + (size_t)(r + i) * (size_t)d->value_dim;
        }
        rows_times(a, rows, d->from, d->key_dim, d->value_dim, out);
    }
}

/* See kernels_ref.c for the formula. */
static void delta_chunk(const fm_delta *d)
{
    int32_t n = d->n, dk = d->key_dim, dv = d->value_dim;
    size_t wide = (size_t)dv;
    float total[FM_DELTA_CHUNK], fade[FM_DELTA_CHUNK], to_end[FM_DELTA_CHUNK];
    float kk[FM_DELTA_CHUNK][FM_DELTA_CHUNK], qk[FM_DELTA_CHUNK][FM_DELTA_CHUNK];
    float *write = d->scratch, *read = write + FM_DELTA_CHUNK * wide;

    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += (double)d->decay[(size_t)i * d->gate_stride];
        total[i] = (float)sum;
        fade[i] = expf(total[i]);
    }
    for (int32_t i = 0; i < n; i++) to_end[i] = expf(total[n - 1] - total[i]);
    for (int32_t i = 0; i < n; i++)
        for (int32_t l = 0; l <= i; l++) {
            const float *k = d->k + (size_t)l * d->qk_stride;
            float between = expf(total[i] - total[l]);
            kk[i][l] = d->beta[(size_t)i * d->gate_stride] * between * dot(d->k + (size_t)i * d->qk_stride, k, dk);
            qk[i][l] = between * dot(d->q + (size_t)i * d->qk_stride, k, dk);
        }
    times_state(d, d->k, write);
    times_state(d, d->q, read);

    for (int32_t j = 0; j < dv; j += LANES)
        for (int32_t i = 0; i < n; i++) {
            float beta = d->beta[(size_t)i * d->gate_stride];
            vf w = (at(d->v + (size_t)i * d->v_stride, j, dv) - at(write + (size_t)i * wide, j, dv) * fade[i]) * beta;
            for (int32_t l = 0; l < i; l++) w -= at(write + (size_t)l * wide, j, dv) * kk[i][l];
            put(write + (size_t)i * wide, j, dv, w);
            vf o = at(read + (size_t)i * wide, j, dv) * fade[i];
            for (int32_t l = 0; l <= i; l++) o += at(write + (size_t)l * wide, j, dv) * qk[i][l];
            put(d->out + (size_t)i * d->out_stride, j, dv, o);
        }
    for (int32_t c = 0; c < dk; c++) {
        float k[FM_DELTA_CHUNK];
        for (int32_t i = 0; i < n; i++) k[i] = to_end[i] * d->k[(size_t)i * d->qk_stride + (size_t)c];
        for (int32_t j = 0; j < dv; j += LANES) {
            vf s = at(d->from + (size_t)c * wide, j, dv) * fade[n - 1];
            for (int32_t i = 0; i < n; i++) s += at(write + (size_t)i * wide, j, dv) * k[i];
            put(d->to + (size_t)c * wide, j, dv, s);
        }
    }
}
