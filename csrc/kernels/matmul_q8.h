/*
 * Affine weights times int8 activations, a lane a weight row: LANES rows are
 * turned on the fly so that each 32-bit lane holds four codes of its row. A
 * block of 32 columns adds up in integers, without sums across lanes; then
 *
 *     sum = fma(block, weight scale * activation scale, sum)      after each block
 *     sum = fma(weight bias, the group's activation sum, sum)     after each group
 *
 * in the same order for one row of activations and for many.
 *
 * The file that includes it has included matmul_float.h and defines, for a
 * lane type `vu` of LANES uint32_t:
 *
 *     turn(rows, at, v)       16 bytes of LANES rows: lane i of v[j] is word j of row i
 *     turn_8, turn_12         8 bytes; 12 bytes, where byte k of v[j] is byte 3k + j
 *     f16_lanes(v)            floats of the low halves of the lanes
 *     arrange(bits, from, to) 32 codes of x in the order in which turn_codes leaves columns
 *     PLANES(bits)            1, or 2 where products want codes below 16: low and high halves
 *     pack(v, n)              n vectors of turned codes into what `dots` takes as packed
 *     dots(...)               see there
 *     TILE, MOST              rows of x at once: of kept codes, and at the most (4)
 */

#define SPAN 4096 /* columns of few rows of x that are kept arranged */
#define FEW 8     /* rows of x for which codes are turned on the way, MOST of them at a time */
#define CHUNK 512 /* columns whose turned codes are kept, for many rows of x */
#define GROUPS (SPAN / FM_Q8_BLOCK)

/* LANES weight rows: where their codes and scales begin. Rows past the last one repeat it. */
typedef struct {
    const uint8_t *codes[LANES], *scales[LANES], *biases[LANES];
} panel_rows;

static inline panel_rows find_rows(const fm_matrix *w, int32_t row, int32_t last)
{
    size_t codes = (size_t)w->cols / 8 * (size_t)w->quant.bits;
    size_t scales = (size_t)(w->cols / w->quant.group) * fm_number_size(w->quant.scale);
    panel_rows p;
    for (int32_t i = 0; i < LANES; i++) {
        size_t at_ = (size_t)(row + i < last ? row + i : last - 1);
        p.codes[i] = w->weight + at_ * codes;
        p.scales[i] = w->scales + at_ * scales;
        p.biases[i] = w->biases + at_ * scales;
    }
    return p;
}

/* ---- codes: 32 columns of LANES rows as 8 vectors of bytes, for each plane ---------------- */

INLINE void turn_codes(const unpacker *u, int32_t bits, const uint8_t *const *row, int32_t column, vu *v)
{
    size_t at_ = (size_t)column / 8 * (size_t)bits;
    vu word[4];

    if (bits == 4) { /* even columns, odd columns of each word */
        turn(row, at_, word);
        for (int32_t i = 0; i < 4; i++) {
            v[2 * i] = word[i] & 0x0f0f0f0f;
            v[2 * i + 1] = word[i] >> 4 & 0x0f0f0f0f;
        }
        return;
    }
    if (bits == 2) { /* every fourth column of each word */
        turn_8(row, at_, word);
        for (int32_t i = 0; i < 8; i++) v[i] = word[i / 4] >> i % 4 * 2 & 0x03030303;
        return;
    }
    if (bits == 3) { /* every eighth column */
        turn_12(row, at_, word);
        v[0] = word[0] & 0x07070707;
        v[1] = word[0] >> 3 & 0x07070707;
        v[2] = (word[0] >> 6 & 0x03030303) | (word[1] & 0x01010101) << 2;
        v[3] = word[1] >> 1 & 0x07070707;
        v[4] = word[1] >> 4 & 0x07070707;
        v[5] = (word[1] >> 7 & 0x01010101) | (word[2] & 0x03030303) << 1;
        v[6] = word[2] >> 2 & 0x07070707;
        v[7] = word[2] >> 5 & 0x07070707;
        return;
    }
    if (bits == 8) {
        turn(row, at_, v);
        turn(row, at_ + 16, v + 4);
    } else {
        uint8_t bytes[LANES][32];
        const uint8_t *unpacked[LANES];
        for (int32_t i = 0; i < LANES; i++) {
            unpack(u, row[i] + at_, bytes[i]);
            unpacked[i] = bytes[i];
        }
        turn(unpacked, 0, v);
        turn(unpacked, 16, v + 4);
    }
    if (PLANES(bits) == 2)
        for (int32_t i = 0; i < 8; i++) {
            v[8 + i] = v[i] >> 4 & 0x0f0f0f0f;
            v[i] &= 0x0f0f0f0f;
        }
}

/* ---- scales ------------------------------------------------------------------------- */

typedef struct {
    vf scale, bias;
} line;

/* Scales or biases of groups [first, first + n), lane by lane; `to` is the first line's scale or bias. */
static void turn_scales(fm_number kind, const uint8_t *const *row, int32_t first, int32_t n, vf *to)
{
    size_t size = fm_number_size(kind);
    int32_t step = (int32_t)(8 / size);

    if (n < step) {
        for (int32_t i = 0; i < n; i++)
            for (int32_t r = 0; r < LANES; r++) {
                float number;
                fm_numbers_decode(kind, row[r] + (size_t)(first + i) * size, 1, &number);
                to[2 * i][r] = number;
            }
        return;
    }
    for (int32_t next = 0; next < n; next += step) {
        int32_t i = next + step <= n ? next : n - step; /* the last ones may come twice */
        vu v[2];
        turn_8(row, (size_t)(first + i) * size, v);
        for (int32_t j = 0; j < 2; j++) {
            if (kind == FM_BF16) {
                to[2 * (i + 2 * j)] = (vf)(v[j] << 16);
                to[2 * (i + 2 * j + 1)] = (vf)(v[j] & 0xffff0000);
            } else if (kind == FM_F16) {
                to[2 * (i + 2 * j)] = f16_lanes(v[j] & 0xffff);
                to[2 * (i + 2 * j + 1)] = f16_lanes(v[j] >> 16);
            } else {
                to[2 * (i + j)] = (vf)v[j];
            }
        }
    }
}

static void turn_grid(const fm_matrix *w, const panel_rows *p, int32_t column, int32_t columns, line *to)
{
    int32_t first = column / w->quant.group, n = columns / w->quant.group;
    turn_scales(w->quant.scale, p->scales, first, n, &to->scale);
    turn_scales(w->quant.scale, p->biases, first, n, &to->bias);
}

/* ---- activations ---------------------------------------------------------------------- */

/* n rows of x over some columns. */
typedef struct {
    const int8_t *q; /* arranged; row k at k * q_stride */
    size_t q_stride;
    const float *scale; /* of blocks; row k at k * scale_stride */
    size_t scale_stride;
    const float *sum; /* of groups; row k at k * q_stride / 32 */
} some_rows;

INLINE some_rows arrange_rows(int32_t bits, int32_t group, const fm_rows *x, int32_t r, int32_t n, int32_t column,
                              int32_t columns, int8_t *q, float *sums, size_t stride)
{
    int32_t wide = group / FM_Q8_BLOCK;
    for (int32_t k = 0; k < n; k++) {
        const int8_t *from = x->q + (size_t)(r + k) * x->q_stride + column;
        const float *sum = x->sum + (size_t)(r + k) * x->block_stride + column / FM_Q8_BLOCK;
        for (int32_t i = 0; i < columns; i += FM_Q8_BLOCK) arrange(bits, from + i, q + (size_t)k * stride + i);
        for (int32_t i = 0; i < columns / group; i++, sum += wide) {
            float total = sum[0];
            for (int32_t j = 1; j < wide; j++) total += sum[j];
            sums[(size_t)k * stride / FM_Q8_BLOCK + (size_t)i] = total;
        }
    }
    const float *scale = x->scale + (size_t)r * x->block_stride + column / FM_Q8_BLOCK;
    return (some_rows){q, stride, scale, x->block_stride, sums};
}

/* ---- products ------------------------------------------------------------------------- */

/* What is added to the sums after a block and after a group. */
INLINE void add_block(const vi dot[2][MOST], const line *const *grid, int32_t panels, int32_t group, int32_t b,
                      const some_rows *x, int32_t n, vf sum[2][MOST])
{
    for (int32_t k = 0; k < n; k++)
        for (int32_t p = 0; p < panels; p++) {
            vf both = grid[p][group].scale * splat(x->scale[(size_t)k * x->scale_stride + (size_t)b]);
            sum[p][k] = fma_v(__builtin_convertvector(dot[p][k], vf), both, sum[p][k]);
        }
}

INLINE void add_group(const line *const *grid, int32_t panels, int32_t group, const some_rows *x, int32_t n, vf sum[2][MOST])
{
    for (int32_t k = 0; k < n; k++)
        for (int32_t p = 0; p < panels; p++)
            sum[p][k] =
                fma_v(grid[p][group].bias, splat(x->sum[(size_t)k * x->q_stride / FM_Q8_BLOCK + (size_t)group]), sum[p][k]);
}

/* Few rows of x: codes go straight from memory into products. `bits` and `n` are constants where it is inlined. */
INLINE void stream(const fm_matrix *w, const unpacker *u, int32_t bits, const panel_rows *p, const line *grid, int32_t column,
                   int32_t columns, const some_rows *x, int32_t n, vf sum[2][MOST])
{
    int32_t wide = w->quant.group / FM_Q8_BLOCK;
    size_t step = 4 * (size_t)bits * LANES; /* bytes of a block of this panel, and as many of the next, which follows */
    const uint8_t *next = p->codes[0] + (size_t)w->cols / 8 * (size_t)bits * LANES + (size_t)column / FM_Q8_BLOCK * step;

    for (int32_t group = 0, b = 0; b < columns / FM_Q8_BLOCK; group++) {
        for (int32_t end = b + wide; b < end; b++, next += step) {
            vu v[16];
            vi dot[2][MOST];
            turn_codes(u, bits, p->codes, column + b * FM_Q8_BLOCK, v);
            for (size_t i = 0; i < step; i += 64) __builtin_prefetch(next + i);
            dots(v, false, 1, PLANES(bits), x->q + b * FM_Q8_BLOCK, x->q_stride, n, dot);
            add_block((const vi(*)[MOST])dot, &grid, 1, group, b, x, n, sum);
        }
        add_group(&grid, 1, group, x, n, sum);
    }
}

static inline void begin_sums(vf sum[MOST], int32_t n, int32_t column, const float *out, size_t out_stride, int32_t rows)
{
    for (int32_t k = 0; k < n; k++) sum[k] = column ? load_some(out + (size_t)k * out_stride, rows) : splat(0);
}

static inline void put_sums(const vf sum[MOST], int32_t n, float *out, size_t out_stride, int32_t rows)
{
    for (int32_t k = 0; k < n; k++) {
        if (rows == LANES) store(out + (size_t)k * out_stride, sum[k]);
        else store_some(out + (size_t)k * out_stride, sum[k], rows);
    }
}

/* The same with the constants picked. */
INLINE void stream_width(const fm_matrix *w, const unpacker *u, int32_t bits, const panel_rows *p, const line *grid,
                         int32_t column, int32_t columns, const some_rows *x, int32_t n, vf sum[2][MOST])
{
    switch (n) {
    case 1: stream(w, u, bits, p, grid, column, columns, x, 1, sum); break;
    case 2: stream(w, u, bits, p, grid, column, columns, x, 2, sum); break;
    case 3: stream(w, u, bits, p, grid, column, columns, x, 3, sum); break;
    default: stream(w, u, bits, p, grid, column, columns, x, 4, sum); break;
    }
}

static void stream_rows(const fm_matrix *w, const unpacker *u, const panel_rows *p, const line *grid, int32_t column,
                        int32_t columns, const some_rows *x, int32_t n, vf sum[2][MOST])
{
    switch (w->quant.bits) {
    case 2: stream_width(w, u, 2, p, grid, column, columns, x, n, sum); break;
    case 3: stream_width(w, u, 3, p, grid, column, columns, x, n, sum); break;
    case 4: stream_width(w, u, 4, p, grid, column, columns, x, n, sum); break;
    case 8: stream_width(w, u, 8, p, grid, column, columns, x, n, sum); break;
    default: stream_width(w, u, w->quant.bits, p, grid, column, columns, x, n, sum); break;
    }
}

/* Up to FEW rows of x, MOST of them at a time: what comes second finds the panel in the nearest cache. */
static void few_rows(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    const unpacker u = make_unpacker(w->quant.bits);
    float sums[FEW * GROUPS];
    int8_t q[FEW * SPAN];
    line grid[GROUPS];

    for (int32_t column = 0; column < w->cols; column += SPAN) {
        int32_t columns = w->cols - column < SPAN ? w->cols - column : SPAN;
        some_rows all = arrange_rows(w->quant.bits, w->quant.group, x, 0, x->rows, column, columns, q, sums, SPAN);
        for (int32_t row = first; row < last; row += LANES) {
            int32_t rows = last - row < LANES ? last - row : LANES;
            panel_rows p = find_rows(w, row, last);
            turn_grid(w, &p, column, columns, grid);
            for (int32_t r = 0; r < x->rows; r += MOST) {
                int32_t n = x->rows - r < MOST ? x->rows - r : MOST;
                float *to = out + (size_t)r * out_stride + row;
                some_rows in = {all.q + r * SPAN, SPAN, all.scale + (size_t)r * all.scale_stride, all.scale_stride,
                                all.sum + r * GROUPS};
                vf sum[2][MOST];
                begin_sums(sum[0], n, column, to, out_stride, rows);
                stream_rows(w, &u, &p, grid, column, columns, &in, n, sum);
                put_sums(sum[0], n, to, out_stride, rows);
            }
        }
    }
}

/* ---- many rows: codes are turned once, then tiles of sums run over them ------------------- */

/* A chunk of two panels, ready for every row of x: for each block, 8 vectors a plane, panel by panel. */
typedef struct {
    vu codes[CHUNK / FM_Q8_BLOCK * 2 * 16];
    line grid[2][CHUNK / FM_Q8_BLOCK];
} block;

INLINE void fill(const fm_matrix *w, const unpacker *u, int32_t bits, const panel_rows *p, int32_t panels, int32_t column,
                 int32_t columns, block *to)
{
    vu *v = to->codes;
    for (int32_t c = 0; c < columns; c += FM_Q8_BLOCK)
        for (int32_t i = 0; i < panels; i++, v += 8 * PLANES(bits)) {
            vu turned[16];
            turn_codes(u, bits, p[i].codes, column + c, turned);
            pack(turned, 8 * PLANES(bits));
            memcpy(v, turned, 8 * (size_t)PLANES(bits) * sizeof *v);
        }
    for (int32_t i = 0; i < panels; i++) turn_grid(w, &p[i], column, columns, to->grid[i]);
}

/* `panels` panels against n rows of x; these and `planes` are constants where it is inlined. */
INLINE void tile(const block *w, int32_t panels, int32_t planes, fm_quant quant, int32_t column, int32_t columns,
                 const fm_rows *x, int32_t r, int32_t n, float *out, size_t out_stride, const int32_t *rows)
{
    int32_t wide = quant.group / FM_Q8_BLOCK;
    const line *grid[2] = {w->grid[0], w->grid[1]};
    float sums[TILE * CHUNK / FM_Q8_BLOCK];
    int8_t q[TILE * CHUNK];
    vf sum[2][MOST];

    some_rows in = arrange_rows(quant.bits, quant.group, x, r, n, column, columns, q, sums, CHUNK);
    for (int32_t p = 0; p < panels; p++) begin_sums(sum[p], n, column, out + p * LANES, out_stride, rows[p]);
    for (int32_t group = 0, b = 0; b < columns / FM_Q8_BLOCK; group++) {
        for (int32_t end = b + wide; b < end; b++) {
            vi dot[2][MOST];
            dots(w->codes + b * panels * planes * 8, true, panels, planes, q + b * FM_Q8_BLOCK, CHUNK, n, dot);
            add_block((const vi(*)[MOST])dot, grid, panels, group, b, &in, n, sum);
        }
        add_group(grid, panels, group, &in, n, sum);
    }
    for (int32_t p = 0; p < panels; p++) put_sums(sum[p], n, out + p * LANES, out_stride, rows[p]);
}

/* Every row of x against a block of weights; `out` begins at the block's first weight row. */
INLINE void tiles(const block *w, int32_t panels, int32_t planes, fm_quant quant, int32_t column, int32_t columns,
                  const fm_rows *x, float *out, size_t stride, const int32_t *rows)
{
    int32_t r = 0;
#define ROWS_OF(n) tile(w, panels, planes, quant, column, columns, x, r, n, out + (size_t)r * stride, stride, rows)
    for (; r + TILE <= x->rows; r += TILE) ROWS_OF(TILE);
    switch (x->rows - r) {
    case 3: ROWS_OF(3); break;
    case 2: ROWS_OF(2); break;
    case 1: ROWS_OF(1); break;
    default: break;
    }
#undef ROWS_OF
}

static void many_rows(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    const unpacker u = make_unpacker(w->quant.bits);
    block b;

    for (int32_t row = first; row < last; row += 2 * LANES) {
        int32_t panels = last - row > LANES ? 2 : 1;
        int32_t rows[2] = {last - row < LANES ? last - row : LANES, last - row < 2 * LANES ? last - row - LANES : LANES};
        panel_rows p[2];
        for (int32_t i = 0; i < panels; i++) p[i] = find_rows(w, row + i * LANES, last);
        for (int32_t column = 0; column < w->cols; column += CHUNK) {
            int32_t columns = w->cols - column < CHUNK ? w->cols - column : CHUNK;
            switch (w->quant.bits) {
            case 2: fill(w, &u, 2, p, panels, column, columns, &b); break;
            case 3: fill(w, &u, 3, p, panels, column, columns, &b); break;
            case 4: fill(w, &u, 4, p, panels, column, columns, &b); break;
            case 8: fill(w, &u, 8, p, panels, column, columns, &b); break;
            default: fill(w, &u, w->quant.bits, p, panels, column, columns, &b); break;
            }
#define TILES(panels, planes) tiles(&b, panels, planes, w->quant, column, columns, x, out + row, out_stride, rows)
            if (PLANES(w->quant.bits) == 1) panels == 2 ? TILES(2, 1) : TILES(1, 1);
            else panels == 2 ? TILES(2, 2) : TILES(1, 2);
#undef TILES
        }
    }
}

static void matmul_q8(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    if (x->rows <= FEW) few_rows(w, first, last, x, out, out_stride);
    else many_rows(w, first, last, x, out, out_stride);
}

static void matmul(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    if (w->quant.kind == FM_AFFINE && x->q) matmul_q8(w, first, last, x, out, out_stride);
    else matmul_float(w, first, last, x, out, out_stride);
}
