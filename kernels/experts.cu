// experts: the products of routed experts, each expert's weights streamed once for up to ROWS rows that take it.
//
//   EPILOGUE 2   out[line] = silu(x Gᵀ) · (x Uᵀ), x = x[row_of[line]], [G; U] = W of the line's expert
//   EPILOGUE 0   out[line] = x[line] Wᵀ
//
//   shapes   see linear.cuh; expert e's W begins e · stride bytes behind w; items, row_of and count as in moe.cu: an item has
//            up to ROWS (1, 8 or 16) lines of one expert; rows below 65,536
//   launch   grid blocks at will, items / 8 or more: a block has an equal part of all tiles of all items, whatever their
//            number, which only the device knows; block 512, overlapped
//   traffic  W of the experts in the list once for each item, and no other's; x from L2
//   numbers  as linear.cuh: a line's bits depend neither on its item nor on the grid
//
// The list is there before the second product waits: the first lets it start only after its own wait for the list's kernel.
// So the second product's weights are asked for while the first one ends.
#include "linear.cuh"

extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 1)
experts(const char* w, const float* x, float* out, u64 stride, const uint4* items, const u32* row_of, const u32* count, u32 n,
        u32 ldx, u32 ldo) {
    constexpr bool FIRST = EPILOGUE == SWIGLU;
    using Op = Linear<WEIGHTS, INPUTS, ROWS, EPILOGUE, false, FIRST>;
    if (FIRST) wait_for_previous();
    launch_dependents();
    u32 tiles = (n + 7) / 8;
    u64 all = (u64)__ldcg(count) * tiles;
    u32 at = (u32)(all * blockIdx.x / gridDim.x), to = (u32)(all * (blockIdx.x + 1) / gridDim.x);
    // the block's first item, then one for each of its shares; kept behind those, as registers are short
    u32 first = at / tiles, &kept = *(u32*)(SMEM + Op::Stages::HEAD - 4);
    typename Op::Stages ring;
    ring.init();
    for (u32 i = first; at < to; i++) {
        LinearArgs a = {w + __ldcg(items + i).x * stride, x, out, nullptr, 0, 0, n, ldx, ldo};
        Share s = Op::share(a, 0, 1);
        u32 tile = at % tiles, here = min(tiles - tile, to - at);
        s.tile0 = tile;
        s.tiles = here * Op::V;
        s.at += (u64)tile * s.pitch;
        ring.add(s);
        at += here;
    }
    if (threadIdx.x == 0) kept = first;
    ring.start();
    if (!FIRST) wait_for_previous();
    Op op;
    u32 staged = 0xffffffffu; // the row of x in shared memory
#pragma unroll 1
    while (ring.taking < ring.shares()) {
        uint4 i = __ldcg(items + kept + ring.taking);
        LinearArgs a = {w + i.x * stride, x, out + (u64)i.y * ldo, nullptr, 0, i.z, n, ldx, ldo};
        if (!FIRST) {
            a.x += (u64)i.y * ldx;
        } else if (ROWS == 1) {
            u32 row = __ldcg(row_of + i.y);
            a.x += (u64)row * ldx;
            op.run(a, ring, SMEM + Op::Stages::BYTES, staged == row);
            staged = row;
            continue;
        } else {
            u32 last = i.z - 1, g = (threadIdx.x & 31) >> 2;
            a.at = __ldcg(row_of + i.y + min(g, last)) | __ldcg(row_of + i.y + min(g + 8, last)) << 16;
        }
        op.run(a, ring, SMEM + Op::Stages::BYTES);
    }
}
EXPORT(experts)
