// norm: out = x · rsqrt(mean(x²) + eps) · (1 + w), a row a block.
//
//   shapes   x, out f32 [rows, ld]; w f32 [WIDTH]
//   launch   grid rows, block 512, overlapped
//   traffic  8 · WIDTH bytes a row
#include "common.cuh"

#define NORM_THREADS 512 // as many as `linear` has

extern "C" __global__ void __launch_bounds__(NORM_THREADS)
rms_norm(float* out, const float* x, const float* w, float eps, u32 ldo, u32 ldx) {
    constexpr int PADDED = (WIDTH + 3) / 4 * 4;
    constexpr int STEPS = (PADDED / 4 + NORM_THREADS - 1) / NORM_THREADS;
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
        int i = (s * NORM_THREADS + threadIdx.x) * 4;
        v[s] = i < PADDED ? *(const float4*)(x + i) : make_float4(0, 0, 0, 0);
        sum += v[s].x * v[s].x + v[s].y * v[s].y + v[s].z * v[s].z + v[s].w * v[s].w;
    }
    float r = rsqrtf(block_sum<NORM_THREADS>(sum, scratch) / WIDTH + eps);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        int i = (s * NORM_THREADS + threadIdx.x) * 4;
        float y[4] = {v[s].x, v[s].y, v[s].z, v[s].w};
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j < WIDTH) out[i + j] = y[j] * r * (1 + w[i + j]);
    }
}
EXPORT(rms_norm)
