/* What can be looked at afterwards: which experts the routers picked, and where the time of each layer went. */
#ifndef FM_TRACE_H
#define FM_TRACE_H

#include <stdbool.h>

#include "backend/backend.h"

typedef struct {
    bool on;
    int32_t k, step;    /* picks of a row, at most; evals so far */
    int32_t *line;      /* [lines][3 + k] */
    size_t lines, room; /* of lines */
} fm_trace;

/* Where a layer's time went. */
typedef struct {
    uint64_t mixer, route, wait, ffn;
} fm_layer_ns;

/* A new eval begins. */
void fm_trace_step(fm_trace *trace);

/* pick[0 .. rows * k) of `layer`, in any order. FM_MEMORY. */
fm_status fm_trace_add(fm_trace *trace, int32_t layer, const fm_pick *pick, int32_t rows, int32_t k, fm_error *err);

#endif
