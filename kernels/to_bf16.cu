// to_bf16: rows of f32 activations as the bf16 operand of gemm, padded with zeros.
//
//   y[m, k] = bf16(x[m, k]) for k < columns, 0 for columns ≤ k < K            (nearest, ties to even)
//
//   With -D PACKED each 64 elements stand as packed weights meet them in gemm: those of lane t are 16 t … 16 t + 15, and a
//   matrix of ldmatrix has two of each lane. Element 8 c + 2 t + i of them is input 16 t + 2 c + i.
//   With -D TILED they stand as gemm_sm90 wants them, packed weights or not: element 8 c + 2 t + i is input 8 t + 2 c + i of
//   the half c / 4 of the 64 for plain ones. Row m of 64 inputs after the other, its eights permuted: c lies at c ^ m % 8.
//
// Shapes   x [M, ldx] f32 · y [M, K] bf16, with TILED [K/64, ldy, 64]; 16-byte aligned
// Launch   grid ⌈M·K/8 / 256⌉ · block 256 · shared none · one thread per 8 elements of y
// Traffic  M·(4·columns + 2·K) B: 15.7 MB at M = 512, K = 5120
// Numbers  each element by itself
// Needs    -D K: a multiple of 8, with PACKED or TILED of 64. x 16-byte aligned when ldx % 4 = 0
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
to_bf16(u16* y, const float* x, int M, int columns, i64 ldx, i64 ldy) {
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
#ifdef TILED
    i64 m = i / 8 % M, place = i / 8 / M;
    int c = (int)(i % 8), k = (int)place * 64;
    u16* to = y + ((place * ldy + m) * 8 + (c ^ m % 8)) * 8;
#else
    i64 m = i / (K / 8);
    int k = (int)(i % (K / 8)) * 8;
    u16* to = y + m * K + k;
#endif
    wait_for_previous();
    launch_dependents();
    if (i >= (i64)M * (K / 8)) return;
    x += m * ldx;
    float v[8];
#if defined(TILED) || defined(PACKED)
#ifndef TILED
    int c = k % 64 / 8;
    k -= c * 8;
#endif
#ifdef PACKED
    constexpr int LANE = 16;
    k += c * 2;
#else
    constexpr int LANE = 8;
    k += c / 4 * 32 + c % 4 * 2;
#endif
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int from = k + j / 2 * LANE + j % 2;
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
    *(uint4*)to = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}
EXPORT(to_bf16)
