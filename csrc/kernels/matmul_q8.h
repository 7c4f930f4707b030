/*
 * Products of affine weights with int8 activations, row by row. The file that
 * includes it has included matmul_float.h and defines row_q8: some blocks of
 * one weight row against n rows of x.
 */

#define BLOCKS 512 /* blocks of 32 for which scales are kept side by side: 16384 columns */

/* Scales or biases of one row, spread to blocks of 32. */
static void spread(const fm_matrix *w, const uint8_t *from, int32_t row, int32_t block, int32_t blocks, float *to)
{
    size_t size = fm_number_size(w->quant.scale), groups = (size_t)(w->cols / w->quant.group);
    int32_t wide = w->quant.group / FM_Q8_BLOCK, n = blocks / wide, i = 0;
    const uint8_t *p = from + ((size_t)row * groups + (size_t)(block / wide)) * size;
    float own[BLOCKS];

    if (w->quant.scale == FM_BF16)
        for (; i + LANES <= n; i += LANES) store(own + i, (vf)load_bf16(p + 2 * (size_t)i));
    else if (w->quant.scale == FM_F16)
        for (; i + LANES <= n; i += LANES) store(own + i, (vf)load_f16(p + 2 * (size_t)i));
    fm_numbers_decode(w->quant.scale, p + (size_t)i * size, n - i, own + i);
    for (i = 0; i < blocks; i++) to[i] = own[i / wide];
}

static void matmul_q8(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    const unpacker u = make_unpacker(w->quant.bits);
    float scale[BLOCKS], bias[BLOCKS];

    for (int32_t row = first; row < last; row++)
        for (int32_t block = 0, all = w->cols / FM_Q8_BLOCK; block < all; block += BLOCKS) {
            int32_t blocks = all - block < BLOCKS ? all - block : BLOCKS, r = 0;
            spread(w, w->scales, row, block, blocks, scale);
            spread(w, w->biases, row, block, blocks, bias);
            for (; r + 4 <= x->rows; r += 4) row_q8(w, &u, row, block, blocks, x, r, 4, scale, bias, out, out_stride);
            for (; r < x->rows; r++) row_q8(w, &u, row, block, blocks, x, r, 1, scale, bias, out, out_stride);
        }
}

static void matmul(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    if (w->quant.kind == FM_AFFINE && x->q) matmul_q8(w, first, last, x, out, out_stride);
    else matmul_float(w, first, last, x, out, out_stride);
}
