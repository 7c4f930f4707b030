// Small kernels in the style of the shaders, one for each thing that the emulator does.
#include <metal_stdlib>
#include "params.h"
using namespace metal;

constant int BITS [[function_constant(0)]];
constant int ADD [[function_constant(3)]];
constant float EPSILON = 1e-6f;

// One 4- or 8-bit weight of a row of packed words.
METAL_FUNC uint code(const device uint *row, uint i)
{
    const uint per_word = 32u / uint(BITS);
    return row[i / per_word] >> (i % per_word * uint(BITS)) & ((1u << uint(BITS)) - 1u);
}

// y[r] = sum of (code - 8) * scale[r] * x: one simdgroup a row.
kernel void matvec(constant Rows &p [[buffer(0)]],
                   const device uint *w [[buffer(1)]],
                   const device half *scale [[buffer(2)]],
                   const device float *x [[buffer(3)]],
                   device float *y [[buffer(4)]],
                   uint group [[threadgroup_position_in_grid]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]])
{
    const uint row = group * simdgroups + simdgroup;
    if (row >= uint(p.rows)) return;
    const uint words = (uint(p.columns) * uint(BITS) + 31u) / 32u;
    float sum = 0.0f;
    for (uint i = lane; i < uint(p.columns); i += 32u)
        sum += (float(code(w + row * words, i)) - 8.0f) * x[i];
    sum = simd_sum(sum) * float(scale[row]);
    if (lane == 0u) y[row] = ADD != 0 ? y[row] + sum : sum;
}

// Sum over a threadgroup of up to 32 simdgroups; every thread gets it.
METAL_FUNC float group_sum(float x, threadgroup float *part, uint simdgroup, uint simdgroups, uint lane)
{
    x = simd_sum(x);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0u) part[simdgroup] = x;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < simdgroups ? part[lane] : 0.0f);
}

// One row a threadgroup, in two phases: the mean first, then what is left of it squared.
kernel void normalise(constant Rows &p [[buffer(0)]],
                      const device float *x [[buffer(1)]],
                      device float *y [[buffer(2)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint3 thread_at [[thread_position_in_threadgroup]],
                      uint3 threads [[threads_per_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]],
                      uint simdgroups [[simdgroups_per_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float part[32];
    const device float *row = x + group.x * uint(p.columns);
    float sum = 0.0f;
    for (uint i = thread_at.x; i < uint(p.columns); i += threads.x) sum += row[i];
    const float mean = group_sum(sum, part, simdgroup, simdgroups, lane) / float(p.columns);
    float square = 0.0f;
    for (uint i = thread_at.x; i < uint(p.columns); i += threads.x) square += (row[i] - mean) * (row[i] - mean);
    const float inverse = rsqrt(group_sum(square, part, simdgroup, simdgroups, lane) / float(p.columns) + EPSILON);
    for (uint i = thread_at.x; i < uint(p.columns); i += threads.x)
        y[group.x * uint(p.columns) + i] = (row[i] - mean) * inverse;
}

// One head a threadgroup: scores into threadgroup memory, their softmax, and the mix of the values.
kernel void attend(constant Attention &p [[buffer(0)]],
                   const device float *q [[buffer(1)]],
                   const device half *keys [[buffer(2)]],
                   const device half *values [[buffer(3)]],
                   device float *y [[buffer(4)]],
                   threadgroup float *score [[threadgroup(0)]],
                   uint head [[threadgroup_position_in_grid]],
                   uint thread_at [[thread_position_in_threadgroup]],
                   uint threads [[threads_per_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float largest;
    threadgroup float total;
    const uint positions = uint(p.positions), size = uint(p.head_dim);
    for (uint t = simdgroup; t < positions; t += simdgroups) {
        float sum = 0.0f;
        for (uint i = lane; i < size; i += 32u) sum += q[head * size + i] * float(keys[t * uint(p.stride) + head * size + i]);
        sum = simd_sum(sum);
        if (lane == 0u) score[t] = sum * p.scale;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0u) {
        float most = -INFINITY;
        for (uint t = lane; t < positions; t += 32u) most = max(most, score[t]);
        most = simd_max(most);
        if (lane == 0u) largest = most;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint t = thread_at; t < positions; t += threads) score[t] = precise::exp(score[t] - largest);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0u) {
        float sum = 0.0f;
        for (uint t = lane; t < positions; t += 32u) sum += score[t];
        sum = simd_sum(sum);
        if (lane == 0u) total = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = thread_at; i < size; i += threads) {
        float sum = 0.0f;
        for (uint t = 0u; t < positions; t++) sum += score[t] * float(values[t * uint(p.stride) + head * size + i]);
        y[head * size + i] = sum / total;
    }
}

// How many elements of each kind: a histogram with atomics.
kernel void count(constant Rows &p [[buffer(0)]],
                  const device uchar *kind [[buffer(1)]],
                  device atomic_uint *counts [[buffer(2)]],
                  uint i [[thread_position_in_grid]])
{
    if (i < uint(p.columns)) atomic_fetch_add_explicit(&counts[uint(kind[i])], 1u, memory_order_relaxed);
}

// Vectors, lanes and conversions: y gets what the test works out by itself.
kernel void lanes(const device uchar4 *x [[buffer(0)]],
                  device float4 *y [[buffer(1)]],
                  device uint *z [[buffer(2)]],
                  uint lane [[thread_index_in_simdgroup]])
{
    const float4 v = float4(x[lane]) * 0.5f + float4(1.0f, float2(2.0f, 3.0f), float(half(0.1f)));
    y[lane] = float4(v.w, v.z, v.y, v.x);
    y[lane].x = as_type<float>(as_type<uint>(v.x) & 0xffff0000u);
    z[lane * 6u + 0u] = simd_shuffle_down(lane * lane, 3);
    z[lane * 6u + 1u] = simd_shuffle_up(lane * lane, 5);
    z[lane * 6u + 2u] = simd_shuffle_xor(lane, 6);
    z[lane * 6u + 3u] = simd_broadcast(lane, 7) + simd_prefix_exclusive_sum(lane);
    z[lane * 6u + 4u] = simd_max(lane ^ 21u) + simd_min(lane + 2u);
    z[lane * 6u + 5u] = select(simd_shuffle(lane, ushort(31u - lane)), clamp(lane, 4u, 9u), lane > 16u);
}
