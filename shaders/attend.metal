/*
 * softmax(q . keys * scale) . values, online: sums are relative to e^top. Keys are summed up in parts of FM_KEY_PART absolute
 * positions, a part in FM_SLICES blocks, these by halves, parts from the first to the last: what a query gets depends on its
 * position alone. Queries are the heads of a kv head's group, row after row; a threadgroup has FM_QUERIES.
 * For scores a lane is two neighbouring keys; for sums it is pairs of numbers of the head.
 */

constant int FC_PAIRS [[function_constant(4)]]; /* pairs of numbers a lane has: head_dim / 64, rounded up */
constant int FC_SPLIT [[function_constant(5)]]; /* 1: a threadgroup has one part, merged by attend_merge */

/* A query's sum so far: its lane's pairs, and what they are relative to. */
struct attended {
    float2 sum[FM_MOST_PAIRS];
    float top;
    float total;
};

METAL_FUNC void attended_clear(thread attended &a)
{
#pragma unroll
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
#pragma unroll
    for (int i = 0; i < FM_MOST_PAIRS; i++)
        if (i < FC_PAIRS) a.sum[i] = fma(b.sum[i], float2(by), a.sum[i] * old);
    a.total = fma(b.total, by, a.total * old);
    a.top = top;
}

METAL_FUNC void attended_put(device float *to, thread const attended &a, int dim, float by, uint lane)
{
#pragma unroll
    for (int i = 0; i < FM_MOST_PAIRS; i++) {
        int c = 2 * (i * FM_LANES + int(lane));
        if (i < FC_PAIRS && c < dim) {
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

/* q . k for the lane's two keys of a block. */
METAL_FUNC void scores_of(thread float2 *score, const threadgroup float4 *q, device const uchar *keys, ulong block, int dim,
                          uint lane)
{
#pragma unroll
    for (int j = 0; j < FM_QUERIES; j++) score[j] = float2(0.0f);
#pragma unroll 8
    for (int c = 0; c < dim / 2; c++) {
        float4 two = four_at(keys, block + ulong(c * (2 * FM_KEY_BLOCK)) + ulong(4 * lane), FC_FORMAT);
        float4 a = q[2 * c];
        float4 b = q[2 * c + 1];
        score[0] = float2(fma(b.x, two.y, fma(a.x, two.x, score[0].x)), fma(b.x, two.w, fma(a.x, two.z, score[0].y)));
        score[1] = float2(fma(b.y, two.y, fma(a.y, two.x, score[1].x)), fma(b.y, two.w, fma(a.y, two.z, score[1].y)));
        score[2] = float2(fma(b.z, two.y, fma(a.z, two.x, score[2].x)), fma(b.z, two.w, fma(a.z, two.z, score[2].y)));
        score[3] = float2(fma(b.w, two.y, fma(a.w, two.x, score[3].x)), fma(b.w, two.w, fma(a.w, two.z, score[3].y)));
    }
}

/* Value k of the block joins, with the share that each query has of it. */
METAL_FUNC void add_value(thread attended (&a)[FM_QUERIES], device const uchar *values, ulong at, float4 by, bool all, int dim,
                          uint lane)
{
#pragma unroll
    for (int i = 0; i < FM_MOST_PAIRS; i++) {
        int c = 2 * (i * FM_LANES + int(lane));
        if (i < FC_PAIRS && c < dim) {
            float2 value = pair_at(values, at + ulong(c), FC_FORMAT);
            if (all || by.x != 0.0f) a[0].sum[i] = fma(float2(by.x), value, a[0].sum[i]);
            if (all || by.y != 0.0f) a[1].sum[i] = fma(float2(by.y), value, a[1].sum[i]);
            if (all || by.z != 0.0f) a[2].sum[i] = fma(float2(by.z), value, a[2].sum[i]);
            if (all || by.w != 0.0f) a[3].sum[i] = fma(float2(by.w), value, a[3].sum[i]);
        }
    }
}

/* Keys [first, first + n) are a block, or its beginning; of these, query j sees those before end[j]. */
METAL_FUNC void attend_block(thread attended (&a)[FM_QUERIES], constant fm_p_attend &p, const threadgroup float4 *q,
                             threadgroup float4 *share, device const uchar *keys, device const uchar *values, ulong block,
                             int first, int n, thread const int (&end)[FM_QUERIES], uint lane)
{
    float2 score[FM_QUERIES];
    bool all = n == FM_KEY_BLOCK; /* every query sees all of them */
    int dim = p.head_dim;
    scores_of(score, q, keys, block, dim, lane);
#pragma unroll
    for (int j = 0; j < FM_QUERIES; j++) {
        bool sees_x = first + 2 * int(lane) < end[j];
        bool sees_y = first + 2 * int(lane) + 1 < end[j];
        all = all && first + FM_KEY_BLOCK <= end[j];
        float x = sees_x ? score[j].x * p.scale : -INFINITY;
        float y = sees_y ? score[j].y * p.scale : -INFINITY;
        float top = simd_max(max(x, y));
        score[j] = float2(sees_x ? precise::exp(x - top) : 0.0f, sees_y ? precise::exp(y - top) : 0.0f);
        a[j].top = top;
        a[j].total = simd_sum(score[j].x + score[j].y);
    }
    share[2 * lane] = float4(score[0].x, score[1].x, score[2].x, score[3].x);
    share[2 * lane + 1] = float4(score[0].y, score[1].y, score[2].y, score[3].y);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (all) {
#pragma unroll 8
        for (int k = 0; k < FM_KEY_BLOCK; k++) add_value(a, values, block + ulong(k * dim), share[k], true, dim, lane);
    } else {
        for (int k = 0; k < n; k++) add_value(a, values, block + ulong(k * dim), share[k], false, dim, lane);
    }
}

/* The upper half of the slices joins the lower one until the first has all. `room` has FM_SLICES / 2 times the tile. */
METAL_FUNC void merge_slices(thread attended (&a)[FM_QUERIES], threadgroup float *room, int dim, uint lane, uint sg)
{
    for (int half_slices = FM_SLICES / 2; half_slices > 0; half_slices /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (int(sg) >= half_slices && int(sg) < 2 * half_slices)
#pragma unroll
            for (int j = 0; j < FM_QUERIES; j++) {
                threadgroup float *to = room + ((int(sg) - half_slices) * FM_QUERIES + j) * (dim + 2);
#pragma unroll
                for (int i = 0; i < FM_MOST_PAIRS; i++) {
                    int c = 2 * (i * FM_LANES + int(lane));
                    if (i < FC_PAIRS && c < dim) {
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
#pragma unroll
            for (int j = 0; j < FM_QUERIES; j++) {
                const threadgroup float *from = room + (int(sg) * FM_QUERIES + j) * (dim + 2);
                attended other;
                attended_clear(other);
#pragma unroll
                for (int i = 0; i < FM_MOST_PAIRS; i++) {
                    int c = 2 * (i * FM_LANES + int(lane));
                    if (i < FC_PAIRS && c < dim) other.sum[i] = float2(from[c], from[c + 1]);
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
#pragma unroll
    for (int j = 0; j < FM_QUERIES; j++) {
        end[j] = p.position + tile_row(tile, j) + 1;
        last = max(last, end[j]);
    }
    for (int c = int(sg) * FM_LANES + int(lane); c < FM_QUERIES * dim; c += FM_SLICES * FM_LANES) /* [number][query] */
        ((threadgroup float *)q_room)[c] = q[tile_at(tile, c % FM_QUERIES, p.heads) * ulong(dim) + ulong(c / FM_QUERIES)];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    attended all[FM_QUERIES];
    attended part[FM_QUERIES];
#pragma unroll
    for (int j = 0; j < FM_QUERIES; j++) attended_clear(all[j]);
    int part_first = FC_SPLIT != 0 ? p.first_part + int(group.z) : 0;
    int part_last = FC_SPLIT != 0 ? part_first + 1 : (last + FM_KEY_PART - 1) / FM_KEY_PART;
    for (int number = part_first; number < part_last; number++) {
#pragma unroll
        for (int j = 0; j < FM_QUERIES; j++) attended_clear(part[j]);
        int first = number * FM_KEY_PART + int(sg) * FM_KEY_BLOCK;
        ulong block = (ulong(first / FM_KEY_BLOCK) * ulong(p.kv_heads) + ulong(tile.kv_head)) * ulong(FM_KEY_BLOCK * dim);
        if (first < last)
            attend_block(part, p, q_room, share, keys, values, block, first, min(last - first, FM_KEY_BLOCK), end, lane);
        merge_slices(part, merge_room, dim, lane, sg);
        if (sg == 0)
#pragma unroll
            for (int j = 0; j < FM_QUERIES; j++) attended_merge(all[j], part[j]);
    }
    if (sg != 0) return;
#pragma unroll
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
#pragma unroll 4
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
