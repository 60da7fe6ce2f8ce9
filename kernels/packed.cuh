// packed: FP8 and NVFP4 weights as they lie in device memory, and how a lane turns its bytes into operands.
//
//   A matrix is tiles of 8 outputs, one after the other; a tile is blocks of 128 inputs; a block is the scales of its
//   outputs, then two units of 64 inputs, and in a stage it counts as two units of half its bytes. A unit is two halves; a
//   half is the codes of lane 0, lane 1, … of the warp that multiplies it. Lane 4 g + t has output g and of the unit inputs
//   16 t … 16 t + 7 in the first half, the next eight in the second. Outputs and inputs are filled up with zeros.
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
//
//   HEAD      bytes of a block before its codes
//   CODES     bytes of codes of a unit, behind those of the unit before
//   SCALES    bytes from a unit's scales to those of the next; 0: they have the same
#pragma once
#include "weights.cuh"

struct Fp8 {
    static constexpr int PIECES = 1, UNIT = 528, GRAIN = 2, TILES = 2, ROUNDS = 2, HEAD = 32, CODES = 512, SCALES = 0;
    static constexpr bool SCALED_SUMS = true, FACTORS = false;

    // The block that a unit of a strip lies in.
    __device__ __forceinline__ static const char* block(const char* strip, int unit) { return strip + unit / 2 * (2 * UNIT); }
    // A half of a word of codes has two inputs: the sign of the first, bits 6 to 4 of the second, its sign, the seven bits of
    // the first, bits 3 to 0 of the second. The lower half has the even inputs.
    __device__ __forceinline__ static uint4 operands(const char* strip, int unit, int half) {
        uint2 codes = *(const uint2*)(block(strip, unit) + HEAD + unit % 2 * CODES + half * 256 + (threadIdx.x & 31) * 8);
        return make_uint4(first(codes.x), second(codes.x), first(codes.y), second(codes.y));
    }
    __device__ __forceinline__ static float2 scales(const char* strip, int unit) {
        return *(const float2*)(block(strip, unit) + (threadIdx.x & 3) * 8);
    }
    __device__ __forceinline__ static float scale(const char* strip, int unit, int output) {
        return ((const float*)block(strip, unit))[output];
    }
    __device__ __forceinline__ static int input(int half) { return (threadIdx.x & 3) * 16 + half * 8; }
    __device__ __forceinline__ static u32 first(u32 x) { return widen(x & 0x87f087f0u); }
    __device__ __forceinline__ static u32 second(u32 x) { return widen((x << 4 & 0x80f080f0u) | (x >> 4 & 0x07000700u)); }
    __device__ __forceinline__ static u32 widen(u32 x) { return mul_bf16(x, 0x7b807b80u); } // 2^120
};

struct Nvfp4 {
    static constexpr int PIECES = 1, UNIT = 288, GRAIN = 2, TILES = 3, ROUNDS = 4, HEAD = 64, CODES = 256, SCALES = 32;
    static constexpr bool SCALED_SUMS = false, FACTORS = true;

    // A half of a word of codes has four inputs, the lower half the even ones. From bit 15 down, s for the sign and 2 to 0 for
    // exponent and mantissa of input a, b, c or d: sa d2 sd c2 c1 c0 sb a2 a1 a0 d1 d0 sc b2 b1 b0, where sc is the other half's.
    __device__ __forceinline__ static uint4 operands(const char* strip, int unit, int half) {
        constexpr u32 ALL = 0x81c081c0u;
        const char* block = strip + unit / 2 * (2 * UNIT);
        int lane = threadIdx.x & 31;
        u32 x = *(const u32*)(block + HEAD + unit % 2 * CODES + half * 128 + lane * 4);
        u32 scale = *(const u8*)(block + unit % 2 * SCALES + lane) * 0x00100010u + 0x76007600u; // · 2^118, twice
        return make_uint4(mul_bf16(x & ALL, scale), mul_bf16(x << 6 & ALL, scale), mul_bf16((x >> 4 | x << 28) & ALL, scale),
                          mul_bf16((x << 2 & 0x80c080c0u) | (x >> 6 & 0x01000100u), scale));
    }
    __device__ __forceinline__ static float2 scales(const char*, int) { return make_float2(1, 1); }
    __device__ __forceinline__ static float scale(const char*, int, int) { return 1; }
    __device__ __forceinline__ static int input(int half) { return (threadIdx.x & 3) * 16 + half * 8; }
};
