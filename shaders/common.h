/* Numbers as they are stored, and the functions that every kernel means alike. Infinities and NaN go through all of them. */
#include <metal_stdlib>
using namespace metal;

constant int FC_FORMAT [[function_constant(0)]]; /* FM_FORMAT of the (first) matrix, or the kind of a cache's numbers */
constant int FC_OTHER [[function_constant(1)]];  /* FM_FORMAT of the second matrix */
constant int FC_TILE [[function_constant(2)]];   /* rows of x that a threadgroup has, 1 to FM_TILE */
constant int FC_BAND [[function_constant(3)]];   /* rows of a matrix that a simdgroup has: 1, 2 or 4 */

METAL_FUNC int format_kind(int format)
{
    return format & 3;
}

METAL_FUNC int format_scale(int format)
{
    return (format >> 2) & 3;
}

METAL_FUNC int format_bits(int format)
{
    return (format >> 4) & 15;
}

METAL_FUNC int format_group(int format)
{
    return format >> 8;
}

METAL_FUNC float from_bf16(uint bits)
{
    return as_type<float>(bits << 16);
}

METAL_FUNC float number_at(device const uchar *from, ulong i, int kind)
{
    if (kind == FM_KIND_F16) return float(((device const half *)from)[i]);
    if (kind == FM_KIND_BF16) return from_bf16(uint(((device const ushort *)from)[i]));
    return ((device const float *)from)[i];
}

/* Numbers i and i + 1; i is even. */
METAL_FUNC float2 pair_at(device const uchar *from, ulong i, int kind)
{
    if (kind == FM_KIND_F16) return float2(*((device const half2 *)((device const half *)from + i)));
    if (kind == FM_KIND_BF16) {
        uint two = *((device const uint *)((device const ushort *)from + i));
        return float2(from_bf16(two), as_type<float>(two & 0xffff0000u));
    }
    return *((device const float2 *)((device const float *)from + i));
}

/* Numbers i to i + 3; i is a multiple of 4. */
METAL_FUNC float4 four_at(device const uchar *from, ulong i, int kind)
{
    if (kind == FM_KIND_F32) return *((device const float4 *)((device const float *)from + i));
    uint2 two = *((device const uint2 *)((device const ushort *)from + i));
    if (kind == FM_KIND_BF16)
        return float4(from_bf16(two.x), as_type<float>(two.x & 0xffff0000u), from_bf16(two.y),
                      as_type<float>(two.y & 0xffff0000u));
    float2 a = float2(as_type<half2>(two.x));
    float2 b = float2(as_type<half2>(two.y));
    return float4(a.x, a.y, b.x, b.y);
}

/* Four numbers of which n are there, zeros for the others. */
METAL_FUNC float4 load_four(device const float *from, int n)
{
    return float4(n > 0 ? from[0] : 0.0f, n > 1 ? from[1] : 0.0f, n > 2 ? from[2] : 0.0f, n > 3 ? from[3] : 0.0f);
}

/* Round to nearest even, as fm_numbers_encode does. */
METAL_FUNC void put_number(device uchar *to, ulong i, float x, int kind)
{
    if (kind == FM_KIND_F16) {
        ((device half *)to)[i] = half(x);
    } else if (kind == FM_KIND_BF16) {
        uint bits = as_type<uint>(x);
        uint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        bool odd = (bits & 0x7fffffffu) > 0x7f800000u; /* NaN */
        ((device ushort *)to)[i] = ushort(odd ? (bits >> 16) | 64u : rounded);
    } else {
        ((device float *)to)[i] = x;
    }
}

METAL_FUNC float sigmoid(float x)
{
    return 1.0f / (1.0f + precise::exp(-x));
}

METAL_FUNC float silu(float x)
{
    return x * sigmoid(x);
}

/* log(1 + exp(x)). Small exp(x) would be lost beside 1, so the rounding of that sum is divided out. */
METAL_FUNC float softplus(float x)
{
    if (x > 20.0f) return x;
    float e = precise::exp(x);
    float one = 1.0f + e;
    return one == 1.0f ? e : precise::log(one) * (e / (one - 1.0f));
}

/* The sum over a threadgroup of FM_ROW_THREADS, for every thread; `part` has a float for each simdgroup. */
METAL_FUNC float row_sum(float x, threadgroup float *part, uint lane, uint sg)
{
    float sum = simd_sum(x);
    if (lane == 0) part[sg] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum = 0.0f;
    for (int i = 0; i < FM_ROW_THREADS / FM_LANES; i++) sum += part[i];
    return sum;
}
