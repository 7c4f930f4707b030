/*
 * Products with float activations on vectors: float weights, and affine ones
 * where the activations must stay exact. The file that includes it has
 * included vector.h and defines widen_bytes (LANES bytes as floats), unpacker,
 * make_unpacker(bits) and unpack(unpacker, codes, to): 32 codes to bytes,
 * touching only theirs.
 */

/* Weights of one row side by side as floats; a whole number of groups. */
#define DECODED 512

static void decode_affine(const fm_matrix *w, const unpacker *u, int32_t row, int32_t first, int32_t n, float *to)
{
    fm_quant q = w->quant;
    size_t cols = (size_t)w->cols, size = fm_number_size(q.scale);
    size_t group = (size_t)row * (cols / (size_t)q.group) + (size_t)(first / q.group);
    const uint8_t *codes = w->weight + ((size_t)row * cols + (size_t)first) / 8 * (size_t)q.bits;
    float scale[DECODED / 32], bias[DECODED / 32];
    size_t ahead = 2 * cols / 8 * (size_t)q.bits; /* this part, two rows on */
    uint8_t bytes[32];

    fm_numbers_decode(q.scale, w->scales + group * size, n / q.group, scale);
    fm_numbers_decode(q.scale, w->biases + group * size, n / q.group, bias);
    for (int32_t i = 0; i < n; i += 32, codes += 4 * (size_t)q.bits) {
        __builtin_prefetch(codes + ahead);
        unpack(u, codes, bytes);
        vf s = splat(scale[i / q.group]), b = splat(bias[i / q.group]);
        for (int32_t j = 0; j < 32; j += LANES) store(to + i + j, widen_bytes(bytes + j) * s + b);
    }
}

static void decode_part(const fm_matrix *w, const unpacker *u, int32_t row, int32_t first, int32_t n, float *to)
{
    if (w->quant.kind == FM_AFFINE) {
        decode_affine(w, u, row, first, n, to);
        return;
    }
    size_t at_ = (size_t)row * (size_t)w->cols + (size_t)first;
    const uint8_t *from = w->weight + at_ * fm_number_size(w->quant.kind);
    int32_t i = 0;
    if (w->quant.kind == FM_F32) {
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    }
    for (; i + LANES <= n; i += LANES)
        store(to + i, w->quant.kind == FM_F16 ? load_f16(from + 2 * (size_t)i) : load_bf16(from + 2 * (size_t)i));
    fm_numbers_decode(w->quant.kind, from + 2 * (size_t)i, n - i, to + i);
}

/* Some weight rows side by side, so that a row of x is read once for all of them. */
#define BAND 4

/* dot() of one row of x with each of BAND rows of numbers: the same sums in the same order. */
static inline void dot_band(const float (*w)[DECODED], const float *x, int32_t n, float *to)
{
    vf s[BAND] = {{0}}, t[BAND] = {{0}};
    for (int32_t i = 0; i < n; i += 2 * LANES) {
        vf a = load(x + i), b = load(x + i + LANES);
        for (int32_t k = 0; k < BAND; k++) {
            s[k] = fma_v(load(w[k] + i), a, s[k]);
            t[k] = fma_v(load(w[k] + i + LANES), b, t[k]);
        }
    }
    for (int32_t k = 0; k < BAND; k++) to[k] = sum_lanes(s[k] + t[k]);
}

/* Up to BAND weight rows against every row of x: their numbers are decoded once. */
static void band_float(const fm_matrix *w, const unpacker *u, int32_t row, int32_t band, const fm_rows *x, float *out,
                       size_t out_stride)
{
    float part[BAND][DECODED], sum[BAND];
    int32_t cols = w->cols;

    for (int32_t first = 0; first < cols; first += DECODED) {
        int32_t n = cols - first < DECODED ? cols - first : DECODED;
        for (int32_t k = 0; k < band; k++) decode_part(w, u, row + k, first, n, part[k]);
        for (int32_t r = 0; r < x->rows; r++) {
            const float *from = x->x + (size_t)r * x->x_stride + first;
            float *to = out + (size_t)r * out_stride + row;
            if (band == BAND && n % (2 * LANES) == 0) dot_band((const float(*)[DECODED])part, from, n, sum);
            else
                for (int32_t k = 0; k < band; k++) sum[k] = dot(part[k], from, n);
            for (int32_t k = 0; k < band; k++) to[k] = first ? to[k] + sum[k] : sum[k];
        }
    }
}

static void matmul_float(const fm_matrix *w, int32_t first, int32_t last, const fm_rows *x, float *out, size_t out_stride)
{
    const unpacker u = make_unpacker(w->quant.kind == FM_AFFINE ? w->quant.bits : 8);
    for (int32_t i = first; i < last; i += BAND) band_float(w, &u, i, last - i < BAND ? last - i : BAND, x, out, out_stride);
}
