/*
 * A band is a few rows of a matrix, a tile a few rows of x; a simdgroup multiplies both. Columns go by in chunks: a
 * threadgroup stages some of the tile, then lane l has the unit [32 l, 32 l + 32) of every row of a chunk, and reads the
 * next one while it multiplies. A unit of codes is as many words as a code has bits, so neighbours read neighbouring words,
 * and has one scale and one bias: its number i is fma(code, scale, bias), and both are taken out of the sum.
 *
 * Each product of two rows is summed in one order (a lane's units one after another, then the lanes), however large the tile is.
 */

/*
 * A code becomes a float by the bits of 2^23, whose last 23 bits count in ones: no conversion, which many GPUs do slowly.
 * It need not be shifted down for that: code i of a unit stays at its place in its word, or in the word shifted down by
 * FM_HIGH where it lies too high, and x is staged divided by that power of two. All of this is exact.
 */
#define FM_COUNTED 23
#define FM_HIGH 12

METAL_FUNC int place_of(int i, int bits)
{
    int shift = i * bits % 32;
    if (shift + bits > 32) return 0; /* in two words */
    return shift + bits > FM_COUNTED ? shift - FM_HIGH : shift;
}

/* By what columns 4 i to 4 i + 3 of a unit are divided when they are staged. */
METAL_FUNC float4 places_of(int i, int bits)
{
    return float4(float(1u << place_of(4 * i, bits)), float(1u << place_of(4 * i + 1, bits)),
                  float(1u << place_of(4 * i + 2, bits)), float(1u << place_of(4 * i + 3, bits)));
}

/* Chunks of each row that are staged together. */
METAL_FUNC int stage_chunks()
{
    return max(FM_STAGE_CHUNKS / FC_TILE, 1);
}

/*
 * Columns from `at` on of rows row[0 .. n) of x, zeros behind the last one, for codes of `bits`; 0: as they are.
 * Row t begins at t * stage_chunks() * FM_STAGE, unit u of it FM_STAGED float4 further each.
 */
METAL_FUNC void stage_rows(threadgroup float4 *staged, device const float *x, thread const int *row, int n, int at, int cols,
                           int bits, uint lane, uint sg)
{
    int index = int(sg) * FM_LANES + int(lane);
    int here = min(cols - at, stage_chunks() * FM_CHUNK);
    int whole = (here + FM_UNIT - 1) / FM_UNIT * FM_UNIT;
    float4 by = float4(1.0f) / places_of(index % (FM_UNIT / 4), bits); /* the same for all columns of a thread */
    for (int t = 0; t < n; t++) {
        threadgroup float4 *to = staged + t * stage_chunks() * FM_STAGE;
        device const float *from = x + ulong(row[t]) * ulong(cols) + ulong(at);
        for (int c = 4 * index; c < whole; c += 4 * FM_SIMDGROUPS * FM_LANES)
            to[c / FM_UNIT * FM_STAGED + c % FM_UNIT / 4] = load_four(from + c, here - c) * by;
    }
}

/* The words of a unit. */
METAL_FUNC void load_unit(device const uchar *at, int bits, thread uint *word)
{
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
METAL_FUNC float code_of(thread const uint *word, int i, int bits, bool placed, uint float_bits)
{
    int shift = i * bits % 32;
    uint low = word[i * bits / 32];
    uint mask = (1u << bits) - 1u;
    uint q = (low >> shift) & mask;
    if (shift + bits > 32) q = ((low >> shift) | (word[i * bits / 32 + 1] << (32 - shift))) & mask;
    else if (placed) q = (shift + bits > FM_COUNTED ? low >> FM_HIGH : low) & (mask << place_of(i, bits));
    return as_type<float>(q | float_bits) - 8388608.0f;
}

/* Where a lane's next unit of each row of a band lies, and its scale; biases are as far behind the scales everywhere. */
template <int BAND> struct band_place {
    device const uchar *code[BAND];
    device const uchar *scale[BAND];
    ulong bias;
};

/* What a lane has read of a band: a unit of each row. */
template <int BAND> struct band_units {
    uint word[BAND][8];
    float scale[BAND];
    float bias[BAND];
};

/* Rows [first, first + BAND) from the first column on; where there are no more rows, the last one. */
template <int BAND>
METAL_FUNC void find_band(thread band_place<BAND> &at, device const uchar *w, constant fm_p_matrix &m, int first, uint lane,
                          int format)
{
    if (format_kind(format) != FM_KIND_AFFINE) return;
    int group = format_group(format);
    int size = format_scale(format) == FM_KIND_F32 ? 4 : 2;
    at.bias = m.biases_at - m.scales_at;
#pragma unroll
    for (int r = 0; r < BAND; r++) {
        ulong row = ulong(min(first + r, m.rows - 1));
        at.code[r] = w + (row * ulong(m.cols / FM_UNIT) + ulong(lane)) * ulong(4 * format_bits(format));
        at.scale[r] = w + m.scales_at + (row * ulong(m.cols / group) + ulong(int(lane) * FM_UNIT / group)) * ulong(size);
    }
}

/* Read the lane's next unit of each row, if there is one: it begins at `column`. */
template <int BAND>
METAL_FUNC void load_band(thread band_units<BAND> &u, thread band_place<BAND> &at, int column, int cols, int format)
{
    if (format_kind(format) != FM_KIND_AFFINE || column >= cols) return;
    int bits = format_bits(format);
    int size = format_scale(format) == FM_KIND_F32 ? 4 : 2;
#pragma unroll
    for (int r = 0; r < BAND; r++) {
        load_unit(at.code[r], bits, u.word[r]);
        u.scale[r] = number_at(at.scale[r], 0ul, format_scale(format));
        u.bias[r] = number_at(at.scale[r] + at.bias, 0ul, format_scale(format));
        at.code[r] += FM_LANES * 4 * bits;
        at.scale[r] += FM_CHUNK / format_group(format) * size;
    }
}

/* sum[r][t] += unit of row r . unit of staged row t, which is staged for codes of `staged_bits`: `bits` or 0. */
template <int BAND>
METAL_FUNC void add_codes(thread float (&sum)[BAND][FM_TILE], thread const band_units<BAND> &u, const threadgroup float4 *staged,
                          int tile, uint lane, int bits, int staged_bits, uint float_bits)
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
                x[t] = staged[t * stage_chunks() * FM_STAGE + int(lane) * FM_STAGED + i];
                total[t] = fma(x[t].w, back.w, fma(x[t].z, back.z, fma(x[t].y, back.y, fma(x[t].x, back.x, total[t]))));
            }
#pragma unroll
        for (int r = 0; r < BAND; r++) {
            bool placed = staged_bits != 0;
            float4 q = float4(
                code_of(u.word[r], 4 * i, bits, placed, float_bits), code_of(u.word[r], 4 * i + 1, bits, placed, float_bits),
                code_of(u.word[r], 4 * i + 2, bits, placed, float_bits), code_of(u.word[r], 4 * i + 3, bits, placed, float_bits));
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
                    const threadgroup float4 *from =
                        staged + t * stage_chunks() * FM_STAGE + c / FM_UNIT * FM_STAGED + c % FM_UNIT / 4;
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
    else if (at + int(lane) * FM_UNIT < m.cols)
        add_codes<BAND>(sum, u, staged, tile, lane, format_bits(format), staged_bits, m.float_bits);
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

/* sum[r][t] = row first + r of w . row row[t] of x. */
template <int BAND>
METAL_FUNC void multiply_band(thread float (&sum)[BAND][FM_TILE], device const uchar *w, constant fm_p_matrix &m, int first,
                              device const float *x, thread const int *row, int tile, threadgroup float4 *staged, uint lane,
                              uint sg)
{
    int bits = format_bits(FC_FORMAT);
    band_place<BAND> place;
    band_units<BAND> next;
    clear_band<BAND>(sum);
    find_band<BAND>(place, w, m, first, lane, FC_FORMAT);
    load_band<BAND>(next, place, int(lane) * FM_UNIT, m.cols, FC_FORMAT);
    for (int base = 0; base < m.cols; base += stage_chunks() * FM_CHUNK) {
        if (base > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
        stage_rows(staged, x, row, tile, base, m.cols, bits, lane, sg);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int c = 0; c < stage_chunks(); c++) {
            int at = base + c * FM_CHUNK;
            if (at >= m.cols) break;
            band_units<BAND> units = next;
            load_band<BAND>(next, place, at + FM_CHUNK + int(lane) * FM_UNIT, m.cols, FC_FORMAT);
            add_band<BAND>(sum, units, w, m, first, at, staged + c * FM_STAGE, FC_TILE, lane, FC_FORMAT, bits);
        }
    }
}
