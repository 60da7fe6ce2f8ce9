// gdn_chunked: the gated delta rule over the rows of whole segments, 64 tokens at a time, in place of delta_rule.
//
// Of a chunk with decays g, G_i = Σ_{j≤i} g_j, Γ_ij = exp(G_i − G_j) for j ≤ i and incoming state S, with normed q̂ and k̂:
//
//   T = (I + A)⁻¹, A_ij = β_i (k̂_i·k̂_j) Γ_ij for j < i;  P_ij = (q̂_i·k̂_j) Γ_ij for j ≤ i
//   V' = T (β V − β e^G K̂ S);  O = e^G Q̂ S + P V';  S ← e^{G_n} S + K̂ᵀ (e^{G_n − G} V')
//
//   chunk_matrices  T, P and what scales rows: grid (HV, chunks, segments), block 128, all chunks at once
//   delta_chunks    o, S: grid (HV, DV / COLUMNS, segments), block 128, one chunk after another
//   both overlapped
//
// Chunks start at multiples of 64 of a segment, and segments where a chunk of their sequence does: then bits do not depend
// on cuts. Products are those of the tensor cores, each operand as the sum of two bf16, three of the four products taken:
// 16 bits of each factor, sums in f32. Exponents are at most 0: what is masked is masked before.
#include "common.cuh"

static constexpr int C = 2 * HK * DK + HV * DV, B = C + HV * DV, A = B + HV;
static constexpr int TOKENS = 64;
static constexpr int STEPS = (DK + 15) / 16;          // of 16 rows of S
static constexpr int ROW_TILES = (DK + 63) / 64;      // of 16 rows of S, of a warp
static constexpr int COLUMNS = DK > 128 ? 16 : 32;    // of S, of a block
static constexpr int TILES = COLUMNS / 8;
static constexpr int LDT = TOKENS + 8;                // between columns of planes over tokens
static constexpr int LDA = TOKENS + 4;                // between rows of A
// Of a chunk and head: T and P [64, 64], of each row four scalars, and e^{G_n}.
enum { AT_P = TOKENS * TOKENS, AT_ROWS = 2 * AT_P, AT_DECAY = AT_ROWS + 4 * TOKENS, CHUNK_FLOATS = AT_DECAY + 64 };
enum { K_SCALE, Q_SCALE, BETA, WRITE }; // x, y, z and w

// Where a chunk's matrices lie: no two chunks of a batch have the same place.
__device__ __forceinline__ float* chunk_of(float* chunks, u32 row, u32 seg, u32 h) {
    return chunks + ((u64)(row / TOKENS + seg) * HV + h) * CHUNK_FLOATS;
}

// Two floats as bf16 pairs with hi + lo ≈ x.
__device__ __forceinline__ void split(u32& hi, u32& lo, float2 x) {
    hi = pack_bf16(x.x, x.y);
    lo = pack_bf16(x.x - bf16_lo(hi), x.y - bf16_hi(hi));
}

// A matrix as two planes of bf16 in shared memory, [columns, ld].
struct Planes {
    u16* hi;
    u32 ld, plane;
    __device__ __forceinline__ void set(u32 column, u32 row, float x) {
        u32 h = pack_bf16(x, 0.0f);
        hi[column * ld + row] = (u16)h;
        hi[plane + column * ld + row] = (u16)pack_bf16(x - bf16_lo(h), 0.0f);
    }
    // Rows `row` and row + 1; both even.
    __device__ __forceinline__ u32 pair(u32 half, u32 column, u32 row) const {
        return *(const u32*)(hi + half * plane + column * ld + row);
    }
};

// A factor of 16 rows, 16 columns from k on, spread over the warp: as it was read, and split.
struct Raw {
    float2 x[4];
    template <class F> __device__ __forceinline__ void read(u32 k, F pair) {
        u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
        x[0] = pair(g, k + t), x[1] = pair(g + 8, k + t), x[2] = pair(g, k + t + 8), x[3] = pair(g + 8, k + t + 8);
    }
};
struct Fragment {
    u32 hi[4], lo[4];
    __device__ __forceinline__ Fragment(const Raw& raw) {
#pragma unroll
        for (int i = 0; i < 4; i++) split(hi[i], lo[i], raw.x[i]);
    }
};

// c += a b over 16 rows of b from k on.
__device__ __forceinline__ void multiply(float (&c)[4], const Fragment& a, const Planes& b, u32 column, u32 k) {
    u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
    u32 h0 = b.pair(0, column + g, k + t), h1 = b.pair(0, column + g, k + t + 8);
    mma_bf16(c, a.hi, h0, h1);
    mma_bf16(c, a.lo, h0, h1);
    mma_bf16(c, a.hi, b.pair(1, column + g, k + t), b.pair(1, column + g, k + t + 8));
}

// The elements of c: f(row, column, element), rows of 16.
template <class F> __device__ __forceinline__ void each(float (&c)[4], u32 column, F f) {
    u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
    f(g, column + t, c[0]), f(g, column + t + 1, c[1]);
    f(g + 8, column + t, c[2]), f(g + 8, column + t + 1, c[3]);
}

// Elements r and r + 1 of a head's vector; beyond it, and where there is no token, zeros.
__device__ __forceinline__ float2 vector_pair(const float* x, u32 r, bool in) {
    if (DK % 2 == 0) return in && r < DK ? *(const float2*)(x + r) : make_float2(0, 0);
    return make_float2(in && r < DK ? x[r] : 0.0f, in && r + 1 < DK ? x[r + 1] : 0.0f);
}

extern "C" __global__ void __launch_bounds__(128)
chunk_matrices(float* chunks, const float* qkv, const float* proj, const float* a_log, const float* dt_bias,
               const u32* seg_row, const u32* seg_len, u32 ldq, u32 ldp) {
    launch_dependents();
    wait_for_previous();
    u32 h = blockIdx.x, seg = blockIdx.z, t0 = blockIdx.y * TOKENS;
    if (t0 >= seg_len[seg]) return;
    u32 n = min(seg_len[seg] - t0, (u32)TOKENS), first = seg_row[seg] + t0, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* out = chunk_of(chunks, first, seg, h);
    const float *q = qkv + (u64)first * ldq + h / (HV / HK) * DK, *k = q + HK * DK;
    float* a = (float*)SMEM; // [TOKENS, LDA]
    float *rq = a + TOKENS * LDA, *rk = rq + TOKENS, *beta = rk + TOKENS, *g = beta + TOKENS, *sums = g + TOKENS;
    Planes keys = {(u16*)(sums + TOKENS), STEPS * 16 + 8, TOKENS * (STEPS * 16 + 8)}; // a column a token
    for (u32 i = warp; i < TOKENS; i += 4) {
        float q2 = 0, k2 = 0;
        for (u32 r = lane; r < STEPS * 16; r += 32) {
            bool in = i < n && r < DK;
            float x = in ? q[(u64)i * ldq + r] : 0.0f, y = in ? k[(u64)i * ldq + r] : 0.0f;
            q2 += x * x, k2 += y * y;
            keys.set(i, r, y);
        }
        q2 = warp_sum(q2), k2 = warp_sum(k2);
        if (lane == 0) rq[i] = q2, rk[i] = k2;
    }
    if (threadIdx.x < TOKENS) {
        u32 i = threadIdx.x;
        const float* p = proj + (u64)(first + i) * ldp;
        beta[i] = i < n ? sigmoid(p[B + h]) : 0.0f;
        g[i] = i < n ? -expf(a_log[h]) * softplus(p[A + h] + dt_bias[h]) : 0.0f;
    }
    __syncthreads();
    if (threadIdx.x < TOKENS) {
        float sum = 0;
        for (u32 i = 0; i <= threadIdx.x; i++) sum += g[i];
        sums[threadIdx.x] = sum;
    } else {
        u32 i = threadIdx.x - TOKENS;
        rq[i] = rsqrtf(rq[i] + 1e-6f) * rsqrtf((float)DK), rk[i] = rsqrtf(rk[i] + 1e-6f);
    }
    __syncthreads();
    float kk[TOKENS / 8][4] = {}, qk[TOKENS / 8][4] = {};
    auto row_of_k = [&](u32 i, u32 r) { return vector_pair(k + (u64)(warp * 16 + i) * ldq, r, warp * 16 + i < n); };
    auto row_of_q = [&](u32 i, u32 r) { return vector_pair(q + (u64)(warp * 16 + i) * ldq, r, warp * 16 + i < n); };
    Raw next_k, next_q;
    next_k.read(0, row_of_k), next_q.read(0, row_of_q);
    for (u32 step = 0; step < STEPS; step++) {
        Fragment of_k(next_k), of_q(next_q);
        next_k.read(step * 16 + 16, row_of_k), next_q.read(step * 16 + 16, row_of_q); // beyond the last: zeros
#pragma unroll
        for (int tile = 0; tile < TOKENS / 8; tile++) {
            if (tile >= 2 * (int)warp + 2) continue; // above the diagonal
            multiply(kk[tile], of_k, keys, tile * 8, step * 16);
            multiply(qk[tile], of_q, keys, tile * 8, step * 16);
        }
    }
#pragma unroll
    for (int tile = 0; tile < TOKENS / 8; tile++) {
        each(kk[tile], tile * 8, [&](u32 row, u32 j, float x) {
            u32 i = warp * 16 + row;
            a[i * LDA + j] = j < i && i < n ? beta[i] * rk[i] * rk[j] * expf(sums[i] - sums[j]) * x : 0.0f;
        });
        each(qk[tile], tile * 8, [&](u32 row, u32 j, float x) {
            u32 i = warp * 16 + row;
            out[AT_P + i * TOKENS + j] = j <= i && i < n ? rq[i] * rk[j] * expf(sums[i] - sums[j]) * x : 0.0f;
        });
    }
    __syncthreads();
    if (threadIdx.x < TOKENS) { // a column of T a thread
        float t[TOKENS];
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            float sum[4] = {};
#pragma unroll
            for (int m = 0; m < i; m += 4) { // A is zero from its diagonal on
                float4 x = *(const float4*)(a + i * LDA + m);
                sum[0] += x.x * t[m];
                if (m + 1 < i) sum[1] += x.y * t[m + 1];
                if (m + 2 < i) sum[2] += x.z * t[m + 2];
                if (m + 3 < i) sum[3] += x.w * t[m + 3];
            }
            t[i] = ((u32)i == threadIdx.x ? 1.0f : 0.0f) - ((sum[0] + sum[1]) + (sum[2] + sum[3]));
            out[i * TOKENS + threadIdx.x] = t[i];
        }
    } else {
        u32 i = threadIdx.x - TOKENS;
        float* row = out + AT_ROWS + i * 4;
        float decay = expf(sums[i]), total = sums[TOKENS - 1];
        row[K_SCALE] = beta[i] * decay * rk[i], row[Q_SCALE] = decay * rq[i], row[BETA] = beta[i];
        row[WRITE] = expf(total - sums[i]) * rk[i];
        if (i == 0) out[AT_DECAY] = expf(total);
    }
}
EXPORT(chunk_matrices)

// A warp's rows 64 m + 16 warp + … of S, in the columns of a block.
struct State {
    float x[ROW_TILES][TILES][4];
    template <class F> __device__ __forceinline__ void each(F f) {
        u32 warp = threadIdx.x / 32;
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                ::each(x[m][tile], tile * 8, [&](u32 row, u32 c, float& x) { f(m * 64 + warp * 16 + row, c, x); });
    }
};

extern "C" __global__ void __launch_bounds__(128, 2)
delta_chunks(float* o, const float* qkv, float* chunks, float* state, const u32* seg_row, const u32* seg_len,
             const u32* seg_slot, u32 ldo, u32 ldq) {
    launch_dependents();
    wait_for_previous();
    u32 h = blockIdx.x, v0 = blockIdx.y * COLUMNS, seg = blockIdx.z, warp = threadIdx.x / 32;
    constexpr u32 LDS = ROW_TILES * 64 + 8;
    Planes of_s = {(u16*)SMEM, LDS, COLUMNS * LDS};
    Planes rest = {of_s.hi + 2 * of_s.plane, LDT, COLUMNS * LDT};  // β V − β e^G K̂ S
    Planes values = {rest.hi + 2 * rest.plane, LDT, rest.plane};   // V'
    Planes writes = {values.hi + 2 * rest.plane, LDT, rest.plane}; // e^{G_n − G} V' / ‖k‖
    state += ((u64)seg_slot[seg] * HV + h) * DK * DV;
    State s;
    s.each([&](u32 r, u32 c, float& x) { x = r < DK && v0 + c < DV ? state[(u64)r * DV + v0 + c] : 0.0f; });
    u32 len = seg_len[seg];
    for (u32 t0 = 0; t0 < len; t0 += TOKENS) {
        u32 n = min(len - t0, (u32)TOKENS), first = seg_row[seg] + t0;
        const float* chunk = chunk_of(chunks, first, seg, h);
        const float *q = qkv + (u64)first * ldq + h / (HV / HK) * DK, *k = q + HK * DK;
        const float* v = qkv + (u64)first * ldq + 2 * HK * DK + h * DV + v0;
        auto row_of_k = [&](u32 i, u32 r) { return vector_pair(k + (u64)(warp * 16 + i) * ldq, r, warp * 16 + i < n); };
        auto row_of_q = [&](u32 i, u32 r) { return vector_pair(q + (u64)(warp * 16 + i) * ldq, r, warp * 16 + i < n); };
        const float *t_rows = chunk + warp * 16 * TOKENS, *p_rows = t_rows + AT_P;
        auto row_of_t = [&](u32 i, u32 j) { return *(const float2*)(t_rows + i * TOKENS + j); };
        auto row_of_p = [&](u32 i, u32 j) { return *(const float2*)(p_rows + i * TOKENS + j); };
        // What is needed next is read before what is needed now is worked on.
        Raw next_k, next_q, next_t, next_p;
        next_k.read(0, row_of_k), next_q.read(0, row_of_q);
        float decay = chunk[AT_DECAY], value[TILES][4];
        float4 rows[2]; // what scales this thread's two rows
        rows[0] = *(const float4*)(chunk + AT_ROWS + (warp * 16 + threadIdx.x % 32 / 4) * 4);
        rows[1] = *(const float4*)(chunk + AT_ROWS + (warp * 16 + threadIdx.x % 32 / 4 + 8) * 4);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            each(value[tile], tile * 8, [&](u32 row, u32 c, float& x) {
                x = warp * 16 + row < n && v0 + c < DV ? v[(u64)(warp * 16 + row) * ldq + c] : 0.0f;
            });
        s.each([&](u32 r, u32 c, float& x) { of_s.set(c, r, x); });
        __syncthreads();
        float ks[TILES][4] = {}, y[TILES][4] = {}, d[TILES][4] = {};
        for (u32 step = 0; step < STEPS; step++) {
            Fragment of_k(next_k), of_q(next_q);
            next_k.read(step * 16 + 16, row_of_k), next_q.read(step * 16 + 16, row_of_q); // beyond the last: zeros
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply(ks[tile], of_k, of_s, tile * 8, step * 16);
                multiply(y[tile], of_q, of_s, tile * 8, step * 16);
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 scale = rows[i / 2];
                ks[tile][i] = scale.z * value[tile][i] - scale.x * ks[tile][i];
                y[tile][i] *= scale.y;
            }
            each(ks[tile], tile * 8, [&](u32 row, u32 c, float x) { rest.set(c, warp * 16 + row, x); });
        }
        next_t.read(0, row_of_t), next_p.read(0, row_of_p);
        __syncthreads();
        for (u32 step = 0; step <= warp; step++) { // T and P are zero above their diagonals
            Fragment a(next_t);
            next_t.read((step * 16 + 16) % TOKENS, row_of_t);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) multiply(d[tile], a, rest, tile * 8, step * 16);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            each(d[tile], tile * 8, [&](u32 row, u32 c, float x) {
                values.set(c, warp * 16 + row, x);
                writes.set(c, warp * 16 + row, rows[row / 8].w * x);
            });
        __syncthreads();
        for (u32 step = 0; step <= warp; step++) {
            Fragment a(next_p);
            next_p.read((step * 16 + 16) % TOKENS, row_of_p);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) multiply(y[tile], a, values, tile * 8, step * 16);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            each(y[tile], tile * 8, [&](u32 row, u32 c, float x) {
                u32 i = warp * 16 + row;
                if (i < n && v0 + c < DV) o[(u64)(first + i) * ldo + h * DV + v0 + c] = x;
            });
        s.each([&](u32, u32, float& x) { x *= decay; });
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
            auto column_of_k = [&](u32 row, u32 i) { // a row of k̂ᵀ
                u32 r = m * 64 + warp * 16 + row;
                const float* x = k + (u64)i * ldq + r;
                return make_float2(r < DK && i < n ? x[0] : 0.0f, r < DK && i + 1 < n ? x[ldq] : 0.0f);
            };
            next_k.read(0, column_of_k);
            for (u32 step = 0; step < TOKENS / 16; step++) {
                Fragment of_k(next_k);
                next_k.read(step * 16 + 16, column_of_k); // beyond the last: zeros
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) multiply(s.x[m][tile], of_k, writes, tile * 8, step * 16);
            }
        }
    }
    s.each([&](u32 r, u32 c, float& x) {
        if (r < DK && v0 + c < DV) state[(u64)r * DV + v0 + c] = x;
    });
}
EXPORT(delta_chunks)
