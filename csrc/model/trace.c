/* Lines of step, row, layer and expert ids. */
#include "model/trace.h"

#include <stdlib.h>

#include "model/model.h"

void fm_trace_step(fm_trace *t)
{
    t->step++;
}

static fm_status make_room(fm_trace *t, size_t lines, size_t width, fm_error *err)
{
    size_t room = t->room ? t->room : 1024;
    while (room < lines) room *= 2;
    if (room == t->room) return FM_OK;
    int32_t *more = realloc(t->line, room * width * sizeof *more);
    if (!more) return fm_fail(err, FM_MEMORY, "no memory for a record of %zu routed rows; take it more often", lines);
    t->line = more;
    t->room = room;
    return FM_OK;
}

fm_status fm_trace_add(fm_trace *t, int32_t layer, const fm_pick *pick, int32_t rows, int32_t k, fm_error *err)
{
    size_t width = 3 + (size_t)t->k;
    if (!t->on) return FM_OK;
    FM_TRY(make_room(t, t->lines + (size_t)rows, width, err));
    int32_t *first = t->line + t->lines * width;
    for (int32_t r = 0; r < rows; r++) {
        int32_t *line = first + (size_t)r * width;
        line[0] = t->step;
        line[1] = r;
        line[2] = layer;
        for (int32_t i = 0; i < t->k; i++) line[3 + i] = -1;
    }
    for (int32_t i = 0; i < rows * k; i++) {
        int32_t *id = first + (size_t)pick[i].row * width + 3;
        while (*id >= 0) id++;
        *id = pick[i].expert;
    }
    t->lines += (size_t)rows;
    return FM_OK;
}

/* ---- for the user --------------------------------------------------------------------- */

void fm_model_record(fm_model *m, int32_t on)
{
    if (!m) return;
    pthread_mutex_lock(&m->turn);
    free(m->trace.line);
    m->trace = (fm_trace){.on = on != 0};
    for (int32_t i = 0; i < m->manifest.spec.layers; i++)
        if (m->manifest.spec.layer[i].route.k > m->trace.k) m->trace.k = m->manifest.spec.layer[i].route.k;
    pthread_mutex_unlock(&m->turn);
}

int64_t fm_model_recorded(fm_model *m, int32_t *out, int64_t lines)
{
    if (!m) return 0;
    if (!out || lines < 0) lines = 0;
    pthread_mutex_lock(&m->turn);
    int64_t there = (int64_t)m->trace.lines, numbers = (lines < there ? lines : there) * (3 + m->trace.k);
    for (int64_t i = 0; i < numbers; i++) out[i] = m->trace.line[i];
    pthread_mutex_unlock(&m->turn);
    return there;
}

void fm_model_expert_uses(fm_model *m, int64_t *out, int32_t experts)
{
    if (!m || !out) return;
    int32_t width = 0;
    pthread_mutex_lock(&m->turn);
    const uint64_t *uses = m->store ? fm_expert_store_uses(m->store, &width) : NULL;
    for (int32_t l = 0; l < m->manifest.spec.layers; l++)
        for (int32_t e = 0; e < experts; e++)
            out[(size_t)l * (size_t)experts + (size_t)e] = e < width ? (int64_t)uses[(size_t)l * (size_t)width + (size_t)e] : 0;
    pthread_mutex_unlock(&m->turn);
}

void fm_model_layer_ns(fm_model *m, int64_t *out)
{
    if (!m || !out) return;
    pthread_mutex_lock(&m->turn);
    for (int32_t l = 0; l < m->manifest.spec.layers; l++, out += 4) {
        const fm_layer_ns *t = &m->layer_ns[l];
        out[0] = (int64_t)t->mixer;
        out[1] = (int64_t)t->route;
        out[2] = (int64_t)t->wait;
        out[3] = (int64_t)t->ffn;
    }
    pthread_mutex_unlock(&m->turn);
}
