/*
 * New rows on their way to attention: a simdgroup has a head of q, k or v. Heads of q and k are normed and turned; q stays
 * in place, k and v go narrowed into the caches. A cache is blocks of FM_KEY_BLOCK positions: keys [head_dim / 2][FM_KEY_BLOCK][2]
 * of each kv head, so that neighbouring lanes read neighbouring keys, values [FM_KEY_BLOCK][head_dim].
 * Grid: ((q_heads + 2 kv_heads) / simdgroups, rows).
 */

/* 1 / rms of a head, of which a lane sums what it will also turn: pairs (i, half + i), and what lies behind them. */
METAL_FUNC float head_turn(device const float *x, int dim, int half_dims, float eps, uint lane)
{
    float squares = 0.0f;
    for (int i = int(lane); i < half_dims; i += FM_LANES)
        squares = fma(x[i], x[i], fma(x[half_dims + i], x[half_dims + i], squares));
    for (int i = 2 * half_dims + int(lane); i < dim; i += FM_LANES) squares = fma(x[i], x[i], squares);
    return 1.0f / precise::sqrt(simd_sum(squares) / float(dim) + eps);
}

/* Number i of a head, normed if its turn is not. */
METAL_FUNC float normed(device const float *x, device const float *weight, int i, bool has_norm, float turn)
{
    return has_norm ? x[i] * turn * weight[i] : x[i];
}

/* Where number i of a key lies in its block. */
METAL_FUNC ulong key_at(int i, int inside)
{
    return ulong((i / 2 * FM_KEY_BLOCK + inside) * 2 + i % 2);
}

kernel void append_kv(constant fm_p_heads &p [[buffer(0)]], device float *q [[buffer(1)]], device const float *k [[buffer(2)]],
                      device const float *v [[buffer(3)]], device const float *q_norm [[buffer(4)]],
                      device const float *k_norm [[buffer(5)]], device const float *table [[buffer(6)]],
                      device uchar *keys [[buffer(7)]], device uchar *values [[buffer(8)]],
                      uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                      uint sg [[simdgroup_index_in_threadgroup]])
{
    int head = int(group.x) * (FM_ROW_THREADS / FM_LANES) + int(sg);
    int row = int(group.y);
    int dim = p.head_dim;
    int half_dims = p.rope_dims / 2;
    int inside = (p.position + row) % FM_KEY_BLOCK;
    ulong block = ulong((p.position + row) / FM_KEY_BLOCK) * ulong(p.kv_heads);
    device const float *cosine = table + ulong(row) * ulong(p.rope_dims);
    device const float *sine = cosine + half_dims;
    if (head >= p.q_heads + 2 * p.kv_heads) return;
    if (head < p.q_heads) {
        device float *x = q + (ulong(row) * ulong(p.q_heads) + ulong(head)) * ulong(dim);
        float turn = head_turn(x, dim, half_dims, p.eps, lane);
        for (int i = int(lane); i < half_dims; i += FM_LANES) {
            float a = normed(x, q_norm, i, p.q_normed != 0, turn);
            float b = normed(x, q_norm, half_dims + i, p.q_normed != 0, turn);
            x[i] = fma(a, cosine[i], -(b * sine[i]));
            x[half_dims + i] = fma(b, cosine[i], a * sine[i]);
        }
        for (int i = 2 * half_dims + int(lane); i < dim; i += FM_LANES) x[i] = normed(x, q_norm, i, p.q_normed != 0, turn);
    } else if (head < p.q_heads + p.kv_heads) {
        head -= p.q_heads;
        device const float *x = k + (ulong(row) * ulong(p.kv_heads) + ulong(head)) * ulong(dim);
        ulong to = (block + ulong(head)) * ulong(FM_KEY_BLOCK * dim);
        float turn = head_turn(x, dim, half_dims, p.eps, lane);
        for (int i = int(lane); i < half_dims; i += FM_LANES) {
            float a = normed(x, k_norm, i, p.k_normed != 0, turn);
            float b = normed(x, k_norm, half_dims + i, p.k_normed != 0, turn);
            put_number(keys, to + key_at(i, inside), fma(a, cosine[i], -(b * sine[i])), FC_FORMAT);
            put_number(keys, to + key_at(half_dims + i, inside), fma(b, cosine[i], a * sine[i]), FC_FORMAT);
        }
        for (int i = 2 * half_dims + int(lane); i < dim; i += FM_LANES)
            put_number(keys, to + key_at(i, inside), normed(x, k_norm, i, p.k_normed != 0, turn), FC_FORMAT);
    } else {
        head -= p.q_heads + p.kv_heads;
        device const float *x = v + (ulong(row) * ulong(p.kv_heads) + ulong(head)) * ulong(dim);
        ulong to = (block + ulong(head)) * ulong(FM_KEY_BLOCK * dim) + ulong(inside * dim);
        for (int i = int(lane); i < dim; i += FM_LANES) put_number(values, to + ulong(i), x[i], FC_FORMAT);
    }
}
