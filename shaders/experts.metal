/*
 * Routed experts where they lie, each in its slot; rows of x are gathered as they are staged, nothing is copied together.
 * A run is up to FC_TILE picks of one expert, which share what is read of its weights. Grid: (bands / FM_SIMDGROUPS, runs).
 */

/* hidden[pick] = silu(gate . x) * (up . x) */
kernel void experts_gate_up(constant fm_p_gate_up &p [[buffer(0)]], device const uchar *slots [[buffer(1)]],
                            device const fm_p_run *run [[buffer(2)]], device const float *x [[buffer(3)]],
                            device float *hidden [[buffer(4)]], threadgroup float4 *staged [[threadgroup(0)]],
                            uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                            uint sg [[simdgroup_index_in_threadgroup]])
{
    int first = (int(group.x) * FM_SIMDGROUPS + int(sg)) * (FM_BAND / 2);
    int n = run[group.y].n;
    int cols = p.gate.cols;
    device const uchar *gate_w = slots + ulong(run[group.y].slot) * p.slot_bytes + p.gate_at;
    device const uchar *up_w = slots + ulong(run[group.y].slot) * p.slot_bytes + p.up_at;
    float gate[FM_BAND / 2][FM_TILE];
    float up[FM_BAND / 2][FM_TILE];
    band_units<FM_BAND / 2> gate_units;
    band_units<FM_BAND / 2> up_units;
    clear_band<FM_BAND / 2>(gate);
    clear_band<FM_BAND / 2>(up);

    for (int at = 0; at < cols; at += FM_CHUNK) {
        load_band<FM_BAND / 2>(gate_units, gate_w, p.gate, first, at + int(lane) * FM_UNIT, FC_FORMAT);
        load_band<FM_BAND / 2>(up_units, up_w, p.up, first, at + int(lane) * FM_UNIT, FC_OTHER);
        if (at > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int t = 0; t < n; t++)
            stage_row(staged + t * FM_LANES * FM_STAGED, x + ulong(run[group.y].row[t]) * ulong(cols), at, cols,
                      sg * FM_LANES + lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        add_band<FM_BAND / 2>(gate, gate_units, gate_w, p.gate, first, at, staged, FC_TILE, lane, FC_FORMAT);
        add_band<FM_BAND / 2>(up, up_units, up_w, p.up, first, at, staged, FC_TILE, lane, FC_OTHER);
    }
#pragma unroll
    for (int r = 0; r < FM_BAND / 2; r++)
#pragma unroll
        for (int t = 0; t < FM_TILE; t++)
            if (t < FC_TILE) {
                float g = simd_sum(gate[r][t]);
                float u = simd_sum(up[r][t]);
                if (lane == 0 && first + r < p.gate.rows && t < n)
                    hidden[ulong(run[group.y].first + t) * ulong(p.gate.rows) + ulong(first + r)] = silu(g) * u;
            }
}

/* outs[pick] = down . hidden[pick] */
kernel void experts_down(constant fm_p_down &p [[buffer(0)]], device const uchar *slots [[buffer(1)]],
                         device const fm_p_run *run [[buffer(2)]], device const float *hidden [[buffer(3)]],
                         device float *outs [[buffer(4)]], threadgroup float4 *staged [[threadgroup(0)]],
                         uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                         uint sg [[simdgroup_index_in_threadgroup]])
{
    int first = (int(group.x) * FM_SIMDGROUPS + int(sg)) * FM_BAND;
    int pick = run[group.y].first;
    int n = run[group.y].n;
    int cols = p.down.cols;
    device const uchar *w = slots + ulong(run[group.y].slot) * p.slot_bytes + p.down_at;
    float sum[FM_BAND][FM_TILE];
    band_units<FM_BAND> units;
    clear_band<FM_BAND>(sum);

    for (int at = 0; at < cols; at += FM_CHUNK) {
        load_band<FM_BAND>(units, w, p.down, first, at + int(lane) * FM_UNIT, FC_FORMAT);
        if (at > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int t = 0; t < n; t++)
            stage_row(staged + t * FM_LANES * FM_STAGED, hidden + ulong(pick + t) * ulong(cols), at, cols, sg * FM_LANES + lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        add_band<FM_BAND>(sum, units, w, p.down, first, at, staged, FC_TILE, lane, FC_FORMAT);
    }
#pragma unroll
    for (int r = 0; r < FM_BAND; r++)
#pragma unroll
        for (int t = 0; t < FM_TILE; t++)
            if (t < FC_TILE) {
                float all = simd_sum(sum[r][t]);
                if (lane == 0 && first + r < p.down.rows && t < n)
                    outs[ulong(pick + t) * ulong(p.down.rows) + ulong(first + r)] = all;
            }
}
