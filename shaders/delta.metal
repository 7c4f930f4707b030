/* Gated delta net: short convolution, gates, and the delta rule on a recurrent state. */

/*
 * out[r][c] = silu(sum over t of taps[c][t] * row r - (taps - 1) + t), rows before the first from the state; behind the rows
 * of out, those of the next state: the last taps - 1 of state and input together.
 * Grid: (channels / FM_ROW_THREADS, rows + taps - 1).
 */
kernel void conv(constant fm_p_conv &p [[buffer(0)]], device const float *x [[buffer(1)]], device const float *from [[buffer(2)]],
                 device const float *taps [[buffer(3)]], device float *out [[buffer(4)]], device float *to [[buffer(5)]],
                 uint3 at [[thread_position_in_grid]])
{
    int c = int(at.x);
    if (c >= p.channels) return;
    int before = p.taps - 1;
    ulong channels = ulong(p.channels);
    bool keeps = int(at.y) >= p.rows;
    int first = int(at.y) - before; /* the oldest row that is seen, or the one that is kept */
    float sum = 0.0f;
    for (int t = 0; t < (keeps ? 1 : p.taps); t++) {
        int row = first + t;
        float number = row < 0 ? from[ulong(before + row) * channels + ulong(c)] : x[ulong(row) * channels + ulong(c)];
        sum = keeps ? number : fma(taps[ulong(c) * ulong(p.taps) + ulong(t)], number, sum);
    }
    if (keeps) to[ulong(int(at.y) - p.rows) * channels + ulong(c)] = sum;
    else out[ulong(at.y) * channels + ulong(c)] = silu(sum);
}

/* decay = -exp(a_log) * softplus(decay + dt_bias), beta = sigmoid(beta). Grid: numbers / FM_ROW_THREADS. */
kernel void delta_gates(constant fm_p_rows &p [[buffer(0)]], device float *decay [[buffer(1)]], device float *beta [[buffer(2)]],
                        device const float *a_log [[buffer(3)]], device const float *dt_bias [[buffer(4)]],
                        uint3 at [[thread_position_in_grid]])
{
    int i = int(at.x);
    if (i >= p.rows * p.cols) return;
    int head = i % p.cols;
    decay[i] = -precise::exp(a_log[head]) * softplus(decay[i] + dt_bias[head]);
    beta[i] = sigmoid(beta[i]);
}

constant int FC_STATE_ROWS [[function_constant(6)]]; /* rows of the state that a lane has: key_dim / 16, rounded up */

/* The first n of four numbers. */
METAL_FUNC void put_four(device float *to, float4 x, int n)
{
    if (n > 0) to[0] = x.x;
    if (n > 1) to[1] = x.y;
    if (n > 2) to[2] = x.z;
    if (n > 3) to[3] = x.w;
}

/* The sum over the 16 lanes that have the same four columns. */
METAL_FUNC float4 column_sum(float4 x)
{
    for (ushort i = 2; i < 32; i *= 2)
        x += float4(simd_shuffle_xor(x.x, i), simd_shuffle_xor(x.y, i), simd_shuffle_xor(x.z, i), simd_shuffle_xor(x.w, i));
    return x;
}

/* What a lane needs of a row: its rows' keys and queries (zeros behind key_dim), its columns' values, both gates. */
struct delta_row {
    float q[FM_STATE_ROWS];
    float k[FM_STATE_ROWS];
    float4 v;
    float decay;
    float beta;
};

METAL_FUNC void read_row(thread delta_row &to, constant fm_p_delta &p, device const float *qkv, device const float *decay,
                         device const float *beta, int r, int head, int first, int column, int n)
{
    int key_width = p.key_heads * p.key_dim;
    device const float *x = qkv + ulong(r) * ulong(2 * key_width + p.value_heads * p.value_dim);
    device const float *q = x + head / (p.value_heads / p.key_heads) * p.key_dim;
    ulong gate = ulong(r) * ulong(p.value_heads) + ulong(head);
#pragma unroll
    for (int i = 0; i < FM_STATE_ROWS; i++) {
        int row = first + i * FM_STATE_STRIDE;
        bool here = i < FC_STATE_ROWS && row < p.key_dim;
        to.q[i] = here ? q[row] : 0.0f;
        to.k[i] = here ? q[key_width + row] : 0.0f;
    }
    to.v = load_four(x + 2 * key_width + head * p.value_dim + column, n);
    to.decay = decay[gate];
    to.beta = beta[gate];
}

/*
 * S = e^decay S; write = beta (v - S'k); S += k write'; out = S'q, row after row: the state is in registers for all of them,
 * so chunks make no difference. A simdgroup has 8 columns, a lane four of these and every 16th row.
 * Grid: (value_dim / 8 / FM_STATE_GROUPS, value heads).
 */
kernel void delta(constant fm_p_delta &p [[buffer(0)]], device const float *qkv [[buffer(1)]],
                  device const float *decay [[buffer(2)]], device const float *beta [[buffer(3)]],
                  device const float *from [[buffer(4)]], device float *to [[buffer(5)]], device float *out [[buffer(6)]],
                  uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                  uint sg [[simdgroup_index_in_threadgroup]])
{
    int head = int(group.y);
    int column = (int(group.x) * FM_STATE_GROUPS + int(sg)) * FM_STATE_COLUMNS + int(lane % 2) * 4;
    int first = int(lane / 2);
    int n = clamp(p.value_dim - column, 0, 4);
    ulong state = ulong(head) * ulong(p.key_dim) * ulong(p.value_dim) + ulong(column);
    float4 s[FM_STATE_ROWS];
#pragma unroll
    for (int i = 0; i < FM_STATE_ROWS; i++) {
        int row = first + i * FM_STATE_STRIDE;
        s[i] = float4(0.0f);
        if (i < FC_STATE_ROWS && row < p.key_dim) s[i] = load_four(from + state + ulong(row) * ulong(p.value_dim), n);
    }
    delta_row next;
    read_row(next, p, qkv, decay, beta, 0, head, first, column, n);
    for (int r = 0; r < p.rows; r++) {
        delta_row now = next;
        if (r + 1 < p.rows) read_row(next, p, qkv, decay, beta, r + 1, head, first, column, n); /* while this one is computed */
        float keep = precise::exp(now.decay);
        float4 seen = float4(0.0f);
#pragma unroll
        for (int i = 0; i < FM_STATE_ROWS; i++)
            if (i < FC_STATE_ROWS) {
                s[i] = s[i] * keep;
                seen = fma(s[i], float4(now.k[i]), seen);
            }
        float4 write = (now.v - column_sum(seen)) * now.beta;
        float4 made = float4(0.0f);
#pragma unroll
        for (int i = 0; i < FM_STATE_ROWS; i++)
            if (i < FC_STATE_ROWS) {
                s[i] = fma(float4(now.k[i]), write, s[i]);
                made = fma(s[i], float4(now.q[i]), made);
            }
        made = column_sum(made);
        if (lane < 2)
            put_four(out + (ulong(r) * ulong(p.value_heads) + ulong(head)) * ulong(p.value_dim) + ulong(column), made, n);
    }
#pragma unroll
    for (int i = 0; i < FM_STATE_ROWS; i++) {
        int row = first + i * FM_STATE_STRIDE;
        if (i < FC_STATE_ROWS && row < p.key_dim) put_four(to + state + ulong(row) * ulong(p.value_dim), s[i], n);
    }
}
