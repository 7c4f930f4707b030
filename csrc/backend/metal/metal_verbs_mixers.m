/* Attention and the gated delta net. */
#include "backend/metal/metal_verbs.h"

/* ---- attention ---------------------------------------------------------------- */

#define SPLIT_ROWS 32  /* most rows whose parts lie side by side in the scratch */
#define FEW_GROUPS 512 /* with more threadgroups there is enough to do without that */

/* The blocks of a cache that hold positions [0, end). */
static size_t cache_bytes(fm_tensor cache, int32_t end)
{
    return fm_align_up((size_t)end, FM_KEY_BLOCK) * (size_t)cache.cols * fm_number_size(cache.quant.kind);
}

void fm_metal_append_kv(fm_backend *b, const fm_heads *h)
{
    fm_constants c = {{(int32_t)h->keys.quant.kind}};
    fm_p_heads p = {.q_heads = h->q.cols / h->head_dim,
                    .kv_heads = h->k.cols / h->head_dim,
                    .head_dim = h->head_dim,
                    .rope_dims = h->table.cols,
                    .rows = h->q.rows,
                    .position = h->position % FM_KEY_BLOCK, /* the caches are bound from this block on */
                    .q_normed = h->q_norm.buf != NULL,
                    .k_normed = h->k_norm.buf != NULL,
                    .eps = h->eps};
    size_t heads = (size_t)(p.q_heads + 2 * p.kv_heads), first = cache_bytes(h->keys, h->position / FM_KEY_BLOCK * FM_KEY_BLOCK);
    size_t end = cache_bytes(h->keys, h->position + h->q.rows);

    fm_launch l = fm_metal_begin(b, "append_kv", &c, &p, sizeof p);
    fm_metal_out(&l, 1, h->q);
    fm_metal_in(&l, 2, h->k);
    fm_metal_in(&l, 3, h->v);
    if (p.q_normed) fm_metal_in(&l, 4, h->q_norm);
    else fm_metal_unread(&l, 4, h->table);
    if (p.k_normed) fm_metal_in(&l, 5, h->k_norm);
    else fm_metal_unread(&l, 5, h->table);
    fm_metal_in(&l, 6, h->table);
    fm_metal_write(&l, 7, h->keys.buf, h->keys.offset + first, end - first);
    fm_metal_write(&l, 8, h->values.buf, h->values.offset + first, end - first);
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces(heads, FM_ROW_THREADS / FM_LANES), (uint32_t)p.rows, 1},
                 (uint32_t[]){FM_ROW_THREADS, 1, 1});
}

/* Queries, and either the shares of every slice or what half of the slices hand to the others. */
static size_t attend_room(int32_t dim)
{
    size_t shares = FM_SLICES * FM_KEY_BLOCK * FM_QUERIES, merged = FM_SLICES / 2 * FM_QUERIES * (size_t)(dim + 2);
    return ((size_t)dim * FM_QUERIES + (shares > merged ? shares : merged)) * sizeof(float);
}

/* Parts [p.first_part, + p.parts) of every row, or all of them, into `out` at `to`. */
static void attend_parts(fm_backend *b, const fm_p_attend *p, bool split, fm_tensor q, fm_tensor keys, fm_tensor values,
                         fm_buf *out, size_t to, size_t bytes)
{
    size_t queries = (size_t)p->rows * (size_t)(p->heads / p->kv_heads), seen = cache_bytes(keys, p->position + p->rows);
    int32_t pairs = (int32_t)fm_metal_pieces((size_t)p->head_dim, 2 * FM_LANES);
    fm_constants c = {{(int32_t)keys.quant.kind, 0, 0, 0, pairs, split}};

    fm_launch l = fm_metal_begin(b, "attend", &c, p, sizeof *p);
    fm_metal_in(&l, 1, q);
    fm_metal_read(&l, 2, keys.buf, keys.offset, seen);
    fm_metal_read(&l, 3, values.buf, values.offset, seen);
    fm_metal_write(&l, 4, out, to, bytes);
    fm_metal_threadgroup(&l, attend_room(p->head_dim));
    fm_metal_run(&l, (uint32_t[]){(uint32_t)p->kv_heads, fm_metal_pieces(queries, FM_QUERIES), split ? (uint32_t)p->parts : 1},
                 (uint32_t[]){FM_SLICES * FM_LANES, 1, 1});
}

/* Few rows, many keys: parts side by side, as many as the scratch has room for, then merged. */
static void attend_split(fm_backend *b, fm_tensor out, fm_tensor q, fm_tensor keys, fm_tensor values, fm_p_attend p,
                         int32_t parts)
{
    fm_metal *m = fm_metal_of(b);
    fm_constants c = {{0}};
    size_t heads = (size_t)p.rows * (size_t)p.heads, dim = (size_t)p.head_dim;
    size_t one = heads * (dim + 2) * sizeof(float), merged = 3 * heads * dim * sizeof(float);
    size_t at = fm_metal_parts_at(&m->limits), room = fm_metal_parts_bytes(&m->limits);
    int32_t slots = (int32_t)((room - merged) / one);

    for (p.first_part = 0; p.first_part < parts; p.first_part += slots) {
        p.parts = parts - p.first_part < slots ? parts - p.first_part : slots;
        attend_parts(b, &p, true, q, keys, values, m->scratch, at + merged, (size_t)p.parts * one);
        fm_launch l = fm_metal_begin(b, "attend_merge", &c, &p, sizeof p);
        fm_metal_read(&l, 1, m->scratch, at + merged, (size_t)p.parts * one);
        fm_metal_write(&l, 2, m->scratch, at, merged);
        fm_metal_out(&l, 3, out);
        fm_metal_run(&l, (uint32_t[]){fm_metal_pieces(dim, FM_LANES), (uint32_t)p.heads, (uint32_t)p.rows},
                     (uint32_t[]){FM_LANES, 1, 1});
    }
}

void fm_metal_attend(fm_backend *b, fm_tensor out, fm_tensor q, fm_tensor keys, fm_tensor values, const fm_attention_shape *s,
                     int32_t position)
{
    int32_t parts = (int32_t)fm_metal_pieces((size_t)position + (size_t)q.rows, FM_KEY_PART);
    uint32_t groups = fm_metal_pieces((size_t)q.rows * (size_t)(s->heads / s->kv_heads), FM_QUERIES) * (uint32_t)s->kv_heads;
    fm_p_attend p = {.heads = s->heads,
                     .kv_heads = s->kv_heads,
                     .head_dim = s->head_dim,
                     .rows = q.rows,
                     .position = position,
                     .scale = s->scale};

    if (s->head_dim > FM_MOST_HEAD_DIM || s->head_dim % 2)
        fm_metal_fail(fm_metal_of(b), FM_UNSUPPORTED,
                      "heads of %d numbers; Metal attends with even ones up to %d; use device=\"cpu\"", s->head_dim,
                      FM_MOST_HEAD_DIM);
    else if (parts > 1 && q.rows <= SPLIT_ROWS && groups < FEW_GROUPS) attend_split(b, out, q, keys, values, p, parts);
    else attend_parts(b, &p, false, q, keys, values, out.buf, out.offset, fm_metal_floats(out));
}

/* ---- gated delta net ------------------------------------------------------------ */

void fm_metal_conv(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor taps, fm_tensor to, fm_tensor from)
{
    fm_constants c = {{0}};
    fm_p_conv p = {.rows = x.rows, .channels = x.cols, .taps = taps.cols};

    fm_launch l = fm_metal_begin(b, "conv", &c, &p, sizeof p);
    fm_metal_in(&l, 1, x);
    fm_metal_in(&l, 2, from);
    fm_metal_in(&l, 3, taps);
    fm_metal_out(&l, 4, out);
    fm_metal_out(&l, 5, to);
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces((size_t)x.cols, FM_ROW_THREADS), (uint32_t)(x.rows + taps.cols - 1), 1},
                 (uint32_t[]){FM_ROW_THREADS, 1, 1});
}

void fm_metal_delta_gates(fm_backend *b, fm_tensor decay, fm_tensor beta, fm_tensor a_log, fm_tensor dt_bias)
{
    fm_constants c = {{0}};
    fm_p_rows p = {.rows = decay.rows, .cols = decay.cols};

    fm_launch l = fm_metal_begin(b, "delta_gates", &c, &p, sizeof p);
    fm_metal_out(&l, 1, decay);
    fm_metal_out(&l, 2, beta);
    fm_metal_in(&l, 3, a_log);
    fm_metal_in(&l, 4, dt_bias);
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces((size_t)decay.rows * (size_t)decay.cols, FM_ROW_THREADS), 1, 1},
                 (uint32_t[]){FM_ROW_THREADS, 1, 1});
}

void fm_metal_delta(fm_backend *b, fm_tensor out, fm_tensor qkv, fm_tensor decay, fm_tensor beta, fm_tensor to, fm_tensor from,
                    const fm_delta_shape *s, int32_t position)
{
    (void)position; /* rows are taken one after another, so it does not matter where a step begins */
    fm_constants c = {{0, 0, 0, 0, 0, 0, (int32_t)fm_metal_pieces((size_t)s->key_dim, FM_STATE_STRIDE)}};
    fm_p_delta p = {.key_heads = s->key_heads,
                    .value_heads = s->value_heads,
                    .key_dim = s->key_dim,
                    .value_dim = s->value_dim,
                    .rows = qkv.rows};

    if (s->key_dim > FM_STATE_ROWS * FM_STATE_STRIDE) {
        fm_metal_fail(fm_metal_of(b), FM_UNSUPPORTED,
                      "a delta net with keys of %d numbers; Metal has room for %d; use device=\"cpu\"", s->key_dim,
                      FM_STATE_ROWS * FM_STATE_STRIDE);
        return;
    }
    fm_launch l = fm_metal_begin(b, "unit_norm", &c, &p, sizeof p);
    fm_metal_out(&l, 1, qkv);
    fm_metal_run(&l, (uint32_t[]){fm_metal_pieces(2 * (size_t)s->key_heads, FM_ROW_THREADS / FM_LANES), (uint32_t)qkv.rows, 1},
                 (uint32_t[]){FM_ROW_THREADS, 1, 1});

    l = fm_metal_begin(b, "delta", &c, &p, sizeof p);
    fm_metal_in(&l, 1, qkv);
    fm_metal_in(&l, 2, decay);
    fm_metal_in(&l, 3, beta);
    fm_metal_in(&l, 4, from);
    fm_metal_out(&l, 5, to);
    fm_metal_out(&l, 6, out);
    fm_metal_run(
        &l, (uint32_t[]){fm_metal_pieces((size_t)s->value_dim, FM_STATE_COLUMNS * FM_STATE_GROUPS), (uint32_t)s->value_heads, 1},
        (uint32_t[]){FM_STATE_GROUPS * FM_LANES, 1, 1});
}
