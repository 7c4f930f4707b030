/* The verbs of the Metal device: which kernel each is, what it binds, and the scratch they need. */
#ifndef FM_METAL_VERBS_H
#define FM_METAL_VERBS_H

#include "../shaders/params.h"
#include "backend/metal/metal.h"

/* The scratch, in this order: what gate and up give for every pick, parts of attention and what is merged of them, and
 * room where the host puts lists together before a launch copies them. */
size_t fm_metal_scratch_bytes(const fm_limits *limits);
size_t fm_metal_parts_at(const fm_limits *limits);
size_t fm_metal_parts_bytes(const fm_limits *limits);
size_t fm_metal_lists_at(const fm_limits *limits);

void fm_metal_embed(fm_backend *b, fm_tensor out, fm_tensor table, const int32_t *ids);
void fm_metal_norm(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor weight, float eps);
void fm_metal_matmul(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x);
void fm_metal_project(fm_backend *b, const fm_projection *p, int32_t n, fm_tensor x);
void fm_metal_add(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor y);
void fm_metal_swiglu(fm_backend *b, fm_tensor out, fm_tensor gate, fm_tensor up);
void fm_metal_gate(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor gate);
void fm_metal_gated_norm(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor z, fm_tensor weight, float eps);

void fm_metal_append_kv(fm_backend *b, const fm_heads *h);
void fm_metal_attend(fm_backend *b, fm_tensor out, fm_tensor q, fm_tensor keys, fm_tensor values, const fm_attention_shape *s,
                     int32_t position);
void fm_metal_conv(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor taps, fm_tensor to, fm_tensor from);
void fm_metal_delta_gates(fm_backend *b, fm_tensor decay, fm_tensor beta, fm_tensor a_log, fm_tensor dt_bias);
void fm_metal_delta(fm_backend *b, fm_tensor out, fm_tensor qkv, fm_tensor decay, fm_tensor beta, fm_tensor to, fm_tensor from,
                    const fm_delta_shape *s, int32_t position);

void fm_metal_experts(fm_backend *b, fm_tensor outs, fm_tensor x, fm_buf *slots, size_t slot_bytes, const fm_pick *pick,
                      int32_t n, const fm_expert_shape *s);
void fm_metal_combine(fm_backend *b, fm_tensor x, fm_tensor outs, const fm_pick *pick, int32_t n, fm_tensor shared,
                      fm_tensor score);

/* All of them, for the table of the device. Activations are never rounded here, so every product is an exact one. */
#define FM_METAL_VERBS                                                                                                      \
    .embed = fm_metal_embed, .norm = fm_metal_norm, .matmul = fm_metal_matmul, .matmul_exact = fm_metal_matmul,             \
    .project = fm_metal_project, .add = fm_metal_add, .swiglu = fm_metal_swiglu, .gate = fm_metal_gate,                     \
    .append_kv = fm_metal_append_kv, .attend = fm_metal_attend, .conv = fm_metal_conv, .delta_gates = fm_metal_delta_gates, \
    .delta = fm_metal_delta, .gated_norm = fm_metal_gated_norm, .experts = fm_metal_experts, .combine = fm_metal_combine

/* ---- what the files of the verbs share ---- */

typedef struct {
    int32_t constant[FM_CONSTANTS];
} fm_constants;

/* A launch of a kernel with these constants and parameters. */
static inline fm_launch fm_metal_begin(fm_backend *b, const char *kernel, const fm_constants *c, const void *params, size_t bytes)
{
    fm_launch l = fm_metal_kernel(fm_metal_of(b), kernel, c->constant, FM_CONSTANTS);
    fm_metal_params(&l, params, bytes);
    return l;
}

static inline uint32_t fm_metal_pieces(size_t n, size_t step)
{
    return (uint32_t)((n + step - 1) / step);
}

static inline size_t fm_metal_floats(fm_tensor t)
{
    return (size_t)t.rows * (size_t)t.cols * sizeof(float);
}

/* Rows of activations in a launch. */
static inline void fm_metal_in(fm_launch *l, int32_t index, fm_tensor t)
{
    fm_metal_read(l, index, t.buf, t.offset, fm_metal_floats(t));
}

static inline void fm_metal_out(fm_launch *l, int32_t index, fm_tensor t)
{
    fm_metal_write(l, index, t.buf, t.offset, fm_metal_floats(t));
}

/* An argument that the kernel is told not to read: something must be bound, and nothing waits for it. */
static inline void fm_metal_unread(fm_launch *l, int32_t index, fm_tensor instead)
{
    fm_metal_read(l, index, instead.buf, instead.offset, 0);
}

static inline int32_t fm_metal_format(fm_quant q)
{
    return q.kind == FM_AFFINE ? FM_FORMAT((int32_t)q.kind, (int32_t)q.scale, q.bits, q.group) : (int32_t)q.kind;
}

/* Rows of a matrix for each simdgroup, `most` if there is enough to do for all of the device. It changes no sum. */
static inline int32_t fm_metal_band(int32_t rows, uint32_t tiles, int32_t most)
{
    while (most > 1 && (size_t)rows * tiles < 2048 * (size_t)most) most /= 2;
    return most;
}

/* Threadgroup memory of a product whose tile has that many rows of x. */
static inline size_t fm_metal_stage(int32_t tile)
{
    int32_t chunks = tile < FM_STAGE_CHUNKS ? FM_STAGE_CHUNKS / tile : 1;
    return (size_t)(tile * chunks) * FM_STAGE * 16;
}

/* How a matrix lies, and its bytes. */
fm_p_matrix fm_metal_matrix(fm_quant quant, int32_t rows, int32_t cols, size_t *bytes);

#endif
