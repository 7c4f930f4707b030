/* A plain SwiGLU feed-forward. */
#include "session/step.h"

void fm_ffn_dense(fm_step *s)
{
    fm_backend *b = s->backend;
    const fm_backend_ops *op = s->op;
    const fm_layer_weights *w = fm_step_weights(s);
    int32_t inner = fm_step_spec(s)->intermediate_size;
    fm_cut cut = fm_cut_start(s->room);
    fm_tensor gate = fm_cut_take(&cut, s->rows, inner), up = fm_cut_take(&cut, s->rows, inner);

    op->norm(b, s->normed, s->x, w->ffn_norm, s->model->manifest.spec.norm_eps);
    op->project(b, (const fm_projection[]){{gate, w->gate, false}, {up, w->up, false}}, 2, s->normed);
    op->swiglu(b, gate, gate, up);
    op->matmul(b, s->y, w->down, gate);
    op->add(b, s->x, s->x, s->y);
}
