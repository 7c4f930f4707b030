#include <metal_stdlib>
#include "params.h"
using namespace metal;

// c = a b^T, one 8x8 tile a simdgroup; rows and columns are multiples of 8.
kernel void tiles(constant Rows &p [[buffer(0)]],
                  const device float *a [[buffer(1)]],
                  const device float *b [[buffer(2)]],
                  device float *c [[buffer(3)]],
                  uint2 group [[threadgroup_position_in_grid]],
                  uint2 groups [[threadgroups_per_grid]])
{
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    const ulong inner = ulong(p.columns), width = ulong(groups.x) * 8ul;
    for (ulong k = 0ul; k < inner; k += 8ul) {
        simdgroup_float8x8 left;
        simdgroup_float8x8 right;
        simdgroup_load(left, a + ulong(group.y) * 8ul * inner + k, inner);
        simdgroup_load(right, b + ulong(group.x) * 8ul * inner + k, inner, ulong2(0ul, 0ul), true);
        simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, c + ulong(group.y) * 8ul * width + ulong(group.x) * 8ul, width);
}
