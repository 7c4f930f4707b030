/* The manifest: text to a model spec and the place of every tensor and expert. Trusts nothing. */
#ifndef FM_MANIFEST_H
#define FM_MANIFEST_H

#include "base/arena.h"
#include "model/spec.h"
#include "store/expert_store.h"

/* `count` blocks of `rows` rows, `stride` bytes apart, the first at byte `at` of `file`. */
typedef struct {
    int32_t file, rows, count;
    uint64_t at, stride;
} fm_blocks;

/* Blocks of one kind, in file order of the tensor's rows. */
typedef struct {
    fm_blocks *block;
    int32_t n;
} fm_block_list;

typedef struct {
    char *name;
    int32_t line;
    fm_quant quant;
    int32_t rows, cols, add;
    fm_block_list weight, scales, biases;
} fm_tensor_source;

typedef struct {
    fm_arena arena; /* owns all below */
    fm_model_spec spec;
    int32_t files, tensors;
    char **path;              /* [files] */
    uint64_t *file_bytes;     /* [files] */
    fm_tensor_source *tensor; /* [tensors] */
    fm_expert_layer *experts; /* [spec.layers]; .experts is 0 where a layer has none */
} fm_manifest;

/* `experts_per_token` > 0 replaces the model's own number. FM_FORMAT names the line. */
fm_status fm_manifest_parse(const char *text, size_t length, int32_t experts_per_token, fm_manifest *out, fm_error *err);
void fm_manifest_free(fm_manifest *manifest);

/* The tensor called `name`, or NULL. */
const fm_tensor_source *fm_manifest_tensor(const fm_manifest *manifest, const char *name);

#endif
