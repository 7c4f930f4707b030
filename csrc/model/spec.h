/* A model as data: kinds of layer and their numbers, never the name of a model. */
#ifndef FM_SPEC_H
#define FM_SPEC_H

#include "backend/backend.h"

typedef enum { FM_MIXER_ATTENTION, FM_MIXER_DELTA } fm_mixer_kind;
typedef enum { FM_FFN_DENSE, FM_FFN_MOE } fm_ffn_kind;

/* softmax over all experts, the k largest, their shares divided by their sum if `renormalise`. */
typedef struct {
    int32_t experts, k, native_k;
    int32_t renormalise;
} fm_route_spec;

typedef struct {
    fm_mixer_kind mixer;
    fm_attention_shape attention; /* where mixer is attention */
    int32_t rope;                 /* which of the model's rope tables */
    int32_t gated, qk_norm;
    fm_delta_shape delta; /* where mixer is delta */
    fm_ffn_kind ffn;
    int32_t intermediate_size; /* dense */
    fm_route_spec route;       /* where ffn is moe */
    fm_expert_shape expert;
    int32_t shared_intermediate_size; /* the always-on expert; 0: none */
} fm_layer_spec;

/* Rotary embedding: angle of pair j at position p is p * inv_freq[j]; cos and sin times `scale`. */
typedef struct {
    int32_t dims;
    double scale;
    const double *inv_freq;
} fm_rope_spec;

typedef struct {
    int32_t hidden_size, vocab_size, max_positions, layers, ropes;
    int32_t tied; /* lm_head is the embedding table */
    float norm_eps;
    const fm_layer_spec *layer; /* [layers] */
    const fm_rope_spec *rope;   /* [ropes] */
} fm_model_spec;

/* Every number checked against every other. FM_FORMAT names the layer and the numbers. */
fm_status fm_spec_check(const fm_model_spec *spec, fm_error *err);

#endif
