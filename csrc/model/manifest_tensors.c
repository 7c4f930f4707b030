/* The manifest's body: where each resident tensor and each expert lies. */
#include "model/manifest_lines.h"

#include <stdlib.h>
#include <string.h>

#define TENSORS 4000000

static const char *const block_words[3] = {"weight", "scales", "biases"};

/* Room for one more item in a growing array. */
static fm_status more_room(void *array, int32_t used, int32_t *room, size_t size, fm_error *err)
{
    void *old;
    memcpy(&old, array, sizeof old); /* array points at a pointer of any type */
    if (used < *room) return FM_OK;
    int32_t now = *room ? *room * 2 : 64;
    void *bigger = realloc(old, (size_t)now * size);
    if (!bigger) return fm_fail(err, FM_MEMORY, "no memory for %d items", now);
    memcpy(array, &bigger, sizeof bigger);
    *room = now;
    return FM_OK;
}

static fm_status quant_field(fm_line *line, const char *key, fm_quant *out, fm_error *err)
{
    fm_span text;
    FM_TRY(fm_line_span(line, key, &text, err));
    fm_error why = {0};
    if (fm_quant_parse(text.at, text.length, out, &why) != FM_OK) return fm_line_fail(line, err, "%s: %s", key, why.message);
    return FM_OK;
}

/* ---- tensors ------------------------------------------------------------ */

fm_status fm_manifest_tensor_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    fm_manifest *m = r->out;
    fm_span name;
    fm_matrix_layout layout;

    if (m->tensors) FM_TRY(fm_manifest_end_tensor(r, err));
    if (m->tensors >= TENSORS) return fm_line_fail(line, err, "more than %d tensors", TENSORS);
    FM_TRY(more_room(&r->tensor, m->tensors, &r->tensor_room, sizeof *r->tensor, err));
    fm_tensor_source *t = &r->tensor[m->tensors];
    memset(t, 0, sizeof *t);
    t->line = line->number;
    FM_TRY(fm_line_span(line, "name", &name, err));
    FM_TRY(fm_arena_text(&m->arena, name.at, name.length, &t->name, err));
    FM_TRY(quant_field(line, "quant", &t->quant, err));
    FM_TRY(fm_line_i32(line, "rows", 1, INT32_MAX, &t->rows, err));
    FM_TRY(fm_line_i32(line, "cols", 1, INT32_MAX, &t->cols, err));
    FM_TRY(fm_line_i32_or(line, "add", 0, 1, 0, &t->add, err));
    fm_error why = {0};
    if (fm_matrix_measure(t->quant, t->rows, t->cols, &layout, &why) != FM_OK)
        return fm_line_fail(line, err, "tensor %s: %s", t->name, why.message);
    for (int32_t i = 0; i < 3; i++) r->blocks_seen[i] = 0;
    m->tensors++;
    return FM_OK;
}

fm_status fm_manifest_blocks_line(fm_manifest_reader *r, fm_line *line, int32_t kind, fm_error *err)
{
    fm_manifest *m = r->out;
    fm_blocks b;
    fm_matrix_layout layout;

    if (!m->tensors) return fm_line_fail(line, err, "%s before any tensor", block_words[kind]);
    const fm_tensor_source *t = &r->tensor[m->tensors - 1];
    if (kind && t->quant.kind != FM_AFFINE)
        return fm_line_fail(line, err, "tensor %s has no %s in its format", t->name, block_words[kind]);
    if (!m->files) return fm_line_fail(line, err, "no files are named");

    FM_TRY(fm_line_i32(line, "file", 0, m->files - 1, &b.file, err));
    FM_TRY(fm_line_u64(line, "at", 0, INT64_MAX, &b.at, err));
    FM_TRY(fm_line_i32(line, "rows", 1, t->rows, &b.rows, err));
    FM_TRY(fm_line_i32_or(line, "count", 1, t->rows, 1, &b.count, err));
    FM_TRY(fm_matrix_measure(t->quant, t->rows, t->cols, &layout, err));
    uint64_t row_bytes = kind ? layout.scale_row_bytes : layout.row_bytes;
    uint64_t block_bytes = row_bytes * (uint64_t)b.rows;
    FM_TRY(fm_line_u64_or(line, "stride", block_bytes, INT64_MAX, block_bytes, &b.stride, err));
    if ((int64_t)b.rows * b.count > t->rows)
        return fm_line_fail(line, err, "%d blocks of %d rows are more than tensor %s has", b.count, b.rows, t->name);
    uint64_t span;
    if (__builtin_mul_overflow(b.stride, (uint64_t)(b.count - 1), &span) || __builtin_add_overflow(span, block_bytes, &span))
        return fm_line_fail(line, err, "blocks span more than a file can hold");
    FM_TRY(fm_manifest_in_file(r, line, b.file, b.at, span, err));

    FM_TRY(more_room(&r->blocks[kind], r->blocks_seen[kind], &r->blocks_room[kind], sizeof b, err));
    r->blocks[kind][r->blocks_seen[kind]++] = b;
    return FM_OK;
}

/* The blocks seen since the last tensor line are its own and must be its rows. */
fm_status fm_manifest_end_tensor(fm_manifest_reader *r, fm_error *err)
{
    fm_manifest *m = r->out;
    fm_tensor_source *t = &r->tensor[m->tensors - 1];
    fm_block_list *list[3] = {&t->weight, &t->scales, &t->biases};

    for (int32_t kind = 0; kind < 3; kind++) {
        int64_t rows = 0, want = kind && t->quant.kind != FM_AFFINE ? 0 : t->rows;
        int32_t n = r->blocks_seen[kind];
        for (int32_t i = 0; i < n; i++) rows += (int64_t)r->blocks[kind][i].rows * r->blocks[kind][i].count;
        if (rows != want)
            return fm_fail(err, FM_FORMAT, "manifest line %d: tensor %s has %d rows, its %s lines give %lld", t->line, t->name,
                           t->rows, block_words[kind], (long long)rows);
        FM_TRY(fm_arena_take(&m->arena, (size_t)n, sizeof(fm_blocks), &list[kind]->block, err));
        if (n) memcpy(list[kind]->block, r->blocks[kind], (size_t)n * sizeof(fm_blocks));
        list[kind]->n = n;
        r->blocks_seen[kind] = 0;
    }
    return FM_OK;
}

/* ---- experts ------------------------------------------------------------ */

static const char *const part_words[10] = {
    "gate.weight", "gate.scales", "gate.biases", "up.weight",   "up.scales",
    "up.biases",   "down.weight", "down.scales", "down.biases", "record",
};

/* Where part p of an expert lies in the slot, and how long it is; 0 bytes: the format has no such part. */
static fm_status place_parts(fm_expert_shape *s, uint32_t at[10], uint32_t bytes[10], fm_error *err)
{
    const fm_quant quant[3] = {s->gate_quant, s->up_quant, s->down_quant};
    const int32_t rows[3] = {s->intermediate_size, s->intermediate_size, s->hidden_size};
    const int32_t cols[3] = {s->hidden_size, s->hidden_size, s->intermediate_size};
    uint32_t *const start[3] = {&s->gate_at, &s->up_at, &s->down_at};
    size_t end = 0;

    for (int32_t i = 0; i < 3; i++) {
        fm_matrix_layout l;
        FM_TRY(fm_matrix_measure(quant[i], rows[i], cols[i], &l, err));
        if (end + l.bytes > INT32_MAX) return fm_fail(err, FM_FORMAT, "an expert larger than 2 GiB");
        *start[i] = (uint32_t)end;
        at[3 * i] = (uint32_t)end;
        at[3 * i + 1] = (uint32_t)(end + l.scales_at);
        at[3 * i + 2] = (uint32_t)(end + l.biases_at);
        bytes[3 * i] = (uint32_t)l.weight_bytes;
        bytes[3 * i + 1] = bytes[3 * i + 2] = (uint32_t)l.scale_bytes;
        end += l.bytes;
    }
    s->bytes = (uint32_t)end;
    at[9] = 0;
    bytes[9] = s->bytes;
    return FM_OK;
}

/* What must be finite: scales and biases, or the weights of a float format. */
static fm_status finite_runs(fm_manifest *m, const fm_expert_shape *s, const uint32_t at[10], const uint32_t bytes[10],
                             fm_expert_layer *e, fm_error *err)
{
    const fm_quant quant[3] = {s->gate_quant, s->up_quant, s->down_quant};
    fm_finite_run *run;
    int32_t n = 0;

    FM_TRY(fm_arena_take(&m->arena, 6, sizeof *run, &run, err));
    for (int32_t i = 0; i < 3; i++) {
        bool affine = quant[i].kind == FM_AFFINE;
        fm_number kind = affine ? quant[i].scale : quant[i].kind;
        for (int32_t p = affine ? 1 : 0; p < (affine ? 3 : 1); p++)
            run[n++] = (fm_finite_run){kind, at[3 * i + p], bytes[3 * i + p] / (uint32_t)fm_number_size(kind)};
    }
    e->run = run;
    e->runs = n;
    return FM_OK;
}

fm_status fm_manifest_experts_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    fm_manifest *m = r->out;
    uint32_t at[10], bytes[10];
    int32_t layer;

    FM_TRY(fm_manifest_end_experts(r, err));
    FM_TRY(fm_line_i32(line, "layer", 0, m->spec.layers - 1, &layer, err));
    fm_layer_spec *l = &r->layer[layer];
    fm_expert_layer *e = &m->experts[layer];
    if (l->ffn != FM_FFN_MOE) return fm_line_fail(line, err, "layer %d is dense", layer);
    if (e->experts) return fm_line_fail(line, err, "layer %d has its experts already", layer);

    FM_TRY(quant_field(line, "gate", &l->expert.gate_quant, err));
    FM_TRY(quant_field(line, "up", &l->expert.up_quant, err));
    FM_TRY(quant_field(line, "down", &l->expert.down_quant, err));
    fm_error why = {0};
    if (place_parts(&l->expert, at, bytes, &why) != FM_OK) return fm_line_fail(line, err, "%s", why.message);
    FM_TRY(finite_runs(m, &l->expert, at, bytes, e, err));
    e->experts = l->route.experts;
    e->bytes = l->expert.bytes;

    r->expert_layer = layer;
    r->parts_seen = 0;
    r->record = 0;
    r->xxh3 = NULL;
    r->sums_seen = 0;
    memset(r->each, 0, sizeof r->each);
    memset(r->seen, 0, sizeof r->seen);
    return FM_OK;
}

/* The part a line names: its number, or 9 for `record`. */
static fm_status part_field(fm_manifest_reader *r, fm_line *line, int32_t *out, fm_error *err)
{
    fm_span word;
    FM_TRY(fm_line_span(line, "part", &word, err));
    for (int32_t p = 0; p < 10; p++)
        if (fm_span_is(word, part_words[p])) {
            if (p == 9) r->record = 1;
            *out = p;
            return FM_OK;
        }
    return fm_line_fail(line, err, "unknown part \"%.*s\"", (int)word.length, word.at);
}

/* Parts are collected in seen order. */
static fm_status add_part(fm_manifest_reader *r, fm_line *line, int32_t p, fm_expert_part part, fm_error *err)
{
    fm_expert_layer *e = &r->out->experts[r->expert_layer];
    fm_expert_part *list;

    if (r->parts_seen & 1u << p) return fm_line_fail(line, err, "part %s is given twice", part_words[p]);
    if (!e->part) {
        FM_TRY(fm_arena_take(&r->out->arena, 10, sizeof *list, &list, err));
        e->part = list;
    }
    list = (fm_expert_part *)e->part;
    list[e->parts++] = part;
    r->parts_seen |= 1u << p;
    return FM_OK;
}

static fm_status irregular(fm_manifest_reader *r, fm_line *line, int32_t p, fm_expert_part part, uint64_t base, fm_error *err)
{
    fm_manifest *m = r->out;
    int32_t n = m->experts[r->expert_layer].experts, expert;

    FM_TRY(fm_line_i32(line, "expert", 0, n - 1, &expert, err));
    FM_TRY(fm_manifest_in_file(r, line, part.file, base, part.bytes, err));
    if (!r->each[p]) {
        FM_TRY(fm_arena_take(&m->arena, (size_t)n, sizeof *r->each[p], &r->each[p], err));
        FM_TRY(fm_arena_take(&m->arena, (size_t)n, 1, &r->seen[p], err));
        part.each = r->each[p];
        FM_TRY(add_part(r, line, p, part, err));
    }
    if (r->seen[p][expert]) return fm_line_fail(line, err, "part %s of expert %d is given twice", part_words[p], expert);
    r->seen[p][expert] = 1;
    r->each[p][expert] = (fm_extent){part.file, base};
    return FM_OK;
}

fm_status fm_manifest_extent_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    fm_manifest *m = r->out;
    fm_expert_part part = {0};
    uint32_t at[10], bytes[10];
    int32_t layer, p = 0;
    uint64_t span;
    bool one;

    if (r->expert_layer < 0) return fm_line_fail(line, err, "extent before its experts line");
    FM_TRY(fm_line_i32(line, "layer", r->expert_layer, r->expert_layer, &layer, err));
    fm_expert_shape shape = r->layer[layer].expert;
    FM_TRY(part_field(r, line, &p, err));
    FM_TRY(place_parts(&shape, at, bytes, err));
    if (!bytes[p]) return fm_line_fail(line, err, "this format has no part %s", part_words[p]);
    FM_TRY(fm_line_i32(line, "file", 0, m->files - 1, &part.file, err));
    FM_TRY(fm_line_u64(line, "base", 0, INT64_MAX, &part.base, err));
    part.at = at[p];
    part.bytes = bytes[p];

    FM_TRY(fm_line_has(line, "expert", &one));
    if (one) return irregular(r, line, p, part, part.base, err);

    FM_TRY(fm_line_u64(line, "stride", part.bytes, INT64_MAX, &part.stride, err));
    if (__builtin_mul_overflow(part.stride, (uint64_t)(m->experts[layer].experts - 1), &span) ||
        __builtin_add_overflow(span, part.bytes, &span))
        return fm_line_fail(line, err, "the experts span more than a file can hold");
    FM_TRY(fm_manifest_in_file(r, line, part.file, part.base, span, err));
    return add_part(r, line, p, part, err);
}

fm_status fm_manifest_checksum_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    int32_t layer, first, got;

    if (r->expert_layer < 0) return fm_line_fail(line, err, "checksum before its experts line");
    fm_expert_layer *e = &r->out->experts[r->expert_layer];
    FM_TRY(fm_line_i32(line, "layer", r->expert_layer, r->expert_layer, &layer, err));
    FM_TRY(fm_line_i32(line, "first", r->sums_seen, r->sums_seen, &first, err));
    if (!r->xxh3) FM_TRY(fm_arena_take(&r->out->arena, (size_t)e->experts, sizeof *r->xxh3, &r->xxh3, err));
    FM_TRY(fm_line_hex64_list(line, "xxh3", e->experts - first, r->xxh3 + first, &got, err));
    r->sums_seen += got;
    return FM_OK;
}

/* The layer whose extents were being read must have every part of every expert. */
fm_status fm_manifest_end_experts(fm_manifest_reader *r, fm_error *err)
{
    uint32_t at[10], bytes[10], want = 0;
    int32_t layer = r->expert_layer;

    if (layer < 0) return FM_OK;
    fm_expert_layer *e = &r->out->experts[layer];
    fm_expert_shape shape = r->layer[layer].expert;
    FM_TRY(place_parts(&shape, at, bytes, err));
    for (int32_t p = 0; p < 9; p++)
        if (bytes[p]) want |= 1u << p;
    if (r->record) want = 1u << 9;

    for (int32_t p = 0; p < 10; p++) {
        if ((want ^ r->parts_seen) & 1u << p)
            return fm_fail(err, FM_FORMAT, "manifest: layer %d %s the part %s of its experts", layer,
                           want & 1u << p ? "lacks" : "must not have", part_words[p]);
        if (!(want & 1u << p) || !r->each[p]) continue;
        for (int32_t x = 0; x < e->experts; x++)
            if (!r->seen[p][x])
                return fm_fail(err, FM_FORMAT, "manifest: layer %d lacks the part %s of expert %d", layer, part_words[p], x);
    }
    if (r->xxh3 && r->sums_seen != e->experts)
        return fm_fail(err, FM_FORMAT, "manifest: layer %d has %d checksums for %d experts", layer, r->sums_seen, e->experts);
    e->xxh3 = r->xxh3;
    r->expert_layer = -1;
    return FM_OK;
}
