// attention_step: norms, rotation, KV write and attention of one token a row, over the pages; formulas in attention.cuh.
//
//   qk_norm_rope_kv  q and k in place, k and v to their page: grid ((NH + 2 NKV) / 4, rows), block 128
//   attend           pieces to part [rows, NH, max pieces, HD + 2]: grid (pieces, NKV, rows), block 512
//   merge            out [rows, ldo]: grid (NH, rows), block HD
//   all overlapped
//   traffic          K and V of the sequence once, the partial results twice
#include "attention.cuh"

extern "C" __global__ void qk_norm_rope_kv(float* proj, const float* q_norm, const float* k_norm, const float* cos,
                                           const float* sin, void* pool, const u32* pages, const u32* segment,
                                           const u32* positions, u32 max_pages, u32 layer, float eps, u32 ldp) {
    launch_dependents();
    wait_for_previous();
    u32 item = blockIdx.x * 4 + threadIdx.x / 32, row = blockIdx.y;
    if (item >= NH + 2 * NKV) return;
    prepare_head(proj + (u64)row * ldp, q_norm, k_norm, cos, sin, pool, pages + (u64)segment[row] * max_pages, layer,
                    positions[row], item, eps, (float*)SMEM + threadIdx.x / 32 * HD);
}
EXPORT(qk_norm_rope_kv)

extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 1)
attend(float* part, const float* proj, const void* pool, const u32* pages, const u32* positions, u32 max_pages,
       u32 max_pieces, u32 layer, u32 ldp) {
    u32 kv_head = blockIdx.y, row = blockIdx.z, position = positions[row];
    launch_dependents();
    wait_for_previous();
    for (u32 piece = blockIdx.x; piece < pieces_of(position); piece += gridDim.x)
        attend_piece(part + (((u64)row * NH + kv_head * QUERIES) * max_pieces + piece) * PARTIAL, (u64)max_pieces * PARTIAL,
                     proj + (u64)row * ldp, pool, pages + (u64)row * max_pages, layer, kv_head, piece, position,
                     (float*)SMEM);
}
EXPORT(attend)

extern "C" __global__ void merge(float* out, const float* part, const float* proj, const u32* positions, u32 max_pieces,
                                 u32 ldo, u32 ldp) {
    u32 head = blockIdx.x, row = blockIdx.y, pieces = pieces_of(positions[row]);
    launch_dependents();
    wait_for_previous();
    const float* gate = proj + (u64)row * ldp + head * HEAD_STRIDE + HD;
    if (threadIdx.x < HD)
        out[(u64)row * ldo + head * HD + threadIdx.x] =
            merge_pieces(part + ((u64)row * NH + head) * max_pieces * PARTIAL, pieces, threadIdx.x, gate);
}
EXPORT(merge)
