/* Stored numbers against their bit patterns' meaning, and the affine quantiser against what MLX itself wrote. */
#include <stdbool.h>

#include "check.h"
#include "quant/quant.h"

static const int32_t all_bits[] = {2, 3, 4, 5, 6, 8}, all_groups[] = {32, 64, 128};
static const fm_number kinds[] = {FM_F32, FM_F16, FM_BF16};

/* What a 16-bit pattern means: sign, exponent, mantissa. */
static double meaning(fm_number kind, uint32_t h)
{
    int digits = kind == FM_F16 ? 10 : 7, bias = kind == FM_F16 ? 15 : 127;
    int exponent = (int)(h >> digits & (kind == FM_F16 ? 31u : 255u));
    double mantissa = h & ((1u << digits) - 1);
    double value = exponent ? ldexp(mantissa + ldexp(1, digits), exponent - bias - digits) : ldexp(mantissa, 1 - bias - digits);
    return h >> 15 ? -value : value;
}

/* Every finite pattern comes back, and between neighbours the nearer one wins, the even one at the middle. */
static void test_halves(fm_number kind)
{
    uint32_t infinite = kind == FM_F16 ? 0x7c00 : 0x7f80;
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t stored = (uint16_t)h, back;
        float value;
        size_t where = 9;
        fm_numbers_decode(kind, &stored, 1, &value);
        bool finite = (h & infinite) != infinite;
        CHECK_THAT(fm_numbers_finite(kind, &stored, 1, &where) == finite, "%04x", h);
        if (!finite) {
            CHECK_THAT(where == 0 && ((h & 0x7fff) == infinite ? isinf(value) : isnan(value)), "%04x", h);
            continue;
        }
        CHECK_THAT((double)value == meaning(kind, h), "%04x is %g", h, (double)value);
        fm_numbers_encode(kind, &value, 1, &back);
        CHECK_THAT(back == stored, "%04x became %04x", h, back);
        if ((h & 0x7fff) + 1 >= infinite) continue;
        float middle = (float)((meaning(kind, h) + meaning(kind, h + 1)) / 2); /* exact: one more digit */
        float tries[] = {nextafterf(middle, 0), middle, nextafterf(middle, h >> 15 ? -INFINITY : INFINITY)};
        uint32_t want[] = {h, h + (h & 1), h + 1};
        for (int i = 0; i < 3; i++) {
            fm_numbers_encode(kind, &tries[i], 1, &back);
            CHECK_THAT(back == want[i], "%a became %04x, not %04x", (double)tries[i], back, want[i]);
        }
    }
}

static void test_names(void)
{
    fm_error err;
    for (int b = 0; b < 6; b++)
        for (int g = 0; g < 3; g++)
            for (int k = 0; k < 3; k++) {
                fm_quant q = {FM_AFFINE, kinds[k], all_bits[b], all_groups[g]}, back;
                char name[32];
                fm_quant_name(q, name);
                CHECK(fm_quant_parse(name, strlen(name), &back, &err) == FM_OK);
                CHECK_THAT(back.kind == q.kind && back.scale == q.scale && back.bits == q.bits && back.group == q.group, "%s",
                           name);
            }
    static const char *const bad[] = {"",
                                      "f64",
                                      "bf",
                                      "bf16 ",
                                      "affine",
                                      "affine:4",
                                      "affine:4:64",
                                      "affine:7:64:bf16",
                                      "affine:1:64:bf16",
                                      "affine:4:48:bf16",
                                      "affine:4:64:affine",
                                      "affine:4:64:bf16x",
                                      "affine:-4:64:f16"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fm_quant q;
        CHECK_THAT(fm_quant_parse(bad[i], strlen(bad[i]), &q, &err) == FM_FORMAT, "%s", bad[i]);
    }
}

static void test_measure(void)
{
    fm_error err;
    fm_matrix_layout at;
    fm_quant q = {FM_AFFINE, FM_BF16, 3, 32};
    CHECK(fm_matrix_measure(q, 5, 96, &at, &err) == FM_OK);
    CHECK(at.row_bytes == 36 && at.scale_row_bytes == 6 && at.weight_bytes == 180 && at.scale_bytes == 30);
    CHECK(at.scales_at == 192 && at.biases_at == 256 && at.bytes == 320);
    CHECK(fm_matrix_measure(q, 5, 80, &at, &err) == FM_FORMAT);
    CHECK(fm_matrix_measure(q, 0, 96, &at, &err) == FM_FORMAT);
    CHECK(fm_matrix_measure(q, 5, -32, &at, &err) == FM_FORMAT);
}

/* Random words reach every bit; each code is gathered bit by bit here. */
static void test_decode(void)
{
    enum { rows = 3, cols = 256 };
    uint64_t seed = 7;
    for (int b = 0; b < 6; b++)
        for (int g = 0; g < 3; g++) {
            int32_t bits = all_bits[b], group = all_groups[g];
            size_t row_bytes = (size_t)(cols / 8 * bits), groups = (size_t)(cols / group);
            uint8_t *codes = must(rows * row_bytes); /* exactly: a sanitizer sees a byte too many */
            float scales[rows * cols / 32], biases[rows * cols / 32], out[cols], part[128];
            for (size_t i = 0; i < rows * row_bytes; i++) codes[i] = (uint8_t)noise_bits(&seed);
            for (size_t i = 0; i < rows * groups; i++) scales[i] = noise(&seed), biases[i] = noise(&seed);
            fm_matrix m = {{FM_AFFINE, FM_F32, bits, group}, rows, cols, codes, (uint8_t *)scales, (uint8_t *)biases};
            for (int32_t r = 0; r < rows; r++) {
                fm_matrix_decode_row(&m, r, out);
                for (int32_t i = 0; i < cols; i++) {
                    uint32_t code = 0;
                    for (int32_t j = 0; j < bits; j++) {
                        size_t bit = (size_t)(i * bits + j);
                        code |= (uint32_t)(codes[(size_t)r * row_bytes + bit / 8] >> bit % 8 & 1) << j;
                    }
                    size_t s = (size_t)r * groups + (size_t)(i / group);
                    double want = (double)code * scales[s] + biases[s];
                    CHECK_THAT(fabs(out[i] - want) <= 1e-4, "bits %d group %d row %d col %d", bits, group, r, i);
                }
                fm_matrix_decode_part(&m, r, 128, 128, part);
                CHECK(memcmp(part, out + 128, sizeof part) == 0);
            }
            free(codes);
        }
}

static uint64_t fnv(const void *from, size_t n, uint64_t h)
{
    for (size_t i = 0; i < n; i++) h = (h ^ ((const uint8_t *)from)[i]) * 0x100000001b3u;
    return h;
}

/*
 * FNV-1a of weight, scales and biases that mx.quantize (mlx 0.32.4, CPU) makes
 * of x[i] = ((7919 i^2 + 104729 i) mod 2003 - 1001) / 256, i < 256, for groups
 * of 32, 64 and 128; x is rounded to the scale's kind first.
 */
static const struct {
    fm_number kind;
    int32_t bits;
    uint64_t hash[3];
} mlx[] = {
    {FM_F32, 2, {0x7ea3546f337fae6a, 0x83ef5d918cd99208, 0xfe89e2449fa92014}},
    {FM_F32, 3, {0x9ecb2101d6e3637f, 0xdb8515acfbfb4b22, 0xcb06d1627c0e1e01}},
    {FM_F32, 4, {0x53796070faed8ab1, 0x5462da9a803be8f5, 0x79c736bffcb2453f}},
    {FM_F32, 5, {0xd1a299b523bfa019, 0x38414f728bc543aa, 0x76cb38bf5f0eca01}},
    {FM_F32, 6, {0xa83e09e12e56195f, 0xe9411445b94b589b, 0x237db18abd535c2b}},
    {FM_F32, 8, {0xf2228c3433a66a56, 0xfefdef013e627401, 0x6cfd72ea629ca86a}},
    {FM_F16, 2, {0xdf2a85400ec2901e, 0x7b6d3e2540c8e714, 0xafbd5b6ea0168b08}},
    {FM_F16, 3, {0x0861a119009f03d3, 0xc4ab29aa22e55eee, 0x6474a84298acab35}},
    {FM_F16, 4, {0x9cf0a0f21fb20b89, 0x0f8ad15889bdd8e5, 0x6763e37ec5b0619f}},
    {FM_F16, 5, {0x2fc2be8121658cf7, 0x91562a3bcb114c4c, 0xb558ab72c0779beb}},
    {FM_F16, 6, {0x78c625bfe89d0a69, 0x68c3b1abf2efe5d3, 0xa8f62394f2576579}},
    {FM_F16, 8, {0xceadc57903fd5091, 0xe900afbbacebd5b7, 0xc42af3532a1afe66}},
    {FM_BF16, 2, {0x4494cbcbfd6dba4a, 0x99ef48efeb270c54, 0xd31c4d6c7e86fd6c}},
    {FM_BF16, 3, {0xa49cffca2a05147f, 0xb45669691eee9642, 0x997bcb0272e85e59}},
    {FM_BF16, 4, {0xbc3f8617f1b09ca5, 0x292654a79ee29eac, 0xd4466509c45f9d8f}},
    {FM_BF16, 5, {0x1774067eb11f7ced, 0x51ab88003df49d07, 0x1a108d61d7dd46b0}},
    {FM_BF16, 6, {0xca8f34901827800f, 0xf5ca1b81b9112fc9, 0xa1910d973a6ac47f}},
    {FM_BF16, 8, {0x88460269e7c9e2db, 0x7da3086daeb6257d, 0xb1000d499dd62cbe}},
};

static void test_encode(void)
{
    for (size_t c = 0; c < sizeof mlx / sizeof *mlx; c++)
        for (int g = 0; g < 3; g++) {
            float x[256];
            uint8_t stored[1024], weight[256], scales[32], biases[32];
            size_t size = fm_number_size(mlx[c].kind) * (size_t)(256 / all_groups[g]);
            for (int64_t i = 0; i < 256; i++) x[i] = (float)((7919 * i * i + 104729 * i) % 2003 - 1001) / 256;
            fm_numbers_encode(mlx[c].kind, x, 256, stored);
            fm_numbers_decode(mlx[c].kind, stored, 256, x);
            fm_affine_encode_row((fm_quant){FM_AFFINE, mlx[c].kind, mlx[c].bits, all_groups[g]}, x, 256, weight, scales, biases);
            uint64_t h = fnv(weight, (size_t)(32 * mlx[c].bits), 0xcbf29ce484222325u);
            h = fnv(biases, size, fnv(scales, size, h));
            CHECK_THAT(h == mlx[c].hash[g], "kind %d bits %d group %d", (int)mlx[c].kind, mlx[c].bits, all_groups[g]);
        }
}

int main(void)
{
    test_halves(FM_F16);
    test_halves(FM_BF16);
    test_names();
    test_measure();
    test_decode();
    test_encode();
    return done();
}
