/* KV caches that grow by whole steps, and a recurrent state that is read in one copy and written in the other. */
#include "session/state.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/plan.h"

static size_t layer_state_bytes(const fm_layer_spec *l)
{
    fm_model_spec one = {.layers = 1, .layer = l};
    return fm_plan_state_bytes(&one);
}

static size_t layer_kv_bytes(const fm_model *m, int32_t layer, int32_t tokens)
{
    const fm_attention_shape *a = &m->manifest.spec.layer[layer].attention;
    return (size_t)tokens * (size_t)a->kv_heads * (size_t)a->head_dim * (m->options.kv == FM_KV_F32 ? 4 : 2);
}

fm_status fm_state_open(fm_session *session, fm_error *err)
{
    fm_model *m = session->model;
    const fm_model_spec *spec = &m->manifest.spec;
    fm_backend *b = m->backend;
    size_t bytes = 0;

    session->kv = calloc((size_t)spec->layers, sizeof *session->kv);
    session->state_at = calloc((size_t)spec->layers, sizeof *session->state_at);
    if (!session->kv || !session->state_at) return fm_fail(err, FM_MEMORY, "no memory for a session");
    for (int32_t i = 0; i < spec->layers; i++) {
        session->state_at[i] = bytes;
        if (spec->layer[i].mixer == FM_MIXER_DELTA) bytes += layer_state_bytes(&spec->layer[i]);
    }
    FM_TRY(fm_model_charge(m, (int64_t)(2 * bytes), err));
    session->charged = 2 * bytes;
    for (int32_t i = 0; i < 2; i++) FM_TRY(b->ops->alloc(b, bytes + FM_PAGE, FM_SHARED, &session->state[i], err));
    return FM_OK;
}

void fm_state_close(fm_session *session)
{
    fm_model *m = session->model;
    fm_backend *b = m->backend;

    for (int32_t i = 0; session->kv && i < m->manifest.spec.layers; i++) {
        b->ops->release(b, session->kv[i].keys);
        b->ops->release(b, session->kv[i].values);
    }
    for (int32_t i = 0; i < 2; i++) b->ops->release(b, session->state[i]);
    free(session->kv);
    free(session->state_at);
    fm_model_charge(m, -(int64_t)session->charged, NULL); /* giving back cannot fail */
}

static fm_status grow_one(fm_backend *b, fm_buf **buf, size_t bytes, fm_error *err)
{
    if (*buf) return b->ops->grow(b, *buf, bytes, err);
    return b->ops->alloc(b, bytes, FM_SHARED, buf, err);
}

static fm_status grow_caches(fm_session *session, int32_t capacity, fm_error *err)
{
    fm_model *m = session->model;
    for (int32_t i = 0; i < m->manifest.spec.layers; i++) {
        if (m->manifest.spec.layer[i].mixer != FM_MIXER_ATTENTION) continue;
        FM_TRY(grow_one(m->backend, &session->kv[i].keys, layer_kv_bytes(m, i, capacity), err));
        FM_TRY(grow_one(m->backend, &session->kv[i].values, layer_kv_bytes(m, i, capacity), err));
    }
    return FM_OK;
}

fm_status fm_state_grow(fm_session *session, int32_t tokens, fm_error *err)
{
    fm_model *m = session->model;
    int32_t capacity = (tokens + FM_KV_STEP - 1) / FM_KV_STEP * FM_KV_STEP;

    if (tokens <= session->capacity) return FM_OK;
    int64_t more = (int64_t)(capacity - session->capacity) * (int64_t)m->kv_row_bytes;
    FM_TRY(fm_model_charge(m, more, err));
    fm_status status = grow_caches(session, capacity, err);
    if (status != FM_OK) {
        fm_model_charge(m, -more, NULL);
        return status;
    }
    session->charged += (uint64_t)more;
    session->capacity = capacity;
    return FM_OK;
}

void fm_state_reset(fm_session *session)
{
    fm_backend *b = session->model->backend;
    size_t bytes = session->model->state_bytes / 2;

    session->position = 0;
    memset(b->ops->host(session->state[session->now]), 0, bytes);
}
