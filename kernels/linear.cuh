// linear: y = x Wᵀ for up to 16 rows of x, every SM streaming its share of W exactly once.
//
//   W   tiles of 8 outputs, as weights.cuh says, through the ring of ring.cuh
//   x   f32 [M, ldx], zero beyond K; every value split into bf16 hi + lo, so that a product keeps 16 bits of x
//   out f32
//
// A block owns consecutive tiles. Unit u of the inputs (64 of them) belongs to warp u mod 16. With the k of a fragment permuted
// equally on both sides, a lane's 8 weights of one output are the B operands of two mma. x is the A operand: up to 8 rows take
// hi in rows 0–7 and lo in rows 8–15 of one mma; up to 16 rows take two. One row with PAIRS of tiles has the sides changed:
// the weights of two tiles are A, hi and lo of x two columns of B. Either way a warp adds its units in ascending order, and an
// output is Σ over warps, ascending, of (hi chain + lo chain): its bits do not depend on the number of rows, on the row's place,
// on the grid, nor on the ring. One row of x lies in shared memory.
#pragma once
#include "packed.cuh"
#include "ring.cuh"

enum Epilogue { STORE = 0, ADD = 1, SWIGLU = 2 };

struct LinearArgs {
    const char* w;     // of n outputs, or of gate and then up, each filled up to whole tiles; then factors, if W has them
    const float* x;    // [rows, ldx]
    float* out;        // [rows, ldo]
    const float* norm; // [K], zero-centred, when NORMED
    float eps;
    u32 rows, n, ldx, ldo;
    u32 at; // GATHER: the rows of x that this lane takes for rows g and, in the upper half, g + 8
};

template <class W, int K, int MAXROWS, int EPI, bool NORMED, bool GATHER = false, bool PAIRS = MAXROWS == 1 && (W::TILES > 1)>
struct Linear {
    typedef Ring<MAXROWS> Stages;
    template <class V_> using With = Linear<V_, K, MAXROWS, EPI, NORMED, false, PAIRS>; // of other weights, x lying as it does
    static constexpr bool ONE = Stages::ONE;
    static constexpr int XP = (K + 63) / 64 * 64; // of x
    static constexpr int KP = (XP + W::GRAIN * 64 - 1) / (W::GRAIN * 64) * (W::GRAIN * 64);
    static constexpr int UNITS = W::PIECES * KP / 64;
    static constexpr int V = EPI == SWIGLU ? 2 : 1;      // tiles of W for a tile of outputs: gate, then up
    static constexpr int WIDE = MAXROWS > 8 && W::SCALED_SUMS && RING > 4 ? 4 : RING; // as registers allow
    static constexpr int T = ONE ? W::TILES * Stages::WIDTH : WIDE; // tiles of W with sums in registers
    static constexpr int ROUNDS = ONE ? 1 : W::ROUNDS;   // strips of each in a stage
    static constexpr int STRIP = Stages::UNITS * W::UNIT; // bytes
    static constexpr int P = ONE ? (W::GRAIN == 1 ? 16 : 24) / (2 * T) * (2 * T) : 2; // tiles of W with sums in shared memory
    static constexpr int ACC = MAXROWS > 8 ? 8 : 4;
    static constexpr int SUMS = PAIRS ? (T + 1) / 2 : T; // of ACC
    static constexpr int PART = P * LINEAR_WARPS * 8 * MAXROWS; // floats
    static constexpr int XBYTES = ONE ? KP * 4 : 0;
    static constexpr int SMEM_BYTES = XBYTES + PART * 4 + LINEAR_WARPS * 4; // beside the ring
    static_assert(T * ROUNDS * STRIP <= Stages::SLOT, "a stage fits its slot");
    static_assert(P % V == 0 && (!ONE || P % T == 0), "sums of a group of tiles are reduced together");

    // The share of block `b` of `blocks`, of the units of slot `slot` of `slots`.
    __device__ __forceinline__ static Share share(const LinearArgs& a, u32 b, u32 blocks, u32 slot = 0, u32 slots = 1) {
        Share s;
        u32 all = (a.n + 7) / 8;
        s.pitch = UNITS * W::UNIT;
        s.tile0 = all * b / blocks;
        s.tiles = (all * (b + 1) / blocks - s.tile0) * V;
        s.swiglu = V - 1;
        constexpr u32 GRAINS = UNITS / W::GRAIN;
        s.unit0 = GRAINS * slot / slots * W::GRAIN;
        s.units = GRAINS * (slot + 1) / slots * W::GRAIN - s.unit0;
        s.unit_bytes = W::UNIT;
        s.steps = (s.units + Stages::UNITS - 1) / Stages::UNITS;
        s.group = T;
        s.shift = ROUNDS == 4 ? 2 : ROUNDS - 1;
        u32 steps = s.steps ? s.steps : 1;
        s.far = Stages::SLOTS / steps * T;
        s.farther = Stages::SLOTS % steps;
        s.up = (u64)all * s.pitch;
        s.at = a.w + (u64)s.tile0 * s.pitch + (u64)s.unit0 * W::UNIT;
        return s;
    }

    u32 tile0, tiles; // of this block, tiles of outputs
    u32 unit0, units; // of the inputs' slot

    // One row of x to shared memory, normed on the way, as operands of mma: of each eight inputs hi, then lo; without PAIRS of
    // each four inputs hi of two, lo of these, hi of the other two, lo of these.
    __device__ __forceinline__ void stage(const LinearArgs& a, char* smem) {
        float* scratch = (float*)(smem + XBYTES) + PART;
        constexpr int STEPS = (KP / 4 + LINEAR_THREADS - 1) / LINEAR_THREADS;
        if (NORMED) {
            float4 x[STEPS], w[STEPS];
            float sum = 0;
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                x[s] = i < XP ? *(const float4*)(a.x + i) : make_float4(0, 0, 0, 0);
                w[s] = i < XP ? *(const float4*)(a.norm + i) : make_float4(0, 0, 0, 0);
                sum += x[s].x * x[s].x + x[s].y * x[s].y + x[s].z * x[s].z + x[s].w * x[s].w;
            }
            float r = rsqrtf(block_sum<LINEAR_THREADS>(sum, scratch) / K + a.eps);
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                if (i >= KP) continue;
                split4(smem, i, x[s].x * r * (1 + w[s].x), x[s].y * r * (1 + w[s].y), x[s].z * r * (1 + w[s].z),
                       x[s].w * r * (1 + w[s].w));
            }
        } else {
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                if (i >= KP) continue;
                float4 x = i < XP ? *(const float4*)(a.x + i) : make_float4(0, 0, 0, 0);
                split4(smem, i, x.x, x.y, x.z, x.w);
            }
        }
        __syncthreads();
    }
    __device__ __forceinline__ static void split4(char* smem, int i, float a, float b, float c, float d) {
        uint2 hi, lo;
        split_bf16(a, b, hi.x, lo.x);
        split_bf16(c, d, hi.y, lo.y);
        if (PAIRS) {
            char* to = smem + i / 8 * 32 + i % 8 * 2;
            *(uint2*)to = hi;
            *(uint2*)(to + 16) = lo;
        } else {
            *(uint4*)(smem + i * 4) = make_uint4(hi.x, lo.x, hi.y, lo.y);
        }
    }

    // Eight inputs of row `row` of several rows of x from `k` on, as four words of hi and of lo.
    __device__ __forceinline__ void inputs(const LinearArgs& a, int k, u32 row, uint4& hi, uint4& lo) {
        hi = lo = make_uint4(0, 0, 0, 0);
        if (row >= a.rows || (KP > XP && k >= XP)) return;
        const float* x = a.x + (u64)(!GATHER ? row : row < 8 ? a.at & 0xffff : a.at >> 16) * a.ldx + k;
        float4 p = *(const float4*)x, q = *(const float4*)(x + 4);
        split_bf16(p.x, p.y, hi.x, lo.x);
        split_bf16(p.z, p.w, hi.y, lo.y);
        split_bf16(q.x, q.y, hi.z, lo.z);
        split_bf16(q.z, q.w, hi.w, lo.w);
    }

    // c += (p, q) w, times `scale` if sums have one.
    __device__ __forceinline__ static void add(float (&c)[4], const u32 (&p)[4], const u32 (&q)[4], uint4 w, float2 scale) {
        float sums[4] = {};
        float(&to)[4] = *(W::SCALED_SUMS ? &sums : &c);
        mma_bf16(to, p, w.x, w.y);
        mma_bf16(to, q, w.z, w.w);
        if (W::SCALED_SUMS) {
#pragma unroll
            for (int i = 0; i < 4; i++) c[i] = __fmaf_rn(sums[i], i % 2 ? scale.y : scale.x, c[i]);
        }
    }
    // c += [w; v] x of a pair's half; `scale` of w's output and of v's.
    __device__ __forceinline__ static void add_pair(float (&c)[4], uint4 w, uint4 v, const u32 (&x)[2][4], float2 scale) {
        float sums[4] = {};
        float(&to)[4] = *(W::SCALED_SUMS ? &sums : &c);
        u32 p[4] = {w.x, v.x, w.y, v.y}, q[4] = {w.z, v.z, w.w, v.w};
        mma_bf16(to, p, x[0][0], x[0][1]);
        mma_bf16(to, q, x[0][2], x[0][3]);
        if (W::SCALED_SUMS) {
#pragma unroll
            for (int i = 0; i < 4; i++) c[i] = __fmaf_rn(sums[i], i / 2 ? scale.y : scale.x, c[i]);
        }
    }
    // `acc` gains the products of this warp's unit of the stage in `slot`, whose first unit is `first` of the share's and which
    // has `here` tiles. One row: x holds its inputs of each half, what the lane needs of them. Of pairs that is hi in lanes 0 to
    // 3 and lo in lanes 4 to 7; other lanes' columns are read by nobody.
    __device__ __forceinline__ void multiply_one(float (&acc)[SUMS][ACC], u32 (&x)[2][2][4], Stages& ring, int slot, u32 first,
                                                 u32 here, const char* smem) {
        u32 own = threadIdx.x >> 5, unit = first + own, g = (threadIdx.x & 31) >> 2;
        bool in = unit < units;
        if (in && (!PAIRS || g < 2)) {
            u32 k = (W::PIECES == 1 ? unit0 + unit : (unit0 + unit) % (KP / 64)) * 64;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint4* from = (const uint4*)(smem + (k + W::input(half)) * 4);
                *(uint4*)x[half][0] = from[PAIRS ? g : 0];
                if (!PAIRS) *(uint4*)x[half][1] = from[1];
            }
        }
        ring.wait(slot);
        if (in) {
            auto tiles = [&](int j, bool two) {
                const char *w = ring.bytes(slot) + j * STRIP, *v = two ? w + STRIP : w;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint4 ours = W::operands(w, own, half);
                    if (PAIRS)
                        add_pair(acc[j / 2], ours, W::operands(v, own, half), x[half],
                                 make_float2(W::scale(w, own, g), W::scale(v, own, g)));
                    else
                        add(acc[j], x[half][0], x[half][1], ours, W::scales(w, own));
                }
            };
            if (T == 1 || here >= T) {
#pragma unroll
                for (int j = 0; j < T; j += 1 + PAIRS) tiles(j, j + 1 < T);
            } else {
#pragma unroll
                for (int j = 0; j < T - 1; j += 1 + PAIRS)
                    if (PAIRS && j + 1 < here) tiles(j, true);
                    else if (j < here) tiles(j, false);
            }
        }
        ring.leave(slot);
    }

    // The same for several rows, and of ROUNDS units.
    __device__ __forceinline__ void multiply(float (&acc)[SUMS][ACC], const LinearArgs& a, Stages& ring, int slot, u32 first) {
        int own = (threadIdx.x >> 5) % Stages::UNITS, g = (threadIdx.x & 31) >> 2;
#pragma unroll(MAXROWS > 8 ? 1 : ROUNDS) // sixteen rows are short of registers
        for (int round = 0; round < ROUNDS; round++) {
            u32 unit = first + round * 4 * Stages::UNITS + own;
            bool in = unit < units;
            int k = (W::PIECES == 1 ? unit0 + unit : (unit0 + unit) % (KP / 64)) * 64;
#pragma unroll 1
            for (int half = 0; half < 2; half++) { // short of registers
                uint4 h, l, h8, l8;
                if (in) {
                    inputs(a, k + W::input(half), g, h, l);
                    if (MAXROWS > 8) inputs(a, k + W::input(half), g + 8, h8, l8);
                }
                if (round == 0 && half == 0) ring.wait(slot);
                if (!in) continue;
#pragma unroll
                for (int j = 0; j < T; j++) {
                    const char* strip = ring.bytes(slot) + (j * ROUNDS + round) * STRIP;
                    uint4 w = W::operands(strip, own, half);
                    float2 scale = W::scales(strip, own);
                    float(&c)[4] = *(float(*)[4]) & acc[j][0];
                    if (MAXROWS <= 8) {
                        u32 p[4] = {h.x, l.x, h.y, l.y}, q[4] = {h.z, l.z, h.w, l.w};
                        add(c, p, q, w, scale);
                    } else {
                        u32 p[4] = {h.x, h8.x, h.y, h8.y}, q[4] = {h.z, h8.z, h.w, h8.w};
                        u32 r[4] = {l.x, l8.x, l.y, l8.y}, s[4] = {l.z, l8.z, l.w, l8.w};
                        float(&d)[4] = *(float(*)[4]) & acc[j][ACC - 4];
                        add(c, p, q, w, scale);
                        add(d, r, s, w, scale);
                    }
                }
            }
        }
        ring.leave(slot);
    }

    // This warp's part of the outputs of one tile of W, [tile][warp][8 outputs][rows], or of `two`; its sums start again.
    __device__ __forceinline__ void put(float* part, float (&acc)[ACC], int tile, bool two = false) {
        int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, n = (lane & 3) * 2;
        float* p = part + ((tile * LINEAR_WARPS + warp) * 8 + n) * MAXROWS + g;
        if (PAIRS) {
            if (n == 0) p[0] = acc[0] + acc[1];
            if (n == 0 && two) p[LINEAR_WARPS * 8] = acc[2] + acc[3];
        } else if (MAXROWS <= 8 && g < MAXROWS) {
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
#pragma unroll 8
        for (int w = 0; w < LINEAR_WARPS; w++) sum += part[((tile * LINEAR_WARPS + w) * 8 + n) * MAXROWS + row];
        return sum;
    }
    // What the sums of an output of W are multiplied with: 1, or what lies behind the tiles.
    __device__ __forceinline__ static float factor(const LinearArgs& a, u32 o) {
        if (!W::FACTORS) return 1;
        return ((const float*)(a.w + (u64)((a.n + 7) / 8) * V * (UNITS * W::UNIT)))[o];
    }
    // Outputs of the P tiles of W in `part`, the first of which is the block's `first`: one a thread at most. Its factors are on
    // their way while others still multiply.
    __device__ __forceinline__ void reduce(const LinearArgs& a, const float* part, u32 first) {
        static_assert(P / V * 8 * MAXROWS <= LINEAR_THREADS, "an output a thread");
        constexpr bool AHEAD = ONE && W::FACTORS; // several rows are short of registers
        u32 output = (tile0 + first / V + threadIdx.x / 8) * 8 + threadIdx.x % 8;
        float scale = 1, up = 1;
        if (AHEAD && threadIdx.x < P / V * 8 && output < a.n) {
            scale = factor(a, output);
            if (EPI == SWIGLU) up = factor(a, a.n + output);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < P / V * 8 * MAXROWS; i += LINEAR_THREADS) {
            int row = i % MAXROWS, n = i / MAXROWS % 8, tile = i / MAXROWS / 8;
            u32 o = (tile0 + first / V + tile) * 8 + n;
            if (row >= a.rows || first / V + tile >= tiles || o >= a.n) continue;
            float y = __fmul_rn(total(part, tile * V, n, row), AHEAD ? scale : factor(a, o));
            if (EPI == SWIGLU)
                y = silu(y) * __fmul_rn(total(part, tile * V + V - 1, n, row), AHEAD ? up : factor(a, a.n + o));
            float* out = a.out + (u64)row * a.ldo + o;
            *out = EPI == ADD ? *out + y : y;
        }
    }

    // The next product of the ring's. `smem` holds SMEM_BYTES beside the ring; x may be read from here on. `staged`: the
    // product before had the same x and norm, and KP.
    __device__ __forceinline__ void run(const LinearArgs& a, Stages& ring, char* smem, bool staged = false) {
        if (ring.taking) __syncthreads(); // the product before may still be reading its sums
        const Share& s = ring.share(ring.taking++);
        tile0 = s.tile0, tiles = s.tiles / V, unit0 = s.unit0, units = s.units;
        u32 steps = s.steps;
        float* part = (float*)(smem + XBYTES);
        float acc[SUMS][ACC];
#pragma unroll
        for (int j = 0; j < SUMS; j++)
#pragma unroll
            for (int i = 0; i < ACC; i++) acc[j][i] = 0;
        if constexpr (ONE) {
            if (!staged) stage(a, smem);
            alignas(16) u32 x[2][2][4] = {};
            for (u32 tile = 0; tile < tiles * V; tile += T) {
#pragma unroll 1
                for (u32 step = 0; step < steps; step++) {
                    multiply_one(acc, x, ring, ring.slot, step * Stages::UNITS, tiles * V - tile, smem);
                    ring.next();
                }
                if (tile && tile % P == 0) __syncthreads(); // others read the sums before
#pragma unroll
                for (int j = 0; j < T; j += 1 + PAIRS) put(part, acc[j / (1 + PAIRS)], (tile + j) % P, j + 1 < T);
                if ((tile + T) % P == 0 || tile + T >= tiles * V) reduce(a, part, tile / P * P);
            }
        } else {
            int own = Stages::own();
            for (u32 tile = 0; tile < tiles * V; tile += T) {
#pragma unroll 1
                for (u32 step = own; step < steps; step += 4 * ROUNDS) {
                    multiply(acc, a, ring, own, step * Stages::UNITS);
                    ring.refill();
                }
#pragma unroll
                for (int j = 0; j < T; j += P) {
                    if (tile + j) __syncthreads();
#pragma unroll
                    for (int i = 0; i < P; i++) put(part, acc[j + i], i);
                    if (tile + j < tiles * V) reduce(a, part, tile + j);
                }
            }
        }
    }
};

// Outputs of another format below those of `a`, up to `width`.
__device__ __forceinline__ LinearArgs below(LinearArgs a, const char* w, u32 width) {
    a.w = w, a.out += a.n, a.n = width - a.n;
    return a;
}
// These as the product after Head's in the ring; nothing without a TAIL.
template <class Head> __device__ __forceinline__ void add_tail(const LinearArgs& a, const char* w, u32 width, typename Head::Stages& ring) {
#ifdef TAIL
    ring.add(Head::template With<TAIL>::share(below(a, w, width), blockIdx.x, gridDim.x));
#endif
}
template <class Head>
__device__ __forceinline__ void run_tail(const LinearArgs& a, const char* w, u32 width, typename Head::Stages& ring, char* smem) {
#ifdef TAIL
    typename Head::template With<TAIL> op;
    op.run(below(a, w, width), ring, smem, op.KP == Head::KP);
#endif
}
