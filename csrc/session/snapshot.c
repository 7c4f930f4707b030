/* A session as bytes: a header, the KV caches in whole blocks of positions, the present recurrent state. */
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "session/state.h"

enum { BLOCK = 64, VERSION = 1 };

/* In the byte order of the machine; another one reads another version. */
typedef struct {
    char magic[8];
    uint32_t version, kv;
    char device[16]; /* how keys lie in a block is the device's affair */
    uint64_t model;  /* fm_model_fingerprint */
    uint64_t bytes;  /* of the whole snapshot */
    uint64_t state_bytes;
    int32_t position, layers;
    uint64_t body;   /* XXH3 of what follows the header */
    uint64_t header; /* XXH3 of what stands before this */
} snapshot_header;

static const char magic[8] = "fmstate";

static uint64_t header_sum(const snapshot_header *h)
{
    return fm_xxh3(h, offsetof(snapshot_header, header));
}

/* ---- what there is to copy --------------------------------------------------------- */

static size_t cache_bytes(const fm_model *m, int32_t layer, int32_t position)
{
    const fm_layer_spec *l = &m->manifest.spec.layer[layer];
    if (l->mixer != FM_MIXER_ATTENTION) return 0;
    size_t row = (size_t)l->attention.kv_heads * (size_t)l->attention.head_dim * (m->options.kv == FM_KV_F32 ? 4 : 2);
    return (size_t)((position + BLOCK - 1) / BLOCK * BLOCK) * row;
}

static uint64_t snapshot_bytes(const fm_model *m, int32_t position)
{
    uint64_t bytes = sizeof(snapshot_header) + m->state_bytes / 2;
    for (int32_t i = 0; i < m->manifest.spec.layers; i++) bytes += 2 * (uint64_t)cache_bytes(m, i, position);
    return bytes;
}

uint64_t fm_session_snapshot_bytes(const fm_session *session)
{
    return session ? snapshot_bytes(session->model, session->position) : 0;
}

/*
 * What an earlier sequence left in the last block goes. Keys are runs of `key_run` numbers of a position, the
 * runs of all 64 positions side by side; values are whole heads.
 */
static void clear_tail(uint8_t *block, size_t bytes, size_t run, int32_t used)
{
    size_t row = BLOCK * run;
    for (size_t at = 0; at < bytes; at += row) memset(block + at + (size_t)used * run, 0, row - (size_t)used * run);
}

static void copy_out(const fm_session *s, uint8_t *out)
{
    fm_model *m = s->model;
    const fm_backend_ops *op = m->backend->ops;
    int32_t used = s->position % BLOCK;

    for (int32_t i = 0; i < m->manifest.spec.layers; i++) {
        size_t bytes = cache_bytes(m, i, s->position), number = m->options.kv == FM_KV_F32 ? 4 : 2;
        if (!bytes) continue;
        const fm_attention_shape *a = &m->manifest.spec.layer[i].attention;
        size_t block = (size_t)a->kv_heads * (size_t)a->head_dim * BLOCK * number;
        memcpy(out, op->host(s->kv[i].keys), bytes);
        memcpy(out + bytes, op->host(s->kv[i].values), bytes);
        if (used) {
            clear_tail(out + bytes - block, block, (size_t)op->key_run * number, used);
            clear_tail(out + 2 * bytes - block, block, (size_t)a->head_dim * number, used);
        }
        out += 2 * bytes;
    }
    memcpy(out, op->host(s->state[s->now]), m->state_bytes / 2);
}

static void copy_in(fm_session *s, const uint8_t *from, int32_t position)
{
    fm_model *m = s->model;
    const fm_backend_ops *op = m->backend->ops;

    for (int32_t i = 0; i < m->manifest.spec.layers; i++) {
        size_t bytes = cache_bytes(m, i, position);
        if (!bytes) continue;
        memcpy(op->host(s->kv[i].keys), from, bytes);
        memcpy(op->host(s->kv[i].values), from + bytes, bytes);
        from += 2 * bytes;
    }
    memcpy(op->host(s->state[s->now]), from, m->state_bytes / 2);
    s->position = position;
}

/* ---- save -------------------------------------------------------------------------- */

/* The host may touch what the device has. */
static fm_status settle(const fm_model *m, fm_error *err)
{
    const fm_backend_ops *op = m->backend->ops;
    return op->wait(m->backend, op->submit(m->backend), err);
}

static fm_status save(fm_session *s, uint8_t *out, uint64_t bytes, fm_error *err)
{
    fm_model *m = s->model;
    snapshot_header h = {.version = VERSION,
                         .kv = (uint32_t)m->options.kv,
                         .bytes = snapshot_bytes(m, s->position),
                         .state_bytes = m->state_bytes / 2,
                         .position = s->position,
                         .layers = m->manifest.spec.layers};
    if (bytes != h.bytes)
        return fm_fail(err, FM_ARGUMENT, "%llu bytes of room for a snapshot of %llu", (unsigned long long)bytes,
                       (unsigned long long)h.bytes);
    FM_TRY(fm_model_identify(m, &h.model, err));
    FM_TRY(settle(m, err));
    memcpy(h.magic, magic, sizeof magic);
    snprintf(h.device, sizeof h.device, "%s", m->backend->ops->name);
    copy_out(s, out + sizeof h);
    h.body = fm_xxh3(out + sizeof h, bytes - sizeof h);
    h.header = header_sum(&h);
    memcpy(out, &h, sizeof h);
    return FM_OK;
}

fm_status fm_session_save(fm_session *session, void *out, uint64_t bytes, fm_error *err)
{
    FM_NEED(session, err);
    FM_NEED(out, err);
    pthread_mutex_lock(&session->model->turn);
    fm_status status = save(session, out, bytes, err);
    pthread_mutex_unlock(&session->model->turn);
    return status;
}

/* ---- load -------------------------------------------------------------------------- */

/* Before anything of a header is believed. */
static fm_status read_header(const void *snapshot, uint64_t bytes, snapshot_header *h, fm_error *err)
{
    if (bytes < sizeof *h)
        return fm_fail(err, FM_INTEGRITY, "a snapshot of %llu bytes is shorter than its header of %zu", (unsigned long long)bytes,
                       sizeof *h);
    memcpy(h, snapshot, sizeof *h);
    if (memcmp(h->magic, magic, sizeof magic) != 0) return fm_fail(err, FM_FORMAT, "these bytes are not a saved session");
    if (h->version != VERSION)
        return fm_fail(err, FM_FORMAT, "the session was saved in version %u of the format; this is version %d", h->version,
                       (int)VERSION);
    if (h->header != header_sum(h)) return fm_fail(err, FM_INTEGRITY, "the header of the snapshot does not match its checksum");
    return FM_OK;
}

/* That this model saved it. */
static fm_status check_origin(fm_model *m, const snapshot_header *h, fm_error *err)
{
    static const char *const kinds[] = {"f32", "f16", "bf16"};
    char device[sizeof h->device] = {0};
    uint64_t model;

    snprintf(device, sizeof device, "%s", m->backend->ops->name);
    FM_TRY(fm_model_identify(m, &model, err));
    if (h->model != model)
        return fm_fail(err, FM_FORMAT,
                       "the session was saved by another model, another quantisation of it or another experts_per_token: "
                       "fingerprint %016llx, not %016llx",
                       (unsigned long long)h->model, (unsigned long long)model);
    if (memcmp(h->device, device, sizeof device) != 0) /* the padding is zeros, too */
        return fm_fail(err, FM_FORMAT, "the session was saved on device \"%.*s\"; this is \"%s\"", (int)sizeof h->device - 1,
                       h->device, device);
    if (h->kv != (uint32_t)m->options.kv)
        return fm_fail(err, FM_FORMAT, "the session was saved with KV caches of %s; this model keeps %s",
                       h->kv <= FM_KV_BF16 ? kinds[h->kv] : "an unknown kind", kinds[m->options.kv]);
    return FM_OK;
}

static fm_status check_body(const fm_model *m, const snapshot_header *h, const uint8_t *body, uint64_t bytes, fm_error *err)
{
    const fm_model_spec *spec = &m->manifest.spec;
    if (h->position < 0 || h->position > spec->max_positions)
        return fm_fail(err, FM_FORMAT, "a snapshot of %d tokens; the model's context is %d", h->position, spec->max_positions);
    if (h->layers != spec->layers || h->state_bytes != m->state_bytes / 2 || h->bytes != snapshot_bytes(m, h->position))
        return fm_fail(err, FM_FORMAT, "a snapshot of %d tokens in %d layers has %llu bytes, this model's %llu", h->position,
                       h->layers, (unsigned long long)h->bytes, (unsigned long long)snapshot_bytes(m, h->position));
    if (bytes != h->bytes)
        return fm_fail(err, FM_INTEGRITY, "the snapshot has %llu bytes, but must have %llu", (unsigned long long)bytes,
                       (unsigned long long)h->bytes);
    if (h->body != fm_xxh3(body, bytes - sizeof *h))
        return fm_fail(err, FM_INTEGRITY, "the snapshot does not match its checksum");
    return FM_OK;
}

static fm_status load(fm_session *s, const uint8_t *snapshot, uint64_t bytes, fm_error *err)
{
    snapshot_header h;
    FM_TRY(read_header(snapshot, bytes, &h, err));
    FM_TRY(check_origin(s->model, &h, err));
    FM_TRY(check_body(s->model, &h, snapshot + sizeof h, bytes, err));
    FM_TRY(settle(s->model, err));
    FM_TRY(fm_state_grow(s, h.position, err));
    copy_in(s, snapshot + sizeof h, h.position); /* only now: nothing can fail any more */
    return FM_OK;
}

fm_status fm_session_load(fm_session *session, const void *snapshot, uint64_t bytes, fm_error *err)
{
    FM_NEED(session, err);
    FM_NEED(snapshot, err);
    pthread_mutex_lock(&session->model->turn);
    fm_status status = load(session, snapshot, bytes, err);
    pthread_mutex_unlock(&session->model->turn);
    return status;
}
