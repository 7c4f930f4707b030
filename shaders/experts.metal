/*
 * Routed experts where they lie, each in its slot; rows of x are gathered as they are staged, nothing is copied together.
 * A run is up to FC_TILE picks of one expert, which share what is read of its weights.
 */

template <int BAND>
METAL_FUNC void gate_up_band(constant fm_p_gate_up &p, device const uchar *slots, device const fm_p_run *run,
                             device const float *x, device float *hidden, threadgroup float4 *staged, uint3 group, uint lane,
                             uint sg)
{
    int first = (int(group.x) * FM_SIMDGROUPS + int(sg)) * BAND;
    int pick = run[group.y].first;
    int n = run[group.y].n;
    int cols = p.gate.cols;
    int bits = format_bits(FC_FORMAT) == format_bits(FC_OTHER) ? format_bits(FC_FORMAT) : 0;
    device const uchar *gate_w = slots + ulong(run[group.y].slot) * p.slot_bytes + p.gate_at;
    device const uchar *up_w = slots + ulong(run[group.y].slot) * p.slot_bytes + p.up_at;
    int row[FM_TILE];
    float gate[BAND][FM_TILE];
    float up[BAND][FM_TILE];
    band_place<BAND> gate_place;
    band_place<BAND> up_place;
    band_units<BAND> next_gate;
    band_units<BAND> next_up;
    for (int t = 0; t < FM_TILE; t++) row[t] = run[group.y].row[t];
    clear_band<BAND>(gate);
    clear_band<BAND>(up);
    find_band<BAND>(gate_place, gate_w, p.gate, first, lane, FC_FORMAT);
    find_band<BAND>(up_place, up_w, p.up, first, lane, FC_OTHER);
    load_band<BAND>(next_gate, gate_place, int(lane) * FM_UNIT, cols, FC_FORMAT);
    load_band<BAND>(next_up, up_place, int(lane) * FM_UNIT, cols, FC_OTHER);
    for (int base = 0; base < cols; base += stage_chunks() * FM_CHUNK) {
        if (base > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
        stage_rows(staged, x, row, n, base, cols, bits, lane, sg);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int c = 0; c < stage_chunks(); c++) {
            int at = base + c * FM_CHUNK;
            if (at >= cols) break;
            band_units<BAND> gate_units = next_gate;
            band_units<BAND> up_units = next_up;
            load_band<BAND>(next_gate, gate_place, at + FM_CHUNK + int(lane) * FM_UNIT, cols, FC_FORMAT);
            load_band<BAND>(next_up, up_place, at + FM_CHUNK + int(lane) * FM_UNIT, cols, FC_OTHER);
            add_band<BAND>(gate, gate_units, gate_w, p.gate, first, at, staged + c * FM_STAGE, FC_TILE, lane, FC_FORMAT, bits);
            add_band<BAND>(up, up_units, up_w, p.up, first, at, staged + c * FM_STAGE, FC_TILE, lane, FC_OTHER, bits);
        }
    }
#pragma unroll
    for (int r = 0; r < BAND; r++)
#pragma unroll
        for (int t = 0; t < FM_TILE; t++)
            if (t < FC_TILE) {
                float g = simd_sum(gate[r][t]);
                float u = simd_sum(up[r][t]);
                if (lane == 0 && first + r < p.gate.rows && t < n)
                    hidden[ulong(pick + t) * ulong(p.gate.rows) + ulong(first + r)] = silu(g) * u;
            }
}

/* hidden[pick] = silu(gate . x) * (up . x). A band is as many rows of each. Grid: (bands / FM_SIMDGROUPS, runs). */
kernel void experts_gate_up(constant fm_p_gate_up &p [[buffer(0)]], device const uchar *slots [[buffer(1)]],
                            device const fm_p_run *run [[buffer(2)]], device const float *x [[buffer(3)]],
                            device float *hidden [[buffer(4)]], threadgroup float4 *staged [[threadgroup(0)]],
                            uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                            uint sg [[simdgroup_index_in_threadgroup]])
{
    if (FC_BAND == 2) gate_up_band<2>(p, slots, run, x, hidden, staged, group, lane, sg);
    else gate_up_band<1>(p, slots, run, x, hidden, staged, group, lane, sg);
}

template <int BAND>
METAL_FUNC void down_band(constant fm_p_down &p, device const uchar *slots, device const fm_p_run *run,
                          device const float *hidden, device float *outs, threadgroup float4 *staged, uint3 group, uint lane,
                          uint sg)
{
    int first = (int(group.x) * FM_SIMDGROUPS + int(sg)) * BAND;
    int pick = run[group.y].first;
    int n = run[group.y].n;
    device const uchar *w = slots + ulong(run[group.y].slot) * p.slot_bytes + p.down_at;
    int row[FM_TILE];
    float sum[BAND][FM_TILE];
    for (int t = 0; t < FM_TILE; t++) row[t] = pick + t;
    multiply_band<BAND>(sum, w, p.down, first, hidden, row, n, staged, lane, sg);
    put_band<BAND>(outs, sum, p.down.rows, first, pick, n, lane);
}

/* outs[pick] = down . hidden[pick]. Grid: (bands / FM_SIMDGROUPS, runs). */
kernel void experts_down(constant fm_p_down &p [[buffer(0)]], device const uchar *slots [[buffer(1)]],
                         device const fm_p_run *run [[buffer(2)]], device const float *hidden [[buffer(3)]],
                         device float *outs [[buffer(4)]], threadgroup float4 *staged [[threadgroup(0)]],
                         uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                         uint sg [[simdgroup_index_in_threadgroup]])
{
    if (FC_BAND == 4) down_band<4>(p, slots, run, hidden, outs, staged, group, lane, sg);
    else if (FC_BAND == 2) down_band<2>(p, slots, run, hidden, outs, staged, group, lane, sg);
    else down_band<1>(p, slots, run, hidden, outs, staged, group, lane, sg);
}
