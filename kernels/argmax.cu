// argmax: the largest logit of a row and its id, ties to the lowest id; NaN when a logit is NaN or +∞ or none is finite.
//
//   shapes   logits f32 [rows, ld]; part and top f32 pairs (value, bits of the id): part [rows, blocks, 2], top [rows, ldt]
//   launch   argmax_part: grid (blocks, rows), block 256; argmax_whole: grid rows, block 256; both overlapped
//   traffic  the logits once
#include "common.cuh"

struct Best {
    float value;
    u32 id;
};

// NaN wins over everything, then the larger value, then the lower id.
__device__ __forceinline__ Best better(Best a, Best b) {
    if (a.value != a.value) return a;
    if (b.value != b.value) return b;
    if (b.value > a.value || (b.value == a.value && b.id < a.id)) return b;
    return a;
}

__device__ __forceinline__ Best block_best(Best x, Best* scratch) {
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        Best y = {__shfl_xor_sync(FULL, x.value, o), __shfl_xor_sync(FULL, x.id, o)};
        x = better(x, y);
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    for (int i = 0; i < 8; i++) x = better(x, scratch[i]);
    return x;
}

extern "C" __global__ void argmax_part(float2* part, const float* logits, u32 n, u32 ld) {
    launch_dependents();
    wait_for_previous();
    const float* row = logits + (u64)blockIdx.y * ld;
    u32 from = (u64)n * blockIdx.x / gridDim.x, to = (u64)n * (blockIdx.x + 1) / gridDim.x;
    Best best = {-INF, 0xffffffffu};
    for (u32 i = from + threadIdx.x; i < to; i += 256 * 8) {
        float x[8]; // all on their way at once
#pragma unroll
        for (u32 j = 0; j < 8; j++) x[j] = i + 256 * j < to ? row[i + 256 * j] : -INF;
#pragma unroll
        for (u32 j = 0; j < 8; j++)
            if (i + 256 * j < to) best = better(best, {x[j] == INF ? NOT_A_NUMBER : x[j], i + 256 * j});
    }
    best = block_best(best, (Best*)SMEM);
    if (threadIdx.x == 0)
        part[(u64)blockIdx.y * gridDim.x + blockIdx.x] = make_float2(best.value, __uint_as_float(best.id));
}
EXPORT(argmax_part)

extern "C" __global__ void argmax_whole(float* top, const float2* part, u32 blocks, u32 ldt) {
    launch_dependents();
    wait_for_previous();
    Best best = {-INF, 0xffffffffu};
    for (u32 i = threadIdx.x; i < blocks; i += 256) {
        float2 p = part[(u64)blockIdx.x * blocks + i];
        best = better(best, {p.x, __float_as_uint(p.y)});
    }
    best = block_best(best, (Best*)SMEM);
    if (threadIdx.x == 0) {
        top[(u64)blockIdx.x * ldt] = best.value == -INF ? NOT_A_NUMBER : best.value;
        top[(u64)blockIdx.x * ldt + 1] = __uint_as_float(best.id);
    }
}
EXPORT(argmax_whole)
