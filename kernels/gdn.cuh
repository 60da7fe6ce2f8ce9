// gdn: one token of the gated delta rule for one value head, from the projections to the gated norm.
//
//   c = silu(conv(u));  q̂ = q/‖q‖ · Dk^−½, k̂ = k/‖k‖;  β = sigmoid(b), α = exp(−exp(A_log) · softplus(a + dt_bias))
//   d = β (v − α Sᵀk̂);  o = α Sᵀq̂ + d (k̂·q̂);  S ← α S + k̂ dᵀ;  y = o · rsqrt(mean(o²) + eps) · w · silu(z)
//
// S stays in registers between its one read, which needs nothing of this step and so comes before the wait, and its one
// write. HK, HV, DK, DV and TAPS are defines of the unit. The convolution's inputs lie in a ring of TAPS entries by position, so that no block reads what another writes.
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

    float s[PER][VEC];
    int h, row, k0, v0;
    bool active;
    float* state;

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
    }

    __device__ __forceinline__ void run(const GdnArgs& a, float* smem) {
        float *q = smem, *k = q + DK, *v = k + DK;
        float *part_k = v + DV, *part_q = part_k + KG * DV;
        float *d = part_q + KG * DV, *sums = d + DV, *scratch = sums + 3;
        const float* u = a.proj + (u64)row * a.ldp;
        u32 position = a.positions[row];
        float* ring = a.ring + (u64)a.slots[row] * TAPS * C;
        int kh = h / (HV / HK);
        for (int i = threadIdx.x; i < CONV; i += GDN_THREADS) {
            bool value = i >= 2 * DK;
            int c = value ? 2 * HK * DK + h * DV + i - 2 * DK : (i < DK ? kh * DK + i : HK * DK + kh * DK + i - DK);
            float x = 0, now = u[c];
#pragma unroll
            for (int tap = 0; tap < TAPS - 1; tap++) {
                u32 entry = (position + tap + 1) % TAPS; // position − TAPS + 1 + tap, kept positive
                x += a.taps[tap * C + c] * ring[entry * C + c];
            }
            x += a.taps[(TAPS - 1) * C + c] * now;
            smem[i] = silu(x);
            if (value || h % (HV / HK) == 0) ring[position % TAPS * C + c] = now;
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
        float beta = sigmoid(u[B + h]);
        float alpha = expf(-expf(a.a_log[h]) * softplus(u[A + h] + a.dt_bias[h]));
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
            float z = u[Z + h * DV + threadIdx.x];
            a.o[(u64)row * a.ldo + h * DV + threadIdx.x] = o * rsqrtf(mean + a.eps) * a.norm[threadIdx.x] * silu(z);
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
