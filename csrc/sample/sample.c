/* Drawing one token from logits. Pure: everything that matters is in the arguments. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

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
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* splitmix64: the next number in [0, 1). */
static double uniform(uint64_t *rng)
{
    uint64_t z = *rng += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

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
    bool whole = how->top_k <= 0 && how->top_p >= 1 && how->min_p <= 0;

    for (float reach = 8; !whole && reach < 128; reach *= 2) {
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
    if (n < 1) return fm_fail(err, FM_ARGUMENT, "no logits to sample from");
    for (int32_t i = 0; i < n; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY) return fm_fail(err, FM_NUMERIC, "logit %d is %g", i, (double)logits[i]);
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
    candidate *c = malloc((size_t)n * sizeof *c);
    if (!c) return fm_fail(err, FM_MEMORY, "no memory to sort %d tokens", n);
    double all = 0;
    if (how->top_k <= 0 && how->top_p < 1)
        for (int32_t i = 0; i < n; i++) all += weight(logits[i], top, how->temperature);
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
    float top = logits[largest(logits, n)];
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += exp((double)logits[i] - (double)top);
    return (float)((double)logits[id] - (double)top - log(sum));
}
