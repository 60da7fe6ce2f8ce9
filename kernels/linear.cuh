// linear: y = x Wᵀ for up to 16 rows of x, every SM streaming its share of W exactly once.
//
//   W   bf16 [N, PIECES · KP], KP = K rounded up to 32 with zeros; a weight of more than 8 bits of mantissa is stored
//       as the sum of PIECES bf16 pieces, one KP-wide block of the row for each; or packed, as packed.cuh says
//   x   f32 [M, ldx], every value split into bf16 hi + lo, so that a product keeps 16 bits of x
//   out f32
//
// The output rows are cut into tiles of 8 (the n of mma m16n8k16), whose rows are neighbours in memory; a block owns
// consecutive tiles. The inputs are cut into chunks of 32, and pair p of chunks (128 bytes of a row) belongs to warp
// p mod 16. With the k of a fragment permuted equally on both sides, a lane's 16 bytes, 8 weights of one row, are the B
// operands of two mma. x is the A operand: up to 8 rows take hi in rows 0–7 and lo in rows 8–15 of one mma; up to 16 rows
// take two. Either way a warp adds its pairs in ascending order, and an output is Σ over warps, ascending, of (hi chain +
// lo chain): its bits do not depend on the number of rows, on the row's place, on the grid, nor on the ring.
//
// Weights come through a ring in shared memory, by bulk copies of 2 KB (one row) or 512 bytes (several) of each row. Loads
// to registers touch 64 bytes of 8 rows each and come back for the other half of the line much later: that opens a page
// of DRAM for little. The copies also keep 100 KB and more of an SM in flight, which registers cannot.
//
//   one row       a stage is 1 tile × 16 pairs: a pair for every warp. x lies in shared memory.
//   several rows  a stage is 2 to 6 tiles × 4 pairs and belongs to four warps, whose slot of the ring it lies in: x is
//                 read from L2 once for all tiles of the stage.
//
// A row of a stage ends 64 bytes past a multiple of 128, so that 8 lanes (2 rows × 64 bytes) read all 32 banks. A stage's
// slot is refilled by those who took it, so __syncthreads keeps its meaning for all the phases of a cooperative kernel;
// the ring outlives a product, and the next product's first stages are asked for before the barrier (or, between kernels,
// before griddepcontrol.wait). More than half of an SM's shared memory is taken: one block an SM is resident, none
// gets two while another has none, and the next kernel's block starts where this one's has left.
//
// Packed weights take the same way: a pair of chunks is a unit, tiles are copied whole, and a stage of as many bytes holds
// more tiles (one row) or more rounds of the four warps (several). Which warp adds which inputs is as above.
//
// RING is the host's choice, by the device's shared memory: 10, 8, 4, 2 or 1 slots for one row; 6, 4 or 2 tiles a stage
// for several.
#pragma once
#include "packed.cuh"

enum Epilogue { STORE = 0, ADD = 1, SWIGLU = 2 };

struct LinearArgs {
    const char* w;   // of N or 2N outputs
    const float* x;  // [rows, ldx], zero beyond K
    float* out;      // [rows, ldo]
    const float* norm; // [K], zero-centred, when NORMED
    float eps;
    u32 rows, n, ldx, ldo;
};

#define LINEAR_WARPS 16
#define LINEAR_THREADS (LINEAR_WARPS * 32)

// The stages on their way from memory, in the first BYTES of shared memory. What a thread knows of them is about the slots
// that its warp fills and takes.
template <int MAXROWS> struct Ring {
    static constexpr bool ONE = MAXROWS == 1;
    static constexpr int TILES = ONE ? 1 : RING;   // of a stage of bf16
    static constexpr int PAIRS = ONE ? 16 : 4;     // of a stage, a warp each
    static constexpr int SLOTS = ONE ? RING : 4;
    static constexpr int PITCH = PAIRS * 128 + 64; // bytes between rows of a stage
    static constexpr int SLOT = TILES * 8 * PITCH;
    static constexpr int BARRIERS = 256; // bytes
    static constexpr int BYTES = BARRIERS + SLOTS * SLOT;
    static_assert(SLOTS >= 1 && SLOTS <= 16, "a warp fills one slot at most");

    char* at;
    u32 parity; // bit s: of the next stage to be taken from slot s
    u32 fills;  // of this warp's slot, so far

    __device__ __forceinline__ u64* full(int slot) { return (u64*)at + slot; }
    __device__ __forceinline__ u64* empty(int slot) { return (u64*)at + 16 + slot; }
    __device__ __forceinline__ char* stage(int slot) { return at + BARRIERS + slot * SLOT; }

    // By all threads, before anything else.
    __device__ __forceinline__ void init(char* smem) {
        at = smem;
        parity = fills = 0;
        if (threadIdx.x == 0) {
#pragma unroll 1
            for (int s = 0; s < SLOTS; s++) {
                mbarrier_init(full(s), 1);
                mbarrier_init(empty(s), PAIRS);
            }
            mbarrier_fence();
        }
        __syncthreads();
    }
    __device__ __forceinline__ void wait(int slot) {
        mbarrier_wait(full(slot), parity >> slot & 1);
        parity ^= 1u << slot;
    }
    // This warp has taken what it wants from the slot.
    __device__ __forceinline__ void leave(int slot) {
        __syncwarp();
        if ((threadIdx.x & 31) == 0) mbarrier_arrive(empty(slot));
    }
};

template <class W, int K, int MAXROWS, int EPI, bool NORMED> struct Linear {
    typedef Ring<MAXROWS> Stages;
    static constexpr bool ONE = Stages::ONE;
    static constexpr int XP = (K + 31) / 32 * 32;          // of x
    static constexpr int KP = W::PACKED ? (K + 127) / 128 * 128 : XP;
    static constexpr int CHUNKS = W::PIECES * KP / 32;     // of 32 inputs
    static constexpr int GRAIN = W::PACKED ? 4 : 2;        // chunks that are not torn apart
    static constexpr int V = EPI == SWIGLU ? 2 : 1;        // tiles of W for a tile of outputs: gate, then up
    static constexpr int RUN = Stages::PAIRS / 2 * W::BLOCK; // bytes of a tile's packed weights that a round of warps takes
    static constexpr int WIDE = MAXROWS > 8 && W::SCALED_SUMS && RING > 4 ? 4 : RING; // as registers allow
    static constexpr int T = !ONE ? WIDE : W::PACKED ? Stages::SLOT / (RUN + !RUN) : 1; // tiles of W with sums in registers
    static constexpr int ROUNDS = ONE || !W::PACKED ? 1 : Stages::SLOT / (T * RUN + !RUN); // in a stage
    static constexpr int P = ONE ? 8 / T * T : 2;          // tiles of W with sums in shared memory
    static constexpr int ACC = MAXROWS > 8 ? 8 : 4;
    static constexpr int PART = P * LINEAR_WARPS * 8 * MAXROWS; // floats
    static constexpr int XBYTES = ONE ? KP * 4 : 0;
    static constexpr int SMEM_BYTES = XBYTES + PART * 4 + LINEAR_WARPS * 4; // beside the ring
    static_assert(T * ROUNDS * RUN <= Stages::SLOT, "a stage of packed weights fits a slot");
    static_assert(P % V == 0, "gate and up are reduced together");

    int tile0, tiles;   // of this block, tiles of outputs
    int chunk0, chunks; // of the inputs' slot
    int steps;          // stages along the inputs
    int fill;           // the next stage of this warp's slot of the ring

    // The first stages of block `b` of `blocks`, for the pairs of slot `slot` of `slots`: nothing here depends on x.
    __device__ __forceinline__ void start(const LinearArgs& a, Stages& ring, int b, int blocks, int slot = 0, int slots = 1) {
        constexpr int ALL = (CHUNKS + GRAIN - 1) / GRAIN;
        int warp = threadIdx.x >> 5, all = (a.n + 7) / 8, end = ALL * (slot + 1) / slots * GRAIN;
        tile0 = (int)((i64)all * b / blocks);
        tiles = (int)((i64)all * (b + 1) / blocks) - tile0;
        chunk0 = ALL * slot / slots * GRAIN;
        chunks = (end < CHUNKS ? end : CHUNKS) - chunk0;
        steps = (chunks + 2 * Stages::PAIRS - 1) / (2 * Stages::PAIRS);
        fill = ONE ? warp : 0;
        refill(a, ring);
    }
    // This warp's slot of the ring. One row: the warps take all stages, from slots in turn, and warp s fills slot s.
    // Several rows: four warps fill and take their own slot.
    __device__ __forceinline__ static int slot_of_warp() { return threadIdx.x / (ONE ? 32 : 128); }
    // With several rows, how many stages of one group of tiles belong to this warp: of every fourth step, ROUNDS a stage.
    __device__ __forceinline__ int turns() const { return ((steps - slot_of_warp() + 3) / 4 + ROUNDS - 1) / ROUNDS; }

    // Asks for the next stage of this warp's slot, if there is one, once all who take the last one have left.
    __device__ __forceinline__ void refill(const LinearArgs& a, Stages& ring) {
        int lane = threadIdx.x & 31, own = slot_of_warp(), per = ONE ? steps : turns();
        if (per == 0 || own >= Stages::SLOTS) return;
        int unit = fill / per, step = ONE ? fill % per : own + 4 * ROUNDS * (fill % per);
        int chunk = step * 2 * Stages::PAIRS, left = tiles * V - unit * T;
        if (left <= 0) return;
        if constexpr (W::PACKED) {
            refill_packed(a, ring, own, unit * T, left < T ? left : T, chunk);
            return;
        }
        u32 bytes = (chunks - chunk < 2 * Stages::PAIRS ? chunks - chunk : 2 * Stages::PAIRS) * 64;
        int rows = (left < T ? left : T) * 8; // of W
        int row = ONE ? lane : lane * 4 + (threadIdx.x >> 5) % 4;
        mbarrier_wait(ring.empty(own), (ring.fills & 1) ^ 1);
        if (row == 0) mbarrier_expect(ring.full(own), rows * bytes);
        __syncwarp();
        if (row < rows) {
            int tile = unit * T + row / 8;
            u32 o = (tile0 + tile / V) * 8 + row % 8;
            o = (o < a.n ? o : a.n - 1) + (tile % V ? a.n : 0);
            bulk_copy(ring.stage(own) + row * Stages::PITCH, a.w + ((u64)o * (W::PIECES * KP) + (chunk0 + chunk) * 32) * 2,
                      bytes, ring.full(own));
        }
        fill += ONE ? Stages::SLOTS : 1;
        ring.fills++;
    }
    // The same for packed weights: `count` tiles of W from `first` on, a copy for each round of each.
    __device__ __forceinline__ void refill_packed(const LinearArgs& a, Stages& ring, int own, int first, int count, int chunk) {
        constexpr int FAR = 8 * Stages::PAIRS; // chunks between a stage's rounds: four slots' worth
        int i = ONE ? threadIdx.x & 31 : (threadIdx.x & 31) * 4 + (threadIdx.x >> 5) % 4;
        auto blocks = [&](int round) { // that are left, of a round's
            int left = (chunks - chunk - round * FAR) / 4;
            return left < Stages::PAIRS / 2 ? (left > 0 ? left : 0) : Stages::PAIRS / 2;
        };
        mbarrier_wait(ring.empty(own), (ring.fills & 1) ^ 1);
        if (i == 0) {
            int all = 0;
#pragma unroll
            for (int r = 0; r < ROUNDS; r++) all += blocks(r);
            mbarrier_expect(ring.full(own), count * all * W::BLOCK);
        }
        __syncwarp();
        int tile = first + i / ROUNDS, round = i % ROUNDS;
        if (i < count * ROUNDS && blocks(round) > 0) {
            u64 of_w = tile0 + tile / V + tile % V * (a.n / 8), block = of_w * (KP / 128) + (chunk0 + chunk + round * FAR) / 4;
            bulk_copy(ring.stage(own) + i * RUN, a.w + block * W::BLOCK, blocks(round) * W::BLOCK, ring.full(own));
        }
        fill += ONE ? Stages::SLOTS : 1;
        ring.fills++;
    }

    // x to shared memory as bf16 hi and lo, normed on the way.
    __device__ __forceinline__ void stage(const LinearArgs& a, char* smem) {
        u16* hi = (u16*)smem;
        u16* lo = hi + KP;
        float* scratch = (float*)(smem + XBYTES) + PART;
        constexpr int STEPS = (KP / 4 + LINEAR_THREADS - 1) / LINEAR_THREADS;
        if (NORMED) {
            float4 x[STEPS];
            float sum = 0;
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                x[s] = i < XP ? *(const float4*)(a.x + i) : make_float4(0, 0, 0, 0);
                sum += x[s].x * x[s].x + x[s].y * x[s].y + x[s].z * x[s].z + x[s].w * x[s].w;
            }
            float r = rsqrtf(block_sum<LINEAR_THREADS>(sum, scratch) / K + a.eps);
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                if (i >= KP) continue;
                float4 w = i < XP ? *(const float4*)(a.norm + i) : make_float4(0, 0, 0, 0);
                split4(hi + i, lo + i, x[s].x * r * (1 + w.x), x[s].y * r * (1 + w.y), x[s].z * r * (1 + w.z),
                       x[s].w * r * (1 + w.w));
            }
        } else {
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                if (i >= KP) continue;
                float4 x = i < XP ? *(const float4*)(a.x + i) : make_float4(0, 0, 0, 0);
                split4(hi + i, lo + i, x.x, x.y, x.z, x.w);
            }
        }
        __syncthreads();
    }
    __device__ __forceinline__ static void split4(u16* hi, u16* lo, float a, float b, float c, float d) {
        uint2 h, l;
        split_bf16(a, b, h.x, l.x);
        split_bf16(c, d, h.y, l.y);
        *(uint2*)hi = h;
        *(uint2*)lo = l;
    }

    // Eight inputs of row `row` of x, as four words of hi and of lo: of a chunk, or of a half of a packed unit.
    __device__ __forceinline__ void inputs(const LinearArgs& a, const char* smem, int chunk, u32 row, uint4& hi, uint4& lo) {
        int k = (W::PIECES == 1 ? chunk : chunk % (KP / 32)) * 32 + (threadIdx.x & 3) * 8;
        if (W::PACKED) k = chunk / 2 * 64 + (threadIdx.x & 3) * 16 + chunk % 2 * 8;
        hi = lo = make_uint4(0, 0, 0, 0);
        if (row >= a.rows || (KP > XP && k >= XP)) return;
        if (ONE) {
            hi = *(const uint4*)((const u16*)smem + k);
            lo = *(const uint4*)((const u16*)smem + KP + k);
        } else {
            const float* x = a.x + (u64)row * a.ldx + k;
            float4 p = *(const float4*)x, q = *(const float4*)(x + 4);
            split_bf16(p.x, p.y, hi.x, lo.x);
            split_bf16(p.z, p.w, hi.y, lo.y);
            split_bf16(q.x, q.y, hi.z, lo.z);
            split_bf16(q.z, q.w, hi.w, lo.w);
        }
    }

    // The operands of this lane for tile `j` of a stage: a half of its pair of chunks, of a round.
    __device__ __forceinline__ static void operands(const char* stage, int j, int round, int half, u32 (&b)[4], float2& scale) {
        int pair = (threadIdx.x >> 5) % Stages::PAIRS, g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
        if constexpr (W::PACKED) {
            W::operands(stage + (j * ROUNDS + round) * RUN + pair / 2 * W::BLOCK, pair % 2, half, b, scale);
        } else {
            uint4 w = *(const uint4*)(stage + (j * 8 + g) * Stages::PITCH + pair * 128 + half * 64 + t * 16);
            b[0] = w.x, b[1] = w.y, b[2] = w.z, b[3] = w.w;
        }
    }
    // c += scale · (p, q) b
    __device__ __forceinline__ static void add(float (&c)[4], const u32 (&p)[4], const u32 (&q)[4], const u32 (&b)[4],
                                               float2 scale) {
        float sums[4] = {};
        float(&to)[4] = *(W::SCALED_SUMS ? &sums : &c);
        mma_bf16(to, p, b[0], b[1]);
        mma_bf16(to, q, b[2], b[3]);
        if (W::SCALED_SUMS) {
#pragma unroll
            for (int i = 0; i < 4; i++) c[i] = __fmaf_rn(sums[i], i % 2 ? scale.y : scale.x, c[i]);
        }
    }
    // `acc` gains the products of this warp's pairs of the stage in `slot`, which begins at chunk `first`.
    __device__ __forceinline__ void multiply(float (&acc)[T][ACC], const LinearArgs& a, Stages& ring, int slot, int first,
                                             const char* smem) {
        int g = (threadIdx.x & 31) >> 2;
        first += (threadIdx.x >> 5) % Stages::PAIRS * 2;
        constexpr int AT_ONCE = W::PACKED && MAXROWS != 8 ? 1 : 2 * ROUNDS; // halves, as registers allow
#pragma unroll AT_ONCE
        for (int i = 0; i < 2 * ROUNDS; i++) {
            int round = i / 2, half = i % 2, chunk = first + round * 8 * Stages::PAIRS + half;
            uint4 hi, lo, hi8, lo8;
            bool in = chunk < chunks;
            if (in) {
                inputs(a, smem, chunk0 + chunk, g, hi, lo);
                if (MAXROWS > 8) inputs(a, smem, chunk0 + chunk, g + 8, hi8, lo8);
            }
            if (i == 0) ring.wait(slot);
            if (!in) continue;
#pragma unroll
            for (int j = 0; j < T; j++) {
                u32 b[4];
                float2 scale;
                operands(ring.stage(slot), j, round, half, b, scale);
                if (MAXROWS <= 8) {
                    u32 p[4] = {hi.x, lo.x, hi.y, lo.y}, q[4] = {hi.z, lo.z, hi.w, lo.w};
                    add(*(float(*)[4]) & acc[j][0], p, q, b, scale);
                } else {
                    u32 p[4] = {hi.x, hi8.x, hi.y, hi8.y}, q[4] = {hi.z, hi8.z, hi.w, hi8.w};
                    u32 r[4] = {lo.x, lo8.x, lo.y, lo8.y}, s[4] = {lo.z, lo8.z, lo.w, lo8.w};
                    add(*(float(*)[4]) & acc[j][0], p, q, b, scale);
                    add(*(float(*)[4]) & acc[j][ACC - 4], r, s, b, scale);
                }
            }
        }
        ring.leave(slot);
    }

    // This warp's part of the outputs of one tile of W, [tile][warp][8 outputs][rows]; its sums start again.
    __device__ __forceinline__ void put(float* part, float (&acc)[ACC], int tile) {
        int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, n = (lane & 3) * 2;
        float* p = part + ((tile * LINEAR_WARPS + warp) * 8 + n) * MAXROWS + g;
        if (MAXROWS <= 8 && g < MAXROWS) {
            p[0] = acc[0] + acc[2];
            p[MAXROWS] = acc[1] + acc[3];
        } else if (MAXROWS > 8) {
            p[0] = acc[0] + acc[ACC - 4];
            p[MAXROWS] = acc[1] + acc[ACC - 3];
            p[8] = acc[2] + acc[ACC - 2];
            p[MAXROWS + 8] = acc[3] + acc[ACC - 1];
        }
#pragma unroll
        for (int i = 0; i < ACC; i++) acc[i] = 0;
    }
    __device__ __forceinline__ float total(const float* part, int tile, int n, int row) {
        float sum = 0;
#pragma unroll 4
        for (int w = 0; w < LINEAR_WARPS; w++) sum += part[((tile * LINEAR_WARPS + w) * 8 + n) * MAXROWS + row];
        return sum;
    }
    // What the sums of an output are multiplied with: 1, or what lies behind the tiles of W.
    __device__ __forceinline__ static float factor(const LinearArgs& a, u32 o) {
        if (!W::FACTORS) return 1;
        return ((const float*)(a.w + (u64)((a.n + 7) / 8 * V) * (KP / 128) * W::BLOCK))[o];
    }
    // Outputs of the P tiles of W in `part`, the first of which is the block's `first`.
    __device__ __forceinline__ void reduce(const LinearArgs& a, const float* part, int first) {
        __syncthreads();
        for (int i = threadIdx.x; i < P / V * 8 * MAXROWS; i += LINEAR_THREADS) {
            int row = i % MAXROWS, n = i / MAXROWS % 8, tile = i / MAXROWS / 8;
            u32 o = (tile0 + first / V + tile) * 8 + n;
            if (row >= a.rows || first / V + tile >= tiles || o >= a.n) continue;
            float y = __fmul_rn(total(part, tile * V, n, row), factor(a, o));
            if (EPI == SWIGLU) y = silu(y) * __fmul_rn(total(part, tile * V + V - 1, n, row), factor(a, a.n + o));
            float* out = a.out + (u64)row * a.ldo + o;
            *out = EPI == ADD ? *out + y : y;
        }
        __syncthreads();
    }

    // The product. `smem` holds SMEM_BYTES beside the ring; x may be read from here on.
    __device__ __forceinline__ void run(const LinearArgs& a, Stages& ring, char* smem) {
        int warp = threadIdx.x >> 5;
        float* part = (float*)(smem + XBYTES);
        float acc[T][ACC];
#pragma unroll
        for (int j = 0; j < T; j++)
#pragma unroll
            for (int i = 0; i < ACC; i++) acc[j][i] = 0;
        if (ONE) {
            stage(a, smem);
            int slot = 0, last = -1; // this stage's, and the one's before, which has been left by most by now
            for (int tile = 0; tile < tiles * V; tile += T) {
#pragma unroll 1
                for (int step = 0; step < steps; step++) {
                    multiply(acc, a, ring, slot, step * 2 * Stages::PAIRS, smem);
                    if (warp == (Stages::SLOTS == 1 ? slot : last)) refill(a, ring);
                    last = slot;
                    slot = slot + 1 == Stages::SLOTS ? 0 : slot + 1;
                }
#pragma unroll
                for (int j = 0; j < T; j++) put(part, acc[j], (tile + j) % P);
                if ((tile + T) % P == 0 || tile + T >= tiles * V) reduce(a, part, tile / P * P);
            }
        } else {
            int own = slot_of_warp();
            for (int tile = 0; tile < tiles * V; tile += T) {
#pragma unroll 1
                for (int step = own; step < steps; step += 4 * ROUNDS) {
                    multiply(acc, a, ring, own, step * 2 * Stages::PAIRS, smem);
                    refill(a, ring);
                }
#pragma unroll
                for (int j = 0; j < T; j += P) {
#pragma unroll
                    for (int i = 0; i < P; i++) put(part, acc[j + i], i);
                    if (tile + j < tiles * V) reduce(a, part, tile + j);
                }
            }
        }
    }
};
