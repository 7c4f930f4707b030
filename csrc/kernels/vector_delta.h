/* The gated delta rule on vectors, included after vector_tile.h. See kernels_ref.c for the formulas. */

#define STEP_VECTORS (LANES == 16 ? 8 : 4) /* columns of the state whose sums stay in registers */

/* One row of the state at a time, twice: what comes from memory in the first pass is still near in the second. */
INLINE void step_columns(const fm_delta *d, int32_t first, float keep, bool past)
{
    size_t stride = (size_t)d->value_dim;
    vf write[STEP_VECTORS], out[STEP_VECTORS];

    for (int32_t v = 0; v < STEP_VECTORS; v++) write[v] = out[v] = (vf){0};
    const float *from = d->from + first;
    for (int32_t i = 0; i < d->key_dim; i++, from += stride) {
        vf k = splat(d->k[i]);
#pragma GCC unroll 8
        for (int32_t v = 0; v < STEP_VECTORS; v++) write[v] = fma_v(load(from + v * LANES), k, write[v]);
    }
    for (int32_t v = 0; v < STEP_VECTORS; v++) write[v] = (load(d->v + first + v * LANES) - write[v] * keep) * d->beta[0];
    from = d->from + first;
    float *to = d->to + first;
    for (int32_t i = 0; i < d->key_dim; i++, from += stride, to += stride) {
        vf k = splat(d->k[i]), q = splat(d->q[i]);
#pragma GCC unroll 8
        for (int32_t v = 0; v < STEP_VECTORS; v++) {
            vf s = fma_v(write[v], k, load(from + v * LANES) * keep);
            if (past) store_past(to + v * LANES, s);
            else store(to + v * LANES, s);
            out[v] = fma_v(s, q, out[v]);
        }
    }
    for (int32_t v = 0; v < STEP_VECTORS; v++) store(d->out + first + v * LANES, out[v]);
}

/* The same for up to LANES columns. */
static void step_some_columns(const fm_delta *d, int32_t first, float keep)
{
    int32_t dv = d->value_dim;
    vf seen = {0}, out = {0};
    for (int32_t i = 0; i < d->key_dim; i++) seen = fma_v(at(d->from + (size_t)i * (size_t)dv, first, dv), splat(d->k[i]), seen);
    vf write = (at(d->v, first, dv) - seen * keep) * d->beta[0];
    for (int32_t i = 0; i < d->key_dim; i++) {
        vf s = fma_v(write, splat(d->k[i]), at(d->from + (size_t)i * (size_t)dv, first, dv) * keep);
        put(d->to + (size_t)i * (size_t)dv, first, dv, s);
        out = fma_v(s, splat(d->q[i]), out);
    }
    put(d->out, first, dv, out);
}

static void delta_step(const fm_delta *d)
{
    enum { WIDE = STEP_VECTORS * LANES };
    float keep = expf(d->decay[0]);
    int32_t j = 0;
    /* the next state is not read before the whole next token: past the caches, where lines are whole */
    bool past = d->to != d->from && (uintptr_t)d->to % 64 == 0 && d->value_dim % 16 == 0;

    for (; j + WIDE <= d->value_dim; j += WIDE)
        if (past) step_columns(d, j, keep, true);
        else step_columns(d, j, keep, false);
    for (; j < d->value_dim; j += LANES) step_some_columns(d, j, keep);
    if (past) end_past();
}

/* ---- chunks ----------------------------------------------------------------------- */

#define SOLVED 8 /* rows of a chunk that are solved one by one */

/* What all columns of the state share. */
typedef struct {
    float fade[FM_DELTA_CHUNK];                 /* e^G[i] */
    float kk[FM_DELTA_CHUNK][FM_DELTA_CHUNK];   /* -beta[i] e^(G[i]-G[l]) (k[i].k[l]) for l < i, else 0 */
    float qk[FM_DELTA_CHUNK][FM_DELTA_CHUNK];   /* e^(G[i]-G[l]) (q[i].k[l]) for l <= i, else 0 */
    float *keys;                                /* [key_dim][FM_DELTA_CHUNK]: e^(G[n-1]-G[i]) k[i], turned */
    float write[FM_DELTA_CHUNK * TILE_COLUMNS]; /* of TILE_COLUMNS columns */
    float read[FM_DELTA_CHUNK * TILE_COLUMNS];
} chunk;

static void chunk_products(const fm_delta *d, chunk *c, const float *total)
{
    int32_t n = d->n;
    turn_floats(d->k, d->qk_stride, n, d->key_dim, c->keys, FM_DELTA_CHUNK);
    for (int32_t p = 0; p < (n + LANES - 1) / LANES * LANES; p += TILE_COLUMNS) {
        product kk = {d->k, c->keys + p, &c->kk[0][p], d->qk_stride, FM_DELTA_CHUNK, FM_DELTA_CHUNK, d->key_dim, NULL, FM_F32, 0},
                qk = kk;
        qk.a = d->q;
        qk.c = &c->qk[0][p];
        multiply(&kk, n);
        multiply(&qk, n);
    }
    for (int32_t i = 0; i < n; i++) {
        float beta = d->beta[(size_t)i * d->gate_stride];
        for (int32_t l = 0; l <= i; l += LANES) {
            vf between = exp_v(total[i] - load(total + l));
            store(&c->kk[i][l], load(&c->kk[i][l]) * between * -beta);
            store(&c->qk[i][l], load(&c->qk[i][l]) * between);
        }
        for (int32_t l = i; l < FM_DELTA_CHUNK; l++) c->kk[i][l] = 0;
        for (int32_t l = i + 1; l < FM_DELTA_CHUNK; l++) c->qk[i][l] = 0;
    }
    for (int32_t r = 0; r < d->key_dim; r++)
        for (int32_t l = 0; l < n; l += LANES) {
            float *k = c->keys + (size_t)r * FM_DELTA_CHUNK + l;
            store(k, load(k) * exp_v(total[n - 1] - load(total + l)));
        }
}

/* The writes: a block of rows takes all earlier blocks away at once, then its own rows one by one. */
static void chunk_solve(chunk *c, int32_t n)
{
    static const float one[SOLVED] = {1, 1, 1, 1, 1, 1, 1, 1};
    for (int32_t b = 0; b < n; b += SOLVED) {
        int32_t rows = n - b < SOLVED ? n - b : SOLVED;
        product earlier = {c->kk[b], c->write, c->write + b * TILE_COLUMNS, FM_DELTA_CHUNK, TILE_COLUMNS, TILE_COLUMNS, b, one,
                           FM_F32,   0};
        multiply(&earlier, rows);
        for (int32_t i = b + 1; i < b + rows; i++) {
            product own = {&c->kk[i][b],
                           c->write + b * TILE_COLUMNS,
                           c->write + i * TILE_COLUMNS,
                           FM_DELTA_CHUNK,
                           TILE_COLUMNS,
                           TILE_COLUMNS,
                           i - b,
                           one,
                           FM_F32,
                           0};
            multiply(&own, 1);
        }
    }
}

/* TILE_COLUMNS columns of the state, `columns` of which there are, side by side at `state`. */
static void chunk_columns(const fm_delta *d, chunk *c, int32_t first, int32_t columns, float *state)
{
    int32_t n = d->n, dk = d->key_dim, end = first + columns;
    size_t wide = (size_t)d->value_dim;
    for (int32_t r = 0; r < dk; r++)
        for (int32_t v = 0; v < TILE_COLUMNS; v += LANES)
            store(state + r * TILE_COLUMNS + v, v < columns ? at(d->from + (size_t)r * wide, first + v, end) : (vf){0});

    product seen = {d->k, state, c->write, d->qk_stride, TILE_COLUMNS, TILE_COLUMNS, dk, NULL, FM_F32, 0}, read = seen;
    read.a = d->q;
    read.c = c->read;
    multiply(&seen, n);
    multiply(&read, n);
    for (int32_t i = 0; i < n; i++)
        for (int32_t v = 0; v < columns; v += LANES) {
            float *w = c->write + i * TILE_COLUMNS + v;
            store(w, (at(d->v + (size_t)i * d->v_stride, first + v, end) - load(w) * c->fade[i]) *
                         d->beta[(size_t)i * d->gate_stride]);
        }
    chunk_solve(c, n);
    for (int32_t b = 0; b < n; b += SOLVED) { /* what lies above the diagonal is 0 */
        int32_t rows = n - b < SOLVED ? n - b : SOLVED;
        product add = {
            c->qk[b], c->write, c->read + b * TILE_COLUMNS, FM_DELTA_CHUNK, TILE_COLUMNS, TILE_COLUMNS, b + rows, c->fade + b,
            FM_F32,   0};
        multiply(&add, rows);
    }
    float fade[TILE_ROWS];
    for (int32_t r = 0; r < TILE_ROWS; r++) fade[r] = c->fade[n - 1];
    for (int32_t r = 0; r < dk; r += TILE_ROWS) {
        product next = {c->keys + r * FM_DELTA_CHUNK,
                        c->write,
                        state + r * TILE_COLUMNS,
                        FM_DELTA_CHUNK,
                        TILE_COLUMNS,
                        TILE_COLUMNS,
                        n,
                        fade,
                        FM_F32,
                        0};
        multiply(&next, dk - r < TILE_ROWS ? dk - r : TILE_ROWS);
    }
    for (int32_t v = 0; v < columns; v += LANES) {
        for (int32_t i = 0; i < n; i++)
            put(d->out + (size_t)i * d->out_stride, first + v, end, load(c->read + i * TILE_COLUMNS + v));
        for (int32_t r = 0; r < dk; r++) put(d->to + (size_t)r * wide, first + v, end, load(state + r * TILE_COLUMNS + v));
    }
}

static void delta_chunk(const fm_delta *d)
{
    _Alignas(64) chunk c; /* whole lines */
    float total[FM_DELTA_CHUNK], *state = d->scratch;
    c.keys = state + (size_t)d->key_dim * TILE_COLUMNS;

    double sum = 0;
    for (int32_t i = 0; i < FM_DELTA_CHUNK; i++) {
        if (i < d->n) sum += (double)d->decay[(size_t)i * d->gate_stride];
        total[i] = (float)sum;
        c.fade[i] = expf(total[i]);
    }
    chunk_products(d, &c, total);
    for (int32_t j = 0; j < d->value_dim; j += TILE_COLUMNS)
        chunk_columns(d, &c, j, d->value_dim - j < TILE_COLUMNS ? d->value_dim - j : TILE_COLUMNS, state);
}
