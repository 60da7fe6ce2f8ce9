//! Which translation units a model needs, and what they are specialised to.

use super::gpu::Unit;
use super::layout::Layout;
use super::layouts::Mixer;
use crate::backend::{AttentionShape, CacheShape, GdnShape, KvDtype};
use cute_checkpoint::Config;

/// Warps of a `linear` block.
const WARPS: usize = 16;
/// Threads of a `linear`, `gdn_step` or `attend` block.
pub const THREADS: u32 = 512;
/// Tokens of a piece of a sequence in decode attention, of a long one; see attention.cuh.
pub const PIECE: usize = 256;
const SHORT_PIECE: usize = 64;
const SHORT: usize = 1024;

/// Most pieces of a sequence of up to `len` tokens.
pub fn most_pieces(len: usize) -> usize {
    len.min(SHORT).div_ceil(SHORT_PIECE).max(len.div_ceil(PIECE))
}
/// Blocks of the first pass of argmax.
pub const ARGMAX_BLOCKS: u32 = 64;

/// What a product does with its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x Wᵀ`
    Store = 0,
    /// `out += x Wᵀ`
    Add = 1,
    /// `out = silu(x Gᵀ) · (x Uᵀ)`
    Swiglu = 2,
}

/// The ring of weights of a kernel, as in ring.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ring {
    /// slots for one row, tiles a stage for several
    length: u32,
    /// of a slot
    width: u32,
    /// bytes of the ring and of what lies beside it
    bytes: u32,
}

impl Ring {
    /// The longest, of those `linear` and the cooperative kernels can have, that leaves `rest` of the `shared` bytes of a
    /// block; wide for packed weights where there is room for four such slots. When none fits, the shortest, which the
    /// device refuses.
    fn longest(rows: usize, packed: bool, rest: u32, shared: u32) -> Ring {
        let slots = |length, width| Ring { length, width, bytes: 1536 + length * width * 16 * 1056 + rest };
        let tiles = |length| Ring { length, width: 1, bytes: 1536 + 4 * length * 4 * 1152 + rest };
        let mut all: Vec<Ring> = match rows {
            1 if packed => [5, 4].map(|n| slots(n, 2)).into(),
            _ => Vec::new(),
        };
        if rows > 1 {
            all.extend([6, 4, 2].map(tiles))
        } else {
            all.extend((1..=10).rev().map(|n| slots(n, 1)))
        }
        *all.iter().find(|ring| ring.bytes <= shared).unwrap_or(&all[all.len() - 1])
    }

    fn defines(self) -> [(&'static str, String); 2] {
        [("RING", self.length.to_string()), ("RING_WIDTH", self.width.to_string())]
    }
}

/// Shape of a `linear` unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// inputs
    pub k: usize,
    /// of the weights
    pub layout: Layout,
    /// of the last outputs, if it is another
    pub tail: Option<Layout>,
    /// most rows of a launch in y: 1, 8 or 16
    pub rows: usize,
    /// what happens to the sums
    pub epilogue: Epilogue,
    /// the input is normed first
    pub norm: bool,
    /// no block of `gdn_step` shares its multiprocessor: all registers are its own
    pub alone: bool,
    /// bytes of shared memory that a block can have
    pub shared: u32,
}

impl Linear {
    /// Whether a product of `n` outputs runs alone: gate and up, which `gdn_step` neither follows nor goes before, and
    /// lm_head, which has so many.
    pub fn is_alone(epilogue: Epilogue, n: usize) -> bool {
        epilogue == Epilogue::Swiglu || n >= 1 << 16
    }
    /// Rows a launch of this unit takes, for a batch of `rows`.
    pub fn rows_for(rows: usize) -> usize {
        match rows {
            0 | 1 => 1,
            2..=8 => 8,
            _ => 16,
        }
    }
    /// The unit.
    pub fn unit(&self) -> Unit {
        let alone = self.alone || self.rows > 1 || self.layout.is_packed();
        let mut defines = vec![
            ("INPUTS", self.k.to_string()),
            ("WEIGHTS", self.layout.name()),
            ("ROWS", self.rows.to_string()),
            ("EPILOGUE", (self.epilogue as u32).to_string()),
            ("NORM", u32::from(self.norm).to_string()),
            ("BLOCKS", if alone { "1" } else { "2" }.into()),
        ];
        defines.extend(self.tail.map(|tail| ("TAIL", tail.name())));
        defines.extend(self.ring().defines());
        Unit { file: "linear.cu", defines }
    }
    /// The unit of the same product with chosen experts.
    pub fn experts(&self) -> Unit {
        Unit { file: "experts.cu", ..self.unit() }
    }
    /// Shared memory of a block.
    pub fn smem(&self) -> u32 {
        self.ring().bytes
    }
    fn ring(&self) -> Ring {
        Ring::longest(self.rows, self.layout.is_packed(), self.scratch(), self.shared)
    }
    /// Shared memory beside the ring, as `Linear::SMEM_BYTES` in linear.cuh.
    fn scratch(&self) -> u32 {
        let inputs = self.tail.map_or(0, |tail| tail.kp(self.k)).max(self.layout.kp(self.k));
        let parts = if self.layout.is_packed() { 24 } else { 16 };
        let (part, staged) = if self.rows > 1 { (2, 0) } else { (parts, inputs * 4) };
        (staged + part * WARPS * 8 * self.rows * 4 + WARPS * 4) as u32
    }
}

/// The unit of `rms_norm` over `width` values.
pub fn norm(width: usize) -> Unit {
    Unit { file: "norm.cu", defines: vec![("WIDTH", width.to_string())] }
}

/// A unit without shapes.
pub fn plain(file: &'static str) -> Unit {
    Unit { file, defines: Vec::new() }
}

/// The defines of a gated-delta-net layer.
pub fn gdn(file: &'static str, s: &GdnShape) -> Unit {
    let defines =
        [("HK", s.num_k_heads), ("HV", s.num_v_heads), ("DK", s.k_dim), ("DV", s.v_dim), ("TAPS", s.kernel)];
    Unit { file, defines: defines.map(|(name, n)| (name, n.to_string())).into() }
}

/// Shared memory of `gdn_step`, as `GdnStep::SMEM_FLOATS` in gdn.cuh.
pub fn gdn_step_smem(s: &GdnShape) -> u32 {
    let lanes = if s.v_dim.is_multiple_of(4) { s.v_dim / 4 } else { s.v_dim };
    let groups = THREADS as usize / lanes.max(1);
    ((2 * s.k_dim + s.v_dim + 2 * groups * s.v_dim + s.v_dim + 3 + THREADS as usize / 32) * 4) as u32
}

/// Floats that `delta_scalars` writes for a token and value head, as `SCALARS` in gdn_sequence.cu.
pub const DELTA_SCALARS: usize = 8;
/// Warps of a block of `delta_rule`.
const DELTA_WARPS: usize = 4;
/// Columns of the state that a warp of `delta_rule` has.
const DELTA_COLUMNS: usize = 12;

/// Blocks of `delta_rule` for a segment, and their shared memory, as `TOKENS` and `TOKEN_FLOATS` in gdn_sequence.cu.
pub fn delta_rule(s: &GdnShape) -> (usize, u32) {
    let of_head = s.v_dim.div_ceil(DELTA_COLUMNS);
    let heads = (of_head + DELTA_WARPS - 2) / of_head + 1;
    let floats = heads * (2 * s.k_dim.next_multiple_of(32) + DELTA_SCALARS) + DELTA_WARPS * DELTA_COLUMNS;
    let tokens = match floats {
        0..=768 => 16,
        769..=1536 => 8,
        _ => 4,
    };
    ((s.num_v_heads * of_head).div_ceil(DELTA_WARPS), (2 * tokens * floats * 4) as u32)
}

/// Tokens of a chunk in gdn_chunked.cu.
pub const GDN_CHUNK: usize = 64;

/// Bytes that `chunk_matrices` writes at most for a batch, as `CHUNK_FLOATS` and `chunk_of` in gdn_chunked.cu.
pub fn chunk_bytes(s: &GdnShape, rows: usize, segments: usize) -> usize {
    let of_head = 2 * GDN_CHUNK * GDN_CHUNK + 4 * GDN_CHUNK + 64;
    (rows.div_ceil(GDN_CHUNK) + segments.min(rows)) * s.num_v_heads * of_head * 4
}

/// Shared memory of `chunk_matrices`.
pub fn chunk_matrices_smem(s: &GdnShape) -> u32 {
    let keys = 2 * GDN_CHUNK * (s.k_dim.next_multiple_of(16) + 8) * 2;
    (GDN_CHUNK * (GDN_CHUNK + 4 + 5) * 4 + keys) as u32
}

/// Blocks of `delta_chunks` for a head, and their shared memory, as `COLUMNS` and the planes in gdn_chunked.cu.
pub fn delta_chunks(s: &GdnShape) -> (usize, u32) {
    let columns = if s.k_dim > 128 { 16 } else { 32 };
    let column = s.k_dim.next_multiple_of(64) + 8 + 3 * (GDN_CHUNK + 8);
    (s.v_dim.div_ceil(columns), (2 * columns * column * 2) as u32)
}

/// The geometry that attention kernels bake in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionUnit {
    /// heads and widths
    pub num_heads: usize,
    /// key/value heads
    pub num_kv_heads: usize,
    /// width of a head
    pub head_dim: usize,
    /// leading values that rotate
    pub rotary_dim: usize,
    /// the output gate exists
    pub gated: bool,
    /// full-attention layers
    pub layers: usize,
    /// tokens of a page
    pub page_size: usize,
    /// element type of K and V
    pub kv_dtype: KvDtype,
    /// signed width of the byte offset that decode reads with (a fault)
    pub offset_bits: Option<u32>,
}

impl AttentionUnit {
    /// The geometry of a model and its cache.
    pub fn of(c: &Config, shape: &CacheShape, offset_bits: Option<u32>) -> Self {
        let s = AttentionShape::of(c, 0);
        AttentionUnit {
            num_heads: s.num_heads,
            num_kv_heads: s.num_kv_heads,
            head_dim: s.head_dim,
            rotary_dim: s.rotary_dim,
            gated: s.gated,
            layers: c.full_attention_layers().len(),
            page_size: shape.page_size,
            kv_dtype: shape.kv_dtype,
            offset_bits,
        }
    }
    /// The geometry of a model with pages of 64 tokens.
    pub(super) fn published(c: &Config, kv_dtype: KvDtype) -> Self {
        let shape =
            CacheShape { num_pages: 0, page_size: 64, kv_dtype, num_slots: 0, max_rows: 0, max_len: 0 };
        AttentionUnit::of(c, &shape, None)
    }
    /// A unit of this geometry.
    pub fn unit(&self, file: &'static str) -> Unit {
        let kv_type = match self.kv_dtype {
            KvDtype::F32 => 0,
            KvDtype::Bf16 => 1,
            KvDtype::Fp8E4m3 => 2,
        };
        let defines = [
            ("NH", self.num_heads),
            ("NKV", self.num_kv_heads),
            ("HD", self.head_dim),
            ("ROTARY", self.rotary_dim),
            ("KV_LAYERS", self.layers),
            ("PAGE", self.page_size),
            ("KV_TYPE", kv_type),
            ("GATED", usize::from(self.gated)),
        ];
        let mut defines: Vec<_> = defines.map(|(name, n)| (name, n.to_string())).into();
        defines.extend(self.offset_bits.map(|bits| ("KV_OFFSET_BITS", bits.to_string())));
        Unit { file, defines }
    }
    fn queries(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }
    /// Shared memory of `attend`, as `ATTENTION_FLOATS` in attention.cuh.
    pub fn attend_smem(&self) -> u32 {
        let groups = THREADS as usize / (self.head_dim / 8);
        let q = self.queries();
        ((q * self.head_dim + q * PIECE + groups.div_ceil(2) * q * self.head_dim) * 4) as u32
    }
    /// The tiles of `attend_prefill` for a device whose blocks can have `shared_memory` bytes, those of more rows first.
    /// All have the same `keys`, on which the bits depend. None, if a block can have less than 99 KiB.
    pub fn prefill_tiles(&self, shared_memory: u32) -> Vec<PrefillTile> {
        let fits = |t: &PrefillTile| t.smem(self) <= shared_memory;
        let all = [&[(8, 64), (4, 64)][..], &[(4, 32)], &[(2, 32)]];
        let tiles =
            all.map(|t| t.iter().map(|&(warps, keys)| PrefillTile { warps, keys }).filter(fits).collect());
        tiles.into_iter().find(|t: &Vec<_>| !t.is_empty()).unwrap_or_default()
    }
}

/// What a block of `attend_prefill` works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillTile {
    /// warps, of 16 query rows each
    pub warps: usize,
    /// keys in shared memory at once
    pub keys: usize,
}

impl PrefillTile {
    /// Query rows.
    pub fn rows(&self) -> usize {
        self.warps * 16
    }
    /// The unit.
    pub fn unit(&self, a: &AttentionUnit) -> Unit {
        let mut unit = a.unit("attention_prefill.cu");
        unit.defines.extend([("WARPS", self.warps.to_string()), ("KEYS", self.keys.to_string())]);
        unit
    }
    /// Shared memory: Q as hi and lo, K and V, as hi and lo too when they are f32.
    pub fn smem(&self, a: &AttentionUnit) -> u32 {
        let stride = (a.head_dim.next_multiple_of(16) + 8) * 2;
        let halves = if a.kv_dtype == KvDtype::F32 { 2 } else { 1 };
        (2 * (self.rows() + halves * self.keys) * stride) as u32
    }
}

/// What the cooperative kernels have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coop {
    /// H
    pub hidden: usize,
    /// I
    pub intermediate: usize,
    /// of the matrix `[gate; up]`
    pub gate_up: Layout,
    /// of the matrix behind it
    pub down: Layout,
    /// most rows: 1, 8 or 16
    pub rows: usize,
    /// phases are timed
    pub timing: bool,
    /// bytes of shared memory that a block can have
    pub shared: u32,
}

impl Coop {
    /// A unit and its shared memory: the ring, and what the neediest phase has beside it.
    fn unit(&self, file: &'static str, more: Vec<(&'static str, String)>, phases: &[u32]) -> (Unit, u32) {
        let mlp = [self.product(self.hidden, self.gate_up), self.product(self.intermediate, self.down)];
        let rest = mlp.iter().chain(phases).copied().max().unwrap_or(0);
        let ring = Ring::longest(self.rows, self.gate_up.is_packed(), rest, self.shared);
        let defines = [("HIDDEN", self.hidden), ("INTERMEDIATE", self.intermediate), ("ROWS", self.rows)];
        let mut defines: Vec<_> = defines.map(|(name, n)| (name, n.to_string())).into();
        defines.extend(ring.defines());
        defines.extend([("GATE_UP", self.gate_up.name()), ("DOWN", self.down.name())]);
        if self.timing {
            defines.push(("REGION_TIMING", "1".into()));
        }
        defines.extend(more);
        (Unit { file, defines }, ring.bytes)
    }
    /// Shared memory beside the ring of a product with `k` inputs in a layer.
    fn product(&self, k: usize, layout: Layout) -> u32 {
        let (rows, shared) = (self.rows, self.shared);
        Linear { k, layout, tail: None, rows, epilogue: Epilogue::Store, norm: false, alone: true, shared }
            .scratch()
    }
    /// `mlp` and its shared memory.
    pub fn mlp(&self) -> (Unit, u32) {
        self.unit("mlp.cu", Vec::new(), &[])
    }
    /// `coop_attention` and its shared memory.
    pub fn attention(&self, a: &AttentionUnit, mixer: Mixer, wo_split: usize) -> (Unit, u32) {
        let mut defines = vec![("WO_SPLIT", wo_split.to_string())];
        defines.extend(mixer.defines(["QKV_PROJ", "O_PROJ"]));
        defines.extend(a.unit("").defines);
        let heads = WARPS * a.head_dim * 4;
        let out = self.product(a.num_heads * a.head_dim, mixer.out);
        let phases = [self.projections(mixer), out, a.attend_smem(), heads as u32];
        self.unit("coop_attention.cu", defines, &phases)
    }
    /// `coop_gdn` and its shared memory.
    pub fn gdn(&self, s: &GdnShape, mixer: Mixer) -> (Unit, u32) {
        let out = self.product(s.num_v_heads * s.v_dim, mixer.out);
        let mut defines = mixer.defines(["IN_PROJ", "OUT_PROJ"]);
        defines.extend(gdn("", s).defines);
        self.unit("coop_gdn.cu", defines, &[self.projections(mixer), out, gdn_step_smem(s)])
    }
    /// Shared memory beside the ring of the products a layer begins with.
    fn projections(&self, mixer: Mixer) -> u32 {
        let tail = mixer.tail.map_or(0, |tail| self.product(self.hidden, tail));
        self.product(self.hidden, mixer.proj).max(tail)
    }
}

/// What a kernel cannot do, if anything, in a sentence.
pub fn unsupported(c: &Config) -> Option<String> {
    let (g, a) = (GdnShape::of(c, 0), AttentionShape::of(c, 0));
    if !a.head_dim.is_multiple_of(8) || a.head_dim > 256 {
        return Some(format!("head_dim is {}: the CUDA kernels take multiples of 8 up to 256", a.head_dim));
    }
    if g.v_dim > THREADS as usize || g.k_dim > 256 || g.kernel < 2 {
        return Some(format!(
            "linear heads of {} × {} with a convolution of {} taps: the CUDA kernels take up to 256 × {THREADS} and 2 \
             taps or more",
            g.k_dim, g.v_dim, g.kernel
        ));
    }
    match &c.moe {
        Some(m) if m.num_experts + m.num_experts_per_tok > MOST_EXPERTS => Some(format!(
            "{} experts of which a token takes {}: the CUDA kernels take {MOST_EXPERTS} of both together",
            m.num_experts, m.num_experts_per_tok
        )),
        _ => None,
    }
}

/// Most experts and experts of a row, which `route` keeps in shared memory, a word each.
const MOST_EXPERTS: usize = 1 << 14;
