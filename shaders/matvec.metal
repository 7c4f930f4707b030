/* out[r][i] = row i of w . row r of x. */

template <int BAND>
METAL_FUNC void matvec_band(constant fm_p_product &p, device const uchar *w, device const float *x, device float *out,
                            threadgroup float4 *staged, uint3 group, uint lane, uint sg)
{
    int first = (int(group.x) * FM_SIMDGROUPS + int(sg)) * BAND;
    int x_first = int(group.y) * FC_TILE;
    int tile = min(FC_TILE, p.rows - x_first);
    int row[FM_TILE];
    float sum[BAND][FM_TILE];
    for (int t = 0; t < FM_TILE; t++) row[t] = x_first + t;
    multiply_band<BAND>(sum, w, p.w, first, x, row, tile, staged, lane, sg);
    put_band<BAND>(out, sum, p.w.rows, first, x_first, tile, lane);
}

/* Grid: (bands of w / FM_SIMDGROUPS, rows of x / FC_TILE). */
kernel void matvec(constant fm_p_product &p [[buffer(0)]], device const uchar *w [[buffer(1)]],
                   device const float *x [[buffer(2)]], device float *out [[buffer(3)]],
                   threadgroup float4 *staged [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]])
{
    if (FC_BAND == 4) matvec_band<4>(p, w, x, out, staged, group, lane, sg);
    else if (FC_BAND == 2) matvec_band<2>(p, w, x, out, staged, group, lane, sg);
    else matvec_band<1>(p, w, x, out, staged, group, lane, sg);
}
