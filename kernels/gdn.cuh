// gdn: one token of the gated delta rule for one value head, from the projections to the gated norm.
//
//   c = silu(conv(u));  q̂ = q/‖q‖ · Dk^−½, k̂ = k/‖k‖;  β = sigmoid(b), α = exp(−exp(A_log) · softplus(a + dt_bias))
//   d = β (v − α Sᵀk̂);  o = α Sᵀq̂ + d (k̂·q̂);  S ← α S + k̂ dᵀ;  y = o · rsqrt(mean(o²) + eps) · w · silu(z)
//
// S stays in registers between its one read, which needs nothing of this step and so comes before the wait, as all does that
// needs nothing of it, and its one write. HK, HV, DK, DV and TAPS are defines of the unit. The convolution's inputs lie in a ring of TAPS entries by position, so that no block reads what another writes.
#pragma once
#include "common.cuh"

#define GDN_THREADS 512

struct GdnArgs {
    float* o;           // [rows, ldo]: Hv · Dv
    const float* proj;  // [rows, ldp]: q | k | v | z | b | a
    const float* taps;  // [TAPS, C]
    const float* a_log; // [Hv]
    const float* dt_bias; // [Hv]
    const float* norm;  // [Dv]
    float* state;       // [slots, Hv, Dk, Dv] of this layer
    float* ring;        // [slots, TAPS, C] of this layer
    const u32* slots;   // [rows]
    const u32* positions; // [rows]
    float eps;
    u32 ldo, ldp;
};

struct GdnStep {
    static constexpr int C = 2 * HK * DK + HV * DV;
    static constexpr int Z = C, B = Z + HV * DV, A = B + HV;
    static constexpr int VEC = DV % 4 == 0 ? 4 : 1;
    static constexpr int LANES = DV / VEC;         // threads that span a row of S
    static constexpr int KG = GDN_THREADS / LANES;     // rows of S side by side
    static constexpr int PER = (DK + KG - 1) / KG; // rows of S a thread holds
    static constexpr int CONV = 2 * DK + DV;
    static constexpr int SMEM_FLOATS = CONV + 2 * KG * DV + DV + 3 + GDN_THREADS / 32;
    static_assert(DV <= GDN_THREADS && LANES <= GDN_THREADS, "a head is wider than a block");

    static constexpr int STEPS = (CONV + GDN_THREADS - 1) / GDN_THREADS; // channels of the convolution a thread has

    float s[PER][VEC];
    float taps[STEPS][TAPS], past[STEPS][TAPS - 1]; // of the convolution: its weights and the tokens before this one
    float a_log, dt_bias, weight;
    int h, row, k0, v0;
    bool active;
    float* state;

    // The channel of the convolution whose output lies at `i` of q | k | v of this head.
    __device__ __forceinline__ int channel(int i) const {
        int kh = h / (HV / HK);
        return i >= 2 * DK ? 2 * HK * DK + h * DV + i - 2 * DK : (i < DK ? kh * DK + i : HK * DK + kh * DK + i - DK);
    }

    __device__ __forceinline__ void start(const GdnArgs& a, int head, int at) {
        h = head;
        row = at;
        k0 = threadIdx.x / LANES * PER;
        v0 = threadIdx.x % LANES * VEC;
        active = threadIdx.x < LANES * KG;
        state = a.state + ((u64)a.slots[row] * HV + h) * DK * DV;
#pragma unroll
        for (int i = 0; i < PER; i++) {
            bool in = active && k0 + i < DK;
            const float* from = state + (u64)(k0 + i) * DV + v0;
            if (VEC == 4) {
                float4 x = in ? *(const float4*)from : make_float4(0, 0, 0, 0);
                s[i][0] = x.x, s[i][VEC > 1 ? 1 : 0] = x.y, s[i][VEC > 2 ? 2 : 0] = x.z, s[i][VEC > 3 ? 3 : 0] = x.w;
            } else {
                s[i][0] = in ? *from : 0.0f;
            }
        }
        u32 position = a.positions[row];
        const float* ring = a.ring + (u64)a.slots[row] * TAPS * C;
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            int i = n * GDN_THREADS + threadIdx.x;
            int c = channel(i < CONV ? i : 0);
#pragma unroll
            for (int t = 0; t < TAPS; t++) taps[n][t] = a.taps[t * C + c];
#pragma unroll
            for (int t = 0; t < TAPS - 1; t++) // of position − TAPS + 1 + t, kept positive
                past[n][t] = ring[(position + t + 1) % TAPS * C + c];
        }
        a_log = a.a_log[h];
        dt_bias = a.dt_bias[h];
        weight = threadIdx.x < DV ? a.norm[threadIdx.x] : 0.0f;
    }

    __device__ __forceinline__ void run(const GdnArgs& a, float* smem) {
        float *q = smem, *k = q + DK, *v = k + DK;
        float *part_k = v + DV, *part_q = part_k + KG * DV;
        float *d = part_q + KG * DV, *sums = d + DV, *scratch = sums + 3;
        const float* u = a.proj + (u64)row * a.ldp;
        float* ring = a.ring + ((u64)a.slots[row] * TAPS + a.positions[row] % TAPS) * C;
        float b_in = u[B + h], a_in = u[A + h], z = threadIdx.x < DV ? u[Z + h * DV + threadIdx.x] : 0.0f;
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            int i = n * GDN_THREADS + threadIdx.x;
            if (i >= CONV) continue;
            int c = channel(i);
            float now = u[c], x = 0;
#pragma unroll
            for (int t = 0; t < TAPS - 1; t++) x += taps[n][t] * past[n][t];
            smem[i] = silu(x + taps[n][TAPS - 1] * now);
            if (i >= 2 * DK || h % (HV / HK) == 0) ring[c] = now;
        }
        __syncthreads();
        // Sᵀk and Sᵀq over this thread's rows, and the three inner products of q and k
        float sk[VEC], sq[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) sk[j] = sq[j] = 0;
#pragma unroll
        for (int i = 0; i < PER; i++) {
            if (k0 + i < DK) {
                float kk = k[k0 + i], qq = q[k0 + i];
#pragma unroll
                for (int j = 0; j < VEC; j++) {
                    sk[j] += s[i][j] * kk;
                    sq[j] += s[i][j] * qq;
                }
            }
        }
        if (active) {
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                part_k[threadIdx.x / LANES * DV + v0 + j] = sk[j];
                part_q[threadIdx.x / LANES * DV + v0 + j] = sq[j];
            }
        }
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (warp < 3) {
            const float *x = warp == 1 ? k : q, *y = warp == 0 ? q : k; // q·q, k·k, q·k
            float sum = 0;
            for (int i = lane; i < DK; i += 32) sum += x[i] * y[i];
            sum = warp_sum(sum);
            if (lane == 0) sums[warp] = sum;
        }
        __syncthreads();
        float rq = rsqrtf(sums[0] + 1e-6f) * rsqrtf((float)DK), rk = rsqrtf(sums[1] + 1e-6f);
        float beta = sigmoid(b_in);
        float alpha = expf(-expf(a_log) * softplus(a_in + dt_bias));
        float o = 0;
        if (threadIdx.x < DV) {
            float k_sum = 0, q_sum = 0;
            for (int g = 0; g < KG; g++) {
                k_sum += part_k[g * DV + threadIdx.x];
                q_sum += part_q[g * DV + threadIdx.x];
            }
            float dv = beta * (v[threadIdx.x] - alpha * rk * k_sum);
            d[threadIdx.x] = dv;
            o = alpha * rq * q_sum + dv * (rk * rq * sums[2]);
        }
        float mean = block_sum<GDN_THREADS>(o * o, scratch) / DV; // its barriers also publish d
        if (threadIdx.x < DV) {
            a.o[(u64)row * a.ldo + h * DV + threadIdx.x] = o * rsqrtf(mean + a.eps) * weight * silu(z);
        }
#pragma unroll
        for (int i = 0; i < PER; i++) {
            if (!active || k0 + i >= DK) continue;
            float kk = k[k0 + i] * rk;
            float* to = state + (u64)(k0 + i) * DV + v0;
            if (VEC == 4)
                *(float4*)to = make_float4(alpha * s[i][0] + kk * d[v0], alpha * s[i][VEC > 1 ? 1 : 0] + kk * d[v0 + 1],
                                           alpha * s[i][VEC > 2 ? 2 : 0] + kk * d[v0 + 2],
                                           alpha * s[i][VEC > 3 ? 3 : 0] + kk * d[v0 + 3]);
            else
                *to = alpha * s[i][0] + kk * d[v0];
        }
    }
};
