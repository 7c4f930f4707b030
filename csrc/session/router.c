/* Softmax over all experts, the k largest, their shares; in the order in which experts are read. */
#include "session/router.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

/* The k largest of one row, the largest first, each share its softmax over all experts, or over the k. One pass:
 * a score has to be above the least of those taken so far, so of equal ones the lower expert stays. */
static void choose(const fm_route_spec *s, const float *score, int32_t row, fm_pick *pick)
{
    int32_t n = 0;
    double all = 0, kept = 0;

    for (int32_t e = 0; e < s->experts; e++) {
        if (n == s->k && !(score[e] > pick[n - 1].share)) continue;
        int32_t at = n < s->k ? n++ : n - 1;
        for (; at && score[e] > pick[at - 1].share; at--) pick[at] = pick[at - 1];
        pick[at] = (fm_pick){row, e, -1, score[e]};
    }
    float top = pick[0].share;
    for (int32_t i = 0; i < s->k; i++) {
        pick[i].share = expf(pick[i].share - top);
        kept += pick[i].share;
    }
    if (!s->renormalise)
        for (int32_t e = 0; e < s->experts; e++) all += expf(score[e] - top);
    for (int32_t i = 0; i < s->k; i++) pick[i].share = (float)(pick[i].share / (s->renormalise ? kept : all));
}

/* By the bits, which a compiler turns into vectors. */
static bool all_finite(const float *x, int32_t n)
{
    uint32_t bad = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

static fm_status not_finite(const float *score, int32_t row, fm_error *err)
{
    int32_t e = 0;
    while (isfinite(score[e])) e++;
    return fm_fail(err, FM_NUMERIC, "the router's score of expert %d for row %d is not finite", e, row);
}

fm_status fm_route(const fm_route_spec *s, const float *scores, int32_t rows, fm_pick *pick, int32_t *count, fm_error *err)
{
    int32_t n = rows * s->k;
    fm_pick *unsorted = pick + n;

    memset(count, 0, ((size_t)s->experts + 1) * sizeof *count);
    for (int32_t r = 0; r < rows; r++) {
        const float *score = scores + (size_t)r * (size_t)s->experts;
        if (!all_finite(score, s->experts)) return not_finite(score, r, err);
        choose(s, score, r, unsorted + (size_t)r * (size_t)s->k);
    }
    for (int32_t i = 0; i < n; i++) count[unsorted[i].expert + 1]++;
    for (int32_t e = 0; e < s->experts; e++) count[e + 1] += count[e];
    for (int32_t i = 0; i < n; i++) pick[count[unsorted[i].expert]++] = unsorted[i];
    return FM_OK;
}
