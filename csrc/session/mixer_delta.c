/* Gated DeltaNet: short convolution, delta rule on a recurrent state, gated norm. */
#include "session/step.h"

#include "base/memory.h"

typedef struct {
    fm_tensor conv_from, conv_to; /* the last rows before the convolution */
    fm_tensor from, to;           /* the delta rule's matrices */
} states;

/* This layer's part of a session's two states: of the present one and of the next. */
static states states_of(const fm_step *s, const fm_session *session, int32_t width)
{
    const fm_delta_shape *d = &fm_step_spec(s)->delta;
    fm_tensor conv = {session->state[session->now], session->state_at[s->layer], d->conv_taps - 1, width, {.kind = FM_F32}};
    fm_tensor matrices = conv;
    matrices.offset += fm_align_up((size_t)conv.rows * (size_t)width * sizeof(float), 64);
    matrices.rows = d->value_heads * d->key_dim;
    matrices.cols = d->value_dim;

    states t = {conv, conv, matrices, matrices};
    t.conv_to.buf = t.to.buf = session->state[!session->now];
    return t;
}

void fm_mixer_delta(fm_step *s)
{
    fm_backend *b = s->backend;
    const fm_backend_ops *op = s->op;
    const fm_delta_shape *d = &fm_step_spec(s)->delta;
    const fm_layer_weights *w = fm_step_weights(s);
    int32_t values = d->value_heads * d->value_dim, width = 2 * d->key_heads * d->key_dim + values;
    float eps = s->model->manifest.spec.norm_eps;
    fm_cut cut = fm_cut_start(s->room);
    fm_tensor in = fm_cut_take(&cut, s->rows, width), qkv = fm_cut_take(&cut, s->rows, width);
    fm_tensor z = fm_cut_take(&cut, s->rows, values), mixed = fm_cut_take(&cut, s->rows, values);
    fm_tensor decay = fm_cut_take(&cut, s->rows, d->value_heads), beta = fm_cut_take(&cut, s->rows, d->value_heads);

    op->norm(b, s->normed, s->x, w->mixer_norm, eps);
    const fm_projection reads[] = {{in, w->qkv, false}, {z, w->z, false}, {beta, w->b, true}, {decay, w->a, true}};
    op->project(b, reads, 4, s->normed);
    op->delta_gates(b, decay, beta, w->a_log, w->dt_bias);
    for (int32_t i = 0, row = 0; i < s->parts; row += s->part[i].n, i++) {
        int32_t n = s->part[i].n;
        states now = states_of(s, s->part[i].session, width);
        op->conv(b, fm_step_rows(qkv, row, n), fm_step_rows(in, row, n), w->conv, now.conv_to, now.conv_from);
        op->delta(b, fm_step_rows(mixed, row, n), fm_step_rows(qkv, row, n), fm_step_rows(decay, row, n),
                  fm_step_rows(beta, row, n), now.to, now.from, d, s->part[i].session->position);
    }
    op->gated_norm(b, mixed, mixed, z, w->delta_norm, eps);
    op->matmul(b, s->y, w->out, mixed);
    op->add(b, s->x, s->x, s->y);
}
