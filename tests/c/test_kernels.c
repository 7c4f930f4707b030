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

/* The largest codes against the largest activations: no sum on the way may saturate. */
static void one_extreme(const fm_kernels *k, int32_t bits, int32_t batch)
{
    enum { ROWS = 19, COLS = 128 };
    weights w = make_weights((fm_quant){FM_AFFINE, FM_F32, bits, 32}, ROWS, COLS, 1);
    activations a = make_rows(k, batch, COLS, k->q8, 3);
    float *out = guarded((size_t)batch * ROWS), scale = 1, bias = 0;

    memset(w.weight, 0xff, (size_t)ROWS * COLS * (size_t)bits / 8);
    for (size_t i = 0; i < (size_t)ROWS * COLS / 32; i++) {
        fm_numbers_encode(FM_F32, &scale, 1, (uint8_t *)w.scales + 4 * i);
        fm_numbers_encode(FM_F32, &bias, 1, (uint8_t *)w.biases + 4 * i);
    }
    for (int32_t r = 0; r < batch; r++) {
        for (int32_t j = 0; j < COLS; j++) a.x[r * COLS + j] = r % 2 ? -127.0f : 127.0f;
        k->quantise(a.x + r * COLS, COLS, a.q + r * COLS, a.scale + r * COLS / FM_Q8_BLOCK, a.sum + r * COLS / FM_Q8_BLOCK);
    }
    k->matmul(&w.m, 0, ROWS, &a.rows, out, ROWS);
    for (int32_t i = 0; i < batch * ROWS; i++) {
        float want = (float)(((1 << bits) - 1) * 127 * COLS * (i / ROWS % 2 ? -1 : 1));
        CHECK_THAT(out[i] == want, "%s %d bits, %d rows: %g is not %g", k->name, bits, batch, (double)out[i], (double)want);
    }
    free_weights(w);
    free_rows(a);
    free(out);
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
    for (int32_t b = 0; b < 6; b++)
        for (int32_t batch = 1; batch <= 16; batch += 5) one_extreme(k, bits[b], batch);
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

#include "mixer_cases.h"

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
    CHECK(fm_kernels_select(NULL, &chosen, &err) == FM_OK && strcmp(chosen->name, "ref") == 0);
    setenv("FLASHMOE_KERNELS", "abacus", 1);
    CHECK(fm_kernels_select(NULL, &chosen, &err) == FM_UNSUPPORTED && strstr(err.message, "abacus") &&
          strstr(err.message, "ref"));
    return done();
}
