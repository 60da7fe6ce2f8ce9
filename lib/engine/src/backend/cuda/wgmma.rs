//! Products of a prompt's many rows on the asynchronous tensor cores of sm_90a: which tiles.

use super::Layout;
use super::ahead::SHARED;
use super::gemm::{Setup, define};
use super::gpu::Unit;
use super::layout::{BLOCK, TILE};
use super::units::Epilogue;

/// Inputs of a stage of rows.
const DEPTH: usize = 64;
/// Rows of A lie in groups of so many.
pub(super) const ROWS: usize = 8;

/// Tiles of `gemm_sm90.cu`. The bits do not depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slab {
    /// rows of a block
    pub rows: usize,
    /// its outputs, 64 for each warpgroup
    pub outputs: usize,
    /// what a block costs, of a full one's 256
    cost: usize,
}

const fn slab(rows: usize, outputs: usize, cost: usize) -> Slab {
    Slab { rows, outputs, cost }
}

/// For many rows: one of fewer rows reads more of shared memory for each product.
const WIDE: [Slab; 3] = [slab(256, 128, 256), slab(176, 128, 193), slab(128, 128, 160)];
/// For a few rows: more blocks, to read the weights.
const LOW: [Slab; 3] = [slab(16, 64, 0), slab(32, 64, 0), slab(64, 64, 0)];

impl Slab {
    /// All there are.
    pub fn all() -> impl Iterator<Item = Slab> {
        LOW.into_iter().chain(WIDE)
    }
    /// The tiles for a product of `m` rows and `n` columns (2 I for SwiGLU).
    pub fn choose(m: usize, n: usize, multiprocessors: u32) -> Slab {
        // the last round of blocks should be a full one
        let cost = |s: &Slab| {
            (m.div_ceil(s.rows) * n.div_ceil(s.outputs)).div_ceil(multiprocessors as usize) * s.cost
        };
        let low = LOW.into_iter().find(|s| m <= s.rows);
        low.unwrap_or_else(|| WIDE.into_iter().min_by_key(cost).unwrap_or(WIDE[0]))
    }
    /// Stages of rows and blocks of weights in flight, and the bytes of one of each.
    fn rings(&self, layout: Layout) -> [(usize, usize); 2] {
        let stage = self.rows * DEPTH * 2 + 16;
        let block = self.outputs / TILE * layout.tile_bytes(BLOCK) + 16;
        let blocks = if self.outputs < 128 { 8 } else { 3 };
        [(((SHARED as usize - 1032 - blocks * block) / stage).min(8), stage), (blocks, block)]
    }
    /// Bytes of shared memory.
    pub fn smem(&self, layout: Layout) -> u32 {
        (1032 + self.rings(layout).map(|(count, bytes)| count * bytes).iter().sum::<usize>()) as u32
    }
    /// How `rows` rows are multiplied with weights of `k` inputs.
    pub(super) fn setup(&self, rows: usize, (layout, k): (Layout, usize), epilogue: Epilogue) -> Setup {
        Setup {
            unit: (self.unit(layout, k, epilogue), "gemm_sm90"),
            block: [self.rows, self.outputs],
            threads: 2 * self.outputs as u32 + 128,
            smem: self.smem(layout),
            narrow: to_bf16(layout, k),
            lda: rows.next_multiple_of(ROWS) as u64,
        }
    }
    /// The unit for weights of `k` inputs.
    pub fn unit(&self, layout: Layout, k: usize, epilogue: Epilogue) -> Unit {
        let [(stages, _), (blocks, _)] = self.rings(layout);
        let sizes = [
            ("K", layout.kp(k)),
            ("BM", self.rows),
            ("BN", self.outputs),
            ("STAGES", stages),
            ("BLOCKS", blocks),
            ("EPILOGUE", epilogue as usize),
        ];
        Unit { file: "gemm_sm90.cu", defines: define(layout, &sizes) }
    }
}

/// The unit that makes the bf16 operand for weights of `k` inputs.
pub fn to_bf16(layout: Layout, k: usize) -> Unit {
    let mut unit = super::gemm::to_bf16(layout, k);
    unit.defines.push(("TILED", "1".into()));
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_rows_get_many_blocks_and_many_rows_full_rounds_of_them() {
        let chosen = |m, n| {
            let slab = Slab::choose(m, n, 132);
            (slab.rows, slab.outputs)
        };
        assert_eq!([1, 16, 17, 64].map(|m| chosen(m, 5120)), [(16, 64), (16, 64), (32, 64), (64, 64)]);
        // 80 blocks of 256 rows would leave 52 multiprocessors idle; 120 of 176 fill a round, and 544 of 256 four and a bit
        assert_eq!([(512, 5120), (512, 34816), (8192, 5120)].map(|(m, n)| chosen(m, n).0), [176, 256, 256]);
    }

    #[test]
    fn every_block_has_rings_and_no_more_shared_memory_than_there_is() {
        for slab in Slab::all() {
            for layout in [Layout::Bf16 { pieces: 1 }, Layout::Fp8, Layout::Nvfp4] {
                let [(stages, _), (blocks, _)] = slab.rings(layout);
                assert!(stages > 2 && blocks > 2, "{slab:?} {layout:?}: {stages} stages, {blocks} blocks");
                assert!(slab.smem(layout) <= SHARED, "{slab:?} {layout:?}");
            }
        }
    }
}
