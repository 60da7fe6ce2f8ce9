// attention_prefill: causal attention of the rows of whole segments over their pages; formulas in attention.cuh.
//
//   shapes   16 query rows of one head a block; keys in tiles of 32 at fixed positions, so that any cut of a prompt gives
//            the same bits; the softmax runs along
//   launch   grid (rows of the longest segment / 16, NH, segments), block 256, overlapped
//   traffic  K and V up to each row's position, once for 16 rows
#include "attention.cuh"

#define QUERY_ROWS 16
#define KEYS 32
#define COLUMNS_PER_THREAD ((QUERY_ROWS * HD + 255) / 256)

extern "C" __global__ void __launch_bounds__(256)
attend_prefill(float* out, const float* proj, const void* pool, const u32* pages, const u32* seg_row, const u32* seg_len,
               const u32* seg_start, u32 max_pages, u32 layer, u32 ldo, u32 ldp) {
    constexpr int LDK = HD + 4; // keys apart by 4 banks
    float* q = (float*)SMEM;                    // [QUERY_ROWS, HD], scaled
    float* kv = q + QUERY_ROWS * HD;            // [KEYS, LDK], first K then V
    float* p = kv + KEYS * LDK;                 // [QUERY_ROWS, KEYS]
    float* running = p + QUERY_ROWS * KEYS;     // [QUERY_ROWS, 3]: maximum, sum, rescale
    u32 seg = blockIdx.z, head = blockIdx.y, first = blockIdx.x * QUERY_ROWS;
    u32 len = seg_len[seg];
    launch_dependents();
    wait_for_previous();
    if (first >= len) return;
    u32 n = len - first < QUERY_ROWS ? len - first : QUERY_ROWS;
    u32 row0 = seg_row[seg] + first, position0 = seg_start[seg] + first;
    pages += (u64)seg * max_pages;
    for (int i = threadIdx.x; i < QUERY_ROWS * HD; i += 256) {
        u32 r = i / HD;
        q[i] = r < n ? proj[(u64)(row0 + r) * ldp + head * HEAD_STRIDE + i % HD] * rsqrtf((float)HD) : 0.0f;
    }
    if (threadIdx.x < QUERY_ROWS) {
        running[threadIdx.x * 3] = -INF;
        running[threadIdx.x * 3 + 1] = 0;
    }
    float acc[COLUMNS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < COLUMNS_PER_THREAD; i++) acc[i] = 0;
    for (u32 key0 = 0; key0 < position0 + n; key0 += KEYS) {
        for (int which = 0; which < 2; which++) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < KEYS * LANES; i += 256) {
                u32 t = i / LANES, at = i % LANES * 8, key = key0 + t;
                float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
                if (key < position0 + n) {
                    u64 entry = ((((u64)pages[key / PAGE] * KV_LAYERS + layer) * 2 + which) * NKV + head / QUERIES) * PAGE;
                    kv_load(x, (const char*)pool + ((entry + key % PAGE) * HD + at) * KV_SIZE);
                }
#pragma unroll
                for (int j = 0; j < 8; j++) kv[t * LDK + at + j] = x[j];
            }
            __syncthreads();
            if (which == 0) {
                // 16 threads a query row, two keys each
                u32 r = threadIdx.x / 16, t = threadIdx.x % 16;
                float dot[2] = {0, 0};
                for (int i = 0; i < HD; i += 4) {
                    float4 a = *(const float4*)(q + r * HD + i);
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float4 b = *(const float4*)(kv + (t + 16 * j) * LDK + i);
                        dot[j] += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
                    }
                }
                u32 limit = position0 + r; // the last key this row sees
                float m = running[r * 3];
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    if (key0 + t + 16 * j > limit) dot[j] = -INF;
                    m = (dot[j] > m || dot[j] != dot[j]) ? dot[j] : m;
                }
#pragma unroll
                for (int o = 8; o; o >>= 1) {
                    float y = __shfl_xor_sync(FULL, m, o);
                    m = (y > m || y != y) ? y : m;
                }
                float sum = 0;
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float e = dot[j] == -INF ? 0.0f : expf(dot[j] - m);
                    p[r * KEYS + t + 16 * j] = e;
                    sum += e;
                }
#pragma unroll
                for (int o = 8; o; o >>= 1) sum += __shfl_xor_sync(FULL, sum, o);
                if (t == 0) {
                    float scale = running[r * 3] == -INF ? 0.0f : expf(running[r * 3] - m);
                    running[r * 3] = m;
                    running[r * 3 + 1] = running[r * 3 + 1] * scale + sum;
                    running[r * 3 + 2] = scale;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < COLUMNS_PER_THREAD; i++) {
            u32 at = i * 256 + threadIdx.x;
            if (at >= QUERY_ROWS * HD) continue;
            u32 r = at / HD, column = at % HD;
            float sum = acc[i] * running[r * 3 + 2];
            for (int t = 0; t < KEYS; t++) sum += p[r * KEYS + t] * kv[t * LDK + column];
            acc[i] = sum;
        }
    }
#pragma unroll
    for (int i = 0; i < COLUMNS_PER_THREAD; i++) {
        u32 at = i * 256 + threadIdx.x, r = at / HD, column = at % HD;
        if (at >= QUERY_ROWS * HD || r >= n) continue;
        float o = acc[i] / running[r * 3 + 1];
        if (GATED) o *= sigmoid(proj[(u64)(row0 + r) * ldp + head * HEAD_STRIDE + HD + column]);
        out[(u64)(row0 + r) * ldo + head * HD + column] = o;
    }
}
EXPORT(attend_prefill)
