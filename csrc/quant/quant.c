/* The formats: their names, sizes and places. */
#include "quant/quant.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

static const struct {
    const char *name;
    fm_number kind;
    size_t size;
} numbers[] = {
    {"f32", FM_F32, 4},
    {"f16", FM_F16, 2},
    {"bf16", FM_BF16, 2},
};

static bool number_named(const char *text, size_t length, fm_number *out)
{
    for (size_t i = 0; i < 3; i++)
        if (strlen(numbers[i].name) == length && memcmp(numbers[i].name, text, length) == 0) {
            *out = numbers[i].kind;
            return true;
        }
    return false;
}

size_t fm_number_size(fm_number kind)
{
    return kind == FM_F32 ? 4 : 2;
}

/* A decimal number up to `stop`; -1 if it is none, or has leading zeros. */
static int32_t small_number(const char **at, const char *end, char stop)
{
    int32_t n = 0;
    const char *p = *at;
    while (p < end && *p >= '0' && *p <= '9' && n < 1000) n = n * 10 + (*p++ - '0');
    if (p == *at || **at == '0' || p == end || *p != stop) return -1;
    *at = p + 1;
    return n;
}

static bool parse_affine(const char *text, size_t length, fm_quant *out)
{
    const char *at = text + 7, *end = text + length;
    if (length < 8 || memcmp(text, "affine:", 7) != 0) return false;
    int32_t bits = small_number(&at, end, ':'), group = bits < 0 ? -1 : small_number(&at, end, ':');
    fm_number scale;
    if (group < 0 || !number_named(at, (size_t)(end - at), &scale)) return false;
    if (bits < 2 || bits > 8 || bits == 7 || (group != 32 && group != 64 && group != 128)) return false;
    *out = (fm_quant){FM_AFFINE, scale, bits, group};
    return true;
}

fm_status fm_quant_parse(const char *text, size_t length, fm_quant *out, fm_error *err)
{
    fm_number kind;
    if (number_named(text, length, &kind)) {
        *out = (fm_quant){.kind = kind};
        return FM_OK;
    }
    if (parse_affine(text, length, out)) return FM_OK;
    return fm_fail(err, FM_FORMAT,
                   "\"%.*s\" is no number format; there are f32, f16, bf16 and affine:BITS:GROUP:SCALE "
                   "with 2, 3, 4, 5, 6 or 8 bits and groups of 32, 64 or 128",
                   (int)(length < 40 ? length : 40), text);
}

void fm_quant_name(fm_quant quant, char out[32])
{
    const char *scale = numbers[quant.scale <= FM_BF16 ? quant.scale : FM_F32].name;
    if (quant.kind == FM_AFFINE) snprintf(out, 32, "affine:%d:%d:%s", quant.bits, quant.group, scale);
    else snprintf(out, 32, "%s", numbers[quant.kind].name);
}

fm_status fm_matrix_measure(fm_quant quant, int32_t rows, int32_t cols, fm_matrix_layout *out, fm_error *err)
{
    fm_matrix_layout l = {0};
    bool affine = quant.kind == FM_AFFINE;

    if (rows < 1 || cols < 1) return fm_fail(err, FM_FORMAT, "a matrix of %d x %d", rows, cols);
    if (affine && cols % quant.group)
        return fm_fail(err, FM_FORMAT, "rows of %d numbers cannot be cut into groups of %d", cols, quant.group);
    l.row_bytes = affine ? (size_t)cols / 8 * (size_t)quant.bits : (size_t)cols * fm_number_size(quant.kind);
    l.scale_row_bytes = affine ? (size_t)(cols / quant.group) * fm_number_size(quant.scale) : 0;
    if (!fm_size_mul(l.row_bytes, (size_t)rows, &l.weight_bytes) || l.weight_bytes > (size_t)1 << 46)
        return fm_fail(err, FM_FORMAT, "a matrix of %d x %d is too large", rows, cols);
    l.scale_bytes = l.scale_row_bytes * (size_t)rows;
    l.scales_at = fm_align_up(l.weight_bytes, FM_MATRIX_ALIGN);
    l.biases_at = l.scales_at + fm_align_up(l.scale_bytes, FM_MATRIX_ALIGN);
    l.bytes = l.biases_at + fm_align_up(l.scale_bytes, FM_MATRIX_ALIGN);
    *out = l;
    return FM_OK;
}

fm_matrix fm_matrix_at(fm_quant quant, int32_t rows, int32_t cols, const void *block)
{
    fm_matrix_layout l = {0};
    fm_matrix_measure(quant, rows, cols, &l, NULL); /* sizes were checked when the model was opened */
    const uint8_t *at = block;
    return (fm_matrix){quant, rows, cols, at, at + l.scales_at, at + l.biases_at};
}
