/* The resident tensors: which there must be, where they come from, and where they are in device memory. */
#ifndef FM_WEIGHTS_H
#define FM_WEIGHTS_H

#include "model/manifest.h"

typedef struct {
    fm_tensor mixer_norm, ffn_norm;
    fm_tensor q, q_gate, k, v, o, q_norm, k_norm;                        /* attention */
    fm_tensor qkv, z, b, a, conv, a_log, dt_bias, delta_norm, out;       /* gated delta net */
    fm_tensor gate, up, down;                                            /* dense */
    fm_tensor router, shared_score, shared_gate, shared_up, shared_down; /* moe */
} fm_layer_weights;

/* One tensor the model must have. */
typedef struct {
    char name[64];
    int32_t rows, cols;
    int32_t small; /* becomes float32: norms, conv taps, gates */
    fm_tensor *to;
    const fm_tensor_source *from;
    size_t at; /* in the buffer */
} fm_wanted;

typedef struct {
    fm_arena arena;
    fm_tensor embed, norm, lm_head;
    fm_layer_weights *layer; /* [layers] */
    fm_wanted *wanted;
    int32_t count;
    size_t bytes; /* of the buffer */
    fm_buf *buf;
} fm_weights;

/* Match what the spec wants with what the manifest has. FM_FORMAT names a tensor that is missing,
 * has another shape, or is not wanted; `weights` is then empty. It must not be moved afterwards. */
fm_status fm_weights_plan(const fm_manifest *manifest, fm_weights *weights, fm_error *err);

/* Read every planned tensor into one buffer of the device. FM_NUMERIC names a tensor with NaN or infinity; FM_CANCELLED soon
 * after *cancel was set; NULL: nobody does. */
fm_status fm_weights_load(fm_weights *weights, fm_backend *backend, const fm_file *files, const volatile int32_t *cancel,
                          fm_error *err);

void fm_weights_free(fm_weights *weights, fm_backend *backend);

#endif
