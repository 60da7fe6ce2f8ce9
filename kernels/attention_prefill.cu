// attention_prefill: causal attention of the rows of whole segments over their pages, on the tensor cores; the formula is
// in attention.cuh.
//
//   shapes   16 query rows of one head a warp, WARPS warps a block; keys in tiles of KEYS at fixed positions, the softmax
//            running along; P stays in registers as the A operand of the second product
//   launch   grid (NH, rows of the longest segment / (16 WARPS), segments), block 32 WARPS, overlapped; the last rows,
//            which have most to do, come first, and the heads that share K and V stand side by side
//   shared   [16 WARPS] rows of Q as hi and lo, KEYS rows of K and of V, as hi and lo when they are f32; a row is HD
//            rounded up to 16, and 8 more, so that eight rows of one column lie in different banks
//   traffic  K and V up to each row's position, once for 16 WARPS rows, from L2; K of the next tile is on its way while
//            P V is computed, V while Q Kᵀ is
//   numbers  Q and P are sums of two bf16, and so are K and V when the cache is f32 (lo · lo is left out): a product keeps
//            16 bits. Q Kᵀ, P V and the softmax add up in f32
//
// A row sees the same tiles in the same order wherever its prompt was cut: neither that, nor the rows beside it, nor WARPS
// changes its bits; KEYS does. A tile beyond a row multiplies its sums by one and adds zeros. What is not finite in V has
// no zeros to give: near the diagonal it is taken out of the tile, and the rows that see it are made NaN at the end.
//
// Defines besides attention.cuh's: WARPS, KEYS (a multiple of 16).
#include "attention.cuh"

#define ROWS (WARPS * 16)
#define THREADS (WARPS * 32)
#define DEPTH ((HD + 15) / 16 * 16)       // columns of a row in shared memory
#define STRIDE ((DEPTH + 8) * 2)          // bytes of it
#define SPLIT (KV_TYPE == 0)              // K and V have a lo
#define TILE (KEYS * STRIDE)              // bytes of hi or lo of K or V
#define Q_LO (ROWS * STRIDE)
#define LOG2_E 1.44269504f
#ifndef UNROLL
#define UNROLL 4
#endif
#ifndef DU
#define DU 16
#endif
#ifndef GROUP
#define GROUP 4                           // fragments of V, of 16 columns each, in use at once
#endif
static_assert(KEYS % 16 == 0, "a tile is made of steps of 16 keys");

#define HEAD_BYTES ((u64)PAGE * HD * KV_SIZE) // of one head's keys, or values, in a page

// Where a segment's keys and values of one head lie.
struct Pages {
    const char* keys; // in page 0
    const u32* pages;
    u32 limit; // keys that the block sees

    // Tile `key0` … of K (which = 0) or V (1): asked for, or converted; zeros where the block sees no key.
    __device__ __forceinline__ void fill(char* tile, u32 which, u32 key0) const {
#pragma unroll 4
        for (u32 step = 0; step < (KEYS * LANES + THREADS - 1) / THREADS; step++) {
            u32 i = step * THREADS + threadIdx.x, t = i / LANES, at = i % LANES * 8;
            if (KEYS * LANES % THREADS && t >= KEYS) break;
            bool seen = key0 + t < limit;
            u32 key = seen ? key0 + t : 0;
            char* to = tile + t * STRIDE + at * 2;
            const char* from = keys + (pages[key / PAGE] * (u64)(KV_LAYERS * 2 * NKV) + which * NKV) * HEAD_BYTES +
                               (key % PAGE * HD + at) * KV_SIZE;
            if (KV_TYPE == 1) {
                cp_async16_or_zero(to, from, seen);
            } else {
                float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
                if (seen) kv_load(x, from);
                uint4 hi, lo;
                split8(hi, lo, x);
                *(uint4*)to = hi;
                if (SPLIT) *(uint4*)(to + TILE) = lo;
            }
        }
        cp_async_commit();
    }
    __device__ __forceinline__ static void split8(uint4& hi, uint4& lo, const float (&x)[8]) {
        split_bf16(x[0], x[1], hi.x, lo.x);
        split_bf16(x[2], x[3], hi.y, lo.y);
        split_bf16(x[4], x[5], hi.z, lo.z);
        split_bf16(x[6], x[7], hi.w, lo.w);
    }
    // Takes what is not finite out of the pieces of V that this thread brought; `first` becomes the least key with such.
    __device__ __forceinline__ static void clean(char* tile, u32 key0, u32* first) {
        for (u32 i = threadIdx.x; i < KEYS * LANES; i += THREADS) {
            u32 t = i / LANES;
            u32* w = (u32*)(tile + t * STRIDE + i % LANES * 16);
            bool finite = true;
#pragma unroll
            for (int j = 0; j < 4; j++) finite &= (w[j] & 0x7f80u) != 0x7f80u && (w[j] & 0x7f800000u) != 0x7f800000u;
            if (finite) continue;
            *(uint4*)w = make_uint4(0, 0, 0, 0);
            if (SPLIT) *(uint4*)((char*)w + TILE) = make_uint4(0, 0, 0, 0);
            atomicMin(first, key0 + t);
        }
    }
};

// c += a b for all tiles of 8 columns, two in each fragment of b.
template <int N> __device__ __forceinline__ void multiply(float (*c)[4], const u32 (&a)[4], const u32 (&b)[N][4]) {
#pragma unroll
    for (int j = 0; j < 2 * N; j++) mma_bf16(c[j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
}

// s = Q Kᵀ for 16 rows and the keys of a tile. `q` and `k` are the lane's rows of the first fragments.
__device__ __forceinline__ void scores(float (&s)[KEYS / 8][4], const char* q, const char* k) {
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int d = 0; d < DEPTH; d += 16) {
        u32 hi[4], lo[4], b[KEYS / 16][4];
        ldmatrix_x4(hi, q + d * 2);
        ldmatrix_x4(lo, q + Q_LO + d * 2);
#pragma unroll
        for (int i = 0; i < KEYS / 16; i++) ldmatrix_x4(b[i], k + i * 16 * STRIDE + d * 2);
        multiply(s, hi, b);
        multiply(s, lo, b);
        if (SPLIT) {
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) ldmatrix_x4(b[i], k + TILE + i * 16 * STRIDE + d * 2);
            multiply(s, hi, b);
        }
    }
}

// One tile of the running softmax of row g + 8 h: its maximum `m`, this lane's part of its sum, and its weights to the A
// operands of the second product. Keys past `last`, counted from this lane's first, are not seen. Returns what the sums so
// far are to be multiplied by.
__device__ __forceinline__ float softmax(float (&s)[KEYS / 8][4], u32 (&hi)[KEYS / 16][4], u32 (&lo)[KEYS / 16][4], float& m,
                                         float& sum, int last, int h) {
    float top = m;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float& x = s[j][2 * h + e];
            if (j * 8 + e > last) x = -INF;
            top = fmaxf(top, x); // a NaN comes through its exponential
        }
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
    float base = top == -INF ? 0.0f : top, scale = exp2_approx(m - base);
    m = top;
    sum *= scale;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
        float x = exp2_approx(s[j][2 * h] - base), y = exp2_approx(s[j][2 * h + 1] - base);
        sum += x + y;
        split_bf16(x, y, hi[j / 2][j % 2 * 2 + h], lo[j / 2][j % 2 * 2 + h]);
    }
    return scale;
}

// acc += P V for N fragments of 16 columns, from the fragment `v` points at on; 16 keys.
template <int N>
__device__ __forceinline__ void add_values(float (*acc)[4], const u32 (&hi)[4], const u32 (&lo)[4], const char* v) {
    u32 b[N][4];
#pragma unroll
    for (int i = 0; i < N; i++) ldmatrix_x4_trans(b[i], v + i * 32);
    multiply(acc, hi, b);
    multiply(acc, lo, b);
    if (SPLIT) {
#pragma unroll
        for (int i = 0; i < N; i++) ldmatrix_x4_trans(b[i], v + TILE + i * 32);
        multiply(acc, hi, b);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
attend_prefill(float* out, const float* proj, const void* pool, const u32* pages, const u32* seg_row, const u32* seg_len,
               const u32* seg_start, u32 max_pages, u32 layer, u32 ldo, u32 ldp) {
    char* q = SMEM;                               // [hi, lo][ROWS]
    char* k = q + 2 * Q_LO;                       // [hi, lo][KEYS]
    char* v = k + (SPLIT ? 2 : 1) * TILE;         // [hi, lo][KEYS]
    u32* not_finite = (u32*)(SMEM + DEPTH * 2);   // least key whose value was taken out; behind the first row
    u32 seg = blockIdx.z, head = blockIdx.x, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    u32 len = seg_len[seg];
    launch_dependents();
    wait_for_previous();
    if (first >= len) return;
    u32 n = len - first < ROWS ? len - first : ROWS;
    u32 row0 = seg_row[seg] + first, position0 = seg_start[seg] + first;
    const Pages at = {(const char*)pool + ((u64)layer * 2 * NKV + head / QUERIES) * HEAD_BYTES,
                      pages + (u64)seg * max_pages, position0 + n};
    at.fill(k, 0, 0);

    // Q, scaled for a softmax of powers of two; zeros past the last row, and in all rows past HD
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * LANES; i += THREADS) {
        u32 r = i / LANES, column = i % LANES * 8;
        float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (r < n) {
            const float* from = proj + (u64)(row0 + r) * ldp + head * HEAD_STRIDE + column;
            float4 a = *(const float4*)from, b = *(const float4*)(from + 4);
            x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] *= LOG2_E * rsqrtf((float)HD);
        uint4 hi, lo;
        Pages::split8(hi, lo, x);
        *(uint4*)(q + r * STRIDE + column * 2) = hi;
        *(uint4*)(q + Q_LO + r * STRIDE + column * 2) = lo;
    }
    if (HD % 16)
        for (u32 r = threadIdx.x; r < 2 * ROWS + (SPLIT ? 4 : 2) * KEYS; r += THREADS)
            *(uint4*)(q + r * STRIDE + HD * 2) = make_uint4(0, 0, 0, 0);
    if (threadIdx.x == 0) *not_finite = ~0u;

    // The lane's rows of fragments; it holds rows g and g + 8, columns 2 t and 2 t + 1 of sums.
    u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, row = threadIdx.x / WARP * 16;
    const char* lane_q = q + (row + lane % 16) * STRIDE + lane / 16 * 16;
    const char* lane_k = k + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 16;
    const char* lane_v = v + lane % 16 * STRIDE + lane / 16 * 16;
    u32 position = position0 + row + g; // of row g: the last key it sees
    float acc[DEPTH / 8][4];
#pragma unroll
    for (int j = 0; j < DEPTH / 8; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
    float m[2] = {-INF, -INF}, sum[2] = {0, 0}; // of this lane's columns
    u32 hi[KEYS / 16][4], lo[KEYS / 16][4]; // P
    for (u32 key0 = 0; key0 < at.limit; key0 += KEYS) {
        bool busy = row < n && key0 < position0 + row + 16; // the warp sees a key of this tile
        cp_async_wait<0>();
        __syncthreads(); // K has come, the V before is used up
        at.fill(v, 1, key0);
        if (busy) {
            float s[KEYS / 8][4];
            scores(s, lane_q, lane_k);
            // of the keys that row g sees, the last, counted from this lane's first; when there is more in the tile
            int last = key0 + KEYS > position0 + row + 1 ? (int)(position - key0) - (int)t * 2 : KEYS;
            float scale[2];
#pragma unroll
            for (int h = 0; h < 2; h++) scale[h] = softmax(s, hi, lo, m[h], sum[h], last + h * 8, h);
            if (__any_sync(FULL, scale[0] != 1.0f || scale[1] != 1.0f))
#pragma unroll
                for (int j = 0; j < DEPTH / 8; j++)
                    acc[j][0] *= scale[0], acc[j][1] *= scale[0], acc[j][2] *= scale[1], acc[j][3] *= scale[1];
        }
        cp_async_wait<0>();
        if (key0 + KEYS > position0 + 1) Pages::clean(v, key0, not_finite);
        __syncthreads(); // V has come, K is used up
        if (key0 + KEYS < at.limit) at.fill(k, 0, key0 + KEYS);
        if (busy)
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) {
                const char* step = lane_v + i * 16 * STRIDE;
                constexpr int WHOLE = DEPTH / 16 / GROUP * GROUP, REST = DEPTH / 16 - WHOLE;
#pragma unroll
                for (int j = 0; j < WHOLE; j += GROUP) add_values<GROUP>(acc + 2 * j, hi[i], lo[i], step + j * 32);
                if constexpr (REST > 0) add_values<REST>(acc + 2 * WHOLE, hi[i], lo[i], step + WHOLE * 32);
            }
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        // 0, or NaN for all of a row that has seen anything that is not finite
        float spoilt = position + h * 8 >= *not_finite ? NOT_A_NUMBER : 0.0f;
#pragma unroll
        for (int j = 0; j < HD / 8; j++) spoilt += acc[j][2 * h] * 0.0f + acc[j][2 * h + 1] * 0.0f;
        sum[h] += __shfl_xor_sync(FULL, sum[h], 1);
        spoilt += __shfl_xor_sync(FULL, spoilt, 1);
        sum[h] += __shfl_xor_sync(FULL, sum[h], 2);
        spoilt += __shfl_xor_sync(FULL, spoilt, 2);
        float scale = 1.0f / sum[h];
        u32 r = row + g + h * 8;
        if (r >= n) continue;
        const float* gate = proj + (u64)(row0 + r) * ldp + head * HEAD_STRIDE + HD + t * 2;
        float* to = out + (u64)(row0 + r) * ldo + head * HD + t * 2;
#pragma unroll
        for (int j = 0; j < HD / 8; j++) {
            float2 o = make_float2(acc[j][2 * h] * scale + spoilt, acc[j][2 * h + 1] * scale + spoilt);
            if (GATED) {
                float2 z = *(const float2*)(gate + j * 8);
                o.x = __fdividef(o.x, 1.0f + expf(-z.x)), o.y = __fdividef(o.y, 1.0f + expf(-z.y));
            }
            *(float2*)(to + j * 8) = o;
        }
    }
}
EXPORT(attend_prefill)
