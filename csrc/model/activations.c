/* Room for the activations of one step: measured from the spec, allocated once. */
#include "model/activations.h"

#include <stdlib.h>

#include "base/memory.h"

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Bytes of a float tensor as fm_cut_take places it. */
static size_t cell(int64_t rows, int64_t cols)
{
    return fm_align_up((size_t)rows * (size_t)cols * sizeof(float), 64);
}

static size_t mixer_bytes(const fm_layer_spec *l, int32_t rows)
{
    if (l->mixer == FM_MIXER_ATTENTION) {
        int64_t q = (int64_t)l->attention.heads * l->attention.head_dim,
                kv = (int64_t)l->attention.kv_heads * l->attention.head_dim;
        return cell(rows, q) * 3 + cell(rows, kv) * 2; /* q, gate, attended; k, v */
    }
    const fm_delta_shape *d = &l->delta;
    int64_t values = (int64_t)d->value_heads * d->value_dim, width = 2ll * d->key_heads * d->key_dim + values;
    return cell(rows, width) * 2 + cell(rows, values) * 2 + cell(rows, d->value_heads) * 2;
}

static size_t ffn_bytes(const fm_model_spec *m, const fm_layer_spec *l, int32_t rows)
{
    if (l->ffn == FM_FFN_DENSE) return cell(rows, l->intermediate_size) * 2;
    return cell(rows, l->route.experts) + cell((int64_t)rows * l->route.k, m->hidden_size) +
           cell(rows, l->shared_intermediate_size) * 2 + cell(rows, 1);
}

static int32_t most_picks(const fm_model_spec *m, int32_t rows)
{
    int32_t k = 1;
    for (int32_t i = 0; i < m->layers; i++)
        if (m->layer[i].ffn == FM_FFN_MOE && m->layer[i].route.k > k) k = m->layer[i].route.k;
    return rows * k;
}

static int32_t most_experts(const fm_model_spec *m)
{
    int32_t n = 1;
    for (int32_t i = 0; i < m->layers; i++)
        if (m->layer[i].ffn == FM_FFN_MOE && m->layer[i].route.experts > n) n = m->layer[i].route.experts;
    return n;
}

static int32_t widest_rope(const fm_model_spec *m)
{
    int32_t dims = 0;
    for (int32_t i = 0; i < m->ropes; i++)
        if (m->rope[i].dims > dims) dims = m->rope[i].dims;
    return dims;
}

static size_t phase_bytes(const fm_model_spec *m, int32_t rows)
{
    size_t bytes = cell(FM_LOGIT_ROWS, m->vocab_size) + cell(FM_LOGIT_ROWS, m->hidden_size);
    for (int32_t i = 0; i < m->layers; i++)
        bytes = largest(bytes, largest(mixer_bytes(&m->layer[i], rows), ffn_bytes(m, &m->layer[i], rows)));
    return bytes;
}

static size_t fixed_bytes(const fm_model_spec *m, int32_t rows)
{
    return 3 * cell(rows, m->hidden_size) + (size_t)m->ropes * cell(rows, widest_rope(m));
}

size_t fm_activations_measure(const fm_model_spec *m, int32_t rows)
{
    return fixed_bytes(m, rows) + phase_bytes(m, rows) + 2 * (size_t)most_picks(m, rows) * sizeof(fm_pick) +
           ((size_t)most_experts(m) + 1) * sizeof(int32_t);
}

fm_limits fm_activations_limits(const fm_model_spec *m, int32_t rows)
{
    fm_limits l = {.rows = rows,
                   .cols = m->hidden_size,
                   .picks = most_picks(m, rows),
                   .hidden_size = m->hidden_size,
                   .intermediate_size = 1,
                   .heads_per_kv = 1,
                   .head_dim = 1,
                   .key_dim = 1,
                   .value_dim = 1};

    if (l.rows < FM_LOGIT_ROWS) l.rows = FM_LOGIT_ROWS;
    for (int32_t i = 0; i < m->layers; i++) {
        const fm_layer_spec *s = &m->layer[i];
        const int32_t widths[] = {
            s->mixer == FM_MIXER_ATTENTION ? s->attention.heads * s->attention.head_dim
                                           : s->delta.value_heads * s->delta.value_dim,
            s->ffn == FM_FFN_DENSE ? s->intermediate_size : s->shared_intermediate_size,
        };
        for (int32_t j = 0; j < 2; j++)
            if (widths[j] > l.cols) l.cols = widths[j];
        if (s->ffn == FM_FFN_MOE && s->expert.intermediate_size > l.intermediate_size)
            l.intermediate_size = s->expert.intermediate_size;
        if (s->mixer == FM_MIXER_ATTENTION) {
            if (s->attention.heads / s->attention.kv_heads > l.heads_per_kv)
                l.heads_per_kv = s->attention.heads / s->attention.kv_heads;
            if (s->attention.head_dim > l.head_dim) l.head_dim = s->attention.head_dim;
        } else {
            if (s->delta.key_dim > l.key_dim) l.key_dim = s->delta.key_dim;
            if (s->delta.value_dim > l.value_dim) l.value_dim = s->delta.value_dim;
        }
    }
    return l;
}

fm_tensor fm_cut_take(fm_cut *cut, int32_t rows, int32_t cols)
{
    fm_tensor t = {cut->from->buf, cut->at, rows, cols, {.kind = FM_F32}};
    cut->at += cell(rows, cols);
    return t;
}

fm_status fm_activations_open(const fm_model_spec *spec, int32_t rows, fm_backend *backend, fm_activations *out, fm_error *err)
{
    fm_activations a = {
        .rows = rows, .picks = most_picks(spec, rows), .bytes = fixed_bytes(spec, rows) + phase_bytes(spec, rows)};

    a.pick = calloc(2 * (size_t)a.picks, sizeof *a.pick); /* the router sorts into one half */
    a.count = calloc((size_t)most_experts(spec) + 1, sizeof *a.count);
    fm_status status = a.pick && a.count ? backend->ops->alloc(backend, a.bytes, FM_SHARED, &a.buf, err)
                                         : fm_fail(err, FM_MEMORY, "no memory for %d routed rows", a.picks);
    if (status != FM_OK) {
        free(a.pick);
        free(a.count);
        return status;
    }
    fm_cut cut = {&a, 0};
    a.x = fm_cut_take(&cut, rows, spec->hidden_size);
    a.normed = fm_cut_take(&cut, rows, spec->hidden_size);
    a.y = fm_cut_take(&cut, rows, spec->hidden_size);
    a.table = fm_cut_take(&cut, rows, widest_rope(spec));
    a.table_stride = cut.at - a.table.offset;
    a.phase = a.table.offset + (size_t)spec->ropes * a.table_stride;
    *out = a;
    return FM_OK;
}

void fm_activations_free(fm_activations *a, fm_backend *backend)
{
    if (a->buf) backend->ops->release(backend, a->buf);
    free(a->pick);
    free(a->count);
    *a = (fm_activations){0};
}
