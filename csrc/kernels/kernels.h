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

/* Keys are visited in blocks of this many positions, and summed up in parts of that many, whatever the caller's batch. */
#define FM_ATTEND_BLOCK 64
#define FM_ATTEND_PART 1024

/*
 * Keys [first, last) of one kv head, seen by `rows` rows of the query heads
 * that share it. `first` starts a part, or goes on where the call before ended:
 * a multiple of FM_ATTEND_BLOCK. Row r sees the keys 0 .. position + r; all
 * rows lie in the same FM_ATTEND_BLOCK positions. A cache is blocks of that many positions, `block` numbers apart:
 * keys [head_dim][FM_ATTEND_BLOCK], so that a vector holds the same number of neighbouring keys, and values
 * [FM_ATTEND_BLOCK][head_dim]. What comes out, for each query (rows times heads): sums of fm_attend_wide
 * numbers relative to e^top, then all tops, then all totals.
 */
typedef struct {
    const float *q; /* [rows][heads][head_dim], rows q_stride apart */
    size_t q_stride;
    const void *keys, *values; /* the first block of this kv head, of kind numbers */
    size_t block;
    fm_number kind;
    int32_t rows, heads, head_dim;
    int32_t position, first, last;
    float scale;
    float *part;    /* fm_attend_part(rows * heads, head_dim) floats */
    float *scratch; /* fm_attend_scratch(rows * heads, head_dim) floats */
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
    float *scratch; /* fm_delta_scratch(key_dim) floats */
} fm_delta;

static inline size_t fm_attend_wide(int32_t head_dim)
{
    return (size_t)(head_dim + 31) / 32 * 32;
}

/* Where number i of position `at` lies in a cache, counted from the first block of its kv head. */
static inline size_t fm_key_at(const fm_attention *a, int32_t at, int32_t i)
{
    return (size_t)(at / FM_ATTEND_BLOCK) * a->block + (size_t)i * FM_ATTEND_BLOCK + (size_t)(at % FM_ATTEND_BLOCK);
}

static inline size_t fm_value_at(const fm_attention *a, int32_t at, int32_t i)
{
    return (size_t)(at / FM_ATTEND_BLOCK) * a->block + (size_t)(at % FM_ATTEND_BLOCK) * (size_t)a->head_dim + (size_t)i;
}

/* Both in whole cache lines. */
static inline size_t fm_attend_part(int32_t queries, int32_t head_dim)
{
    return ((size_t)queries * (fm_attend_wide(head_dim) + 2) + 15) / 16 * 16;
}

static inline size_t fm_attend_scratch(int32_t queries, int32_t head_dim)
{
    size_t wide = fm_attend_wide(head_dim);
    return ((size_t)queries * (wide + FM_ATTEND_BLOCK + 1) + FM_ATTEND_BLOCK * 32 + 15) / 16 * 16;
}

static inline size_t fm_delta_scratch(int32_t key_dim)
{
    return 2 * FM_DELTA_CHUNK * (size_t)key_dim;
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

/* The one called `name`; NULL: the best, or the one named by FLASHMOE_KERNELS. FM_UNSUPPORTED names the
 * ones there are when that name is unknown or this CPU lacks it. */
fm_status fm_kernels_select(const char *name, const fm_kernels **out, fm_error *err);

#endif
