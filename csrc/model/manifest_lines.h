/* What the two halves of the manifest reader share. */
#ifndef FM_MANIFEST_LINES_H
#define FM_MANIFEST_LINES_H

#include "base/text.h"
#include "model/manifest.h"

/* The reader's place in the text. Arrays that grow live here until they are complete. */
typedef struct {
    fm_manifest *out;
    int32_t experts_per_token;
    int32_t stage; /* order of lines; see manifest.c */
    int32_t file_room;
    fm_layer_spec *layer;
    fm_rope_spec *rope;
    int32_t layers_seen;
    fm_tensor_source *tensor; /* [tensor_room] */
    int32_t tensor_room;
    fm_blocks *blocks[3]; /* weight, scales, biases of the tensor being read */
    int32_t blocks_seen[3], blocks_room[3];
    int32_t expert_layer; /* the layer whose extents are being read; -1: none */
    fm_extent *each[10];  /* irregular extents of the layer being read, by part */
    uint8_t *seen[10];    /* [experts] of irregular extents */
    uint32_t parts_seen;  /* bit p: part p has its extents */
    int32_t record;       /* the layer has the single part `record` */
    uint64_t *xxh3;
    int32_t sums_seen;
} fm_manifest_reader;

fm_status fm_manifest_tensor_line(fm_manifest_reader *r, fm_line *line, fm_error *err);
fm_status fm_manifest_blocks_line(fm_manifest_reader *r, fm_line *line, int32_t kind, fm_error *err);
fm_status fm_manifest_end_tensor(fm_manifest_reader *r, fm_error *err);

fm_status fm_manifest_experts_line(fm_manifest_reader *r, fm_line *line, fm_error *err);
fm_status fm_manifest_extent_line(fm_manifest_reader *r, fm_line *line, fm_error *err);
fm_status fm_manifest_checksum_line(fm_manifest_reader *r, fm_line *line, fm_error *err);
fm_status fm_manifest_end_experts(fm_manifest_reader *r, fm_error *err);

/* FM_FORMAT unless [at, at + bytes) lies in file `file`. */
fm_status fm_manifest_in_file(const fm_manifest_reader *r, const fm_line *line, int32_t file, uint64_t at, uint64_t bytes,
                              fm_error *err);

#endif
