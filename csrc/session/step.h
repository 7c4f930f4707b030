/* What the functions of one step share. */
#ifndef FM_STEP_H
#define FM_STEP_H

#include <stdatomic.h>

#include "model/model.h"

/* The KV cache of one attention layer: [capacity][kv_heads * head_dim] each. */
typedef struct {
    fm_buf *keys, *values;
} fm_kv;

struct fm_session {
    fm_model *model;
    int32_t position, capacity; /* tokens kept, and room for them */
    fm_kv *kv;                  /* [layers]; NULL buffers where the mixer is delta */
    fm_buf *state[2];           /* recurrent state of all delta layers */
    size_t *state_at;           /* [layers]: where a layer's state begins */
    int32_t now;                /* which of the two is the present state */
    uint64_t charged;           /* bytes of the model's budget it holds */
    atomic_int cancel;
    fm_session_stats stats;
};

/*
 * The rows of all parts stand one after another. Most verbs treat every row alike and see only `rows`;
 * verbs with a memory run once for each part, on its rows.
 */
typedef struct {
    const fm_append *part;
    int32_t parts;
    fm_model *model;
    fm_backend *backend;
    const fm_backend_ops *op;
    fm_activations *room;
    int32_t rows, layer;
    fm_tensor x, normed, y; /* [rows][hidden_size] */
} fm_step;

static inline const fm_layer_spec *fm_step_spec(const fm_step *s)
{
    return &s->model->manifest.spec.layer[s->layer];
}

static inline const fm_layer_weights *fm_step_weights(const fm_step *s)
{
    return &s->model->weights.layer[s->layer];
}

/* x += mixer(norm(x)); x += ffn(norm(x)) */
fm_status fm_layer(fm_step *s, fm_error *err);

void fm_mixer_attention(fm_step *s);
void fm_mixer_delta(fm_step *s);
void fm_ffn_dense(fm_step *s);
fm_status fm_ffn_moe(fm_step *s, fm_error *err);

/* The rope table of this layer for the step's positions. */
fm_tensor fm_step_rope(const fm_step *s, int32_t rope);

/* True once any of the step's sessions was cancelled. */
bool fm_step_cancelled(const fm_step *s);

/* Rows [first, first + n) of an activation. */
static inline fm_tensor fm_step_rows(fm_tensor t, int32_t first, int32_t n)
{
    t.offset += (size_t)first * (size_t)t.cols * sizeof(float);
    t.rows = n;
    return t;
}

#endif
