// common: what every kernel uses. Plain CUDA C++, no toolkit headers; NVRTC knows the vector types and the maths functions.
//
// Each helper that is PTX here has a body in emulate.h too, so that a host compiler can run the same kernels
// (CUTE_EMULATED). All offsets are 64 bits wide.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define WARP 32
#define FULL 0xffffffffu
#define INF __uint_as_float(0x7f800000u)
#define NOT_A_NUMBER __uint_as_float(0x7fffffffu)

#ifndef CUTE_EMULATED

// Dynamic shared memory of the block.
extern __shared__ float4 cute_smem_[];
#define SMEM ((char*)cute_smem_)
// Names a kernel to the emulator; nothing to do here.
#define EXPORT(name)

// 16 bytes of a weight: read once, so not kept in L1.
__device__ __forceinline__ uint4 load_weight(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
// 16 bytes written by another block: past L1.
__device__ __forceinline__ uint4 load_l2(const void* p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ float load_l2(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
// Two floats rounded to nearest even: `lo` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float lo, float hi) {
    u32 v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(hi), "f"(lo));
    return v;
}
// Two floats to e4m3, saturating: `lo` in the lower byte.
__device__ __forceinline__ u16 pack_e4m3(float lo, float hi) {
    u16 v;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(v) : "f"(hi), "f"(lo));
    return v;
}
// Products of two pairs, rounded to nearest even; subnormal numbers are numbers.
__device__ __forceinline__ u32 mul_bf16(u32 a, u32 b) {
    u32 v;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}
// Two e4m3 to f16x2, exact.
__device__ __forceinline__ u32 unpack_e4m3(u16 x) {
    u32 v;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(v) : "h"(x));
    return v;
}
__device__ __forceinline__ float f16_to_f32(u16 x) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(x));
    return v;
}
// 2^x to 2 units in the last place, 0 where that is below 2^-126.
__device__ __forceinline__ float exp2_approx(float x) {
    float v;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}
// c += a b for bf16 operands: a is 16 × 16, b 16 × 8, c 16 × 8, spread over the warp as PTX says.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four 8 × 8 matrices of 2-byte elements from shared memory. Lane 8 m + i has the address of row i of matrix m (16 bytes);
// r[m] of lane 4 i + j is the pair 2j, 2j + 1 of row i of matrix m.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
}
// The same, each matrix transposed: r[m] of lane 4 i + j is the pair of rows 2j, 2j + 1 in column i of matrix m.
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
}
// 16 bytes from global to shared memory, some time before the wait for their group.
__device__ __forceinline__ void cp_async16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
// The same, or zeros: then `from`, which must be a valid address, is not read.
__device__ __forceinline__ void cp_async16_or_zero(void* to, const void* from, bool copy) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(copy ? 16 : 0) : "memory");
}
// Ends a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last PENDING groups of this thread have come; others see them after a barrier.
template <int PENDING> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
// Barriers in shared memory. A phase of one ends with the last of its `arrivals` and with the last byte that was announced
// to it; phases have parity 0, 1, 0, ….
__device__ __forceinline__ void mbarrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"((u32)__cvta_generic_to_shared(barrier)), "r"(arrivals) : "memory");
}
// Makes this thread's barriers known to the copies; other threads see them after __syncthreads.
__device__ __forceinline__ void mbarrier_fence() {
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"((u32)__cvta_generic_to_shared(barrier)) : "memory");
}
// Arrives and announces `bytes` of copies.
__device__ __forceinline__ void mbarrier_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"((u32)__cvta_generic_to_shared(barrier)), "r"(bytes)
                 : "memory");
}
// Waits for the end of the phase of this parity; at once when it is not the present one's.
__device__ __forceinline__ void mbarrier_wait(u64* barrier, u32 parity) {
    u32 at = (u32)__cvta_generic_to_shared(barrier), over = 0;
    while (!over)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(over) : "r"(at), "r"(parity) : "memory");
}
// `bytes` from global to shared memory, both addresses and the number multiples of 16; `barrier` learns of their arrival.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     (u32)__cvta_generic_to_shared(to)), "l"(from), "r"(bytes), "r"((u32)__cvta_generic_to_shared(barrier))
                 : "memory");
}
// Brings a line to L2, some time before it is read.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// Lets the next kernel of the stream start its independent part.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }
// Waits until the kernels before this one have ended and their writes are visible.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ u32 load_acquire(const u32* p) {
    u32 v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
// One more at p, after all that this thread has written or seen written.
__device__ __forceinline__ void add_release(u32* p) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}
__device__ __forceinline__ u64 global_timer() {
    u64 t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}
// What a loop that waits for another block does between looks.
__device__ __forceinline__ void relax() {}

#endif

// The same for `bytes` of constants, by the first threads of a block.
__device__ __forceinline__ void prefetch_l2(const void* p, u32 bytes) {
    for (u32 i = threadIdx.x * 128; i < bytes; i += blockDim.x * 128) prefetch_l2((const char*)p + i);
}

__device__ __forceinline__ float bf16_lo(u32 x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float bf16_hi(u32 x) { return __uint_as_float(x & 0xffff0000u); }
// a and b as sums of two bf16 each, packed: 16 bits of each are kept.
__device__ __forceinline__ void split_bf16(float a, float b, u32& hi, u32& lo) {
    hi = pack_bf16(a, b);
    lo = pack_bf16(a - bf16_lo(hi), b - bf16_hi(hi));
}

// Sum over the warp, the same tree in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(FULL, x, o);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        float y = __shfl_xor_sync(FULL, x, o);
        x = (y > x || y != y) ? y : x; // a NaN must reach the output
    }
    return x;
}
// Sum over a block of THREADS threads; `scratch` holds THREADS / 32 floats. Two barriers.
template <int THREADS> __device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) sum += scratch[i];
    __syncthreads();
    return sum;
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }
// ln(1 + e^x), linear above 20.
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// e^x with the bits of the host's `math::exp`: nothing fused, a NaN stays one.
__device__ __forceinline__ float host_exp(float x) {
    float c = x < -87.33f ? -87.33f : x > 88.72f ? 88.72f : x;
    float n = __fsub_rn(__fadd_rn(__fmul_rn(c, 1.44269504f), 12582912.0f), 12582912.0f);
    float r = __fsub_rn(__fsub_rn(c, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, -2.1219444e-4f));
    float p = 1.9875691e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3982e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    float y = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
    int i = __float2int_rz(n), half = i >> 1;
    y = __fmul_rn(__fmul_rn(y, __int_as_float((half + 127) << 23)), __int_as_float((i - half + 127) << 23));
    return x < -87.33f ? 0.0f : x > 88.72f ? INF : x != x ? x : y;
}

// Barrier of the whole grid. `count` grows by gridDim.x each time; `target` is where it stands after this block's last.
__device__ __forceinline__ void grid_barrier(u32* count, u32& target) {
    target += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) {
        add_release(count);
        while (load_acquire(count) < target) relax();
    }
    __syncthreads();
}
