// to_bf16: rows of f32 activations as the bf16 operand of gemm, padded with zeros.
//
//   y[m, k] = bf16(x[m, k]) for k < columns, 0 for columns ≤ k < K            (nearest, ties to even)
//
//   With -D PACKED each 64 elements stand as packed weights meet them in gemm: those of lane t are 16 t … 16 t + 15, and a
//   matrix of ldmatrix has two of each lane. Element 8 c + 2 t + i of them is input 16 t + 2 c + i.
//
// Shapes   x [M, ldx] f32 · y [M, K] bf16, 16-byte aligned
// Launch   grid ⌈M·K/8 / 256⌉ · block 256 · shared none · one thread per 8 elements of y
// Traffic  M·(4·columns + 2·K) B: 15.7 MB at M = 512, K = 5120
// Numbers  each element by itself
// Needs    -D K: a multiple of 8, with PACKED of 64. x 16-byte aligned when ldx % 4 = 0
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) to_bf16(u16* y, const float* x, int M, int columns, i64 ldx) {
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    i64 m = i / (K / 8);
    int k = (int)(i % (K / 8)) * 8;
    wait_for_previous();
    launch_dependents();
    if (m >= M) return;
    x += m * ldx;
    float v[8];
#ifdef PACKED
    int first = k / 64 * 64 + k % 64 / 4; // of lane 0
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int from = first + j / 2 * 16 + j % 2;
        v[j] = from < columns ? x[from] : 0.0f;
    }
#else
    if (k + 8 <= columns && ldx % 4 == 0) {
        *(float4*)v = *(const float4*)(x + k);
        *(float4*)(v + 4) = *(const float4*)(x + k + 4);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = k + j < columns ? x[k + j] : 0.0f;
    }
#endif
    uint4 packed = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
    *(uint4*)(y + m * K + k) = packed;
}
EXPORT(to_bf16)
