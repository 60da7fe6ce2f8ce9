// coop_gdn: a gated-delta-net layer in one cooperative launch.
//
//   phases   0 projections · 1 convolution, delta rule, gated norm · 2 out projection, residual ·
//            3 norm, gate and up, SwiGLU · 4 down, residual
//   launch   grid = resident blocks, block 512, cooperative, overlapped
//   formats  IN_PROJ, OUT_PROJ, GATE_UP and DOWN; TAIL of the projections from `split` on, if they have another
//   traffic  the layer's weights once, the state once in and once out
#include "gdn.cuh"
#include "coop.cuh"

typedef Linear<IN_PROJ, HIDDEN, ROWS, STORE, ROWS == 1> In;
typedef Linear<OUT_PROJ, HV * DV, ROWS, ADD, false> Out;

extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 1)
coop_gdn(float* x, float* n, u32* counter, u64* timing, const char* gate_up, const char* down, const float* norm, float* act,
         float eps, u32 rows, u32 ldx, u32 lda, const float* input_norm, const char* in_proj, const char* out_proj,
         float* proj, float* o, const float* taps, const float* a_log, const float* dt_bias, const float* gated_norm,
         float* state, float* ring, const u32* slots, const u32* positions, u32 ldp, u32 ldo, const char* tail, u32 split) {
    Coop c = {x, n, counter, timing, rows, ldx, 0};
    MlpArgs m = {gate_up, down, norm, act, eps, lda};
    GdnArgs g = {o, proj, taps, a_log, dt_bias, gated_norm, state, ring, slots, positions, eps, ldo, ldp};
    Stages weights;
    weights.init();
    char* smem = SMEM + Stages::BYTES;
    u32 b = blockIdx.x, blocks = gridDim.x;

    LinearArgs p = {in_proj, ROWS == 1 ? x : n, proj, input_norm, eps, rows, split, ldx, ldp};
    LinearArgs w = {out_proj, o, x, 0, 0, rows, HIDDEN, ldo, ldx};
    weights.add(In::share(p, b, blocks));
    add_tail<In>(p, tail, GdnStep::A + HV, weights);
    weights.add(Out::share(w, b, blocks));
    add_mlp(c, m, weights);
    weights.start();
    prefetch_l2(input_norm, HIDDEN * 4);
    prefetch_l2(norm, HIDDEN * 4);
    launch_dependents();
    wait_for_previous();
    {
        ENTER(0);
        if (ROWS > 1) c.norm_rows<HIDDEN>(input_norm, eps, smem);
        In op;
        op.run(p, weights, smem);
        run_tail<In>(p, tail, GdnStep::A + HV, weights, smem);
        LEAVE(0);
    }
    GdnStep step;
    if (b < rows * HV) step.start(g, b % HV, b / HV);
    c.barrier();
    ENTER(1);
    for (u32 i = b; i < rows * HV; i += blocks) {
        if (i != b) {
            __syncthreads();
            step.start(g, i % HV, i / HV);
        }
        step.run(g, (float*)smem);
    }
    LEAVE(1);
    c.barrier();
    ENTER(2);
    Out out;
    out.run(w, weights, smem);
    LEAVE(2);
    c.barrier();
    mlp_phases(c, m, weights, smem, 3);
}
EXPORT(coop_gdn)
