// choose: a token from each of several rows of logits, by temperature, top-k, min-p, top-p and repetition penalty; the same
// token as `sampler::choose`, whatever the grid.
//
//   order    larger logits first, of equal ones the lower id: ascending keys of 64 bits
//   weight   ⌊2³² exp((x − max) / temperature)⌋, an integer, so that sums have no order
//   token    the last key of the shortest prefix whose weights exceed random / 2⁶⁴ of the sum of those kept; what top-k and top-p
//            keep is a prefix, too. Each prefix is found digit by digit of its last key, from a histogram of amounts by digit
//   shapes   logits f32 [rows, ld], changed by the penalty; choices [gridDim.y]; seen u32, ids; tokens u32 [gridDim.y];
//            sums u64 [gridDim.y, SELECTIONS, LEVELS, BINS] and counters u32 [gridDim.y], zero before; tops f32 [gridDim.y, gridDim.x]
//   launch   cooperative, grid (blocks of a row, rows), block 512; a block has fewer than 2¹⁶ ids
//   traffic  the logits, once from L2 and then from L1; BINS sums a block and digit
#include "common.cuh"

#define THREADS 512
#define BINS 2048
#define LEVELS 5
#define SELECTIONS 3

struct Choice {
    u64 nucleus;     // fraction of 2⁶⁴; 0 keeps all
    u64 random;
    u32 row;
    u32 likeliest;   // tokens kept; 0 keeps all
    float temperature; // 0 takes the first token
    float min_p;
    float penalty;
    u32 seen, count; // its ids in `seen`
    u32 unused;
};

__device__ __forceinline__ u64 key(float x, u32 id) {
    u32 bits = __float_as_uint(x);
    return (u64)(bits >> 31 ? bits : ~bits & 0x7fffffffu) << 32 | id;
}

// One row's choice, as a block sees it.
struct Row {
    const Choice& c;
    const float* logits;
    u32 from, to; // the block's ids
    float max;
    u64* sums;    // of the next histogram
    u32* counter;
    u32 target;

    __device__ __forceinline__ u64 amount(float x, bool count) const {
        if (count) return 1;
        float e = host_exp(__fdiv_rn(__fadd_rn(x, -max), c.temperature));
        return e >= c.min_p ? (u64)__fmul_rn(e, 4294967296.0f) : 0;
    }

    // The last key of the shortest prefix of the keys up to `bound` that amounts to `least`, or, when that is 0, to `share` / 2⁶⁴ of
    // all: rounded up, or by more than that. All threads get it.
    __device__ u64 select(u64 bound, bool count, u64 least, u64 share, bool up) {
        u32* low = (u32*)SMEM; // a bin's amount is low + 2¹⁶ high
        u32* high = low + BINS;
        u64* of_warps = (u64*)(high + BINS);
        u64* found = of_warps + THREADS / 32; // bin; amount before it
        u64 prefix = 0, before = 0;
        u32 shift = 64;
        for (int level = 0; level < LEVELS; level++, sums += BINS) {
            // digits of 11, 11 and 10 bits for the logit, two of 11 for an id, which has no more than 22
            u32 digits = shift, bits = level == 2 ? 10 : 11;
            shift = level < 3 ? shift - bits : level == 3 ? 11 : 0;
            for (u32 i = threadIdx.x; i < 2 * BINS; i += THREADS) low[i] = 0;
            __syncthreads();
            for (u32 id = from + threadIdx.x; id < to; id += THREADS) {
                float x = logits[id];
                u64 k = key(x, id);
                if (k > bound || (level > 0 && (k ^ prefix) >> digits)) continue;
                u64 a = amount(x, count);
                u32 bin = (u32)(k >> shift) & ((1u << bits) - 1);
                if (a & 0xffff) atomicAdd(&low[bin], (u32)a & 0xffff);
                if (a >> 16) atomicAdd(&high[bin], (u32)(a >> 16));
            }
            __syncthreads();
            for (u32 i = threadIdx.x; i < BINS; i += THREADS) {
                u64 a = low[i] + ((u64)high[i] << 16);
                if (a) atomicAdd(&sums[i], a);
            }
            grid_barrier(counter, target);
            u64 mine[BINS / THREADS], sum = 0;
            for (u32 i = 0; i < BINS / THREADS; i += 2) {
                uint4 two = load_l2(&sums[threadIdx.x * (BINS / THREADS) + i]);
                mine[i] = (u64)two.y << 32 | two.x, mine[i + 1] = (u64)two.w << 32 | two.z;
                sum += mine[i] + mine[i + 1];
            }
            u64 upto = sum; // over the threads up to this one
            for (u32 o = 1; o < 32; o *= 2) {
                u64 other = __shfl_up_sync(FULL, upto, o);
                if (threadIdx.x % 32 >= o) upto += other;
            }
            if (threadIdx.x % 32 == 31) of_warps[threadIdx.x / 32] = upto;
            __syncthreads();
            u64 all = 0;
            for (u32 w = 0; w < THREADS / 32; w++) {
                if (w == threadIdx.x / 32) upto += all;
                all += of_warps[w];
            }
            if (least == 0) least = __umul64hi(share, all) + (up ? share * all != 0 : 1);
            u64 at = before + upto - sum;
            for (u32 i = 0; i < BINS / THREADS; i++) {
                if (at < least && least <= at + mine[i]) found[0] = threadIdx.x * (BINS / THREADS) + i, found[1] = at;
                at += mine[i];
            }
            __syncthreads();
            prefix |= found[0] << shift;
            before = found[1];
        }
        return prefix;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
choose(u32* tokens, float* logits, const Choice* choices, const u32* seen, u64* sums, float* tops, u32* counters, u32 n, u32 ld) {
    const Choice& c = choices[blockIdx.y];
    float* row = logits + (u64)c.row * ld;
    u32 from = (u64)n * blockIdx.x / gridDim.x, to = (u64)n * (blockIdx.x + 1) / gridDim.x;
    for (u32 i = threadIdx.x; i < c.count; i += THREADS) {
        u32 id = seen[c.seen + i];
        if (id >= from && id < to) row[id] = row[id] > 0 ? __fdiv_rn(row[id], c.penalty) : __fmul_rn(row[id], c.penalty);
    }
    __syncthreads();
    float max = -INF, *of_warps = (float*)SMEM;
    for (u32 id = from + threadIdx.x; id < to; id += THREADS) max = row[id] > max ? row[id] : max;
    max = warp_max(max);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = max;
    __syncthreads();
    for (u32 w = 0; w < THREADS / 32; w++) max = of_warps[w] > max ? of_warps[w] : max;
    tops += blockIdx.y * gridDim.x;
    if (threadIdx.x == 0) tops[blockIdx.x] = max;
    Row r = {c, row, from, to, max, sums + (u64)blockIdx.y * SELECTIONS * LEVELS * BINS, counters + blockIdx.y, 0};
    grid_barrier(r.counter, r.target);
    for (u32 b = 0; b < gridDim.x; b++) {
        float other = load_l2(&tops[b]);
        r.max = other > r.max ? other : r.max;
    }
    u64 last = ~0ull;
    if (c.likeliest && (c.likeliest < n || c.temperature == 0)) last = r.select(last, true, c.likeliest, 0, false);
    if (c.temperature != 0) {
        if (c.nucleus) last = r.select(last, false, 0, c.nucleus, true);
        last = r.select(last, false, 0, c.random, false);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) tokens[blockIdx.y] = (u32)last;
}
EXPORT(choose)
