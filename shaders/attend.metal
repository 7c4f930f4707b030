/*
 * softmax(q . keys * scale) . values, online: sums are relative to e^top. Keys are summed up in parts of FM_KEY_PART absolute
 * positions, a part in FM_SLICES slices of two blocks, slices by halves, parts from the first to the last: what a query gets
 * depends on its position alone. Queries are the heads of a kv head's group, row after row; a threadgroup has FM_QUERIES.
 * For scores a lane is two neighbouring keys; for sums it is pairs of numbers of the head.
 */

constant int FC_PAIRS [[function_constant(3)]]; /* pairs of numbers a lane has: head_dim / 64, rounded up */
constant int FC_SPLIT [[function_constant(4)]]; /* 1: a threadgroup has one part, merged by attend_merge */

/* A query's sum so far: its lane's pairs, and what they are relative to. */
struct attended {
    float2 sum[FM_MOST_PAIRS];
    float top;
    float total;
};

METAL_FUNC void attended_clear(thread attended &a)
{
    for (int i = 0; i < FM_MOST_PAIRS; i++) a.sum[i] = float2(0.0f);
    a.top = -INFINITY;
    a.total = 0.0f;
}

/* How much of a sum relative to e^old stays when it becomes relative to e^top. Nothing stays of nothing; NaN stays. */
METAL_FUNC float kept(float old, float top, float total)
{
    return total == 0.0f ? 0.0f : precise::exp(old - top);
}

METAL_FUNC void attended_merge(thread attended &a, thread const attended &b)
{
    float top = max(a.top, b.top);
    float old = kept(a.top, top, a.total);
    float by = kept(b.top, top, b.total);
    for (int i = 0; i < FC_PAIRS; i++) a.sum[i] = fma(b.sum[i], float2(by), a.sum[i] * old);
    a.total = fma(b.total, by, a.total * old);
    a.top = top;
}

METAL_FUNC void attended_put(device float *to, thread const attended &a, int dim, float by, uint lane)
{
    for (int i = 0; i < FC_PAIRS; i++) {
        int c = 2 * (i * FM_LANES + int(lane));
        if (c < dim) {
            to[c] = a.sum[i].x * by;
            to[c + 1] = a.sum[i].y * by;
        }
    }
}

/* Queries of a threadgroup: the first, how many there are of this kv head, and the heads that share it. */
struct tile_of {
    int first;
    int all;
    int heads;
    int kv_head;
};

METAL_FUNC int tile_row(thread const tile_of &t, int query)
{
    return min(t.first + query, t.all - 1) / t.heads;
}

/* Where a query of the tile lies in q and out, counted in heads. */
METAL_FUNC ulong tile_at(thread const tile_of &t, int query, int heads)
{
    int i = min(t.first + query, t.all - 1);
    return ulong(i / t.heads) * ulong(heads) + ulong(t.kv_head * t.heads + i % t.heads);
}

/* Keys [first, first + n) of a block join every query; query j sees those before end[j]. */
METAL_FUNC void attend_block(thread attended (&a)[FM_QUERIES], constant fm_p_attend &p, const threadgroup float4 *q,
                             threadgroup float4 *share, device const uchar *keys, device const uchar *values, ulong block,
                             int first, int n, thread const int (&end)[FM_QUERIES], uint lane)
{
    float2 score[FM_QUERIES];
#pragma unroll
    for (int j = 0; j < FM_QUERIES; j++) score[j] = float2(0.0f);
#pragma unroll 8
    for (int c = 0; c < p.head_dim; c++) {
        float2 key = pair_at(keys, block + ulong(c * FM_KEY_BLOCK + 2 * int(lane)), FC_FORMAT);
        float4 by = q[c];
        score[0] = fma(float2(by.x), key, score[0]);
        score[1] = fma(float2(by.y), key, score[1]);
        score[2] = fma(float2(by.z), key, score[2]);
        score[3] = fma(float2(by.w), key, score[3]);
    }
    float2 shares[FM_QUERIES];
    bool whole = n == FM_KEY_BLOCK;
#pragma unroll
    for (int j = 0; j < FM_QUERIES; j++) {
        bool sees_x = first + 2 * int(lane) < end[j];
        bool sees_y = first + 2 * int(lane) + 1 < end[j];
        whole = whole && first + FM_KEY_BLOCK <= end[j];
        float x = sees_x ? score[j].x * p.scale : -INFINITY;
        float y = sees_y ? score[j].y * p.scale : -INFINITY;
        float top = max(a[j].top, simd_max(max(x, y)));
        float old = kept(a[j].top, top, a[j].total);
        shares[j] = float2(sees_x ? precise::exp(x - top) : 0.0f, sees_y ? precise::exp(y - top) : 0.0f);
        a[j].total = fma(a[j].total, old, simd_sum(shares[j].x + shares[j].y));
        a[j].top = top;
#pragma unroll
        for (int i = 0; i < FM_MOST_PAIRS; i++)
            if (i < FC_PAIRS) a[j].sum[i] = a[j].sum[i] * old;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup); /* the shares of the block before have been read */
    share[2 * lane] = float4(shares[0].x, shares[1].x, shares[2].x, shares[3].x);
    share[2 * lane + 1] = float4(shares[0].y, shares[1].y, shares[2].y, shares[3].y);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (int k = 0; k < n; k++) {
        float4 by = share[k];
#pragma unroll
        for (int i = 0; i < FM_MOST_PAIRS; i++) {
            int c = 2 * (i * FM_LANES + int(lane));
            if (i < FC_PAIRS && c < p.head_dim) {
                float2 value = pair_at(values, block + ulong(k * p.head_dim + c), FC_FORMAT);
                if (whole || by.x != 0.0f) a[0].sum[i] = fma(float2(by.x), value, a[0].sum[i]);
                if (whole || by.y != 0.0f) a[1].sum[i] = fma(float2(by.y), value, a[1].sum[i]);
                if (whole || by.z != 0.0f) a[2].sum[i] = fma(float2(by.z), value, a[2].sum[i]);
                if (whole || by.w != 0.0f) a[3].sum[i] = fma(float2(by.w), value, a[3].sum[i]);
            }
        }
    }
}

/* The upper half of the slices joins the lower one until the first has all. `room` has FM_SLICES / 2 times the tile. */
METAL_FUNC void merge_slices(thread attended (&a)[FM_QUERIES], threadgroup float *room, int dim, uint lane, uint sg)
{
    for (int half_slices = FM_SLICES / 2; half_slices > 0; half_slices /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (int(sg) >= half_slices && int(sg) < 2 * half_slices)
            for (int j = 0; j < FM_QUERIES; j++) {
                threadgroup float *to = room + ((int(sg) - half_slices) * FM_QUERIES + j) * (dim + 2);
                for (int i = 0; i < FC_PAIRS; i++) {
                    int c = 2 * (i * FM_LANES + int(lane));
                    if (c < dim) {
                        to[c] = a[j].sum[i].x;
                        to[c + 1] = a[j].sum[i].y;
                    }
                }
                if (lane == 0) {
                    to[dim] = a[j].top;
                    to[dim + 1] = a[j].total;
                }
            }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (int(sg) < half_slices)
            for (int j = 0; j < FM_QUERIES; j++) {
                const threadgroup float *from = room + (int(sg) * FM_QUERIES + j) * (dim + 2);
                attended other;
                attended_clear(other);
                for (int i = 0; i < FC_PAIRS; i++) {
                    int c = 2 * (i * FM_LANES + int(lane));
                    if (c < dim) other.sum[i] = float2(from[c], from[c + 1]);
                }
                other.top = from[dim];
                other.total = from[dim + 1];
                attended_merge(a[j], other);
            }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

/*
 * Grid: (kv heads, rows * heads of one / FM_QUERIES, 1 or parts). Split: part first_part + z into
 * parts[z][row][head]: sums, top, total. Else: all parts, into out.
 */
kernel void attend(constant fm_p_attend &p [[buffer(0)]], device const float *q [[buffer(1)]],
                   device const uchar *keys [[buffer(2)]], device const uchar *values [[buffer(3)]],
                   device float *out [[buffer(4)]], threadgroup float4 *room [[threadgroup(0)]],
                   uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                   uint sg [[simdgroup_index_in_threadgroup]])
{
    int dim = p.head_dim;
    int together = p.heads / p.kv_heads;
    tile_of tile;
    tile.first = int(group.y) * FM_QUERIES;
    tile.all = p.rows * together;
    tile.heads = together;
    tile.kv_head = int(group.x);
    threadgroup float4 *q_room = room;
    threadgroup float4 *share = room + dim + int(sg) * FM_KEY_BLOCK;
    threadgroup float *merge_room = (threadgroup float *)(room + dim);

    int end[FM_QUERIES];
    int last = 0;
    for (int j = 0; j < FM_QUERIES; j++) {
        end[j] = p.position + tile_row(tile, j) + 1;
        last = max(last, end[j]);
    }
    for (int c = int(sg) * FM_LANES + int(lane); c < FM_QUERIES * dim; c += FM_SLICES * FM_LANES) /* [number][query] */
        ((threadgroup float *)q_room)[c] = q[tile_at(tile, c % FM_QUERIES, p.heads) * ulong(dim) + ulong(c / FM_QUERIES)];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    attended all[FM_QUERIES];
    attended part[FM_QUERIES];
    for (int j = 0; j < FM_QUERIES; j++) attended_clear(all[j]);
    int part_first = FC_SPLIT != 0 ? p.first_part + int(group.z) : 0;
    int part_last = FC_SPLIT != 0 ? part_first + 1 : (last + FM_KEY_PART - 1) / FM_KEY_PART;
    for (int number = part_first; number < part_last; number++) {
        for (int j = 0; j < FM_QUERIES; j++) attended_clear(part[j]);
        for (int b = 0; b < 2; b++) {
            int first = number * FM_KEY_PART + (2 * int(sg) + b) * FM_KEY_BLOCK;
            ulong block = (ulong(first / FM_KEY_BLOCK) * ulong(p.kv_heads) + ulong(tile.kv_head)) * ulong(FM_KEY_BLOCK * dim);
            if (first < last)
                attend_block(part, p, q_room, share, keys, values, block, first, min(last - first, FM_KEY_BLOCK), end, lane);
        }
        merge_slices(part, merge_room, dim, lane, sg);
        if (sg == 0)
            for (int j = 0; j < FM_QUERIES; j++) attended_merge(all[j], part[j]);
    }
    if (sg != 0) return;
    for (int j = 0; j < FM_QUERIES; j++) {
        if (tile.first + j >= tile.all) break;
        ulong at = tile_at(tile, j, p.heads);
        if (FC_SPLIT != 0) {
            device float *to = out + (ulong(group.z) * ulong(p.rows) * ulong(p.heads) + at) * ulong(dim + 2);
            attended_put(to, all[j], dim, 1.0f, lane);
            if (lane == 0) {
                to[dim] = all[j].top;
                to[dim + 1] = all[j].total;
            }
        } else {
            attended_put(out + at * ulong(dim), all[j], dim, 1.0f / all[j].total, lane);
        }
    }
}

/*
 * The parts of this pass join `merged`, what the passes before gave; the last pass divides. A thread has one number of a
 * head. Grid: (head_dim / FM_LANES, heads, rows).
 */
kernel void attend_merge(constant fm_p_attend &p [[buffer(0)]], device const float *parts [[buffer(1)]],
                         device float *merged [[buffer(2)]], device float *out [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]])
{
    int dim = p.head_dim;
    int c = int(group.x) * FM_LANES + int(lane);
    if (c >= dim) return;
    ulong at = ulong(group.z) * ulong(p.heads) + ulong(group.y);
    ulong part_stride = ulong(p.rows) * ulong(p.heads) * ulong(dim + 2);
    device const float *from = parts + at * ulong(dim + 2);
    device float *mine = merged + (at * ulong(dim) + ulong(c)) * 3ul;
    float sum = 0.0f;
    float top = -INFINITY;
    float total = 0.0f;
    if (p.first_part > 0) {
        sum = mine[0];
        top = mine[1];
        total = mine[2];
    }
    for (int i = 0; i < p.parts; i++) {
        float next_top = from[dim];
        float next_total = from[dim + 1];
        float most = max(top, next_top);
        float old = kept(top, most, total);
        float by = kept(next_top, most, next_total);
        sum = fma(from[c], by, sum * old);
        total = fma(next_total, by, total * old);
        top = most;
        from += part_stride;
    }
    if ((p.first_part + p.parts) * FM_KEY_PART >= p.position + p.rows) {
        out[at * ulong(dim) + ulong(c)] = sum * (1.0f / total);
    } else {
        mine[0] = sum;
        mine[1] = top;
        mine[2] = total;
    }
}
