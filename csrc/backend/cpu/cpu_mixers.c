/* Verbs of attention and of the gated delta net. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>

static void *worker_scratch(const fm_cpu *c, int32_t worker)
{
    return c->worker + (size_t)worker * c->worker_bytes;
}

/* ---- attention ------------------------------------------------------------ */

typedef struct {
    const fm_cpu *c;
    const fm_heads *h;
    int32_t blocks; /* of the cache that get new positions */
} heads_job;

/* Every head of one row: its norm, if it has one, then its turn. */
static void turn_heads(const heads_job *j, fm_tensor x, fm_tensor norm, int32_t row)
{
    const fm_heads *h = j->h;
    int32_t dims = h->table.cols;
    const float *turn = fm_cpu_floats(h->table) + (size_t)row * (size_t)dims;
    float *head = fm_cpu_floats(x) + (size_t)row * (size_t)x.cols;
    for (float *end = head + x.cols; head < end; head += h->head_dim) {
        if (norm.buf) j->c->k->norm(head, head, fm_cpu_floats(norm), h->head_dim, h->eps);
        j->c->k->rope(head, turn, turn + dims / 2, dims / 2);
    }
}

/* One row's keys and values into the caches, whose layout fm_attention describes. */
static void keep(const heads_job *j, int32_t row, void *room)
{
    const fm_heads *h = j->h;
    int32_t dim = h->head_dim, kv_heads = h->k.cols / dim, at = h->position + row;
    fm_number kind = h->keys.quant.kind;
    fm_attention one = {.block = (size_t)h->k.cols * FM_ATTEND_BLOCK, .head_dim = dim};
    size_t size = fm_number_size(kind), from = (size_t)row * (size_t)h->k.cols, head = 0;

    for (int32_t i = 0; i < kv_heads; i++, from += (size_t)dim, head += (size_t)dim * FM_ATTEND_BLOCK) {
        uint8_t *key = h->keys.buf->host + h->keys.offset + (head + fm_key_at(&one, at, 0)) * size;
        uint8_t *value = h->values.buf->host + h->values.offset + (head + fm_value_at(&one, at, 0)) * size;
        j->c->k->narrow(kind, fm_cpu_floats(h->v) + from, dim, value);
        j->c->k->narrow(kind, fm_cpu_floats(h->k) + from, dim, room);
        for (int32_t n = 0; n < dim; n++, key += FM_ATTEND_BLOCK * size)
            memcpy(key, (const uint8_t *)room + (size_t)n * size, size);
    }
}

/* A block of positions, so that no two threads write side by side; or a row of queries. */
static void heads_piece(void *context, int32_t piece, int32_t worker)
{
    const heads_job *j = context;
    if (piece >= j->blocks) {
        turn_heads(j, j->h->q, j->h->q_norm, piece - j->blocks);
        return;
    }
    int32_t row = piece * FM_ATTEND_BLOCK - j->h->position % FM_ATTEND_BLOCK, end = row + FM_ATTEND_BLOCK;
    if (end > j->h->k.rows) end = j->h->k.rows;
    for (row = row < 0 ? 0 : row; row < end; row++) {
        turn_heads(j, j->h->k, j->h->k_norm, row);
        keep(j, row, worker_scratch(j->c, worker));
    }
}

void fm_cpu_append_kv(fm_backend *b, const fm_heads *h)
{
    fm_cpu *c = fm_cpu_of(b);
    heads_job j = {c, h, fm_pieces(h->position % FM_ATTEND_BLOCK + h->k.rows, FM_ATTEND_BLOCK)};
    fm_pool_run(c->pool, j.blocks + h->q.rows, heads_piece, &j);
}

/*
 * A tile is a few rows that lie in the same FM_ATTEND_BLOCK positions. Tiles
 * and kv heads are pieces of work; where these are fewer than threads would
 * like, so are the parts of their keys. Either way the parts are merged from
 * the first key to the last, so the bits are the same.
 */
typedef struct {
    const fm_cpu *c;
    const fm_attention_shape *s;
    fm_attention a; /* what all pieces share; of kv head 0 */
    float *out;
    int32_t position, rows, tile_rows;
    int32_t tile, first_piece, together; /* where keys are split: kv heads of one piece */
} attend_job;

/* Tile and kv head as the kernel takes them, but for its keys and its part. */
static fm_attention attend_tile(const attend_job *j, int32_t tile, int32_t kv, float **out)
{
    fm_attention a = j->a;
    int32_t before = j->position % j->tile_rows; /* tiles end at multiples of their rows */
    int32_t first = tile * j->tile_rows - before, end = first + j->tile_rows;
    if (first < 0) first = 0;
    if (end > j->rows) end = j->rows;
    size_t numbers = (size_t)kv * (size_t)a.head_dim, at = (size_t)first * a.q_stride + numbers * (size_t)a.heads;
    size_t head = numbers * FM_ATTEND_BLOCK * fm_number_size(a.kind);

    a.q += at;
    *out = j->out + at;
    a.keys = (const uint8_t *)a.keys + head;
    a.values = (const uint8_t *)a.values + head;
    a.rows = end - first;
    a.position = j->position + first;
    return a;
}

static void attend_part(const attend_job *j, fm_attention *a, int32_t number, float *part, int32_t worker)
{
    int32_t end = a->position + a->rows;
    a->first = number * FM_ATTEND_PART;
    a->last = end - a->first < FM_ATTEND_PART ? end : a->first + FM_ATTEND_PART;
    a->part = part;
    a->scratch = worker_scratch(j->c, worker);
    j->c->k->attend(a);
}

static size_t part_floats(const fm_attention *a)
{
    return fm_attend_part(a->rows * a->heads, a->head_dim);
}

/* A whole tile. Late rows are dearest: they come first. */
static void attend_piece(void *context, int32_t piece, int32_t worker)
{
    const attend_job *j = context;
    int32_t tiles = fm_pieces(j->position % j->tile_rows + j->rows, j->tile_rows);
    float *out;
    fm_attention a = attend_tile(j, tiles - 1 - piece / j->s->kv_heads, piece % j->s->kv_heads, &out);
    int32_t queries = a.rows * a.heads, parts = fm_pieces(a.position + a.rows, FM_ATTEND_PART);
    float *scratch = worker_scratch(j->c, worker), *sum = scratch + fm_attend_scratch(queries, a.head_dim);
    float *next = sum + part_floats(&a);

    attend_part(j, &a, 0, sum, worker);
    for (int32_t p = 1; p < parts; p++) {
        attend_part(j, &a, p, next, worker);
        j->c->k->attend_merge(sum, next, queries, a.head_dim);
    }
    a.part = sum;
    j->c->k->attend_end(&a, out);
}

/* One part of the keys, for one kv head or for all of them side by side: rows of the cache are read whole. */
static void attend_split_piece(void *context, int32_t piece, int32_t worker)
{
    const attend_job *j = context;
    int32_t kv_heads = j->s->kv_heads, slot = (j->first_piece + piece) * j->together, first = slot / kv_heads * FM_ATTEND_PART;
    float *out;
    fm_attention a = attend_tile(j, j->tile, 0, &out);
    int32_t end = a.position + a.rows;
    if (end - first > FM_ATTEND_PART) end = first + FM_ATTEND_PART;

    for (; first < end; first += 2 * FM_ATTEND_BLOCK)
        for (int32_t i = 0; i < j->together; i++) {
            a = attend_tile(j, j->tile, (slot + i) % kv_heads, &out);
            a.first = first;
            a.last = end - first < 2 * FM_ATTEND_BLOCK ? end : first + 2 * FM_ATTEND_BLOCK;
            a.part = j->c->parts + (size_t)(kv_heads + piece * j->together + i) * part_floats(&a);
            a.scratch = worker_scratch(j->c, worker);
            j->c->k->attend(&a);
        }
}

/* A tile whose keys are split: as many parts at once as there is room for behind what is merged of each kv head. */
static void attend_split(attend_job *j, int32_t tile, int32_t slots)
{
    const fm_cpu *c = j->c;
    float *out;
    fm_attention a = attend_tile(j, tile, 0, &out);
    size_t floats = part_floats(&a);
    int32_t kv_heads = j->s->kv_heads, parts = fm_pieces(a.position + a.rows, FM_ATTEND_PART);
    j->tile = tile;
    j->together = parts >= 2 * c->threads ? kv_heads : 1;

    int32_t pieces = parts * kv_heads / j->together, room = (slots - kv_heads) / j->together;
    for (j->first_piece = 0; j->first_piece < pieces; j->first_piece += room) {
        int32_t n = pieces - j->first_piece < room ? pieces - j->first_piece : room;
        fm_pool_run(c->pool, n, attend_split_piece, j);
        for (int32_t i = 0; i < n * j->together; i++) {
            int32_t slot = j->first_piece * j->together + i;
            float *sum = c->parts + (size_t)(slot % kv_heads) * floats;
            const float *next = c->parts + (size_t)(kv_heads + i) * floats;
            if (slot < kv_heads) memcpy(sum, next, floats * sizeof *sum);
            else c->k->attend_merge(sum, next, a.rows * a.heads, a.head_dim);
        }
    }
    for (int32_t kv = 0; kv < kv_heads; kv++) {
        a = attend_tile(j, tile, kv, &out);
        a.part = c->parts + (size_t)kv * floats;
        c->k->attend_end(&a, out);
    }
}

void fm_cpu_attend(fm_backend *b, fm_tensor out, fm_tensor q, fm_tensor keys, fm_tensor values, const fm_attention_shape *s,
                   int32_t position)
{
    fm_cpu *c = fm_cpu_of(b);
    attend_job j = {.c = c, .s = s, .out = fm_cpu_floats(out), .position = position, .rows = q.rows};
    j.a = (fm_attention){
        .q = fm_cpu_floats(q),
        .q_stride = (size_t)q.cols,
        .keys = keys.buf->host + keys.offset,
        .values = values.buf->host + values.offset,
        .block = (size_t)s->kv_heads * (size_t)s->head_dim * FM_ATTEND_BLOCK,
        .kind = keys.quant.kind,
        .heads = s->heads / s->kv_heads,
        .head_dim = s->head_dim,
        .scale = s->scale,
    };
    j.tile_rows = q.rows == 1 ? 1 : fm_cpu_tile_rows(j.a.heads);
    int32_t tiles = fm_pieces(position % j.tile_rows + q.rows, j.tile_rows);
    int32_t slots = (int32_t)(c->parts_floats / fm_attend_part(j.tile_rows * j.a.heads, s->head_dim));

    if (position + q.rows <= FM_ATTEND_PART || tiles * s->kv_heads >= 4 * c->threads || slots < 2 * s->kv_heads)
        fm_pool_run(c->pool, tiles * s->kv_heads, attend_piece, &j);
    else
        for (int32_t t = 0; t < tiles; t++) attend_split(&j, t, slots);
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

typedef struct {
    float *decay, *beta;
    const float *a_log, *dt_bias;
    int32_t heads;
} gates_job;

static void gates_piece(void *context, int32_t row, int32_t worker)
{
    (void)worker;
    const gates_job *j = context;
    float *g = j->decay + (size_t)row * (size_t)j->heads, *w = j->beta + (size_t)row * (size_t)j->heads;
    for (int32_t h = 0; h < j->heads; h++) {
        float t = g[h] + j->dt_bias[h];
        float softplus = t > 20 ? t : log1pf(expf(t));
        g[h] = -expf(j->a_log[h]) * softplus;
        w[h] = 1 / (1 + expf(-w[h]));
    }
}

void fm_cpu_delta_gates(fm_backend *b, fm_tensor decay, fm_tensor beta, fm_tensor a_log, fm_tensor dt_bias)
{
    gates_job j = {fm_cpu_floats(decay), fm_cpu_floats(beta), fm_cpu_floats(a_log), fm_cpu_floats(dt_bias), decay.cols};
    fm_pool_run(fm_cpu_of(b)->pool, decay.rows, gates_piece, &j);
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
