/* Verbs of attention and of the gated delta net. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>

static void *worker_scratch(const fm_cpu *c, int32_t worker)
{
    return c->worker + (size_t)worker * c->worker_bytes;
}

/* ---- attention ------------------------------------------------------------ */

void fm_cpu_rope(fm_backend *b, fm_tensor x, fm_tensor table, int32_t head_dim)
{
    fm_cpu *c = fm_cpu_of(b);
    for (int32_t r = 0; r < x.rows; r++) {
        const float *turn = fm_cpu_floats(table) + (size_t)r * (size_t)table.cols;
        float *row = fm_cpu_floats(x) + (size_t)r * (size_t)x.cols;
        for (int32_t h = 0; h < x.cols / head_dim; h++)
            c->k->rope(row + (size_t)h * (size_t)head_dim, turn, turn + table.cols / 2, table.cols / 2);
    }
}

void fm_cpu_keep(fm_backend *b, fm_tensor cache, fm_tensor rows, int32_t position)
{
    (void)b;
    size_t row_bytes = (size_t)cache.cols * fm_number_size(cache.quant.kind);
    for (int32_t r = 0; r < rows.rows; r++)
        fm_numbers_encode(cache.quant.kind, fm_cpu_floats(rows) + (size_t)r * (size_t)rows.cols, rows.cols,
                          cache.buf->host + cache.offset + (size_t)(position + r) * row_bytes);
}

typedef struct {
    const fm_cpu *c;
    const fm_attention_shape *s;
    float *out;
    const float *q;
    const uint8_t *keys, *values;
    fm_number kind;
    int32_t position;
} attend_job;

/* One row and one kv head with the query heads that share it. Late rows are dearest: they come first. */
static void attend_piece(void *context, int32_t piece, int32_t worker)
{
    const attend_job *j = context;
    const fm_attention_shape *s = j->s;
    int32_t row = piece / s->kv_heads, kv = piece % s->kv_heads, group = s->heads / s->kv_heads;
    size_t stride = (size_t)s->kv_heads * (size_t)s->head_dim;
    size_t head = (size_t)kv * (size_t)s->head_dim * fm_number_size(j->kind);
    size_t at = ((size_t)row * (size_t)s->heads + (size_t)kv * (size_t)group) * (size_t)s->head_dim;

    fm_attention a = {
        .q = j->q + at,
        .out = j->out + at,
        .q_stride = (size_t)s->head_dim,
        .keys = j->keys + head,
        .values = j->values + head,
        .stride = stride,
        .kind = j->kind,
        .heads = group,
        .head_dim = s->head_dim,
        .positions = j->position + row + 1,
        .scale = s->scale,
        .scratch = worker_scratch(j->c, worker),
    };
    j->c->k->attend(&a);
}

void fm_cpu_attend(fm_backend *b, fm_tensor out, fm_tensor q, fm_tensor keys, fm_tensor values, const fm_attention_shape *s,
                   int32_t position)
{
    fm_cpu *c = fm_cpu_of(b);
    attend_job j = {c,
                    s,
                    fm_cpu_floats(out),
                    fm_cpu_floats(q),
                    keys.buf->host + keys.offset,
                    values.buf->host + values.offset,
                    keys.quant.kind,
                    position};
    fm_pool_run(c->pool, q.rows * s->kv_heads, attend_piece, &j);
}

/* ---- gated delta net -------------------------------------------------------- */

#define CONV_STEP 2048 /* channels a piece */

typedef struct {
    const fm_kernels *k;
    float *out;
    const float *x, *from, *weight;
    int32_t channels, taps, pieces_a_row;
} conv_job;

static void conv_piece(void *context, int32_t piece, int32_t worker)
{
    (void)worker;
    const conv_job *j = context;
    int32_t row = piece / j->pieces_a_row, first = piece % j->pieces_a_row * CONV_STEP;
    int32_t n = j->channels - first < CONV_STEP ? j->channels - first : CONV_STEP;
    const float *rows[64];

    for (int32_t t = 0; t < j->taps; t++) {
        int32_t r = row - (j->taps - 1) + t; /* before the first row lies the state */
        rows[t] =
            (r < 0 ? j->from + (size_t)(j->taps - 1 + r) * (size_t)j->channels : j->x + (size_t)r * (size_t)j->channels) + first;
    }
    j->k->conv(j->out + (size_t)row * (size_t)j->channels + first, rows, j->weight + (size_t)first * (size_t)j->taps, j->taps, n);
}

void fm_cpu_conv(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor taps, fm_tensor to, fm_tensor from)
{
    fm_cpu *c = fm_cpu_of(b);
    conv_job j = {c->k,      fm_cpu_floats(out),          fm_cpu_floats(x), fm_cpu_floats(from), fm_cpu_floats(taps), x.cols,
                  taps.cols, fm_pieces(x.cols, CONV_STEP)};
    fm_pool_run(c->pool, x.rows * j.pieces_a_row, conv_piece, &j);

    size_t row_bytes = (size_t)x.cols * sizeof(float);
    for (int32_t t = 0; t < taps.cols - 1; t++) { /* the last rows of state and input together */
        int32_t r = x.rows - (taps.cols - 1) + t;
        const float *last = r < 0 ? j.from + (size_t)(taps.cols - 1 + r) * (size_t)x.cols : j.x + (size_t)r * (size_t)x.cols;
        memcpy(fm_cpu_floats(to) + (size_t)t * (size_t)x.cols, last, row_bytes);
    }
}

void fm_cpu_delta_gates(fm_backend *b, fm_tensor decay, fm_tensor beta, fm_tensor a_log, fm_tensor dt_bias)
{
    (void)b;
    const float *a = fm_cpu_floats(a_log), *dt = fm_cpu_floats(dt_bias);
    for (int32_t r = 0; r < decay.rows; r++) {
        float *g = fm_cpu_floats(decay) + (size_t)r * (size_t)decay.cols;
        float *w = fm_cpu_floats(beta) + (size_t)r * (size_t)decay.cols;
        for (int32_t h = 0; h < decay.cols; h++) {
            float t = g[h] + dt[h];
            float softplus = t > 20 ? t : log1pf(expf(t));
            g[h] = -expf(a[h]) * softplus;
            w[h] = 1 / (1 + expf(-w[h]));
        }
    }
}

typedef struct {
    const fm_cpu *c;
    const fm_delta_shape *s;
    float *out, *qkv, *to;
    const float *decay, *beta, *from;
    int32_t rows, position;
} delta_job;

static size_t qkv_width(const fm_delta_shape *s)
{
    return 2 * (size_t)s->key_heads * (size_t)s->key_dim + (size_t)s->value_heads * (size_t)s->value_dim;
}

/* Queries and keys of one row to unit length, queries also scaled. */
static void unit_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const delta_job *j = context;
    const fm_delta_shape *s = j->s;
    float *at = j->qkv + (size_t)row * qkv_width(s), scale = 1 / sqrtf((float)s->key_dim);

    for (int32_t h = 0; h < 2 * s->key_heads; h++, at += s->key_dim)
        j->c->k->unit(at, at, s->key_dim, h < s->key_heads ? scale : 1);
}

/* One value head over all rows, in chunks that end at absolute multiples of FM_DELTA_CHUNK. */
static void delta_piece(void *context, int32_t head, int32_t worker)
{
    const delta_job *j = context;
    const fm_delta_shape *s = j->s;
    size_t width = qkv_width(s), key_width = (size_t)s->key_heads * (size_t)s->key_dim;
    size_t key_at = (size_t)(head / (s->value_heads / s->key_heads)) * (size_t)s->key_dim;
    size_t value_at = (size_t)head * (size_t)s->value_dim, values = (size_t)s->value_heads * (size_t)s->value_dim;
    size_t state_at = value_at * (size_t)s->key_dim;

    fm_delta d = {
        .qk_stride = width,
        .v_stride = width,
        .gate_stride = (size_t)s->value_heads,
        .out_stride = values,
        .from = j->from + state_at,
        .to = j->to + state_at,
        .key_dim = s->key_dim,
        .value_dim = s->value_dim,
        .scratch = worker_scratch(j->c, worker),
    };
    for (int32_t row = 0; row < j->rows; row += d.n, d.from = d.to) {
        int32_t room = FM_DELTA_CHUNK - (j->position + row) % FM_DELTA_CHUNK;
        const float *qkv = j->qkv + (size_t)row * width;
        d.n = j->rows - row < room ? j->rows - row : room;
        d.q = qkv + key_at;
        d.k = qkv + key_width + key_at;
        d.v = qkv + 2 * key_width + value_at;
        d.decay = j->decay + (size_t)row * (size_t)s->value_heads + head;
        d.beta = j->beta + (size_t)row * (size_t)s->value_heads + head;
        d.out = j->out + (size_t)row * values + value_at;
        if (d.n == 1) j->c->k->delta_step(&d);
        else j->c->k->delta_chunk(&d);
    }
}

void fm_cpu_delta(fm_backend *b, fm_tensor out, fm_tensor qkv, fm_tensor decay, fm_tensor beta, fm_tensor to, fm_tensor from,
                  const fm_delta_shape *s, int32_t position)
{
    fm_cpu *c = fm_cpu_of(b);
    delta_job j = {c,
                   s,
                   fm_cpu_floats(out),
                   fm_cpu_floats(qkv),
                   fm_cpu_floats(to),
                   fm_cpu_floats(decay),
                   fm_cpu_floats(beta),
                   fm_cpu_floats(from),
                   qkv.rows,
                   position};
    fm_pool_run(c->pool, qkv.rows, unit_piece, &j);
    fm_pool_run(c->pool, s->value_heads, delta_piece, &j);
}

typedef struct {
    const fm_kernels *k;
    float *out;
    const float *x, *z, *w;
    int32_t heads, dim;
    float eps;
} gated_job;

static void gated_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const gated_job *j = context;
    size_t at = (size_t)row * (size_t)j->heads * (size_t)j->dim;
    for (int32_t h = 0; h < j->heads; h++, at += (size_t)j->dim)
        j->k->gated_norm(j->out + at, j->x + at, j->w, j->z + at, j->dim, j->eps);
}

void fm_cpu_gated_norm(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor z, fm_tensor weight, float eps)
{
    fm_cpu *c = fm_cpu_of(b);
    gated_job j = {
        c->k, fm_cpu_floats(out), fm_cpu_floats(x), fm_cpu_floats(z), fm_cpu_floats(weight), x.cols / weight.cols, weight.cols,
        eps};
    fm_pool_run(c->pool, x.rows, gated_piece, &j);
}
