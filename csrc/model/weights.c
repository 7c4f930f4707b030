/* The resident tensors: planned against the spec, then read once. */
#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* ---- what there must be ----------------------------------------------------- */

typedef struct {
    fm_weights *w;
    int32_t layer; /* -1: outside any */
} list;

static void want(list *l, fm_tensor *to, const char *name, int64_t rows, int64_t cols, int32_t small)
{
    fm_wanted *t = &l->w->wanted[l->w->count++];
    if (l->layer < 0) snprintf(t->name, sizeof t->name, "%s", name);
    else snprintf(t->name, sizeof t->name, "layers.%d.%s", l->layer, name);
    t->rows = (int32_t)rows; /* fm_spec_check keeps every product in range */
    t->cols = (int32_t)cols;
    t->small = small;
    t->to = to;
}

static void want_attention(list *l, const fm_layer_spec *s, fm_layer_weights *w, int32_t hidden)
{
    const fm_attention_shape *a = &s->attention;
    int32_t q = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim;
    want(l, &w->q, "q", q, hidden, 0);
    if (s->gated) want(l, &w->q_gate, "q_gate", q, hidden, 0);
    want(l, &w->k, "k", kv, hidden, 0);
    want(l, &w->v, "v", kv, hidden, 0);
    want(l, &w->o, "o", hidden, q, 0);
    if (!s->qk_norm) return;
    want(l, &w->q_norm, "q_norm", 1, a->head_dim, 1);
    want(l, &w->k_norm, "k_norm", 1, a->head_dim, 1);
}

static void want_delta(list *l, const fm_layer_spec *s, fm_layer_weights *w, int32_t hidden)
{
    const fm_delta_shape *d = &s->delta;
    int32_t values = d->value_heads * d->value_dim, width = 2 * d->key_heads * d->key_dim + values;
    want(l, &w->qkv, "qkv", width, hidden, 0);
    want(l, &w->z, "z", values, hidden, 0);
    want(l, &w->b, "b", d->value_heads, hidden, 0);
    want(l, &w->a, "a", d->value_heads, hidden, 0);
    want(l, &w->conv, "conv", width, d->conv_taps, 1);
    want(l, &w->a_log, "a_log", 1, d->value_heads, 1);
    want(l, &w->dt_bias, "dt_bias", 1, d->value_heads, 1);
    want(l, &w->delta_norm, "delta_norm", 1, d->value_dim, 1);
    want(l, &w->out, "out", hidden, values, 0);
}

static void want_moe(list *l, const fm_layer_spec *s, fm_layer_weights *w, int32_t hidden)
{
    int32_t shared = s->shared_intermediate_size;
    want(l, &w->router, "router", s->route.experts, hidden, 0);
    if (!shared) return;
    want(l, &w->shared_score, "shared_score", 1, hidden, 0);
    want(l, &w->shared_gate, "shared_gate", shared, hidden, 0);
    want(l, &w->shared_up, "shared_up", shared, hidden, 0);
    want(l, &w->shared_down, "shared_down", hidden, shared, 0);
}

static void want_dense(list *l, const fm_layer_spec *s, fm_layer_weights *w, int32_t hidden)
{
    want(l, &w->gate, "gate", s->intermediate_size, hidden, 0);
    want(l, &w->up, "up", s->intermediate_size, hidden, 0);
    want(l, &w->down, "down", hidden, s->intermediate_size, 0);
}

static void want_all(fm_weights *w, const fm_model_spec *m)
{
    list l = {w, -1};
    want(&l, &w->embed, "embed", m->vocab_size, m->hidden_size, 0);
    want(&l, &w->norm, "norm", 1, m->hidden_size, 1);
    if (!m->tied) want(&l, &w->lm_head, "lm_head", m->vocab_size, m->hidden_size, 0);

    for (l.layer = 0; l.layer < m->layers; l.layer++) {
        const fm_layer_spec *s = &m->layer[l.layer];
        fm_layer_weights *t = &w->layer[l.layer];
        want(&l, &t->mixer_norm, "mixer_norm", 1, m->hidden_size, 1);
        want(&l, &t->ffn_norm, "ffn_norm", 1, m->hidden_size, 1);
        if (s->mixer == FM_MIXER_ATTENTION) want_attention(&l, s, t, m->hidden_size);
        else want_delta(&l, s, t, m->hidden_size);
        if (s->ffn == FM_FFN_MOE) want_moe(&l, s, t, m->hidden_size);
        else want_dense(&l, s, t, m->hidden_size);
    }
}

/* ---- matched with what there is ------------------------------------------------ */

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const fm_tensor_source *const *)a)->name, (*(const fm_tensor_source *const *)b)->name);
}

static int name_and_source(const void *name, const void *source)
{
    return strcmp(name, (*(const fm_tensor_source *const *)source)->name);
}

static fm_status match(fm_weights *w, const fm_manifest *m, const fm_tensor_source **sorted, uint8_t *used, fm_error *err)
{
    for (int32_t i = 0; i < w->count; i++) {
        fm_wanted *t = &w->wanted[i];
        const fm_tensor_source **hit = bsearch(t->name, sorted, (size_t)m->tensors, sizeof *sorted, name_and_source);
        if (!hit) return fm_fail(err, FM_FORMAT, "manifest: tensor %s is missing", t->name);
        t->from = *hit;
        used[hit - sorted] = 1;
        if (t->from->rows != t->rows || t->from->cols != t->cols)
            return fm_fail(err, FM_FORMAT, "manifest line %d: tensor %s is %d x %d, but must be %d x %d", t->from->line, t->name,
                           t->from->rows, t->from->cols, t->rows, t->cols);
        if (t->small && t->from->quant.kind == FM_AFFINE)
            return fm_fail(err, FM_FORMAT, "manifest line %d: tensor %s must not be quantised", t->from->line, t->name);
        if (t->from->add && !t->small)
            return fm_fail(err, FM_FORMAT, "manifest line %d: add=1 is for norms, not for %s", t->from->line, t->name);
    }
    for (int32_t i = 0; i < m->tensors; i++)
        if (!used[i])
            return fm_fail(err, FM_FORMAT, "manifest line %d: tensor %s is not used by this model, or is given twice",
                           sorted[i]->line, sorted[i]->name);
    return FM_OK;
}

fm_status fm_weights_plan(const fm_manifest *manifest, fm_weights *w, fm_error *err)
{
    fm_status status;
    const fm_model_spec *spec = &manifest->spec;
    const fm_tensor_source **sorted;
    uint8_t *used;
    fm_matrix_layout layout;

    *w = (fm_weights){0};
    FM_TRY_UNDO(fm_arena_take(&w->arena, (size_t)spec->layers, sizeof *w->layer, &w->layer, err));
    FM_TRY_UNDO(fm_arena_take(&w->arena, (size_t)spec->layers * 18 + 3, sizeof *w->wanted, &w->wanted, err));
    FM_TRY_UNDO(fm_arena_take(&w->arena, (size_t)manifest->tensors, sizeof *sorted, &sorted, err));
    FM_TRY_UNDO(fm_arena_take(&w->arena, (size_t)manifest->tensors, 1, &used, err));
    want_all(w, spec);
    for (int32_t i = 0; i < manifest->tensors; i++) sorted[i] = &manifest->tensor[i];
    qsort(sorted, (size_t)manifest->tensors, sizeof *sorted, by_name);
    FM_TRY_UNDO(match(w, manifest, sorted, used, err));

    for (int32_t i = 0; i < w->count; i++) {
        fm_wanted *t = &w->wanted[i];
        fm_quant quant = t->small ? (fm_quant){.kind = FM_F32} : t->from->quant;
        FM_TRY_UNDO(fm_matrix_measure(quant, t->rows, t->cols, &layout, err));
        t->at = w->bytes;
        *t->to = (fm_tensor){NULL, t->at, t->rows, t->cols, quant};
        w->bytes += layout.bytes;
    }
    w->bytes += FM_MATRIX_ALIGN;
    return FM_OK;
undo:
    fm_arena_free(&w->arena);
    *w = (fm_weights){0};
    return status;
}

/* ---- read ------------------------------------------------------------------------ */

#define PIECE ((size_t)32 << 20) /* bytes read, or numbers looked at, before somebody may cancel */

typedef struct {
    const fm_file *files;
    const volatile int32_t *cancel; /* NULL: nobody does */
} source;

static fm_status may_go_on(const source *from, fm_error *err)
{
    return from->cancel && *from->cancel ? fm_fail(err, FM_CANCELLED, "opening the model was cancelled") : FM_OK;
}

static fm_status read_run(const source *from, int32_t file, uint64_t at, size_t bytes, uint8_t *to, fm_error *err)
{
    for (size_t done = 0; done < bytes; done += PIECE) {
        FM_TRY(may_go_on(from, err));
        FM_TRY(fm_read_all(&from->files[file], to + done, bytes - done < PIECE ? bytes - done : PIECE, at + done, err));
    }
    return FM_OK;
}

static fm_status read_blocks(const fm_block_list *list, size_t row_bytes, const source *from, uint8_t *to, fm_error *err)
{
    for (int32_t i = 0; i < list->n; i++) {
        const fm_blocks *b = &list->block[i];
        size_t bytes = row_bytes * (size_t)b->rows;
        int32_t count = b->count;
        if (b->stride == bytes) { /* one run */
            bytes *= (size_t)count;
            count = 1;
        }
        for (int32_t j = 0; j < count; j++, to += bytes)
            FM_TRY(read_run(from, b->file, b->at + b->stride * (uint64_t)j, bytes, to, err));
    }
    return FM_OK;
}

static fm_status check_finite(const fm_wanted *t, fm_number kind, const uint8_t *at, size_t n, const source *from, fm_error *err)
{
    for (size_t done = 0, where; done < n; done += PIECE) {
        FM_TRY(may_go_on(from, err));
        size_t some = n - done < PIECE ? n - done : PIECE;
        if (!fm_numbers_finite(kind, at + done * fm_number_size(kind), some, &where))
            return fm_fail(err, FM_NUMERIC, "tensor %s (%s): number %zu is NaN or infinite", t->name,
                           from->files[t->from->weight.block[0].file].path, done + where);
    }
    return FM_OK;
}

static fm_status load_small(const fm_wanted *t, const source *from, float *to, fm_error *err)
{
    size_t n = (size_t)t->rows * (size_t)t->cols, size = fm_number_size(t->from->quant.kind);
    uint8_t *raw = malloc(n * size);
    if (!raw) return fm_fail(err, FM_MEMORY, "no memory for tensor %s", t->name);

    fm_status status = read_blocks(&t->from->weight, (size_t)t->cols * size, from, raw, err);
    if (status == FM_OK) {
        fm_numbers_decode(t->from->quant.kind, raw, (int32_t)n, to);
        if (t->from->add)
            for (size_t i = 0; i < n; i++) to[i] += 1;
        status = check_finite(t, FM_F32, (const uint8_t *)to, n, from, err);
    }
    free(raw);
    return status;
}

static fm_status load_matrix(const fm_wanted *t, const source *from, uint8_t *to, fm_error *err)
{
    fm_quant quant = t->from->quant;
    fm_matrix_layout l;
    size_t cells = (size_t)t->rows * (size_t)t->cols;

    FM_TRY(fm_matrix_measure(quant, t->rows, t->cols, &l, err));
    FM_TRY(read_blocks(&t->from->weight, l.row_bytes, from, to, err));
    if (quant.kind != FM_AFFINE) return check_finite(t, quant.kind, to, cells, from, err);

    FM_TRY(read_blocks(&t->from->scales, l.scale_row_bytes, from, to + l.scales_at, err));
    FM_TRY(read_blocks(&t->from->biases, l.scale_row_bytes, from, to + l.biases_at, err));
    cells /= (size_t)quant.group;
    FM_TRY(check_finite(t, quant.scale, to + l.scales_at, cells, from, err));
    return check_finite(t, quant.scale, to + l.biases_at, cells, from, err);
}

fm_status fm_weights_load(fm_weights *w, fm_backend *backend, const fm_file *files, const volatile int32_t *cancel, fm_error *err)
{
    const source from = {files, cancel};
    FM_TRY(backend->ops->alloc(backend, w->bytes, FM_SHARED, &w->buf, err));
    uint8_t *host = backend->ops->host(w->buf);

    for (int32_t i = 0; i < w->count; i++) {
        const fm_wanted *t = &w->wanted[i];
        t->to->buf = w->buf;
        if (t->small) FM_TRY(load_small(t, &from, (float *)(void *)(host + t->at), err));
        else FM_TRY(load_matrix(t, &from, host + t->at, err));
    }
    return FM_OK;
}

void fm_weights_free(fm_weights *weights, fm_backend *backend)
{
    if (weights->buf) backend->ops->release(backend, weights->buf);
    fm_arena_free(&weights->arena);
    memset(weights, 0, sizeof *weights);
}
