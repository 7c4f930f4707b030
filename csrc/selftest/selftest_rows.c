/* Verbs that treat every row alike, and products. */
#include "selftest/selftest.h"

#define SIZE(a) (sizeof(a) / sizeof *(a))

/* Every format there is: three kinds of number, six widths of code with each group and each kind of scale. */
static int32_t list_formats(bool quick, fm_quant *out)
{
    static const int32_t bits[] = {2, 3, 4, 5, 6, 8}, group[] = {32, 64, 128};
    int32_t n = 0;
    for (fm_number kind = FM_F32; kind <= FM_BF16; kind++) out[n++] = (fm_quant){.kind = kind};
    for (size_t b = 0; b < SIZE(bits); b++)
        for (size_t g = 0; g < SIZE(group); g++)
            for (fm_number scale = FM_F32; scale <= FM_BF16; scale++)
                if (!quick || ((size_t)scale == (b + g) % 3 && g == b % 3))
                    out[n++] = (fm_quant){.kind = FM_AFFINE, .scale = scale, .bits = bits[b], .group = group[g]};
    return n;
}

static double bound_of(const fm_pair *p, fm_quant quant, int32_t cols)
{
    /* int8 activations: about 3e-5, more by chance where sums are short */
    return p->rounds && quant.kind == FM_AFFINE ? cols < 512 ? 5e-4 : 2e-4 : FM_EXACT;
}

void fm_selftest_product(fm_pair *p, fm_quant quant, int32_t rows, int32_t w_rows, int32_t cols)
{
    char name[32];
    fm_quant_name(quant, name);
    fm_twin w = fm_pair_matrix(p, quant, w_rows, cols), x = fm_pair_rows(p, rows, cols, 1);
    fm_twin out = fm_pair_empty(p, rows, w_rows), exact = fm_pair_empty(p, rows, w_rows);
    FM_BOTH(p, i) p->b[i]->ops->matmul(p->b[i], out.on[i], w.on[i], x.on[i]);
    fm_pair_check(p, "matmul", out, bound_of(p, quant, cols), "%s [%dx%d], %d rows", name, w_rows, cols, rows);
    FM_BOTH(p, i) p->b[i]->ops->matmul_exact(p->b[i], exact.on[i], w.on[i], x.on[i]);
    fm_pair_check(p, "matmul_exact", exact, FM_EXACT, "%s [%dx%d], %d rows", name, w_rows, cols, rows);
    fm_pair_end(p);
}

static void one_project(fm_pair *p)
{
    const fm_quant four = {.kind = FM_AFFINE, .scale = FM_BF16, .bits = 4, .group = 64}, plain = {.kind = FM_BF16};
    fm_twin x = fm_pair_rows(p, 3, 320, 1);
    fm_twin w[3] = {fm_pair_matrix(p, four, 43, 320), fm_pair_matrix(p, plain, 7, 320), fm_pair_matrix(p, four, 9, 320)}, out[3];
    for (int32_t n = 0; n < 3; n++) out[n] = fm_pair_empty(p, 3, w[n].on[0].rows);
    FM_BOTH(p, i)
    {
        fm_projection three[3];
        for (int32_t n = 0; n < 3; n++) three[n] = (fm_projection){out[n].on[i], w[n].on[i], n == 2};
        p->b[i]->ops->project(p->b[i], three, 3, x.on[i]);
    }
    for (int32_t n = 0; n < 3; n++)
        fm_pair_check(p, "project", out[n], n == 0 ? bound_of(p, four, 320) : FM_EXACT, "matrix %d of 3, 3 rows", n);
    fm_pair_end(p);
}

void fm_selftest_products(fm_pair *p)
{
    fm_quant format[64];
    int32_t n = list_formats(p->quick, format);
    for (int32_t f = 0; f < n; f++) {
        fm_selftest_product(p, format[f], 1, 37, 640);
        fm_selftest_product(p, format[f], 7, 19, 128);
        if (format[f].kind != FM_AFFINE) fm_selftest_product(p, format[f], 2, 5, 77);
    }
    if (!p->quick) {
        const fm_quant four = {.kind = FM_AFFINE, .scale = FM_BF16, .bits = 4, .group = 64};
        fm_selftest_product(p, four, 1, 33, 4096);
        fm_selftest_product(p, four, 64, 67, 512);
        fm_selftest_product(p, (fm_quant){.kind = FM_F16}, 33, 130, 1024);
        fm_selftest_product(p, four, 5, 70, 2112); /* more columns than a device takes at once */
    }
    one_project(p);
}

/* ---- rows ------------------------------------------------------------------------ */

static void one_embed(fm_pair *p, fm_quant quant)
{
    static const int32_t ids[] = {4, 0, 10, 4, 7};
    char name[32];
    fm_quant_name(quant, name);
    fm_twin table = fm_pair_matrix(p, quant, 11, 256), out = fm_pair_empty(p, 5, 256);
    FM_BOTH(p, i) p->b[i]->ops->embed(p->b[i], out.on[i], table.on[i], ids);
    fm_pair_check(p, "embed", out, FM_EXACT, "%s, 5 rows", name);
    fm_pair_end(p);
}

/* More ids than a command holds by itself. */
static void many_embeds(fm_pair *p)
{
    enum { ROWS = 1500 };
    int32_t ids[ROWS];
    for (int32_t i = 0; i < ROWS; i++) ids[i] = i * 7 % 11;
    fm_twin table = fm_pair_matrix(p, (fm_quant){.kind = FM_F16}, 11, 33), out = fm_pair_empty(p, ROWS, 33);
    FM_BOTH(p, i) p->b[i]->ops->embed(p->b[i], out.on[i], table.on[i], ids);
    fm_pair_check(p, "embed", out, FM_EXACT, "f16, %d rows", ROWS);
    fm_pair_end(p);
}

void fm_selftest_norm(fm_pair *p, int32_t rows, int32_t cols)
{
    fm_twin x = fm_pair_rows(p, rows, cols, 3), weight = fm_pair_rows(p, 1, cols, 2), out = fm_pair_empty(p, rows, cols);
    FM_BOTH(p, i) p->b[i]->ops->norm(p->b[i], out.on[i], x.on[i], weight.on[i], 1e-6f);
    fm_pair_check(p, "norm", out, FM_EXACT, "%d rows of %d", rows, cols);
    fm_pair_end(p);
}

static void one_gated_norm(fm_pair *p, int32_t rows, int32_t heads, int32_t dim)
{
    fm_twin x = fm_pair_rows(p, rows, heads * dim, 3), z = fm_pair_rows(p, rows, heads * dim, 4);
    fm_twin weight = fm_pair_rows(p, 1, dim, 2), out = fm_pair_empty(p, rows, heads * dim);
    FM_BOTH(p, i) p->b[i]->ops->gated_norm(p->b[i], out.on[i], x.on[i], z.on[i], weight.on[i], 1e-6f);
    fm_pair_check(p, "gated_norm", out, FM_EXACT, "%d rows of %d heads of %d", rows, heads, dim);
    fm_pair_end(p);
}

static void one_pairwise(fm_pair *p, int32_t rows, int32_t cols)
{
    fm_twin x = fm_pair_rows(p, rows, cols, 5), y = fm_pair_rows(p, rows, cols, 5);
    fm_twin sum = fm_pair_empty(p, rows, cols), gated = fm_pair_empty(p, rows, cols), out = fm_pair_empty(p, rows, cols);
    FM_BOTH(p, i)
    {
        p->b[i]->ops->add(p->b[i], sum.on[i], x.on[i], y.on[i]);
        p->b[i]->ops->gate(p->b[i], gated.on[i], x.on[i], y.on[i]);
        p->b[i]->ops->swiglu(p->b[i], out.on[i], x.on[i], y.on[i]);
    }
    fm_pair_check(p, "add", sum, FM_EXACT, "%d rows of %d", rows, cols);
    fm_pair_check(p, "gate", gated, FM_EXACT, "%d rows of %d", rows, cols);
    fm_pair_check(p, "swiglu", out, FM_EXACT, "%d rows of %d", rows, cols);
    fm_pair_end(p);
}

void fm_selftest_rows(fm_pair *p)
{
    fm_quant format[64];
    int32_t n = list_formats(true, format);
    for (int32_t f = 0; f < n; f++) one_embed(p, format[f]);
    many_embeds(p);
    fm_selftest_norm(p, 3, 20);
    fm_selftest_norm(p, 2, 2048);
    fm_selftest_norm(p, 1, 333);
    one_gated_norm(p, 2, 3, 128);
    one_gated_norm(p, 1, 5, 40);
    one_pairwise(p, 1, 17);
    one_pairwise(p, 3, 513);
}
