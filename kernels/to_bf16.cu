// to_bf16: rows of f32 activations as the bf16 operand of gemm, padded with zeros.
//
//   y[m, k] = bf16(x[m, k]) for k < columns, 0 for columns ≤ k < K            (nearest, ties to even)
//
// Shapes   x [M, ldx] f32 · y [M, K] bf16, 16-byte aligned
// Launch   grid ⌈M·K/8 / 256⌉ · block 256 · shared none · one thread per 8 elements of y
// Traffic  M·(4·columns + 2·K) B: 15.7 MB at M = 512, K = 5120
// Numbers  each element by itself
// Needs    -D K: a multiple of 8. x 16-byte aligned when ldx % 4 = 0
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) to_bf16(u16* y, const float* x, int M, int columns, i64 ldx) {
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    i64 m = i / (K / 8);
    int k = (int)(i % (K / 8)) * 8;
    wait_for_previous();
    launch_dependents();
    if (m >= M) return;
    x += m * ldx + k;
    float v[8];
    if (k + 8 <= columns && ldx % 4 == 0) {
        *(float4*)v = *(const float4*)x;
        *(float4*)(v + 4) = *(const float4*)(x + 4);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = k + j < columns ? x[j] : 0.0f;
    }
    uint4 packed = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
    *(uint4*)(y + m * K + k) = packed;
}
EXPORT(to_bf16)
