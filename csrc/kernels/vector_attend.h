/* Attention over a part of the keys on vectors, included after vector_tile.h. */

/* Numbers i .. of n of a cache row as floats, zeros behind them. */
INLINE vf cached(fm_number kind, const uint8_t *row, int32_t i, int32_t n)
{
    if (n - i < LANES) {
        float some[LANES] = {0};
        fm_numbers_decode(kind, row + (size_t)i * fm_number_size(kind), n - i, some);
        return load(some);
    }
    if (kind == FM_F16) return load_f16(row + 2 * (size_t)i);
    if (kind == FM_BF16) return load_bf16(row + 2 * (size_t)i);
    return load((const float *)(const void *)row + i);
}

/* Where position `at_` lies. */
static inline const uint8_t *cache_row(const fm_attention *a, const void *cache, int32_t at_)
{
    return (const uint8_t *)cache + (size_t)at_ * a->stride * fm_number_size(a->kind);
}

/* n keys from position `first`, turned: strips of [head_dim][STRIP keys]. Lines of the next block are asked for. */
INLINE void turn_keys(const fm_attention *a, fm_number kind, int32_t first, int32_t n, float *to)
{
    size_t row_bytes = (size_t)a->head_dim * (kind == FM_F32 ? 4 : 2);
    for (int32_t j = 0; j < n; j += LANES) {
        const uint8_t *row[LANES];
        for (int32_t i = 0; i < LANES; i++) {
            row[i] = cache_row(a, a->keys, first + (j + i < n ? j + i : n - 1));
            if (first + FM_ATTEND_BLOCK + j + i < a->last)
                for (size_t b = 0; b < row_bytes; b += 64)
                    __builtin_prefetch(cache_row(a, a->keys, first + FM_ATTEND_BLOCK + j + i) + b, 0, 2);
        }
        float *strip = to + (size_t)(j / STRIP) * (size_t)a->head_dim * STRIP + j % STRIP;
        for (int32_t c = 0; c < a->head_dim; c += LANES) {
            vf v[LANES];
            for (int32_t i = 0; i < LANES; i++) v[i] = cached(kind, row[i], c, a->head_dim);
            transpose(v, LANES);
            for (int32_t i = 0; i < LANES && c + i < a->head_dim; i++) store(strip + (size_t)(c + i) * STRIP, v[i]);
        }
    }
}

/* n values from position `first`: strips of [FM_ATTEND_BLOCK][STRIP numbers], zeros behind head_dim. */
INLINE void widen_values(const fm_attention *a, fm_number kind, int32_t first, int32_t n, float *to)
{
    size_t row_bytes = (size_t)a->head_dim * (kind == FM_F32 ? 4 : 2);
    for (int32_t j = 0; j < n; j++) {
        const uint8_t *row = cache_row(a, a->values, first + j);
        if (first + FM_ATTEND_BLOCK + j < a->last)
            for (size_t b = 0; b < row_bytes; b += 64)
                __builtin_prefetch(cache_row(a, a->values, first + FM_ATTEND_BLOCK + j) + b, 0, 2);
        for (int32_t c = 0; c < a->head_dim; c += STRIP)
            for (int32_t v = 0; v < STRIP; v += LANES)
                store(to + (size_t)c * FM_ATTEND_BLOCK + j * STRIP + v,
                      c + v < a->head_dim ? cached(kind, row, c + v, a->head_dim) : (vf){0});
    }
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

/* sums = sums * fade + shares . values, for every query of `rows` rows that see n keys alike. */
static void add_values(const fm_attention *a, int32_t row, int32_t rows, int32_t n, const float *score, const float *values,
                       const float *fade)
{
    size_t wide = fm_attend_wide(a->head_dim);
    int32_t first = row * a->heads;
    for (int32_t c = 0; c < a->head_dim; c += STRIP) {
        product p = {score + (size_t)first * FM_ATTEND_BLOCK,
                     values + (size_t)c * FM_ATTEND_BLOCK,
                     a->part + (size_t)first * wide + c,
                     FM_ATTEND_BLOCK,
                     STRIP,
                     wide,
                     n,
                     fade ? fade + first : NULL};
        multiply(&p, rows * a->heads);
    }
}

static void attend(const fm_attention *a)
{
    int32_t queries = a->rows * a->heads;
    size_t dim = (size_t)a->head_dim, wide = fm_attend_wide(a->head_dim);
    float *top = a->part + (size_t)queries * wide, *total = top + queries;
    float *q = a->scratch, *keys = q + (size_t)queries * dim, *values = keys + FM_ATTEND_BLOCK * wide;
    float *score = values + FM_ATTEND_BLOCK * wide, *fade = score + (size_t)queries * FM_ATTEND_BLOCK;

    for (int32_t r = 0; r < a->rows; r++)
        memcpy(q + (size_t)r * (size_t)a->heads * dim, a->q + (size_t)r * a->q_stride, (size_t)a->heads * dim * sizeof *q);
    for (int32_t at_ = a->first; at_ < a->last; at_ += FM_ATTEND_BLOCK) {
        int32_t n = seen_by(a, a->rows - 1, at_);
        bool first = at_ == a->first;
        if (a->kind == FM_F16) turn_keys(a, FM_F16, at_, n, keys), widen_values(a, FM_F16, at_, n, values);
        else if (a->kind == FM_BF16) turn_keys(a, FM_BF16, at_, n, keys), widen_values(a, FM_BF16, at_, n, values);
        else turn_keys(a, FM_F32, at_, n, keys), widen_values(a, FM_F32, at_, n, values);

        for (int32_t j = 0; j < n; j += STRIP) {
            product p = {q, keys + (size_t)j * dim, score + j, dim, STRIP, FM_ATTEND_BLOCK, a->head_dim, NULL};
            multiply(&p, queries);
        }
        for (int32_t i = 0; i < queries; i++)
            fade[i] =
                weigh(score + (size_t)i * FM_ATTEND_BLOCK, seen_by(a, i / a->heads, at_), a->scale, top + i, total + i, first);
        if (seen_by(a, 0, at_) == n) {
            add_values(a, 0, a->rows, n, score, values, first ? NULL : fade);
            continue;
        }
        for (int32_t r = 0; r < a->rows; r++) /* the block of their own positions */
            add_values(a, r, 1, seen_by(a, r, at_), score, values, first ? NULL : fade);
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
