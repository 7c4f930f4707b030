/* Routed experts at their slots, and their sum. */
#include "selftest/selftest.h"

#include "base/memory.h"

/* Which experts the rows pick: sorted by expert, then row; expert e is in slot (5 e + 2) % slots. */
static int32_t choose(fm_pick *pick, int32_t rows, int32_t k, int32_t experts, fm_pair *p)
{
    int32_t n = 0, slots = experts + 2;
    for (int32_t e = 0; e < experts; e++)
        for (int32_t r = 0; r < rows; r++)
            for (int32_t i = 0; i < k; i++)
                if ((r * 3 + i * 2 + r * i) % experts == e) {
                    bool twice = n && pick[n - 1].row == r && pick[n - 1].expert == e;
                    if (!twice) pick[n++] = (fm_pick){r, e, (5 * e + 2) % slots, 0.5f + 0.4f * fm_pair_random(p)};
                }
    return n;
}

static uint32_t place(fm_quant quant, int32_t rows, int32_t cols, uint32_t *at, fm_pair *p)
{
    fm_matrix_layout l = {0};
    uint32_t here = *at;
    if (p->status == FM_OK) p->status = fm_matrix_measure(quant, rows, cols, &l, p->err);
    *at += (uint32_t)l.bytes;
    return here;
}

void fm_selftest_expert(fm_pair *p, fm_quant gate, fm_quant up, fm_quant down, int32_t hidden, int32_t inner, int32_t rows,
                        int32_t k)
{
    enum { EXPERTS = 7, MOST = 64 };
    char name[32];
    fm_pick pick[MOST];
    fm_expert_shape s = {gate, up, down, hidden, inner, 0, 0, 0, 0};
    s.gate_at = place(gate, inner, hidden, &s.bytes, p);
    s.up_at = place(up, inner, hidden, &s.bytes, p);
    s.down_at = place(down, hidden, inner, &s.bytes, p);
    size_t slot_bytes = fm_align_up(s.bytes, 4096);
    int32_t n = choose(pick, rows, k, EXPERTS, p);

    fm_twin slots = fm_pair_bytes(p, (EXPERTS + 2) * slot_bytes), x = fm_pair_rows(p, rows, hidden, 1);
    for (int32_t e = 0; e < EXPERTS + 2; e++) {
        size_t at = (size_t)e * slot_bytes;
        fm_pair_fill_matrix(p, gate, inner, hidden, slots, at + s.gate_at);
        fm_pair_fill_matrix(p, up, inner, hidden, slots, at + s.up_at);
        fm_pair_fill_matrix(p, down, hidden, inner, slots, at + s.down_at);
    }
    fm_twin outs = fm_pair_empty(p, n, hidden), sum = fm_pair_rows(p, rows, hidden, 1);
    fm_twin shared = fm_pair_rows(p, rows, hidden, 1), score = fm_pair_rows(p, rows, 1, 3);
    FM_BOTH(p, i)
    {
        int32_t half = n / 2; /* two calls: scratch of the first must not be lost to the second */
        fm_tensor rest = outs.on[i];
        rest.offset += (size_t)half * (size_t)hidden * sizeof(float);
        while (half && pick[half].expert == pick[half - 1].expert) half--, rest.offset -= (size_t)hidden * sizeof(float);
        if (half) p->b[i]->ops->experts(p->b[i], outs.on[i], x.on[i], slots.on[i].buf, slot_bytes, pick, half, &s);
        p->b[i]->ops->experts(p->b[i], rest, x.on[i], slots.on[i].buf, slot_bytes, pick + half, n - half, &s);
    }
    fm_quant_name(gate, name);
    /* two products, both with int8 activations */
    double bound = p->rounds && (gate.kind == FM_AFFINE || down.kind == FM_AFFINE) ? 2e-3 : FM_EXACT;
    fm_pair_check(p, "experts", outs, bound, "%s, %d of %d, %d picks of %d rows", name, hidden, inner, n, rows);
    fm_twin picked = fm_pair_rows(p, n, hidden, 1); /* combine alone, on the same numbers */
    FM_BOTH(p, i)
    {
        fm_tensor none = {0};
        p->b[i]->ops->combine(p->b[i], sum.on[i], picked.on[i], pick, n, k % 2 ? shared.on[i] : none, k % 2 ? score.on[i] : none);
    }
    fm_pair_check(p, "combine", sum, FM_EXACT, "%d picks of %d rows, %s shared expert", n, rows, k % 2 ? "with" : "without");
    fm_pair_end(p);
}

void fm_selftest_experts(fm_pair *p)
{
    const fm_quant four = {.kind = FM_AFFINE, .scale = FM_BF16, .bits = 4, .group = 64};
    const fm_quant three = {.kind = FM_AFFINE, .scale = FM_F16, .bits = 3, .group = 32};
    const fm_quant eight = {.kind = FM_AFFINE, .scale = FM_F32, .bits = 8, .group = 128}, half = {.kind = FM_F16};
    fm_selftest_expert(p, four, four, four, 256, 128, 1, 3);
    fm_selftest_expert(p, four, four, four, 192, 320, 9, 4);
    fm_selftest_expert(p, three, eight, half, 128, 96, 5, 3);
    fm_selftest_expert(p, half, half, half, 40, 24, 2, 2);
    if (p->quick) return;
    fm_selftest_expert(p, eight, three, four, 512, 512, 16, 3);
    fm_selftest_expert(p, (fm_quant){.kind = FM_BF16}, (fm_quant){.kind = FM_F32}, eight, 256, 384, 12, 4);
}
