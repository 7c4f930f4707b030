/* Gated DeltaNet: short convolution, delta rule on a recurrent state, gated norm. */
#include "session/step.h"

#include "base/memory.h"

void fm_mixer_delta(fm_step *s)
{
    fm_backend *b = s->backend;
    const fm_backend_ops *op = s->op;
    const fm_delta_shape *d = &fm_step_spec(s)->delta;
    const fm_layer_weights *w = fm_step_weights(s);
    const fm_session *session = s->session;
    int32_t values = d->value_heads * d->value_dim, width = 2 * d->key_heads * d->key_dim + values;
    float eps = s->model->manifest.spec.norm_eps;
    fm_cut cut = fm_cut_start(s->room);
    fm_tensor in = fm_cut_take(&cut, s->rows, width), qkv = fm_cut_take(&cut, s->rows, width);
    fm_tensor z = fm_cut_take(&cut, s->rows, values), mixed = fm_cut_take(&cut, s->rows, values);
    fm_tensor decay = fm_cut_take(&cut, s->rows, d->value_heads), beta = fm_cut_take(&cut, s->rows, d->value_heads);

    /* this layer's part of the two states: convolution rows, then the delta rule's matrices */
    fm_tensor conv_from = {session->state[session->now], session->state_at[s->layer], d->conv_taps - 1, width, {.kind = FM_F32}};
    fm_tensor conv_to = conv_from, from, to;
    conv_to.buf = session->state[!session->now];
    from = conv_from;
    from.offset += fm_align_up((size_t)(d->conv_taps - 1) * (size_t)width * sizeof(float), 64);
    from.rows = d->value_heads * d->key_dim;
    from.cols = d->value_dim;
    to = from;
    to.buf = conv_to.buf;

    op->norm(b, s->normed, s->x, w->mixer_norm, eps);
    const fm_projection reads[] = {{in, w->qkv, false}, {z, w->z, false}, {beta, w->b, true}, {decay, w->a, true}};
    op->project(b, reads, 4, s->normed);
    op->conv(b, qkv, in, w->conv, conv_to, conv_from);
    op->delta_gates(b, decay, beta, w->a_log, w->dt_bias);
    op->delta(b, mixed, qkv, decay, beta, to, from, d, s->position);
    op->gated_norm(b, mixed, mixed, z, w->delta_norm, eps);
    op->matmul(b, s->y, w->out, mixed);
    op->add(b, s->x, s->x, s->y);
}
