/* Every number of a model checked against every other, before any of them sizes an array. */
#include "model/spec.h"

#include <math.h>

#define LARGEST 16777216 /* of any width: products of two stay below 2^48 */

static fm_status bad(fm_error *err, int32_t layer, const char *what, long long got)
{
    return fm_fail(err, FM_FORMAT, "layer %d: %s is %lld", layer, what, got);
}

static fm_status check_attention(const fm_model_spec *m, const fm_layer_spec *l, int32_t i, fm_error *err)
{
    const fm_attention_shape *a = &l->attention;

    if (a->heads < 1 || a->heads > 65536) return bad(err, i, "heads", a->heads);
    if (a->kv_heads < 1 || a->heads % a->kv_heads)
        return fm_fail(err, FM_FORMAT, "layer %d: %d heads cannot share %d kv_heads", i, a->heads, a->kv_heads);
    if (a->head_dim < 1 || a->head_dim > 4096) return bad(err, i, "head_dim", a->head_dim);
    if ((long long)a->heads * a->head_dim > LARGEST) return bad(err, i, "heads * head_dim", (long long)a->heads * a->head_dim);
    if (!(a->scale > 0) || !isfinite(a->scale))
        return fm_fail(err, FM_FORMAT, "layer %d: attention scale %g", i, (double)a->scale);
    if (l->rope < 0 || l->rope >= m->ropes) return bad(err, i, "rope", l->rope);
    if (m->rope[l->rope].dims > a->head_dim)
        return fm_fail(err, FM_FORMAT, "layer %d: rope turns %d numbers of a head of %d", i, m->rope[l->rope].dims, a->head_dim);
    return FM_OK;
}

static fm_status check_delta(const fm_layer_spec *l, int32_t i, fm_error *err)
{
    const fm_delta_shape *d = &l->delta;

    if (d->key_heads < 1 || d->key_heads > 65536) return bad(err, i, "key_heads", d->key_heads);
    if (d->value_heads < 1 || d->value_heads > 65536 || d->value_heads % d->key_heads)
        return fm_fail(err, FM_FORMAT, "layer %d: %d value_heads cannot share %d key_heads", i, d->value_heads, d->key_heads);
    if (d->key_dim < 1 || d->key_dim > 1024) return bad(err, i, "key_dim", d->key_dim);
    if (d->value_dim < 1 || d->value_dim > 1024) return bad(err, i, "value_dim", d->value_dim);
    if (d->conv_taps < 1 || d->conv_taps > 64) return bad(err, i, "conv_taps", d->conv_taps);
    if (2ll * d->key_heads * d->key_dim + (long long)d->value_heads * d->value_dim > LARGEST)
        return bad(err, i, "the delta net's width", 2ll * d->key_heads * d->key_dim + (long long)d->value_heads * d->value_dim);
    return FM_OK;
}

static fm_status check_moe(const fm_layer_spec *l, int32_t i, fm_error *err)
{
    const fm_route_spec *r = &l->route;

    if (r->experts < 1 || r->experts > 65536) return bad(err, i, "experts", r->experts);
    if (r->native_k < 1 || r->native_k > r->experts)
        return fm_fail(err, FM_FORMAT, "layer %d: experts_per_token %d of %d experts", i, r->native_k, r->experts);
    if (r->k < 1 || r->k > r->native_k)
        return fm_fail(err, FM_ARGUMENT, "experts_per_token %d is not in 1 .. %d, the model's own number", r->k, r->native_k);
    if (l->expert.intermediate_size < 1 || l->expert.intermediate_size > LARGEST)
        return bad(err, i, "intermediate_size", l->expert.intermediate_size);
    if (l->shared_intermediate_size < 0 || l->shared_intermediate_size > LARGEST)
        return bad(err, i, "shared_intermediate_size", l->shared_intermediate_size);
    return FM_OK;
}

fm_status fm_spec_check(const fm_model_spec *m, fm_error *err)
{
    if (m->hidden_size < 1 || m->hidden_size > LARGEST) return fm_fail(err, FM_FORMAT, "hidden_size is %d", m->hidden_size);
    if (m->vocab_size < 1 || m->vocab_size > LARGEST) return fm_fail(err, FM_FORMAT, "vocab_size is %d", m->vocab_size);
    if (m->layers < 1 || m->layers > 65536) return fm_fail(err, FM_FORMAT, "%d layers", m->layers);
    if (m->max_positions < 1) return fm_fail(err, FM_FORMAT, "max_positions is %d", m->max_positions);
    if (!(m->norm_eps > 0) || !isfinite(m->norm_eps)) return fm_fail(err, FM_FORMAT, "norm_eps is %g", (double)m->norm_eps);

    for (int32_t i = 0; i < m->layers; i++) {
        const fm_layer_spec *l = &m->layer[i];
        if (l->mixer == FM_MIXER_ATTENTION) FM_TRY(check_attention(m, l, i, err));
        else FM_TRY(check_delta(l, i, err));
        if (l->ffn == FM_FFN_MOE) FM_TRY(check_moe(l, i, err));
        else if (l->intermediate_size < 1 || l->intermediate_size > LARGEST)
            return bad(err, i, "intermediate_size", l->intermediate_size);
    }
    return FM_OK;
}
