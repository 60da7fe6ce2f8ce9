// packed: FP8 and NVFP4 weights as they lie in device memory, and how a lane turns its bytes into operands.
//
//   A matrix is tiles of 8 outputs, one after the other; a tile is blocks of 128 inputs; a block is the scales of its
//   outputs, then two units of 64 inputs; a unit is two halves; a half is the codes of lane 0, lane 1, … of the warp that
//   multiplies it. Lane 4 g + t has output g and of the unit inputs 16 t … 16 t + 7 in the first half, the next eight in the
//   second. Outputs and inputs are filled up with zeros.
//
//   Fp8     block [8] f32 scales, [unit][half][lane][8] e4m3              1056 bytes, 8.25 bits a weight
//           W[n, k] = code · scale: sums of a half are multiplied by the scale of their output
//   Nvfp4   block [unit][8][4] scales of 16 inputs, [unit][half][lane][4 bytes] of e2m1       576 bytes, 4.5 bits
//           W[n, k] = code · scale · factor[n]: code · scale is exact in bf16; behind the tiles, factor as f32 [outputs]
//
// A code becomes bf16 by moving its sign, exponent and mantissa to where bf16 has them, which is exact for subnormal codes
// too and off by a power of two; a product with that power of two, or with it and the scale, is exact again. The order of
// codes in a word is such that few instructions do it. A scale of Nvfp4 has lost its sign to its codes and is normal: five
// bits of exponent, three of mantissa; codes under a scale of zero are zero. No code or scale is NaN. The host sees to it.
#pragma once
#include "common.cuh"

// bf16 pieces, [N, PIECES · KP]: what linear.cuh says.
template <int PIECES_> struct Bf16 {
    static constexpr int PIECES = PIECES_;
    static constexpr bool PACKED = false, SCALED_SUMS = false, FACTORS = false;
    static constexpr int BLOCK = 0;  // bytes
};

struct Fp8 {
    static constexpr int PIECES = 1;
    static constexpr bool PACKED = true, SCALED_SUMS = true, FACTORS = false;
    static constexpr int BLOCK = 8 * 4 + 8 * 128;

    // Eight weights of this lane, two to a word, from a unit of a block; and the scales of the two outputs whose sums the
    // lane has. The bytes of a word of codes are of inputs 2, 0, 3, 1.
    __device__ __forceinline__ static void operands(const char* block, int unit, int half, u32 (&w)[4], float2& scale) {
        int lane = threadIdx.x & 31;
        uint2 codes = *(const uint2*)(block + 32 + unit * 512 + half * 256 + lane * 8);
        scale = *(const float2*)(block + (lane & 3) * 8);
        w[0] = widen(codes.x, codes.x >> 4), w[1] = widen(codes.x << 8, codes.x << 4);
        w[2] = widen(codes.y, codes.y >> 4), w[3] = widen(codes.y << 8, codes.y << 4);
    }
    __device__ __forceinline__ static u32 widen(u32 sign, u32 size) {
        return mul_bf16((sign & 0x80008000u) | (size & 0x07f007f0u), 0x7b807b80u); // 2^120
    }
};

struct Nvfp4 {
    static constexpr int PIECES = 1;
    static constexpr bool PACKED = true, SCALED_SUMS = false, FACTORS = true;
    static constexpr int BLOCK = 8 * 8 + 8 * 64;

    // The same. A half of a word of codes has four inputs: signs of 0, 2, 3, 1, then exponents and mantissas of 3, 0, 1, 2;
    // the lower half has the even inputs.
    __device__ __forceinline__ static void operands(const char* block, int unit, int half, u32 (&w)[4], float2&) {
        constexpr u32 SIGN = 0x80008000u, SIZE = 0x01c001c0u;
        int lane = threadIdx.x & 31;
        u32 x = *(const u32*)(block + 64 + unit * 256 + half * 128 + lane * 4);
        u32 scale = *(const u8*)(block + unit * 32 + lane) * 0x00100010u + 0x76007600u; // · 2^118, twice
        w[0] = mul_bf16(x & (SIGN | SIZE), scale);
        w[1] = mul_bf16(x << 3 & (SIGN | SIZE), scale);
        w[2] = mul_bf16((x << 1 & SIGN) | (x << 6 & SIZE), scale);
        w[3] = mul_bf16((x << 2 & SIGN) | (x >> 3 & SIZE), scale);
    }
};
