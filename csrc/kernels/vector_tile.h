/*
 * Small dense products in registers, what attention and the delta rule spend
 * their time in. Included after vector.h.
 *
 * Every sum runs over the inner dimension in order, one fused multiply-add a
 * step, so what a row gets does not depend on the rows beside it.
 */
#define TILE_ROWS (LANES == 16 ? 8 : 4)
#define TILE_VECTORS (LANES == 4 ? 4 : 2)
#define TILE_COLUMNS (TILE_VECTORS * LANES) /* columns in registers: 32, 16, 16 */

/* LANES numbers as floats. */
INLINE vf widened(fm_number kind, const uint8_t *from)
{
    if (kind == FM_F16) return load_f16(from);
    if (kind == FM_BF16) return load_bf16(from);
    return load((const float *)(const void *)from);
}

/* c = c * fade (NULL: 0) + a . b: rows of a and c are strides apart; b is `inner` rows of TILE_COLUMNS numbers of a kind. */
typedef struct {
    const float *a;
    const void *b;
    float *c;
    size_t a_stride, b_stride, c_stride;
    int32_t inner;
    const float *fade; /* one number a row */
    fm_number kind;
    size_t ahead; /* how many bytes behind each row of b the next product's row lies; 0: nothing to ask for */
} product;

/* `rows` rows of it from row `first` on; a constant, so that the sums stay in registers. */
INLINE void multiply_rows(const product *p, fm_number kind, int32_t first, int32_t rows)
{
    const float *a = p->a + (size_t)first * p->a_stride;
    const uint8_t *b = p->b;
    size_t size = kind == FM_F32 ? 4 : 2, ahead = first ? 0 : p->ahead;
    float *c = p->c + (size_t)first * p->c_stride;
    vf sum[TILE_ROWS][TILE_VECTORS];

#pragma GCC unroll 8
    for (int32_t r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int32_t v = 0; v < TILE_VECTORS; v++)
            sum[r][v] = p->fade ? load(c + (size_t)r * p->c_stride + v * LANES) * p->fade[first + r] : (vf){0};
    for (int32_t i = 0; i < p->inner; i++, a++, b += p->b_stride * size) {
        vf x[TILE_VECTORS];
        __builtin_prefetch(b + ahead); /* one a step: more at once than can be under way would hold up what follows */
#pragma GCC unroll 4
        for (int32_t v = 0; v < TILE_VECTORS; v++) x[v] = widened(kind, b + (size_t)v * LANES * size);
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

INLINE void multiply_kind(const product *p, fm_number kind, int32_t rows)
{
    int32_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS) multiply_rows(p, kind, r, TILE_ROWS);
    if (TILE_ROWS > 4 && rows - r >= 4) multiply_rows(p, kind, r, 4), r += 4;
    if (rows - r >= 2) multiply_rows(p, kind, r, 2), r += 2;
    if (rows - r >= 1) multiply_rows(p, kind, r, 1);
}

static void multiply(const product *p, int32_t rows)
{
    if (p->kind == FM_F16) multiply_kind(p, FM_F16, rows);
    else if (p->kind == FM_BF16) multiply_kind(p, FM_BF16, rows);
    else multiply_kind(p, FM_F32, rows);
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
