/*
 * Affine codes with error feedback (GPTQ: Frantar et al., 2022).
 *
 * Columns are rounded from left to right. What a column's rounding adds to the product's error is taken back, as well as
 * the columns to its right can, by moving these before they are rounded themselves. The factor U says by how much: entry
 * (i, j) over (i, i) for each unit of error in column i. The squared errors over the squared diagonal add up to the error
 * of the product, so 1 / diagonal^2 is also what a column weighs when its group's scale and bias are searched.
 */
#include <math.h>
#include <string.h>

#include "quant/affine.h"

/* The nearest number of a grid to x, and its code; a grid whose scale was rounded to 0 has its bias alone. */
static float round_to(float x, float scale, float bias, float top, uint8_t *code)
{
    float q = scale != 0 ? rintf((x - bias) / scale) : 0;
    q = q > 0 ? q : 0;
    q = q < top ? q : top;
    *code = (uint8_t)q;
    return q * scale + bias;
}

/* One group of a row: error[i] is column i's, over the factor's diagonal. */
static void round_group(fm_quant quant, float *x, int32_t cols, const float *factor, const float *importance, uint8_t *code,
                        float *scale, float *bias, float *error)
{
    float top = (float)((1 << quant.bits) - 1);

    fm_affine_search_group(quant, x, importance, code, scale, bias);
    for (int32_t i = 0; i < quant.group; i++) {
        const float *u = factor + (size_t)i * (size_t)cols;
        float miss = x[i] - round_to(x[i], *scale, *bias, top, &code[i]);
        error[i] = miss / u[i];
        for (int32_t j = i + 1; j < quant.group; j++) x[j] -= error[i] * u[j];
    }
}

double fm_affine_feedback_rows(fm_quant quant, float *x, int32_t rows, int32_t cols, const float *factor,
                               const fm_matrix_layout *layout, uint8_t *weight, uint8_t *scales, uint8_t *biases)
{
    int32_t group = quant.group;
    size_t size = fm_number_size(quant.scale);
    double sum = 0;

    memset(weight, 0, (size_t)rows * layout->row_bytes);
    for (int32_t at = 0; at < cols; at += group) { /* of all rows, so that a group's part of the factor stays in the cache */
        const float *block = factor + (size_t)at * (size_t)cols + at;
        float importance[FM_AFFINE_GROUP];
        for (int32_t i = 0; i < group; i++) {
            float d = block[(size_t)i * (size_t)cols + (size_t)i];
            importance[i] = 1 / (d * d);
        }
        for (int32_t r = 0; r < rows; r++) {
            uint8_t code[FM_AFFINE_GROUP];
            float error[FM_AFFINE_GROUP], scale, bias, *row = x + (size_t)r * (size_t)cols + at;
            size_t place = (size_t)r * layout->scale_row_bytes + (size_t)(at / group) * size;
            round_group(quant, row, cols, block, importance, code, &scale, &bias, error);
            for (int32_t i = 0; i < group; i++) {
                const float *u = block + (size_t)i * (size_t)cols;
                for (int32_t j = group; j < cols - at; j++) row[j] -= error[i] * u[j];
                fm_affine_put(weight + (size_t)r * layout->row_bytes, at + i, quant.bits, code[i]);
                sum += (double)error[i] * (double)error[i];
            }
            fm_numbers_encode(quant.scale, &scale, 1, scales + place);
            fm_numbers_encode(quant.scale, &bias, 1, biases + place);
        }
    }
    return sum;
}
