/*
 * What a device must do. One constant table each: backend/cpu, later
 * backend/metal. backend/cpu is the plainest reading of what each verb means.
 *
 * Math verbs only queue work: they cannot block and cannot fail, so a layer
 * reads like its formula. What goes wrong on the device shows at `wait`. Work
 * runs in the order it was queued.
 */
#ifndef FM_BACKEND_H
#define FM_BACKEND_H

#include <stdbool.h>

#include "quant/quant.h"

typedef struct fm_backend fm_backend;
typedef struct fm_buf fm_buf; /* memory the device can use */

/* FM_SHARED can be written by the host too: slots, scores, logits. */
typedef enum { FM_PRIVATE, FM_SHARED } fm_buf_kind;

/* Rows of numbers in a buffer, without gaps. Activations are always FM_F32. */
typedef struct {
    fm_buf *buf;
    size_t offset;
    int32_t rows, cols;
    fm_quant quant;
} fm_tensor;

/* out = x * weight^T; `exact`: activations are not rounded to int8. */
typedef struct {
    fm_tensor out, weight;
    bool exact;
} fm_projection;

#define FM_PROJECTIONS 4 /* most of them in one call */

/* An expert's three matrices in a slot; the same for all of a layer's experts. */
typedef struct {
    fm_quant gate_quant, up_quant, down_quant;
    int32_t hidden_size, intermediate_size;
    uint32_t gate_at, up_at, down_at, bytes;
} fm_expert_shape;

/* The expert in slot `slot` serves row `row` for `share` of its sum. Picks stand sorted by expert, then row. */
typedef struct {
    int32_t row, expert, slot;
    float share;
} fm_pick;

typedef struct {
    int32_t heads, kv_heads, head_dim, rope_dims;
    float scale;
} fm_attention_shape;

/* One sequence's new rows on their way to attention. */
typedef struct {
    fm_tensor q, k, v;
    fm_tensor q_norm, k_norm; /* of one head; buf is NULL: none */
    fm_tensor table;          /* [rows][rope_dims]: cosines, then sines of these rows' positions */
    fm_tensor keys, values;   /* the caches, from position 0; how they are laid out is the device's affair */
    int32_t head_dim, position;
    float eps;
} fm_heads;

typedef struct {
    int32_t key_heads, value_heads, key_dim, value_dim, conv_taps;
} fm_delta_shape;

/* The largest of everything a device will be asked for. */
typedef struct {
    int32_t rows, cols;                            /* of an activation that is multiplied */
    int32_t picks, hidden_size, intermediate_size; /* of routed experts in one call */
    int32_t heads_per_kv, head_dim;
    int32_t key_dim, value_dim;
} fm_limits;

/* How a device is opened. */
typedef struct {
    int32_t threads;     /* >= 1 */
    const char *kernels; /* which of its kernels, by name; NULL: the best, or what FLASHMOE_KERNELS names */
    const char *cache;   /* a directory for what it compiles; NULL: keep nothing */
} fm_device_options;

typedef struct {
    const char *name;
    /* Caches are blocks of 64 positions: of each kv head the values, [64][head_dim], or the keys, which are turned:
     * [head_dim / key_run][64][key_run]. */
    int32_t key_run;

    /* life */
    fm_status (*open)(const fm_device_options *options, fm_backend **out, fm_error *err);
    void (*close)(fm_backend *b);
    const char *(*variant)(const fm_backend *b); /* "avx512": which kernels serve it */

    /* memory: page-aligned, zeroed; `host` is NULL for a private buffer */
    fm_status (*alloc)(fm_backend *b, size_t bytes, fm_buf_kind kind, fm_buf **out, fm_error *err);
    size_t (*largest)(const fm_backend *b); /* bytes of the largest buffer there can be */
    size_t (*room)(const fm_backend *b);    /* of all together, as it works well; SIZE_MAX: any */
    fm_status (*grow)(fm_backend *b, fm_buf *buf, size_t bytes, fm_error *err); /* contents kept */
    void (*discard)(fm_backend *b, fm_buf *buf, size_t at, size_t bytes);       /* give pages back */
    void (*release)(fm_backend *b, fm_buf *buf);                                /* NULL is fine */
    void *(*host)(fm_buf *buf);
    /* make room for activations within these limits; once, before any verb */
    fm_status (*reserve)(fm_backend *b, const fm_limits *limits, fm_error *err);
    size_t (*scratch)(const fm_limits *limits, int32_t threads); /* bytes that reserve takes */

    /* order: submit starts what is queued and gives its ticket; wait reports the first failure */
    uint64_t (*submit)(fm_backend *b);
    uint64_t (*done)(fm_backend *b);
    fm_status (*wait)(fm_backend *b, uint64_t ticket, fm_error *err);

    /* every row alike */
    void (*embed)(fm_backend *b, fm_tensor out, fm_tensor table, const int32_t *ids);
    void (*norm)(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor weight, float eps);
    void (*matmul)(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x);
    void (*matmul_exact)(fm_backend *b, fm_tensor out, fm_tensor weight, fm_tensor x); /* activations stay float */
    void (*project)(fm_backend *b, const fm_projection *p, int32_t n, fm_tensor x);    /* several products of the same rows */
    void (*add)(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor y);
    void (*swiglu)(fm_backend *b, fm_tensor out, fm_tensor gate, fm_tensor up);
    void (*gate)(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor gate); /* x * sigmoid(gate) */

    /* append_kv: heads of q and k are normed, then turned, in place; k and v go into the caches at `position`,
     * which have room for whole 64 positions and are read by attend alone. */
    void (*append_kv)(fm_backend *b, const fm_heads *h);
    void (*attend)(fm_backend *b, fm_tensor out, fm_tensor q, fm_tensor keys, fm_tensor values, const fm_attention_shape *s,
                   int32_t position);

    /* gated delta net. Recurrent: read the state in `from`, leave the next one in `to` (another buffer).
     * conv: state [taps-1][channels], the oldest row first.
     * delta_gates: beta = sigmoid(beta), decay = -exp(a_log) * softplus(decay + dt_bias), in place.
     * delta: qkv rows [q heads | k heads | v heads], whose q and k are normed in place; state [value_heads][key_dim][value_dim]. */
    void (*conv)(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor taps, fm_tensor to, fm_tensor from);
    void (*delta_gates)(fm_backend *b, fm_tensor decay, fm_tensor beta, fm_tensor a_log, fm_tensor dt_bias);
    void (*delta)(fm_backend *b, fm_tensor out, fm_tensor qkv, fm_tensor decay, fm_tensor beta, fm_tensor to, fm_tensor from,
                  const fm_delta_shape *s, int32_t position);
    void (*gated_norm)(fm_backend *b, fm_tensor out, fm_tensor x, fm_tensor z, fm_tensor weight, float eps);

    /* experts: row i of outs = down(swiglu(gate(x[pick[i].row]), up(x[pick[i].row]))).
     * combine: x[pick[i].row] += pick[i].share * row i of outs, for i = 0, 1, ... in this order; then
     * x[r] += sigmoid(score[r]) * shared[r], unless shared.buf is NULL. */
    void (*experts)(fm_backend *b, fm_tensor outs, fm_tensor x, fm_buf *slots, size_t slot_bytes, const fm_pick *pick, int32_t n,
                    const fm_expert_shape *s);
    void (*combine)(fm_backend *b, fm_tensor x, fm_tensor outs, const fm_pick *pick, int32_t n, fm_tensor shared,
                    fm_tensor score);
} fm_backend_ops;

struct fm_backend {
    const fm_backend_ops *ops; /* each device's struct begins with this */
};

/* The devices of this build, best first. Ends with NULL. */
const fm_backend_ops *const *fm_backends(void);

#endif
