// moe: which rows take which expert, and the sum of what experts give; the products between are those of experts.cu.
//
//   route     p = softmax(logits[r]); the k largest, of equal ones the lower; weight = p_e, over their sum if `normalise`
//   plan      the experts that any row takes, ascending, in items of up to `most` rows, and where each row's share lies
//   combine   mixed[r] = Σ_e weight[r, e] · y[place[r, e]], e ascending, + sigmoid(gate[r]) · shared[r]; x[r] += mixed[r]
//
//   shapes    logits f32 [rows, ldl] · taken, weights, place [rows, k]: expert, f32 weight and line of each of a row's
//             experts, ascending · items (expert, first line, lines, -) · row_of: the row of each line · count: items, and
//             those of all launches so far · y f32 [lines, ldy] · shared, mixed, x f32 [rows, ld] · gate f32 [rows, ldg]
//   launch    route: grid rows, block 288, P + k + 9 words, P = E filled up to a multiple of 32 · plan: grid E, block 256,
//             E + 10 words · combine: grid (columns / 256, rows), block 256; all overlapped
//   traffic   route: logits once · plan: taken once a block, from L2 · combine: k lines of y a row
//   numbers   route: top_k of the host's moe.rs to the bit: its exp, its order of sums · combine: a product is rounded
//             before it is added
#include "common.cuh"

#define THREADS 256

__device__ __forceinline__ float host_sigmoid(float x) { return __fdiv_rn(1.0f, __fadd_rn(1.0f, host_exp(-x))); }

// How many of the powers from ≤ j < to go before that of e: they are larger, or equal and of a lower expert. SIDE: all are
// below e, -1, or above it, 1. As integers their order is that of the numbers.
template <int SIDE> __device__ __forceinline__ u32 ahead(const float* power, u32 from, u32 to, u32 e) {
    int own = __float_as_int(power[e]);
    u32 count = 0;
#pragma unroll 4
    for (u32 j = from; j < to; j += 4) {
        int4 p = *(const int4*)(power + j);
        int four[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) count += four[i] > own || (four[i] == own && (SIDE < 0 || (SIDE == 0 && j + i < e)));
    }
    return count;
}

// Of one row all lines are items of their own, and no plan is needed. One warp more adds up, while the others rank.
extern "C" __global__ void __launch_bounds__(THREADS + 32)
route(u32* taken, float* weights, u32* place, uint4* items, u32* row_of, u32* count, const float* logits, u32 experts, u32 k,
      u32 normalise, u32 ldl) {
    u32 padded = (experts + 31) / 32 * 32;
    float* power = (float*)SMEM;        // [padded]: 0 or more, or the NaN that is the largest integer; behind the last, less
    u32* order = (u32*)power + padded;  // [k], the largest first
    float* scratch = (float*)order + k; // [9]
    launch_dependents();
    wait_for_previous();
    logits += (u64)blockIdx.x * ldl;
    float largest = -INF; // NaN is passed over
    for (u32 e = threadIdx.x; e < experts; e += THREADS + 32) {
        float x = logits[e];
        power[e] = x;
        largest = x > largest ? x : largest;
    }
    largest = warp_max(largest);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < THREADS / 32 + 1; i++) largest = scratch[i] > largest ? scratch[i] : largest;
    for (u32 e = threadIdx.x; e < padded; e += THREADS + 32) {
        float p = e < experts ? host_exp(__fsub_rn(power[e], largest)) : -1.0f;
        power[e] = p == p ? p : NOT_A_NUMBER;
    }
    __syncthreads();
    if (threadIdx.x == THREADS) {
        float sum = 0;
#pragma unroll 8
        for (u32 j = 0; j < experts; j++) sum = __fadd_rn(sum, power[j]);
        scratch[0] = sum;
    } else if (threadIdx.x < THREADS) {
        for (u32 e = threadIdx.x; e < experts; e += THREADS) {
            u32 own = e / 32 * 32; // the warp's first
            u32 rank = ahead<-1>(power, 0, own, e) + ahead<0>(power, own, own + 32, e) + ahead<1>(power, own + 32, padded, e);
            if (rank < k) order[rank] = e;
        }
    }
    __syncthreads();
    float sum = scratch[0], all = 0;
    if (normalise)
        for (u32 i = 0; i < k; i++) all = __fadd_rn(all, __fdiv_rn(power[order[i]], sum));
    for (u32 i = threadIdx.x; i < k; i += THREADS + 32) {
        u32 e = order[i], at = 0;
        for (u32 j = 0; j < k; j++) at += order[j] < e;
        float weight = __fdiv_rn(power[e], sum);
        u64 to = (u64)blockIdx.x * k + at;
        taken[to] = e;
        weights[to] = normalise ? __fdiv_rn(weight, all) : weight;
        if (gridDim.x == 1) {
            place[at] = at;
            items[at] = make_uint4(e, at, 1, 0);
            row_of[at] = 0;
        }
    }
    if (gridDim.x == 1 && threadIdx.x == 0) count[0] = k, count[1] += k;
}
EXPORT(route)

// A block has one expert: it counts the lines of all, and writes down its own.
extern "C" __global__ void __launch_bounds__(THREADS)
plan(u32* place, uint4* items, u32* row_of, u32* count, const u32* taken, u32 rows, u32 experts, u32 k, u32 most) {
    u32* lines = (u32*)SMEM;      // [experts]
    u32* lower = lines + experts; // lines and items of lower experts
    u32* warps = lower + 2;       // [8]
    u32 own = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    launch_dependents();
    for (u32 e = threadIdx.x; e < experts + 2; e += THREADS) lines[e] = 0;
    wait_for_previous();
    __syncthreads();
    for (u32 i = threadIdx.x; i < rows * k; i += THREADS) atomicAdd(&lines[taken[i]], 1u);
    __syncthreads();
    u32 mine = lines[own];
    if (mine == 0 && own + 1 < experts) return;
    for (u32 e = threadIdx.x; e < own; e += THREADS) {
        atomicAdd(&lower[0], lines[e]);
        atomicAdd(&lower[1], (lines[e] + most - 1) / most);
    }
    __syncthreads();
    u32 line = lower[0], item = lower[1], parts = (mine + most - 1) / most;
    if (own + 1 == experts && threadIdx.x == 0) count[0] = item + parts, count[1] += item + parts;
    for (u32 i = threadIdx.x; i < parts; i += THREADS)
        items[item + i] = make_uint4(own, line + i * most, min(most, mine - i * most), 0);
    for (u32 row0 = 0; row0 < rows; row0 += THREADS) { // rows ascending
        u32 row = row0 + threadIdx.x, at = k;
        if (row < rows)
            for (u32 j = 0; j < k; j++) at = taken[(u64)row * k + j] == own ? j : at;
        u32 ballot = __ballot_sync(FULL, at < k);
        if (lane == 0) warps[warp] = __popc(ballot);
        __syncthreads();
        u32 to = line + __popc(ballot & ((1u << lane) - 1));
        for (u32 w = 0; w < THREADS / 32; w++) {
            if (w < warp) to += warps[w];
            line += warps[w];
        }
        if (at < k) {
            place[(u64)row * k + at] = to;
            row_of[to] = row;
        }
        __syncthreads();
    }
}
EXPORT(plan)

// Without `shared` its term is left out, without `x` the sum stays in `mixed`.
extern "C" __global__ void __launch_bounds__(THREADS)
combine(float* x, float* mixed, const float* y, const u32* place, const float* weights, const float* shared, const float* gate,
        u32 width, u32 k, u32 ldx, u32 ldm, u32 ldy, u32 lds, u32 ldg) {
    u32 column = blockIdx.x * THREADS + threadIdx.x;
    u64 row = blockIdx.y;
    launch_dependents();
    wait_for_previous();
    if (column >= width) return;
    float sum = 0;
#pragma unroll 4
    for (u32 i = 0; i < k; i++)
        sum = __fadd_rn(sum, __fmul_rn(weights[row * k + i], y[(u64)place[row * k + i] * ldy + column]));
    if (shared) sum = __fadd_rn(sum, __fmul_rn(host_sigmoid(gate[row * ldg]), shared[row * lds + column]));
    mixed[row * ldm + column] = sum;
    if (x) x[row * ldx + column] = __fadd_rn(x[row * ldx + column], sum);
}
EXPORT(combine)
