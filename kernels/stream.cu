// stream: reads memory and keeps nothing: the ceiling that decode is measured against.
//
//   launch   grid a few blocks a multiprocessor, block 512
//   traffic  n · 16 bytes, each once
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(512) read_stream(const uint4* p, u64 n, u32* out) {
    u64 stride = (u64)gridDim.x * 512;
    u32 bits = 0;
    for (u64 i = (u64)blockIdx.x * 512 + threadIdx.x; i < n; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = i + j * stride < n ? load_weight(p + i + j * stride) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < 8; j++) bits ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (bits == 0x12345678u) *out = bits;
}
EXPORT(read_stream)
