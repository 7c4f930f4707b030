/* Attention over a part of the keys on vectors, included after vector_tile.h. */

/* n numbers as floats, zeros behind them. */
static inline vf some(fm_number kind, const uint8_t *from, int32_t n)
{
    float all[LANES] = {0};
    fm_numbers_decode(kind, from, n < LANES ? n : LANES, all);
    return load(all);
}

INLINE size_t size_of(fm_number kind)
{
    return kind == FM_F32 ? 4 : 2;
}

/* A number of the cache. */
static inline const uint8_t *in_cache(const fm_attention *a, const void *cache, size_t number)
{
    return (const uint8_t *)cache + number * size_of(a->kind);
}

/* How many bytes behind a number of this block the next block has it; 0 if there is none. */
static inline size_t ahead_of(const fm_attention *a, int32_t block)
{
    bool more = block + FM_ATTEND_BLOCK < a->position + a->rows;
    return more ? a->block * size_of(a->kind) : 0;
}

/* n scores become shares relative to the largest so far, zeros behind them; returns what is left of the sums before. */
static float weigh(float *score, int32_t n, float scale, float *top, float *total, bool first)
{
    static const int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float most = first ? -INFINITY : *top, high[LANES];
    vf highest = splat(-INFINITY), sum = {0};
    vi lane;

    memcpy(&lane, numbers, sizeof lane);
    for (int32_t j = 0; j < FM_ATTEND_BLOCK; j += LANES) {
        vf s = pick(lane + j < n, load(score + j) * scale, splat(-INFINITY));
        highest = pick(s > highest, s, highest); /* a NaN shows in the sum */
        store(score + j, s);
    }
    store(high, highest);
    for (int32_t i = 0; i < LANES; i++)
        if (high[i] > most) most = high[i];
    for (int32_t j = 0; j < FM_ATTEND_BLOCK; j += LANES) {
        vf e = exp_v(load(score + j) - most);
        store(score + j, e);
        sum += e;
    }
    float shrink = first ? 0 : expf(*top - most);
    *total = (first ? 0 : *total * shrink) + sum_lanes(sum);
    *top = most;
    return shrink;
}

/* How many keys of the block at `at_` row r sees. */
static inline int32_t seen_by(const fm_attention *a, int32_t r, int32_t at_)
{
    int32_t end = a->position + r + 1 < a->last ? a->position + r + 1 : a->last;
    return end - at_ < FM_ATTEND_BLOCK ? end - at_ : FM_ATTEND_BLOCK;
}

/* sums = sums * fade + shares . values, for every query of `rows` rows that see n keys of the block alike. */
static void add_values(const fm_attention *a, int32_t row, int32_t rows, int32_t block, int32_t n, const float *score,
                       const float *fade, float *room)
{
    size_t wide = fm_attend_wide(a->head_dim);
    int32_t first = row * a->heads;
    for (int32_t c = 0; c < a->head_dim; c += TILE_COLUMNS) {
        const uint8_t *values = in_cache(a, a->values, fm_value_at(a, block, c));
        product p = {.a = score + (size_t)first * FM_ATTEND_BLOCK,
                     .b = values,
                     .c = a->part + (size_t)first * wide + c,
                     .a_stride = FM_ATTEND_BLOCK,
                     .b_stride = (size_t)a->head_dim,
                     .c_stride = wide,
                     .inner = n,
                     .fade = fade ? fade + first : NULL,
                     .kind = a->kind,
                     .ahead = ahead_of(a, block)};
        if (a->head_dim - c < TILE_COLUMNS) { /* not a whole strip: a copy with zeros behind */
            for (int32_t j = 0; j < n; j++)
                for (int32_t v = 0; v < TILE_COLUMNS; v += LANES) {
                    int32_t left = a->head_dim - c - v;
                    const uint8_t *from = values + (size_t)(j * a->head_dim + v) * size_of(a->kind);
                    store(room + j * TILE_COLUMNS + v, left > 0 ? some(a->kind, from, left) : (vf){0});
                }
            p.b = room;
            p.b_stride = TILE_COLUMNS;
            p.kind = FM_F32;
            p.ahead = 0;
        }
        multiply(&p, rows * a->heads);
    }
}

static void attend(const fm_attention *a)
{
    int32_t queries = a->rows * a->heads;
    size_t dim = (size_t)a->head_dim, wide = fm_attend_wide(a->head_dim);
    float *top = a->part + (size_t)queries * wide, *total = top + queries;
    float *q = a->scratch, *room = q + (size_t)queries * dim;
    float *score = room + FM_ATTEND_BLOCK * TILE_COLUMNS, *fade = score + (size_t)queries * FM_ATTEND_BLOCK;

    for (int32_t r = 0; r < a->rows; r++)
        memcpy(q + (size_t)r * (size_t)a->heads * dim, a->q + (size_t)r * a->q_stride, (size_t)a->heads * dim * sizeof *q);
    for (int32_t at_ = a->first; at_ < a->last; at_ += FM_ATTEND_BLOCK) {
        int32_t n = seen_by(a, a->rows - 1, at_);
        bool first = at_ % FM_ATTEND_PART == 0;
        for (int32_t j = 0; j < n; j += TILE_COLUMNS) {
            product p = {.a = q,
                         .b = in_cache(a, a->keys, fm_key_at(a, at_ + j, 0)),
                         .c = score + j,
                         .a_stride = dim,
                         .b_stride = FM_ATTEND_BLOCK,
                         .c_stride = FM_ATTEND_BLOCK,
                         .inner = a->head_dim,
                         .kind = a->kind,
                         .ahead = ahead_of(a, at_)};
            multiply(&p, queries);
        }
        for (int32_t i = 0; i < queries; i++)
            fade[i] =
                weigh(score + (size_t)i * FM_ATTEND_BLOCK, seen_by(a, i / a->heads, at_), a->scale, top + i, total + i, first);
        if (seen_by(a, 0, at_) == n) {
            add_values(a, 0, a->rows, at_, n, score, first ? NULL : fade, room);
            continue;
        }
        for (int32_t r = 0; r < a->rows; r++) /* the block of their own positions */
            add_values(a, r, 1, at_, seen_by(a, r, at_), score, first ? NULL : fade, room);
    }
}

static void attend_merge(float *part, const float *next, int32_t queries, int32_t head_dim)
{
    size_t wide = fm_attend_wide(head_dim), tops = (size_t)queries * wide, totals = tops + (size_t)queries;
    for (int32_t i = 0; i < queries; i++) {
        float *top = part + tops + i, most = next[tops + (size_t)i] > *top ? next[tops + (size_t)i] : *top;
        float shrink = expf(*top - most), by = expf(next[tops + (size_t)i] - most);
        for (size_t c = (size_t)i * wide; c < (size_t)(i + 1) * wide; c += LANES)
            store(part + c, fma_v(load(next + c), splat(by), load(part + c) * shrink));
        part[totals + (size_t)i] = part[totals + (size_t)i] * shrink + next[totals + (size_t)i] * by;
        *top = most;
    }
}

static void attend_end(const fm_attention *a, float *out)
{
    int32_t queries = a->rows * a->heads;
    size_t wide = fm_attend_wide(a->head_dim);
    const float *total = a->part + (size_t)queries * (wide + 1);
    for (int32_t i = 0; i < queries; i++) {
        float *to = out + (size_t)(i / a->heads) * a->q_stride + (size_t)(i % a->heads) * (size_t)a->head_dim;
        for (int32_t c = 0; c < a->head_dim; c += LANES) put(to, c, a->head_dim, load(a->part + (size_t)i * wide + c) / total[i]);
    }
}
