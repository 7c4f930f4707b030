// Kernels with one fault each, which the emulator must name.
#include <metal_stdlib>
#include "params.h"
using namespace metal;

kernel void some_threads_wait(device float *y [[buffer(0)]], uint i [[thread_index_in_threadgroup]])
{
    if (i < 40u) threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = 1.0f;
}

kernel void two_barriers(device float *y [[buffer(0)]], uint i [[thread_index_in_threadgroup]])
{
    if (i < 32u)
        threadgroup_barrier(mem_flags::mem_threadgroup);
    else
        threadgroup_barrier(mem_flags::mem_device);
    y[i] = 1.0f;
}

kernel void some_lanes_sum(device float *y [[buffer(0)]], uint lane [[thread_index_in_simdgroup]])
{
    if (lane < 30u) y[lane] = simd_sum(1.0f);
}

kernel void lane_that_is_not(device uint *y [[buffer(0)]], uint lane [[thread_index_in_simdgroup]])
{
    y[lane] = simd_shuffle(lane, ushort(lane + 1u));
}

kernel void too_much_memory(device float *y [[buffer(0)]], uint i [[thread_index_in_threadgroup]])
{
    threadgroup float a[8192];
    threadgroup float b;
    a[i] = 1.0f;
    b = 1.0f;
    y[i] = a[i] + b;
}

kernel void changes_const(const device float *x [[buffer(0)]], uint i [[thread_position_in_grid]])
{
    ((device float *)x)[i] = 1.0f;
}

kernel void past_an_array(device float *y [[buffer(0)]], uint i [[thread_index_in_threadgroup]])
{
    threadgroup float a[64];
    a[i + 1u] = float(i);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = a[i];
}

// Right with one threadgroup only.
kernel void groups_meet(device float *y [[buffer(0)]], uint i [[thread_index_in_threadgroup]],
                        uint group [[threadgroup_position_in_grid]])
{
    y[group * 64u + i] = 1.0f;
    threadgroup_barrier(mem_flags::mem_device);
    if (group != 0u) y[group * 64u + i] = y[i];
}

// The barrier orders threadgroup memory, not the buffer.
kernel void wrong_memory(device float *y [[buffer(0)]], uint i [[thread_index_in_threadgroup]])
{
    y[i] = 1.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[64u + i] = y[63u - i];
}

// A simdgroup has bytes of its own in each word, which is no race.
kernel void bytes(device uchar *y [[buffer(0)]], uint i [[thread_position_in_grid]])
{
    y[i] = uchar(i);
}

// A simdgroup orders itself, which is no race.
kernel void in_simdgroup(device float *y [[buffer(0)]], uint i [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float a[64];
    a[i] = float(i);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = a[i - lane + 31u - lane];
}
