// wgmma: d += a bᵀ by a warpgroup, four warps, on the asynchronous tensor cores of sm_90a; a in registers, b in shared memory.
//
//   a   64 × 16 bf16: warp w of the four has rows 16 w … 16 w + 15, spread over its lanes as for mma m16n8k16
//   b   N × 16 bf16 of a matrix [N, 64] in shared memory, a row of which has 8 pieces of 16 bytes: piece p of row r lies at
//       128 r + 16 (p ^ r % 8). 1024-byte aligned
//   d   64 × N f32: d[4 j + e] of lane 4 g + t is row 16 w + g + 8 ⌊e / 2⌋, column 8 j + 2 t + e % 2
#pragma once
#include "common.cuh"

#ifdef CUTE_EMULATED

// At once, and in the order of mma.
template <int N> static inline void wgmma(float (&d)[N / 2], const u32 (&a)[4], const char* b, int k) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    for (int j = 0; j < N / 8; j++) {
        u32 piece[2];
        for (int i = 0; i < 2; i++) memcpy(&piece[i], b + (8 * j + g) * 128 + ((k / 8 + i) ^ g) * 16 + 4 * t, 4);
        mma_bf16(*(float(*)[4]) & d[4 * j], a, piece[0], piece[1]);
    }
}
static inline void wgmma_fence() {}
static inline void wgmma_commit() {}
template <int PENDING> static inline void wgmma_wait() {}
template <int N> static inline void wgmma_done(float (&)[N]) {}
template <int> static inline void fewer_registers() {}
template <int> static inline void more_registers() {}
// Shared memory from a multiple of 1024 bytes on.
static inline char* aligned_smem() { return SMEM; }

#else

// The instruction names each of the N / 2 sums, then a, then b.
#define D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define NAMES_32 NAMES_16 "," "%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_48 NAMES_32 "," "%16,%17,%18,%19,%20,%21,%22,%23"
#define NAMES_64 NAMES_48 "," "%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_80 NAMES_64 "," "%32,%33,%34,%35,%36,%37,%38,%39"
#define NAMES_96 NAMES_80 "," "%40,%41,%42,%43,%44,%45,%46,%47"
#define NAMES_112 NAMES_96 "," "%48,%49,%50,%51,%52,%53,%54,%55"
#define NAMES_128 NAMES_112 "," "%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_144 NAMES_128 "," "%64,%65,%66,%67,%68,%69,%70,%71"
#define NAMES_160 NAMES_144 "," "%72,%73,%74,%75,%76,%77,%78,%79"
#define NAMES_176 NAMES_160 "," "%80,%81,%82,%83,%84,%85,%86,%87"
#define NAMES_192 NAMES_176 "," "%88,%89,%90,%91,%92,%93,%94,%95"
#define NAMES_208 NAMES_192 "," "%96,%97,%98,%99,%100,%101,%102,%103"
#define NAMES_224 NAMES_208 "," "%104,%105,%106,%107,%108,%109,%110,%111"
#define NAMES_240 NAMES_224 "," "%112,%113,%114,%115,%116,%117,%118,%119"
#define NAMES_256 NAMES_240 "," "%120,%121,%122,%123,%124,%125,%126,%127"
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
#define OPERANDS_16 "{%8,%9,%10,%11}, %12"
#define OPERANDS_32 "{%16,%17,%18,%19}, %20"
#define OPERANDS_64 "{%32,%33,%34,%35}, %36"
#define OPERANDS_128 "{%64,%65,%66,%67}, %68"
#define OPERANDS_176 "{%88,%89,%90,%91}, %92"
#define OPERANDS_256 "{%128,%129,%130,%131}, %132"
#define WGMMA(N)                                                                                                           \
    __device__ __forceinline__ void wgmma_at(float (&d)[N / 2], const u32 (&a)[4], u64 b) {                                \
        asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N                       \
                     "k16.f32.bf16.bf16 {" NAMES_##N "}, " OPERANDS_##N ", add, 1, 1, 0; }"                                \
                     : SUMS_##N : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                     \
    }
WGMMA(16)
WGMMA(32)
WGMMA(64)
WGMMA(128)
WGMMA(176)
WGMMA(256)
// Starts the product with columns k … k + 15 of the matrix b. Before the first that reads registers written otherwise stands
// wgmma_fence; neither d nor a may be touched before the wait for its group.
template <int N> __device__ __forceinline__ void wgmma(float (&d)[N / 2], const u32 (&a)[4], const char* b, int k) {
    u32 at = (u32)__cvta_generic_to_shared(b) + k * 2;
    // swizzled by 128 bytes; a group of eight rows every 1024
    wgmma_at(d, a, (u64)((at & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62);
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until all but the last PENDING groups are done.
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Waits until all are done; d may be used from here on.
template <int N> __device__ __forceinline__ void wgmma_done(float (&d)[N]) {
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]));
}
// How many registers the threads of this warpgroup have from here on.
template <int COUNT> __device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
// Shared memory from a multiple of 1024 bytes on.
__device__ __forceinline__ char* aligned_smem() { return SMEM + (-(u32)__cvta_generic_to_shared(SMEM) & 1023u); }

#endif
