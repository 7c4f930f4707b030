/*
 * A band is a few rows of a matrix, a tile a few rows of x; a simdgroup multiplies both. Columns go by in chunks: a
 * threadgroup stages those of the tile, then lane l has the unit [32 l, 32 l + 32) of every row. A unit of codes is as
 * many words as a code has bits, so neighbours read neighbouring words, and has one scale and one bias: its number i is
 * fma(code, scale, bias), and both are taken out of the sum.
 *
 * Each product of two rows is summed in one order (a lane's units one after another, then the lanes), however large the tile is.
 */

/*
 * Codes are not shifted down before they are multiplied: code i of a unit stays at its place in its word, and x is staged
 * divided by that power of two, both of which are exact. Codes that lie in two words do have place 0.
 */
METAL_FUNC int place_of(int i, int bits)
{
    int shift = i * bits % 32;
    return shift + bits <= 32 ? shift : 0;
}

/*
 * Columns [at, at + FM_CHUNK) of a row of x, zeros behind its end, for codes of `bits`; 0: as they are.
 * Unit u begins at float4 number u * FM_STAGED.
 */
METAL_FUNC void stage_row(threadgroup float4 *staged, device const float *x, int at, int cols, int bits, uint index)
{
    threadgroup float *to = (threadgroup float *)staged;
    int n = min(cols - at, FM_CHUNK);
    int whole = (n + FM_UNIT - 1) / FM_UNIT * FM_UNIT;
    float by = 1.0f / float(1u << place_of(int(index) % FM_UNIT, bits)); /* the same for all columns of a thread */
    for (int c = int(index); c < whole; c += FM_SIMDGROUPS * FM_LANES)
        to[c / FM_UNIT * (4 * FM_STAGED) + c % FM_UNIT] = c < n ? x[at + c] * by : 0.0f;
}

/* The words of unit `unit` of a matrix of codes. */
METAL_FUNC void load_unit(device const uchar *w, ulong unit, int bits, thread uint *word)
{
    device const uchar *at = w + unit * ulong(4 * bits);
    if (bits == 4 || bits == 8) {
        for (int i = 0; i < bits / 4; i++) {
            uint4 v = ((device const uint4 *)at)[i];
            word[4 * i] = v.x;
            word[4 * i + 1] = v.y;
            word[4 * i + 2] = v.z;
            word[4 * i + 3] = v.w;
        }
    } else if (bits == 2 || bits == 6) {
        for (int i = 0; i < bits / 2; i++) {
            uint2 v = ((device const uint2 *)at)[i];
            word[2 * i] = v.x;
            word[2 * i + 1] = v.y;
        }
    } else {
        for (int i = 0; i < bits; i++) word[i] = ((device const uint *)at)[i];
    }
}

/* Code i of a unit, at its place or (placed is false) shifted down. */
METAL_FUNC float code_of(thread const uint *word, int i, int bits, bool placed)
{
    int bit = i * bits;
    int shift = bit % 32;
    uint mask = (1u << bits) - 1u;
    if (shift + bits > 32) return float(((word[bit / 32] >> shift) | (word[bit / 32 + 1] << (32 - shift))) & mask);
    if (placed) return float(word[bit / 32] & (mask << shift));
    return float((word[bit / 32] >> shift) & mask);
}

/* What undoes the staging of columns 4 i to 4 i + 3 of a unit. */
METAL_FUNC float4 places_of(int i, int bits)
{
    return float4(float(1u << place_of(4 * i, bits)), float(1u << place_of(4 * i + 1, bits)),
                  float(1u << place_of(4 * i + 2, bits)), float(1u << place_of(4 * i + 3, bits)));
}

/* What a lane has read of a band: a unit of each row. */
template <int BAND> struct band_units {
    uint word[BAND][8];
    float scale[BAND];
    float bias[BAND];
};

/* The lane's unit of rows [first, first + BAND), of the last row where there are no more; zeros behind the last column. */
template <int BAND>
METAL_FUNC void load_band(thread band_units<BAND> &u, device const uchar *w, constant fm_p_matrix &m, int first, int column,
                          int format)
{
    if (format_kind(format) != FM_KIND_AFFINE) return;
    int bits = format_bits(format);
    int group = format_group(format);
    bool here = column < m.cols;
#pragma unroll
    for (int r = 0; r < BAND; r++) {
        ulong row = ulong(min(first + r, m.rows - 1));
        ulong number = row * ulong(m.cols / group) + ulong(column / group);
        for (int i = 0; i < bits; i++) u.word[r][i] = 0u;
        u.scale[r] = 0.0f;
        u.bias[r] = 0.0f;
        if (here) {
            load_unit(w, row * ulong(m.cols / FM_UNIT) + ulong(column / FM_UNIT), bits, u.word[r]);
            u.scale[r] = number_at(w + m.scales_at, number, format_scale(format));
            u.bias[r] = number_at(w + m.biases_at, number, format_scale(format));
        }
    }
}

/* sum[r][t] += unit of row r . unit of staged row t, which is staged for codes of `staged_bits`: `bits` or 0. */
template <int BAND>
METAL_FUNC void add_codes(thread float (&sum)[BAND][FM_TILE], thread const band_units<BAND> &u, const threadgroup float4 *staged,
                          int tile, uint lane, int bits, int staged_bits)
{
    float dot[BAND][FM_TILE];
    float total[FM_TILE];
#pragma unroll
    for (int t = 0; t < FM_TILE; t++) {
        total[t] = 0.0f;
#pragma unroll
        for (int r = 0; r < BAND; r++) dot[r][t] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < FM_UNIT / 4; i++) {
        float4 x[FM_TILE];
        float4 back = places_of(i, staged_bits);
#pragma unroll
        for (int t = 0; t < FM_TILE; t++)
            if (t < tile) {
                x[t] = staged[(t * FM_LANES + int(lane)) * FM_STAGED + i];
                total[t] = fma(x[t].w, back.w, fma(x[t].z, back.z, fma(x[t].y, back.y, fma(x[t].x, back.x, total[t]))));
            }
#pragma unroll
        for (int r = 0; r < BAND; r++) {
            bool placed = staged_bits != 0;
            float4 q = float4(code_of(u.word[r], 4 * i, bits, placed), code_of(u.word[r], 4 * i + 1, bits, placed),
                              code_of(u.word[r], 4 * i + 2, bits, placed), code_of(u.word[r], 4 * i + 3, bits, placed));
#pragma unroll
            for (int t = 0; t < FM_TILE; t++)
                if (t < tile) dot[r][t] = fma(q.w, x[t].w, fma(q.z, x[t].z, fma(q.y, x[t].y, fma(q.x, x[t].x, dot[r][t]))));
        }
    }
#pragma unroll
    for (int r = 0; r < BAND; r++)
#pragma unroll
        for (int t = 0; t < FM_TILE; t++) sum[r][t] = fma(u.scale[r], dot[r][t], fma(u.bias[r], total[t], sum[r][t]));
}

/* Eight numbers of a row from column c on; zeros behind the last one. */
METAL_FUNC void load_numbers(device const uchar *w, ulong row, int cols, int c, int kind, thread float *q)
{
    ulong at = row * ulong(cols) + ulong(c);
    if (cols % 8 != 0) {
        for (int i = 0; i < 8; i++) q[i] = c + i < cols ? number_at(w, at + ulong(i), kind) : 0.0f;
    } else if (kind == FM_KIND_F32) {
        for (int i = 0; i < 2; i++) {
            float4 v = ((device const float4 *)(w + at * 4ul))[i];
            q[4 * i] = v.x;
            q[4 * i + 1] = v.y;
            q[4 * i + 2] = v.z;
            q[4 * i + 3] = v.w;
        }
    } else {
        uint4 v = *((device const uint4 *)(w + at * 2ul));
        uint two[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 f = float2(from_bf16(two[i]), as_type<float>(two[i] & 0xffff0000u));
            if (kind == FM_KIND_F16) f = float2(as_type<half2>(two[i]));
            q[2 * i] = f.x;
            q[2 * i + 1] = f.y;
        }
    }
}

/* The same for a matrix of numbers: of a chunk, lane l has columns [8 l, 8 l + 8) of each quarter. */
template <int BAND>
METAL_FUNC void add_numbers(thread float (&sum)[BAND][FM_TILE], device const uchar *w, constant fm_p_matrix &m, int first, int at,
                            const threadgroup float4 *staged, int tile, uint lane, int kind)
{
    for (int c = 8 * int(lane); c < FM_CHUNK && at + c < m.cols; c += 8 * FM_LANES)
#pragma unroll
        for (int r = 0; r < BAND; r++) {
            float q[8];
            load_numbers(w, ulong(min(first + r, m.rows - 1)), m.cols, at + c, kind, q);
#pragma unroll
            for (int t = 0; t < FM_TILE; t++)
                if (t < tile) {
                    const threadgroup float4 *from = staged + (t * FM_LANES + c / FM_UNIT) * FM_STAGED + c % FM_UNIT / 4;
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float4 x = from[i];
                        sum[r][t] =
                            fma(q[4 * i + 3], x.w, fma(q[4 * i + 2], x.z, fma(q[4 * i + 1], x.y, fma(q[4 * i], x.x, sum[r][t]))));
                    }
                }
        }
}

/* A staged chunk, from column `at` on, of which the band's units were loaded. */
template <int BAND>
METAL_FUNC void add_band(thread float (&sum)[BAND][FM_TILE], thread const band_units<BAND> &u, device const uchar *w,
                         constant fm_p_matrix &m, int first, int at, const threadgroup float4 *staged, int tile, uint lane,
                         int format, int staged_bits)
{
    if (format_kind(format) != FM_KIND_AFFINE) add_numbers<BAND>(sum, w, m, first, at, staged, tile, lane, format_kind(format));
    else if (at + int(lane) * FM_UNIT < m.cols) add_codes<BAND>(sum, u, staged, tile, lane, format_bits(format), staged_bits);
}

template <int BAND> METAL_FUNC void clear_band(thread float (&sum)[BAND][FM_TILE])
{
    for (int r = 0; r < BAND; r++)
        for (int t = 0; t < FM_TILE; t++) sum[r][t] = 0.0f;
}

/* out[x_first + t][first + r] = the sum over the lanes. */
template <int BAND>
METAL_FUNC void put_band(device float *out, thread const float (&sum)[BAND][FM_TILE], int rows, int first, int x_first, int tile,
                         uint lane)
{
#pragma unroll
    for (int r = 0; r < BAND; r++)
#pragma unroll
        for (int t = 0; t < FM_TILE; t++)
            if (t < FC_TILE) {
                float all = simd_sum(sum[r][t]);
                if (lane == 0 && first + r < rows && t < tile) out[ulong(x_first + t) * ulong(rows) + ulong(first + r)] = all;
            }
}
