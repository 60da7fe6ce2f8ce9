// attention: one token's attention over paged keys and values, for all query heads of one key/value head.
//
//   s_t = q·k_t / √d,  o = Σ softmax(s)_t v_t · sigmoid(gate)
//
// The sequence is cut into pieces of PIECE tokens, or fewer when it is short; each gives its maximum m, its Σ e^{s−m} and its
// Σ e^{s−m} v, and the pieces are merged in order. Where it is cut depends on the token's position alone, so the result depends
// neither on the batch nor on the grid.
//
// The pool is one tensor [page, layer, K|V, kv head, PAGE tokens, HD]; offsets are 64 bits wide. Defines of the unit:
// NH, NKV, HD, KV_LAYERS, PAGE, KV_TYPE (0 f32, 1 bf16, 2 e4m3), GATED, and KV_OFFSET_BITS for the fault kv-offset-32.
#pragma once
#include "common.cuh"

#define ATTENTION_THREADS 512
#define PIECE 256
#define SHORT_PIECE 64 // of a sequence of up to SHORT tokens
#define SHORT 1024
#ifndef KEYS_AT_ONCE
#define KEYS_AT_ONCE (KV_TYPE == 0 ? 2 : 4) // loads of a lane, as registers allow
#endif
#define QUERIES (NH / NKV)                    // query heads of a key/value head
#define HEAD_STRIDE (HD * (GATED ? 2 : 1))    // columns between query heads in the projection
#define K_COLUMN (NH * HEAD_STRIDE)
#define V_COLUMN (K_COLUMN + NKV * HD)
#define KV_SIZE (KV_TYPE == 0 ? 4 : KV_TYPE == 1 ? 2 : 1)
#define LANES (HD / 8)                        // threads that span a head, 8 values each
static_assert(HD % 8 == 0 && HD <= 256, "head_dim is a multiple of 8, at most 256");

// Tokens of a piece, for the token at a position; and how many pieces it has.
__device__ __forceinline__ u32 piece_tokens(u32 position) { return position < SHORT ? SHORT_PIECE : PIECE; }
__device__ __forceinline__ u32 pieces_of(u32 position) { return position / piece_tokens(position) + 1; }

// First byte of the values of one token, head and layer; 0 when the fault's narrow offset leaves the pool.
__device__ __forceinline__ const char* kv_at(const void* pool, u32 page, u32 layer, u32 which, u32 head, u32 token) {
    u64 bytes = ((((u64)page * KV_LAYERS + layer) * 2 + which) * NKV + head) * PAGE * HD * KV_SIZE;
#ifdef KV_OFFSET_BITS
    u64 start = (((u64)page * KV_LAYERS + layer) * 2 + which) * NKV * PAGE * HD * KV_SIZE;
    i64 narrow = (i64)(start << (64 - KV_OFFSET_BITS)) >> (64 - KV_OFFSET_BITS);
    if (narrow < 0) return 0;
    bytes = bytes - start + (u64)narrow;
#endif
    return (const char*)pool + bytes + (u64)token * HD * KV_SIZE;
}

// Eight neighbouring values.
__device__ __forceinline__ void kv_load(float (&x)[8], const char* p) {
    if (!p) {
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = NOT_A_NUMBER;
    } else if (KV_TYPE == 0) {
        float4 a = *(const float4*)p, b = *(const float4*)(p + 16);
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else if (KV_TYPE == 1) {
        uint4 a = *(const uint4*)p;
        u32 w[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int i = 0; i < 4; i++) x[2 * i] = bf16_lo(w[i]), x[2 * i + 1] = bf16_hi(w[i]);
    } else {
        uint2 a = *(const uint2*)p;
        u32 w[2] = {a.x, a.y};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 h = unpack_e4m3((u16)(w[i / 2] >> (i % 2 * 16)));
            x[2 * i] = f16_to_f32((u16)h), x[2 * i + 1] = f16_to_f32((u16)(h >> 16));
        }
    }
}
__device__ __forceinline__ void kv_store(char* head, u32 i, float x) {
    if (KV_TYPE == 0) ((float*)head)[i] = x;
    else if (KV_TYPE == 1) ((u16*)head)[i] = (u16)pack_bf16(x, 0.0f);
    else ((u8*)head)[i] = (u8)pack_e4m3(x, 0.0f);
}

// Norms and rotates one head of q or k (by one warp, in place), or writes v; k and v also go to their page.
// `item` counts query heads, then key heads, then value heads. `scratch` holds HD floats for the warp.
__device__ __forceinline__ void prepare_head(float* proj, const float* q_norm, const float* k_norm, const float* cos,
                                                const float* sin, void* pool, const u32* pages, u32 layer, u32 position,
                                                u32 item, float eps, float* scratch) {
    constexpr int STEPS = (HD + 31) / 32;
    u32 lane = threadIdx.x % 32;
    bool is_q = item < NH, is_v = item >= NH + NKV;
    u32 head = is_q ? item : (item - NH) % NKV;
    float* x = proj + (is_q ? head * HEAD_STRIDE : (is_v ? V_COLUMN : K_COLUMN) + head * HD);
    char* to = is_q ? 0 : (char*)pool + (((((u64)pages[position / PAGE] * KV_LAYERS + layer) * 2 + is_v) * NKV + head) * PAGE +
                                         position % PAGE) * HD * KV_SIZE;
    if (is_v) {
        for (u32 i = lane; i < HD; i += 32) kv_store(to, i, x[i]);
        return;
    }
    const float* w = is_q ? q_norm : k_norm;
    float v[STEPS], sum = 0;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        u32 i = s * 32 + lane;
        v[s] = i < HD ? x[i] : 0.0f;
        sum += v[s] * v[s];
    }
    float r = rsqrtf(warp_sum(sum) / HD + eps);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        u32 i = s * 32 + lane;
        if (i < HD) scratch[i] = v[s] * r * (1 + w[i]);
    }
    __syncwarp();
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        u32 i = s * 32 + lane;
        if (i >= HD) continue;
        float y = scratch[i];
        if (i < ROTARY) {
            constexpr u32 HALF = ROTARY / 2;
            u32 j = i < HALF ? i : i - HALF;
            float c = cos[(u64)position * HALF + j], s = sin[(u64)position * HALF + j];
            y = i < HALF ? y * c - scratch[i + HALF] * s : y * c + scratch[i - HALF] * s;
        }
        x[i] = y;
        if (to) kv_store(to, i, y);
    }
    __syncwarp();
}

// One piece for one key/value head. `part` [QUERIES, HD + 2] receives Σ e^{s−m} v, then m, then Σ e^{s−m}.
#define PARTIAL (HD + 2)
#define TOKEN_GROUPS (ATTENTION_THREADS / LANES)
#define ATTENTION_FLOATS (QUERIES * HD + QUERIES * PIECE + (TOKEN_GROUPS + 1) / 2 * QUERIES * HD)
__device__ __forceinline__ void attend_piece(float* part, u64 part_stride, const float* proj, const void* pool,
                                             const u32* pages, u32 layer, u32 kv_head, u32 piece, u32 position, float* smem) {
    float* q = smem;                    // [QUERIES, HD], scaled
    float* p = q + QUERIES * HD;        // [QUERIES, PIECE]
    float* sums = p + QUERIES * PIECE;  // [TOKEN_GROUPS / 2, QUERIES, HD]
    u32 whole = piece_tokens(position) / SHORT_PIECE, first = piece * whole * SHORT_PIECE; // of which the compiler knows the factor
    u32 n = position + 1 - first < whole * SHORT_PIECE ? position + 1 - first : whole * SHORT_PIECE;
    __syncthreads();
    for (int i = threadIdx.x; i < QUERIES * HD; i += ATTENTION_THREADS)
        q[i] = proj[(kv_head * QUERIES + i / HD) * HEAD_STRIDE + i % HD] * rsqrtf((float)HD);
    __syncthreads();
    // scores: 8 lanes a token, 16 bytes a lane and step
    u32 sub = threadIdx.x % 8;
#pragma unroll 1
    for (u32 t = threadIdx.x / 8; t < (n + 3) / 4 * 4; t += ATTENTION_THREADS / 8) {
        float dot[QUERIES];
#pragma unroll
        for (int g = 0; g < QUERIES; g++) dot[g] = 0;
        if (t < n) {
            const char* k = kv_at(pool, pages[(first + t) / PAGE], layer, 0, kv_head, (first + t) % PAGE);
#pragma unroll(KEYS_AT_ONCE)
            for (int j = 0; j < (LANES + 7) / 8; j++) {
                u32 at = (j * 8 + sub) * 8;
                if (at >= HD) continue;
                float x[8];
                kv_load(x, k ? k + at * KV_SIZE : 0);
#pragma unroll
                for (int g = 0; g < QUERIES; g++) {
                    float4 a = *(const float4*)(q + g * HD + at), b = *(const float4*)(q + g * HD + at + 4);
                    dot[g] += x[0] * a.x + x[1] * a.y + x[2] * a.z + x[3] * a.w + x[4] * b.x + x[5] * b.y + x[6] * b.z +
                              x[7] * b.w;
                }
            }
        }
#pragma unroll
        for (int g = 0; g < QUERIES; g++) {
#pragma unroll
            for (int o = 4; o; o >>= 1) dot[g] += __shfl_xor_sync(FULL, dot[g], o);
            if (sub == 0 && t < n) p[g * PIECE + t] = dot[g];
        }
    }
    __syncthreads();
    // a warp a head: maximum, exponentials, their sum
    for (u32 g = threadIdx.x / 32; g < QUERIES; g += ATTENTION_THREADS / 32) {
        u32 lane = threadIdx.x % 32;
        float m = -INF, sum = 0;
        for (u32 t = lane; t < n; t += 32) {
            float s = p[g * PIECE + t];
            m = (s > m || s != s) ? s : m;
        }
        m = warp_max(m);
        for (u32 t = lane; t < n; t += 32) {
            float e = expf(p[g * PIECE + t] - m);
            p[g * PIECE + t] = e;
            sum += e;
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            part[g * part_stride + HD] = m;
            part[g * part_stride + HD + 1] = sum;
        }
    }
    __syncthreads();
    // Σ p v: LANES threads a token, the groups' sums added in a fixed order
    float acc[QUERIES][8];
#pragma unroll
    for (int g = 0; g < QUERIES; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) acc[g][i] = 0;
    u32 group = threadIdx.x / LANES, at = threadIdx.x % LANES * 8;
    if (group < TOKEN_GROUPS)
#pragma unroll(KV_TYPE == 0 ? 1 : 2) // f32 values take more registers
        for (u32 t = group; t < n; t += TOKEN_GROUPS) {
            const char* v = kv_at(pool, pages[(first + t) / PAGE], layer, 1, kv_head, (first + t) % PAGE);
            float x[8];
            kv_load(x, v ? v + at * KV_SIZE : 0);
#pragma unroll
            for (int g = 0; g < QUERIES; g++) {
                float e = p[g * PIECE + t];
#pragma unroll
                for (int i = 0; i < 8; i++) acc[g][i] += e * x[i];
            }
        }
    // the upper half of the groups hands its sums to the lower half
    constexpr u32 LOWER = (TOKEN_GROUPS + 1) / 2;
    if (group >= LOWER && group < TOKEN_GROUPS)
#pragma unroll
        for (int g = 0; g < QUERIES; g++)
#pragma unroll
            for (int i = 0; i < 8; i++) sums[((group - LOWER) * QUERIES + g) * HD + at + i] = acc[g][i];
    __syncthreads();
    if (group < LOWER)
#pragma unroll
        for (int g = 0; g < QUERIES; g++)
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float* sum = sums + (group * QUERIES + g) * HD + at + i;
                *sum = acc[g][i] + (group + LOWER < TOKEN_GROUPS ? *sum : 0.0f);
            }
    __syncthreads();
    for (int i = threadIdx.x; i < QUERIES * HD; i += ATTENTION_THREADS) {
        float sum = 0;
        for (u32 g = 0; g < LOWER; g++) sum += sums[g * QUERIES * HD + i];
        part[i / HD * part_stride + i % HD] = sum;
    }
}

// Merges the pieces of one head's column and applies the gate. `part` is [pieces, HD + 2].
__device__ __forceinline__ float merge_pieces(const float* part, u32 pieces, u32 column, const float* gate) {
    float m = -INF, sum = 0, o = 0;
    for (u32 i = 0; i < pieces; i++) {
        float x = part[(u64)i * PARTIAL + HD];
        m = (x > m || x != x) ? x : m;
    }
    for (u32 i = 0; i < pieces; i++) {
        const float* p = part + (u64)i * PARTIAL;
        float scale = expf(p[HD] - m);
        sum += p[HD + 1] * scale;
        o += p[column] * scale;
    }
    o /= sum;
    return GATED ? o * sigmoid(gate[column]) : o;
}
