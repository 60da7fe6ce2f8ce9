// unpack: packed weights as bf16, the operand of gemm, for a prompt's products.
//
//   out[n, k] = bf16(W[n, k])                                                   (nearest, ties to even)
//
// Shapes   W in tiles of WEIGHTS, as packed.cuh says, K inputs filled up · out in tiles of Bf16<1>, as wide
// Launch   grid blocks at will · block 256, overlapped; a warp a unit of a tile
// Traffic  W once, 16 · K bytes a tile
// Needs    -D WEIGHTS K: a multiple of 128. out does not overlap what the kernels before this one use
#include "packed.cuh"

extern "C" __global__ void __launch_bounds__(256) unpack(u16* out, const char* w, u32 tiles) {
    constexpr u32 UNITS = K / 64;
    const float* factors = (const float*)(w + (u64)tiles * UNITS * WEIGHTS::UNIT);
    u32 lane = threadIdx.x % 32, g = lane / 4;
    launch_dependents();
    wait_for_previous();
    for (u64 i = (u64)blockIdx.x * 8 + threadIdx.x / 32; i < (u64)tiles * UNITS; i += (u64)gridDim.x * 8) {
        u32 tile = (u32)(i / UNITS), unit = (u32)(i % UNITS);
        const char* at = w + (u64)tile * UNITS * WEIGHTS::UNIT;
        float scale = WEIGHTS::FACTORS ? factors[tile * 8 + g] : WEIGHTS::scale(at, unit, g);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 codes = WEIGHTS::operands(at, unit, half);
            u32 word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
            for (int j = 0; j < 4; j++) word[j] = pack_bf16(bf16_lo(word[j]) * scale, bf16_hi(word[j]) * scale);
            u32 k = unit * 64 + WEIGHTS::input(half);
            *(uint4*)(out + (u64)tile * 8 * K + k / 32 * 256 + g * 32 + k % 32) = make_uint4(word[0], word[1], word[2], word[3]);
        }
    }
}
EXPORT(unpack)
