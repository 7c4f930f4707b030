/* Softmax attention, with grouped queries, head norms and an output gate where the spec has them. */
#include "session/step.h"

/* A tensor's heads as rows. */
static fm_tensor by_head(fm_tensor t, int32_t head_dim)
{
    t.rows *= t.cols / head_dim;
    t.cols = head_dim;
    return t;
}

static fm_tensor cache(const fm_step *s, fm_buf *buf, int32_t cols)
{
    static const fm_number kinds[] = {FM_F32, FM_F16, FM_BF16};
    return (fm_tensor){buf, 0, s->position + s->rows, cols, {.kind = kinds[s->model->options.kv]}};
}

void fm_mixer_attention(fm_step *s)
{
    fm_backend *b = s->backend;
    const fm_backend_ops *op = s->op;
    const fm_layer_spec *spec = fm_step_spec(s);
    const fm_attention_shape *a = &spec->attention;
    const fm_layer_weights *w = fm_step_weights(s);
    const fm_kv *kv = &s->session->kv[s->layer];
    int32_t q_cols = a->heads * a->head_dim, kv_cols = a->kv_heads * a->head_dim;
    float eps = s->model->manifest.spec.norm_eps;
    fm_cut cut = fm_cut_start(s->room);
    fm_tensor q = fm_cut_take(&cut, s->rows, q_cols), gate = fm_cut_take(&cut, s->rows, q_cols);
    fm_tensor mixed = fm_cut_take(&cut, s->rows, q_cols);
    fm_tensor k = fm_cut_take(&cut, s->rows, kv_cols), v = fm_cut_take(&cut, s->rows, kv_cols);
    fm_tensor keys = cache(s, kv->keys, kv_cols), values = cache(s, kv->values, kv_cols);
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
    op->keep(b, keys, k, s->position);
    op->keep(b, values, v, s->position);
    op->attend(b, mixed, q, keys, values, a, s->position);
    if (spec->gated) op->gate(b, mixed, mixed, gate);
    op->matmul(b, s->y, w->o, mixed);
    op->add(b, s->x, s->x, s->y);
}
