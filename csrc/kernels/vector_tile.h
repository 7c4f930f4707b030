/*
 * Small dense products in registers, what attention and the delta rule spend
 * their time in. Included after vector.h.
 *
 * Every sum runs over the inner dimension in order, one fused multiply-add a
 * step, so what a row gets does not depend on the rows beside it.
 */
#define TILE_ROWS (LANES == 16 ? 8 : 4)
#define TILE_VECTORS (LANES == 4 ? 4 : 2)
#define STRIP (TILE_VECTORS * LANES) /* columns in registers: 32, 16, 16 */

/* c = c * fade (NULL: 0) + a . b: rows of a and c are strides apart; b is `inner` rows of STRIP columns. */
typedef struct {
    const float *a, *b;
    float *c;
    size_t a_stride, b_stride, c_stride;
    int32_t inner;
    const float *fade; /* one number a row */
} product;

/* `rows` rows of it from row `first` on; a constant, so that the sums stay in registers. */
INLINE void multiply_rows(const product *p, int32_t first, int32_t rows)
{
    const float *a = p->a + (size_t)first * p->a_stride, *b = p->b;
    float *c = p->c + (size_t)first * p->c_stride;
    vf sum[TILE_ROWS][TILE_VECTORS];

#pragma GCC unroll 8
    for (int32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int32_t v = 0; v < TILE_VECTORS; v++)
            sum[r][v] = p->fade ? load(c + (size_t)r * p->c_stride + v * LANES) * p->fade[first + r] : (vf){0};
    for (int32_t i = 0; i < p->inner; i++, a++, b += p->b_stride) {
        vf x[TILE_VECTORS];
#pragma GCC unroll 4
        for (int32_t v = 0; v < TILE_VECTORS; v++) x[v] = load(b + v * LANES);
#pragma GCC unroll 8
        for (int32_t r = 0; r < rows; r++) {
            vf y = splat(a[(size_t)r * p->a_stride]);
#pragma GCC unroll 4
            for (int32_t v = 0; v < TILE_VECTORS; v++) sum[r][v] = fma_v(x[v], y, sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int32_t v = 0; v < TILE_VECTORS; v++) store(c + (size_t)r * p->c_stride + v * LANES, sum[r][v]);
}

static void multiply(const product *p, int32_t rows)
{
    int32_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS) multiply_rows(p, r, TILE_ROWS);
    if (TILE_ROWS > 4 && rows - r >= 4) multiply_rows(p, r, 4), r += 4;
    if (rows - r >= 2) multiply_rows(p, r, 2), r += 2;
    if (rows - r >= 1) multiply_rows(p, r, 1);
}

/* rows x cols numbers at `from`, turned: to[c * to_stride + r]. Short rows of `to` are filled with zeros up to LANES. */
static void turn_floats(const float *from, size_t stride, int32_t rows, int32_t cols, float *to, size_t to_stride)
{
    for (int32_t r = 0; r < rows; r += LANES)
        for (int32_t c = 0; c < cols; c += LANES) {
            vf v[LANES];
            for (int32_t i = 0; i < LANES; i++) v[i] = r + i < rows ? at(from + (size_t)(r + i) * stride, c, cols) : (vf){0};
            transpose(v, LANES);
            for (int32_t i = 0; i < LANES && c + i < cols; i++) store(to + (size_t)(c + i) * to_stride + r, v[i]);
        }
}
