/* Softmax attention, with grouped queries, head norms and an output gate where the spec has them. */
#include "session/step.h"

/* A tensor's heads as rows. */
static fm_tensor by_head(fm_tensor t, int32_t head_dim)
{
    t.rows *= t.cols / head_dim;
    t.cols = head_dim;
    return t;
}

/* Keep the keys and values of every sequence, and let its queries look at those it has. */
static void look_back(const fm_step *s, fm_tensor mixed, fm_tensor q, fm_tensor k, fm_tensor v)
{
    static const fm_number kinds[] = {FM_F32, FM_F16, FM_BF16};
    fm_backend *b = s->backend;

    for (int32_t i = 0, row = 0; i < s->parts; row += s->part[i].n, i++) {
        const fm_session *session = s->part[i].session;
        const fm_kv *kv = &session->kv[s->layer];
        int32_t n = s->part[i].n, position = session->position;
        fm_tensor keys = {kv->keys, 0, position + n, k.cols, {.kind = kinds[s->model->options.kv]}}, values = keys;
        values.buf = kv->values;
        s->op->keep(b, keys, fm_step_rows(k, row, n), position);
        s->op->keep(b, values, fm_step_rows(v, row, n), position);
        s->op->attend(b, fm_step_rows(mixed, row, n), fm_step_rows(q, row, n), keys, values, &fm_step_spec(s)->attention,
                      position);
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
    fm_tensor turn = fm_step_rope(s, spec->rope);

    op->norm(b, s->normed, s->x, w->mixer_norm, eps);
    const fm_projection reads[] = {{q, w->q, false}, {k, w->k, false}, {v, w->v, false}, {gate, w->q_gate, false}};
    op->project(b, reads, spec->gated ? 4 : 3, s->normed);
    if (spec->qk_norm) {
        op->norm(b, by_head(q, a->head_dim), by_head(q, a->head_dim), w->q_norm, eps);
        op->norm(b, by_head(k, a->head_dim), by_head(k, a->head_dim), w->k_norm, eps);
    }
    op->rope(b, q, turn, a->head_dim);
    op->rope(b, k, turn, a->head_dim);
    look_back(s, mixed, q, k, v);
    if (spec->gated) op->gate(b, mixed, mixed, gate);
    op->matmul(b, s->y, w->o, mixed);
    op->add(b, s->x, s->x, s->y);
}
