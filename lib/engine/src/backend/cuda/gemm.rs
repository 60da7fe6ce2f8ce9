//! Products of a prompt's many rows, on the tensor cores: which tiles, and the launch.

use super::gpu::{Arg, Ptr, Unit};
use super::layout::TILE;
use super::units::Epilogue;
use super::wgmma::Slab;
use super::{BF16, Buf, Cuda, Layout, Matrix, Part, int, ptr};
use crate::Error;

/// Models narrower than this prefill through `linear`, which keeps more bits of the activations.
pub(super) const LEAST_HIDDEN: usize = 512;

/// Tiles of `gemm.cu`. The bits do not depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// rows and columns of a block's tile
    pub block: [usize; 2],
    /// rows and columns of a warp's
    pub warp: [usize; 2],
    /// inputs of a stage
    pub depth: usize,
    /// stages in flight
    pub stages: usize,
}

const fn tile(block: [usize; 2], warp: [usize; 2], stages: usize) -> Tile {
    Tile { block, warp, depth: 64, stages }
}

/// Wide tiles, for devices whose blocks can have all of 227 KiB of shared memory.
const WIDE: [Tile; 4] = [
    tile([128, 256], [64, 64], 4),
    tile([128, 224], [32, 112], 5),
    tile([128, 192], [64, 48], 5),
    tile([128, 160], [32, 80], 6),
];
/// For a few rows.
const LOW: [Tile; 3] =
    [tile([16, 128], [16, 16], 6), tile([32, 128], [32, 16], 6), tile([64, 128], [32, 32], 4)];
const SMALL: Tile = tile([128, 128], [64, 32], 3);

impl Tile {
    /// The tiles for a product of `m` rows and `n` columns (2 I for SwiGLU).
    pub fn choose(
        m: usize,
        (n, layout): (usize, Layout),
        swiglu: bool,
        multiprocessors: u32,
        smem: u32,
    ) -> Tile {
        if let Some(low) = LOW.iter().find(|t| m <= t.block[0] && t.smem(layout) <= smem) {
            return *low;
        }
        // the last round of blocks should be a full one
        let cost = |t: &&Tile| {
            let blocks = m.div_ceil(128) * n.div_ceil(t.block[1]);
            blocks.div_ceil(multiprocessors as usize) * t.block[1]
        };
        // every warp of a column decodes its packed weights
        let decodes_often = |t: &Tile| layout.is_packed() && 2 * t.warp[0] < t.block[0];
        let fits = |t: &&Tile| t.smem(layout) <= smem && !(swiglu && t.block[1] != 192) && !decodes_often(t);
        WIDE.iter().filter(fits).min_by_key(cost).copied().unwrap_or(SMALL)
    }
    /// The tiles for products of chosen experts that have so many rows each, more or less.
    pub fn of_experts(rows: usize, smem: u32) -> Tile {
        LOW.iter().find(|t| 2 * rows <= t.block[0] && t.smem(BF16) <= smem).copied().unwrap_or(SMALL)
    }
    /// Bytes of shared memory.
    pub fn smem(&self, layout: Layout) -> u32 {
        let [scales, codes] = layout.block();
        let strip = if layout.is_packed() { scales + codes / 2 } else { TILE * self.depth * 2 };
        (self.stages * (self.block[0] * self.depth * 2 + self.block[1] / TILE * strip)) as u32
    }
    pub(super) fn threads(&self) -> u32 {
        (self.block[0] / self.warp[0] * (self.block[1] / self.warp[1]) * 32) as u32
    }
    /// The unit for weights of `k` inputs.
    pub fn unit(&self, layout: Layout, k: usize, epilogue: Epilogue) -> Unit {
        let sizes = [
            ("K", layout.kp(k)),
            ("BM", self.block[0]),
            ("BN", self.block[1]),
            ("BK", self.depth),
            ("WM", self.warp[0]),
            ("WN", self.warp[1]),
            ("STAGES", self.stages),
            ("EPILOGUE", epilogue as usize),
        ];
        Unit { file: "gemm.cu", defines: define(layout, &sizes) }
    }
    /// The unit of a product with chosen experts.
    pub fn experts(&self, layout: Layout, k: usize, epilogue: Epilogue) -> Unit {
        let mut unit = self.unit(layout, k, epilogue);
        unit.defines.push(("EXPERTS", "1".into()));
        unit
    }
}

/// What a product with weights of a layout defines.
pub(super) fn define(layout: Layout, sizes: &[(&'static str, usize)]) -> Vec<(&'static str, String)> {
    let sizes = sizes.iter().map(|(name, n)| (*name, n.to_string()));
    sizes.chain([("WEIGHTS", layout.name())]).chain(packed(layout)).collect()
}

/// What packed weights define.
fn packed(layout: Layout) -> Option<(&'static str, String)> {
    layout.is_packed().then(|| ("PACKED", "1".into()))
}

/// The unit that makes the bf16 operand for weights of `k` inputs.
pub fn to_bf16(layout: Layout, k: usize) -> Unit {
    let width = ("K", layout.kp(k).to_string());
    Unit { file: "to_bf16.cu", defines: [width].into_iter().chain(packed(layout)).collect() }
}

/// Whether gemm.cu takes weights of this layout.
pub(super) fn on_tensor_cores(layout: Layout) -> bool {
    layout == BF16 || layout.is_packed()
}

/// How a product is launched.
pub(super) struct Setup {
    pub(super) unit: (Unit, &'static str),
    /// rows and outputs of a block
    pub(super) block: [usize; 2],
    pub(super) threads: u32,
    pub(super) smem: u32,
    /// makes the operand of the rows
    pub(super) narrow: Unit,
    /// from one row or stretch of rows of it to the next, as the kernel says
    pub(super) lda: u64,
}

impl Cuda {
    /// Whether a matrix is multiplied on the tensor cores when a prompt is computed.
    pub(super) fn on_tensor_cores(&self, w: &Matrix) -> bool {
        let fits = |part: &Part| on_tensor_cores(part.layout);
        self.tensor_cores && fits(&w.head) && w.tail.as_ref().is_none_or(fits)
    }

    /// `out (=, +=, swiglu) bf16(x) bf16(W)ᵀ`.
    pub(super) fn gemm(
        &self,
        out: &Buf,
        x: &Buf,
        w: &Matrix,
        epilogue: Epilogue,
        rows: usize,
    ) -> Result<(), Error> {
        w.products(epilogue)?.into_iter().try_for_each(|part| {
            let gates = if epilogue == Epilogue::Swiglu { 2 } else { 1 };
            let setup = self.setup(rows, gates * part.n, (part.layout, w.k), epilogue);
            let narrow = self.narrow_to(x, (setup.narrow, part.layout.kp(w.k)), (rows, setup.lda))?;
            let args = [
                ptr(out.at + 4 * part.first as u64),
                ptr(narrow),
                ptr(part.at),
                int(rows),
                int(part.n),
                Arg::U64(setup.lda),
                Arg::U64(out.ld as u64),
            ];
            let [tall, wide] = setup.block;
            let grid = [rows.div_ceil(tall) * part.n.div_ceil(wide / gates), 1, 1];
            self.launch(setup.unit, grid, setup.threads, setup.smem, &args)
        })
    }

    /// How `rows` rows are multiplied with `n` outputs, gate and up counted.
    fn setup(&self, rows: usize, n: usize, (layout, k): (Layout, usize), epilogue: Epilogue) -> Setup {
        if self.gpu().wgmma() {
            return Slab::choose(rows, n, self.multiprocessors).setup(rows, (layout, k), epilogue);
        }
        let swiglu = epilogue == Epilogue::Swiglu;
        let shared = self.gpu().shared_memory();
        let tile = Tile::choose(rows, (n, layout), swiglu, self.multiprocessors, shared);
        Setup {
            unit: (tile.unit(layout, k, epilogue), "gemm"),
            block: tile.block,
            threads: tile.threads(),
            smem: tile.smem(layout),
            narrow: to_bf16(layout, k),
            lda: layout.kp(k) as u64,
        }
    }

    /// The rows of `x` as bf16, `[rows, kp]`, in the order of products with weights of this layout.
    pub(super) fn narrow(&self, x: &Buf, (layout, k): (Layout, usize), rows: usize) -> Result<Ptr, Error> {
        self.narrow_to(x, (to_bf16(layout, k), layout.kp(k)), (rows, 0))
    }

    /// The same by a unit of `to_bf16.cu` for `kp` inputs; `ld` is what tiled rows are apart.
    fn narrow_to(&self, x: &Buf, (unit, kp): (Unit, usize), (rows, ld): (usize, u64)) -> Result<Ptr, Error> {
        let at = self.narrow_rows.get();
        let args = [ptr(at), ptr(x.at), int(rows), int(x.width), Arg::U64(x.ld as u64), Arg::U64(ld)];
        self.launch((unit, "to_bf16"), [(rows * kp / 8).div_ceil(256), 1, 1], 256, 0, &args)?;
        Ok(at)
    }
}
