/*
 * Affine weights times int8 activations for AVX-512 with VNNI. Included by
 * kernels_avx512.c, which defines load_*, unpacker and unpack_64 first.
 *
 * A lane is a weight row: 16 rows are turned on the fly so that each 32-bit
 * lane holds four codes of its row. A block of 32 columns then adds up in
 * integers, without sums across lanes, and only
 *
 *     sum = fma(block, weight scale * activation scale, sum)      after each block
 *     sum = fma(weight bias, the group's activation sum, sum)     after each group
 *
 * runs in float: the same order for one row of activations and for many.
 */

#define PANEL 16                     /* weight rows side by side */
#define CHUNK 1024                   /* columns whose turned codes are kept at once */
#define GROUPS (CHUNK / FM_Q8_BLOCK) /* most groups of a chunk */
#define FEW_ROWS 4                   /* of activations, for which turned codes are not worth keeping */
#define FURTHER 16384                /* bytes beyond the next panel that the second cache is asked for */
#define TILE 6                       /* rows of activations whose sums stay in registers, for two panels */

/* 16 weight rows: where their codes and scales begin. Rows past the last one repeat it. */
typedef struct {
    const uint8_t *codes[PANEL], *scales[PANEL], *biases[PANEL];
} panel_rows;

static inline panel_rows find_rows(const fm_matrix *w, int32_t row, int32_t last)
{
    size_t codes = (size_t)w->cols / 8 * (size_t)w->quant.bits;
    size_t scales = (size_t)(w->cols / w->quant.group) * fm_number_size(w->quant.scale);
    panel_rows p;
    for (int32_t i = 0; i < PANEL; i++) {
        size_t at_ = (size_t)(row + i < last ? row + i : last - 1);
        p.codes[i] = w->weight + at_ * codes;
        p.scales[i] = w->scales + at_ * scales;
        p.biases[i] = w->biases + at_ * scales;
    }
    return p;
}

/* 16 bytes of each row, turned: lane i of v[j] is the j-th 32-bit word of row i. */
static inline __attribute__((always_inline)) void turn(const uint8_t *const *row, size_t at_, __m512i v[4])
{
    __m512i t[4];
    for (int32_t i = 0; i < 4; i++) {
        t[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(row[i] + at_)));
        t[i] = _mm512_inserti32x4(t[i], _mm_loadu_si128((const __m128i *)(const void *)(row[i + 4] + at_)), 1);
        t[i] = _mm512_inserti32x4(t[i], _mm_loadu_si128((const __m128i *)(const void *)(row[i + 8] + at_)), 2);
        t[i] = _mm512_inserti32x4(t[i], _mm_loadu_si128((const __m128i *)(const void *)(row[i + 12] + at_)), 3);
    }
    __m512i a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
    __m512i c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
}

/* ---- codes: 32 columns of 16 rows as 8 vectors of bytes --------------------------- */

/* Bits i*8*.. of every word, for 4 codes: which byte of the output takes its bits from where in a quadword. */
static inline __m512i picks_of(int32_t bits, int32_t part)
{
    uint8_t at_[64];
    for (int32_t i = 0; i < 64; i++) at_[i] = (uint8_t)(i % 8 / 4 * 32 + (part * 4 + i % 4) * bits);
    return _mm512_loadu_si512(at_);
}

/* What turning codes of a width needs. */
typedef struct {
    __m512i pick[4], keep;
    unpacker odd; /* widths that do not divide a word */
} turner;

static inline turner make_turner(int32_t bits)
{
    turner t = {.keep = _mm512_set1_epi8((char)((1 << bits) - 1)), .odd = make_unpacker(bits)};
    for (int32_t i = 0; i < 4; i++) t.pick[i] = picks_of(bits, i);
    return t;
}

static inline __attribute__((always_inline)) void turn_codes(const turner *t, int32_t bits, const panel_rows *p, int32_t column,
                                                             __m512i v[8])
{
    size_t at_ = (size_t)column / 8 * (size_t)bits;
    if (bits == 4) {
        __m512i word[4];
        turn(p->codes, at_, word);
        for (int32_t i = 0; i < 8; i++)
            v[i] = _mm512_and_si512(_mm512_multishift_epi64_epi8(t->pick[i % 2], word[i / 2]), t->keep);
    } else if (bits == 8) {
        turn(p->codes, at_, v);
        turn(p->codes, at_ + 16, v + 4);
    } else {
        uint8_t bytes[PANEL][32];
        const uint8_t *row[PANEL];
        for (int32_t i = 0; i < PANEL; i++) {
            unpack(&t->odd, p->codes[i] + at_, bytes[i]);
            row[i] = bytes[i];
        }
        turn(row, 0, v);
        turn(row, 16, v + 4);
    }
}

/* ---- scales ----------------------------------------------------------------------- */

/* Groups [first, first + n) of 16 rows, lane by lane. */
static void turn_scales(fm_number kind, const uint8_t *const *row, int32_t first, int32_t n, float (*to)[PANEL])
{
    size_t size = fm_number_size(kind);
    int32_t i = 0, step = (int32_t)(16 / size);

    for (; i + step <= n; i += step) {
        __m512i v[4];
        turn(row, (size_t)(first + i) * size, v);
        for (int32_t j = 0; j < 4; j++) {
            if (kind == FM_BF16) {
                _mm512_storeu_si512(to[i + 2 * j], _mm512_slli_epi32(v[j], 16));
                _mm512_storeu_si512(to[i + 2 * j + 1], _mm512_and_si512(v[j], _mm512_set1_epi32((int32_t)0xffff0000)));
            } else if (kind == FM_F16) {
                _mm512_storeu_ps(to[i + 2 * j], _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v[j])));
                _mm512_storeu_ps(to[i + 2 * j + 1], _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v[j], 16))));
            } else {
                _mm512_storeu_si512(to[i + j], v[j]);
            }
        }
    }
    for (; i < n; i++)
        for (int32_t r = 0; r < PANEL; r++) fm_numbers_decode(kind, row[r] + (size_t)(first + i) * size, 1, &to[i][r]);
}

typedef struct {
    float scale[GROUPS][PANEL], bias[GROUPS][PANEL];
} grid;

static void turn_grid(const fm_matrix *w, const panel_rows *p, int32_t column, int32_t columns, grid *g)
{
    int32_t first = column / w->quant.group, n = columns / w->quant.group;
    turn_scales(w->quant.scale, p->scales, first, n, g->scale);
    turn_scales(w->quant.scale, p->biases, first, n, g->bias);
}

/* The scales of the panel `panels` further on: their few lines would each be a wait. */
static inline void prefetch_grid(const fm_matrix *w, const panel_rows *p, size_t panels)
{
    size_t bytes = PANEL * (size_t)(w->cols / w->quant.group) * fm_number_size(w->quant.scale);
    for (size_t at_ = 0; at_ < bytes; at_ += 64) {
        _mm_prefetch((const char *)p->scales[0] + panels * bytes + at_, _MM_HINT_T0);
        _mm_prefetch((const char *)p->biases[0] + panels * bytes + at_, _MM_HINT_T0);
    }
}

/* The sums of a row's activations, group by group. */
static void group_sums(const fm_rows *x, int32_t row, int32_t group, int32_t column, int32_t columns, float *to)
{
    const float *sum = x->sum + (size_t)row * x->block_stride + column / FM_Q8_BLOCK;
    int32_t wide = group / FM_Q8_BLOCK;
    for (int32_t i = 0; i < columns / group; i++, sum += wide) {
        to[i] = sum[0];
        for (int32_t j = 1; j < wide; j++) to[i] += sum[j];
    }
}

/* ---- few rows: codes go straight from memory into products ---------------------------- */

/* 32 codes of 16 rows times 32 codes of x. */
static inline __attribute__((always_inline)) __m512i dot_block(const __m512i v[8], const int8_t *x)
{
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    for (int32_t i = 0; i < 8; i += 2) {
        int32_t word[2];
        memcpy(word, x + 4 * i, sizeof word);
        even = _mm512_dpbusd_epi32(even, v[i], _mm512_set1_epi32(word[0]));
        odd = _mm512_dpbusd_epi32(odd, v[i + 1], _mm512_set1_epi32(word[1]));
    }
    return _mm512_add_epi32(even, odd);
}

/* Sums of 16 weight rows over a chunk of columns, for n rows of x; begun at 0 or where the last chunk ended. */
static inline __attribute__((always_inline)) void stream(const fm_matrix *w, const turner *t, int32_t bits, const panel_rows *p,
                                                         const grid *g, int32_t column, int32_t columns, const fm_rows *x,
                                                         int32_t r, int32_t n, const float (*gx)[GROUPS], __m512 *sum)
{
    int32_t wide = w->quant.group / FM_Q8_BLOCK;
    size_t ahead = (size_t)w->cols / 8 * (size_t)bits * PANEL, step = 4 * (size_t)bits;
    const int8_t *q = x->q + (size_t)r * x->q_stride + column;
    const float *xs = x->scale + (size_t)r * x->block_stride + column / FM_Q8_BLOCK;
    /* the next panel follows in memory: 16 rows of this panel's step are as many bytes of it */
    const uint8_t *next = p->codes[0] + ahead + (size_t)column / 8 * (size_t)bits * PANEL;

    for (int32_t group = 0, b = 0; b < columns / FM_Q8_BLOCK; group++) {
        __m512 scale = _mm512_loadu_ps(g->scale[group]), bias = _mm512_loadu_ps(g->bias[group]);
        for (int32_t end = b + wide; b < end; b++) {
            __m512i v[8];
            turn_codes(t, bits, p, column + b * FM_Q8_BLOCK, v);
            for (size_t line = 0; line < step * PANEL; line += 64) {
                const char *at_ = (const char *)next + (size_t)b * step * PANEL + line;
                _mm_prefetch(at_ + FURTHER, _MM_HINT_T1);
                _mm_prefetch(at_, _MM_HINT_T0);
            }
            for (int32_t k = 0; k < n; k++) {
                __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(xs[(size_t)k * x->block_stride + (size_t)b]));
                __m512i dot = dot_block(v, q + (size_t)k * x->q_stride + b * FM_Q8_BLOCK);
                sum[k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), both, sum[k]);
            }
        }
        for (int32_t k = 0; k < n; k++) sum[k] = _mm512_fmadd_ps(bias, _mm512_set1_ps(gx[k][group]), sum[k]);
    }
}

static void put_sums(__m512 sum, float *to, int32_t rows)
{
    _mm512_mask_storeu_ps(to, (__mmask16)(0xffff >> (PANEL - rows)), sum);
}

static inline __attribute__((always_inline)) void few_rows(const fm_matrix *w, int32_t bits, int32_t first, int32_t last,
                                                           const fm_rows *x, int32_t n, float *out, size_t out_stride)
{
    const turner t = make_turner(bits);
    float gx[FEW_ROWS][GROUPS];
    grid g;

    for (int32_t row = first; row < last; row += PANEL) {
        panel_rows p = find_rows(w, row, last);
        prefetch_grid(w, &p, 1);
        __m512 sum[FEW_ROWS];
        for (int32_t k = 0; k < n; k++) sum[k] = _mm512_setzero_ps();
        for (int32_t column = 0; column < w->cols; column += CHUNK) {
            int32_t columns = w->cols - column < CHUNK ? w->cols - column : CHUNK;
            turn_grid(w, &p, column, columns, &g);
            for (int32_t k = 0; k < n; k++) group_sums(x, k, w->quant.group, column, columns, gx[k]);
            stream(w, &t, bits, &p, &g, column, columns, x, 0, n, (const float(*)[GROUPS])gx, sum);
        }
        for (int32_t k = 0; k < n; k++)
            put_sums(sum[k], out + (size_t)k * out_stride + row, last - row < PANEL ? last - row : PANEL);
    }
}

/* ---- many rows: codes are turned once, then a tile of sums stays in registers ----------- */

/* A chunk of two panels, ready for every row of x. */
typedef struct {
    __m512i codes[CHUNK / 4][2];
    grid g[2];
} block;

static inline __attribute__((always_inline)) void fill_codes(const turner *t, int32_t bits, const panel_rows *p, int32_t which,
                                                             int32_t column, int32_t columns, size_t ahead, block *to)
{
    size_t step = 4 * (size_t)bits * PANEL; /* bytes of 32 columns */
    const char *next = (const char *)p->codes[0] + ahead + (size_t)(column / FM_Q8_BLOCK) * step;
    for (int32_t c = 0; c < columns; c += FM_Q8_BLOCK, next += step) {
        __m512i v[8];
        turn_codes(t, bits, p, column + c, v);
        for (size_t line = 0; line < step; line += 64) _mm_prefetch(next + line, _MM_HINT_T1);
        for (int32_t i = 0; i < 8; i++) to->codes[c / 4 + i][which] = v[i];
    }
}

static void fill(const fm_matrix *w, const turner *t, const panel_rows *p, int32_t which, int32_t column, int32_t columns,
                 block *to)
{
    size_t ahead = 2 * PANEL * ((size_t)w->cols / 8 * (size_t)w->quant.bits); /* the same rows of the next two panels */
    turn_grid(w, p, column, columns, &to->g[which]);
    switch (w->quant.bits) {
    case 4: fill_codes(t, 4, p, which, column, columns, ahead, to); break;
    case 8: fill_codes(t, 8, p, which, column, columns, ahead, to); break;
    default: fill_codes(t, w->quant.bits, p, which, column, columns, ahead, to); break;
    }
}

/* `panels` panels against rows [r, r + n) of x; both are constants where it is inlined. */
static inline __attribute__((always_inline)) void tile(const block *w, int32_t panels, int32_t group, int32_t column,
                                                       int32_t columns, const fm_rows *x, int32_t r, int32_t n, float *out,
                                                       size_t out_stride, const int32_t *rows)
{
    int32_t wide = group / FM_Q8_BLOCK;
    const int8_t *q = x->q + (size_t)r * x->q_stride + column;
    const float *xs = x->scale + (size_t)r * x->block_stride + column / FM_Q8_BLOCK;
    float gx[TILE][GROUPS];
    __m512 sum[2][TILE];

    for (int32_t k = 0; k < n; k++) {
        group_sums(x, r + k, group, column, columns, gx[k]);
        for (int32_t p = 0; p < panels; p++)
            sum[p][k] =
                column ? _mm512_maskz_loadu_ps((__mmask16)(0xffff >> (PANEL - rows[p])), out + (size_t)k * out_stride + p * PANEL)
                       : _mm512_setzero_ps();
    }
    for (int32_t g = 0, b = 0; b < columns / FM_Q8_BLOCK; g++) {
        for (int32_t end = b + wide; b < end; b++, q += FM_Q8_BLOCK) {
            const __m512i(*codes)[2] = w->codes + b * (FM_Q8_BLOCK / 4);
            __m512i dot[2][TILE];
            for (int32_t p = 0; p < panels; p++)
                for (int32_t k = 0; k < n; k++) dot[p][k] = _mm512_setzero_si512();
            for (int32_t i = 0; i < FM_Q8_BLOCK / 4; i++)
                for (int32_t k = 0; k < n; k++) {
                    int32_t word;
                    memcpy(&word, q + (size_t)k * x->q_stride + 4 * i, sizeof word);
                    __m512i four = _mm512_set1_epi32(word);
                    for (int32_t p = 0; p < panels; p++) dot[p][k] = _mm512_dpbusd_epi32(dot[p][k], codes[i][p], four);
                }
            for (int32_t p = 0; p < panels; p++)
                for (int32_t k = 0; k < n; k++) {
                    __m512 both = _mm512_set1_ps(xs[(size_t)k * x->block_stride + (size_t)b]);
                    both = _mm512_mul_ps(_mm512_loadu_ps(w->g[p].scale[g]), both);
                    sum[p][k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][k]), both, sum[p][k]);
                }
        }
        for (int32_t p = 0; p < panels; p++)
            for (int32_t k = 0; k < n; k++)
                sum[p][k] = _mm512_fmadd_ps(_mm512_loadu_ps(w->g[p].bias[g]), _mm512_set1_ps(gx[k][g]), sum[p][k]);
    }
    for (int32_t k = 0; k < n; k++)
        for (int32_t p = 0; p < panels; p++) put_sums(sum[p][k], out + (size_t)k * out_stride + p * PANEL, rows[p]);
}

/* Every row of x against a block of weights; `out` begins at the block's first weight row. */
static void tiles(const block *w, int32_t panels, int32_t group, int32_t column, int32_t columns, const fm_rows *x, float *out,
                  size_t stride, const int32_t *rows)
{
    int32_t r = 0;
#define ROWS_OF(n)                                                                                            \
    do {                                                                                                      \
        if (panels == 2) tile(w, 2, group, column, columns, x, r, n, out + (size_t)r * stride, stride, rows); \
        else tile(w, 1, group, column, columns, x, r, n, out + (size_t)r * stride, stride, rows);             \
    } while (0)
    for (; r + TILE <= x->rows; r += TILE) ROWS_OF(TILE);
    switch (x->rows - r) {
    case 5: ROWS_OF(5); break;
    case 4: ROWS_OF(4); break;
    case 3: ROWS_OF(3); break;
    case 2: ROWS_OF(2); break;
    case 1: ROWS_OF(1); break;
    default: break;
    }
#undef ROWS_OF
}

static void many_rows(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    const turner t = make_turner(w->quant.bits);
    block b;

    for (int32_t row = first; row < last; row += 2 * PANEL) {
        int32_t panels = last - row > PANEL ? 2 : 1;
        int32_t rows[2] = {last - row < PANEL ? last - row : PANEL, last - row < 2 * PANEL ? last - row - PANEL : PANEL};
        panel_rows p[2];
        for (int32_t i = 0; i < panels; i++) {
            p[i] = find_rows(w, row + i * PANEL, last);
            prefetch_grid(w, &p[i], 2);
        }
        for (int32_t column = 0; column < w->cols; column += CHUNK) {
            int32_t columns = w->cols - column < CHUNK ? w->cols - column : CHUNK;
            for (int32_t i = 0; i < panels; i++) fill(w, &t, &p[i], i, column, columns, &b);
            tiles(&b, panels, w->quant.group, column, columns, x, out + row, out_stride, rows);
        }
    }
}

static void matmul_q8(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
#define FEW(bits)                                                                     \
    do {                                                                              \
        if (x->rows == 1) few_rows(w, bits, first, last, x, 1, out, out_stride);      \
        else if (x->rows == 2) few_rows(w, bits, first, last, x, 2, out, out_stride); \
        else if (x->rows == 3) few_rows(w, bits, first, last, x, 3, out, out_stride); \
        else few_rows(w, bits, first, last, x, 4, out, out_stride);                   \
    } while (0)
    if (x->rows > FEW_ROWS) {
        many_rows(w, first, last, x, out, out_stride);
        return;
    }
    if (w->quant.bits == 4) FEW(4);
    else if (w->quant.bits == 8) FEW(8);
    else FEW(w->quant.bits);
#undef FEW
}
