// elementwise: the operations that only definitions use: x += y, silu(gate) · up, sums of slots, copies of rows, and a
// product over a part of the inputs.
//
//   shapes   f32 rows of the given leading dimension
//   launch   grid (columns / 256, rows), block 256, overlapped; partial: grid (outputs / 8, rows)
//   traffic  every operand once
#include "common.cuh"

#define COLUMN (blockIdx.x * 256 + threadIdx.x)

extern "C" __global__ void add(float* x, const float* y, u32 width, u32 ldx, u32 ldy) {
    launch_dependents();
    wait_for_previous();
    if (COLUMN < width) x[(u64)blockIdx.y * ldx + COLUMN] += y[(u64)blockIdx.y * ldy + COLUMN];
}
EXPORT(add)

extern "C" __global__ void swiglu(float* act, const float* gate_up, u32 width, u32 lda, u32 ldg) {
    launch_dependents();
    wait_for_previous();
    if (COLUMN >= width) return;
    const float* g = gate_up + (u64)blockIdx.y * ldg + COLUMN;
    act[(u64)blockIdx.y * lda + COLUMN] = silu(g[0]) * g[width];
}
EXPORT(swiglu)

extern "C" __global__ void gather(float* out, const float* slots, u32 count, u32 width, u32 ldo, u32 lds) {
    launch_dependents();
    wait_for_previous();
    if (COLUMN >= width) return;
    const float* s = slots + (u64)blockIdx.y * lds + COLUMN;
    float sum = s[0];
    for (u32 i = 1; i < count; i++) sum += s[(u64)i * width];
    out[(u64)blockIdx.y * ldo + COLUMN] = sum;
}
EXPORT(gather)

extern "C" __global__ void select_rows(float* out, const float* x, const u32* rows, u32 width, u32 ldo, u32 ldx) {
    launch_dependents();
    wait_for_previous();
    if (COLUMN < width) out[(u64)blockIdx.y * ldo + COLUMN] = x[(u64)rows[blockIdx.y] * ldx + COLUMN];
}
EXPORT(select_rows)

// out[row, o] += Σ x[row, k] w[o, k] over from ≤ k < to; a warp an output.
extern "C" __global__ void linear_partial(float* out, const float* x, const u16* w, u32 from, u32 to, u32 n, u32 pieces,
                                          u32 kp, u32 ldo, u32 ldx) {
    launch_dependents();
    wait_for_previous();
    u32 o = blockIdx.x * 8 + threadIdx.x / 32;
    if (o >= n) return;
    const u16* row = w + (u64)(o / 8) * pieces * kp * 8 + o % 8 * 32; // of tiles of Bf16<pieces>, as weights.cuh says
    x += (u64)blockIdx.y * ldx;
    float sum = 0;
    for (u32 k = from + threadIdx.x % 32; k < to; k += 32) {
        float weight = 0;
        for (u32 p = 0; p < pieces; p++) weight += __uint_as_float((u32)row[((u64)p * kp + k) / 32 * 256 + k % 32] << 16);
        sum += x[k] * weight;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) out[(u64)blockIdx.y * ldo + o] += sum;
}
EXPORT(linear_partial)

// Sets *flag when any of the `n` words is not `word`.
extern "C" __global__ void any_other(u32* flag, const u32* words, u64 n, u32 word) {
    u32 bits = 0;
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < n; i += (u64)gridDim.x * 256) bits |= words[i] ^ word;
    if (bits) atomicExch(flag, 1u);
}
EXPORT(any_other)

__device__ __forceinline__ u32 hash(u64 i, u32 seed) {
    u32 h = (u32)i * 2654435761u ^ seed ^ (u32)(i >> 32) * 0x9e3779b9u;
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ h >> 16;
}

// Uniform bf16 weights in ±scale / 2, a hash of the index, in tiles of Bf16<1>; zero in the padding of `n` outputs and `k`
// inputs. `count` is all of them.
extern "C" __global__ void random_weights(u16* w, u64 count, u32 n, u32 k, u32 kp, float scale, u32 seed) {
    launch_dependents();
    wait_for_previous();
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < count; i += (u64)gridDim.x * 256) {
        bool inside = i / (8 * kp) * 8 + i / 32 % 8 < n && i / 256 % (kp / 32) * 32 + i % 32 < k;
        u32 h = hash(i, seed);
        w[i] = inside ? (u16)pack_bf16(((float)(h >> 8) / 16777216.0f - 0.5f) * scale, 0.0f) : (u16)0;
    }
}
EXPORT(random_weights)

// Packed weights in blocks of so many words, the first `head` of which are scales: bits of a hash that `scales` or `codes`
// leaves, and those of `scale`. What lies behind the first `n` words is `factor`.
extern "C" __global__ void random_packed(u32* w, u64 n, u64 all, u32 block, u32 head, u32 codes, u32 scales, u32 scale,
                                         float factor, u32 seed) {
    launch_dependents();
    wait_for_previous();
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < all; i += (u64)gridDim.x * 256) {
        u32 h = hash(i, seed);
        w[i] = i >= n ? __float_as_uint(factor) : i % block < head ? (h & scales) | scale : h & codes;
    }
}
EXPORT(random_packed)
