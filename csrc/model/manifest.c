/* The manifest's head: version, model, files, ropes, layers; and the order of its lines. */
#include "model/manifest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/manifest_lines.h"

#define LARGEST 16777216
#define FILES 100000
#define LAYERS 65536

enum { STAGE_START, STAGE_MODEL, STAGE_FILES, STAGE_ROPES, STAGE_LAYERS, STAGE_TENSORS, STAGE_EXPERTS };

fm_status fm_manifest_in_file(const fm_manifest_reader *r, const fm_line *line, int32_t file, uint64_t at, uint64_t bytes,
                              fm_error *err)
{
    uint64_t size = r->out->file_bytes[file], end;
    if (__builtin_add_overflow(at, bytes, &end) || end > size)
        return fm_line_fail(line, err, "bytes %llu .. %llu+%llu lie outside %s, which has %llu", (unsigned long long)at,
                            (unsigned long long)at, (unsigned long long)bytes, r->out->path[file], (unsigned long long)size);
    return FM_OK;
}

static fm_status version_line(fm_line *line, fm_error *err)
{
    int32_t version;
    FM_TRY(fm_line_i32(line, "version", 0, 1000000, &version, err));
    if (version != 1) return fm_fail(err, FM_UNSUPPORTED, "manifest version %d; this flashmoe reads version 1", version);
    return FM_OK;
}

static fm_status model_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    fm_manifest *m = r->out;
    fm_model_spec *s = &m->spec;
    double eps;

    FM_TRY(fm_line_i32(line, "hidden_size", 1, LARGEST, &s->hidden_size, err));
    FM_TRY(fm_line_i32(line, "vocab_size", 1, LARGEST, &s->vocab_size, err));
    FM_TRY(fm_line_i32(line, "layers", 1, LAYERS, &s->layers, err));
    FM_TRY(fm_line_f64(line, "norm_eps", &eps, err));
    FM_TRY(fm_line_i32(line, "max_positions", 1, 1 << 30, &s->max_positions, err));
    FM_TRY(fm_line_i32_or(line, "tied", 0, 1, 0, &s->tied, err));
    s->norm_eps = (float)eps;

    FM_TRY(fm_arena_take(&m->arena, (size_t)s->layers, sizeof *r->layer, &r->layer, err));
    FM_TRY(fm_arena_take(&m->arena, (size_t)s->layers, sizeof *m->experts, &m->experts, err));
    FM_TRY(fm_arena_take(&m->arena, (size_t)s->layers + 1, sizeof *r->rope, &r->rope, err));
    s->layer = r->layer;
    s->rope = r->rope;
    return FM_OK;
}

/* Room for one more file. */
static fm_status more_files(fm_manifest_reader *r, fm_error *err)
{
    fm_manifest *m = r->out;
    int32_t room = r->file_room ? 2 * r->file_room : 16;
    char **path;
    uint64_t *bytes;

    if (m->files < r->file_room) return FM_OK;
    FM_TRY(fm_arena_take(&m->arena, (size_t)room, sizeof *path, &path, err));
    FM_TRY(fm_arena_take(&m->arena, (size_t)room, sizeof *bytes, &bytes, err));
    if (m->files) memcpy(path, m->path, (size_t)m->files * sizeof *path);
    if (m->files) memcpy(bytes, m->file_bytes, (size_t)m->files * sizeof *bytes);
    m->path = path;
    m->file_bytes = bytes;
    r->file_room = room;
    return FM_OK;
}

static fm_status file_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    fm_manifest *m = r->out;
    int32_t index;
    fm_span path, sum;
    bool has_sum;

    FM_TRY(fm_line_i32(line, "index", m->files, m->files, &index, err));
    if (index >= FILES) return fm_line_fail(line, err, "more than %d files", FILES);
    FM_TRY(more_files(r, err));
    FM_TRY(fm_line_span(line, "path", &path, err));
    FM_TRY(fm_line_u64(line, "bytes", 0, INT64_MAX, &m->file_bytes[index], err));
    FM_TRY(fm_line_has(line, "sha256", &has_sum));
    if (has_sum) FM_TRY(fm_line_span(line, "sha256", &sum, err)); /* `flashmoe verify` reads it */
    FM_TRY(fm_arena_text(&m->arena, path.at, path.length, &m->path[index], err));
    m->files++;
    return FM_OK;
}

static fm_status rope_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    fm_manifest *m = r->out;
    int32_t index;
    double *inv_freq;

    if (m->spec.ropes > m->spec.layers) return fm_line_fail(line, err, "more ropes than layers");
    fm_rope_spec *rope = &r->rope[m->spec.ropes];
    FM_TRY(fm_line_i32(line, "index", m->spec.ropes, m->spec.ropes, &index, err));
    FM_TRY(fm_line_i32(line, "dims", 2, 4096, &rope->dims, err));
    if (rope->dims % 2) return fm_line_fail(line, err, "dims=%d is odd", rope->dims);
    FM_TRY(fm_line_f64(line, "scale", &rope->scale, err));
    FM_TRY(fm_arena_take(&m->arena, (size_t)rope->dims / 2, sizeof *inv_freq, &inv_freq, err));
    FM_TRY(fm_line_f64_list(line, "inv_freq", rope->dims / 2, inv_freq, err));
    rope->inv_freq = inv_freq;
    m->spec.ropes++;
    return FM_OK;
}

/* One of two words. */
static fm_status choice(fm_line *line, const char *key, const char *no, const char *yes, int32_t *out, fm_error *err)
{
    fm_span word;
    FM_TRY(fm_line_span(line, key, &word, err));
    if (fm_span_is(word, yes)) *out = 1;
    else if (fm_span_is(word, no)) *out = 0;
    else return fm_line_fail(line, err, "%s is neither %s nor %s", key, no, yes);
    return FM_OK;
}

static fm_status attention_fields(fm_line *line, fm_layer_spec *l, fm_error *err)
{
    double scale;
    FM_TRY(fm_line_i32(line, "heads", 1, 65536, &l->attention.heads, err));
    FM_TRY(fm_line_i32(line, "kv_heads", 1, 65536, &l->attention.kv_heads, err));
    FM_TRY(fm_line_i32(line, "head_dim", 1, 4096, &l->attention.head_dim, err));
    FM_TRY(fm_line_i32(line, "rope", 0, LAYERS, &l->rope, err));
    FM_TRY(fm_line_f64(line, "scale", &scale, err));
    FM_TRY(fm_line_i32_or(line, "gated", 0, 1, 0, &l->gated, err));
    FM_TRY(fm_line_i32_or(line, "qk_norm", 0, 1, 0, &l->qk_norm, err));
    l->attention.scale = (float)scale;
    return FM_OK;
}

static fm_status delta_fields(fm_line *line, fm_delta_shape *d, fm_error *err)
{
    FM_TRY(fm_line_i32(line, "key_heads", 1, 65536, &d->key_heads, err));
    FM_TRY(fm_line_i32(line, "value_heads", 1, 65536, &d->value_heads, err));
    FM_TRY(fm_line_i32(line, "key_dim", 1, 1024, &d->key_dim, err));
    FM_TRY(fm_line_i32(line, "value_dim", 1, 1024, &d->value_dim, err));
    return fm_line_i32(line, "conv_taps", 1, 64, &d->conv_taps, err);
}

static fm_status layer_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    fm_model_spec *s = &r->out->spec;
    int32_t index, is_delta = 0, is_moe = 0;

    FM_TRY(fm_line_i32(line, "index", r->layers_seen, r->layers_seen, &index, err));
    if (index >= s->layers) return fm_line_fail(line, err, "more layers than the model line's %d", s->layers);
    fm_layer_spec *l = &r->layer[index];

    FM_TRY(choice(line, "mixer", "attention", "delta", &is_delta, err));
    l->mixer = is_delta ? FM_MIXER_DELTA : FM_MIXER_ATTENTION;
    if (is_delta) FM_TRY(delta_fields(line, &l->delta, err));
    else FM_TRY(attention_fields(line, l, err));

    FM_TRY(choice(line, "ffn", "dense", "moe", &is_moe, err));
    l->ffn = is_moe ? FM_FFN_MOE : FM_FFN_DENSE;
    FM_TRY(fm_line_i32(line, "intermediate_size", 1, LARGEST, &l->intermediate_size, err));
    if (is_moe) {
        fm_route_spec *route = &l->route;
        FM_TRY(fm_line_i32(line, "experts", 1, 65536, &route->experts, err));
        FM_TRY(fm_line_i32(line, "experts_per_token", 1, 65536, &route->native_k, err));
        FM_TRY(fm_line_i32(line, "renormalise", 0, 1, &route->renormalise, err));
        FM_TRY(fm_line_i32_or(line, "shared_intermediate_size", 0, LARGEST, 0, &l->shared_intermediate_size, err));
        route->k = r->experts_per_token ? r->experts_per_token : route->native_k;
        l->expert.hidden_size = s->hidden_size;
        l->expert.intermediate_size = l->intermediate_size;
    }
    r->layers_seen++;
    return FM_OK;
}

/* The head is complete: from here on every number may size an array. */
static fm_status end_head(fm_manifest_reader *r, const fm_line *line, fm_error *err)
{
    if (r->layers_seen != r->out->spec.layers)
        return fm_line_fail(line, err, "%d of %d layers are described", r->layers_seen, r->out->spec.layers);
    return fm_spec_check(&r->out->spec, err);
}

/* Lines come in stages and never go back. */
static fm_status enter(fm_manifest_reader *r, const fm_line *line, int32_t stage, fm_error *err)
{
    if (stage < r->stage || (stage == STAGE_MODEL && r->stage != STAGE_START) || (stage > STAGE_MODEL && r->stage < STAGE_MODEL))
        return fm_line_fail(line, err, "%.*s does not belong here", (int)line->keyword.length, line->keyword.at);
    if (stage >= STAGE_TENSORS && r->stage < STAGE_TENSORS) FM_TRY(end_head(r, line, err));
    if (stage == STAGE_EXPERTS && r->stage == STAGE_TENSORS) FM_TRY(fm_manifest_end_tensor(r, err));
    r->stage = stage;
    return FM_OK;
}

static fm_status one_line(fm_manifest_reader *r, fm_line *line, fm_error *err)
{
    static const struct {
        const char *word;
        int32_t stage;
        fm_status (*read)(fm_manifest_reader *, fm_line *, fm_error *);
    } kinds[] = {
        {"model", STAGE_MODEL, model_line},
        {"file", STAGE_FILES, file_line},
        {"rope", STAGE_ROPES, rope_line},
        {"layer", STAGE_LAYERS, layer_line},
        {"tensor", STAGE_TENSORS, fm_manifest_tensor_line},
        {"experts", STAGE_EXPERTS, fm_manifest_experts_line},
        {"extent", STAGE_EXPERTS, fm_manifest_extent_line},
        {"checksum", STAGE_EXPERTS, fm_manifest_checksum_line},
    };
    static const char *const blocks[] = {"weight", "scales", "biases"};

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (fm_span_is(line->keyword, kinds[i].word)) {
            FM_TRY(enter(r, line, kinds[i].stage, err));
            FM_TRY(kinds[i].read(r, line, err));
            return fm_line_done(line, err);
        }
    for (int32_t i = 0; i < 3; i++)
        if (fm_span_is(line->keyword, blocks[i])) {
            FM_TRY(enter(r, line, STAGE_TENSORS, err));
            FM_TRY(fm_manifest_blocks_line(r, line, i, err));
            return fm_line_done(line, err);
        }
    return fm_line_fail(line, err, "unknown word \"%.*s\"", (int)line->keyword.length, line->keyword.at);
}

static fm_status read_all(fm_manifest_reader *r, const char *text, size_t length, fm_error *err)
{
    fm_text at = {.name = "manifest", .at = text, .end = text + length};
    fm_line line;
    bool more;

    FM_TRY(fm_text_next(&at, &line, &more, err));
    if (!more || !fm_span_is(line.keyword, "flashmoe"))
        return fm_fail(err, FM_FORMAT, "manifest line 1: not a flashmoe manifest");
    FM_TRY(version_line(&line, err));
    FM_TRY(fm_line_done(&line, err));

    for (;;) {
        FM_TRY(fm_text_next(&at, &line, &more, err));
        if (!more) break;
        FM_TRY(one_line(r, &line, err));
    }
    if (!r->out->tensors) return fm_fail(err, FM_FORMAT, "manifest ends after line %d without any tensor", at.number);
    if (r->stage == STAGE_TENSORS) FM_TRY(fm_manifest_end_tensor(r, err));
    FM_TRY(fm_manifest_end_experts(r, err));

    for (int32_t i = 0; i < r->out->spec.layers; i++)
        if (r->layer[i].ffn == FM_FFN_MOE && r->out->experts[i].experts == 0)
            return fm_fail(err, FM_FORMAT, "manifest: layer %d has no experts lines", i);
    return FM_OK;
}

fm_status fm_manifest_parse(const char *text, size_t length, int32_t experts_per_token, fm_manifest *out, fm_error *err)
{
    fm_manifest m = {0};
    fm_manifest_reader r = {.out = &m, .experts_per_token = experts_per_token, .expert_layer = -1};
    fm_status status = read_all(&r, text, length, err);

    if (status == FM_OK) status = fm_arena_take(&m.arena, (size_t)m.tensors, sizeof *m.tensor, &m.tensor, err);
    if (status == FM_OK) memcpy(m.tensor, r.tensor, (size_t)m.tensors * sizeof *m.tensor);
    free(r.tensor);
    for (int32_t i = 0; i < 3; i++) free(r.blocks[i]);
    if (status != FM_OK) {
        fm_arena_free(&m.arena);
        return status;
    }
    *out = m;
    return FM_OK;
}

void fm_manifest_free(fm_manifest *manifest)
{
    fm_arena_free(&manifest->arena);
    memset(manifest, 0, sizeof *manifest);
}

const fm_tensor_source *fm_manifest_tensor(const fm_manifest *manifest, const char *name)
{
    for (int32_t i = 0; i < manifest->tensors; i++)
        if (strcmp(manifest->tensor[i].name, name) == 0) return &manifest->tensor[i];
    return NULL;
}
