/* Attention over caches that both devices fill themselves, and the gated delta net. */
#include "selftest/selftest.h"

#include <math.h>

/* ---- attention ---------------------------------------------------------------------- */

/* `rows` rows join `position` others and look at all of them. */
static void append_and_look(fm_pair *p, const fm_selftest_attend *a, fm_twin keys, fm_twin values, int32_t position, int32_t rows,
                            bool look)
{
    int32_t q_cols = a->heads * a->dim, kv_cols = a->kv_heads * a->dim, bufs = p->bufs;
    const fm_attention_shape shape = {a->heads, a->kv_heads, a->dim, a->turned, 1 / sqrtf((float)a->dim)};
    fm_twin q = fm_pair_rows(p, rows, q_cols, 2), k = fm_pair_rows(p, rows, kv_cols, 2), v = fm_pair_rows(p, rows, kv_cols, 2);
    fm_twin table = fm_pair_rows(p, rows, a->turned, 1), out = fm_pair_empty(p, rows, q_cols);
    fm_twin q_norm = fm_pair_rows(p, 1, a->dim, 1), k_norm = fm_pair_rows(p, 1, a->dim, 1);

    FM_BOTH(p, i)
    {
        fm_tensor none = {0};
        for (int c = 0; c < 2; c++) {
            fm_twin *cache = c ? &values : &keys;
            cache->on[i].rows = position + rows;
            cache->on[i].cols = kv_cols;
            cache->on[i].quant = (fm_quant){.kind = a->kind};
        }
        const fm_heads h = {.q = q.on[i],
                            .k = k.on[i],
                            .v = v.on[i],
                            .q_norm = a->normed ? q_norm.on[i] : none,
                            .k_norm = a->normed ? k_norm.on[i] : none,
                            .table = table.on[i],
                            .keys = keys.on[i],
                            .values = values.on[i],
                            .head_dim = a->dim,
                            .position = position,
                            .eps = 1e-6f};
        p->b[i]->ops->append_kv(p->b[i], &h);
        if (look) p->b[i]->ops->attend(p->b[i], out.on[i], q.on[i], keys.on[i], values.on[i], &shape, position);
    }
    /* half precision: a number of the cache may be rounded the other way */
    double bound = a->kind == FM_F32 ? FM_EXACT : a->kind == FM_F16 ? 1e-7 : 1e-6;
    if (look) {
        fm_pair_check(p, "append_kv", q, FM_EXACT, "queries of %d heads of %d, %d rows at %d", a->heads, a->dim, rows, position);
        fm_pair_check(p, "attend", out, bound, "%d heads, %d kv heads of %d, %d rows at %d, cache %d", a->heads, a->kv_heads,
                      a->dim, rows, position, (int)a->kind);
    }
    while (p->bufs > bufs) { /* the caches stay */
        p->bufs--;
        for (int i = 0; i < 2; i++) p->b[i]->ops->release(p->b[i], p->buf[p->bufs][i]);
    }
}

/* Steps of `step` rows up to `end`; only the last ones look. */
void fm_selftest_attention_shape(fm_pair *p, const fm_selftest_attend *a, int32_t end, int32_t step, const int32_t *looks,
                                 int32_t n)
{
    size_t positions = ((size_t)end + 127) / 64 * 64 + 64,
           bytes = positions * (size_t)(a->kv_heads * a->dim) * fm_number_size(a->kind);
    fm_twin keys = fm_pair_bytes(p, bytes), values = fm_pair_bytes(p, bytes);
    int32_t at = 0;
    for (; at + step <= end; at += step) append_and_look(p, a, keys, values, at, step, at == 0);
    for (int32_t i = 0; i < n; at += looks[i++]) append_and_look(p, a, keys, values, at, looks[i], true);
    fm_pair_end(p);
}

/* Numbers halfway between two of the cache's go to the even one: with a single key, what comes out is what was kept. */
static void one_rounding(fm_pair *p, fm_number kind, float step)
{
    enum { DIM = 64 };
    const fm_attention_shape shape = {1, 1, DIM, 0, 1};
    fm_twin q = fm_pair_rows(p, 1, DIM, 1), k = fm_pair_rows(p, 1, DIM, 1), v = fm_pair_rows(p, 1, DIM, 1);
    fm_twin table = fm_pair_rows(p, 1, 2, 1), out = fm_pair_empty(p, 1, DIM);
    fm_twin keys = fm_pair_bytes(p, (size_t)DIM * 64 * 2), values = fm_pair_bytes(p, (size_t)DIM * 64 * 2);
    FM_BOTH(p, i)
    {
        for (int32_t n = 0; n < DIM; n++)
            ((float *)p->b[i]->ops->host(v.on[i].buf))[n] = (n % 2 ? -1 : 1) * (1 + step * (float)n);
        for (int c = 0; c < 2; c++) {
            fm_tensor *cache = c ? &values.on[i] : &keys.on[i];
            cache->rows = 1;
            cache->cols = DIM;
            cache->quant = (fm_quant){.kind = kind};
        }
        const fm_heads h = {.q = q.on[i],
                            .k = k.on[i],
                            .v = v.on[i],
                            .table = table.on[i],
                            .keys = keys.on[i],
                            .values = values.on[i],
                            .head_dim = DIM,
                            .eps = 1e-6f};
        p->b[i]->ops->append_kv(p->b[i], &h);
        p->b[i]->ops->attend(p->b[i], out.on[i], q.on[i], keys.on[i], values.on[i], &shape, 0);
    }
    fm_pair_check(p, "append_kv", out, 1e-12, "values rounded to cache %d", (int)kind);
    fm_pair_end(p);
}

void fm_selftest_attention(fm_pair *p)
{
    static const int32_t looks[] = {1, 5, 1};
    one_rounding(p, FM_F16, 1.0f / 2048);
    one_rounding(p, FM_BF16, 1.0f / 256);
    static const fm_selftest_attend shapes[] = {
        {4, 2, 64, 32, true, FM_F16},    {3, 1, 20, 8, false, FM_F32},  {8, 1, 256, 64, true, FM_BF16},
        {16, 1, 128, 128, true, FM_F16}, {2, 2, 80, 80, false, FM_F16}, {6, 3, 96, 24, true, FM_F32},
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        if (!p->quick || s < 2) fm_selftest_attention_shape(p, &shapes[s], 60, 13, looks, 3);
    const fm_selftest_attend small = {4, 2, 32, 16, true, FM_F16};
    fm_selftest_attention_shape(p, &small, 1020, 60, looks, 3); /* into the second part */
    if (p->quick) return;
    fm_selftest_attention_shape(p, &small, 2112, 64, looks, 3);
    const fm_selftest_attend tiny = {2, 1, 16, 8, false, FM_F32};
    fm_selftest_attention_shape(p, &tiny, 34 * 1024, 64, looks, 1); /* more parts than go side by side */
}

/* ---- gated delta net -------------------------------------------------------------------- */

void fm_selftest_conv(fm_pair *p, int32_t rows, int32_t channels, int32_t taps)
{
    fm_twin x = fm_pair_rows(p, rows, channels, 2), weight = fm_pair_rows(p, channels, taps, 1);
    fm_twin from = fm_pair_rows(p, taps - 1, channels, 2), to = fm_pair_empty(p, taps - 1, channels);
    fm_twin out = fm_pair_empty(p, rows, channels);
    FM_BOTH(p, i) p->b[i]->ops->conv(p->b[i], out.on[i], x.on[i], weight.on[i], to.on[i], from.on[i]);
    fm_pair_check(p, "conv", out, FM_EXACT, "%d rows of %d, %d taps", rows, channels, taps);
    fm_pair_check(p, "conv", to, FM_EXACT, "state after %d rows of %d", rows, channels);
    fm_pair_end(p);
}

static void one_gates(fm_pair *p, int32_t rows, int32_t heads)
{
    fm_twin decay = fm_pair_rows(p, rows, heads, 30), beta = fm_pair_rows(p, rows, heads, 5);
    fm_twin a_log = fm_pair_rows(p, 1, heads, 2), bias = fm_pair_rows(p, 1, heads, 3);
    FM_BOTH(p, i) p->b[i]->ops->delta_gates(p->b[i], decay.on[i], beta.on[i], a_log.on[i], bias.on[i]);
    fm_pair_check(p, "delta_gates", decay, FM_EXACT, "decay, %d rows of %d", rows, heads);
    fm_pair_check(p, "delta_gates", beta, FM_EXACT, "write strength, %d rows of %d", rows, heads);
    fm_pair_end(p);
}

void fm_selftest_delta_shape(fm_pair *p, const fm_delta_shape *s, int32_t rows, int32_t position)
{
    int32_t values = s->value_heads * s->value_dim, width = 2 * s->key_heads * s->key_dim + values;
    fm_twin qkv = fm_pair_rows(p, rows, width, 1), decay = fm_pair_rows(p, rows, s->value_heads, 0.5f);
    fm_twin beta = fm_pair_rows(p, rows, s->value_heads, 0.5f), out = fm_pair_empty(p, rows, values);
    fm_twin from = fm_pair_rows(p, s->value_heads * s->key_dim, s->value_dim, 0.1f);
    fm_twin to = fm_pair_empty(p, s->value_heads * s->key_dim, s->value_dim);
    FM_BOTH(p, i)
    {
        float *g = (float *)p->b[i]->ops->host(decay.on[i].buf), *w = (float *)p->b[i]->ops->host(beta.on[i].buf);
        for (int32_t n = 0; n < rows * s->value_heads; n++) {
            g[n] = -fabsf(g[n]);
            w[n] += 0.5f;
        }
        p->b[i]->ops->delta(p->b[i], out.on[i], qkv.on[i], decay.on[i], beta.on[i], to.on[i], from.on[i], s, position);
    }
    fm_pair_check(p, "delta", out, FM_EXACT, "%d rows at %d, %d of %d heads, %d x %d", rows, position, s->key_heads,
                  s->value_heads, s->key_dim, s->value_dim);
    fm_pair_check(p, "delta", to, FM_EXACT, "state after %d rows at %d, %d x %d", rows, position, s->key_dim, s->value_dim);
    fm_pair_end(p);
}

void fm_selftest_delta(fm_pair *p)
{
    static const fm_delta_shape large = {2, 4, 128, 128, 4}, odd = {1, 3, 20, 36, 4}, small = {2, 2, 16, 16, 4};
    fm_selftest_conv(p, 1, 37, 4);
    fm_selftest_conv(p, 2, 300, 4);
    fm_selftest_conv(p, 7, 64, 3);
    one_gates(p, 3, 32);
    one_gates(p, 1, 5);
    fm_selftest_delta_shape(p, &large, 1, 0);
    fm_selftest_delta_shape(p, &odd, 5, 30);
    fm_selftest_delta_shape(p, &small, 40, 13);
    if (p->quick) return;
    fm_selftest_delta_shape(p, &large, 64, 7);
    fm_selftest_delta_shape(p, &odd, 64, 0);
}
