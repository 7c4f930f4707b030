// Every function of the library once: the test works the same out by itself.
#include <metal_stdlib>
using namespace metal;

// x is from 0.1 to 3; a row of y for each.
kernel void numbers(const device float *x [[buffer(0)]],
                    device float *y [[buffer(1)]],
                    uint i [[thread_position_in_grid]])
{
    const float a = x[i], zero = a - a;
    const float4 v = float4(a, -a, 2.0f * a, 0.5f);
    device float *to = y + i * 32u;
    to[0] = ceil(a);
    to[1] = cos(a);
    to[2] = precise::exp(a);
    to[3] = exp2(a);
    to[4] = floor(-a);
    to[5] = log(a);
    to[6] = log2(a);
    to[7] = rint(a);
    to[8] = round(a);
    to[9] = precise::rsqrt(a);
    to[10] = sin(a);
    to[11] = fast::sqrt(a);
    to[12] = tanh(a);
    to[13] = trunc(-a);
    to[14] = fabs(-a) + abs(-1.0f);
    to[15] = pow(a, 1.5f);
    to[16] = fma(a, a, 1.0f);
    to[17] = fmin(a, 1.0f) + fmax(a, 2.0f);
    to[18] = clamp(a, 0.5f, 1.5f);
    to[19] = dot(v, v);
    to[20] = isnan(zero / zero) ? 1.0f : 0.0f;
    to[21] = isinf(a / zero) ? 1.0f : 0.0f;
    to[22] = float(popcount(as_type<uint>(a)));
    to[23] = float(clz(uint(a * 100.0f)));
    to[24] = float(half(a));
    to[25] = exp(v).y;
    to[26] = max(v, float4(0.0f)).y + min(v, float4(0.25f)).w;
    to[27] = select(a, -a, a > 1.0f);
    to[28] = fma(v, v, v).z;
    to[29] = float(min(int(a * 10.0f), 7) + max(3, int(a)));
    to[30] = float(as_type<half>(ushort(as_type<ushort>(half(a)) ^ 0x8000u)));
    to[31] = (v * 2.0f + v / 4.0f - 1.0f).x;
}
