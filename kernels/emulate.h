// emulate: CUDA's words for a host compiler, so that the kernels run without a GPU.
//
// A kernel file is compiled as C++ with `-DCUTE_EMULATED`, after this one. fibers.h runs its threads. What common.cuh
// does in PTX has its second body here, as PTX defines it; what PTX leaves open is made to show: shared memory starts as
// NaN, and so does the target of an asynchronous copy until the wait that ends it. Maths functions are the host's, within
// some units in the last place of the device's.
#pragma once

#include <math.h>
#include <time.h>

#include "fibers.h"

// ---- words of the language

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

#define threadIdx (emu::self->thread)
#define blockIdx (emu::self->block->index)
#define blockDim (emu::launch->block)
#define gridDim (emu::launch->grid)
#define SMEM (emu::self->block->smem)

// Makes a kernel known to the host; stands after its definition.
#define EXPORT(name)                                                                                                     \
    extern "C" __attribute__((visibility("default"))) const char* cute_kinds_##name() { return emu::Entry<&name>::kinds; } \
    extern "C" __attribute__((visibility("default"))) int cute_launch_##name(emu::Host* host, const emu::Shape* shape,     \
                                                                             void** args) {                                \
        return emu::run(host, shape, #name, emu::Entry<&name>::call, args);                                               \
    }

#define EMU_VECTOR(T, name)                                                                    \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                         \
    struct name##3 { T x, y, z; };                                                             \
    struct alignas(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; };              \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                          \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                  \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR(float, float)
EMU_VECTOR(double, double)
EMU_VECTOR(int, int)
EMU_VECTOR(unsigned, uint)
EMU_VECTOR(short, short)
EMU_VECTOR(unsigned short, ushort)
EMU_VECTOR(signed char, char)
EMU_VECTOR(unsigned char, uchar)
EMU_VECTOR(long long, longlong)
EMU_VECTOR(unsigned long long, ulonglong)

// ---- numbers

template <class To, class From> static inline To emu_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }

// Float to integer as the device does it: saturating, NaN is 0.
template <class T> static inline T emu_integer(double x, double lowest, double highest) {
    return x != x ? T(0) : x <= lowest ? T(lowest) : x >= highest ? T(highest) : T(x);
}
static inline int __float2int_rn(float x) { return emu_integer<int>(rint(x), -2147483648.0, 2147483647.0); }
static inline int __float2int_rz(float x) { return emu_integer<int>(trunc(x), -2147483648.0, 2147483647.0); }
static inline int __float2int_ru(float x) { return emu_integer<int>(ceil(x), -2147483648.0, 2147483647.0); }
static inline int __float2int_rd(float x) { return emu_integer<int>(floor(x), -2147483648.0, 2147483647.0); }
static inline unsigned __float2uint_rn(float x) { return emu_integer<unsigned>(rint(x), 0.0, 4294967295.0); }
static inline unsigned __float2uint_rz(float x) { return emu_integer<unsigned>(trunc(x), 0.0, 4294967295.0); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ull2float_rn(unsigned long long x) { return (float)x; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float emu_rsqrtf(float x) { return 1.0f / sqrtf(x); }
// The C library uses these names for itself.
#define rsqrtf(x) emu_rsqrtf(x)
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
#define __fdividef(x, y) ((x) / (y))

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned select) {
    const uint64_t both = (uint64_t)y << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s = select >> (4 * i) & 15, byte = (unsigned)(both >> (8 * (s & 7))) & 255;
        out |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return out;
}

#define EMU_MIN_MAX(T, A, B)                                                \
    static inline T min(A a, B b) { return (T)a < (T)b ? (T)a : (T)b; }     \
    static inline T max(A a, B b) { return (T)a > (T)b ? (T)a : (T)b; }
EMU_MIN_MAX(int, int, int)
EMU_MIN_MAX(unsigned, unsigned, unsigned)
EMU_MIN_MAX(unsigned, int, unsigned)
EMU_MIN_MAX(unsigned, unsigned, int)
EMU_MIN_MAX(long, long, long)
EMU_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMU_MIN_MAX(long long, long long, long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

// ---- memory

#define EMU_ALIGNED(p, bytes) \
    if ((uintptr_t)(p) % (bytes)) EMU_FAIL("%s of address %p, which is no multiple of %d", __func__, (const void*)(p), bytes)

template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline void __stcg(T* p, T x) { *p = x; }
template <class T> static inline void __stcs(T* p, T x) { *p = x; }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}

// A fiber is not interrupted, so these are whole.
#define EMU_ATOMIC(name, T, change)         \
    static inline T name(T* p, T x) {       \
        const T old = *p;                   \
        *p = change;                        \
        return old;                         \
    }
#define EMU_ATOMICS(T)                              \
    EMU_ATOMIC(atomicAdd, T, (T)(old + x))          \
    EMU_ATOMIC(atomicExch, T, x)                    \
    EMU_ATOMIC(atomicMax, T, old > x ? old : x)     \
    EMU_ATOMIC(atomicMin, T, old < x ? old : x)     \
    EMU_ATOMIC(atomicAnd, T, old & x)               \
    EMU_ATOMIC(atomicOr, T, old | x)                \
    EMU_ATOMIC(atomicXor, T, old ^ x)               \
    static inline T atomicCAS(T* p, T compare, T x) { \
        const T old = *p;                           \
        if (old == compare) *p = x;                 \
        return old;                                 \
    }
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned)
EMU_ATOMICS(unsigned long long)
EMU_ATOMIC(atomicSub, int, (int)(old - x))
EMU_ATOMIC(atomicSub, unsigned, old - x)
EMU_ATOMIC(atomicAdd, float, old + x)
EMU_ATOMIC(atomicAdd, double, old + x)
EMU_ATOMIC(atomicExch, float, x)

// ---- warp and block

#define EMU_AT(name) emu::At{name, file, line}
// Only whole warps meet here.
#define EMU_WHOLE(mask) \
    if ((mask) != 0xffffffffu) EMU_FAIL("mask %#x, but only whole warps (0xffffffff) are emulated", (unsigned)(mask))

static inline void __syncthreads(EMU_HERE) { emu::join_block(EMU_AT("__syncthreads")); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE) {
    EMU_WHOLE(mask);
    emu::join_warp(0, EMU_AT("__syncwarp"), [](const uint64_t*) {});
}

template <class T> static inline T emu_shuffle(T x, int from, bool own, emu::At at) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    const uint64_t* all = emu::join_warp(bits, at, [](const uint64_t*) {});
    if (!own) memcpy(&x, &all[from & 31], sizeof x);
    return x;
}
// `from` in terms of the lane, its part of `width` lanes, and `by`; a lane outside the part gets its own value back.
#define EMU_SHUFFLE(name, By, from_, own_)                                                       \
    template <class T> static inline T name(unsigned mask, T x, By by, int width = 32, EMU_HERE) { \
        EMU_WHOLE(mask);                                                                         \
        const int lane = threadIdx.x & 31, part = lane & ~(width - 1), from = from_;             \
        return emu_shuffle(x, from, own_, EMU_AT(#name));                                        \
    }
EMU_SHUFFLE(__shfl_sync, int, part + (by & (width - 1)), false)
EMU_SHUFFLE(__shfl_xor_sync, int, lane ^ by, from >= part + width)
EMU_SHUFFLE(__shfl_down_sync, unsigned, lane + (int)by, from >= part + width)
EMU_SHUFFLE(__shfl_up_sync, unsigned, lane - (int)by, from < part)

static inline unsigned emu_ballot(int predicate, emu::At at) {
    const uint64_t* all = emu::join_warp(predicate != 0, at, [](const uint64_t*) {});
    unsigned out = 0;
    for (int i = 0; i < 32; i++) out |= (unsigned)all[i] << i;
    return out;
}
#define EMU_VOTE(T, name, result)                                              \
    static inline T name(unsigned mask, int predicate, EMU_HERE) {             \
        EMU_WHOLE(mask);                                                       \
        const unsigned votes = emu_ballot(predicate, EMU_AT(#name));           \
        return result;                                                         \
    }
EMU_VOTE(unsigned, __ballot_sync, votes)
EMU_VOTE(int, __any_sync, votes != 0)
EMU_VOTE(int, __all_sync, votes == 0xffffffffu)

// ---- second bodies of common.cuh

static inline uint4 load_weight(const void* p) {
    EMU_ALIGNED(p, 16);
    uint4 v;
    memcpy(&v, p, 16);
    return v;
}
static inline uint4 load_l2(const void* p) {
    EMU_ALIGNED(p, 16);
    uint4 v;
    memcpy(&v, p, 16);
    return v;
}
static inline float load_l2(const float* p) { return *p; }

static inline unsigned emu_bf16(float x) {
    const unsigned u = __float_as_uint(x);
    return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
static inline unsigned pack_bf16(float lo, float hi) { return emu_bf16(hi) << 16 | emu_bf16(lo); }

static inline unsigned mul_bf16(unsigned a, unsigned b) {
    auto half = [](unsigned x, int i) { return __uint_as_float(i ? x & 0xffff0000u : x << 16); };
    return pack_bf16(half(a, 0) * half(b, 0), half(a, 1) * half(b, 1));
}

static inline unsigned emu_e4m3(float x) {
    const unsigned u = __float_as_uint(x), sign = u >> 24 & 0x80, a = u & 0x7fffffff;
    const float size = __uint_as_float(a);
    if (x != x) return 0x7f;
    if (size >= 448.0f) return sign | 0x7e;
    if (size < 0.015625f) return sign | (unsigned)rintf(size * 512.0f); // multiples of 2^-9
    return sign | (((a + 0x7ffff + (a >> 20 & 1)) >> 20) - (120 << 3));
}
static inline unsigned short pack_e4m3(float lo, float hi) { return (unsigned short)(emu_e4m3(hi) << 8 | emu_e4m3(lo)); }

static inline unsigned emu_e4m3_to_f16(unsigned x) {
    const unsigned sign = (x & 0x80) << 8, a = x & 0x7f;
    if (a == 0x7f) return 0x7fff;
    if (a >= 8) return sign | ((a << 7) + (8 << 10));
    if (a == 0) return sign;
    const int shift = __builtin_clz(a) - 28; // a · 2^-9 = (a << shift) · 2^(-9 - shift), its leading one at bit 3
    return sign | (unsigned)(9 - shift) << 10 | ((a << shift & 7) << 7);
}
static inline unsigned unpack_e4m3(unsigned short x) { return emu_e4m3_to_f16(x >> 8) << 16 | emu_e4m3_to_f16(x & 255); }

static inline float f16_to_f32(unsigned short x) {
    const unsigned sign = (x & 0x8000u) << 16, a = x & 0x7fff;
    if (a >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (a & 0x3ff) << 13);
    if (a >= 0x400) return __uint_as_float(sign | ((a << 13) + (112u << 23)));
    const float size = (float)a * 5.9604644775390625e-8f; // 2^-24
    return sign ? -size : size;
}

static inline float exp2_approx(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

// What a lane brings to an operation of the tensor cores.
struct EmuMma {
    float* c;
    const unsigned* a;
    unsigned b0, b1;
};
typedef float emu_row __attribute__((vector_size(16)));
// Lane 4 g + t holds a: rows g and g + 8, columns 2t, 2t + 1 and 8 more; b: the same in its rows, column g; c: rows g and
// g + 8, columns 2t and 2t + 1. Sums run over k ascending, each product exact.
static inline void emu_mma(const uint64_t* lanes) {
    alignas(16) float a[16][16], b[16][8], c[16][8];
    auto half = [](unsigned x, int i) { return __uint_as_float(i ? x & 0xffff0000u : x << 16); };
    for (int lane = 0; lane < 32; lane++) {
        const EmuMma& m = *(const EmuMma*)lanes[lane];
        const int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 2; i++) {
            a[g][t + i] = half(m.a[0], i), a[g + 8][t + i] = half(m.a[1], i);
            a[g][t + 8 + i] = half(m.a[2], i), a[g + 8][t + 8 + i] = half(m.a[3], i);
            b[t + i][g] = half(m.b0, i), b[t + 8 + i][g] = half(m.b1, i);
            c[g][t + i] = m.c[i], c[g + 8][t + i] = m.c[2 + i];
        }
    }
    for (int row = 0; row < 16; row++) {
        emu_row lo = *(emu_row*)&c[row][0], hi = *(emu_row*)&c[row][4];
        for (int k = 0; k < 16; k++) {
            lo += *(emu_row*)&b[k][0] * a[row][k];
            hi += *(emu_row*)&b[k][4] * a[row][k];
        }
        *(emu_row*)&c[row][0] = lo, *(emu_row*)&c[row][4] = hi;
    }
    for (int lane = 0; lane < 32; lane++) {
        float* out = ((const EmuMma*)lanes[lane])->c;
        const int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 2; i++) out[i] = c[g][t + i], out[2 + i] = c[g + 8][t + i];
    }
}
static inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, EMU_HERE) {
    EmuMma mine = {c, a, b0, b1};
    emu::join_warp((uint64_t)(uintptr_t)&mine, EMU_AT("mma_bf16"), emu_mma);
}

// What a lane brings to ldmatrix: the address of its row, and where its part of the matrices goes.
struct EmuRows {
    const char* row;
    unsigned* r;
};
#define EMU_IN_SMEM(p)                                                                                              \
    if ((uintptr_t)(p) - (uintptr_t)SMEM > (uintptr_t)emu::launch->smem - 16 || emu::launch->smem < 16)             \
    EMU_FAIL("%s of 16 bytes at %lld of %u bytes of shared memory", __func__, (long long)((const char*)(p) - SMEM), \
             emu::launch->smem)
static inline void ldmatrix_x4(unsigned (&r)[4], const void* row, EMU_HERE) {
    EMU_ALIGNED(row, 16);
    EMU_IN_SMEM(row);
    EmuRows mine = {(const char*)row, r};
    emu::join_warp((uint64_t)(uintptr_t)&mine, EMU_AT("ldmatrix_x4"), [](const uint64_t* lanes) {
        for (int lane = 0; lane < 32; lane++)
            for (int m = 0; m < 4; m++)
                memcpy(&((EmuRows*)lanes[lane])->r[m], ((EmuRows*)lanes[m * 8 + lane / 4])->row + lane % 4 * 4, 4);
    });
}
static inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, EMU_HERE) {
    EMU_ALIGNED(row, 16);
    EMU_IN_SMEM(row);
    EmuRows mine = {(const char*)row, r};
    emu::join_warp((uint64_t)(uintptr_t)&mine, EMU_AT("ldmatrix_x4_trans"), [](const uint64_t* lanes) {
        for (int lane = 0; lane < 32; lane++)
            for (int m = 0; m < 4; m++)
                for (int i = 0; i < 2; i++)
                    memcpy((char*)&((EmuRows*)lanes[lane])->r[m] + i * 2,
                           ((EmuRows*)lanes[m * 8 + lane % 4 * 2 + i])->row + lane / 4 * 2, 2);
    });
}

// The bytes come at the wait. Until then the target is NaN.
static inline void cp_async16(void* to, const void* from) {
    EMU_ALIGNED(to, 16);
    EMU_ALIGNED(from, 16);
    EMU_IN_SMEM(to);
    memset(to, 0xff, 16);
    emu::self->copies.push_back({to, from, emu::self->groups});
}
static inline void cp_async16_or_zero(void* to, const void* from, bool copy) {
    alignas(16) static const char zeros[16] = {};
    cp_async16(to, copy ? from : zeros);
}
static inline void cp_async_commit() { emu::self->groups++; }
template <int PENDING> static inline void cp_async_wait() {
    auto& copies = emu::self->copies;
    size_t done = 0;
    while (done < copies.size() && copies[done].group + PENDING < emu::self->groups) {
        memcpy(copies[done].to, copies[done].from, 16);
        done++;
    }
    copies.erase(copies.begin(), copies.begin() + done);
}

// A barrier in shared memory: arrivals of a phase, those missing, and the bytes announced that have not come.
struct EmuBarrier {
    uint8_t count, missing, phase, made;
    int32_t bytes;
};
#define EMU_BARRIER(p)                          \
    EMU_ALIGNED(p, 8);                          \
    EmuBarrier& b = *(EmuBarrier*)(p);          \
    if (b.made != 0x5a || b.phase > 1) EMU_FAIL("%s of a barrier that nobody initialised", __func__)
static inline void emu_settle(EmuBarrier& b) {
    if (b.missing || b.bytes) return;
    b.phase ^= 1, b.missing = b.count;
    emu::launch->idle = 0;
}
static inline void mbarrier_init(unsigned long long* barrier, unsigned arrivals) {
    EMU_ALIGNED(barrier, 8);
    const uint8_t n = (uint8_t)arrivals;
    EmuBarrier fresh = {n, n, 0, 0x5a, 0};
    memcpy(barrier, &fresh, 8);
}
static inline void mbarrier_fence() {}
static inline void mbarrier_expect(unsigned long long* barrier, unsigned bytes) {
    EMU_BARRIER(barrier);
    if (!b.missing) EMU_FAIL("arrives at a barrier of %u, where all have arrived", b.count);
    b.missing--, b.bytes += (int)bytes;
    emu_settle(b);
}
static inline void mbarrier_arrive(unsigned long long* barrier) { mbarrier_expect(barrier, 0); }
// The bytes come when somebody waits for them. Until then the target is NaN.
static inline void bulk_copy(void* to, const void* from, unsigned bytes, unsigned long long* barrier) {
    EMU_ALIGNED(to, 16);
    EMU_ALIGNED(from, 16);
    EMU_IN_SMEM(to);
    EMU_IN_SMEM((char*)to + bytes - 16);
    if (bytes == 0 || bytes % 16) EMU_FAIL("bulk_copy of %u bytes, which is no multiple of 16", bytes);
    memset(to, 0xff, bytes);
    emu::self->block->bulk.push_back({to, from, bytes, barrier});
}
static inline void mbarrier_wait(unsigned long long* barrier, unsigned parity) {
    EMU_BARRIER(barrier);
    auto& bulk = emu::self->block->bulk;
    while (b.phase == parity) {
        for (size_t i = 0; i < bulk.size();) {
            if (bulk[i].barrier != barrier) {
                i++;
                continue;
            }
            memcpy(bulk[i].to, bulk[i].from, bulk[i].bytes);
            b.bytes -= (int)bulk[i].bytes;
            bulk.erase(bulk.begin() + (long)i);
        }
        emu_settle(b);
        if (b.phase == parity) emu::give_way();
    }
}

static inline void prefetch_l2(const void*) {}
static inline void launch_dependents() {}
static inline void wait_for_previous() { emu::self->block->waited = true; }
static inline void relax() { emu::give_way(); }
static inline unsigned load_acquire(const unsigned* p) {
    emu::give_way(); // it stands in a loop, as a rule
    return *(const volatile unsigned*)p;
}
static inline void add_release(unsigned* p) { ++*p; }
static inline unsigned long long global_timer() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (unsigned long long)t.tv_sec * 1000000000u + t.tv_nsec;
}
