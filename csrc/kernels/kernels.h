/* The table of single-threaded math: one table an instruction set, chosen once. */
#ifndef FM_KERNELS_H
#define FM_KERNELS_H

#include <stdbool.h>

#include "quant/quant.h"

/* Activations are quantised in blocks of this many. */
#define FM_Q8_BLOCK 32

/* The delta rule's chunk: rows that are solved together. */
#define FM_DELTA_CHUNK 32

/*
 * Rows of activations for a matrix product. `q` is NULL for a product in
 * float; otherwise x[i] ~ scale[i/32] * q[i], and sum[j] = scale[j] * the sum
 * of block j's codes. Row r of q starts at q + r * q_stride (64-byte aligned,
 * padded with zeros to a multiple of 64), of scale and sum at r * block_stride
 * (padded with zeros to a multiple of 2 blocks).
 */
typedef struct {
    int32_t rows, cols;
    const float *x;
    size_t x_stride;
    const int8_t *q;
    const float *scale, *sum;
    size_t q_stride, block_stride;
} fm_rows;

/* One query row, the query heads that share one kv head, all keys up to its position. */
typedef struct {
    const float *q; /* [heads][head_dim], heads q_stride apart */
    float *out;     /* likewise */
    size_t q_stride;
    const void *keys, *values; /* position 0 of this kv head, kind numbers, `stride` numbers apart */
    size_t stride;
    fm_number kind;
    int32_t heads, head_dim, positions;
    float scale;
    float *scratch; /* fm_attend_scratch(heads, head_dim) floats */
} fm_attention;

/* One value head over n rows (n = 1: a step). State is [key_dim][value_dim]. */
typedef struct {
    const float *q, *k, *v; /* row 0 of this head; q and k already normed, q scaled */
    size_t qk_stride, v_stride;
    const float *decay, *beta; /* row 0: log decay (<= 0) and write strength; gate_stride apart */
    size_t gate_stride;
    float *out;
    size_t out_stride;
    const float *from;
    float *to; /* may be `from` */
    int32_t n, key_dim, value_dim;
    float *scratch; /* fm_delta_scratch(key_dim, value_dim) floats */
} fm_delta;

/* Keys are visited in blocks of this many positions, whatever the caller's batch. */
#define FM_ATTEND_BLOCK 64

static inline size_t fm_attend_scratch(int32_t heads, int32_t head_dim)
{
    return (size_t)heads * (FM_ATTEND_BLOCK + 4) + 2 * (size_t)FM_ATTEND_BLOCK * (size_t)head_dim;
}

static inline size_t fm_delta_scratch(int32_t key_dim, int32_t value_dim)
{
    size_t c = FM_DELTA_CHUNK;
    return 4 * c * (size_t)(key_dim + value_dim) + 4 * c * c + 4 * c;
}

typedef struct {
    const char *name;
    bool q8; /* matrix products of affine weights want fm_rows.q */
#define KERNEL(name, ret, params) ret(*name) params;
#include "kernels/kernels.def"
#undef KERNEL
} fm_kernels;

/* The tables this CPU can run, best first; the last is ref. Ends with NULL. */
const fm_kernels *const *fm_kernels_available(void);

/* The best, or the one named by FLASHMOE_KERNELS. FM_UNSUPPORTED names the
 * ones there are when that name is unknown or this CPU lacks it. */
fm_status fm_kernels_select(const fm_kernels **out, fm_error *err);

#endif
