/* What host and kernels agree on, read by Apple's compiler and by C: sizes of tiles, and each kernel's parameters. */
#ifndef FM_PARAMS_H
#define FM_PARAMS_H

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <stdint.h>
#endif

#ifdef __cplusplus
#define FM_SIZE(type, bytes) static_assert(sizeof(type) == (bytes), "host and kernels see other sizes")
#else
#define FM_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "host and kernels see other sizes")
#endif

#define FM_LANES 32
#define FM_CONSTANTS 7 /* function constants, of which a kernel reads some: common.h, attend.metal, delta.metal */

/* Products: a simdgroup has a few rows of the matrix, a threadgroup stages chunks of columns of up to FM_TILE rows of x. */
#define FM_UNIT 32                      /* columns that a lane takes of a chunk: the smallest group of codes */
#define FM_CHUNK (FM_UNIT * FM_LANES)   /* columns that the lanes take together */
#define FM_STAGED 9                     /* float4 of a staged unit: 8, and one between, so that lanes read different banks */
#define FM_STAGE (FM_LANES * FM_STAGED) /* float4 of a staged chunk */
#define FM_STAGE_CHUNKS 4               /* chunks of all rows of a tile that are staged together, if the tile has no more rows */
#define FM_TILE 4                       /* most rows of x that share what is read of the weights */
#define FM_BAND 4                       /* most rows of the matrix that a simdgroup has */
#define FM_SIMDGROUPS 8                 /* of a threadgroup in products */

#define FM_ROW_THREADS 256 /* of a threadgroup that has one row */

/* Attention: caches are blocks of positions; scores are summed up in parts, a simdgroup has a block of one. */
#define FM_KEY_BLOCK 64
#define FM_SLICES 8 /* simdgroups of a threadgroup */
#define FM_KEY_PART (FM_SLICES * FM_KEY_BLOCK)
#define FM_QUERIES 4    /* queries of a threadgroup: heads of a row, or of neighbouring rows */
#define FM_MOST_PAIRS 4 /* pairs of numbers a lane has of a head: 64 numbers each */
#define FM_MOST_HEAD_DIM (2 * FM_LANES * FM_MOST_PAIRS)

/* The delta rule: a simdgroup has 8 columns of a head's state, a lane every 16th row of 4 of them. */
#define FM_STATE_COLUMNS 8
#define FM_STATE_STRIDE 16
#define FM_STATE_ROWS 16  /* most rows of a lane */
#define FM_STATE_GROUPS 4 /* simdgroups of a threadgroup */

/* A format in one function constant, its fields those of fm_quant. */
#define FM_FORMAT(kind, scale, bits, group) ((kind) | (scale) << 2 | (bits) << 4 | (group) << 8)
#define FM_KIND_F32 0
#define FM_KIND_F16 1
#define FM_KIND_BF16 2
#define FM_KIND_AFFINE 3

/*
 * A matrix [rows][cols], whose scales and biases lie behind it. `float_bits` are FM_FLOAT_BITS: a compiler that knew
 * them would make two instructions of what puts them before a code.
 */
#define FM_FLOAT_BITS 0x4b000000u /* of 2^23, whose last 23 bits count in ones */
typedef struct {
    uint64_t scales_at, biases_at;
    int32_t rows, cols;
    uint32_t float_bits;
    int32_t unused;
} fm_p_matrix;
FM_SIZE(fm_p_matrix, 32);

typedef struct {
    fm_p_matrix w;
    int32_t rows, unused; /* of x */
} fm_p_product;
FM_SIZE(fm_p_product, 40);

typedef struct {
    uint64_t slot_bytes, gate_at, up_at;
    fm_p_matrix gate, up;
} fm_p_gate_up;
FM_SIZE(fm_p_gate_up, 88);

typedef struct {
    uint64_t slot_bytes, down_at;
    fm_p_matrix down;
} fm_p_down;
FM_SIZE(fm_p_down, 48);

/* Picks [first, first + n) are of the expert in `slot`; pick i reads row[i] of x. At most FM_TILE. */
typedef struct {
    int32_t first, n, slot, unused;
    int32_t row[FM_TILE];
} fm_p_run;
FM_SIZE(fm_p_run, 32);

/* Row `at` of what the experts gave, and how much of it. */
typedef struct {
    int32_t at;
    float share;
} fm_p_share;
FM_SIZE(fm_p_share, 8);

typedef struct {
    int32_t rows, cols;
    int32_t shared, scored; /* 1: there is one */
} fm_p_combine;
FM_SIZE(fm_p_combine, 16);

typedef struct {
    int32_t rows, cols;
    float eps;
    int32_t unused;
} fm_p_rows;
FM_SIZE(fm_p_rows, 16);

typedef struct {
    uint64_t n;
} fm_p_flat;
FM_SIZE(fm_p_flat, 8);

typedef struct {
    int32_t q_heads, kv_heads, head_dim, rope_dims;
    int32_t rows, position;
    int32_t q_normed, k_normed; /* 1: heads are normed */
    float eps;
    int32_t unused;
} fm_p_heads;
FM_SIZE(fm_p_heads, 40);

typedef struct {
    int32_t heads, kv_heads, head_dim, rows;
    int32_t position, first_part, parts; /* parts: of this pass */
    float scale;
} fm_p_attend;
FM_SIZE(fm_p_attend, 32);

typedef struct {
    int32_t rows, channels, taps, unused;
} fm_p_conv;
FM_SIZE(fm_p_conv, 16);

typedef struct {
    int32_t key_heads, value_heads, key_dim, value_dim;
    int32_t rows, unused;
} fm_p_delta;
FM_SIZE(fm_p_delta, 24);

#endif
