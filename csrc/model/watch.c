/* From the device's addresses to names, and from picks to each expert's rows. */
#include "model/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

static void product(void *context, fm_tensor weight, const float *x, int32_t rows)
{
    const fm_model *m = context;
    for (int32_t i = 0; i < m->weights.count; i++) {
        const fm_wanted *t = &m->weights.wanted[i];
        if (weight.buf == m->weights.buf && weight.offset == t->at) {
            m->watch.tell(m->watch.context, t->name, -1, x, rows, weight.cols);
            return;
        }
    }
}

/* Room for rows of one expert; NULL where there is none, which is told when the watch ends. */
static float *make_room(fm_model_watch_state *w, size_t floats)
{
    if (floats > w->room) {
        float *more = realloc(w->rows, floats * sizeof *more);
        w->failed |= !more;
        if (!more) return NULL;
        w->rows = more;
        w->room = floats;
    }
    return w->rows;
}

static void tell_expert(fm_model *m, int32_t layer, const fm_expert_shape *s, const float *x, const float *hidden,
                        const fm_pick *pick, int32_t n)
{
    char name[64];
    size_t cols = (size_t)s->hidden_size;
    float *rows = make_room(&m->watch, (size_t)n * cols);
    if (!rows) return;
    for (int32_t i = 0; i < n; i++) memcpy(rows + (size_t)i * cols, x + (size_t)pick[i].row * cols, cols * sizeof *rows);
    snprintf(name, sizeof name, "layers.%d.gate", layer);
    m->watch.tell(m->watch.context, name, pick[0].expert, rows, n, s->hidden_size);
    snprintf(name, sizeof name, "layers.%d.down", layer);
    if (hidden) m->watch.tell(m->watch.context, name, pick[0].expert, hidden, n, s->intermediate_size);
}

static void experts(void *context, const fm_expert_shape *s, const float *x, const float *hidden, const fm_pick *pick, int32_t n)
{
    fm_model *m = context;
    int32_t layer = 0;
    while (s != &m->manifest.spec.layer[layer].expert) layer++;
    for (int32_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && pick[end].expert == pick[i].expert; end++) continue;
        const float *inner = hidden ? hidden + (size_t)i * (size_t)s->intermediate_size : NULL;
        tell_expert(m, layer, s, x, inner, pick + i, end - i);
    }
}

fm_status fm_model_watch(fm_model *m, fm_model_watcher tell, void *context, fm_error *err)
{
    fm_status status = FM_OK;
    pthread_mutex_lock(&m->turn);
    const fm_backend_ops *op = m->backend->ops;
    if (m->watch.failed) status = fm_fail(err, FM_MEMORY, "no memory for an expert's rows while its inputs were watched");
    else if (tell && !op->watch) status = fm_fail(err, FM_UNSUPPORTED, "the device %s cannot be watched; take the CPU", op->name);
    free(m->watch.rows);
    m->watch = (fm_model_watch_state){{m, product, experts}, tell, context, NULL, 0, false};
    if (op->watch) op->watch(m->backend, tell && status == FM_OK ? &m->watch.watch : NULL);
    pthread_mutex_unlock(&m->turn);
    return status;
}
