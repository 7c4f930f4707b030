/* Attention and the delta rule against their formulas in double; part of test_kernels.c. */

/* ---- attention ---------------------------------------------------------------------------- */

typedef struct {
    fm_attention a;
    int32_t keys; /* there are */
    float *q, *key, *value;
} attention_case;

/* Keys and values into the caches, and back as what the caches hold. */
static void keep_cells(attention_case *c)
{
    const fm_attention *a = &c->a;
    size_t size = fm_number_size(a->kind);
    for (int32_t at = 0; at < c->keys; at++)
        for (int32_t i = 0; i < a->head_dim; i++) {
            float *key = c->key + (size_t)(at * a->head_dim + i), *value = c->value + (size_t)(at * a->head_dim + i);
            uint8_t *k = (uint8_t *)(uintptr_t)a->keys + fm_key_at(a, at, i) * size;
            uint8_t *v = (uint8_t *)(uintptr_t)a->values + fm_value_at(a, at, i) * size;
            fm_numbers_encode(a->kind, key, 1, k);
            fm_numbers_encode(a->kind, value, 1, v);
            fm_numbers_decode(a->kind, k, 1, key);
            fm_numbers_decode(a->kind, v, 1, value);
        }
}

/* Rows that end at the last of `keys` keys. The cache holds what its bytes say, exactly as many as it needs. */
static attention_case make_attention(fm_number kind, int32_t rows, int32_t heads, int32_t dim, int32_t keys)
{
    size_t block = (size_t)dim * 2 * FM_ATTEND_BLOCK, blocks = ((size_t)keys + FM_ATTEND_BLOCK - 1) / FM_ATTEND_BLOCK;
    size_t room = (blocks - 1) * block + (size_t)dim * FM_ATTEND_BLOCK; /* of the second kv head only its first blocks */
    size_t cells = (size_t)keys * (size_t)dim;
    size_t q_stride = (size_t)(heads * dim) + 5, queries = (size_t)rows * q_stride;
    attention_case c = {.keys = keys, .q = must(queries * 4), .key = must(cells * 4), .value = must(cells * 4)};
    fill(c.q, queries, 11);
    fill(c.key, cells, 12);
    fill(c.value, cells, 13);
    c.a = (fm_attention){.q = c.q,
                         .q_stride = q_stride,
                         .keys = must(room * fm_number_size(kind)),
                         .values = must(room * fm_number_size(kind)),
                         .block = block,
                         .kind = kind,
                         .rows = rows,
                         .heads = heads,
                         .head_dim = dim,
                         .position = keys - rows,
                         .scale = 0.25f};
    keep_cells(&c);
    return c;
}

static void free_attention(attention_case c)
{
    free(c.q);
    free(c.key);
    free(c.value);
    free((void *)(uintptr_t)c.a.keys);
    free((void *)(uintptr_t)c.a.values);
}

static void attention_truth(const attention_case *c, int32_t row, int32_t head, double *want)
{
    int32_t dim = c->a.head_dim, seen = c->a.position + row + 1;
    const float *q = c->q + (size_t)row * c->a.q_stride + (size_t)(head * dim);
    double top = -INFINITY, total = 0, *p = must((size_t)seen * 8);
    for (int32_t t = 0; t < seen; t++) {
        for (int32_t i = 0; i < dim; i++) p[t] += (double)q[i] * (double)c->key[t * dim + i] * 0.25;
        top = fmax(top, p[t]);
    }
    for (int32_t t = 0; t < seen; t++) total += p[t] = exp(p[t] - top);
    for (int32_t t = 0; t < seen; t++)
        for (int32_t i = 0; i < dim; i++) want[i] += p[t] / total * (double)c->value[t * dim + i];
    free(p);
}

/* All parts of the keys, merged; every part in one call or, `again`, going on after each two blocks. */
static void run_attention(const fm_kernels *k, fm_attention a, bool again, float *out)
{
    int32_t queries = a.rows * a.heads, end = a.position + a.rows;
    size_t floats = fm_attend_part(queries, a.head_dim), scratch = fm_attend_scratch(queries, a.head_dim);
    float *sum = guarded(floats), *next = guarded(floats);
    a.scratch = guarded(scratch);
    for (a.first = 0; a.first < end; a.first += FM_ATTEND_PART) {
        a.last = end - a.first < FM_ATTEND_PART ? end : a.first + FM_ATTEND_PART;
        a.part = a.first ? next : sum;
        for (fm_attention go = a; go.first < a.last; go.first = go.last) {
            if (again && a.last - go.first > 2 * FM_ATTEND_BLOCK) go.last = go.first + 2 * FM_ATTEND_BLOCK;
            else go.last = a.last;
            k->attend(&go);
        }
        if (a.first) k->attend_merge(sum, next, queries, a.head_dim);
    }
    a.part = sum;
    k->attend_end(&a, out);
    CHECK(unharmed(sum, floats) && unharmed(next, floats) && unharmed(a.scratch, scratch));
    free(sum);
    free(next);
    free(a.scratch);
}

static void one_attention(const fm_kernels *k, fm_number kind, int32_t rows, int32_t heads, int32_t dim, int32_t keys)
{
    attention_case c = make_attention(kind, rows, heads, dim, keys);
    size_t cells = (size_t)rows * c.a.q_stride, n = (size_t)(heads * dim);
    float *out = guarded(cells), *alone = guarded(cells);

    run_attention(k, c.a, false, out);
    CHECK(unharmed(out, cells));
    for (int32_t r = 0; r < rows; r++) {
        const float *got = out + (size_t)r * c.a.q_stride;
        double *want = must(n * 8);
        for (int32_t h = 0; h < heads; h++) attention_truth(&c, r, h, want + h * dim);
        CHECK_THAT(nmse(got, want, n) <= 1e-11, "%s attend row %d of %d, %d heads of %d, %d keys: %g", k->name, r, rows, heads,
                   dim, keys, nmse(got, want, n));
        fm_attention one = c.a;
        one.q += (size_t)r * c.a.q_stride;
        one.position += r;
        one.rows = 1;
        run_attention(k, one, r % 2 == 0, alone);
        CHECK_THAT(memcmp(alone, got, n * 4) == 0, "%s attend: row %d of %d depends on the others", k->name, r, rows);
        free(want);
    }
    free(out);
    free(alone);
    free_attention(c);
}

/* What a later row keeps, were it infinite, is not seen by the rows before it. */
static void later_rows_are_unseen(const fm_kernels *k)
{
    enum { ROWS = 8, DIM = 32, KEYS = 100 };
    attention_case c = make_attention(FM_F32, ROWS, 2, DIM, KEYS);
    size_t cells = ROWS * c.a.q_stride, last = (KEYS - 1) * DIM;
    float *out = guarded(cells);
    for (size_t i = last; i < last + DIM; i++) c.key[i] = c.value[i] = INFINITY;
    keep_cells(&c);
    run_attention(k, c.a, false, out);
    for (size_t r = 0; r < ROWS; r++) CHECK(isfinite(out[r * c.a.q_stride]) == (r < ROWS - 1));
    free(out);
    free_attention(c);
}

static void test_attend(const fm_kernels *k)
{
    later_rows_are_unseen(k);
    static const int32_t at[] = {1, 2, 63, 64, 65, 128, 129, 200, 500, 1024, 1025, 2090};
    for (int32_t kind = 0; kind < 3; kind++)
        for (int32_t i = 0; i < 12; i++) {
            one_attention(k, (fm_number)kind, 1, 1 + i % 4, 32, at[i]);
            one_attention(k, (fm_number)kind, 1, 2, 24, at[i]);
            one_attention(k, (fm_number)kind, 1, 1, 9, at[i]);
        }
    one_attention(k, FM_F16, 1, 8, 256, 130);
    one_attention(k, FM_F16, 8, 8, 256, 72);
    one_attention(k, FM_F16, 64, 1, 32, 64); /* from the first key on */
    one_attention(k, FM_BF16, 13, 3, 40, 1024 + 77);
    one_attention(k, FM_F32, 16, 5, 64, 1024 + 16);
}

static void test_attend_merge(const fm_kernels *k)
{
    enum { QUERIES = 3, DIM = 20, WIDE = 32, N = QUERIES * (WIDE + 2) };
    float a[N], b[N], got[N + 14];
    for (int32_t way = 0; way < 2; way++) {
        fill(a, N, 21);
        fill(b, N, 22);
        for (int32_t i = 0; i < QUERIES; i++) b[QUERIES * WIDE + i] = a[QUERIES * WIDE + i] + (float)(way ? i - 1 : 1 - i) * 3;
        memcpy(got, a, sizeof a);
        k->attend_merge(got, b, QUERIES, DIM);
        for (int32_t i = 0; i < QUERIES; i++) {
            double s = (double)a[QUERIES * WIDE + i], t = (double)b[QUERIES * WIDE + i], top = fmax(s, t);
            CHECK(fabs((double)got[QUERIES * WIDE + i] - top) < 1e-6);
            int32_t total = QUERIES * (WIDE + 1) + i;
            CHECK(fabs((double)got[total] - (double)a[total] * exp(s - top) - (double)b[total] * exp(t - top)) < 1e-6);
            for (int32_t c = i * WIDE; c < i * WIDE + DIM; c++)
                CHECK(fabs((double)got[c] - (double)a[c] * exp(s - top) - (double)b[c] * exp(t - top)) < 1e-6);
        }
    }
}

static void test_attend_end(const fm_kernels *k)
{
    enum { ROWS = 2, HEADS = 3, DIM = 20, WIDE = 32, QUERIES = ROWS * HEADS, STRIDE = HEADS * DIM + 4 };
    float part[QUERIES * (WIDE + 2)], *out = guarded(ROWS * STRIDE);
    fill(part, QUERIES * (WIDE + 2), 23);
    fm_attention a = {.q_stride = STRIDE, .rows = ROWS, .heads = HEADS, .head_dim = DIM, .part = part};
    k->attend_end(&a, out);
    for (int32_t i = 0; i < QUERIES; i++)
        for (int32_t c = 0; c < DIM; c++) {
            double want = (double)part[i * WIDE + c] / (double)part[QUERIES * (WIDE + 1) + i];
            CHECK(fabs((double)out[i / HEADS * STRIDE + i % HEADS * DIM + c] - want) <= 1e-6 * fabs(want));
        }
    for (int32_t c = HEADS * DIM; c < STRIDE; c++) CHECK(out[c] == GUARD); /* between the rows */
    CHECK(unharmed(out, ROWS * STRIDE));
    free(out);
}

static void test_narrow(const fm_kernels *k)
{
    static const float odd[] = {0,        -0.0f, 1e-8f, 3e-8f,    6e-5f,          65504,
                                65519.9f, 65520, -1e6f, INFINITY, 1.00048828125f, 1.0009765626f};
    for (int32_t kind = 0; kind < 3; kind++)
        for (int32_t l = 0; l < LENGTHS; l++) {
            int32_t n = lengths[l];
            size_t bytes = (size_t)n * fm_number_size((fm_number)kind);
            float *x = must((size_t)n * 4);
            uint8_t *got = must(bytes + 1), *want = must(bytes);
            fill(x, (size_t)n, 31);
            for (int32_t i = 0; i < n && i < 12; i++) x[n - 1 - i] = odd[i];
            got[bytes] = 77;
            k->narrow((fm_number)kind, x, n, got);
            fm_numbers_encode((fm_number)kind, x, n, want);
            CHECK_THAT(memcmp(got, want, bytes) == 0 && got[bytes] == 77, "%s narrow kind %d, %d numbers", k->name, kind, n);
            free(x);
            free(got);
            free(want);
        }
}

/* ---- delta rule ------------------------------------------------------------------------------ */

typedef struct {
    int32_t n, dk, dv;
    float *q, *k, *v, *decay, *beta;
} delta_input;

static delta_input make_delta(int32_t n, int32_t dk, int32_t dv)
{
    size_t rows = (size_t)n;
    delta_input in = {n,
                      dk,
                      dv,
                      must(rows * (size_t)dk * 4),
                      must(rows * (size_t)dk * 4),
                      must(rows * (size_t)dv * 4),
                      must(rows * 4),
                      must(rows * 4)};
    uint64_t seed = (uint64_t)(n + dk + dv);
    fill(in.q, rows * (size_t)dk, seed);
    fill(in.k, rows * (size_t)dk, seed + 1);
    fill(in.v, rows * (size_t)dv, seed + 2);
    for (int32_t r = 0; r < n; r++) {
        double a = sqrt(energy(in.q + r * dk, dk)), b = sqrt(energy(in.k + r * dk, dk));
        for (int32_t i = 0; i < dk; i++) {
            in.q[r * dk + i] = (float)((double)in.q[r * dk + i] / a / sqrt(dk));
            in.k[r * dk + i] = (float)((double)in.k[r * dk + i] / b);
        }
        in.decay[r] = (float)-exp(noise_unit(&seed) * 8 - 7);
        in.beta[r] = (float)noise_unit(&seed);
    }
    return in;
}

static void free_delta(delta_input in)
{
    free(in.q);
    free(in.k);
    free(in.v);
    free(in.decay);
    free(in.beta);
}

/* The recurrence in double. */
static void delta_truth(const delta_input *in, double *state, double *out)
{
    for (int32_t r = 0; r < in->n; r++) {
        double keep = exp((double)in->decay[r]);
        for (int32_t i = 0; i < in->dk * in->dv; i++) state[i] *= keep;
        for (int32_t j = 0; j < in->dv; j++) {
            double seen = 0, o = 0;
            for (int32_t i = 0; i < in->dk; i++) seen += state[i * in->dv + j] * (double)in->k[r * in->dk + i];
            double d = (double)in->beta[r] * ((double)in->v[r * in->dv + j] - seen);
            for (int32_t i = 0; i < in->dk; i++) {
                state[i * in->dv + j] += (double)in->k[r * in->dk + i] * d;
                o += state[i * in->dv + j] * (double)in->q[r * in->dk + i];
            }
            out[r * in->dv + j] = o;
        }
    }
}

/* The rows in chunks of `chunk`; 1: steps. Each reads one of two states (they may be one) and writes the other; returns the last. */
static float *run_delta(const fm_kernels *k, const delta_input *in, int32_t chunk, float *state, float *to, float *out)
{
    float *scratch = must(fm_delta_scratch(in->dk) * 4);
    for (int32_t r = 0; r < in->n; r += chunk) {
        int32_t n = in->n - r < chunk ? in->n - r : chunk;
        fm_delta d = {in->q + r * in->dk,
                      in->k + r * in->dk,
                      in->v + r * in->dv,
                      (size_t)in->dk,
                      (size_t)in->dv,
                      in->decay + r,
                      in->beta + r,
                      1,
                      out + r * in->dv,
                      (size_t)in->dv,
                      state,
                      to,
                      n,
                      in->dk,
                      in->dv,
                      scratch};
        if (chunk == 1) k->delta_step(&d);
        else k->delta_chunk(&d);
        to = state;
        state = d.to;
    }
    free(scratch);
    return state;
}

static void one_delta(const fm_kernels *k, int32_t n, int32_t dk, int32_t dv, int32_t chunk)
{
    delta_input in = make_delta(n, dk, dv);
    size_t cells = (size_t)(dk * dv), outs = (size_t)(n * dv);
    float *state = guarded(cells), *out = guarded(outs);
    double *truth = must(cells * 8), *want = must(outs * 8);

    for (size_t i = 0; i < cells; i++) truth[i] = (double)(state[i] = (float)((double)(i % 7) * 0.1 - 0.3));
    delta_truth(&in, truth, want);
    size_t bytes = cells * 4;
    float *even = aligned_alloc(64, fm_align_up(bytes, 64)), *odd = aligned_alloc(64, fm_align_up(bytes, 64));
    memcpy(even, state, bytes);
    run_delta(k, &in, chunk, state, state, out);
    CHECK_THAT(nmse(out, want, outs) <= 1e-11, "%s delta n %d dk %d dv %d chunk %d: %g", k->name, n, dk, dv, chunk,
               nmse(out, want, outs));
    CHECK_THAT(nmse(state, truth, cells) <= 1e-11, "%s delta state, chunk %d: %g", k->name, chunk, nmse(state, truth, cells));
    CHECK(unharmed(out, outs) && unharmed(state, cells));
    CHECK_THAT(memcmp(run_delta(k, &in, chunk, even, odd, out), state, bytes) == 0, "%s delta: another state, other bits",
               k->name);
    free_delta(in);
    free(even);
    free(odd);
    free(state);
    free(out);
    free(truth);
    free(want);
}

static void test_delta_step(const fm_kernels *k)
{
    one_delta(k, 3, 16, 16, 1);
    one_delta(k, 5, 24, 40, 1);
    one_delta(k, 4, 9, 5, 1);
    one_delta(k, 2, 128, 128, 1);
    one_delta(k, 2, 16, 160, 1);
    one_delta(k, 512, 64, 64, 1); /* no drift */
}

static void test_delta_chunk(const fm_kernels *k)
{
    for (int32_t n = 1; n <= FM_DELTA_CHUNK; n += 5) one_delta(k, n, 16, 24, FM_DELTA_CHUNK);
    one_delta(k, 100, 24, 40, FM_DELTA_CHUNK);
    one_delta(k, 70, 9, 5, 7);
    one_delta(k, 64, 128, 128, FM_DELTA_CHUNK);
    one_delta(k, 512, 64, 64, FM_DELTA_CHUNK);
}
