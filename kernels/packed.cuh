// packed: FP8 and NVFP4 weights as they lie in device memory, and how a lane turns its bytes into operands.
//
//   A matrix is tiles of 8 outputs, one after the other; a tile is blocks of 128 inputs; a block is the scales of its
//   outputs, then two units of 64 inputs; a unit is the codes of lane 0, lane 1, … of the warp that multiplies it. Lane
//   4 g + t has output g and inputs 16 t … 16 t + 15 of the unit. Outputs and inputs are filled up with zeros.
//
//   Fp8     block [8] f32 scales, [unit][lane][16] e4m3                       1056 bytes, 8.25 bits a weight
//           W[n, k] = code · scale: sums of a unit are multiplied by the scale of their output
//   Nvfp4   block [unit][8][4] e4m3 scales of 16 inputs, [unit][lane][8 bytes] of e2m1    576 bytes, 4.5 bits
//           W[n, k] = code · scale · factor[n]: code · scale is exact in bf16; after the tiles, factor as f32 [outputs]
//
// Scales of Nvfp4 are not negative, and no code or scale is NaN: the host sees to both. A code becomes bf16 by moving its
// sign, exponent and mantissa to where bf16 has them, which is exact for subnormal codes too and off by a power of two; a
// product with that power of two, or with it and the scale, is exact again. The order of codes in a word is such that few
// instructions do it.
#pragma once
#include "common.cuh"

// bf16 pieces, [N, PIECES · KP]: what linear.cuh says.
template <int PIECES_> struct Bf16 {
    static constexpr int PIECES = PIECES_;
    static constexpr bool PACKED = false, FACTORS = false;
    static constexpr int TILES = 1;   // of a stage, one row
    static constexpr int ROUNDS = 1;  // of a stage, several rows
    static constexpr int BLOCK = 0;
};

struct Fp8 {
    static constexpr int PIECES = 1;
    static constexpr bool PACKED = true, FACTORS = false, SCALED_SUMS = true;
    static constexpr int TILES = 2, ROUNDS = 2;
    static constexpr int BLOCK = 8 * 4 + 2 * WARP * 16; // bytes

    uint4 codes;
    float2 scale; // of the two outputs whose sums this lane has

    // This lane's part of unit 0 or 1 of a block.
    __device__ __forceinline__ void load(const char* block, int unit) {
        int lane = threadIdx.x & 31;
        codes = *(const uint4*)(block + 32 + unit * 512 + lane * 16);
        scale = *(const float2*)(block + (lane & 3) * 8);
    }
    // Half 0 or 1 of the lane's 16 inputs, two to a word. The bytes of a word of codes are of inputs 2, 0, 3, 1.
    __device__ __forceinline__ void operands(int half, u32 (&w)[4]) const {
        u32 x[2] = {half ? codes.z : codes.x, half ? codes.w : codes.y};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            w[2 * i] = widen(x[i], x[i] >> 4);
            w[2 * i + 1] = widen(x[i] << 8, x[i] << 4);
        }
    }
    __device__ __forceinline__ static u32 widen(u32 sign, u32 size) {
        return mul_bf16((sign & 0x80008000u) | (size & 0x07f007f0u), 0x7b807b80u); // 2^120
    }
};

struct Nvfp4 {
    static constexpr int PIECES = 1;
    static constexpr bool PACKED = true, FACTORS = true, SCALED_SUMS = false;
    static constexpr int TILES = 3, ROUNDS = 4;
    static constexpr int BLOCK = 2 * 8 * 4 + 2 * WARP * 8;

    uint2 codes;
    u32 scale; // · 2^118, twice

    __device__ __forceinline__ void load(const char* block, int unit) {
        int lane = threadIdx.x & 31;
        codes = *(const uint2*)(block + 64 + unit * 256 + lane * 8);
        u32 code = *(const u8*)(block + unit * 32 + lane);
        scale = mul_bf16(mul_bf16(code * 0x00100010u, 0x7b007b00u), 0x7b007b00u); // 2^119, twice
    }
    // A half of a word has four inputs: signs of 0, 2, 3, 1, then exponents and mantissas of 3, 0, 1, 2. The lower half
    // has the even inputs.
    __device__ __forceinline__ void operands(int half, u32 (&w)[4]) const {
        constexpr u32 SIGN = 0x80008000u, SIZE = 0x01c001c0u;
        u32 x = half ? codes.y : codes.x;
        w[0] = mul_bf16(x & (SIGN | SIZE), scale);
        w[1] = mul_bf16(x << 3 & (SIGN | SIZE), scale);
        w[2] = mul_bf16((x << 1 & SIGN) | (x << 6 & SIZE), scale);
        w[3] = mul_bf16((x << 2 & SIGN) | (x >> 3 & SIZE), scale);
    }
};
