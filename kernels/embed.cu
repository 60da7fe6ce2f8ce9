// embed: x[row] = E[token[row]]; the step's first kernel, so it also resets the barrier counters of all layers.
//
//   shapes   E in tiles of Bf16<pieces>, as weights.cuh says, x f32 [rows, ldx], tokens u32 [rows]
//   launch   grid (width / 2048, rows), block 256: a thread has eight values, so a row costs one read's latency
//   traffic  one row of E a token
#include "common.cuh"

extern "C" __global__ void embed(float* x, const u16* table, const u32* tokens, u32 width, u32 pieces, u32 kp, u32 ldx,
                                 u32* counters, u32 count) {
    u32 at = (blockIdx.x * 256 + threadIdx.x) * 8;
    u32 token = tokens[blockIdx.y];
    const u16* row = table + (u64)(token / 8) * pieces * kp * 8 + at / 32 * 256 + token % 8 * 32 + at % 32;
    x += (u64)blockIdx.y * ldx + at;
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    launch_dependents();
    if (at < width) // kp is a multiple of 64
        for (u32 p = 0; p < pieces; p++) {
            uint4 w = load_weight(row + (u64)p * kp * 8);
            u32 pair[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 4; i++) sum[2 * i] += bf16_lo(pair[i]), sum[2 * i + 1] += bf16_hi(pair[i]);
        }
    wait_for_previous();
#pragma unroll
    for (u32 i = 0; i < 8; i++)
        if (at + i < width) x[i] = sum[i];
    if (blockIdx.x == 0 && blockIdx.y == 0)
        for (u32 i = threadIdx.x; i < count; i += 256) counters[i] = 0;
}
EXPORT(embed)
