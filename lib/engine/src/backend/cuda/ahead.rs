//! The kernels that are compiled before they are asked for.

use super::gemm::{self, Tile};
use super::gpu::Unit;
use super::layout::BF16;
use super::layouts::Layouts;
use super::units::{AttentionUnit, Coop, Epilogue, Linear, gdn, norm, plain};
use super::wgmma::{self, Slab};
use crate::backend::{AttentionShape, GdnShape, KvDtype};
use cute_checkpoint::{Config, LayerType};

/// What units are chosen by.
#[derive(Clone, Copy, Debug)]
pub struct Chip {
    /// bytes of shared memory that a block can have
    pub shared: u32,
    /// whether it has the asynchronous tensor cores of sm_90a
    pub wgmma: bool,
}

impl Chip {
    /// That of an architecture such as `sm_90a`.
    pub fn of(arch: &str) -> Chip {
        let shared = if arch.starts_with("sm_12") { 99 << 10 } else { SHARED };
        Chip { shared, wgmma: arch == "sm_90a" }
    }
}

/// Every unit that serving a model asks for with pages of 64 tokens: what is compiled ahead. Other page sizes, faults, slots
/// and timings are compiled when they are asked for.
pub fn units(c: &Config, l: &Layouts, chip: Chip) -> Vec<Unit> {
    let shared = chip.shared;
    let (g, a) = (GdnShape::of(c, 0), AttentionShape::of(c, 0));
    let (h, i) = (c.hidden_size, c.intermediate_size);
    let (heads, values) = (a.num_heads * a.head_dim, g.num_v_heads * g.v_dim);
    let has = |t: LayerType| c.layer_types.contains(&t);
    let (linear_attention, full_attention) = (has(LayerType::LinearAttention), has(LayerType::FullAttention));
    let sparse = |layer: &usize| c.is_sparse(*layer);
    let dense = |t: LayerType| (0..c.num_hidden_layers).any(|l| !sparse(&l) && c.layer_types[l] == t);
    let any_dense = dense(LayerType::LinearAttention) || dense(LayerType::FullAttention);
    let moe = c.moe.as_ref().filter(|_| (0..c.num_hidden_layers).any(|l| sparse(&l)));
    let mut all: Vec<Unit> = ["elementwise.cu", "embed.cu", "argmax.cu", "choose.cu"].map(plain).into();
    all.push(norm(h));
    all.extend(moe.map(|_| plain("moe.cu")));
    for rows in [1, 8, 16] {
        let with_tail = |layout, tail, k, n, epilogue, norm| {
            let (norm, alone) = (norm && rows == 1, Linear::is_alone(epilogue, n));
            Linear { k, layout, tail, rows, epilogue, norm, alone, shared }.unit()
        };
        let linear = |layout, k, n, epilogue, norm| with_tail(layout, None, k, n, epilogue, norm);
        all.push(linear(l.lm_head, h, c.vocab_size, Epilogue::Store, true));
        for (mixer, n) in [(l.gdn, g.width()), (l.attention, a.width())] {
            all.push(with_tail(mixer.proj, mixer.tail, h, n, Epilogue::Store, true));
        }
        for (layout, k) in [(l.attention.out, heads), (l.gdn.out, values)] {
            all.push(linear(layout, k, h, Epilogue::Add, false));
        }
        if let Some(m) = moe {
            let (i, s) = (m.moe_intermediate_size, m.shared_expert_intermediate_size);
            all.push(linear(l.router, h, m.num_experts, Epilogue::Store, false));
            all.push(linear(l.router, h, 1, Epilogue::Store, false));
            all.push(linear(l.shared_gate_up, h, 2 * s, Epilogue::Swiglu, false));
            all.push(linear(l.shared_down, s, h, Epilogue::Store, false));
            for (layout, k, epilogue) in
                [(l.expert_gate_up, h, Epilogue::Swiglu), (l.expert_down, i, Epilogue::Store)]
            {
                all.push(
                    Linear { k, layout, tail: None, rows, epilogue, norm: false, alone: true, shared }
                        .experts(),
                );
            }
        }
        if !any_dense {
            continue;
        }
        all.push(linear(l.gate_up, h, 2 * i, Epilogue::Swiglu, true));
        all.push(linear(l.down, i, h, Epilogue::Add, false));
        let Layouts { gate_up, down, .. } = *l;
        let coop = Coop { hidden: h, intermediate: i, gate_up, down, rows, timing: false, shared };
        all.push(coop.mlp().0);
        if dense(LayerType::LinearAttention) {
            all.push(coop.gdn(&g, l.gdn).0);
        }
        if dense(LayerType::FullAttention) {
            for kv_dtype in KvDtype::ALL {
                all.push(coop.attention(&AttentionUnit::published(c, kv_dtype), l.attention, 1).0);
            }
        }
    }
    if linear_attention {
        all.extend(["gdn_step.cu", "gdn_sequence.cu", "gdn_chunked.cu"].map(|file| gdn(file, &g)));
    }
    if full_attention {
        for kv_dtype in KvDtype::ALL {
            let unit = AttentionUnit::published(c, kv_dtype);
            all.push(unit.unit("attention_step.cu"));
            all.extend(
                [H200.1, LEAST_SHARED].iter().flat_map(|n| unit.prefill_tiles(*n)).map(|t| t.unit(&unit)),
            );
        }
    }
    let experts = [l.expert_gate_up, l.expert_down];
    let on_tensor_cores = experts.into_iter().all(gemm::on_tensor_cores);
    if let Some(m) = moe.filter(|_| h >= gemm::LEAST_HIDDEN && on_tensor_cores) {
        let inputs = [(h, Epilogue::Swiglu), (m.moe_intermediate_size, Epilogue::Store)];
        for (layout, (k, epilogue)) in experts.into_iter().zip(inputs) {
            all.push(gemm::to_bf16(layout, k));
            all.extend(
                [8, 16, 32, 64].map(|rows| Tile::of_experts(rows, H200.1).experts(layout, k, epilogue)),
            );
        }
    }
    if h >= gemm::LEAST_HIDDEN && l.lm_head == BF16 {
        let mlp = [(l.gate_up, 2 * i, h, Epilogue::Swiglu), (l.down, h, i, Epilogue::Add)];
        let beside_experts = moe.map(|m| {
            let s = m.shared_expert_intermediate_size;
            [
                (l.router, m.num_experts, h, Epilogue::Store),
                (l.router, 1, h, Epilogue::Store),
                (l.shared_gate_up, 2 * s, h, Epilogue::Swiglu),
                (l.shared_down, h, s, Epilogue::Store),
            ]
        });
        let mixers = [
            (l.gdn.proj, g.width() - l.gdn.tail.map_or(0, |_| 2 * g.num_v_heads), h, Epilogue::Store),
            (l.gdn.tail.unwrap_or(BF16), 2 * g.num_v_heads, h, Epilogue::Store),
            (l.attention.proj, a.width(), h, Epilogue::Store),
            (l.attention.out, h, heads, Epilogue::Add),
            (l.gdn.out, h, values, Epilogue::Add),
        ];
        let mlp = mlp.into_iter().filter(|_| any_dense).chain(beside_experts.into_iter().flatten());
        for (layout, n, k, epilogue) in mixers.into_iter().chain(mlp) {
            if chip.wgmma {
                all.push(wgmma::to_bf16(layout, k));
                all.extend(Slab::all().map(|slab| slab.unit(layout, k, epilogue)));
                continue;
            }
            all.push(gemm::to_bf16(layout, k));
            let swiglu = epilogue == Epilogue::Swiglu;
            let tiles = [16, 32, 64, 512].map(|m| Tile::choose(m, (n, layout), swiglu, H200.0, H200.1));
            all.extend(tiles.map(|tile| tile.unit(layout, k, epilogue)));
        }
    }
    all.sort();
    all.dedup();
    all
}

/// Multiprocessors and bytes of shared memory of a block, for tiles that are compiled ahead.
const H200: (u32, u32) = (132, SHARED);
/// Bytes of shared memory that a block of sm_90 can have.
pub(super) const SHARED: u32 = 227 << 10;
/// Bytes of shared memory of a block on the devices that have least, sm_120 and sm_121.
const LEAST_SHARED: u32 = 101_376;
