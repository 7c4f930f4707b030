/* How numbers are stored: the formats, their sizes, and what a stored row means. */
#ifndef FM_QUANT_H
#define FM_QUANT_H

#include <stdbool.h>

#include "base/status.h"

typedef enum { FM_F32, FM_F16, FM_BF16, FM_AFFINE } fm_number;

/*
 * A format. For FM_AFFINE (MLX): groups of `group` elements along a row share
 * scale and bias (numbers of kind `scale`), and element i is
 * code[i] * scale + bias, its code being bits i*bits .. of the row's
 * little-endian bit stream.
 */
typedef struct {
    fm_number kind;
    fm_number scale;     /* where kind is FM_AFFINE */
    int32_t bits, group; /* 2,3,4,5,6,8 and 32,64,128 */
} fm_quant;

/* A matrix in memory: `rows` rows of `cols` numbers, each row contiguous. No alignment is promised. */
typedef struct {
    fm_quant quant;
    int32_t rows, cols;
    const uint8_t *weight; /* numbers, or codes */
    const uint8_t *scales; /* [rows][cols/group], affine only */
    const uint8_t *biases;
} fm_matrix;

/* Where weight (at 0), scales and biases of a matrix lie in one block; each starts on FM_MATRIX_ALIGN. */
#define FM_MATRIX_ALIGN 64u
typedef struct {
    size_t row_bytes, scale_row_bytes;
    size_t weight_bytes, scale_bytes; /* scale_bytes: of scales, and again of biases; 0 if none */
    size_t scales_at, biases_at;
    size_t bytes; /* whole, a multiple of FM_MATRIX_ALIGN */
} fm_matrix_layout;

/* "f32", "bf16", "affine:4:64:bf16". FM_FORMAT on anything else. */
fm_status fm_quant_parse(const char *text, size_t length, fm_quant *out, fm_error *err);
void fm_quant_name(fm_quant quant, char out[32]);

size_t fm_number_size(fm_number kind); /* 4 or 2 bytes */

/* FM_FORMAT when rows or cols are not positive, too large, or cols is no multiple of the group. */
fm_status fm_matrix_measure(fm_quant quant, int32_t rows, int32_t cols, fm_matrix_layout *out, fm_error *err);

/* The matrix that lies at `block` in that layout. */
fm_matrix fm_matrix_at(fm_quant quant, int32_t rows, int32_t cols, const void *block);

/* Numbers of a kind to float and back (round to nearest even). */
void fm_numbers_decode(fm_number kind, const void *from, int32_t n, float *to);
void fm_numbers_encode(fm_number kind, const float *from, int32_t n, void *to);

/* The definition of a stored row: cols floats; or its numbers [at, at + n), whole groups. */
void fm_matrix_decode_row(const fm_matrix *m, int32_t row, float *out);
void fm_matrix_decode_part(const fm_matrix *m, int32_t row, int32_t at, int32_t n, float *out);

/* False if one of n stored numbers is NaN or infinite; *where is its index. */
bool fm_numbers_finite(fm_number kind, const void *from, size_t n, size_t *where);

/* MLX's affine quantiser, bit for bit, for one row of `cols` numbers of kind
 * `quant.scale` held as floats: codes, scales and biases in stored form. */
void fm_affine_encode_row(fm_quant quant, const float *x, int32_t cols, uint8_t *weight, uint8_t *scales, uint8_t *biases);

/*
 * The same form, with codes, scales and biases searched for the least sum of squared errors, which is returned; no group has
 * more of it than fm_affine_encode_row leaves.
 */
double fm_affine_search_row(fm_quant quant, const float *x, int32_t cols, uint8_t *weight, uint8_t *scales, uint8_t *biases);

#endif
