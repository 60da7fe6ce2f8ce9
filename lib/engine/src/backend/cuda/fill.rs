//! Tiles of a matrix that wait for their weights: read, brought into the device's order, and sent.

use super::gpu::{Gpu, Ptr, Stage};
use super::layout::{Layout, RUN, TILE};
use super::pack;
use super::stage::LoadOptions;
use super::weights::{Matrix, Part};
use crate::Error;
use cute_checkpoint::lazy::read_stacked;
use cute_checkpoint::{Dtype, LazyWeight, Tensor, Weight};
use half::bf16;
use std::ops::Range;
use std::sync::Arc;

/// Tiles of a part that wait for their weights.
#[derive(Clone, Debug)]
pub(super) struct Fill {
    /// all of the matrix, stacked by rows
    pub(super) weights: Arc<[LazyWeight]>,
    /// inputs
    pub(super) k: usize,
    pub(super) part: Part,
    pub(super) tiles: Range<usize>,
}

impl Fill {
    /// What a matrix has to be filled with: the weights it was planned for.
    pub(super) fn all(matrix: &Matrix, weights: Vec<LazyWeight>) -> Vec<Fill> {
        let weights: Arc<[LazyWeight]> = weights.into();
        let fill = |part: Part| Fill {
            weights: weights.clone(),
            k: matrix.k,
            part,
            tiles: 0..part.n.div_ceil(TILE),
        };
        matrix.parts().into_iter().map(fill).collect()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.tiles.is_empty()
    }

    /// What the matrix is known by: its first weight.
    pub(super) fn name(&self) -> &str {
        self.weights.first().map_or("", LazyWeight::name)
    }

    /// Takes out the first tiles, as many as a buffer holds.
    pub(super) fn split(&mut self, buffer: usize) -> Fill {
        let count = (buffer / self.part.layout.bytes(TILE, self.k).max(1)).max(1);
        let end = (self.tiles.start + count).min(self.tiles.end);
        let tiles = self.tiles.start..end;
        self.tiles.start = end;
        Fill { tiles, ..self.clone() }
    }

    /// Reads, arranges and sends all of it at once. False, with nothing sent, when the layout cannot hold the values.
    pub(super) fn send(
        &self,
        gpu: &dyn Gpu,
        stage: &mut dyn Stage,
        options: LoadOptions,
    ) -> Result<bool, Error> {
        let layout = self.part.layout;
        let (tile, all) = (layout.tile_bytes(self.k), layout.bytes(TILE, self.k));
        let (bytes, each) = (self.tiles.len() * tile, all - tile);
        let total = self.tiles.len() * all;
        // one tile may be larger than a buffer
        let mut own = Vec::new();
        let staged = total <= options.buffer;
        let buffer = match staged {
            true => &mut stage.next()?[..total],
            false => {
                own.resize(total, 0);
                &mut own[..]
            }
        };
        let (tiles, factors) = buffer.split_at_mut(bytes);
        let widest = self.weights.iter().map(LazyWeight::row_bytes).max().unwrap_or(0);
        let step = (options.read / (TILE * widest).max(1)).max(1);
        let mut spare = Vec::new();
        for from in (0..self.tiles.len()).step_by(step) {
            let to = (from + step).min(self.tiles.len());
            let (tiles, factors) = (&mut tiles[from * tile..to * tile], &mut factors[from * each..to * each]);
            if !self.arrange(self.tiles.start + from..self.tiles.start + to, tiles, factors, &mut spare)? {
                return Ok(false);
            }
        }
        let place = |first: usize, each: usize| self.part.at + (first + self.tiles.start * each) as Ptr;
        let behind = place(self.part.n.div_ceil(TILE) * tile, each);
        for (to, range) in [(place(0, tile), 0..bytes), (behind, bytes..total)] {
            match staged {
                _ if range.is_empty() => {}
                true => stage.send(to, range)?,
                false => gpu.upload(to, &own[range])?,
            }
        }
        Ok(true)
    }

    /// Reads the weights of some tiles and brings them into place, with the factors behind the tiles of some layouts.
    fn arrange(
        &self,
        which: Range<usize>,
        tiles: &mut [u8],
        factors: &mut [u8],
        spare: &mut Vec<Vec<u8>>,
    ) -> Result<bool, Error> {
        let Part { first, n, layout, .. } = self.part;
        let outputs = first + which.start * TILE..first + (which.end * TILE).min(n);
        let padded = outputs.len() < which.len() * TILE || layout.kp(self.k) != self.k;
        // where every byte is written below there is no need
        if padded || matches!(layout, Layout::Bf16 { pieces: 2.. }) {
            tiles.fill(0);
            factors.fill(0);
        }
        let read = read_stacked(&self.weights, outputs, spare)?;
        let tile = layout.tile_bytes(self.k);
        let Layout::Bf16 { pieces } = layout else {
            if !read.iter().all(pack::fits) {
                return Ok(false);
            }
            let mut before = 0;
            for w in read {
                let count = w.shape()[0].div_ceil(TILE);
                let factors = if factors.is_empty() { &mut [] } else { &mut factors[before * TILE * 4..] };
                pack::arrange(&w, layout, &mut tiles[before * tile..][..count * tile], factors)?;
                before += count;
                spare.push(w.into_bytes());
            }
            return Ok(true);
        };
        let tensors: Vec<Tensor> = read.into_iter().map(Weight::into_tensor).collect();
        let rows: Vec<_> = tensors.iter().flat_map(|t| (0..t.shape[0]).map(move |row| (t, row))).collect();
        for (tile, rows) in tiles.chunks_exact_mut(tile.max(1)).zip(rows.chunks(TILE)) {
            fill([self.k, layout.kp(self.k), pieces], tile, rows);
        }
        spare.extend(tensors.into_iter().map(|t| t.bytes));
        Ok(true)
    }
}

/// Fills a tile of zeros with up to [`TILE`] rows of `k` inputs, as bf16 pieces.
fn fill([k, kp, pieces]: [usize; 3], tile: &mut [u8], rows: &[(&Tensor, usize)]) {
    // the place of an output's inputs from a multiple of RUN on
    let place = |output: usize, run: usize| (run * TILE + output) * RUN * 2;
    for (output, (t, row)) in rows.iter().enumerate() {
        let bytes = k * t.dtype.size();
        let row = &t.bytes[row * bytes..][..bytes];
        if t.dtype == Dtype::BF16 {
            let (runs, rest) = row.as_chunks::<{ RUN * 2 }>();
            let places =
                tile.chunks_exact_mut(TILE * RUN * 2).map(|run| &mut run[output * RUN * 2..][..RUN * 2]);
            runs.iter().zip(places).for_each(|(run, place)| place.copy_from_slice(run));
            if !rest.is_empty() {
                tile[place(output, runs.len())..][..rest.len()].copy_from_slice(rest);
            }
            continue;
        }
        for (i, mut rest) in t.dtype.widen(row).into_iter().enumerate() {
            for piece in 0..pieces {
                let value = bf16::from_f32(rest);
                let at = place(output, (piece * kp + i) / RUN) + i % RUN * 2;
                tile[at..][..2].copy_from_slice(&value.to_le_bytes());
                // what is not finite is all in the first piece
                rest = if value.is_finite() { rest - value.to_f32() } else { 0.0 };
            }
        }
    }
}
