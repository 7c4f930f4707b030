/* Any text as a manifest: refused in words, or everything in it lies inside the files it names. */
#include <string.h>

#include "fuzz.h"
#include "model/manifest.h"
#include "model/weights.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

static void in_file(const fm_manifest *m, int32_t file, uint64_t at, uint64_t bytes)
{
    uint64_t end;
    MUST(file >= 0 && file < m->files);
    MUST(!__builtin_add_overflow(at, bytes, &end) && end <= m->file_bytes[file]);
}

static void check_blocks(const fm_manifest *m, const fm_tensor_source *t, const fm_block_list *list, size_t row_bytes,
                         int32_t want)
{
    int64_t rows = 0;
    for (int32_t i = 0; i < list->n; i++) {
        const fm_blocks *b = &list->block[i];
        uint64_t bytes = row_bytes * (uint64_t)b->rows;
        MUST(b->rows > 0 && b->count > 0);
        in_file(m, b->file, b->at, bytes);
        in_file(m, b->file, b->at + b->stride * (uint64_t)(b->count - 1), bytes);
        rows += (int64_t)b->rows * b->count;
    }
    MUST(rows == (want ? t->rows : 0));
}

static void check_tensor(const fm_manifest *m, const fm_tensor_source *t)
{
    fm_matrix_layout layout;
    bool affine = t->quant.kind == FM_AFFINE;
    MUST(fm_matrix_measure(t->quant, t->rows, t->cols, &layout, NULL) == FM_OK);
    check_blocks(m, t, &t->weight, layout.row_bytes, 1);
    check_blocks(m, t, &t->scales, layout.scale_row_bytes, affine);
    check_blocks(m, t, &t->biases, layout.scale_row_bytes, affine);
}

/* Every part of every expert fits its slot and its file, and together they fill what is not padding. */
static void check_experts(const fm_manifest *m, const fm_expert_layer *e)
{
    uint64_t sum = 0;
    for (int32_t p = 0; p < e->parts; p++) {
        const fm_expert_part *part = &e->part[p];
        MUST((uint64_t)part->at + part->bytes <= e->bytes);
        sum += part->bytes;
        for (int32_t x = 0; x < e->experts; x++) {
            if (part->each) in_file(m, part->each[x].file, part->each[x].at, part->bytes);
            else in_file(m, part->file, part->base + part->stride * (uint64_t)x, part->bytes);
        }
    }
    MUST(sum <= e->bytes && sum + 9 * 63 >= e->bytes);
    for (int32_t r = 0; r < e->runs; r++)
        MUST((uint64_t)e->run[r].at + (uint64_t)e->run[r].count * fm_number_size(e->run[r].kind) <= e->bytes);
}

static void check_all(const fm_manifest *m)
{
    fm_weights w;
    fm_error err = {0};
    MUST(fm_spec_check(&m->spec, &err) == FM_OK);
    for (int32_t i = 0; i < m->tensors; i++) check_tensor(m, &m->tensor[i]);
    for (int32_t i = 0; i < m->spec.layers; i++) {
        MUST((m->experts[i].experts > 0) == (m->spec.layer[i].ffn == FM_FFN_MOE));
        check_experts(m, &m->experts[i]);
    }
    if (fm_weights_plan(m, &w, &err) == FM_OK) {
        for (int32_t i = 0; i < w.count; i++) MUST(w.wanted[i].from && w.wanted[i].at <= w.bytes);
        fm_weights_free(&w, NULL);
    } else {
        MUST(err.message[0]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int32_t k = 0; k < 2; k++) { /* the model's own experts_per_token, and another */
        fm_manifest m;
        fm_error err = {0};
        fm_status status = fm_manifest_parse((const char *)data, size, k, &m, &err);
        if (status == FM_OK) {
            check_all(&m);
            fm_manifest_free(&m);
            continue;
        }
        MUST(status == FM_FORMAT || status == FM_UNSUPPORTED || status == FM_ARGUMENT);
        MUST(err.status == status && err.message[0] && strlen(err.message) < sizeof err.message);
        break;
    }
    return 0;
}
