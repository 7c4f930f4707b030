/* What every C test uses: CHECK, an error measure, deterministic noise. A test is a program that ends with return done(). */
#ifndef FM_CHECK_H
#define FM_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks, failures;

#define CHECK(condition)                                                    \
    do {                                                                    \
        checks++;                                                           \
        if (!(condition)) {                                                 \
            failures++;                                                     \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                   \
    } while (0)

/* The same with numbers that tell which case it was. */
#define CHECK_THAT(condition, ...)                                          \
    do {                                                                    \
        checks++;                                                           \
        if (!(condition)) {                                                 \
            failures++;                                                     \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fprintf(stderr, "\n");                                          \
        }                                                                   \
    } while (0)

static inline int done(void)
{
    fprintf(stderr, "%d checks, %d failures\n", checks, failures);
    return failures || !checks ? 1 : 0;
}

/* splitmix64: every bit of it varies. */
static inline uint64_t noise_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline double noise_unit(uint64_t *state)
{
    return (double)(noise_bits(state) >> 11) * 0x1p-53;
}

/* Roughly normal, mean 0, deviation 1. */
static inline float noise(uint64_t *state)
{
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += noise_unit(state);
    return (float)(sum - 6);
}

static inline void fill(float *x, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) x[i] = noise(&seed);
}

/* Squared error of `got` relative to the energy of `want`. NaN never passes a bound. */
static inline double nmse(const float *got, const double *want, size_t n)
{
    double diff = 0, energy = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        energy += want[i] * want[i];
    }
    return energy > 0 ? diff / energy : diff;
}

static inline void *must(size_t bytes)
{
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "no memory for a test\n");
        exit(1);
    }
    return p;
}

#endif
