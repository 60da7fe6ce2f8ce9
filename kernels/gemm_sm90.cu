// gemm_sm90: what gemm computes, on the asynchronous tensor cores of sm_90a.
//
//   EPILOGUE 0   C[m, n]  = Σ_k A[m, k]·W[n, k]
//   EPILOGUE 1   C[m, n] += Σ_k A[m, k]·W[n, k]                              (the residual, in place)
//   EPILOGUE 2   C[m, n]  = silu(g)·u     g = Σ_k A[m, k]·W[n, k]     u = Σ_k A[m, k]·W[N + n, k]     (SwiGLU)
//
// Four warps copy into two rings, with bulk copies alone, since both operands lie in memory as they are wanted: of W blocks of
// 128 inputs, of A stages of 64. Each warpgroup of four others multiplies 64 outputs with all rows of the block: W is the first
// operand, from registers, where packed weights are decoded while the tensor cores multiply what came before, each once for up
// to 256 rows; A the second, from shared memory.
//
// Shapes   A [K/64, lda, 64] bf16, in the order of to_bf16.cu with TILED · W in tiles of WEIGHTS as weights.cuh says, K wide;
//          gate, filled up to whole tiles, before up for EPILOGUE 2 · C [M, ldc] f32
// Launch   grid ⌈M/BM⌉·⌈N/COLUMNS⌉ · block 2·BN + 128 · shared 1032 + STAGES·(BM·128 + 16) + BLOCKS·(BN/8·STRIP + 16) B
//          STRIP, 128 inputs of a tile of W, is 2048 B, packed 1056 of Fp8 or 576 of Nvfp4
//          COLUMNS, the columns of C a block makes, is BN, or BN/2 for EPILOGUE 2
// Traffic  W once for every GROUP·BM rows, A from L2 once for every COLUMNS columns, C once (twice for EPILOGUE 1):
//          62 MB at M = 512, N = K = 5120 and bf16, for 26.8 GFLOP
// Numbers  products of bf16 exact, sums in f32: each element of C is one chain of m64nBMk16 over ascending k and so has the same
//          bits for every M, row and tile shape. Of Fp8 bf16(code · scale) is multiplied; of Nvfp4 code · scale, which is exact,
//          and the sum by the factor
// Needs    -D WEIGHTS K BM BN STAGES BLOCKS EPILOGUE, PACKED for packed weights, as asserted below; sm_90a. lda, rows of A that are
//          allocated, a multiple of 8; the pointers 16-byte aligned; M, N ≥ 1. Joins the stream plainly or overlapped
#include "packed.cuh"
#include "wgmma.cuh"

#define WARPS (BN / 16) // that multiply
#define COPIERS 3       // warps that copy W; another copies A
#define COLUMNS (EPILOGUE == 2 ? BN / 2 : BN)
#define GROUP 16        // tiles of rows that share a stretch of W in L2
#define STEPS (K / 64)  // stages of A
constexpr int UNIT = WEIGHTS::UNIT, STRIP = 2 * UNIT, STAGE = BM * 128, BLOCK = BN / 8 * STRIP;
static_assert(WEIGHTS::PIECES == 1 && K % (64 * WEIGHTS::GRAIN) == 0, "K is padded to whole units, packed to whole blocks");
static_assert(BM * BN * 5 <= STAGES * STAGE + BLOCKS * BLOCK, "the sums fit where the rings were");

// A slot of a ring and the parity of its phase.
template <int SLOTS> struct Slot {
    int i = 0;
    u32 parity = 0;
    __device__ __forceinline__ void next() {
        if (++i == SLOTS) i = 0, parity ^= 1;
    }
};

extern "C" __global__ void __launch_bounds__(WARPS * WARP + 128, 1)
gemm_sm90(float* C, const u16* A, const char* W, int M, int N, i64 lda, i64 ldc) {
    char *stages = aligned_smem(), *blocks = stages + STAGES * STAGE;
    u64 *full_a = (u64*)(blocks + BLOCKS * BLOCK), *empty_a = full_a + STAGES;
    u64 *full_w = empty_a + STAGES, *empty_w = full_w + BLOCKS, *done = empty_w + BLOCKS;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) mbarrier_init(full_a + s, 1), mbarrier_init(empty_a + s, WARPS);
        for (int s = 0; s < BLOCKS; s++) mbarrier_init(full_w + s, COPIERS), mbarrier_init(empty_w + s, WARPS);
        mbarrier_init(done, WARPS);
        mbarrier_fence();
    }
    __syncthreads();
    launch_dependents();

    // Rows vary fastest within a group of GROUP tiles: a tile of W is read by neighbours in time.
    int tiles_m = (M + BM - 1) / BM, tiles_n = (N + COLUMNS - 1) / COLUMNS;
    int group = blockIdx.x / (GROUP * tiles_n), rest = blockIdx.x % (GROUP * tiles_n);
    int height = min(GROUP, tiles_m - group * GROUP);
    int m0 = (group * GROUP + rest % height) * BM, n0 = rest / height * COLUMNS;
    // For SwiGLU tiles of eight outputs of gate alternate with the same of up, so that a thread has both sums of an element.
    int tiles = (N + 7) / 8;
    auto tile_of = [&](int i) { return n0 / 8 + (EPILOGUE == 2 ? i / 2 + i % 2 * tiles : i); };
    constexpr i64 PITCH = (i64)STEPS * UNIT;

    if (warp >= WARPS) {
        if (BN == 128) fewer_registers<56>();
        int copier = warp - WARPS;
        if (copier < COPIERS) {
            // A lane has a tile. The weights do not depend on the kernels before this one.
            int here = min(tiles - n0 / 8, COLUMNS / 8) * (BN / COLUMNS), i = lane * COPIERS + copier;
            int mine = here > copier ? (here - copier + COPIERS - 1) / COPIERS : 0;
            const char* from = W + (i < here ? tile_of(i) * PITCH : 0);
            Slot<BLOCKS> slot;
            for (int step = 0; step < STEPS; step += 2, from += STRIP, slot.next()) {
                u32 bytes = STEPS % 2 && step + 1 == STEPS ? UNIT : STRIP;
                mbarrier_wait(empty_w + slot.i, slot.parity ^ 1);
                if (lane == 0) mbarrier_expect(full_w + slot.i, mine * bytes);
                __syncwarp();
                if (i < here) bulk_copy(blocks + slot.i * BLOCK + i * STRIP, from, bytes, full_w + slot.i);
            }
        } else if (lane == 0) {
            // The rows that are there, in whole groups of eight; what lies behind them in a stage ends in columns nobody stores.
            u32 bytes = (u32)min((i64)BM, lda - m0) * 128;
            const char* from = (const char*)A + (i64)m0 * 128;
            wait_for_previous();
            Slot<STAGES> slot;
            for (int step = 0; step < STEPS; step++, from += lda * 128, slot.next()) {
                mbarrier_wait(empty_a + slot.i, slot.parity ^ 1);
                mbarrier_expect(full_a + slot.i, bytes);
                bulk_copy(stages + slot.i * STAGE, from, bytes, full_a + slot.i);
            }
        }
        return;
    }

    if (BN == 128) more_registers<224>();
    float acc[BM / 2] = {};
    u32 w[2][4][4];
    Slot<STAGES> stage;
    Slot<BLOCKS> block;
    int before = 0;
    // The operand of the 16 outputs of this warp, two tiles of eight: of one half of the unit after the other.
    auto step = [&](u32 (&w)[4][4], int unit, bool first, bool last) {
        const char* strip = blocks + block.i * BLOCK + warp * (2 * STRIP);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < 2; i++, strip += i == 1 ? STRIP : -STRIP) {
                uint4 v = WEIGHTS::operands(strip, unit, half);
#ifdef PACKED
                if (WEIGHTS::SCALED_SUMS) {
                    float scale = WEIGHTS::scale(strip, unit, lane / 4);
                    auto scaled = [&](u32 x) { return pack_bf16(bf16_lo(x) * scale, bf16_hi(x) * scale); };
                    v = make_uint4(scaled(v.x), scaled(v.y), scaled(v.z), scaled(v.w));
                }
#endif
                w[half * 2][i] = v.x, w[half * 2][i + 2] = v.y, w[half * 2 + 1][i] = v.z, w[half * 2 + 1][i + 2] = v.w;
            }
        mbarrier_wait(full_a + stage.i, stage.parity);
        const char* a = stages + stage.i * STAGE;
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++) wgmma<BM>(acc, w[i], a, i * 16);
        wgmma_commit();
        // The block is in registers, not only on its way there, since products have started; the stage before is multiplied.
        if (last && lane == 0) mbarrier_arrive(empty_w + block.i);
        wgmma_wait<1>();
        if (!first && lane == 0) mbarrier_arrive(empty_a + before);
        before = stage.i;
        stage.next();
    };
#pragma unroll 1 // more, and the compiler waits for each product
    for (int k = 0; k < STEPS / 2 * 2; k += 2, block.next()) {
        mbarrier_wait(full_w + block.i, block.parity);
        step(w[0], 0, k == 0, false);
        step(w[1], 1, false, true);
    }
    if (STEPS % 2) {
        wgmma_wait<0>();
        mbarrier_wait(full_w + block.i, block.parity);
        step(w[0], 0, STEPS == 1, true);
    }
    wgmma_done(acc);
    if (lane == 0) mbarrier_arrive(done);
    mbarrier_wait(done, 0);
    wait_for_previous();

    // A thread has sums of two outputs, eight apart, and of two rows in every eight. Through shared memory, where nothing of the
    // ring is needed any more, it gets those of four neighbours of a row.
    constexpr int OUTPUTS = COLUMNS / WARPS, WIDTH = OUTPUTS + 4; // of this warp; floats of a row, so that banks differ
    int g = lane / 4, t = lane % 4, n = n0 + warp * OUTPUTS;
    if (WEIGHTS::FACTORS) {
        const float* factors = (const float*)(W + (i64)tiles * (BN / COLUMNS) * PITCH);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int tile = tile_of(warp * 2 + i), last = tiles * (BN / COLUMNS) - 1;
            float factor = factors[min(tile, last) * 8 + g];
#pragma unroll
            for (int j = 0; j < BM / 4; j++) acc[j / 2 * 4 + 2 * i + j % 2] = __fmul_rn(acc[j / 2 * 4 + 2 * i + j % 2], factor);
        }
    }
    float* sums = (float*)stages + warp * (BM * WIDTH);
#pragma unroll
    for (int j = 0; j < BM / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float *to = sums + (8 * j + 2 * t + e) * WIDTH + g, x = acc[4 * j + e], y = acc[4 * j + 2 + e];
            if (EPILOGUE == 2) to[0] = silu(x) * y;
            else to[0] = x, to[8] = y;
        }
    __syncwarp();
    constexpr int LANES = OUTPUTS / 4; // of a row
    int row = lane / LANES, left = N - n - lane % LANES * 4;
    bool whole = left >= 4 && ldc % 4 == 0 && (u64)C % 16 == 0;
    C += (m0 + row) * ldc + n + lane % LANES * 4;
    const float* from = sums + row * WIDTH + lane % LANES * 4;
#pragma unroll 4
    for (; row < BM; row += WARP / LANES, C += WARP / LANES * ldc, from += WARP / LANES * WIDTH) {
        if (m0 + row >= M) break;
        float4 v = *(const float4*)from;
        if (whole) {
#if EPILOGUE == 1
            float4 old = *(const float4*)C;
            v.x += old.x, v.y += old.y, v.z += old.z, v.w += old.w;
#endif
            *(float4*)C = v;
        } else {
            float each[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (i < left) C[i] = EPILOGUE == 1 ? C[i] + each[i] : each[i];
        }
    }
}
EXPORT(gemm_sm90)
