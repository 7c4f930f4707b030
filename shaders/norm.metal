/* Root-mean-square norms: the sum of squares, then every number. A row for each threadgroup, a head for each simdgroup. */

/* out = x / rms(x) * weight. Grid: rows. */
kernel void rms_norm(constant fm_p_rows &p [[buffer(0)]], device const float *x [[buffer(1)]],
                     device const float *weight [[buffer(2)]], device float *out [[buffer(3)]],
                     uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                     uint sg [[simdgroup_index_in_threadgroup]])
{
    threadgroup float part[FM_ROW_THREADS / FM_LANES];
    ulong row = ulong(group.x) * ulong(p.cols);
    int mine = int(sg) * FM_LANES + int(lane);
    float squares = 0.0f;
    for (int c = mine; c < p.cols; c += FM_ROW_THREADS) squares = fma(x[row + ulong(c)], x[row + ulong(c)], squares);
    float turn = 1.0f / precise::sqrt(row_sum(squares, part, lane, sg) / float(p.cols) + p.eps);
    for (int c = mine; c < p.cols; c += FM_ROW_THREADS) out[row + ulong(c)] = x[row + ulong(c)] * turn * weight[c];
}

/* out = x / rms(x) * weight * silu(z), head by head. p.rows are all heads of all rows. Grid: heads / simdgroups. */
kernel void gated_norm(constant fm_p_rows &p [[buffer(0)]], device const float *x [[buffer(1)]],
                       device const float *weight [[buffer(2)]], device const float *z [[buffer(3)]],
                       device float *out [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]])
{
    int head = int(group.x) * (FM_ROW_THREADS / FM_LANES) + int(sg);
    if (head >= p.rows) return;
    ulong at = ulong(head) * ulong(p.cols);
    float squares = 0.0f;
    for (int c = int(lane); c < p.cols; c += FM_LANES) squares = fma(x[at + ulong(c)], x[at + ulong(c)], squares);
    float turn = 1.0f / precise::sqrt(simd_sum(squares) / float(p.cols) + p.eps);
    for (int c = int(lane); c < p.cols; c += FM_LANES)
        out[at + ulong(c)] = x[at + ulong(c)] * turn * weight[c] * silu(z[at + ulong(c)]);
}

/* Queries and keys of the delta rule to unit length in place, queries also over sqrt(key_dim).
 * Grid: (2 key_heads / simdgroups, rows). */
kernel void unit_norm(constant fm_p_delta &p [[buffer(0)]], device float *qkv [[buffer(1)]],
                      uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                      uint sg [[simdgroup_index_in_threadgroup]])
{
    int head = int(group.x) * (FM_ROW_THREADS / FM_LANES) + int(sg);
    if (head >= 2 * p.key_heads) return;
    int width = 2 * p.key_heads * p.key_dim + p.value_heads * p.value_dim;
    device float *x = qkv + ulong(group.y) * ulong(width) + ulong(head * p.key_dim);
    float squares = 0.0f;
    for (int c = int(lane); c < p.key_dim; c += FM_LANES) squares = fma(x[c], x[c], squares);
    float turn = 1.0f / precise::sqrt(simd_sum(squares) + 1e-6f);
    if (head < p.key_heads) turn = turn / precise::sqrt(float(p.key_dim));
    for (int c = int(lane); c < p.key_dim; c += FM_LANES) x[c] *= turn;
}
