// selftest: every word of common.cuh and of the warp, each kernel small enough to be checked against a loop on the host.
//
// One block of 32 threads unless a kernel says otherwise; `lane` is threadIdx.x.
#include "common.cuh"

// out [16, 32]: what 16 exchanges of `in` [32] give each lane.
extern "C" __global__ void selftest_warp(u32* out, const u32* in) {
    const u32 lane = threadIdx.x, x = in[lane];
    const float f = (float)(x & 0xffff);
    u32 r[16];
    r[0] = __shfl_xor_sync(FULL, x, 5);
    r[1] = __shfl_down_sync(FULL, x, 3);
    r[2] = __shfl_up_sync(FULL, x, 7);
    r[3] = __shfl_sync(FULL, x, 9);
    r[4] = __shfl_sync(FULL, x, (int)(lane * 7 + 3)); // modulo 32
    r[5] = __shfl_xor_sync(FULL, x, 12, 8);
    r[6] = __shfl_down_sync(FULL, x, 3, 8);
    r[7] = __shfl_up_sync(FULL, x, 3, 16);
    r[8] = __shfl_sync(FULL, x, 5, 4);
    r[9] = __float_as_uint(__shfl_xor_sync(FULL, f, 16));
    r[10] = (u32)__shfl_down_sync(FULL, -(int)lane, 31);
    r[11] = __ballot_sync(FULL, x & 1);
    r[12] = (u32)(__any_sync(FULL, lane == 31) + 2 * __any_sync(FULL, lane == 32));
    r[13] = (u32)(__all_sync(FULL, lane < 31) + 2 * __all_sync(FULL, lane < 32));
    r[14] = __float_as_uint(warp_sum(f));
    r[15] = __float_as_uint(warp_max(f));
    __syncwarp();
    for (int i = 0; i < 16; i++) out[i * 32 + lane] = r[i];
}

// Blocks of 256: bf16 and e4m3 of the pairs x [2 n], two of each packed.
extern "C" __global__ void selftest_pack(u32* bf16, u32* e4m3, const float* x, u32 n) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    bf16[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
    e4m3[i] = pack_e4m3(x[2 * i], x[2 * i + 1]);
}

// 256 blocks of 256: every pair of e4m3 codes to f16x2; every f16 to f32.
extern "C" __global__ void selftest_unpack(u32* f16, float* f32) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    f16[i] = unpack_e4m3((u16)i);
    f32[i] = f16_to_f32((u16)i);
}

// d [16, 8] = c [16, 8] + a [16, 16] b, b given as [8, 16]; a and b bf16, two to a word. a comes through ldmatrix.
extern "C" __global__ void selftest_mma(float* d, const float* c, const uint4* a, const u32* b) {
    const u32 lane = threadIdx.x, g = lane / 4, t = lane % 4;
    ((uint4*)SMEM)[lane] = load_weight(a + lane);
    __syncwarp();
    u32 fa[4];
    ldmatrix_x4(fa, SMEM + (lane % 16) * 32 + (lane / 16) * 16);
    float fc[4];
    for (u32 i = 0; i < 4; i++) fc[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    mma_bf16(fc, fa, b[g * 8 + t], b[g * 8 + t + 4]);
    for (u32 i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fc[i];
}

// out [2, 32, 4]: what ldmatrix_x4 and ldmatrix_x4_trans make of the 32 rows of 16 bytes of `in`, lane i bringing row
// (5 i) % 32.
extern "C" __global__ void selftest_ldmatrix(uint4* out, const uint4* in) {
    ((uint4*)SMEM)[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    u32 r[4];
    ldmatrix_x4(r, SMEM + threadIdx.x * 5 % 32 * 16);
    out[threadIdx.x] = make_uint4(r[0], r[1], r[2], r[3]);
    ldmatrix_x4_trans(r, SMEM + threadIdx.x * 5 % 32 * 16);
    out[32 + threadIdx.x] = make_uint4(r[0], r[1], r[2], r[3]);
}

// Copies n pieces of 32 × 16 bytes through a ring of 3 in shared memory, two copies ahead.
extern "C" __global__ void selftest_copy(uint4* out, const uint4* in, u32 n) {
    uint4* ring = (uint4*)SMEM;
    const u32 lane = threadIdx.x;
    for (u32 i = 0; i < 2; i++) {
        if (i < n) cp_async16(&ring[i * 32 + lane], &in[i * 32 + lane]);
        cp_async_commit();
    }
    for (u32 i = 0; i < n; i++) {
        cp_async_wait<1>();
        __syncthreads();
        out[i * 32 + lane] = ring[i % 3 * 32 + 31 - lane]; // another thread's
        if (i + 2 < n) cp_async16(&ring[(i + 2) % 3 * 32 + lane], &in[(i + 2) * 32 + lane]);
        cp_async_commit();
    }
}

// A block of 64: n pieces of 256 words through a ring of 2 in shared memory, by bulk copies of 512 bytes. The first warp
// asks for pieces, both take them, and tell it by the other barriers when they have.
extern "C" __global__ void selftest_bulk(u32* out, const u32* in, u32 n) {
    u64* full = (u64*)SMEM;
    u64* empty = full + 2;
    u32* ring = (u32*)(SMEM + 32);
    const u32 i = threadIdx.x;
    if (i == 0) {
        for (u32 s = 0; s < 2; s++) mbarrier_init(&full[s], 1), mbarrier_init(&empty[s], 2);
        mbarrier_fence();
    }
    __syncthreads();
    for (u32 piece = 0; piece < n + 2; piece++) {
        const u32 s = piece % 2;
        if (piece >= 2) {
            mbarrier_wait(&full[s], (piece - 2) / 2 % 2);
            for (u32 j = 0; j < 4; j++) out[(piece - 2) * 256 + j * 64 + i] = ring[s * 256 + j * 64 + i];
            __syncwarp();
            if (i % 32 == 0) mbarrier_arrive(&empty[s]);
        }
        if (piece >= n || i >= 32) continue;
        mbarrier_wait(&empty[s], piece / 2 % 2 ^ 1); // at once for the first two
        if (i == 0) mbarrier_expect(&full[s], 1024);
        if (i < 2) bulk_copy(ring + s * 256 + i * 128, in + piece * 256 + i * 128, 512, &full[s]);
    }
}

// Blocks of 256: the sum of each block's 256 values.
extern "C" __global__ void selftest_block_sum(float* out, const float* in) {
    const float sum = block_sum<256>(in[blockIdx.x * 256 + threadIdx.x], (float*)SMEM);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Blocks of 256, cooperative: in each round a block adds up what all blocks wrote in the round before.
// values [2, blocks], the first half given; after an even number of rounds the result is there again.
extern "C" __global__ void selftest_grid(u32* values, u32* count, u32 rounds) {
    u32 target = 0;
    for (u32 round = 0; round < rounds; round++) {
        u32 sum = 0;
        for (u32 b = 0; b < gridDim.x; b++) sum += load_acquire(&values[round % 2 * gridDim.x + b]) * (b + 1);
        if (threadIdx.x == 0) values[(round + 1) % 2 * gridDim.x + blockIdx.x] = sum + blockIdx.x;
        grid_barrier(count, target);
    }
}

// Blocks of 64: out [8], each cell changed by one kind of atomic operation.
extern "C" __global__ void selftest_atomics(u32* out, float* sum, u64* wide) {
    const u32 i = blockIdx.x * 64 + threadIdx.x;
    atomicAdd(&out[0], i);
    atomicMax(&out[1], i ^ 21);
    atomicMax((int*)&out[2], (int)i - 1000);
    atomicAdd((int*)&out[3], -1);
    if (atomicExch(&out[4], 1u) == 0) atomicAdd(&out[5], 1u);
    u32 seen = out[6], old;
    while ((old = atomicCAS(&out[6], seen, seen + 2)) != seen) seen = old;
    atomicAdd(sum, 0.5f);
    atomicAdd(&wide[0], 1ull << 32);
    atomicMax(&wide[1], (u64)i << 33);
}

// Blocks of 256: integers and functions of x [n]; out [8, n].
extern "C" __global__ void selftest_math(u32* out, const float* x, u32 n) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    const float v = x[i];
    out[0 * n + i] = (u32)__float2int_rn(v);
    out[1 * n + i] = __float_as_uint(rsqrtf(v));
    out[2 * n + i] = __float_as_uint(expf(v));
    out[3 * n + i] = __float_as_uint(softplus(v));
    out[4 * n + i] = __float_as_uint(silu(v));
    out[5 * n + i] = __float_as_uint(fmaf(v, v, -v));
    out[6 * n + i] = __float_as_uint(fmaxf(fminf(v, 2.0f), -2.0f));
    out[7 * n + i] = (u32)max(min((int)i, 100), 7);
}

EXPORT(selftest_warp)
EXPORT(selftest_pack)
EXPORT(selftest_unpack)
EXPORT(selftest_mma)
EXPORT(selftest_ldmatrix)
EXPORT(selftest_copy)
EXPORT(selftest_bulk)
EXPORT(selftest_block_sum)
EXPORT(selftest_grid)
EXPORT(selftest_atomics)
EXPORT(selftest_math)
