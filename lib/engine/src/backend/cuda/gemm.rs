//! Products of a prompt's many rows, on the tensor cores: which tiles, and the launch.

use super::gpu::{Arg, Ptr, Unit};
use super::units::Epilogue;
use super::weights::TILE;
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
    pub fn choose(m: usize, n: usize, swiglu: bool, multiprocessors: u32, smem: u32) -> Tile {
        if let Some(low) = LOW.iter().find(|t| m <= t.block[0] && t.smem() <= smem) {
            return *low;
        }
        // the last round of blocks should be a full one
        let cost = |t: &&Tile| {
            let blocks = m.div_ceil(128) * n.div_ceil(t.block[1]);
            blocks.div_ceil(multiprocessors as usize) * t.block[1]
        };
        let fits = |t: &&Tile| t.smem() <= smem && !(swiglu && t.block[1] != 192);
        WIDE.iter().filter(fits).min_by_key(cost).copied().unwrap_or(SMALL)
    }
    /// The tiles for products of chosen experts that have so many rows each, more or less.
    pub fn of_experts(rows: usize, smem: u32) -> Tile {
        LOW.iter().find(|t| 2 * rows <= t.block[0] && t.smem() <= smem).copied().unwrap_or(SMALL)
    }
    /// Bytes of shared memory.
    pub fn smem(&self) -> u32 {
        (self.stages * (self.block[0] + self.block[1]) * self.depth * 2) as u32
    }
    pub(super) fn threads(&self) -> u32 {
        (self.block[0] / self.warp[0] * (self.block[1] / self.warp[1]) * 32) as u32
    }
    /// The unit.
    pub fn unit(&self, k: usize, epilogue: Epilogue) -> Unit {
        let defines = [
            ("K", k),
            ("BM", self.block[0]),
            ("BN", self.block[1]),
            ("BK", self.depth),
            ("WM", self.warp[0]),
            ("WN", self.warp[1]),
            ("STAGES", self.stages),
            ("EPILOGUE", epilogue as usize),
        ];
        Unit { file: "gemm.cu", defines: defines.map(|(name, n)| (name, n.to_string())).into() }
    }
    /// The unit of a product with chosen experts.
    pub fn experts(&self, k: usize, epilogue: Epilogue) -> Unit {
        let mut unit = self.unit(k, epilogue);
        unit.defines.push(("EXPERTS", "1".into()));
        unit
    }
}

/// The unit that makes the bf16 operand.
pub fn to_bf16(k: usize) -> Unit {
    Unit { file: "to_bf16.cu", defines: vec![("K", k.to_string())] }
}

/// The unit of `unpack` for weights of `kp` inputs.
pub fn unpack(layout: Layout, kp: usize) -> Unit {
    Unit { file: "unpack.cu", defines: vec![("WEIGHTS", layout.name()), ("K", kp.to_string())] }
}

/// Bytes of the head of a matrix as bf16.
fn unpacked_bytes(w: &Matrix) -> usize {
    BF16.bytes(w.head.n, w.kp())
}

impl Cuda {
    /// Whether a matrix is multiplied on the tensor cores when a prompt is computed.
    pub(super) fn on_tensor_cores(&self, w: &Matrix) -> bool {
        let fits = |part: &Part| part.layout == BF16 || part.layout.is_packed();
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
        let swiglu = epilogue == Epilogue::Swiglu;
        let tile = Tile::choose(rows, w.n(), swiglu, self.multiprocessors, self.gpu().shared_memory());
        let columns = if swiglu { tile.block[1] / 2 } else { tile.block[1] };
        w.products(epilogue)?.into_iter().try_for_each(|part| {
            let kp = part.layout.kp(w.k);
            // gemm asks for weights before it waits for `to_bf16`; that one has waited for `unpack`
            let weights = if part.layout.is_packed() { self.unpack(w)? } else { part.at };
            let narrow = self.narrow(x, kp, rows)?;
            let args = [
                ptr(out.at + 4 * part.first as u64),
                ptr(narrow),
                ptr(weights),
                int(rows),
                int(part.n),
                Arg::U64(kp as u64),
                Arg::U64(out.ld as u64),
            ];
            let grid = [rows.div_ceil(tile.block[0]) * part.n.div_ceil(columns), 1, 1];
            self.launch((tile.unit(kp, epilogue), "gemm"), grid, tile.threads(), tile.smem(), &args)
        })
    }

    /// The head of a packed matrix as bf16; until the next is.
    fn unpack(&self, w: &Matrix) -> Result<Ptr, Error> {
        let at = self.room_to_unpack(unpacked_bytes(w))?;
        let args = [ptr(at), ptr(w.head.at), int(w.head.n.div_ceil(TILE))];
        let unit = (unpack(w.head.layout, w.kp()), "unpack");
        self.launch(unit, [8 * self.multiprocessors as usize, 1, 1], 256, 0, &args)?;
        Ok(at)
    }

    /// Memory for so many bytes of unpacked weights.
    pub(super) fn room_to_unpack(&self, bytes: usize) -> Result<Ptr, Error> {
        let (at, room) = self.unpacked.get();
        if bytes <= room {
            return Ok(at);
        }
        let at = self.memory.alloc(bytes)?;
        self.unpacked.set((at, bytes));
        Ok(at)
    }

    /// A matrix has been loaded: when the cache is made, there will be room to unpack it.
    pub(super) fn noted(&self, w: Matrix) -> Matrix {
        if self.on_tensor_cores(&w) && w.head.layout.is_packed() {
            self.most_unpacked.set(self.most_unpacked.get().max(unpacked_bytes(&w)));
        }
        w
    }

    /// The rows of `x` as bf16, `[rows, kp]`.
    pub(super) fn narrow(&self, x: &Buf, kp: usize, rows: usize) -> Result<Ptr, Error> {
        let at = self.narrow_rows.get();
        let args = [ptr(at), ptr(x.at), int(rows), int(x.width), Arg::U64(x.ld as u64)];
        let grid = [(rows * kp / 8).div_ceil(256), 1, 1];
        self.launch((to_bf16(kp), "to_bf16"), grid, 256, 0, &args)?;
        Ok(at)
    }
}
