/* Softmax over all experts, the k largest, their shares; in the order in which experts are read. */
#include "session/router.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

/* The k largest of one row, each share its softmax over all experts, or over the k. */
static void choose(const fm_route_spec *s, const float *score, int32_t row, fm_pick *pick)
{
    float top = -INFINITY;
    double all = 0, kept = 0;

    for (int32_t e = 0; e < s->experts; e++) top = score[e] > top ? score[e] : top;
    for (int32_t i = 0; i < s->k; i++) {
        int32_t best = -1;
        for (int32_t e = 0; e < s->experts; e++) {
            if (best >= 0 && !(score[e] > score[best])) continue;
            int32_t taken = 0;
            for (int32_t j = 0; j < i && !taken; j++) taken = pick[j].expert == e;
            if (!taken) best = e;
        }
        pick[i] = (fm_pick){row, best, -1, expf(score[best] - top)};
        kept += pick[i].share;
    }
    if (!s->renormalise)
        for (int32_t e = 0; e < s->experts; e++) all += expf(score[e] - top);
    for (int32_t i = 0; i < s->k; i++) pick[i].share = (float)(pick[i].share / (s->renormalise ? kept : all));
}

fm_status fm_route(const fm_route_spec *s, const float *scores, int32_t rows, fm_pick *pick, int32_t *count, fm_error *err)
{
    int32_t n = rows * s->k;
    fm_pick *unsorted = pick + n;

    memset(count, 0, ((size_t)s->experts + 1) * sizeof *count);
    for (int32_t r = 0; r < rows; r++) {
        const float *score = scores + (size_t)r * (size_t)s->experts;
        for (int32_t e = 0; e < s->experts; e++)
            if (!isfinite(score[e]))
                return fm_fail(err, FM_NUMERIC, "the router's score of expert %d for row %d is not finite", e, r);
        choose(s, score, r, unsorted + (size_t)r * (size_t)s->k);
    }
    for (int32_t i = 0; i < n; i++) count[unsorted[i].expert + 1]++;
    for (int32_t e = 0; e < s->experts; e++) count[e + 1] += count[e];
    for (int32_t i = 0; i < n; i++) pick[count[unsorted[i].expert]++] = unsorted[i];
    return FM_OK;
}
