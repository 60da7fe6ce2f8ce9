// gemm_sm90: what gemm computes, by the asynchronous tensor cores of Hopper (wgmma, fed by TMA).
//
//   EPILOGUE 0   C[m, n]  = Σ_k A[m, k]·W[n, k]
//   EPILOGUE 1   C[m, n] += Σ_k A[m, k]·W[n, k]                              (the residual, in place)
//   EPILOGUE 2   C[m, n]  = silu(g)·u     g = Σ_k A[m, k]·W[n, k]     u = Σ_k A[m, k]·W[N + n, k]     (SwiGLU)
//
// One warp copies tiles along k into a ring of STAGES; each warpgroup of four others multiplies 64 rows. Blocks stay and take
// tile after tile, so that the copies of the next run while one is stored. A pair of blocks (CLUSTER 2) takes tiles below
// each other: each copies its rows of A and half the rows of W, the latter into the shared memory of both.
//
// Shapes   A [M, lda] bf16 · W [N, ldw] bf16, [2N, ldw] gate over up for EPILOGUE 2 · C [M, ldc] f32, bf16 with -D OUT_BF16
// Maps     map_a, map_w: a CUtensorMap each, in device memory, 64-byte aligned, made by cuTensorMapEncodeTiled with
//          BFLOAT16, rank 2, dims {K, rows}, strides {2·ld}, box {64, BM} for A and {64, BN/2} for W, element strides {1, 1},
//          no interleave, SWIZZLE_128B, L2_PROMOTION_256B, no OOB fill. rows: all of W; of A what is allocated, M or more
// Launch   grid CLUSTER·min(⌊multiprocessors/CLUSTER⌋, ⌈M/(CLUSTER·BM)⌉·⌈N/COLUMNS⌉) · block 2·BM + 32
//          shared 1024 + STAGES·((BM + BN)·128 + 16) B;  COLUMNS is BN, or BN/2 for EPILOGUE 2
// Traffic  W once for every GROUP·BM rows, A from L2 once for every COLUMNS columns, C once (twice for EPILOGUE 1):
//          62 MB at M = 512, N = K = 5120, for 26.8 GFLOP
// Numbers  products of bf16 exact, sums in f32: each element of C is one chain of m64nBNk16 over ascending k, whatever M, its
//          row, the grid and the cluster
// Needs    -D K BM BN STAGES CLUSTER EPILOGUE, as asserted below; sm_90a. Base addresses of A and W 16-byte aligned, lda and ldw
//          multiples of 8, ldc of 2; M, N ≥ 1. Joins the stream plainly or overlapped
#include "common.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

#define GROUPS (BM / 64) // warpgroups that multiply
#define THREADS (GROUPS * 128 + WARP)
#define COLUMNS (EPILOGUE == 2 ? BN / 2 : BN)
#define GROUP (16 / CLUSTER) // clusters' tiles of rows that share a stretch of W in L2
#define TILES ((K + 63) / 64) // along k; beyond K the copy fills in zeros
#define STAGE ((BM + BN) * 128)
static_assert(BM % 64 == 0 && BN % 16 == 0 && BM <= 256 && BN <= 256, "a warpgroup multiplies 64 rows by up to 256 columns");
static_assert(K % 8 == 0 && STAGES >= 2 && (CLUSTER == 1 || CLUSTER == 2), "as the header says");

__device__ __forceinline__ u32 address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- barriers of shared memory: a phase ends when all have arrived and all announced bytes have come

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive_and_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// At the same barrier of a block of the cluster. What was read before is known to be read; nothing written is handed over.
__device__ __forceinline__ void arrive_at(u32 barrier, u32 rank) {
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
                 "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier), "r"(rank) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    while (!done);
}
// All threads of the cluster; afterwards all see what was written before.
__device__ __forceinline__ void cluster_meet() {
    asm volatile("fence.mbarrier_init.release.cluster; barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}
// The same without waiting for what was written.
__device__ __forceinline__ void cluster_leave() {
    asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait;" ::: "memory");
}

// ---- copies

// The host wrote the map: what this thread reads of it is what stands there now.
__device__ __forceinline__ void acquire_map(const void* map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}
// A box of 64 elements along k and as many rows as the map says; to both blocks of a pair, at the same place, or to this one.
__device__ __forceinline__ void copy_box(u32 to, const void* map, int k, int row, u32 barrier, bool both) {
    if (both)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                     "[%0], [%1, {%2, %3}], [%4], %5;"
                     ::"r"(to), "l"(map), "r"(k), "r"(row), "r"(barrier), "h"((u16)3) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                     ::"r"(to), "l"(map), "r"(k), "r"(row), "r"(barrier) : "memory");
}

// ---- products

// A matrix in shared memory: rows of 128 bytes, swizzled in groups of eight (1024 bytes), which follow one another.
__device__ __forceinline__ u64 matrix_at(u32 at) { return (u64)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

// The instruction names each of its BN / 2 sums: %2 and on, behind the two matrices.
#define D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define NAMES_16 "%2,%3,%4,%5,%6,%7,%8,%9"
#define NAMES_32 NAMES_16 "," "%10,%11,%12,%13,%14,%15,%16,%17"
#define NAMES_48 NAMES_32 "," "%18,%19,%20,%21,%22,%23,%24,%25"
#define NAMES_64 NAMES_48 "," "%26,%27,%28,%29,%30,%31,%32,%33"
#define NAMES_80 NAMES_64 "," "%34,%35,%36,%37,%38,%39,%40,%41"
#define NAMES_96 NAMES_80 "," "%42,%43,%44,%45,%46,%47,%48,%49"
#define NAMES_112 NAMES_96 "," "%50,%51,%52,%53,%54,%55,%56,%57"
#define NAMES_128 NAMES_112 "," "%58,%59,%60,%61,%62,%63,%64,%65"
#define NAMES_144 NAMES_128 "," "%66,%67,%68,%69,%70,%71,%72,%73"
#define NAMES_160 NAMES_144 "," "%74,%75,%76,%77,%78,%79,%80,%81"
#define NAMES_176 NAMES_160 "," "%82,%83,%84,%85,%86,%87,%88,%89"
#define NAMES_192 NAMES_176 "," "%90,%91,%92,%93,%94,%95,%96,%97"
#define NAMES_208 NAMES_192 "," "%98,%99,%100,%101,%102,%103,%104,%105"
#define NAMES_224 NAMES_208 "," "%106,%107,%108,%109,%110,%111,%112,%113"
#define NAMES_240 NAMES_224 "," "%114,%115,%116,%117,%118,%119,%120,%121"
#define NAMES_256 NAMES_240 "," "%122,%123,%124,%125,%126,%127,%128,%129"
#define SUMS_16 D(0)
#define SUMS_32 SUMS_16, D(8)
#define SUMS_48 SUMS_32, D(16)
#define SUMS_64 SUMS_48, D(24)
#define SUMS_80 SUMS_64, D(32)
#define SUMS_96 SUMS_80, D(40)
#define SUMS_112 SUMS_96, D(48)
#define SUMS_128 SUMS_112, D(56)
#define SUMS_144 SUMS_128, D(64)
#define SUMS_160 SUMS_144, D(72)
#define SUMS_176 SUMS_160, D(80)
#define SUMS_192 SUMS_176, D(88)
#define SUMS_208 SUMS_192, D(96)
#define SUMS_224 SUMS_208, D(104)
#define SUMS_240 SUMS_224, D(112)
#define SUMS_256 SUMS_240, D(120)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

// d += a bᵀ for 64 rows of a, BN rows of b and 16 elements along k.
__device__ __forceinline__ void multiply(float (&d)[BN / 2], u64 a, u64 b) {
    asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n" TEXT(BN) "k16.f32.bf16.bf16 {"
                 JOIN(NAMES_, BN) "}, %0, %1, add, 1, 1, 0, 0; }" : "+l"(a), "+l"(b), JOIN(SUMS_, BN));
}
__device__ __forceinline__ void multiply_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last N groups are done.
template <int N> __device__ __forceinline__ void multiply_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
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
__device__ __forceinline__ void finish(Out* C, float (&acc)[BN / 2], int m, int n, int M, int N, i64 ldc) {
    m += threadIdx.x % WARP / 4, n += threadIdx.x % 4 * 2;
    C += m * ldc + n;
#if EPILOGUE == 1
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (m + i * 8 < M) {
#pragma unroll
            for (int j = 0; j < BN / 8; j++) {
                float2 old = load_pair<WHOLE>(C + i * 8 * ldc + j * 8, N - n - j * 8);
                acc[j * 4 + i * 2] += old.x, acc[j * 4 + i * 2 + 1] += old.y;
            }
        }
#endif
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (m + i * 8 < M) {
            Out* c = C + i * 8 * ldc;
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
                float x = acc[j * 4 + i * 2], y = acc[j * 4 + i * 2 + 1];
#if EPILOGUE == 2
                x = silu(x) * acc[BN / 4 + j * 4 + i * 2], y = silu(y) * acc[BN / 4 + j * 4 + i * 2 + 1];
#endif
                store_pair<WHOLE>(c + j * 8, N - n - j * 8, x, y);
            }
        }
}

// The slot of the ring that is next, and the parity of its phase.
struct Slot {
    u32 i = 0, parity = 0;
    __device__ void next() {
        if (++i == STAGES) i = 0, parity ^= 1;
    }
};

extern "C" __global__ void
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, 1) gemm_sm90(Out* C, const void* map_a, const void* map_w, int M, int N, i64 ldc) {
    u32 ring = (address(SMEM) + 1023) & ~1023u; // the swizzle goes by address
    u32 full = ring + STAGES * STAGE, empty = full + STAGES * 8;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = warp / 4;
    int rank = blockIdx.x % CLUSTER;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, CLUSTER * GROUPS * 4); // every warp that reads what is copied here
        }
    }
    cluster_meet();
    launch_dependents();
    wait_for_previous();

    // Rows vary fastest within a group of GROUP tiles: a tile of W is read by neighbours in time.
    int tiles_m = (M + CLUSTER * BM - 1) / (CLUSTER * BM), tiles_n = (N + COLUMNS - 1) / COLUMNS;
    auto row_and_column = [&](int tile, int& m0, int& n0) {
        int group = tile / (GROUP * tiles_n), rest = tile % (GROUP * tiles_n);
        int height = min(GROUP, tiles_m - group * GROUP);
        m0 = ((group * GROUP + rest % height) * CLUSTER + rank) * BM, n0 = rest / height * COLUMNS;
    };

    Slot slot;
    if (group == GROUPS) {
        if (lane == 0) {
            acquire_map(map_a);
            acquire_map(map_w);
            for (int tile = blockIdx.x / CLUSTER; tile < tiles_m * tiles_n; tile += gridDim.x / CLUSTER) {
                int m0, n0;
                row_and_column(tile, m0, n0);
                // The rows of W come in two halves; of a pair of blocks each copies one, for both.
                int half = EPILOGUE == 2 ? N : BN / 2, mine = rank * (BN * 64);
                for (int k = 0; k < TILES * 64; k += 64, slot.next()) {
                    u32 to = ring + slot.i * STAGE, came = full + slot.i * 8;
                    barrier_wait(empty + slot.i * 8, slot.parity ^ 1);
                    arrive_and_expect(came, STAGE);
                    copy_box(to, map_a, k, m0, came, false);
                    copy_box(to + BM * 128 + mine, map_w, k, n0 + rank * half, came, CLUSTER > 1);
                    if (CLUSTER == 1) copy_box(to + BM * 128 + BN * 64, map_w, k, n0 + half, came, false);
                }
            }
        }
    } else {
        for (int tile = blockIdx.x / CLUSTER; tile < tiles_m * tiles_n; tile += gridDim.x / CLUSTER) {
            float acc[BN / 2] = {};
            u32 before = 0;
            for (int k = 0; k < TILES; k++, slot.next()) {
                barrier_wait(full + slot.i * 8, slot.parity);
                u32 at = ring + slot.i * STAGE;
                u64 a = matrix_at(at + group * (64 * 128)), b = matrix_at(at + BM * 128);
                multiply_fence();
#pragma unroll
                for (int i = 0; i < 4; i++) multiply(acc, a + i * 2, b + i * 2); // 16 elements are 2 units of 16 bytes
                multiply_commit();
                multiply_wait<1>();
                if (k && lane < CLUSTER) arrive_at(empty + before * 8, lane);
                before = slot.i;
            }
            multiply_wait<0>();
#pragma unroll
            for (float& x : acc) asm volatile("" : "+f"(x)); // no use of a sum moves before the wait
            if (lane < CLUSTER) arrive_at(empty + before * 8, lane);

            int m0, n0;
            row_and_column(tile, m0, n0);
            if (n0 + COLUMNS <= N) finish<true>(C, acc, m0 + warp * 16, n0, M, N, ldc);
            else finish<false>(C, acc, m0 + warp * 16, n0, M, N, ldc);
        }
    }
    // No block goes while its neighbour still copies to it or arrives at its barriers.
    if (CLUSTER > 1) cluster_leave();
}
EXPORT(gemm_sm90)

#endif
