// norm: out = x · rsqrt(mean(x²) + eps) · (1 + w), a row a block.
//
//   shapes   x, out f32 [rows, ld]; w f32 [WIDTH]
//   launch   grid rows, block 512, overlapped
//   traffic  8 · WIDTH bytes a row
#include "linear.cuh"

extern "C" __global__ void __launch_bounds__(LINEAR_THREADS)
rms_norm(float* out, const float* x, const float* w, float eps, u32 ldo, u32 ldx) {
    constexpr int PADDED = (WIDTH + 3) / 4 * 4;
    constexpr int STEPS = (PADDED / 4 + LINEAR_THREADS - 1) / LINEAR_THREADS;
    float* scratch = (float*)SMEM;
    launch_dependents();
    wait_for_previous();
    x += (u64)blockIdx.x * ldx;
    out += (u64)blockIdx.x * ldo;
    // the same order of operations as Linear::stage, so that one row and many give the same bits
    float4 v[STEPS];
    float sum = 0;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
        v[s] = i < PADDED ? *(const float4*)(x + i) : make_float4(0, 0, 0, 0);
        sum += v[s].x * v[s].x + v[s].y * v[s].y + v[s].z * v[s].z + v[s].w * v[s].w;
    }
    float r = rsqrtf(block_sum<LINEAR_THREADS>(sum, scratch) / WIDTH + eps);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
        float y[4] = {v[s].x, v[s].y, v[s].z, v[s].w};
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j < WIDTH) out[i + j] = y[j] * r * (1 + w[i + j]);
    }
}
EXPORT(rms_norm)
