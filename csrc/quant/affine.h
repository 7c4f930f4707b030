/* What the quantisers to the affine format share. */
#ifndef FM_AFFINE_H
#define FM_AFFINE_H

#include "quant/quant.h"

#define FM_AFFINE_GROUP 128 /* the largest */

/* MLX's scale and bias of the n numbers of a group. */
void fm_affine_grid(const float *x, int32_t n, int32_t bits, float *scale, float *bias);

/* MLX's code of a number on that grid. */
uint32_t fm_affine_code(float x, float scale, float bias, int32_t bits);

/* Put code i into a row whose bits are 0. */
void fm_affine_put(uint8_t *row, int32_t i, int32_t bits, uint32_t code);

/* The scale and bias, as they are stored, and codes that leave a group the least sum of squared errors of all that are
 * tried, MLX's among them; returns that sum. */
double fm_affine_search_group(fm_quant quant, const float *x, uint8_t *code, float *scale, float *bias);

#endif
