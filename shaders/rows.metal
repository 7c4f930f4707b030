/* Verbs that treat every number alike. Grid: numbers / FM_ROW_THREADS; embed: (columns / FM_ROW_THREADS, rows). */

kernel void add(constant fm_p_flat &p [[buffer(0)]], device const float *x [[buffer(1)]], device const float *y [[buffer(2)]],
                device float *out [[buffer(3)]], uint3 at [[thread_position_in_grid]])
{
    ulong i = ulong(at.x);
    if (i < p.n) out[i] = x[i] + y[i];
}

kernel void swiglu(constant fm_p_flat &p [[buffer(0)]], device const float *x [[buffer(1)]], device const float *y [[buffer(2)]],
                   device float *out [[buffer(3)]], uint3 at [[thread_position_in_grid]])
{
    ulong i = ulong(at.x);
    if (i < p.n) out[i] = silu(x[i]) * y[i];
}

kernel void gate(constant fm_p_flat &p [[buffer(0)]], device const float *x [[buffer(1)]], device const float *y [[buffer(2)]],
                 device float *out [[buffer(3)]], uint3 at [[thread_position_in_grid]])
{
    ulong i = ulong(at.x);
    if (i < p.n) out[i] = x[i] * sigmoid(y[i]);
}

/* out[r] = row id[r] of the table. */
kernel void embed(constant fm_p_matrix &p [[buffer(0)]], device const uchar *table [[buffer(1)]],
                  device const int *id [[buffer(2)]], device float *out [[buffer(3)]], uint3 at [[thread_position_in_grid]])
{
    int c = int(at.x);
    if (c >= p.cols) return;
    ulong cell = ulong(id[at.y]) * ulong(p.cols) + ulong(c);
    ulong to = ulong(at.y) * ulong(p.cols) + ulong(c);
    if (format_kind(FC_FORMAT) != FM_KIND_AFFINE) {
        out[to] = number_at(table, cell, format_kind(FC_FORMAT));
        return;
    }
    int bits = format_bits(FC_FORMAT);
    int shift = c % 8 * bits;
    ulong byte = cell / 8ul * ulong(bits) + ulong(shift / 8);
    uint two = uint(table[byte]);
    if (shift % 8 + bits > 8) two |= uint(table[byte + 1ul]) << 8;
    float code = float((two >> (shift % 8)) & ((1u << bits) - 1u));
    ulong number = cell / ulong(format_group(FC_FORMAT));
    out[to] = fma(code, number_at(table + p.scales_at, number, format_scale(FC_FORMAT)),
                  number_at(table + p.biases_at, number, format_scale(FC_FORMAT)));
}
