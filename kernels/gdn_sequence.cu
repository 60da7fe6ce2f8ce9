// gdn_sequence: the gated delta net over the rows of whole segments, token by token, so that any cut of a prompt gives
// the same bits. Formulas in gdn.cuh.
//
//   causal_conv1d   qkv = silu(conv(u)): grid (C / 256, rows), block 256
//   conv_advance    the last TAPS inputs of a segment to its ring: grid (C / 256, segments), block 256
//   delta_rule      o, S: grid (HV, DV / 32, segments), block 256; 8 lanes share a column of S, kept in registers
//   rms_norm_gated  o = o · rsqrt(mean(o²) + eps) · w · silu(z): grid (HV / 8, rows), block 256, a warp a head
//   all overlapped
//   traffic         the projections a few times, the state once a segment
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

#define COLUMNS 32 // of S, of a block
#define TOKENS 16  // staged at a time
#define STEPS ((DK + 31) / 32)
#define DKP (STEPS * 32)

extern "C" __global__ void __launch_bounds__(256)
delta_rule(float* o, const float* qkv, const float* proj, const float* a_log, const float* dt_bias, float* state,
           const u32* seg_row, const u32* seg_len, const u32* seg_slot, u32 ldo, u32 ldq, u32 ldp) {
    launch_dependents();
    wait_for_previous();
    u32 h = blockIdx.x, seg = blockIdx.z;
    u32 lane8 = threadIdx.x % 8, column = blockIdx.y * COLUMNS + threadIdx.x / 8;
    bool in = column < DV;
    state += ((u64)seg_slot[seg] * HV + h) * DK * DV;
    float* q = (float*)SMEM;               // [TOKENS, DKP], normed and scaled
    float* k = q + TOKENS * DKP;           // [TOKENS, DKP], normed
    float* v = k + TOKENS * DKP;           // [TOKENS, COLUMNS]
    float* gate = v + TOKENS * COLUMNS;    // [TOKENS, 3]: α, β, q̂·k̂
    float s[STEPS][4];                     // rows 32 i + 4 lane8 + j of the column
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 r = i * 32 + lane8 * 4 + j;
            s[i][j] = in && r < DK ? state[(u64)r * DV + column] : 0.0f;
        }
    u32 first = seg_row[seg], len = seg_len[seg];
    u32 kh = h / (HV / HK);
    for (u32 t0 = 0; t0 < len; t0 += TOKENS) {
        u32 n = len - t0 < TOKENS ? len - t0 : TOKENS;
        __syncthreads();
        for (u32 t = threadIdx.x / 32; t < n; t += 8) { // a warp a token
            u32 lane = threadIdx.x % 32;
            const float* x = qkv + (u64)(first + t0 + t) * ldq;
            float qq[STEPS], kk[STEPS], q2 = 0, k2 = 0, qk = 0;
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                u32 r = i * 32 + lane;
                qq[i] = r < DK ? x[kh * DK + r] : 0.0f;
                kk[i] = r < DK ? x[HK * DK + kh * DK + r] : 0.0f;
                q2 += qq[i] * qq[i], k2 += kk[i] * kk[i], qk += qq[i] * kk[i];
            }
            float rq = rsqrtf(warp_sum(q2) + 1e-6f) * rsqrtf((float)DK), rk = rsqrtf(warp_sum(k2) + 1e-6f);
            qk = warp_sum(qk) * rq * rk;
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                q[t * DKP + i * 32 + lane] = qq[i] * rq;
                k[t * DKP + i * 32 + lane] = kk[i] * rk;
            }
            u32 col = blockIdx.y * COLUMNS + lane;
            v[t * COLUMNS + lane] = col < DV ? x[2 * HK * DK + h * DV + col] : 0.0f;
            const float* p = proj + (u64)(first + t0 + t) * ldp;
            if (lane == 0) {
                gate[t * 3] = expf(-expf(a_log[h]) * softplus(p[A + h] + dt_bias[h]));
                gate[t * 3 + 1] = sigmoid(p[B + h]);
                gate[t * 3 + 2] = qk;
            }
        }
        __syncthreads();
        for (u32 t = 0; t < n; t++) {
            float sk = 0, sq = 0;
            float4 kk[STEPS];
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                kk[i] = *(const float4*)(k + t * DKP + i * 32 + lane8 * 4);
                float4 qq = *(const float4*)(q + t * DKP + i * 32 + lane8 * 4);
                sk += s[i][0] * kk[i].x + s[i][1] * kk[i].y + s[i][2] * kk[i].z + s[i][3] * kk[i].w;
                sq += s[i][0] * qq.x + s[i][1] * qq.y + s[i][2] * qq.z + s[i][3] * qq.w;
            }
#pragma unroll
            for (int m = 4; m; m >>= 1) {
                sk += __shfl_xor_sync(FULL, sk, m);
                sq += __shfl_xor_sync(FULL, sq, m);
            }
            float alpha = gate[t * 3], beta = gate[t * 3 + 1];
            float d = beta * (v[t * COLUMNS + threadIdx.x / 8] - alpha * sk);
            if (in && lane8 == 0) o[(u64)(first + t0 + t) * ldo + h * DV + column] = alpha * sq + d * gate[t * 3 + 2];
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                s[i][0] = alpha * s[i][0] + kk[i].x * d;
                s[i][1] = alpha * s[i][1] + kk[i].y * d;
                s[i][2] = alpha * s[i][2] + kk[i].z * d;
                s[i][3] = alpha * s[i][3] + kk[i].w * d;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 r = i * 32 + lane8 * 4 + j;
            if (in && r < DK) state[(u64)r * DV + column] = s[i][j];
        }
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
