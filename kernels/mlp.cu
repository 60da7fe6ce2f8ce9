// mlp: x += down(silu(g) · u), [g | u] = gate_up(norm(x)), in one cooperative launch: the MLP of path lite.
//
//   shapes   HIDDEN, INTERMEDIATE; GATE_UP and DOWN are formats of weights; up to ROWS rows
//   launch   grid = resident blocks, block 512, cooperative, overlapped; phases: gate_up, down
//   traffic  the two matrices once
#include "coop.cuh"

extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 1)
mlp(float* x, float* n, u32* counter, u64* timing, const char* gate_up, const char* down, const float* norm, float* act,
    float eps, u32 rows, u32 ldx, u32 lda) {
    Coop c = {x, n, counter, timing, rows, ldx, 0};
    MlpArgs m = {gate_up, down, norm, act, eps, lda};
    Stages weights;
    weights.init();
    add_mlp(c, m, weights);
    weights.start();
    prefetch_l2(norm, HIDDEN * 4);
    launch_dependents();
    wait_for_previous();
    mlp_phases(c, m, weights, SMEM + Stages::BYTES, 0);
}
EXPORT(mlp)
