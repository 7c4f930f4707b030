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

static void attend(const fm_kernels *k, const float *x)
{
    enum { HEADS = 8, DIM = 128, POSITIONS = 4096 };
    uint16_t *kv = room(2 * POSITIONS * DIM * sizeof *kv);
    fm_numbers_encode(FM_BF16, x, MOST * COLS, kv);
    for (size_t i = MOST * COLS; i < 2 * POSITIONS * DIM; i++) kv[i] = kv[i % (MOST * COLS)];
    float out[HEADS * DIM], *scratch = room(fm_attend_scratch(HEADS, DIM) * sizeof *scratch);
    fm_attention a = {x, out, DIM, kv, kv + POSITIONS * DIM, DIM, FM_BF16, HEADS, DIM, POSITIONS, 0.088f, scratch};
    double best = 1e9;
    for (int t = 0; t < TRIES; t++) {
        double start = now();
        k->attend(&a);
        double took = now() - start;
        best = took < best ? took : best;
    }
    printf("%-7s attend bf16, 8 heads of 128, 4096 keys  %8.1f us\n", k->name, best * 1e6);
    free(kv), free(scratch);
}

static void delta(const fm_kernels *k, const float *x)
{
    enum { DIM = 128, C = FM_DELTA_CHUNK };
    float *state = room(DIM * DIM * sizeof *state), *scratch = room(fm_delta_scratch(DIM, DIM) * sizeof *scratch);
    float unit[C * DIM], decay[C], beta[C], out[C * DIM];
    for (int i = 0; i < C * DIM; i++) unit[i] = x[i] * 0.1f;
    for (int i = 0; i < C; i++) decay[i] = -0.1f, beta[i] = 0.5f;
    for (int32_t n = 1; n <= C; n *= C) {
        double best = 1e9;
        for (int t = 0; t < 50; t++) {
            for (int i = 0; i < DIM * DIM; i++) state[i] = x[i];
            fm_delta d = {unit, unit, x, DIM, DIM, decay, beta, 1, out, DIM, state, state, n, DIM, DIM, scratch};
            double start = now();
            if (n == 1) k->delta_step(&d);
            else k->delta_chunk(&d);
            double took = now() - start;
            best = took < best ? took : best;
        }
        printf("%-7s delta 128x128, %2d rows  %8.2f us a row\n", k->name, (int)n, best * 1e6 / n);
    }
    free(state), free(scratch);
}

int main(void)
{
    static const int32_t bits[] = {2, 3, 4, 5, 6, 8};
    float *x = noise((size_t)MOST * COLS);
    for (const fm_kernels *const *k = fm_kernels_available(); *k; k++) {
        for (int b = 0; b < 6; b++) matmul(*k, (fm_quant){FM_AFFINE, FM_BF16, bits[b], 64}, x);
        matmul(*k, (fm_quant){.kind = FM_BF16}, x);
        attend(*k, x);
        delta(*k, x);
    }
    free(x);
    return 0;
}
