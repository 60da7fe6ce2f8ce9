// gemm: the product of many rows with a weight matrix (prefill), on the tensor cores of any device from sm_90 on.
//
//   EPILOGUE 0   C[m, n]  = Σ_k A[m, k]·W[n, k]
//   EPILOGUE 1   C[m, n] += Σ_k A[m, k]·W[n, k]                              (the residual, in place)
//   EPILOGUE 2   C[m, n]  = silu(g)·u     g = Σ_k A[m, k]·W[n, k]     u = Σ_k A[m, k]·W[N + n, k]     (SwiGLU)
//
// Shapes   A [M, lda] bf16, in the order of to_bf16.cu · W in tiles of WEIGHTS as weights.cuh says, K wide; gate, filled up
//          to whole tiles, before up for EPILOGUE 2 · C [M, ldc] f32, bf16 with -D OUT_BF16
// Launch   grid ⌈M/BM⌉·⌈N/COLUMNS⌉ · block (BM/WM)·(BN/WN)·32 · shared STAGES·(BM·BK·2 + BN/8·STRIP) B
//          STRIP, the inputs of a stage of a tile of W, is 16·BK B, packed 544 of Fp8 or 320 of Nvfp4
//          COLUMNS, the columns of C a block makes, is BN, or BN/2 for EPILOGUE 2
//          with EXPERTS the tiles of rows are the items of moe.cu's list, of up to BM lines: W is that of the item's expert,
//          `stride` bytes behind the one before; C has the item's lines; so has A, or for EPILOGUE 2 the rows of its lines.
//          Grid: the most items there can be · ⌈N/COLUMNS⌉; those beyond the list leave at once
// Traffic  W once for every GROUP·BM rows, A from L2 once for every COLUMNS columns, C once (twice for EPILOGUE 1):
//          62 MB at M = 512, N = K = 5120 and bf16, for 26.8 GFLOP. Packed weights stay packed up to the registers of the
//          warps that multiply them
// Numbers  products of bf16 exact, sums in f32: each element of C is one chain of m16n8k16 over ascending k and so has the
//          same bits for every M, row and tile shape. Of Fp8 bf16(code · scale) is multiplied; of Nvfp4 code · scale, which is
//          exact, and the sum by the factor
// Needs    -D WEIGHTS K BM BN BK WM WN STAGES EPILOGUE, PACKED for packed weights, as asserted below. lda a multiple of 8, ldc
//          of 2; the three pointers 16-byte aligned; M, N ≥ 1. Joins the stream plainly or overlapped
#include "packed.cuh"

#define WARPS_N (BN / WN)
#define THREADS ((BM / WM) * WARPS_N * WARP)
#define COLUMNS (EPILOGUE == 2 ? BN / 2 : BN)
#define GROUP 16         // tiles of rows that share a stretch of W in L2
#define TILES (K / BK)   // along k
#define CHUNKS (BK / 8)  // 16-byte pieces of a row in shared memory
#define STEP (THREADS / CHUNKS)
#ifdef PACKED
#define STRIP (WEIGHTS::HEAD + WEIGHTS::CODES)
static_assert(BK == 64 && K % 128 == 0, "a stage has a unit of every tile");
#else
#define STRIP (16 * BK)
#endif
#define STAGE (BM * BK * 2 + BN / 8 * STRIP)
static_assert((BK == 32 || BK == 64) && K % BK == 0, "K is padded to whole tiles");
static_assert(BM % WM == 0 && BN % WN == 0 && WM % 16 == 0 && WN % 16 == 0, "a warp multiplies 16 x 16 pieces");
static_assert(STEP % 16 == 0, "a thread's pieces lie alike in every group of 16 rows: 2 BK threads or a multiple");
static_assert(STAGES >= 2, "one stage is read while another is written");

// Byte of a piece of a row. The pieces of a row are permuted so that eight rows of one column lie in different banks.
__device__ __forceinline__ int place(int row, int chunk) {
    return row * (BK * 2) + (chunk ^ (row / (8 / CHUNKS) % CHUNKS)) * 16;
}

// What C holds, and two neighbours of a row of it; `left` columns are left from the first of them on.
#ifdef OUT_BF16
typedef u16 Out;
static_assert(EPILOGUE != 1, "a residual is f32");
#else
typedef float Out;
#endif
template <bool WHOLE> __device__ __forceinline__ float2 load_pair(const float* c, int left) {
    if (WHOLE) return *(const float2*)c;
    return make_float2(left > 0 ? c[0] : 0.0f, left > 1 ? c[1] : 0.0f);
}
template <bool WHOLE> __device__ __forceinline__ void store_pair(float* c, int left, float x, float y) {
    if (WHOLE || left > 1) *(float2*)c = make_float2(x, y);
    else if (left > 0) *c = x;
}
template <bool WHOLE> __device__ __forceinline__ void store_pair(u16* c, int left, float x, float y) {
    if (WHOLE || left > 1) *(u32*)c = pack_bf16(x, y);
    else if (left > 0) *c = (u16)pack_bf16(x, 0.0f);
}

// Stores a warp's sums, whose first row is m and first column n. WHOLE: all columns are inside C. The old values are all asked
// for before the first is needed.
template <bool WHOLE>
__device__ __forceinline__ void finish(Out* C, float (&acc)[WM / 16][WN / 8][4], int m, int n, int M, int N, i64 ldc) {
    m += threadIdx.x % WARP / 4, n += threadIdx.x % 4 * 2;
    C += m * ldc + n;
#if EPILOGUE == 1
#pragma unroll
    for (int i = 0; i < WM / 8; i++)
        if (m + i * 8 < M) {
#pragma unroll
            for (int j = 0; j < WN / 8; j++) {
                float2 old = load_pair<WHOLE>(C + i * 8 * ldc + j * 8, N - n - j * 8);
                acc[i / 2][j][i % 2 * 2] += old.x, acc[i / 2][j][i % 2 * 2 + 1] += old.y;
            }
        }
#endif
#pragma unroll
    for (int i = 0; i < WM / 8; i++)
        if (m + i * 8 < M) {
            Out* c = C + i * 8 * ldc;
            int e = i % 2 * 2;
#if EPILOGUE == 2
#pragma unroll
            for (int j = 0; j < WN / 16; j++) {
                const float *g = acc[i / 2][j * 2], *u = acc[i / 2][j * 2 + 1];
                store_pair<WHOLE>(c + j * 8, N - n - j * 8, silu(g[e]) * u[e], silu(g[e + 1]) * u[e + 1]);
            }
#else
#pragma unroll
            for (int j = 0; j < WN / 8; j++)
                store_pair<WHOLE>(c + j * 8, N - n - j * 8, acc[i / 2][j][e], acc[i / 2][j][e + 1]);
#endif
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
#ifdef EXPERTS
gemm(Out* C, const u16* A, const char* W, u64 stride, const uint4* items, const u32* row_of, const u32* count, int N, i64 lda,
     i64 ldc) {
    wait_for_previous();
    int tiles_n = (N + COLUMNS - 1) / COLUMNS, m0 = 0, n0 = blockIdx.x % tiles_n * COLUMNS;
    if (blockIdx.x / tiles_n >= __ldcg(count)) return;
    uint4 item = __ldcg(items + blockIdx.x / tiles_n);
    int M = item.z;
    W += item.x * stride;
    C += item.y * ldc;
#else
gemm(Out* C, const u16* A, const char* W, int M, int N, i64 lda, i64 ldc) {
    // Rows vary fastest within a group of GROUP tiles: a tile of W is read by neighbours in time.
    int tiles_m = (M + BM - 1) / BM, tiles_n = (N + COLUMNS - 1) / COLUMNS;
    int group = blockIdx.x / (GROUP * tiles_n), rest = blockIdx.x % (GROUP * tiles_n);
    int height = min(GROUP, tiles_m - group * GROUP);
    int m0 = (group * GROUP + rest % height) * BM, n0 = rest / height * COLUMNS;
#endif

    // This thread copies one piece of every STEP-th row of a tile. For SwiGLU tiles of eight outputs of gate alternate with
    // the same of up, so that a thread ends up with both sums of an element of C. What lies past M and N is left out: a row of
    // a product sees no other row, and theirs are not stored.
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int row = threadIdx.x / CHUNKS;
    char* to = SMEM + place(row, threadIdx.x % CHUNKS);
    int rows_left = M - m0 - row;
    i64 lane_k = threadIdx.x % CHUNKS * 8;
#if defined(EXPERTS) && EPILOGUE == 2
    u32 rows[(BM + STEP - 1) / STEP]; // of A
#pragma unroll
    for (int r = 0; r < BM; r += STEP) rows[r / STEP] = __ldcg(row_of + item.y + min(r + row, M - 1));
    A += lane_k;
    auto copy_a = [&](int stage, const u16* from) {
#pragma unroll
        for (int r = 0; r < BM; r += STEP)
            if (r < rows_left && (BM % STEP == 0 || r + row < BM))
                cp_async16(to + stage + r * (BK * 2), from + rows[r / STEP] * lda);
    };
#else
#ifdef EXPERTS
    A += item.y * lda;
#endif
    A += (m0 + row) * lda + lane_k;
    auto copy_a = [&](int stage, const u16* from) {
#pragma unroll
        for (int r = 0; r < BM; r += STEP, from += STEP * lda)
            if (r < rows_left && (BM % STEP == 0 || r + row < BM)) cp_async16(to + stage + r * (BK * 2), from);
    };
#endif
    // The tile of W that the block has as its i-th, and whether there is one.
    int tiles = (N + 7) / 8;
    auto tile_of = [&](int i) { return n0 / 8 + (EPILOGUE == 2 ? i / 2 + i % 2 * tiles : i); };
    auto exists = [&](int i) { return n0 / 8 + i * COLUMNS / BN < tiles; };
#ifdef PACKED
    // Whole tiles at once: 16 bytes of codes a thread; the first threads copy the scales.
    constexpr int CODES = WEIGHTS::CODES / 16, AT_ONCE = THREADS / CODES;
    static_assert(THREADS % CODES == 0 && AT_ONCE % 2 == 0 && THREADS >= BN / 4, "a thread's tiles are all of gate or all of up");
    constexpr i64 PITCH = K / 64 * WEIGHTS::UNIT;
    int first = threadIdx.x / CODES, of_scales = threadIdx.x / 2;
    const char* codes = W + tile_of(first) * PITCH + WEIGHTS::HEAD + threadIdx.x % CODES * 16;
    const char* scales = W + tile_of(of_scales) * PITCH + threadIdx.x % 2 * 16;
    auto copy_w = [&](int stage, int unit) {
        char* strips = SMEM + stage + BM * (BK * 2);
        i64 block = unit / 2 * (2 * WEIGHTS::UNIT);
#pragma unroll
        for (int i = 0; i < BN / 8; i += AT_ONCE)
            if (exists(i + first) && (BN / 8 % AT_ONCE == 0 || i + first < BN / 8))
                cp_async16(strips + (i + first) * STRIP + WEIGHTS::HEAD + threadIdx.x % CODES * 16,
                           codes + i * COLUMNS / BN * PITCH + block + unit % 2 * WEIGHTS::CODES);
        if (of_scales < BN / 8 && exists(of_scales))
            cp_async16(strips + of_scales * STRIP + threadIdx.x % 2 * 16, scales + block + unit % 2 * WEIGHTS::SCALES);
    };
#else
    const u16* weights = (const u16*)W + tile_of(row / 8) * (8 * (i64)K) + row % 8 * 32 + lane_k / 32 * 256 + lane_k % 32;
    auto copy_w = [&](int stage, int) { // the next
        const u16* from = weights;
#pragma unroll
        for (int r = 0; r < BN; r += STEP, from += STEP * COLUMNS / BN * K)
            if (exists((r + row) / 8) && (BN % STEP == 0 || r + row < BN))
                cp_async16(to + stage + (BM + r) * (BK * 2), from);
        weights += BK * 8;
    };
#endif
    // The weights do not depend on the kernels before this one.
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
        if (s < TILES) copy_w(s * STAGE, s);
    launch_dependents();
    wait_for_previous();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++, A += BK) {
        if (s < TILES) copy_a(s * STAGE, A);
        cp_async_commit();
    }

    // Fragments of 16 elements along k, two of each: one is multiplied while the other is read.
    int wm = warp / WARPS_N * WM, wn = warp % WARPS_N * WN;
    int lane_a = place(wm + lane % 16, lane / 16);
#ifndef PACKED
    int lane_b = place(BM + wn + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#endif
    u32 a[2][WM / 16][4], b[2][WN / 16][4];
    auto read = [&](int to, int stage, int k) { // k * 2 changes the bits of a byte that tell pieces 2, 4 and 6
#pragma unroll
        for (int i = 0; i < WM / 16; i++) ldmatrix_x4(a[to][i], SMEM + stage + (lane_a ^ k * 2) + i * 16 * (BK * 2));
#pragma unroll
#ifdef PACKED
        for (int j = 0; j < WN / 8; j++) {
            const char* strip = SMEM + stage + BM * (BK * 2) + (wn / 8 + j) * STRIP;
            uint4 half = WEIGHTS::operands(strip, 0, k / 32);
            u32 lo = k % 32 ? half.z : half.x, hi = k % 32 ? half.w : half.y;
            if (WEIGHTS::SCALED_SUMS) {
                float scale = WEIGHTS::scale(strip, 0, lane / 4);
                lo = pack_bf16(bf16_lo(lo) * scale, bf16_hi(lo) * scale), hi = pack_bf16(bf16_lo(hi) * scale, bf16_hi(hi) * scale);
            }
            b[to][j / 2][j % 2 * 2] = lo, b[to][j / 2][j % 2 * 2 + 1] = hi;
        }
#else
        for (int j = 0; j < WN / 16; j++) ldmatrix_x4(b[to][j], SMEM + stage + (lane_b ^ k * 2) + j * 16 * (BK * 2));
#endif
    };
    float acc[WM / 16][WN / 8][4] = {};
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    read(0, 0, 0);
    int reading = 0, writing = (STAGES - 1) * STAGE;
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            if (k + 16 == BK) {
                cp_async_wait<STAGES - 2>();
                __syncthreads();
                reading = reading == (STAGES - 1) * STAGE ? 0 : reading + STAGE;
            }
            read((k / 16 + 1) % 2, reading, (k + 16) % BK); // after the last tile: what nobody uses
            if (k == 0) {
                if (tile + STAGES - 1 < TILES) {
                    copy_a(writing, A);
                    copy_w(writing, tile + STAGES - 1);
                }
                cp_async_commit();
                A += BK;
                writing = writing == (STAGES - 1) * STAGE ? 0 : writing + STAGE;
            }
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
#pragma unroll
                for (int j = 0; j < WN / 8; j++)
                    mma_bf16(acc[i][j], a[k / 16 % 2][i], b[k / 16 % 2][j / 2][j % 2 * 2], b[k / 16 % 2][j / 2][j % 2 * 2 + 1]);
        }
    }

#ifdef PACKED
    if (WEIGHTS::FACTORS) {
        const float* factors = (const float*)(W + (i64)tiles * (BN / COLUMNS) * PITCH) + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
            if (exists(wn / 8 + j)) {
                float2 factor = *(const float2*)(factors + tile_of(wn / 8 + j) * 8);
#pragma unroll
                for (int i = 0; i < WM / 16; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) acc[i][j][e] = __fmul_rn(acc[i][j][e], e % 2 ? factor.y : factor.x);
            }
    }
#endif
    int m = m0 + wm, n = n0 + wn * COLUMNS / BN;
    if (n0 + COLUMNS <= N) finish<true>(C, acc, m, n, M, N, ldc);
    else finish<false>(C, acc, m, n, M, N, ldc);
}
EXPORT(gemm)
