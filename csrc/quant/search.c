/*
 * Affine codes with the least squared error.
 *
 * The full range of a group is a bad grid at 2 or 3 bits: a few far numbers stretch it for all. So many shorter ranges are
 * tried; the best go on by turns: codes for a scale and bias, then the scale and bias that fit these codes best (least
 * squares). At the end scale and bias are rounded as they are stored, and the codes chosen for those.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "quant/affine.h"

#define GROUP FM_AFFINE_GROUP
#define LANES 8 /* partial sums of a loop, so that it becomes vectors without changing its order */
#define ENDS 7  /* how far each end of the range is moved in: 0 .. ENDS - 1 steps */
#define BEST 3  /* ranges that go on */
#define TURNS 6

/* A group on its way. `y` is x moved and stretched to mean 0 and range 1, so that no sum overflows or cancels. */
typedef struct {
    float y[GROUP];
    float low, high;    /* of y */
    double mean, range; /* x = y * range + mean */
    int32_t n;
    float top; /* the largest code */
} search_group;

typedef struct {
    float scale, bias; /* of y */
    double gain;       /* error that is explained; the more the better */
} grid;

static double lanes_sum(const float *lane)
{
    double sum = 0;
    for (int32_t l = 0; l < LANES; l++) sum += (double)lane[l];
    return sum;
}

/* The nearest code, as a float: adding and taking off 1.5 * 2^23 rounds to an integer. */
static inline float nearest(float y, float inverse, float bias, float top)
{
    const float rounder = 12582912.0f;
    float t = (y - bias) * inverse;
    t = t > 0 ? t : 0;
    t = t < top ? t : top;
    return (t + rounder) - rounder;
}

/* The grid that fits the codes which `from` gives; false if these are all the same. */
static bool refit(const search_group *g, grid from, grid *to)
{
    float q1[LANES] = {0}, q2[LANES] = {0}, yq[LANES] = {0}, inverse = 1 / from.scale;
    for (int32_t i = 0; i < g->n; i += LANES)
        for (int32_t l = 0; l < LANES; l++) {
            float q = nearest(g->y[i + l], inverse, from.bias, g->top);
            q1[l] += q;
            q2[l] += q * q;
            yq[l] += q * g->y[i + l];
        }
    double n = g->n, mean = lanes_sum(q1) / n, spread = lanes_sum(q2) / n - mean * mean;
    double both = lanes_sum(yq) / n; /* the mean of y is 0 */
    if (!(spread > 1e-9) || !(both > 0)) return false;
    double scale = both / spread;
    *to = (grid){(float)scale, (float)(-scale * mean), both * scale};
    return to->scale > FLT_MIN;
}

/* Keep the BEST ranges, the best first. */
static void keep(grid *best, int32_t *count, grid one)
{
    int32_t at = *count < BEST ? (*count)++ : BEST - 1;
    if (at == BEST - 1 && *count == BEST && best[at].gain > 0 && one.gain <= best[at].gain) return;
    for (; at > 0 && best[at - 1].gain < one.gain; at--) best[at] = best[at - 1];
    best[at] = one;
}

/* Move both ends of the range in, step by step. */
static int32_t try_ranges(const search_group *g, grid *best)
{
    const float step = 0.5f / ENDS;
    int32_t count = 0;
    memset(best, 0, BEST * sizeof *best);
    for (int32_t i = 0; i < ENDS; i++)
        for (int32_t j = 0; j < ENDS; j++) {
            float low = g->low + step * (float)i, high = g->high - step * (float)j;
            grid fit;
            if (low < high && refit(g, (grid){(high - low) / g->top, low, 0}, &fit)) keep(best, &count, fit);
        }
    return count;
}

/* ---- stored numbers --------------------------------------------------------------- */

typedef struct {
    float scale, bias; /* of x, as stored */
    uint8_t code[GROUP];
    double error;
} candidate;

static float stored(fm_number kind, float x)
{
    uint8_t bytes[4];
    float back;
    fm_numbers_encode(kind, &x, 1, bytes);
    fm_numbers_decode(kind, bytes, 1, &back);
    return back;
}

static void judge(candidate *c, const float *x, int32_t n)
{
    c->error = 0;
    for (int32_t i = 0; i < n; i++) {
        double miss = (double)x[i] - ((double)c->scale * c->code[i] + (double)c->bias);
        c->error += miss * miss;
    }
}

/* What MLX's quantiser stores. */
static void nearest_candidate(fm_quant quant, const float *x, candidate *c)
{
    float scale, bias;
    fm_affine_grid(x, quant.group, quant.bits, &scale, &bias);
    for (int32_t i = 0; i < quant.group; i++) c->code[i] = (uint8_t)fm_affine_code(x[i], scale, bias, quant.bits);
    c->scale = stored(quant.scale, scale);
    c->bias = stored(quant.scale, bias);
    judge(c, x, quant.group);
}

/* A grid rounded as it is stored: first the scale, then the bias that goes with it best. */
static void round_grid(const search_group *g, fm_quant quant, const float *x, grid fit, candidate *c)
{
    double middle = -(double)fit.bias / (double)fit.scale; /* the mean of the codes */
    c->scale = stored(quant.scale, (float)((double)fit.scale * g->range));
    c->bias = stored(quant.scale, (float)(g->mean - (double)c->scale * middle));
    float inverse = 1 / c->scale;
    for (int32_t i = 0; i < g->n; i++) c->code[i] = (uint8_t)nearest(x[i], inverse, c->bias, g->top);
    judge(c, x, g->n);
}

/* ---- groups ------------------------------------------------------------------------ */

/* False where there is nothing to search: all numbers are alike, or too far apart or too near for the sums. */
static bool prepare(search_group *g, fm_quant quant, const float *x)
{
    double sum = 0;
    float low = x[0], high = x[0];
    g->n = quant.group;
    g->top = (float)((1 << quant.bits) - 1);
    for (int32_t i = 0; i < g->n; i++) {
        sum += (double)x[i];
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    g->mean = sum / g->n;
    g->range = (double)high - (double)low;
    if (!(g->range > 1e-30 && g->range < 1e30)) return false;
    for (int32_t i = 0; i < g->n; i++) g->y[i] = (float)(((double)x[i] - g->mean) / g->range);
    g->low = (float)(((double)low - g->mean) / g->range);
    g->high = (float)(((double)high - g->mean) / g->range);
    return true;
}

static void search(fm_quant quant, const float *x, candidate *best)
{
    search_group g;
    grid ranges[BEST];
    bool searched = prepare(&g, quant, x);

    nearest_candidate(quant, x, best);
    int32_t count = searched ? try_ranges(&g, ranges) : 0;
    for (int32_t i = 0; i < count; i++) {
        grid now = ranges[i], next;
        candidate c;
        for (int32_t turn = 0; turn < TURNS && refit(&g, now, &next) && next.gain > now.gain; turn++) now = next;
        round_grid(&g, quant, x, now, &c);
        if (isfinite(c.scale) && c.error < best->error) *best = c;
    }
}

double fm_affine_search_group(fm_quant quant, const float *x, uint8_t *code, float *scale, float *bias)
{
    candidate best;
    search(quant, x, &best);
    memcpy(code, best.code, (size_t)quant.group);
    *scale = best.scale;
    *bias = best.bias;
    return best.error;
}

double fm_affine_search_row(fm_quant quant, const float *x, int32_t cols, uint8_t *weight, uint8_t *scales, uint8_t *biases)
{
    size_t size = fm_number_size(quant.scale);
    double error = 0;

    memset(weight, 0, (size_t)cols / 8 * (size_t)quant.bits);
    for (int32_t at = 0; at < cols; at += quant.group) {
        uint8_t code[GROUP];
        float scale, bias;
        error += fm_affine_search_group(quant, x + at, code, &scale, &bias);
        for (int32_t i = 0; i < quant.group; i++) fm_affine_put(weight, at + i, quant.bits, code[i]);
        fm_numbers_encode(quant.scale, &scale, 1, scales + (size_t)(at / quant.group) * size);
        fm_numbers_encode(quant.scale, &bias, 1, biases + (size_t)(at / quant.group) * size);
    }
    return error;
}
