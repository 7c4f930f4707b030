/* The CPU device: kernels times threads. What its files share. */
#ifndef FM_CPU_H
#define FM_CPU_H

#include "backend/backend.h"
#include "base/memory.h"
#include "base/threads.h"
#include "kernels/kernels.h"

struct fm_buf {
    uint8_t *host;
    size_t bytes;
};

/* Rows as int8 codes: room for `rows` of up to `cols`. */
typedef struct {
    int8_t *q;
    float *scale, *sum;
} fm_q8_room;

typedef struct {
    fm_backend base;
    const fm_kernels *k;
    fm_pool *pool;
    int32_t threads;
    uint64_t ticket;
    fm_limits limits;
    void *scratch; /* one block, cut up below */
    size_t scratch_bytes;
    fm_q8_room input;     /* [limits.rows][limits.cols] */
    fm_q8_room hidden_q8; /* [limits.picks][limits.intermediate_size] */
    float *hidden;        /* likewise */
    float *parts;         /* attention over keys that are split */
    size_t parts_floats;
    uint8_t *worker; /* [threads][worker_bytes]: one piece's own */
    size_t worker_bytes;
} fm_cpu;

extern const fm_backend_ops fm_cpu_ops;

static inline fm_cpu *fm_cpu_of(fm_backend *b)
{
    return (fm_cpu *)b;
}

static inline float *fm_cpu_floats(fm_tensor t)
{
    return (float *)(void *)(t.buf->host + t.offset);
}

static inline fm_matrix fm_cpu_matrix(fm_tensor t)
{
    return fm_matrix_at(t.quant, t.rows, t.cols, t.buf->host + t.offset);
}

static inline size_t fm_q8_stride(int32_t cols)
{
    return fm_align_up((size_t)cols, 64);
}

/* Cut [0, n) into pieces of `step`. */
static inline int32_t fm_pieces(int32_t n, int32_t step)
{
    return (n + step - 1) / step;
}

/* Rows that attend together, a divisor of FM_ATTEND_BLOCK: about 64 queries for each load of a key. */
static inline int32_t fm_cpu_tile_rows(int32_t heads_per_kv)
{
    int32_t rows = FM_ATTEND_BLOCK;
    while (rows > 8 && rows * heads_per_kv > 64) rows /= 2;
    return rows;
}

/* Rows [first, last) of a matrix, as a matrix. */
static inline fm_matrix fm_cpu_band(const fm_matrix *m, int32_t first, int32_t last)
{
    fm_matrix b = *m;
    size_t cols = (size_t)m->cols, at = (size_t)first;
    b.rows = last - first;
    if (m->quant.kind == FM_AFFINE) {
        size_t scales = cols / (size_t)m->quant.group * fm_number_size(m->quant.scale);
        b.weight += at * (cols * (size_t)m->quant.bits / 8);
        b.scales += at * scales;
        b.biases += at * scales;
    } else {
        b.weight += at * cols * fm_number_size(m->quant.kind);
    }
    return b;
}

/* True if products with `quant` want int8 activations on this CPU. */
static inline bool fm_cpu_wants_q8(const fm_cpu *c, fm_quant quant)
{
    return c->k->q8 && quant.kind == FM_AFFINE;
}

/* Rows of an expert that one thread gathers at a time. */
#define FM_EXPERT_ROWS 128

/* The next `bytes` of a block of memory; room for codes in it. */
static inline void *fm_cpu_take(uint8_t **at, size_t bytes)
{
    uint8_t *here = *at;
    *at += fm_align_up(bytes, 64);
    return here;
}

static inline fm_q8_room fm_cpu_take_q8(uint8_t **at, int32_t rows, int32_t cols)
{
    size_t stride = fm_q8_stride(cols), numbers = (size_t)rows * (stride / FM_Q8_BLOCK) * sizeof(float);
    fm_q8_room room;
    room.q = fm_cpu_take(at, (size_t)rows * stride);
    room.scale = fm_cpu_take(at, numbers);
    room.sum = fm_cpu_take(at, numbers);
    return room;
}

/* x as a product wants it, its codes written to `room` if `q8`. */
fm_rows fm_cpu_rows(fm_cpu *c, const float *x, int32_t rows, int32_t cols, bool q8, fm_q8_room room);

void fm_cpu_embed(fm_backend *b, fm_tensor out, fm_tensor table, const int32_t *ids);
void fm_cpu_norm(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor weight, float eps);
void fm_cpu_project(fm_backend *b, const fm_projection *p, int32_t n, fm_tensor x);
void fm_cpu_matmul(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x);
void fm_cpu_matmul_exact(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x);
void fm_cpu_add(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor y);
void fm_cpu_swiglu(fm_backend *b, fm_tensor out, fm_tensor gate, fm_tensor up);
void fm_cpu_gate(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor gate);

void fm_cpu_append_kv(fm_backend *b, const fm_heads *h);
void fm_cpu_attend(fm_backend *b, fm_tensor out, fm_tensor q, fm_tensor keys, fm_tensor values, const fm_attention_shape *s,
                   int32_t position);
void fm_cpu_conv(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor taps, fm_tensor to, fm_tensor from);
void fm_cpu_delta_gates(fm_backend *b, fm_tensor decay, fm_tensor beta, fm_tensor a_log, fm_tensor dt_bias);
void fm_cpu_delta(fm_backend *b, fm_tensor out, fm_tensor qkv, fm_tensor decay, fm_tensor beta, fm_tensor to, fm_tensor from,
                  const fm_delta_shape *s, int32_t position);
void fm_cpu_gated_norm(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor z, fm_tensor weight, float eps);

void fm_cpu_experts(fm_backend *b, fm_tensor outs, fm_tensor x, fm_buf *slots, size_t slot_bytes, const fm_pick *pick, int32_t n,
                    const fm_expert_shape *s);
void fm_cpu_combine(fm_backend *b, fm_tensor x, fm_tensor outs, const fm_pick *pick, int32_t n, fm_tensor shared,
                    fm_tensor score);

#endif
