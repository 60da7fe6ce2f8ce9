// linear: out = x Wᵀ, out += x Wᵀ, or out = silu(x Gᵀ) · (x Uᵀ) with W = [G; U]; with NORM, x is rms_norm(x) first.
//
//   shapes   see linear.cuh; INPUTS is K, WEIGHTS the format of W, ROWS the most rows of a launch in y (1, 8 or 16)
//   launch   grid (SMs or fewer, rows / ROWS), block 512, overlapped: the first weights are asked for before the wait;
//            with BLOCKS 2 (plain weights) it takes half the registers and leaves shared memory, so that a block of gdn_step fits beside it
//   traffic  W once for each y; x from L2
#include "linear.cuh"

extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, BLOCKS)
linear(const char* w, const float* x, float* out, const float* norm, float eps, u32 rows, u32 n, u32 ldx, u32 ldo) {
    using Op = Linear<WEIGHTS, INPUTS, ROWS, EPILOGUE, NORM != 0>;
    u32 row0 = blockIdx.y * ROWS;
    u32 left = rows - row0;
    LinearArgs a = {w, x + (u64)row0 * ldx, out + (u64)row0 * ldo, norm, eps, left < ROWS ? left : ROWS, n, ldx, ldo};
    Op::Stages ring;
    ring.init();
    ring.add(Op::share(a, blockIdx.x, gridDim.x));
    ring.start();
    launch_dependents();
    wait_for_previous();
    Op op;
    op.run(a, ring, SMEM + Op::Stages::BYTES);
}
EXPORT(linear)
