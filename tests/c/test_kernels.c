/* Every kernel of every table this CPU has, against its formula in double. A kernel listed in kernels.def without a test here does not compile. */
#include <stdbool.h>

#include "base/memory.h"
#include "check.h"
#include "kernels/kernels.h"

#define GUARD 1234.5f

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* n floats with a guard behind them. */
static float *guarded(size_t n)
{
    float *p = must((n + 16) * sizeof *p);
    for (size_t i = 0; i < n + 16; i++) p[i] = GUARD;
    return p;
}

static bool unharmed(const float *p, size_t n)
{
    for (size_t i = n; i < n + 16; i++)
        if (p[i] != GUARD) return false;
    return true;
}

static const int32_t lengths[] = {1, 3, 7, 8, 15, 16, 17, 31, 33, 64, 96, 128, 200, 256};
#define LENGTHS (int32_t)(sizeof lengths / sizeof *lengths)

/* ---- quantise and matmul ------------------------------------------------------------ */

typedef struct {
    fm_rows rows;
    float *x, *scale, *sum;
    int8_t *q;
} activations;

static activations make_rows(const fm_kernels *k, int32_t rows, int32_t cols, bool q8, uint64_t seed)
{
    size_t stride = fm_align_up((size_t)cols, 64), blocks = stride / FM_Q8_BLOCK;
    activations a = {.x = must((size_t)rows * (size_t)cols * sizeof(float))};
    fill(a.x, (size_t)rows * (size_t)cols, seed);
    a.q = aligned_alloc(64, (size_t)rows * stride);
    a.scale = must((size_t)rows * blocks * sizeof(float));
    a.sum = must((size_t)rows * blocks * sizeof(float));
    for (int32_t r = 0; r < rows; r++)
        k->quantise(a.x + (size_t)r * (size_t)cols, cols, a.q + (size_t)r * stride, a.scale + (size_t)r * blocks,
                    a.sum + (size_t)r * blocks);
    a.rows = (fm_rows){rows, cols, a.x, (size_t)cols, q8 ? a.q : NULL, a.scale, a.sum, stride, blocks};
    return a;
}

static void free_rows(activations a)
{
    free(a.x);
    free(a.q);
    free(a.scale);
    free(a.sum);
}

static void test_quantise(const fm_kernels *k)
{
    for (int32_t l = 0; l < LENGTHS; l++) {
        int32_t n = lengths[l], padded = (n + 63) / 64 * 64;
        activations a = make_rows(k, 1, n, true, (uint64_t)n);
        for (int32_t b = 0; b < padded / FM_Q8_BLOCK; b++) {
            double most = 0, total = 0;
            for (int32_t i = b * 32; i < b * 32 + 32; i++) {
                double x = i < n ? (double)a.x[i] : 0;
                most = fmax(most, fabs(x));
                total += a.q[i];
                CHECK_THAT(fabs(x - (double)a.scale[b] * a.q[i]) <= 0.5001 * (double)a.scale[b], "%s n %d i %d", k->name, n, i);
            }
            CHECK(fabs((double)a.scale[b] - most / 127) <= 1e-6 * most);
            CHECK(fabs((double)a.sum[b] - (double)a.scale[b] * total) <= 1e-5 * fabs(total * (double)a.scale[b]) + 1e-30);
        }
        free_rows(a);
    }
    float x[32] = {[5] = NAN}, scale[2], sum[2];
    int8_t q[64];
    k->quantise(x, 32, q, scale, sum);
    CHECK(isnan(scale[0]) || isnan(sum[0])); /* never silently a number */
    memset(x, 0, sizeof x);
    k->quantise(x, 32, q, scale, sum);
    CHECK(scale[0] == 0 && sum[0] == 0 && q[0] == 0);
}

/* A random matrix in exactly the bytes it needs, so that a sanitizer sees a read past them. */
typedef struct {
    fm_matrix m;
    void *weight, *scales, *biases;
} weights;

static weights make_weights(fm_quant quant, int32_t rows, int32_t cols, uint64_t seed)
{
    fm_matrix_layout l;
    CHECK(fm_matrix_measure(quant, rows, cols, &l, NULL) == FM_OK);
    weights w = {.weight = must(l.weight_bytes), .scales = must(l.scale_bytes), .biases = must(l.scale_bytes)};
    if (quant.kind == FM_AFFINE) {
        for (size_t i = 0; i < l.weight_bytes; i++) ((uint8_t *)w.weight)[i] = (uint8_t)noise_bits(&seed);
        size_t size = fm_number_size(quant.scale);
        for (size_t i = 0; i < l.scale_bytes / size; i++) {
            float s = noise(&seed) * 0.1f, b = noise(&seed) * 0.5f; /* scales of both signs */
            fm_numbers_encode(quant.scale, &s, 1, (uint8_t *)w.scales + i * size);
            fm_numbers_encode(quant.scale, &b, 1, (uint8_t *)w.biases + i * size);
        }
    } else {
        size_t size = fm_number_size(quant.kind);
        for (size_t i = 0; i < l.weight_bytes / size; i++) {
            float v = noise(&seed);
            fm_numbers_encode(quant.kind, &v, 1, (uint8_t *)w.weight + i * size);
        }
    }
    w.m = (fm_matrix){quant, rows, cols, w.weight, w.scales, w.biases};
    return w;
}

static void free_weights(weights w)
{
    free(w.weight);
    free(w.scales);
    free(w.biases);
}

static void one_product(const fm_kernels *k, fm_quant quant, int32_t rows, int32_t cols, int32_t batch, bool q8, double bound)
{
    weights w = make_weights(quant, rows, cols, (uint64_t)(rows * cols + quant.bits));
    activations a = make_rows(k, batch, cols, q8, 7);
    size_t n = (size_t)batch * (size_t)rows;
    float *out = guarded(n), *single = guarded(n), *decoded = must((size_t)cols * sizeof *decoded);
    double *want = must(n * sizeof *want);
    char name[32];

    for (int32_t i = 0; i < rows; i++) {
        fm_matrix_decode_row(&w.m, i, decoded);
        for (int32_t r = 0; r < batch; r++)
            for (int32_t j = 0; j < cols; j++)
                want[(size_t)r * (size_t)rows + (size_t)i] +=
                    (double)decoded[j] * (double)a.x[(size_t)r * (size_t)cols + (size_t)j];
    }
    k->matmul(&w.m, 0, rows, &a.rows, out, (size_t)rows);
    fm_quant_name(quant, name);
    CHECK_THAT(nmse(out, want, n) <= bound, "%s %s %d x %d, %d rows, q8 %d: %g", k->name, name, rows, cols, batch, q8,
               nmse(out, want, n));
    CHECK(unharmed(out, n));

    for (int32_t r = 0; r < batch; r++) { /* alone, and in two ranges: the same bits */
        fm_rows one = a.rows;
        one.rows = 1;
        one.x += (size_t)r * one.x_stride;
        if (one.q) one.q += (size_t)r * one.q_stride;
        one.scale += (size_t)r * one.block_stride;
        one.sum += (size_t)r * one.block_stride;
        k->matmul(&w.m, 0, rows / 3, &one, single + (size_t)r * (size_t)rows, (size_t)rows);
        k->matmul(&w.m, rows / 3, rows, &one, single + (size_t)r * (size_t)rows, (size_t)rows);
    }
    CHECK_THAT(memcmp(out, single, n * sizeof *out) == 0, "%s %s: a row depends on its batch", k->name, name);
    free_weights(w);
    free_rows(a);
    free(out);
    free(single);
    free(decoded);
    free(want);
}

static void test_matmul(const fm_kernels *k)
{
    static const int32_t bits[] = {2, 3, 4, 5, 6, 8}, groups[] = {32, 64, 128}, widths[] = {1, 3, 7};
    for (int32_t b = 0; b < 6; b++)
        for (int32_t g = 0; g < 3; g++)
            for (int32_t s = 0; s < 3; s++)
                for (int32_t c = 0; c < 3; c++) {
                    fm_quant quant = {FM_AFFINE, (fm_number)s, bits[b], groups[g]};
                    one_product(k, quant, 13, groups[g] * widths[c], 1 + 4 * c, false, 1e-11);
                    if (k->q8) one_product(k, quant, 53, 128 * widths[c], 5 + 4 * c, true, 1e-4);
                }
    for (int32_t batch = 1; batch <= 33; batch += 4)
        one_product(k, (fm_quant){FM_AFFINE, FM_BF16, 4, 64}, 90, 256, batch, k->q8, 1e-4);
    one_product(k, (fm_quant){FM_AFFINE, FM_BF16, 4, 32}, 5, 17 * 1024 + 32, 3, k->q8, 1e-4); /* wider than one pass */
    for (int32_t kind = 0; kind < 3; kind++)
        for (int32_t l = 0; l < LENGTHS; l++)
            one_product(k, (fm_quant){.kind = (fm_number)kind}, 9, lengths[l], 1 + l % 5, false, 1e-11);
    one_product(k, (fm_quant){.kind = FM_BF16}, 4, 1300, 3, false, 1e-11);
}

/* ---- rows ------------------------------------------------------------------------------ */

typedef struct {
    float *x, *y, *z, *out;
    double *want;
    int32_t n;
} row_case;

static row_case make_case(int32_t n)
{
    size_t m = (size_t)(uint32_t)n;
    row_case c = {must(m * 4), must(m * 4), must(m * 4), guarded(m), must(m * 8), n};
    fill(c.x, m, 1 + m);
    fill(c.y, m, 2 + m);
    fill(c.z, m, 3 + m);
    for (int32_t i = 0; i < n; i++) c.z[i] *= 5;
    return c;
}

static void finish_case(const fm_kernels *k, row_case c, const char *what)
{
    CHECK_THAT(nmse(c.out, c.want, (size_t)c.n) <= 1e-11, "%s %s n %d: %g", k->name, what, c.n, nmse(c.out, c.want, (size_t)c.n));
    CHECK_THAT(unharmed(c.out, (size_t)c.n), "%s %s n %d writes past its end", k->name, what, c.n);
    free(c.x);
    free(c.y);
    free(c.z);
    free(c.out);
    free(c.want);
}

static double energy(const float *x, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

#define FOR_LENGTHS(what, call, formula)                                       \
    for (int32_t l = 0; l < LENGTHS; l++) {                                    \
        row_case c = make_case(lengths[l]);                                    \
        double e = energy(c.x, c.n);                                           \
        (void)e;                                                               \
        for (int32_t i = 0; i < c.n; i++) {                                    \
            double x = (double)c.x[i], y = (double)c.y[i], z = (double)c.z[i]; \
            (void)x, (void)y, (void)z;                                         \
            c.want[i] = formula;                                               \
        }                                                                      \
        call;                                                                  \
        finish_case(k, c, what);                                               \
    }

static void test_norm(const fm_kernels *k)
{
    FOR_LENGTHS("norm", k->norm(c.out, c.x, c.y, c.n, 1e-6f), x / sqrt(e / c.n + 1e-6) * y)
}

static void test_unit(const fm_kernels *k)
{
    FOR_LENGTHS("unit", k->unit(c.out, c.x, c.n, 0.125f), x / sqrt(e + 1e-6) * 0.125)
}

static void test_gated_norm(const fm_kernels *k)
{
    FOR_LENGTHS("gated_norm", k->gated_norm(c.out, c.x, c.y, c.z, c.n, 1e-6f), x / sqrt(e / c.n + 1e-6) * y * z * sigmoid(z))
}

static void test_swiglu(const fm_kernels *k)
{
    FOR_LENGTHS("swiglu", k->swiglu(c.out, c.z, c.y, c.n), z * sigmoid(z) * y)
    float far[4] = {-200, -90, 90, 200}, one[4] = {1, 1, 1, 1}, out[4];
    k->swiglu(out, far, one, 4);
    CHECK(fabsf(out[0]) < 1e-30f && fabsf(out[1]) < 1e-30f && out[2] == 90 && out[3] == 200);
    far[1] = NAN;
    k->swiglu(out, far, one, 4);
    CHECK(isnan(out[1]) && out[3] == 200);
}

static void test_gate(const fm_kernels *k)
{
    FOR_LENGTHS("gate", k->gate(c.out, c.x, c.z, c.n), x * sigmoid(z))
}

static void test_axpy(const fm_kernels *k)
{
    FOR_LENGTHS("axpy", memcpy(c.out, c.y, (size_t)c.n * 4); k->axpy(c.out, 0.3f, c.x, c.n), y + (double)0.3f * x)
}

static void test_rope(const fm_kernels *k)
{
    for (int32_t half = 1; half <= 40; half += 3) {
        float x[96], y[96], co[40], si[40];
        fill(x, 96, (uint64_t)half);
        memcpy(y, x, sizeof x);
        for (int32_t i = 0; i < half; i++) {
            co[i] = (float)cos(i * 0.7);
            si[i] = (float)sin(i * 0.7);
        }
        k->rope(y, co, si, half);
        for (int32_t i = 0; i < half; i++) {
            CHECK(fabs((double)y[i] - ((double)x[i] * (double)co[i] - (double)x[half + i] * (double)si[i])) < 1e-6);
            CHECK(fabs((double)y[half + i] - ((double)x[half + i] * (double)co[i] + (double)x[i] * (double)si[i])) < 1e-6);
        }
        CHECK(memcmp(x + 2 * half, y + 2 * half, (size_t)(96 - 2 * half) * 4) == 0);
    }
}

static void test_conv(const fm_kernels *k)
{
    for (int32_t taps = 1; taps <= 5; taps++)
        for (int32_t l = 0; l < LENGTHS; l++) {
            int32_t n = lengths[l];
            float *rows = must((size_t)(taps * n) * 4), *w = must((size_t)(taps * n) * 4), *out = guarded((size_t)n);
            double *want = must((size_t)n * 8);
            const float *row[5];
            fill(rows, (size_t)(taps * n), 5);
            fill(w, (size_t)(taps * n), 6);
            for (int32_t t = 0; t < taps; t++) row[t] = rows + t * n;
            for (int32_t c = 0; c < n; c++) {
                double sum = 0;
                for (int32_t t = 0; t < taps; t++) sum += (double)w[c * taps + t] * (double)row[t][c];
                want[c] = sum * sigmoid(sum);
            }
            k->conv(out, row, w, taps, n);
            CHECK_THAT(nmse(out, want, (size_t)n) <= 1e-11, "%s conv %d taps %d channels", k->name, taps, n);
            CHECK(unharmed(out, (size_t)n));
            free(rows);
            free(w);
            free(out);
            free(want);
        }
}

/* ---- attention ---------------------------------------------------------------------------- */

static void one_attention(const fm_kernels *k, fm_number kind, int32_t heads, int32_t dim, int32_t positions)
{
    size_t stride = (size_t)dim * 2, cells = (size_t)positions * stride, size = fm_number_size(kind), n = (size_t)(heads * dim);
    float *q = must(n * 4), *out = guarded(n), *keys = must(cells * 4), *values = must(cells * 4);
    uint8_t *kc = must(cells * size), *vc = must(cells * size);
    double *want = must(n * 8), *p = must((size_t)positions * 8);

    fill(q, n, 11);
    fill(keys, cells, 12);
    fill(values, cells, 13);
    fm_numbers_encode(kind, keys, (int32_t)cells, kc);
    fm_numbers_encode(kind, values, (int32_t)cells, vc);
    fm_numbers_decode(kind, kc, (int32_t)cells, keys); /* what the cache really holds */
    fm_numbers_decode(kind, vc, (int32_t)cells, values);
    for (int32_t h = 0; h < heads; h++) {
        double top = -INFINITY, total = 0;
        for (int32_t t = 0; t < positions; t++) {
            p[t] = 0;
            for (int32_t i = 0; i < dim; i++)
                p[t] += (double)q[h * dim + i] * (double)keys[(size_t)t * stride + (size_t)i] * 0.25;
            top = fmax(top, p[t]);
        }
        for (int32_t t = 0; t < positions; t++) total += p[t] = exp(p[t] - top);
        for (int32_t t = 0; t < positions; t++)
            for (int32_t i = 0; i < dim; i++) want[h * dim + i] += p[t] / total * (double)values[(size_t)t * stride + (size_t)i];
    }
    fm_attention a = {q,    out,   (size_t)dim, kc,        vc,    stride,
                      kind, heads, dim,         positions, 0.25f, must(fm_attend_scratch(heads, dim) * 4)};
    k->attend(&a);
    CHECK_THAT(nmse(out, want, n) <= 1e-11, "%s attend %d heads of %d at %d: %g", k->name, heads, dim, positions,
               nmse(out, want, n));
    CHECK(unharmed(out, n));
    free(a.scratch);
    free(q);
    free(out);
    free(keys);
    free(values);
    free(kc);
    free(vc);
    free(want);
    free(p);
}

static void test_attend(const fm_kernels *k)
{
    static const int32_t at[] = {1, 2, 63, 64, 65, 128, 129, 200, 500};
    for (int32_t kind = 0; kind < 3; kind++)
        for (int32_t i = 0; i < 9; i++) {
            one_attention(k, (fm_number)kind, 1 + i % 4, 32, at[i]);
            one_attention(k, (fm_number)kind, 2, 24, at[i]);
            one_attention(k, (fm_number)kind, 1, 9, at[i]);
        }
    one_attention(k, FM_F16, 8, 256, 130);
}

/* ---- delta rule ------------------------------------------------------------------------------ */

typedef struct {
    int32_t n, dk, dv;
    float *q, *k, *v, *decay, *beta;
} delta_input;

static delta_input make_delta(int32_t n, int32_t dk, int32_t dv)
{
    size_t rows = (size_t)n;
    delta_input in = {n,
                      dk,
                      dv,
                      must(rows * (size_t)dk * 4),
                      must(rows * (size_t)dk * 4),
                      must(rows * (size_t)dv * 4),
                      must(rows * 4),
                      must(rows * 4)};
    uint64_t seed = (uint64_t)(n + dk + dv);
    fill(in.q, rows * (size_t)dk, seed);
    fill(in.k, rows * (size_t)dk, seed + 1);
    fill(in.v, rows * (size_t)dv, seed + 2);
    for (int32_t r = 0; r < n; r++) {
        double a = sqrt(energy(in.q + r * dk, dk)), b = sqrt(energy(in.k + r * dk, dk));
        for (int32_t i = 0; i < dk; i++) {
            in.q[r * dk + i] = (float)((double)in.q[r * dk + i] / a / sqrt(dk));
            in.k[r * dk + i] = (float)((double)in.k[r * dk + i] / b);
        }
        in.decay[r] = (float)-exp(noise_unit(&seed) * 8 - 7);
        in.beta[r] = (float)noise_unit(&seed);
    }
    return in;
}

static void free_delta(delta_input in)
{
    free(in.q);
    free(in.k);
    free(in.v);
    free(in.decay);
    free(in.beta);
}

/* The recurrence in double. */
static void delta_truth(const delta_input *in, double *state, double *out)
{
    for (int32_t r = 0; r < in->n; r++) {
        double keep = exp((double)in->decay[r]);
        for (int32_t i = 0; i < in->dk * in->dv; i++) state[i] *= keep;
        for (int32_t j = 0; j < in->dv; j++) {
            double seen = 0, o = 0;
            for (int32_t i = 0; i < in->dk; i++) seen += state[i * in->dv + j] * (double)in->k[r * in->dk + i];
            double d = (double)in->beta[r] * ((double)in->v[r * in->dv + j] - seen);
            for (int32_t i = 0; i < in->dk; i++) {
                state[i * in->dv + j] += (double)in->k[r * in->dk + i] * d;
                o += state[i * in->dv + j] * (double)in->q[r * in->dk + i];
            }
            out[r * in->dv + j] = o;
        }
    }
}

/* The rows in chunks of `chunk`; 1: steps. */
static void run_delta(const fm_kernels *k, const delta_input *in, int32_t chunk, float *state, float *out)
{
    float *scratch = must(fm_delta_scratch(in->dk, in->dv) * 4);
    for (int32_t r = 0; r < in->n; r += chunk) {
        int32_t n = in->n - r < chunk ? in->n - r : chunk;
        fm_delta d = {in->q + r * in->dk,
                      in->k + r * in->dk,
                      in->v + r * in->dv,
                      (size_t)in->dk,
                      (size_t)in->dv,
                      in->decay + r,
                      in->beta + r,
                      1,
                      out + r * in->dv,
                      (size_t)in->dv,
                      state,
                      state,
                      n,
                      in->dk,
                      in->dv,
                      scratch};
        if (chunk == 1) k->delta_step(&d);
        else k->delta_chunk(&d);
    }
    free(scratch);
}

static void one_delta(const fm_kernels *k, int32_t n, int32_t dk, int32_t dv, int32_t chunk)
{
    delta_input in = make_delta(n, dk, dv);
    size_t cells = (size_t)(dk * dv), outs = (size_t)(n * dv);
    float *state = guarded(cells), *out = guarded(outs);
    double *truth = must(cells * 8), *want = must(outs * 8);

    for (size_t i = 0; i < cells; i++) truth[i] = (double)(state[i] = (float)((double)(i % 7) * 0.1 - 0.3));
    delta_truth(&in, truth, want);
    run_delta(k, &in, chunk, state, out);
    CHECK_THAT(nmse(out, want, outs) <= 1e-11, "%s delta n %d dk %d dv %d chunk %d: %g", k->name, n, dk, dv, chunk,
               nmse(out, want, outs));
    CHECK_THAT(nmse(state, truth, cells) <= 1e-11, "%s delta state, chunk %d: %g", k->name, chunk, nmse(state, truth, cells));
    CHECK(unharmed(out, outs) && unharmed(state, cells));
    free_delta(in);
    free(state);
    free(out);
    free(truth);
    free(want);
}

static void test_delta_step(const fm_kernels *k)
{
    one_delta(k, 3, 16, 16, 1);
    one_delta(k, 5, 24, 40, 1);
    one_delta(k, 4, 9, 5, 1);
    one_delta(k, 512, 64, 64, 1); /* no drift */
}

static void test_delta_chunk(const fm_kernels *k)
{
    for (int32_t n = 1; n <= FM_DELTA_CHUNK; n += 5) one_delta(k, n, 16, 24, FM_DELTA_CHUNK);
    one_delta(k, 100, 24, 40, FM_DELTA_CHUNK);
    one_delta(k, 70, 9, 5, 7);
    one_delta(k, 512, 64, 64, FM_DELTA_CHUNK);
}

int main(void)
{
    for (const fm_kernels *const *k = fm_kernels_available(); *k; k++) {
        int before = failures;
#define KERNEL(name, ret, params) test_##name(*k);
#include "kernels/kernels.def"
#undef KERNEL
        fprintf(stderr, "%s: %s\n", (*k)->name, failures == before ? "ok" : "FAILED");
    }
    const fm_kernels *chosen;
    fm_error err;
    setenv("FLASHMOE_KERNELS", "ref", 1);
    CHECK(fm_kernels_select(&chosen, &err) == FM_OK && strcmp(chosen->name, "ref") == 0);
    setenv("FLASHMOE_KERNELS", "abacus", 1);
    CHECK(fm_kernels_select(&chosen, &err) == FM_UNSUPPORTED && strstr(err.message, "abacus") && strstr(err.message, "ref"));
    return done();
}
