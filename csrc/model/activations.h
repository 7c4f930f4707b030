/* Room for the activations of one step; sessions of a model take turns with it. */
#ifndef FM_ACTIVATIONS_H
#define FM_ACTIVATIONS_H

#include "model/spec.h"

/* Rows of the last product that are computed and copied out at a time. */
#define FM_LOGIT_ROWS 8

/* Tensors of `rows` rows; mixer and ffn use the same memory one after the other. */
typedef struct {
    int32_t rows, picks;
    fm_buf *buf;
    size_t bytes;
    fm_tensor x, normed, y; /* [rows][hidden_size] */
    fm_tensor table;        /* [rows][largest rope dims], cut to a rope's width */
    size_t table_stride;    /* bytes of one rope's table */
    size_t phase;           /* where mixer, ffn and logits begin */
    fm_pick *pick;          /* [2 * picks] */
    int32_t *count;         /* [experts + 1], for the router */
} fm_activations;

/* Bytes for `rows` rows: the buffer, and the host arrays. */
size_t fm_activations_measure(const fm_model_spec *spec, int32_t rows);
fm_limits fm_activations_limits(const fm_model_spec *spec, int32_t rows);

fm_status fm_activations_open(const fm_model_spec *spec, int32_t rows, fm_backend *backend, fm_activations *out, fm_error *err);
void fm_activations_free(fm_activations *a, fm_backend *backend);

/* Cuts tensors off the shared part, one after another. */
typedef struct {
    const fm_activations *from;
    size_t at;
} fm_cut;
static inline fm_cut fm_cut_start(const fm_activations *a)
{
    return (fm_cut){a, a->phase};
}
fm_tensor fm_cut_take(fm_cut *cut, int32_t rows, int32_t cols);

/* The first n rows. */
static inline fm_tensor fm_tensor_first(fm_tensor t, int32_t n)
{
    t.rows = n;
    return t;
}

#endif
