// coop: a whole layer in one cooperative launch, phases with a grid barrier between them.
//
// Every block streams its share of every matrix; the ring fills with the weights of the next product while the last sums of
// one are added and the barrier is waited for. What phases need beside the ring lies behind it. Workspaces need no reset: a phase
// writes every element that a later one reads. The barrier's counter starts at zero, which the step's first kernel (embed)
// sees to.
#pragma once
#include "linear.cuh"

// Entry and exit of each phase of each block, [phase, block, 2], in nanoseconds; nothing unless asked for.
#ifdef REGION_TIMING
#define ENTER(phase) \
    if (threadIdx.x == 0) c.timing[((u64)(phase)*gridDim.x + blockIdx.x) * 2] = global_timer()
#define LEAVE(phase)                                                                                        \
    __syncthreads();                                                                                        \
    if (threadIdx.x == 0) c.timing[((u64)(phase)*gridDim.x + blockIdx.x) * 2 + 1] = global_timer()
#else
#define ENTER(phase)
#define LEAVE(phase)
#endif

struct Coop {
    float* x;          // [rows, ldx], the residual stream, in place
    float* n;          // [rows, ldx], scratch for the normed rows when there are several
    u32* counter;      // of the grid barrier
    u64* timing;
    u32 rows, ldx;
    u32 target;        // of the next barrier

    __device__ __forceinline__ void barrier() { grid_barrier(counter, target); }

    // Several rows are normed once, into n, a row a block; one row is normed where it is used.
    template <int K> __device__ __forceinline__ void norm_rows(const float* w, float eps, char* smem) {
        constexpr int PADDED = (K + 3) / 4 * 4, STEPS = (PADDED / 4 + LINEAR_THREADS - 1) / LINEAR_THREADS;
        for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
            const float* from = x + (u64)row * ldx;
            float4 v[STEPS];
            float sum = 0;
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                v[s] = i < PADDED ? *(const float4*)(from + i) : make_float4(0, 0, 0, 0);
                sum += v[s].x * v[s].x + v[s].y * v[s].y + v[s].z * v[s].z + v[s].w * v[s].w;
            }
            float r = rsqrtf(block_sum<LINEAR_THREADS>(sum, (float*)smem) / K + eps);
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                float y[4] = {v[s].x, v[s].y, v[s].z, v[s].w};
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (i + j < K) n[(u64)row * ldx + i + j] = y[j] * r * (1 + w[i + j]);
            }
        }
        barrier();
    }
};

typedef Ring<ROWS> Stages;

// x += down(silu(g) · u) with [g | u] = gate_up(norm(x)): the last two phases of every layer.
typedef Linear<GATE_UP, HIDDEN, ROWS, SWIGLU, ROWS == 1> GateUp;
typedef Linear<DOWN, INTERMEDIATE, ROWS, ADD, false> Down;
struct MlpArgs {
    const char *gate_up, *down;
    const float* norm;
    float* act; // [rows, lda]
    float eps;
    u32 lda;
};
__device__ __forceinline__ LinearArgs gate_up_args(const Coop& c, const MlpArgs& m) {
    return {m.gate_up, ROWS == 1 ? c.x : c.n, m.act, m.norm, m.eps, c.rows, INTERMEDIATE, c.ldx, m.lda};
}
__device__ __forceinline__ LinearArgs down_args(const Coop& c, const MlpArgs& m) {
    return {m.down, m.act, c.x, 0, 0, c.rows, HIDDEN, m.lda, c.ldx};
}
// The last products of the ring's.
__device__ __forceinline__ void add_mlp(const Coop& c, const MlpArgs& m, Stages& weights) {
    weights.add(GateUp::share(gate_up_args(c, m), blockIdx.x, gridDim.x));
    weights.add(Down::share(down_args(c, m), blockIdx.x, gridDim.x));
}
__device__ __forceinline__ void mlp_phases(Coop& c, const MlpArgs& m, Stages& weights, char* smem, int phase) {
    ENTER(phase);
    if (ROWS > 1) c.norm_rows<HIDDEN>(m.norm, m.eps, smem);
    GateUp gate;
    gate.run(gate_up_args(c, m), weights, smem);
    LEAVE(phase);
    c.barrier();
    ENTER(phase + 1);
    Down down;
    down.run(down_args(c, m), weights, smem);
    LEAVE(phase + 1);
}
