// weights: how the 8 outputs × 64 inputs of a unit lie in memory, and how a lane turns its bytes into operands of mma.
//
//   Bf16<PIECES>  [2 halves][8 outputs][32 inputs] of bf16, 1,024 bytes: a matrix is [N / 8, PIECES · KP / 32, 8, 32]. A
//                 weight of more than 8 bits of mantissa is the sum of PIECES bf16 pieces; a tile holds all its units of
//                 the first piece, then those of the second
//   Fp8, Nvfp4    codes and scales: packed.cuh
//
// Outputs are filled up to 8 with zeros, inputs to GRAIN · 64 (KP). Lane 4 g + t has output g and, of each half, 8 inputs.
#pragma once
#include "common.cuh"

template <int PIECES_> struct Bf16 {
    static constexpr int PIECES = PIECES_;
    static constexpr int UNIT = 1024; // bytes
    static constexpr int GRAIN = 1;   // units that are not torn apart
    static constexpr int TILES = 1;   // of a stage, one row
    static constexpr int ROUNDS = 1;  // of a stage, several rows
    static constexpr bool SCALED_SUMS = false; // of a half, each of its own scale
    static constexpr bool FACTORS = false;     // of outputs

    // The lane's eight weights of half 0 or 1 of unit `unit` of a strip, two to a word.
    __device__ __forceinline__ static uint4 operands(const char* strip, int unit, int half) {
        return *(const uint4*)(strip + unit * UNIT + half * 512 + (threadIdx.x & 31) * 16);
    }
    // Of the two outputs whose sums the lane has.
    __device__ __forceinline__ static float2 scales(const char*, int) { return make_float2(1, 1); }
    __device__ __forceinline__ static float scale(const char*, int, int) { return 1; } // of an output
    // The input of the unit that the first of them belongs to.
    __device__ __forceinline__ static int input(int half) { return half * 32 + (threadIdx.x & 3) * 8; }
};
