// probe: what the device layer proves itself with. No model uses it; lib/engine/tests/device.rs does.
//
//   probe_axpy      y[i] ← a x[i] + y[i]
//   probe_barrier   `rounds` times: x[b] ← x[b] + x[b + 1 mod G] for all of a grid's G blocks at once
//   probe_shared    out[b] ← Σ over `words` words of shared memory, word i holding i + b
//
// Shapes   x, y [n] f32 · x [2, G] u32, the result in row `rounds` & 1 · count [1] u32, 0 before · out [gridDim.x] u32
// Launch   block BLOCK · probe_axpy any grid · probe_barrier cooperative · probe_shared with 4·words bytes
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK) probe_axpy(float* y, const float* x, float a, u64 n) {
    launch_dependents();
    wait_for_previous();
    for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < n; i += (u64)gridDim.x * BLOCK) y[i] = a * x[i] + y[i];
}
EXPORT(probe_axpy)

extern "C" __global__ void __launch_bounds__(BLOCK) probe_barrier(u32* x, u32* count, u32 rounds) {
    u32 target = 0, b = blockIdx.x, G = gridDim.x;
    for (u32 round = 0; round < rounds; round++) {
        const u32* from = x + (round & 1) * (u64)G;
        u32* to = x + (~round & 1) * (u64)G;
        if (threadIdx.x == 0) to[b] = load_acquire(from + b) + load_acquire(from + (b + 1) % G);
        grid_barrier(count, target);
    }
}
EXPORT(probe_barrier)

extern "C" __global__ void __launch_bounds__(BLOCK) probe_shared(u32* out, u32 words) {
    u32* s = (u32*)SMEM;
    for (u32 i = threadIdx.x; i < words; i += BLOCK) s[i] = i + blockIdx.x;
    __syncthreads();
    u32 sum = 0;
    // Read in reverse, so that most words come from another thread.
    for (u32 i = threadIdx.x; i < words; i += BLOCK) sum += s[words - 1 - i];
    __syncthreads();
    s[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 i = 1; i < BLOCK; i++) sum += s[i];
        out[blockIdx.x] = sum;
    }
}
EXPORT(probe_shared)
