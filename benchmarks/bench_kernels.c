/*
 * How fast each table of kernels is on one core: the best of several runs.
 *
 *   cmake -S . -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build --target flashmoe_core
 *   cc -O2 -Icsrc -Icsrc/include benchmarks/bench_kernels.c $(find build -name libflashmoe_core.a) -lm -lpthread
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/kernels.h"

enum { ROWS = 8192, COLS = 2048, MOST = 64, TRIES = 5 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return p;
}

static float *noise(size_t n)
{
    float *x = room(n * sizeof *x);
    uint32_t s = 1;
    for (size_t i = 0; i < n; i++) x[i] = (float)(int32_t)(s = s * 1664525u + 1013904223u) * 0x1p-31f;
    return x;
}

static void matmul(const fm_kernels *k, fm_quant quant, const float *x)
{
    fm_matrix_layout at;
    fm_error err;
    if (fm_matrix_measure(quant, ROWS, COLS, &at, &err) != FM_OK) return;
    uint8_t *block = room(at.bytes);
    float *numbers = noise(COLS);
    for (int32_t i = 0; i < ROWS; i++) {
        uint8_t *row = block + (size_t)i * at.row_bytes;
        if (quant.kind == FM_AFFINE)
            fm_affine_encode_row(quant, numbers, COLS, row, block + at.scales_at + (size_t)i * at.scale_row_bytes,
                                 block + at.biases_at + (size_t)i * at.scale_row_bytes);
        else fm_numbers_encode(quant.kind, numbers, COLS, row);
    }
    fm_matrix w = fm_matrix_at(quant, ROWS, COLS, block);
    int8_t *q = room(MOST * COLS);
    float *scale = room(MOST * COLS / 8), *sum = room(MOST * COLS / 8), *out = room(MOST * ROWS * sizeof(float));
    for (size_t r = 0; r < MOST; r++)
        k->quantise(x + r * COLS, COLS, q + r * COLS, scale + r * COLS / FM_Q8_BLOCK, sum + r * COLS / FM_Q8_BLOCK);
    char name[32];
    fm_quant_name(quant, name);
    for (int32_t rows = 1; rows <= MOST; rows *= 8) {
        double best = 1e9;
        int32_t last = k->q8 ? ROWS : ROWS / 32; /* the scalar table would take minutes */
        fm_rows in = {rows, COLS, x, COLS, k->q8 && quant.kind == FM_AFFINE ? q : NULL, scale, sum, COLS, COLS / FM_Q8_BLOCK};
        for (int t = 0; t < TRIES; t++) {
            double start = now();
            k->matmul(&w, 0, last, &in, out, ROWS);
            double took = now() - start;
            best = took < best ? took : best;
        }
        double bytes = ((double)at.row_bytes + 2.0 * (double)at.scale_row_bytes) * last;
        printf("%-7s %-18s rows %2d  %7.2f GB/s %8.2f GMAC/s\n", k->name, name, (int)rows, bytes / best * 1e-9,
               (double)last * COLS * rows / best * 1e-9);
    }
    free(block), free(numbers), free(q), free(scale), free(sum), free(out);
}

/* The shapes of Qwen3.5-35B-A3B: 16 query heads share 2 kv heads of 256; 32 delta heads of 128 x 128. */
enum { HEADS = 8, KV_HEADS = 2, DIM = 256, Q = KV_HEADS * HEADS * DIM, STATE = 128, WIDTH = 8192 };

/* All rows of both kv heads against all keys up to their own, two blocks of both at a time. */
static void attend_tile(const fm_kernels *k, fm_attention a, float *part, float *out)
{
    int32_t end = a.position + a.rows, queries = a.rows * a.heads;
    size_t floats = fm_attend_part(queries, a.head_dim);
    for (a.first = 0; a.first < end; a.first = a.last) {
        a.last = end - a.first < 2 * FM_ATTEND_BLOCK ? end : a.first + 2 * FM_ATTEND_BLOCK;
        bool begun = a.first >= FM_ATTEND_PART, ends = a.last == end || a.last % FM_ATTEND_PART == 0;
        for (int32_t head = 0; head < KV_HEADS; head++) {
            fm_attention one = a;
            one.q += head * HEADS * DIM;
            one.keys = (const uint16_t *)a.keys + head * DIM * FM_ATTEND_BLOCK;
            one.values = (const uint16_t *)a.values + head * DIM * FM_ATTEND_BLOCK;
            float *sum = part + 2 * (size_t)head * floats, *next = sum + floats;
            one.part = begun ? next : sum;
            k->attend(&one);
            if (begun && ends) k->attend_merge(sum, next, queries, a.head_dim);
            one.part = sum;
            if (a.last == end) k->attend_end(&one, out + head * HEADS * DIM);
        }
    }
}

static void attend(const fm_kernels *k, const float *x, int32_t rows, int32_t keys)
{
    size_t cells = (size_t)keys * KV_HEADS * DIM, queries = (size_t)rows * HEADS;
    uint16_t *kv = room(2 * cells * sizeof *kv);
    fm_numbers_encode(FM_F16, x, MOST * COLS, kv);
    for (size_t i = MOST * COLS; i < 2 * cells; i++) kv[i] = kv[i % (MOST * COLS)];
    float *out = room((size_t)rows * Q * sizeof *out);
    float *scratch = room(fm_attend_scratch((int32_t)queries, DIM) * sizeof *scratch);
    float *part = room(2 * KV_HEADS * fm_attend_part((int32_t)queries, DIM) * sizeof *part);
    double best = 1e9;
    for (int t = 0; t < TRIES; t++) {
        double start = now();
        fm_attention a = {.q = x,
                          .q_stride = Q,
                          .keys = kv,
                          .values = kv + cells,
                          .block = (size_t)KV_HEADS * DIM * FM_ATTEND_BLOCK,
                          .kind = FM_F16,
                          .rows = rows,
                          .heads = HEADS,
                          .head_dim = DIM,
                          .position = keys - rows,
                          .scale = 0.0625f,
                          .scratch = scratch};
        attend_tile(k, a, part, out);
        double took = now() - start;
        best = took < best ? took : best;
    }
    printf("%-7s attend f16, %d rows, %5d keys  %8.1f us a row, %6.2f GB/s %8.2f GFLOP/s\n", k->name, (int)rows, (int)keys,
           best * 1e6 / rows, 4.0 * (double)cells / best * 1e-9, 4.0 * Q * keys * rows / best * 1e-9);
    free(kv), free(out), free(scratch), free(part);
}

/* `heads` value heads, so many that their states come from memory or so few that they do not, `rows` rows each. */
static void delta(const fm_kernels *k, const float *x, int32_t heads, int32_t rows)
{
    enum { CELLS = STATE * STATE, C = FM_DELTA_CHUNK };
    float *from = room((size_t)heads * CELLS * sizeof *from), *to = room((size_t)heads * CELLS * sizeof *to);
    float *small = room(C * WIDTH * sizeof *small), *out = room(C * WIDTH * sizeof *out);
    float *scratch = room(fm_delta_scratch(STATE) * sizeof *scratch), decay[C], beta[C], best = 1e9f;
    for (size_t i = 0; i < (size_t)heads * CELLS; i++) from[i] = x[i % (MOST * COLS)], to[i] = 0;
    for (size_t i = 0; i < C * WIDTH; i++) small[i] = x[i % (MOST * COLS)] * 0.1f;
    for (int i = 0; i < C; i++) decay[i] = -0.1f, beta[i] = 0.5f;
    for (int t = 0; t < TRIES; t++) {
        double start = now();
        for (size_t h = 0; h < (size_t)heads; h++) {
            const float *q = small + h % 16 * STATE;
            fm_delta d = {q,   q + 16 * STATE, q + 32 * STATE,   WIDTH,          WIDTH, decay, beta,  1,
                          out, WIDTH,          from + h * CELLS, to + h * CELLS, rows,  STATE, STATE, scratch};
            if (rows == 1) k->delta_step(&d);
            else k->delta_chunk(&d);
        }
        double took = now() - start;
        best = (float)took < best ? (float)took : best;
    }
    double flops = 6.0 * CELLS * rows + (rows > 1 ? 8.0 * STATE * rows * (rows + 1) / 2 : 0);
    printf("%-7s delta, %4d heads, %2d rows  %8.2f us a row, %6.2f GB/s %8.2f GFLOP/s\n", k->name, (int)heads, (int)rows,
           (double)best * 1e6 / rows / heads, 8.0 * CELLS * heads / (double)best * 1e-9, flops * heads / (double)best * 1e-9);
    free(from), free(to), free(small), free(out), free(scratch);
}

static void conv(const fm_kernels *k, const float *x)
{
    const float *rows[4] = {x, x + WIDTH, x + 2 * WIDTH, x + 3 * WIDTH};
    float *out = room(WIDTH * sizeof *out);
    double best = 1e9;
    for (int t = 0; t < 10 * TRIES; t++) {
        double start = now();
        k->conv(out, rows, x + 4 * WIDTH, 4, WIDTH);
        double took = now() - start;
        best = took < best ? took : best;
    }
    printf("%-7s conv, %d channels, 4 taps  %8.2f us\n", k->name, (int)WIDTH, best * 1e6);
    free(out);
}

static void mixers(const fm_kernels *k, const float *x)
{
    bool fast = k->q8; /* the scalar table would take minutes */
    attend(k, x, 1, 1024);
    if (fast) attend(k, x, 1, 32768);
    attend(k, x, 8, fast ? 4096 : 128);
    delta(k, x, 4, 1);
    if (fast) delta(k, x, 960, 1);
    delta(k, x, 4, FM_DELTA_CHUNK);
    conv(k, x);
}

int main(void)
{
    static const int32_t bits[] = {2, 3, 4, 5, 6, 8};
    float *x = noise((size_t)MOST * COLS);
    for (const fm_kernels *const *k = fm_kernels_available(); *k; k++) {
        for (int b = 0; b < 6; b++) matmul(*k, (fm_quant){FM_AFFINE, FM_BF16, bits[b], 64}, x);
        matmul(*k, (fm_quant){.kind = FM_BF16}, x);
        mixers(*k, x);
    }
    free(x);
    return 0;
}
