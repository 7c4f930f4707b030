/* out[r][i] = row i of w . row r of x. Grid: (bands of w / FM_SIMDGROUPS, rows of x / FC_TILE). */
kernel void matvec(constant fm_p_product &p [[buffer(0)]], device const uchar *w [[buffer(1)]],
                   device const float *x [[buffer(2)]], device float *out [[buffer(3)]],
                   threadgroup float4 *staged [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]])
{
    int first = (int(group.x) * FM_SIMDGROUPS + int(sg)) * FM_BAND;
    int x_first = int(group.y) * FC_TILE;
    int tile = min(FC_TILE, p.rows - x_first);
    int cols = p.w.cols;
    float sum[FM_BAND][FM_TILE];
    band_units<FM_BAND> units;
    clear_band<FM_BAND>(sum);

    for (int at = 0; at < cols; at += FM_CHUNK) {
        load_band<FM_BAND>(units, w, p.w, first, at + int(lane) * FM_UNIT, FC_FORMAT);
        if (at > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int t = 0; t < tile; t++)
            stage_row(staged + t * FM_LANES * FM_STAGED, x + ulong(x_first + t) * ulong(cols), at, cols, sg * FM_LANES + lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        add_band<FM_BAND>(sum, units, w, p.w, first, at, staged, FC_TILE, lane, FC_FORMAT);
    }
#pragma unroll
    for (int r = 0; r < FM_BAND; r++)
#pragma unroll
        for (int t = 0; t < FM_TILE; t++)
            if (t < FC_TILE) {
                float all = simd_sum(sum[r][t]);
                if (lane == 0 && first + r < p.w.rows && t < tile)
                    out[ulong(x_first + t) * ulong(p.w.rows) + ulong(first + r)] = all;
            }
}
