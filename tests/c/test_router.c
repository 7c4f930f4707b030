/* The router against softmax and sorting written out, and the order in which it hands out experts. */
#include "check.h"
#include "session/router.h"

static void one_case(int32_t experts, int32_t k, int32_t rows, int32_t renormalise, bool ties)
{
    fm_route_spec spec = {experts, k, k, renormalise};
    size_t n = (size_t)(experts * rows);
    float *scores = must(n * 4);
    fm_pick *pick = must(2 * (size_t)(rows * k) * sizeof *pick);
    int32_t *count = must(((size_t)experts + 1) * 4), *seen = must((size_t)rows * 4);
    fill(scores, n, (uint64_t)(experts + rows));
    if (ties)
        for (size_t i = 0; i < n; i++) scores[i] = roundf(scores[i]);

    CHECK(fm_route(&spec, scores, rows, pick, count, NULL) == FM_OK);
    for (int32_t i = 0; i < rows * k; i++) {
        const fm_pick *p = &pick[i];
        CHECK(!i || p->expert > p[-1].expert || (p->expert == p[-1].expert && p->row > p[-1].row));
        const float *s = scores + p->row * experts;
        int32_t better = 0;
        double all = 0, top = 0, kept = 0;
        for (int32_t e = 0; e < experts; e++) {
            better += s[e] > s[p->expert] || (s[e] == s[p->expert] && e < p->expert);
            all += exp((double)s[e]);
        }
        for (int32_t j = 0; j < rows * k; j++)
            if (pick[j].row == p->row) kept += exp((double)s[pick[j].expert]);
        top = exp((double)s[p->expert]);
        CHECK(better < k);
        CHECK(fabs((double)p->share - top / (renormalise ? kept : all)) < 1e-6);
        seen[p->row]++;
    }
    for (int32_t r = 0; r < rows; r++) CHECK(seen[r] == k);
    free(scores);
    free(pick);
    free(count);
    free(seen);
}

int main(void)
{
    for (int32_t experts = 1; experts <= 64; experts += 7)
        for (int32_t k = 1; k <= experts && k <= 10; k += 3)
            for (int32_t rows = 1; rows <= 20; rows += 6)
                for (int32_t how = 0; how < 4; how++) one_case(experts, k, rows, how & 1, how & 2);
    float bad[4] = {1, NAN, 2, 3};
    fm_pick pick[4];
    int32_t count[5];
    fm_error err = {0};
    CHECK(fm_route(&(fm_route_spec){4, 2, 2, 1}, bad, 1, pick, count, &err) == FM_NUMERIC && strstr(err.message, "expert 1"));
    bad[1] = INFINITY;
    CHECK(fm_route(&(fm_route_spec){4, 2, 2, 1}, bad, 1, pick, count, &err) == FM_NUMERIC);
    return done();
}
