/* Every verb of one device against the same verb of another. What the files of the selftest share. */
#ifndef FM_SELFTEST_H
#define FM_SELFTEST_H

#include "backend/backend.h"

#define FM_PAIR_BUFFERS 24

/* Two devices that are given the same work: the one that is tested, and the one that is right. */
typedef struct {
    fm_backend *b[2];
    bool quick, rounds; /* rounds: products of affine weights round activations to int8 */
    fm_selftest_tell tell;
    void *context;
    fm_buf *buf[FM_PAIR_BUFFERS][2];
    int32_t bufs;
    uint64_t seed;
    int32_t failed;
    fm_status status; /* of what the selftest itself needs: memory */
    fm_error *err;
} fm_pair;

/* The same tensor on both. */
typedef struct {
    fm_tensor on[2];
    int32_t number; /* of its buffer */
} fm_twin;

float fm_pair_random(fm_pair *p); /* in [-1, 1) */

/* Numbers within +-size; a weight matrix of a format; one without contents; a buffer of so many bytes. */
fm_twin fm_pair_rows(fm_pair *p, int32_t rows, int32_t cols, float size);
fm_twin fm_pair_matrix(fm_pair *p, fm_quant quant, int32_t rows, int32_t cols);
fm_twin fm_pair_empty(fm_pair *p, int32_t rows, int32_t cols);
fm_twin fm_pair_bytes(fm_pair *p, size_t bytes);
void fm_pair_fill_matrix(fm_pair *p, fm_quant quant, int32_t rows, int32_t cols, fm_twin to, size_t at);

/* Wait for both, and tell how far `out` is from what is right. */
void fm_pair_check(fm_pair *p, const char *verb, fm_twin out, double bound, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Give all buffers back. */
void fm_pair_end(fm_pair *p);

/* selftest_rows.c, selftest_mixers.c, selftest_experts.c */
void fm_selftest_rows(fm_pair *p);
void fm_selftest_products(fm_pair *p);
void fm_selftest_attention(fm_pair *p);
void fm_selftest_delta(fm_pair *p);
void fm_selftest_experts(fm_pair *p);
void fm_selftest_large(fm_pair *p);

/* One case each, of any size. */
void fm_selftest_product(fm_pair *p, fm_quant quant, int32_t rows, int32_t w_rows, int32_t cols);
void fm_selftest_norm(fm_pair *p, int32_t rows, int32_t cols);
void fm_selftest_expert(fm_pair *p, fm_quant gate, fm_quant up, fm_quant down, int32_t hidden, int32_t inner, int32_t rows,
                        int32_t k);
void fm_selftest_conv(fm_pair *p, int32_t rows, int32_t channels, int32_t taps);
void fm_selftest_delta_shape(fm_pair *p, const fm_delta_shape *s, int32_t rows, int32_t position);

typedef struct {
    int32_t heads, kv_heads, dim, turned;
    bool normed;
    fm_number kind;
} fm_selftest_attend;

/* Steps of `step` rows up to `end`; then each of looks[0..n) rows looks at all of them. */
void fm_selftest_attention_shape(fm_pair *p, const fm_selftest_attend *a, int32_t end, int32_t step, const int32_t *looks,
                                 int32_t n);

/* All of it on two open devices, which need not have their scratch yet. FM_DEVICE if something was wrong. */
typedef enum { FM_SELFTEST_ALL, FM_SELFTEST_QUICK, FM_SELFTEST_LARGE } fm_selftest_size;

fm_status fm_selftest_pair(fm_backend *tested, fm_backend *right, fm_selftest_size size, bool rounds, fm_selftest_tell tell,
                           void *context, fm_error *err);

/* Call something on both: `name` of the device, with the tensors of each. */
#define FM_BOTH(p, i) for (int i = 0; i < 2 && (p)->status == FM_OK; i++)

#define FM_EXACT 1e-10 /* squared error over energy: sums in another order */

#endif
