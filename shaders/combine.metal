/*
 * x[r] += the outs of row r's picks, each times its share, in the order of the picks; then the shared expert, times sigmoid
 * of its score if it has one. from[start[r] .. start[r + 1]) are row r's. Grid: (columns / FM_ROW_THREADS, rows).
 */
kernel void combine(constant fm_p_combine &p [[buffer(0)]], device float *x [[buffer(1)]], device const float *outs [[buffer(2)]],
                    device const int *start [[buffer(3)]], device const fm_p_share *from [[buffer(4)]],
                    device const float *shared [[buffer(5)]], device const float *score [[buffer(6)]],
                    uint3 at [[thread_position_in_grid]])
{
    int c = int(at.x);
    if (c >= p.cols) return;
    ulong cell = ulong(at.y) * ulong(p.cols) + ulong(c);
    float sum = x[cell];
    for (int i = start[at.y]; i < start[at.y + 1]; i++)
        sum = fma(from[i].share, outs[ulong(from[i].at) * ulong(p.cols) + ulong(c)], sum);
    if (p.shared != 0) sum = fma(p.scored != 0 ? sigmoid(score[at.y]) : 1.0f, shared[cell], sum);
    x[cell] = sum;
}
