// ring: the weights of one product after another, on their way from memory through shared memory.
//
// A matrix lies in tiles of 8 outputs (the n of mma m16n8k16), and a tile in units of 64 inputs, which a warp multiplies at
// once: weights.cuh says how each format fills a unit. What a block reads of a product, its share, is whole tiles, or of each
// tile the same units; so it comes in long pieces, as DRAM likes it, each with one bulk copy. The copies keep 100 KB and more
// of an SM in flight, which registers cannot.
//
//   one row       a stage is WIDTH · TILES strips of 16 units, one of each tile, a unit for every warp; the slots are taken in turn,
//                 and warp s fills slot s
//   several rows  a stage is strips of 4 units, ROUNDS of each of RING tiles, and belongs to four warps, whose slot it lies
//                 in: x is read from L2 once for all tiles of the stage
//
// A kernel names all its products before it waits for anything. The ring does not stop between them: who has taken the last
// stage of one product asks for the first of the next, so memory stays busy while sums are added up, blocks wait for each other
// and inputs are fetched. A slot is refilled by a warp that took it, so __syncthreads keeps its meaning for all the phases of a
// cooperative kernel. More than half of an SM's shared memory is taken: one block an SM is resident, none gets two while
// another has none, and the next kernel's block starts where this one's has left.
//
// RING and WIDTH are the host's choice, by the device's shared memory: up to 10 slots for one row, or up to 5 of twice the size
// for packed weights, which cost more instructions a stage than bytes; 6, 4 or 2 tiles a stage for several.
#pragma once
#include "weights.cuh"

#define LINEAR_WARPS 16
#define LINEAR_THREADS (LINEAR_WARPS * 32)
// Lanes that say that their warp has left a slot. One is enough behind __syncwarp; compute-sanitizer's racecheck does not see
// that, so all of them do for it (CUTE_RACECHECK=1).
#ifdef RACECHECK
#define LEAVERS 32
#else
#define LEAVERS 1
#endif
#define MAX_SHARES 12 // of a kernel: eight slots of W_O on a device of one SM, and four more

// The next stage of a slot: its share, the first of its tiles of the matrix, its first strip's place among the tile's; and how
// often the slot has been filled.
struct alignas(16) Next {
    u32 share, tile, step, fills;
};

// What a block reads of a matrix.
struct Share {
    const char* at;    // its first tile, at its first unit
    u64 up;            // bytes from a tile of gate to that of up
    u32 pitch;         // bytes of a whole tile
    u32 tiles;         // of the matrix: for SwiGLU gate and up in turn, twice those of outputs
    u32 tile0;         // of outputs
    u32 unit0, units;  // of the inputs
    u32 unit_bytes;
    u32 steps;         // strips of a tile
    u32 swiglu;        // 1, else 0
    u32 group, shift;  // of a stage: tiles of the matrix, and 2^shift strips of each
    u32 far, farther;  // from a slot's stage to its next, one row: tiles, and strips of a tile
};

// The first bytes of shared memory: barriers, what comes next, how many shares there are, shares, slots.
template <int MAXROWS> struct Ring {
    static constexpr bool ONE = MAXROWS == 1;
    static constexpr int UNITS = ONE ? 16 : 4; // of a strip, a warp each
    static constexpr int SLOTS = ONE ? RING : 4;
    static constexpr int WIDTH = ONE ? RING_WIDTH : 1;
    static constexpr int SLOT = ONE ? WIDTH * 16 * 1056 : RING * 4 * 1152; // bytes, with room for the scales of packed weights
    static constexpr int HEAD = 1536;                              // bytes before the slots
    static constexpr int BYTES = HEAD + SLOTS * SLOT;
    static_assert(SLOTS >= 1 && SLOTS <= 16, "a warp fills one slot at most");
    static_assert(520 + MAX_SHARES * sizeof(Share) + 4 <= HEAD, "the shares fit, and a word behind them");

    u32 parity;     // bit s: of the next stage that this warp takes from slot s
    u32 taking;     // the share that is next to be taken
    int slot, last; // one row: the slot of the next stage, and the one's before

    __device__ __forceinline__ u64* full(int s) { return (u64*)SMEM + s; }
    __device__ __forceinline__ u64* empty(int s) { return (u64*)SMEM + 16 + s; }
    __device__ __forceinline__ Next& next_of(int s) { return ((Next*)(SMEM + 256))[s]; }
    __device__ __forceinline__ u32& shares() { return *(u32*)(SMEM + 512); }
    __device__ __forceinline__ Share& share(u32 i) { return ((Share*)(SMEM + 520))[i]; }
    __device__ __forceinline__ char* bytes(int s) { return SMEM + HEAD + s * SLOT; }
    __device__ __forceinline__ static int own() { return threadIdx.x / (ONE ? 32 : 128); }

    // By all threads, before anything else.
    __device__ __forceinline__ void init() {
        parity = taking = 0;
        slot = 0, last = -1;
        if (threadIdx.x == 0) {
#pragma unroll 1
            for (int s = 0; s < SLOTS; s++) {
                mbarrier_init(full(s), 1);
                mbarrier_init(empty(s), UNITS * LEAVERS);
                next_of(s) = {0, 0, (u32)s, 0};
            }
            mbarrier_fence();
            shares() = 0;
        }
    }
    // The next product's share, by all threads.
    __device__ __forceinline__ void add(const Share& s) {
        if (threadIdx.x == 0) share(shares()++) = s;
    }
    // All products are named: asks for the first stages.
    __device__ __forceinline__ void start() {
        __syncthreads();
        refill();
    }

    // Asks for the next stage of this warp's slot, if there is one, once all who take the last one have left. No division here:
    // the others wait for this warp.
    __device__ __forceinline__ void refill() {
        u32 lane = threadIdx.x & 31, s = own();
        if (s >= SLOTS || (!ONE && (threadIdx.x >> 5) % 4 != 0)) return;
        Next next = next_of(s);
        if (next.share == shares()) return;
        const Share* of = &share(next.share);
        while (next.step >= of->steps || next.tile >= of->tiles) {
            if (next.tile < of->tiles) { // the rest of these tiles is other slots'
                next.tile += of->group;
                next.step = ONE ? next.step - of->steps : s;
                continue;
            }
            // over the end: by some strips of the next product
            if (ONE) next.step += (next.tile - of->tiles) / of->group * of->steps;
            next.tile = 0;
            if (++next.share == shares()) {
                __syncwarp();
                if (lane == 0) next_of(s) = next;
                return;
            }
            of++;
        }
        u32 left = of->tiles - next.tile, tiles = left < of->group ? left : of->group, strips = 0;
        u32 shift = ONE ? 0 : of->shift, rounds = 1 << shift, round = lane & (rounds - 1), tile = lane >> shift;
        auto units = [&](u32 round) {
            u32 begin = (next.step + round * 4) * UNITS;
            return begin >= of->units ? 0 : (of->units - begin < UNITS ? of->units - begin : UNITS);
        };
        for (u32 r = 0; r < rounds; r++) strips += units(r);
        mbarrier_wait(empty(s), (next.fills & 1) ^ 1);
        if (lane == 0) mbarrier_expect(full(s), strips * tiles * of->unit_bytes);
        __syncwarp();
        if (tile < tiles && units(round)) {
            u32 at = next.tile + tile;
            const char* from = of->at + (u64)(at >> of->swiglu) * of->pitch + (at & of->swiglu) * of->up +
                               (u64)((next.step + round * 4) * UNITS) * of->unit_bytes;
            bulk_copy(bytes(s) + lane * (UNITS * of->unit_bytes), from, units(round) * of->unit_bytes, full(s));
        }
        if (ONE) next.tile += of->far, next.step += of->farther;
        else next.step += 4 * rounds;
        next.fills++;
        if (lane == 0) next_of(s) = next;
        __syncwarp();
    }
    // Until the stage in a slot has come.
    __device__ __forceinline__ void wait(int s) {
        mbarrier_wait(full(s), parity >> s & 1);
        parity ^= 1u << s;
    }
    // This warp has taken what it wants from the slot.
    __device__ __forceinline__ void leave(int s) {
        __syncwarp();
        if ((threadIdx.x & 31) < LEAVERS) mbarrier_arrive(empty(s));
    }
    // One row: this stage has been taken. The slot of the one before has been left by most by now, and is refilled.
    __device__ __forceinline__ void next() {
        if ((int)(threadIdx.x >> 5) == (SLOTS == 1 ? slot : last)) refill();
        last = slot;
        slot = slot + 1 == SLOTS ? 0 : slot + 1;
    }
};
