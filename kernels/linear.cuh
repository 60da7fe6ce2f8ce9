// linear: y = x Wᵀ for up to 16 rows of x, every SM streaming its share of W exactly once.
//
//   W   bf16 [N, PIECES · KP], KP = K rounded up to 32 with zeros; a weight of more than 8 bits of mantissa is stored
//       as the sum of PIECES bf16 pieces, one KP-wide block of the row for each
//   x   f32 [M, ldx], every value split into bf16 hi + lo, so that a product keeps 16 bits of x
//   out f32
//
// The output rows are cut into tiles of 8 (the n of mma m16n8k16); a block owns consecutive tiles, its 16 warps cut K.
// A lane's 16-byte load is 8 consecutive weights of one row: with the k of a fragment permuted equally on both sides,
// the four words are the B operands of two mma. x is the A operand: up to 8 rows take hi in rows 0–7 and lo in rows
// 8–15 of one mma; up to 16 rows take two. Either way an output is Σ over warps, ascending, of (hi chain + lo chain):
// its bits do not depend on the number of rows, on the row's place, nor on the grid.
#pragma once
#include "common.cuh"

enum Epilogue { STORE = 0, ADD = 1, SWIGLU = 2 };

struct LinearArgs {
    const u16* w;    // [N or 2N, PIECES · KP]
    const float* x;  // [rows, ldx], zero beyond K
    float* out;      // [rows, ldo]
    const float* norm; // [K], zero-centred, when NORMED
    float eps;
    u32 rows, n, ldx, ldo;
};

#define LINEAR_WARPS 16
#define LINEAR_THREADS (LINEAR_WARPS * 32)

template <int K, int PIECES, int MAXROWS, int EPI, bool NORMED> struct Linear {
    static constexpr int KP = (K + 31) / 32 * 32;
    static constexpr int CHUNKS = PIECES * KP / 32; // of 32 inputs
    static constexpr bool ONE = MAXROWS == 1;
    static constexpr int T = ONE ? (EPI == SWIGLU ? 2 : 1) : 4; // tiles of a unit
    static constexpr int D = ONE ? (EPI == SWIGLU ? 3 : 7) : 2; // units in flight
    static constexpr int TO = EPI == SWIGLU ? T / 2 : T;        // output tiles of a unit
    static constexpr int GROUPS = ONE ? 16 / T : 1;             // units between two reductions
    static constexpr int ACC = MAXROWS > 8 ? 8 : 4;
    static constexpr int PART = GROUPS * T * LINEAR_WARPS * 8 * MAXROWS; // floats of one half
    static constexpr int XBYTES = ONE ? KP * 4 : 0;
    static constexpr int SMEM_BYTES = XBYTES + 2 * PART * 4 + LINEAR_WARPS * 4;

    uint4 v[D][T];
    const u16* at[TO]; // of the next load
    int first, chunks; // of this warp
    int tile0, tiles, groups; // of this block
    int load_group, load_chunk;

    __device__ __forceinline__ void seek(const LinearArgs& a) {
        int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int j = 0; j < TO; j++) {
            u32 row = (tile0 + load_group * TO + j) * 8 + g;
            row = row < a.n ? row : a.n - 1;
            at[j] = a.w + (u64)row * (PIECES * KP) + (first * 32 + t * 8);
        }
    }
    __device__ __forceinline__ void load(uint4 (&to)[T], const LinearArgs& a) {
        if (load_group >= groups) return;
#pragma unroll
        for (int j = 0; j < TO; j++) {
            to[j] = load_weight(at[j]);
            if (EPI == SWIGLU) to[TO + j] = load_weight(at[j] + (u64)a.n * (PIECES * KP)); // the row of U
            at[j] += 32;
        }
        if (++load_chunk == chunks) {
            load_chunk = 0;
            load_group++;
            if (load_group < groups) seek(a);
        }
    }
    // The first loads of block `b` of `blocks`, for the chunks of slot `slot` of `slots`: nothing here depends on x.
    __device__ __forceinline__ void start(const LinearArgs& a, int b, int blocks, int slot = 0, int slots = 1) {
        int warp = threadIdx.x >> 5;
        int all = (a.n + 7) / 8;
        tile0 = (int)((i64)all * b / blocks);
        tiles = (int)((i64)all * (b + 1) / blocks) - tile0;
        groups = (tiles + TO - 1) / TO;
        int from = CHUNKS * slot / slots, count = CHUNKS * (slot + 1) / slots - from;
        first = from + count * warp / LINEAR_WARPS;
        chunks = from + count * (warp + 1) / LINEAR_WARPS - first;
        load_group = chunks ? 0 : groups;
        load_chunk = 0;
        if (!chunks || !groups) return;
        seek(a);
#pragma unroll
        for (int d = 0; d < D; d++) load(v[d], a);
    }

    // x to shared memory as bf16 hi and lo, normed on the way.
    __device__ __forceinline__ void stage(const LinearArgs& a, char* smem) {
        u16* hi = (u16*)smem;
        u16* lo = hi + KP;
        float* scratch = (float*)(smem + XBYTES) + 2 * PART;
        constexpr int STEPS = (KP / 4 + LINEAR_THREADS - 1) / LINEAR_THREADS;
        if (NORMED) {
            float4 x[STEPS];
            float sum = 0;
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                x[s] = i < KP ? *(const float4*)(a.x + i) : make_float4(0, 0, 0, 0);
                sum += x[s].x * x[s].x + x[s].y * x[s].y + x[s].z * x[s].z + x[s].w * x[s].w;
            }
            float r = rsqrtf(block_sum<LINEAR_THREADS>(sum, scratch) / K + a.eps);
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                if (i >= KP) continue;
                float4 w = *(const float4*)(a.norm + i);
                split4(hi + i, lo + i, x[s].x * r * (1 + w.x), x[s].y * r * (1 + w.y), x[s].z * r * (1 + w.z),
                       x[s].w * r * (1 + w.w));
            }
        } else {
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int i = (s * LINEAR_THREADS + threadIdx.x) * 4;
                if (i >= KP) continue;
                float4 x = *(const float4*)(a.x + i);
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

    // Eight inputs of row `row` of x, as four words of hi and of lo.
    __device__ __forceinline__ void inputs(const LinearArgs& a, const char* smem, int chunk, u32 row, uint4& hi, uint4& lo) {
        int k = (PIECES == 1 ? chunk : chunk % (KP / 32)) * 32 + (threadIdx.x & 3) * 8;
        hi = lo = make_uint4(0, 0, 0, 0);
        if (row >= a.rows) return;
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

    // One unit: `acc` gains the products of one chunk with T tiles.
    __device__ __forceinline__ void multiply(float (&acc)[T][ACC], const uint4 (&w)[T], const LinearArgs& a,
                                             const char* smem, int chunk) {
        u32 g = (threadIdx.x & 31) >> 2;
        uint4 hi, lo;
        inputs(a, smem, chunk, g, hi, lo);
        if (MAXROWS <= 8) {
            u32 p[4] = {hi.x, lo.x, hi.y, lo.y}, q[4] = {hi.z, lo.z, hi.w, lo.w};
#pragma unroll
            for (int j = 0; j < T; j++) {
                float(&c)[4] = *(float(*)[4]) & acc[j][0];
                mma_bf16(c, p, w[j].x, w[j].y);
                mma_bf16(c, q, w[j].z, w[j].w);
            }
        } else {
            uint4 hi8, lo8;
            inputs(a, smem, chunk, g + 8, hi8, lo8);
            u32 p[4] = {hi.x, hi8.x, hi.y, hi8.y}, q[4] = {hi.z, hi8.z, hi.w, hi8.w};
            u32 r[4] = {lo.x, lo8.x, lo.y, lo8.y}, s[4] = {lo.z, lo8.z, lo.w, lo8.w};
#pragma unroll
            for (int j = 0; j < T; j++) {
                float(&c)[4] = *(float(*)[4]) & acc[j][0];
                float(&d)[4] = *(float(*)[4]) & acc[j][ACC - 4];
                mma_bf16(c, p, w[j].x, w[j].y);
                mma_bf16(c, q, w[j].z, w[j].w);
                mma_bf16(d, r, w[j].x, w[j].y);
                mma_bf16(d, s, w[j].z, w[j].w);
            }
        }
    }

    // This warp's part of a unit's outputs, [tile][warp][8 outputs][rows].
    __device__ __forceinline__ void put(float* part, const float (&acc)[T][ACC], int slot) {
        int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, n = (lane & 3) * 2;
        if (g >= MAXROWS) return;
#pragma unroll
        for (int j = 0; j < T; j++) {
            float* p = part + (((slot * T + j) * LINEAR_WARPS + warp) * 8 + n) * MAXROWS + g;
            if (MAXROWS <= 8) {
                p[0] = acc[j][0] + acc[j][2];
                p[MAXROWS] = acc[j][1] + acc[j][3];
            } else {
                p[0] = acc[j][0] + acc[j][ACC - 4];
                p[MAXROWS] = acc[j][1] + acc[j][ACC - 3];
                p[8 % MAXROWS] = acc[j][2] + acc[j][ACC - 2];
                p[MAXROWS + 8 % MAXROWS] = acc[j][3] + acc[j][ACC - 1];
            }
        }
    }
    __device__ __forceinline__ float total(const float* part, int tile, int n, int row) {
        float sum = 0;
#pragma unroll 4
        for (int w = 0; w < LINEAR_WARPS; w++) sum += part[((tile * LINEAR_WARPS + w) * 8 + n) * MAXROWS + row];
        return sum;
    }
    // Outputs of `count` units from unit `group` on.
    __device__ __forceinline__ void reduce(const LinearArgs& a, const float* part, int group, int count) {
        for (int i = threadIdx.x; i < count * TO * 8 * MAXROWS; i += LINEAR_THREADS) {
            int row = i % MAXROWS, n = i / MAXROWS % 8, tile = i / MAXROWS / 8;
            int unit = tile / TO, j = tile % TO;
            u32 o = (tile0 + group * TO + tile) * 8 + n;
            if (row >= a.rows || group * TO + tile >= tiles || o >= a.n) continue;
            float y = total(part, unit * T + j, n, row);
            if (EPI == SWIGLU) y = silu(y) * total(part, unit * T + TO + j, n, row);
            float* out = a.out + (u64)row * a.ldo + o;
            *out = EPI == ADD ? *out + y : y;
        }
    }

    // The product. `smem` holds SMEM_BYTES; x may be read from here on.
    __device__ __forceinline__ void run(const LinearArgs& a, char* smem) {
        float* part = (float*)(smem + XBYTES);
        if (ONE) stage(a, smem);
        float acc[T][ACC];
#pragma unroll
        for (int j = 0; j < T; j++)
#pragma unroll
            for (int i = 0; i < ACC; i++) acc[j][i] = 0;
        int group = 0, chunk = 0;
        auto unit_done = [&]() {
            put(part, acc, group % GROUPS);
            if (group % GROUPS == GROUPS - 1 || group == groups - 1) {
                __syncthreads();
                int start = group / GROUPS * GROUPS;
                reduce(a, part, start, group - start + 1);
                part = (float*)(smem + XBYTES) + (part == (float*)(smem + XBYTES) ? PART : 0);
            }
#pragma unroll
            for (int j = 0; j < T; j++)
#pragma unroll
                for (int i = 0; i < ACC; i++) acc[j][i] = 0;
            group++;
        };
        if (!chunks)
            while (group < groups) unit_done();
        while (group < groups) {
#pragma unroll
            for (int d = 0; d < D; d++) {
                if (group < groups) {
                    multiply(acc, v[d], a, smem, first + chunk);
                    load(v[d], a);
                    if (++chunk == chunks) {
                        chunk = 0;
                        unit_done();
                    }
                }
            }
        }
    }
};
