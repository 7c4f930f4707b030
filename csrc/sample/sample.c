/* Drawing one token from logits. Pure: everything that matters is in the arguments. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

typedef struct {
    float logit;
    int32_t id;
} candidate;

/* Likelier first; of equals the lower id. */
static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static int32_t largest(const float *logits, int32_t n)
{
    float top[16]; /* side by side, so that the loop becomes vectors */
    for (int32_t j = 0; j < 16; j++) top[j] = logits[0];
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int32_t j = 0; j < 16; j++) top[j] = logits[i + j] > top[j] ? logits[i + j] : top[j];
    for (; i < n; i++) top[0] = logits[i] > top[0] ? logits[i] : top[0];
    for (int32_t j = 1; j < 16; j++) top[0] = top[j] > top[0] ? top[j] : top[0];
    for (i = 0; i < n - 1 && logits[i] != top[0]; i++) {
    }
    return i;
}

/* splitmix64: the next number in [0, 1). */
static double uniform(uint64_t *rng)
{
    uint64_t z = *rng += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* ---- the whole vocabulary ------------------------------------------------------------- */

/* exp(x) for x <= 0 to about 1e-7 of it, 0 below -87; without branches, so that loops over a vocabulary become vectors. */
static inline float exp_below(float x)
{
    float least = x < -87 ? -87 : x, halves = least * 1.44269504f;
    float k = (halves + 12582912.0f) - 12582912.0f; /* to the nearest whole number */
    float r = (least - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1;
    p = p * r + 1;
    uint32_t bits = (uint32_t)((int32_t)k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87 ? 0 : p * power;
}

#define BLOCK 256

/* The weights of up to BLOCK tokens, and their sum. */
static double block_mass(const float *logits, int32_t n, float top, float cold, float *weights)
{
    float sum[8] = {0};
    int32_t i = 0;
    for (int32_t j = 0; j < n; j++) weights[j] = exp_below((logits[j] - top) * cold);
    for (; i + 8 <= n; i += 8)
        for (int32_t j = 0; j < 8; j++) sum[j] += weights[i + j];
    double all = 0;
    for (; i < n; i++) all += weights[i];
    for (int32_t j = 0; j < 8; j++) all += sum[j];
    return all;
}

static double whole_mass(const float *logits, int32_t n, float top, float temperature)
{
    float weights[BLOCK];
    double all = 0;
    for (int32_t i = 0; i < n; i += BLOCK)
        all += block_mass(logits + i, n - i < BLOCK ? n - i : BLOCK, top, 1 / temperature, weights);
    return all;
}

/* The token at which the sum of the weights, in the order of the tokens, passes `at`. */
static int32_t whole_draw(const float *logits, int32_t n, float top, float temperature, double at)
{
    float weights[BLOCK];
    int32_t last = 0;
    for (int32_t i = 0; i < n; i += BLOCK) {
        int32_t some = n - i < BLOCK ? n - i : BLOCK;
        double mass = block_mass(logits + i, some, top, 1 / temperature, weights);
        if (at >= mass) {
            at -= mass;
            if (mass > 0) last = i; /* where rounding may have put the end */
            continue;
        }
        last = i;
        break;
    }
    int32_t some = n - last < BLOCK ? n - last : BLOCK, id = last;
    block_mass(logits + last, some, top, 1 / temperature, weights);
    for (int32_t j = 0; j < some; j++) {
        if (weights[j] <= 0) continue;
        id = last + j;
        at -= weights[j];
        if (at < 0) break;
    }
    return id;
}

/* ---- the likely tokens ---------------------------------------------------------------- */

/* Every token at or above `floor`, likeliest first. */
static int32_t collect(const float *logits, int32_t n, float floor, candidate *out)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++)
        if (logits[i] >= floor) out[kept++] = (candidate){logits[i], i};
    qsort(out, (size_t)kept, sizeof *out, by_logit);
    return kept;
}

static double weight(float logit, float top, float temperature)
{
    return exp(((double)logit - (double)top) / (double)temperature);
}

static double mass(const candidate *c, int32_t n, float top, float temperature)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += weight(c[i].logit, top, temperature);
    return sum;
}

/*
 * The tokens that top_k and top_p could keep, sorted. Sorting a whole vocabulary costs more than a
 * token, so the likely ones are tried first: they suffice once there are top_k of them, or once
 * they hold top_p of `all` probability.
 */
static int32_t likely(const float *logits, int32_t n, const fm_sampling *how, float top, double all, candidate *out)
{
    for (float reach = 8; reach < 128; reach *= 2) {
        int32_t kept = collect(logits, n, top - reach * how->temperature, out);
        if (how->top_k > 0   ? kept >= how->top_k
            : how->top_p < 1 ? mass(out, kept, top, how->temperature) >= (double)how->top_p * all
                             : how->min_p > expf(-reach))
            return kept;
    }
    return collect(logits, n, -INFINITY, out);
}

static int32_t cut(const candidate *c, int32_t n, const fm_sampling *how, float top, double all)
{
    if (how->top_k > 0 && how->top_k < n) n = how->top_k;
    if (how->top_p < 1) {
        double target = (double)how->top_p * (how->top_k > 0 ? mass(c, n, top, how->temperature) : all), sum = 0;
        int32_t kept = 0;
        while (kept < n && (kept == 0 || sum < target)) sum += weight(c[kept++].logit, top, how->temperature);
        n = kept;
    }
    if (how->min_p > 0)
        while (n > 1 && weight(c[n - 1].logit, top, how->temperature) < (double)how->min_p) n--;
    return n;
}

fm_status fm_sample(const float *logits, int32_t n, const fm_sampling *how, uint64_t *rng, int32_t *out, fm_error *err)
{
    FM_NEED(logits, err);
    FM_NEED(how, err);
    FM_NEED(rng, err);
    FM_NEED(out, err);
    if (n < 1) return fm_fail(err, FM_ARGUMENT, "no logits to sample from");
    int32_t bad = 0;
    for (int32_t i = 0; i < n; i++) bad += !(logits[i] < INFINITY);
    for (int32_t i = 0; bad; i++)
        if (!(logits[i] < INFINITY)) return fm_fail(err, FM_NUMERIC, "logit %d is %g", i, (double)logits[i]);
    if (!(how->temperature >= 0) || !(how->top_p > 0 && how->top_p <= 1) || !(how->min_p >= 0 && how->min_p <= 1) ||
        how->top_k < 0)
        return fm_fail(err, FM_ARGUMENT, "temperature %g, top_p %g, min_p %g or top_k %d is out of range",
                       (double)how->temperature, (double)how->top_p, (double)how->min_p, how->top_k);

    int32_t best = largest(logits, n);
    float top = logits[best];
    if (top == -INFINITY) return fm_fail(err, FM_NUMERIC, "every token is forbidden");
    if (how->temperature <= 0) {
        *out = best;
        return FM_OK;
    }
    double all = how->top_k > 0 ? 0 : whole_mass(logits, n, top, how->temperature);
    if (how->top_k <= 0 && how->top_p >= 1 && how->min_p <= 0) {
        *out = whole_draw(logits, n, top, how->temperature, uniform(rng) * all);
        return FM_OK;
    }
    candidate *c = malloc((size_t)n * sizeof *c);
    if (!c) return fm_fail(err, FM_MEMORY, "no memory to sort %d tokens", n);
    int32_t kept = cut(c, likely(logits, n, how, top, all, c), how, top, all);

    double at = uniform(rng) * mass(c, kept, top, how->temperature);
    int32_t i = 0;
    for (; i < kept - 1; i++) {
        at -= weight(c[i].logit, top, how->temperature);
        if (at < 0) break;
    }
    *out = c[i].id;
    free(c);
    return FM_OK;
}

float fm_logprob(const float *logits, int32_t n, int32_t id)
{
    if (!logits || id < 0 || id >= n) return NAN;
    float top = logits[largest(logits, n)];
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += exp((double)logits[i] - (double)top);
    return (float)((double)logits[id] - (double)top - log(sum));
}
