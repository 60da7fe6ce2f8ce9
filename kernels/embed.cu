// embed: x[row] = E[token[row]]; the step's first kernel, so it also resets the barrier counters of all layers.
//
//   shapes   E bf16 [V, pieces · kp], x f32 [rows, ldx], tokens u32 [rows]
//   launch   grid rows, block 256
//   traffic  one row of E a token
#include "common.cuh"

extern "C" __global__ void embed(float* x, const u16* table, const u32* tokens, u32 width, u32 pieces, u32 kp, u32 ldx,
                                 u32* counters, u32 count) {
    const u16* row = table + (u64)tokens[blockIdx.x] * pieces * kp;
    x += (u64)blockIdx.x * ldx;
    launch_dependents();
    wait_for_previous();
    for (u32 i = threadIdx.x; i < width; i += 256) {
        float sum = 0;
        for (u32 p = 0; p < pieces; p++) sum += __uint_as_float((u32)row[(u64)p * kp + i] << 16);
        x[i] = sum;
    }
    if (blockIdx.x == 0)
        for (u32 i = threadIdx.x; i < count; i += 256) counters[i] = 0;
}
EXPORT(embed)
