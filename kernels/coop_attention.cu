// coop_attention: a full-attention layer in one cooperative launch: the path coop.
//
//   phases   0 projections · 1 norm and rotation of q and k, KV write · 2 attention in pieces · 3 merge and gate ·
//            4 W_O, its inputs in WO_SPLIT slots · 5 sum of the slots, in order, onto the residual (WO_SPLIT > 1) ·
//            6 norm, gate and up, SwiGLU · 7 down, residual
//   launch   grid = resident blocks, block 512, cooperative, overlapped
//   formats  QKV_PROJ, O_PROJ, GATE_UP and DOWN; TAIL of the projections from `split` on, if they have another
//   traffic  the layer's weights once, K and V once
#define KEYS_AT_ONCE 2 // the rest of the kernel wants registers, too
#include "attention.cuh"
#include "coop.cuh"

#define WIDTH (V_COLUMN + NKV * HD)
typedef Linear<QKV_PROJ, HIDDEN, ROWS, STORE, ROWS == 1> Qkv;
typedef Linear<O_PROJ, NH * HD, ROWS, WO_SPLIT == 1 ? ADD : STORE, false> Wo;

extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 1)
coop_attention(float* x, float* n, u32* counter, u64* timing, const char* gate_up, const char* down, const float* norm,
               float* act, float eps, u32 rows, u32 ldx, u32 lda, const float* input_norm, const char* qkv_proj,
               const char* o_proj, float* proj, float* attn, float* slots, const float* q_norm, const float* k_norm,
               const float* cos, const float* sin, void* pool, float* part, const u32* pages, const u32* positions,
               u32 max_pages, u32 max_pieces, u32 layer, u32 ldp, u32 ldt, const char* tail, u32 split) {
    Coop c = {x, n, counter, timing, rows, ldx, 0};
    MlpArgs m = {gate_up, down, norm, act, eps, lda};
    Stages weights;
    weights.init();
    char* smem = SMEM + Stages::BYTES;
    u32 b = blockIdx.x, blocks = gridDim.x, warp = threadIdx.x / 32;

    LinearArgs p = {qkv_proj, ROWS == 1 ? x : n, proj, input_norm, eps, rows, split, ldx, ldp};
    // this block's slot and its place among the slot's blocks; a grid of fewer blocks than slots gives a block several
    u32 slot = WO_SPLIT == 1 ? 0 : b * WO_SPLIT / blocks;
    u32 slots_end = blocks < WO_SPLIT ? (b + 1) * WO_SPLIT / blocks : slot + 1;
    u32 slot_first = (slot * blocks + WO_SPLIT - 1) / WO_SPLIT;
    u32 slot_blocks = ((slot + 1) * blocks + WO_SPLIT - 1) / WO_SPLIT - slot_first;
    if (blocks < WO_SPLIT) slot_first = b, slot_blocks = 1;
    LinearArgs w = {o_proj, attn, WO_SPLIT == 1 ? x : slots + (u64)slot * rows * ldx, 0, 0, rows, HIDDEN, ldt, ldx};
    weights.add(Qkv::share(p, b, blocks));
    add_tail<Qkv>(p, tail, WIDTH, weights);
    for (u32 s = slot; s < slots_end; s++) weights.add(Wo::share(w, b - slot_first, slot_blocks, s, WO_SPLIT));
    add_mlp(c, m, weights);
    weights.start();
    prefetch_l2(input_norm, HIDDEN * 4);
    prefetch_l2(norm, HIDDEN * 4);
    launch_dependents();
    wait_for_previous();
    {
        ENTER(0);
        if (ROWS > 1) c.norm_rows<HIDDEN>(input_norm, eps, smem);
        Qkv op;
        op.run(p, weights, smem);
        run_tail<Qkv>(p, tail, WIDTH, weights, smem);
        LEAVE(0);
    }
    c.barrier();
    ENTER(1);
    for (u32 i = b * LINEAR_WARPS + warp; i < rows * (NH + 2 * NKV); i += blocks * LINEAR_WARPS) {
        u32 row = i / (NH + 2 * NKV);
        prepare_head(proj + (u64)row * ldp, q_norm, k_norm, cos, sin, pool, pages + (u64)row * max_pages, layer,
                        positions[row], i % (NH + 2 * NKV), eps, (float*)smem + warp * HD);
    }
    LEAVE(1);
    c.barrier();
    ENTER(2);
    u32 most = 0; // pieces of the longest sequence
    for (u32 row = 0; row < rows; row++) most = max(most, pieces_of(positions[row]));
    for (u32 i = b; i < rows * NKV * most; i += blocks) {
        u32 piece = i % most, kv_head = i / most % NKV, row = i / most / NKV;
        if (piece < pieces_of(positions[row]))
            attend_piece(part + (((u64)row * NH + kv_head * QUERIES) * max_pieces + piece) * PARTIAL,
                         (u64)max_pieces * PARTIAL, proj + (u64)row * ldp, pool, pages + (u64)row * max_pages, layer,
                         kv_head, piece, positions[row], (float*)smem);
    }
    LEAVE(2);
    c.barrier();
    ENTER(3);
    for (u32 i = b * LINEAR_THREADS + threadIdx.x; i < rows * NH * HD; i += blocks * LINEAR_THREADS) {
        u32 row = i / (NH * HD), head = i / HD % NH, column = i % HD;
        attn[(u64)row * ldt + head * HD + column] =
            merge_pieces(part + ((u64)row * NH + head) * max_pieces * PARTIAL, pieces_of(positions[row]), column,
                         proj + (u64)row * ldp + head * HEAD_STRIDE + HD);
    }
    LEAVE(3);
    c.barrier();
    ENTER(4);
    for (; slot < slots_end; slot++) {
        if (WO_SPLIT > 1) w.out = slots + (u64)slot * rows * ldx;
        Wo wo;
        wo.run(w, weights, smem);
    }
    LEAVE(4);
    c.barrier();
    if (WO_SPLIT > 1) {
        ENTER(5);
        for (u32 i = b * LINEAR_THREADS + threadIdx.x; i < rows * HIDDEN; i += blocks * LINEAR_THREADS) {
            u32 row = i / HIDDEN, o = i % HIDDEN;
            float sum = 0;
#pragma unroll
            for (int s = 0; s < WO_SPLIT; s++) sum += slots[((u64)s * rows + row) * ldx + o];
            x[(u64)row * ldx + o] += sum;
        }
        LEAVE(5);
        c.barrier();
    }
    mlp_phases(c, m, weights, smem, 6);
}
EXPORT(coop_attention)
