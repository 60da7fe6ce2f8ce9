// gdn_step: convolution, delta rule and gated norm of one token a row, in place of causal_conv1d, gated_delta_rule and
// rms_norm_gated; formulas in gdn.cuh.
//
//   shapes   HK, HV, DK, DV, TAPS of the layer
//   launch   grid (HV, rows), block 512, overlapped: the state is read before the wait
//   traffic  8 · HV · DK · DV bytes of state a row, and the projections
#include "gdn.cuh"

extern "C" __global__ void __launch_bounds__(GDN_THREADS, 2)
gdn_step(float* o, const float* proj, const float* taps, const float* a_log, const float* dt_bias, const float* norm,
         float* state, float* ring, const u32* slots, const u32* positions, float eps, u32 ldo, u32 ldp) {
    GdnArgs a = {o, proj, taps, a_log, dt_bias, norm, state, ring, slots, positions, eps, ldo, ldp};
    GdnStep op;
    op.start(a, blockIdx.x, blockIdx.y);
    launch_dependents();
    wait_for_previous();
    op.run(a, (float*)SMEM);
}
EXPORT(gdn_step)
