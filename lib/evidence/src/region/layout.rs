//! What the regions of the cooperative kernel are, and which thread blocks run them.

use cute_records::Timing;

/// What kind of time a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// input norm whose result nobody reads
    Phase0,
    /// attention and output projection
    Phase1,
    /// MLP
    Phase3,
    /// waiting for other blocks
    BarrierWait,
    /// run by whichever blocks arrive last
    Dynamic,
    /// before the first and after the last region
    Boundary,
}

/// Which thread blocks run a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Active {
    OnePerSequence,
    KvHeads,
    WoPieces,
    WoWaiters,
    All,
    KTiles,
}

/// One region.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// name in the kernel
    pub name: &'static str,
    /// kind of time
    pub class: Class,
    /// its ticks are those of the last slice of a loop only
    pub last_slice: bool,
    /// entry is 0 and exit the sum over all slices
    pub summed: bool,
    active: Active,
}

const fn region(name: &'static str, class: Class, active: Active) -> Region {
    Region { name, class, last_slice: false, summed: false, active }
}

const fn last_slice(name: &'static str) -> Region {
    Region { name, class: Class::Phase3, last_slice: true, summed: false, active: Active::All }
}

const fn summed(name: &'static str) -> Region {
    Region { name, class: Class::Phase3, last_slice: false, summed: true, active: Active::All }
}

/// The regions by number; older kernels have the first 11 or 13 of them.
pub const REGIONS: [Region; 20] = [
    region("phase0_pre_attn", Class::Phase0, Active::OnePerSequence),
    region("phase1_attn_pre_wo", Class::Phase1, Active::KvHeads),
    region("phase1_wo_gemv", Class::Phase1, Active::WoPieces),
    region("phase1_wo_post", Class::Phase1, Active::WoPieces),
    region("grid_barrier_wait", Class::BarrierWait, Active::All),
    region("phase3_load_x", Class::Phase3, Active::All),
    region("phase3_partial_reset", Class::Phase3, Active::All),
    last_slice("phase3_3a_fc1_silu"),
    last_slice("phase3_3b_quant"),
    last_slice("phase3_3c_fc2"),
    region("phase3_3d_arrival", Class::Phase3, Active::All),
    region("phase1_pre_wo_wait", Class::BarrierWait, Active::WoWaiters),
    region("phase1_gather_reduce", Class::Dynamic, Active::OnePerSequence),
    region("prologue_pre_r0", Class::Boundary, Active::All),
    region("epilogue_post_r10", Class::Boundary, Active::All),
    region("phase3_3d_last_cta_gather", Class::Dynamic, Active::KTiles),
    summed("phase3_3a_fc1_silu_per_call"),
    summed("phase3_3b_quant_per_call"),
    summed("phase3_3c_fc2_per_call"),
    region("phase3_post_loop_atomic", Class::Phase3, Active::All),
];

/// The launch shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// slices of the MLP: first grid dimension
    pub slice_ctas: usize,
    /// tiles of the hidden size: second grid dimension
    pub num_k_tiles: usize,
    /// heads of K and V
    pub kv_heads: usize,
    /// pieces of the output projection; taken from the buffer when `None`
    pub wo_split: Option<usize>,
}

impl Default for Layout {
    /// The incident's launch: 8 x 8 blocks a sequence, 4 KV heads.
    fn default() -> Self {
        Layout { slice_ctas: 8, num_k_tiles: 8, kv_heads: 4, wo_split: None }
    }
}

impl Layout {
    /// Thread blocks of one sequence.
    pub fn per_sequence(&self) -> usize {
        self.slice_ctas.saturating_mul(self.num_k_tiles).max(1)
    }

    /// Blocks of one sequence that run a region.
    pub(super) fn active(&self, region: usize, wo_split: usize) -> Option<usize> {
        Some(match REGIONS.get(region)?.active {
            Active::OnePerSequence => 1,
            Active::KvHeads => self.kv_heads,
            Active::WoPieces => self.kv_heads * wo_split,
            Active::WoWaiters => self.kv_heads * wo_split.saturating_sub(1),
            Active::All => self.per_sequence(),
            Active::KTiles => self.num_k_tiles,
        })
    }
}

/// Name of a region's timing record.
pub(super) fn timing_name(region: usize) -> String {
    let name = REGIONS.get(region).map_or("unknown", |r| r.name);
    format!("region R{region} {name}")
}

/// A timing in nanoseconds as milliseconds.
pub(super) fn timing(name: String, ns: f64, count: u64, figures: &[(&str, f64)]) -> Timing {
    Timing {
        name,
        ms: ns / 1e6,
        count,
        figures: figures.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect(),
        ..Timing::default()
    }
}
