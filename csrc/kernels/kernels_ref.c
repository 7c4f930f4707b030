/* The definition of every kernel: plain, scalar, sums in double. Never made faster. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void quantise(const float *x, int32_t n, int8_t *q, float *scale, float *sum)
{
    int32_t padded = (n + 63) / 64 * 64;
    for (int32_t at = 0; at < padded; at += FM_Q8_BLOCK) {
        float most = 0;
        int32_t total = 0;
        for (int32_t i = at; i < at + FM_Q8_BLOCK && i < n; i++)
            if (!(fabsf(x[i]) <= most) && !isnan(most)) most = fabsf(x[i]); /* NaN is never lost */
        float s = most / 127;
        for (int32_t i = at; i < at + FM_Q8_BLOCK; i++) {
            float v = i < n && s > 0 ? rintf(x[i] / s) : 0;
            q[i] = (int8_t)(isnan(v) ? 0 : v);
            total += q[i];
        }
        scale[at / FM_Q8_BLOCK] = s;
        sum[at / FM_Q8_BLOCK] = s * (float)total;
    }
}

/* A row's numbers once, then every row of x. */
static void matmul(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    enum { PART = 512 }; /* numbers decoded at a time; a multiple of every group */
    float row[PART];

    for (int32_t i = first; i < last; i++)
        for (int32_t r = 0; r < x->rows; r++) {
            const float *in = x->x + (size_t)r * x->x_stride;
            double sum = 0;
            for (int32_t at = 0; at < w->cols; at += PART) {
                int32_t n = w->cols - at < PART ? w->cols - at : PART;
                fm_matrix_decode_part(w, i, at, n, row);
                for (int32_t j = 0; j < n; j++) sum += (double)row[j] * (double)in[at + j];
            }
            out[(size_t)r * out_stride + (size_t)i] = (float)sum;
        }
}

static double mean_square(const float *x, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum / n;
}

static void norm(float *out, const float *x, const float *w, int32_t n, float eps)
{
    double turn = 1 / sqrt(mean_square(x, n) + (double)eps);
    for (int32_t i = 0; i < n; i++) out[i] = (float)((double)x[i] * turn * (double)w[i]);
}

static void unit(float *out, const float *x, int32_t n, float scale)
{
    double turn = (double)scale / sqrt(mean_square(x, n) * n + 1e-6);
    for (int32_t i = 0; i < n; i++) out[i] = (float)((double)x[i] * turn);
}

static void gated_norm(float *out, const float *x, const float *w, const float *z, int32_t n, float eps)
{
    double turn = 1 / sqrt(mean_square(x, n) + (double)eps);
    for (int32_t i = 0; i < n; i++) {
        double gate = (double)z[i];
        out[i] = (float)((double)x[i] * turn * (double)w[i] * gate * sigmoid(gate));
    }
}

static void swiglu(float *out, const float *gate_, const float *up, int32_t n)
{
    for (int32_t i = 0; i < n; i++) out[i] = (float)((double)gate_[i] * sigmoid((double)gate_[i]) * (double)up[i]);
}

static void gate(float *out, const float *x, const float *by, int32_t n)
{
    for (int32_t i = 0; i < n; i++) out[i] = (float)((double)x[i] * sigmoid((double)by[i]));
}

static void axpy(float *y, float a, const float *x, int32_t n)
{
    for (int32_t i = 0; i < n; i++) y[i] = (float)((double)y[i] + (double)a * (double)x[i]);
}

static void rope(float *x, const float *cosine, const float *sine, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        double a = (double)x[i], b = (double)x[half + i], c = (double)cosine[i], s = (double)sine[i];
        x[i] = (float)(a * c - b * s);
        x[half + i] = (float)(b * c + a * s);
    }
}

static void conv(float *out, const float *const *row, const float *weight, int32_t taps, int32_t channels)
{
    for (int32_t c = 0; c < channels; c++) {
        double sum = 0;
        for (int32_t t = 0; t < taps; t++) sum += (double)weight[(size_t)c * (size_t)taps + (size_t)t] * (double)row[t][c];
        out[c] = (float)(sum * sigmoid(sum));
    }
}

/* ---- attention ------------------------------------------------------------------- */

static void narrow(fm_number kind, const float *x, int32_t n, void *to)
{
    fm_numbers_encode(kind, x, n, to);
}

static void load(fm_number kind, const void *from, size_t at, int32_t n, float *to)
{
    fm_numbers_decode(kind, (const uint8_t *)from + at * fm_number_size(kind), n, to);
}

/* Online softmax: after each block, `top` is the largest score so far and sums are relative to it. Blocks leave floats behind. */
static void attend_block(const fm_attention *a, const float *q, int32_t at, int32_t n, float *out, float *out_top,
                         float *out_total)
{
    bool begins = at % FM_ATTEND_PART == 0;
    double old = begins ? -INFINITY : (double)*out_top, top = old, score[FM_ATTEND_BLOCK];
    double *sum = (double *)(void *)a->scratch; /* head_dim doubles */
    float *number = a->scratch + 2 * (size_t)a->head_dim;

    for (int32_t j = 0; j < n; j++) {
        score[j] = 0;
        for (int32_t i = 0; i < a->head_dim; i++) {
            load(a->kind, a->keys, fm_key_at(a, at + j, i), 1, number);
            score[j] += (double)q[i] * (double)number[0];
        }
        score[j] *= (double)a->scale;
        if (score[j] > top) top = (double)(float)score[j];
    }
    double shrink = exp(old - top), total = begins ? 0 : (double)*out_total * shrink;
    for (int32_t i = 0; i < a->head_dim; i++) sum[i] = begins ? 0 : (double)out[i] * shrink;
    for (int32_t j = 0; j < n; j++) {
        double share = exp(score[j] - top);
        load(a->kind, a->values, fm_value_at(a, at + j, 0), a->head_dim, number);
        total += share;
        for (int32_t i = 0; i < a->head_dim; i++) sum[i] += share * (double)number[i];
    }
    for (int32_t i = 0; i < a->head_dim; i++) out[i] = (float)sum[i];
    *out_top = (float)top;
    *out_total = (float)total;
}

static void attend(const fm_attention *a)
{
    int32_t queries = a->rows * a->heads;
    size_t wide = fm_attend_wide(a->head_dim);
    float *top = a->part + (size_t)queries * wide, *total = top + queries;

    if (a->first % FM_ATTEND_PART == 0) memset(a->part, 0, (size_t)queries * wide * sizeof *a->part);
    for (int32_t i = 0; i < queries; i++) {
        int32_t row = i / a->heads, end = a->position + row + 1 < a->last ? a->position + row + 1 : a->last;
        const float *q = a->q + (size_t)row * a->q_stride + (size_t)(i % a->heads) * (size_t)a->head_dim;
        for (int32_t at = a->first; at < end; at += FM_ATTEND_BLOCK)
            attend_block(a, q, at, end - at < FM_ATTEND_BLOCK ? end - at : FM_ATTEND_BLOCK, a->part + (size_t)i * wide, top + i,
                         total + i);
    }
}

static void attend_merge(float *part, const float *next, int32_t queries, int32_t head_dim)
{
    size_t wide = fm_attend_wide(head_dim), tops = (size_t)queries * wide, totals = tops + (size_t)queries;
    for (size_t i = 0; i < (size_t)queries; i++) {
        float most = next[tops + i] > part[tops + i] ? next[tops + i] : part[tops + i];
        double old = exp((double)part[tops + i] - (double)most), new = exp((double)next[tops + i] - (double)most);
        for (size_t c = i * wide; c < (i + 1) * wide; c++) part[c] = (float)(old * (double)part[c] + new *(double)next[c]);
        part[totals + i] = (float)(old * (double)part[totals + i] + new *(double)next[totals + i]);
        part[tops + i] = most;
    }
}

static void attend_end(const fm_attention *a, float *out)
{
    int32_t queries = a->rows * a->heads;
    size_t wide = fm_attend_wide(a->head_dim);
    for (int32_t i = 0; i < queries; i++) {
        float *to = out + (size_t)(i / a->heads) * a->q_stride + (size_t)(i % a->heads) * (size_t)a->head_dim;
        double total = (double)a->part[(size_t)queries * (wide + 1) + (size_t)i];
        for (int32_t c = 0; c < a->head_dim; c++) to[c] = (float)((double)a->part[(size_t)i * wide + (size_t)c] / total);
    }
}

/* ---- delta rule -------------------------------------------------------------------- */

static void delta_step(const fm_delta *d)
{
    double keep = exp((double)d->decay[0]), beta = (double)d->beta[0];
    for (int32_t j = 0; j < d->value_dim; j++) {
        double seen = 0, out = 0;
        for (int32_t i = 0; i < d->key_dim; i++) seen += keep * (double)d->from[i * d->value_dim + j] * (double)d->k[i];
        double write = beta * ((double)d->v[j] - seen);
        for (int32_t i = 0; i < d->key_dim; i++) {
            float s = (float)(keep * (double)d->from[i * d->value_dim + j] + (double)d->k[i] * write);
            d->to[i * d->value_dim + j] = s;
            out += (double)s * (double)d->q[i];
        }
        d->out[j] = (float)out;
    }
}

static double dot(const float *a, const float *b, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/*
 * G[i] = decay summed up to row i. The rows' writes N solve a triangular system:
 *   N[i] = beta[i] (v[i] - e^G[i] S'k[i]) - sum over l < i of beta[i] e^(G[i]-G[l]) (k[i].k[l]) N[l]
 *   out[i] = e^G[i] S'q[i] + sum over l <= i of e^(G[i]-G[l]) (q[i].k[l]) N[l]
 *   S = e^G[n-1] S + sum over i of e^(G[n-1]-G[i]) k[i] N[i]'
 * Every exponent is <= 0.
 */
static void delta_chunk(const fm_delta *d)
{
    int32_t n = d->n, dk = d->key_dim, dv = d->value_dim;
    double total[FM_DELTA_CHUNK], to_end[FM_DELTA_CHUNK], write[FM_DELTA_CHUNK];
    double kk[FM_DELTA_CHUNK][FM_DELTA_CHUNK], qk[FM_DELTA_CHUNK][FM_DELTA_CHUNK];

    for (int32_t i = 0; i < n; i++) total[i] = (i ? total[i - 1] : 0) + (double)d->decay[(size_t)i * d->gate_stride];
    for (int32_t i = 0; i < n; i++) to_end[i] = exp(total[n - 1] - total[i]);
    for (int32_t i = 0; i < n; i++)
        for (int32_t l = 0; l <= i; l++) {
            double fade = exp(total[i] - total[l]);
            const float *k = d->k + (size_t)l * d->qk_stride;
            kk[i][l] = (double)d->beta[(size_t)i * d->gate_stride] * fade * dot(d->k + (size_t)i * d->qk_stride, k, dk);
            qk[i][l] = fade * dot(d->q + (size_t)i * d->qk_stride, k, dk);
        }

    for (int32_t j = 0; j < dv; j++) { /* columns of the state are independent */
        for (int32_t i = 0; i < n; i++) {
            const float *k = d->k + (size_t)i * d->qk_stride, *q = d->q + (size_t)i * d->qk_stride;
            double fade = exp(total[i]), seen = 0, out = 0;
            for (int32_t c = 0; c < dk; c++) {
                seen += (double)d->from[c * dv + j] * (double)k[c];
                out += (double)d->from[c * dv + j] * (double)q[c];
            }
            write[i] =
                (double)d->beta[(size_t)i * d->gate_stride] * ((double)d->v[(size_t)i * d->v_stride + (size_t)j] - fade * seen);
            for (int32_t l = 0; l < i; l++) write[i] -= kk[i][l] * write[l];
            out *= fade;
            for (int32_t l = 0; l <= i; l++) out += qk[i][l] * write[l];
            d->out[(size_t)i * d->out_stride + (size_t)j] = (float)out;
        }
        for (int32_t c = 0; c < dk; c++) {
            double s = exp(total[n - 1]) * (double)d->from[c * dv + j];
            for (int32_t i = 0; i < n; i++) s += to_end[i] * (double)d->k[(size_t)i * d->qk_stride + (size_t)c] * write[i];
            d->to[c * dv + j] = (float)s;
        }
    }
}

const fm_kernels fm_kernels_ref = {
    .name = "ref",
    .q8 = false,
#define KERNEL(name, ret, params) .name = name,
#include "kernels/kernels.def"
#undef KERNEL
};
