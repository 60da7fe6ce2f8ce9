// gdn_sequence: the gated delta net over the rows of whole segments, token by token, so that any cut of a prompt gives
// the same bits. Formulas in gdn.cuh.
//
//   causal_conv1d   qkv = silu(conv(u)): grid (C / 256, rows), block 256
//   conv_advance    the last TAPS inputs of a segment to its ring: grid (C / 256, segments), block 256
//   delta_scalars   what the rule needs of a token and head beside vectors: grid (HK / 8, rows), block 256, a warp a key head
//   delta_rule      o, S: grid (HV warps(DV) / 4, segments), block 128; a warp has 12 columns of S in its registers
//   rms_norm_gated  o = o · rsqrt(mean(o²) + eps) · w · silu(z): grid (HV / 8, rows), block 256, a warp a head
//   all overlapped
//   traffic         the projections a few times, the state once a segment
//
// delta_rule is bound by its arithmetic: four operations a token and element of S. So a thread has 48 elements (16 rows of
// 3 columns), which spread the reads of q and k, and S of 48 heads of 128 × 128 is 528 warps: one on each scheduler of 132
// multiprocessors. q and k of the next tokens come while those of the last are worked on.
#include "common.cuh"

static constexpr int C = 2 * HK * DK + HV * DV, Z = C, B = Z + HV * DV, A = B + HV;

extern "C" __global__ void causal_conv1d(float* qkv, const float* proj, const float* taps, const float* ring,
                                         const u32* segment, const u32* seg_row, const u32* seg_slot,
                                         const u32* positions, u32 ldq, u32 ldp) {
    launch_dependents();
    wait_for_previous();
    u32 c = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
    if (c >= C) return;
    u32 s = segment[row], position = positions[row], before = row - seg_row[s];
    ring += (u64)seg_slot[s] * TAPS * C;
    float x = 0;
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
        u32 back = TAPS - 1 - tap;
        float u = 0;
        if (back <= before) u = proj[(u64)(row - back) * ldp + c];
        else if (back <= position) u = ring[(position - back) % TAPS * C + c];
        x += taps[tap * C + c] * u;
    }
    qkv[(u64)row * ldq + c] = silu(x);
}
EXPORT(causal_conv1d)

extern "C" __global__ void conv_advance(float* ring, const float* proj, const u32* seg_row, const u32* seg_len,
                                        const u32* seg_start, const u32* seg_slot, u32 ldp) {
    launch_dependents();
    wait_for_previous();
    u32 c = blockIdx.x * 256 + threadIdx.x, s = blockIdx.y;
    if (c >= C) return;
    ring += (u64)seg_slot[s] * TAPS * C;
    u32 len = seg_len[s];
    for (u32 i = len > TAPS ? len - TAPS : 0; i < len; i++)
        ring[(seg_start[s] + i) % TAPS * C + c] = proj[(u64)(seg_row[s] + i) * ldp + c];
}
EXPORT(conv_advance)

// Scalars of a token and value head: e = b (v − a_k Sᵀk), o = a_q Sᵀq + c e, S ← α S + k eᵀ; q and k are not normed.
enum { ALPHA, A_K, A_Q, WRITE, C_Q, SCALARS = 8 };

extern "C" __global__ void delta_scalars(float* scalars, const float* qkv, const float* proj, const float* a_log,
                                         const float* dt_bias, u32 ldq, u32 ldp) {
    launch_dependents();
    wait_for_previous();
    u32 kh = blockIdx.x * 8 + threadIdx.x / 32, row = blockIdx.y, lane = threadIdx.x % 32;
    if (kh >= HK) return;
    const float *q = qkv + (u64)row * ldq + kh * DK, *k = q + HK * DK, *p = proj + (u64)row * ldp;
    float q2 = 0, k2 = 0, qk = 0;
    for (u32 i = lane; i < DK; i += 32) {
        float x = q[i], y = k[i];
        q2 += x * x, k2 += y * y, qk += x * y;
    }
    float rq = rsqrtf(warp_sum(q2) + 1e-6f) * rsqrtf((float)DK), rk = rsqrtf(warp_sum(k2) + 1e-6f);
    qk = warp_sum(qk);
    for (u32 h = kh * (HV / HK) + lane; h < (kh + 1) * (HV / HK); h += 32) {
        float alpha = expf(-expf(a_log[h]) * softplus(p[A + h] + dt_bias[h])), beta = sigmoid(p[B + h]);
        float* to = scalars + ((u64)row * HV + h) * SCALARS;
        to[ALPHA] = alpha, to[A_K] = alpha * rk, to[A_Q] = alpha * rq, to[WRITE] = beta * rk, to[C_Q] = rq * qk;
    }
}
EXPORT(delta_scalars)

static constexpr int COLUMNS = 3;      // of S, of a thread
static constexpr int OF_WARP = 4 * COLUMNS, OF_BLOCK = 4 * OF_WARP;
static constexpr int STEPS = (DK + 31) / 32, DKP = 32 * STEPS;
static constexpr int WARPS_OF_HEAD = (DV + OF_WARP - 1) / OF_WARP;
static constexpr int HEADS = (WARPS_OF_HEAD + 2) / WARPS_OF_HEAD + 1; // most heads that four warps belong to
static constexpr int TOKEN_FLOATS = HEADS * (2 * DKP + SCALARS) + OF_BLOCK;
// Tokens of a tile; two tiles fit in 96 KB.
static constexpr int TOKENS = TOKEN_FLOATS <= 768 ? 16 : TOKEN_FLOATS <= 1536 ? 8 : 4;
static constexpr int QUAD = DK % 4 == 0 && DV % 4 == 0 ? 4 : 1; // floats copied at a time

// Four floats, or one, to shared memory by the next wait and barrier.
__device__ __forceinline__ void fetch(float* to, const float* from) {
    if (QUAD == 4) cp_async16(to, from);
    else *to = *from;
}

// What a thread reads of a token: its rows of q and k, and what belongs to its columns.
struct Token {
    float k[STEPS][4], q[STEPS][4]; // rows 32 i + 4 lane8 + j
    float4 scalars;
    float c_q, v[COLUMNS];
    // Vectors at `qk`, [2, DKP].
    __device__ __forceinline__ void read(const float* qk, const float* of_head, const float* values) {
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            float4 x = *(const float4*)(qk + DKP + i * 32), y = *(const float4*)(qk + i * 32);
            k[i][0] = x.x, k[i][1] = x.y, k[i][2] = x.z, k[i][3] = x.w;
            q[i][0] = y.x, q[i][1] = y.y, q[i][2] = y.z, q[i][3] = y.w;
        }
        scalars = *(const float4*)of_head;
        c_q = of_head[C_Q];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) v[c] = values[c];
    }
};

// A thread's rows of its columns of S. Each sum is one chain; three columns side by side hide what an addition takes.
struct Columns {
    float s[COLUMNS][STEPS][4];

    template <class F> __device__ __forceinline__ void each(F f) {
#pragma unroll
        for (int i = 0; i < STEPS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) f(c, i, j, s[c][i][j]);
    }

    // Advances S by a token; returns one element of o, column lane8 / 2, in the lanes 0, 2 and 4 of 8.
    __device__ __forceinline__ float step(const Token& x, u32 lane8) {
        float alpha = x.scalars.x, a_k = x.scalars.y, a_q = x.scalars.z, write = x.scalars.w;
        float sk[COLUMNS] = {}, sq[COLUMNS] = {}, e[COLUMNS];
        each([&](int c, int i, int j, float& s) { sk[c] += s * x.k[i][j]; });
#pragma unroll
        for (int m = 4; m; m >>= 1)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) sk[c] += __shfl_xor_sync(FULL, sk[c], m);
        each([&](int c, int i, int j, float& s) { // while the sums are on their way
            sq[c] += s * x.q[i][j];
            s = __fmul_rn(s, alpha);
        });
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) e[c] = write * (x.v[c] - a_k * sk[c]);
        each([&](int c, int i, int j, float& s) { s += x.k[i][j] * e[c]; });
        // The lanes 4 … 7 sum column 2; of the others, 2 and 3 column 1, 0 and 1 column 0.
        bool third = lane8 & 4, second = lane8 & 2;
        float low = (third ? sq[2] : sq[0]) + __shfl_xor_sync(FULL, third ? sq[0] : sq[2], 4);
        float high = sq[1] + __shfl_xor_sync(FULL, sq[1], 4);
        float sum = (second ? high : low) + __shfl_xor_sync(FULL, second ? low : high, 2);
        sum += __shfl_xor_sync(FULL, sum, 1);
        return a_q * sum + x.c_q * (third ? e[2] : second ? e[1] : e[0]);
    }
};

extern "C" __global__ void __launch_bounds__(128, 2)
delta_rule(float* o, const float* qkv, const float* scalars, float* state, const u32* seg_row, const u32* seg_len,
           const u32* seg_slot, u32 ldo, u32 ldq) {
    launch_dependents();
    wait_for_previous();
    u32 seg = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, lane8 = lane % 8;
    u32 item = blockIdx.x * 4 + warp, h = item / WARPS_OF_HEAD;
    u32 first_of_warp = item % WARPS_OF_HEAD * OF_WARP;
    if (h >= HV) h = HV - 1, first_of_warp = DV; // a warp too many: no column
    u32 column = first_of_warp + lane / 8 * COLUMNS;
    u32 h0 = blockIdx.x * 4 / WARPS_OF_HEAD, h1 = min((blockIdx.x * 4 + 3) / WARPS_OF_HEAD, (u32)HV - 1);
    u32 kh0 = h0 / (HV / HK), key_heads = h1 / (HV / HK) - kh0 + 1, heads = h1 - h0 + 1;
    state += ((u64)seg_slot[seg] * HV + h) * DK * DV;
    u32 first = seg_row[seg], len = seg_len[seg];

    // A tile: q and k [TOKENS, HEADS, 2, DKP], scalars [TOKENS, HEADS, SCALARS], v [TOKENS, OF_BLOCK].
    float* tiles = (float*)SMEM;
    constexpr u32 AT_SCALARS = TOKENS * HEADS * 2 * DKP, AT_V = AT_SCALARS + TOKENS * HEADS * SCALARS;
    auto stage = [&](u32 t0, float* tile) {
        u32 n = min(len - t0, (u32)TOKENS);
        for (u32 t = warp; t < n; t += 4) {
            const float* x = qkv + (u64)(first + t0 + t) * ldq + kh0 * DK;
            float* to = tile + t * HEADS * 2 * DKP;
            for (u32 head = 0; head < key_heads; head++)
                for (u32 r = lane * QUAD; r < DK; r += 32 * QUAD) {
                    fetch(to + head * 2 * DKP + r, x + head * DK + r);
                    fetch(to + head * 2 * DKP + DKP + r, x + HK * DK + head * DK + r);
                }
            const float* of = scalars + ((u64)(first + t0 + t) * HV + h0) * SCALARS;
            if (lane < heads * 2) cp_async16(tile + AT_SCALARS + t * HEADS * SCALARS + lane * 4, of + lane * 4);
        }
        for (u32 i = lane; i < n * (OF_WARP / QUAD); i += 32) {
            u32 t = i / (OF_WARP / QUAD), c = i % (OF_WARP / QUAD) * QUAD;
            const float* x = qkv + (u64)(first + t0 + t) * ldq + 2 * HK * DK + h * DV + first_of_warp;
            if (first_of_warp + c < DV) fetch(tile + AT_V + t * OF_BLOCK + warp * OF_WARP + c, x + c);
        }
        cp_async_commit();
    };
    if (DK < DKP) { // rows that are not there stay zero
        for (u32 i = threadIdx.x; i < 2 * TOKENS * TOKEN_FLOATS; i += 128) tiles[i] = 0;
        __syncthreads();
    }
    stage(0, tiles);
    Columns columns;
    columns.each([&](int c, int i, int j, float& s) {
        u32 r = i * 32 + lane8 * 4 + j;
        s = column + c < DV && r < DK ? state[(u64)r * DV + column + c] : 0.0f;
    });
    bool writes = lane8 % 2 == 0 && lane8 / 2 < COLUMNS && column + lane8 / 2 < DV;
    o += (u64)first * ldo + h * DV + column + lane8 / 2;
    for (u32 t0 = 0, tile = 0; t0 < len; t0 += TOKENS, tile ^= 1) {
        u32 n = min(len - t0, (u32)TOKENS);
        cp_async_wait<0>();
        __syncthreads(); // also: nobody reads the other tile any more
        if (t0 + TOKENS < len) stage(t0 + TOKENS, tiles + (tile ^ 1) * TOKENS * TOKEN_FLOATS);
        const float* at = tiles + tile * TOKENS * TOKEN_FLOATS;
        const float* qk = at + (h / (HV / HK) - kh0) * 2 * DKP + lane8 * 4;
        const float* of_head = at + AT_SCALARS + (h - h0) * SCALARS;
        const float* v = at + AT_V + warp * OF_WARP + lane / 8 * COLUMNS;
        auto read = [&](Token& x, u32 t) {
            x.read(qk + t * HEADS * 2 * DKP, of_head + t * HEADS * SCALARS, v + t * OF_BLOCK);
        };
        auto step = [&](const Token& x) {
            float y = columns.step(x, lane8);
            if (writes) *o = y;
            o += ldo;
        };
        Token even, odd; // one is read while the other is worked on
        read(even, 0);
        u32 t = 0;
        for (; t + 2 <= n; t += 2) {
            read(odd, t + 1);
            step(even);
            read(even, t + 2 < TOKENS ? t + 2 : 0);
            step(odd);
        }
        if (t < n) step(even);
    }
    columns.each([&](int c, int i, int j, float& s) {
        u32 r = i * 32 + lane8 * 4 + j;
        if (column + c < DV && r < DK) state[(u64)r * DV + column + c] = s;
    });
}
EXPORT(delta_rule)

extern "C" __global__ void rms_norm_gated(float* o, const float* proj, const float* w, float eps, u32 ldo, u32 ldp) {
    launch_dependents();
    wait_for_previous();
    u32 h = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (h >= HV) return;
    float* x = o + (u64)blockIdx.y * ldo + h * DV;
    const float* z = proj + (u64)blockIdx.y * ldp + Z + h * DV;
    float sum = 0;
    for (u32 i = lane; i < DV; i += 32) sum += x[i] * x[i];
    float r = rsqrtf(warp_sum(sum) / DV + eps);
    for (u32 i = lane; i < DV; i += 32) x[i] = x[i] * r * w[i] * silu(z[i]);
}
EXPORT(rms_norm_gated)
