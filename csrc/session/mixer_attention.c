/* Softmax attention, with grouped queries, head norms and an output gate where the spec has them. */
#include "session/step.h"

/* Keys and values of every sequence join those it has, and its queries look at all of them. */
static void look_back(const fm_step *s, fm_tensor mixed, fm_tensor q, fm_tensor k, fm_tensor v)
{
    static const fm_number kinds[] = {FM_F32, FM_F16, FM_BF16};
    const fm_layer_spec *spec = fm_step_spec(s);
    const fm_layer_weights *w = fm_step_weights(s);
    fm_tensor table = fm_step_rope(s, spec->rope);

    for (int32_t i = 0, row = 0; i < s->parts; row += s->part[i].n, i++) {
        const fm_session *session = s->part[i].session;
        const fm_kv *kv = &session->kv[s->layer];
        int32_t n = s->part[i].n, position = session->position;
        fm_tensor keys = {kv->keys, 0, position + n, k.cols, {.kind = kinds[s->model->options.kv]}}, values = keys;
        values.buf = kv->values;
        const fm_heads heads = {.q = fm_step_rows(q, row, n),
                                .k = fm_step_rows(k, row, n),
                                .v = fm_step_rows(v, row, n),
                                .q_norm = w->q_norm, /* no buffer where the spec has no head norms */
                                .k_norm = w->k_norm,
                                .table = fm_step_rows(table, row, n),
                                .keys = keys,
                                .values = values,
                                .head_dim = spec->attention.head_dim,
                                .position = position,
                                .eps = s->model->manifest.spec.norm_eps};
        s->op->append_kv(s->backend, &heads);
        s->op->attend(s->backend, fm_step_rows(mixed, row, n), heads.q, keys, values, &spec->attention, position);
    }
}

void fm_mixer_attention(fm_step *s)
{
    fm_backend *b = s->backend;
    const fm_backend_ops *op = s->op;
    const fm_layer_spec *spec = fm_step_spec(s);
    const fm_attention_shape *a = &spec->attention;
    const fm_layer_weights *w = fm_step_weights(s);
    int32_t q_cols = a->heads * a->head_dim, kv_cols = a->kv_heads * a->head_dim;
    float eps = s->model->manifest.spec.norm_eps;
    fm_cut cut = fm_cut_start(s->room);
    fm_tensor q = fm_cut_take(&cut, s->rows, q_cols), gate = fm_cut_take(&cut, s->rows, q_cols);
    fm_tensor mixed = fm_cut_take(&cut, s->rows, q_cols);
    fm_tensor k = fm_cut_take(&cut, s->rows, kv_cols), v = fm_cut_take(&cut, s->rows, kv_cols);

    op->norm(b, s->normed, s->x, w->mixer_norm, eps);
    const fm_projection reads[] = {{q, w->q, false}, {k, w->k, false}, {v, w->v, false}, {gate, w->q_gate, false}};
    op->project(b, reads, spec->gated ? 4 : 3, s->normed);
    look_back(s, mixed, q, k, v);
    if (spec->gated) op->gate(b, mixed, mixed, gate);
    op->matmul(b, s->y, w->o, mixed);
    op->add(b, s->x, s->x, s->y);
}
