/* MLX's affine format: code * scale + bias in groups along a row. */
#include <math.h>
#include <string.h>

#include "quant/affine.h"

/* Bits i*bits .. of the row's little-endian stream; 0 past byte `end`. */
static uint32_t code_at(const uint8_t *row, size_t end, int32_t i, int32_t bits)
{
    size_t bit = (size_t)i * (size_t)bits, byte = bit / 8;
    uint32_t two = row[byte];
    if (byte + 1 < end) two |= (uint32_t)row[byte + 1] << 8;
    return two >> bit % 8 & ((1u << bits) - 1);
}

void fm_matrix_decode_part(const fm_matrix *m, int32_t row, int32_t at, int32_t n, float *out)
{
    fm_quant q = m->quant;
    size_t cols = (size_t)m->cols;

    if (q.kind != FM_AFFINE) {
        fm_numbers_decode(q.kind, m->weight + ((size_t)row * cols + (size_t)at) * fm_number_size(q.kind), n, out);
        return;
    }
    size_t row_bytes = cols / 8 * (size_t)q.bits, size = fm_number_size(q.scale), groups = cols / (size_t)q.group;
    const uint8_t *codes = m->weight + (size_t)row * row_bytes;
    for (int32_t first = at; first < at + n; first += q.group) {
        size_t group = (size_t)row * groups + (size_t)(first / q.group);
        float scale, bias;
        fm_numbers_decode(q.scale, m->scales + group * size, 1, &scale);
        fm_numbers_decode(q.scale, m->biases + group * size, 1, &bias);
        for (int32_t i = first; i < first + q.group; i++)
            out[i - at] = (float)code_at(codes, row_bytes, i, q.bits) * scale + bias;
    }
}

void fm_matrix_decode_row(const fm_matrix *m, int32_t row, float *out)
{
    fm_matrix_decode_part(m, row, 0, m->cols, out);
}

void fm_affine_put(uint8_t *row, int32_t i, int32_t bits, uint32_t code)
{
    size_t bit = (size_t)i * (size_t)bits;
    for (int32_t b = 0; b < bits; b++, bit++) row[bit / 8] |= (uint8_t)((code >> b & 1) << bit % 8);
}

/*
 * The end of the group's range with the larger magnitude is represented
 * exactly, and 0 falls near a grid point (mlx/ops: affine_quantize).
 */
void fm_affine_grid(const float *x, int32_t n, int32_t bits, float *scale, float *bias)
{
    float low = x[0], high = x[0], steps = (float)((1 << bits) - 1);
    for (int32_t i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float s = fmaxf((high - low) / steps, 1e-7f);
    bool low_edge = fabsf(low) > fabsf(high);
    float edge = low_edge ? low : high;
    if (!low_edge) s = -s;
    float q0 = rintf(edge / s);
    *scale = q0 != 0 ? edge / q0 : s;
    *bias = q0 != 0 ? edge : 0;
}

uint32_t fm_affine_code(float x, float scale, float bias, int32_t bits)
{
    float q = rintf((x - bias) / scale), top = (float)((1 << bits) - 1);
    return (uint32_t)(q < 0 ? 0 : q > top ? top : q);
}

void fm_affine_encode_row(fm_quant quant, const float *x, int32_t cols, uint8_t *weight, uint8_t *scales, uint8_t *biases)
{
    size_t size = fm_number_size(quant.scale);

    memset(weight, 0, (size_t)cols / 8 * (size_t)quant.bits);
    for (int32_t at = 0; at < cols; at += quant.group) {
        float scale, bias;
        fm_affine_grid(x + at, quant.group, quant.bits, &scale, &bias);
        for (int32_t i = at; i < at + quant.group; i++)
            fm_affine_put(weight, i, quant.bits, fm_affine_code(x[i], scale, bias, quant.bits));
        fm_numbers_encode(quant.scale, &scale, 1, scales + (size_t)(at / quant.group) * size);
        fm_numbers_encode(quant.scale, &bias, 1, biases + (size_t)(at / quant.group) * size);
    }
}
