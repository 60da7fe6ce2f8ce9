//! FP8 and NVFP4 weights as bytes of device memory, in the order of kernels/packed.cuh.

use super::arena::Arena;
use super::weights::{Layout, Part};
use crate::Error;
use cute_checkpoint::{Fp8, GlobalScale, Nvfp4, Weight};
use rayon::prelude::*;

/// Inputs of a block, to which inputs are padded.
pub(super) const BLOCK: usize = 128;
/// Inputs of a unit, and those of one lane.
const UNIT: usize = 64;
const OF_LANE: usize = 16;
/// Outputs of a tile.
const TILE: usize = 8;
const NAN: u8 = 0x7f;

/// Bytes of a block of a tile.
fn block_bytes(layout: Layout) -> usize {
    match layout {
        Layout::Bf16 { .. } => 0,
        Layout::Fp8 => TILE * 4 + TILE * BLOCK,
        Layout::Nvfp4 => TILE * BLOCK / 16 + TILE * BLOCK / 2,
    }
}

/// Bytes of a tile of packed weights with `k` inputs.
pub(super) fn tile_bytes(layout: Layout, k: usize) -> usize {
    k.div_ceil(BLOCK) * block_bytes(layout)
}

/// The layout in which a weight can be kept: none when it is plain, has NaN, is scaled in blocks that lie across those of the
/// kernels, or is one `of_several` and does not end with a tile.
pub(super) fn layout(w: &Weight, of_several: bool) -> Option<Layout> {
    let whole_tiles = |n: usize| !of_several || n.is_multiple_of(TILE);
    let numbers = |codes: &[u8]| codes.par_iter().all(|c| c & NAN != NAN);
    match w {
        Weight::Plain(_) => None,
        Weight::Fp8(w) => {
            let [n, k] = w.shape;
            let blocks = w.block[1].is_multiple_of(BLOCK) || w.block[1] >= k;
            let finite = w.scales.iter().all(|s| s.is_finite());
            (whole_tiles(n) && blocks && finite && numbers(&w.codes)).then_some(Layout::Fp8)
        }
        Weight::Nvfp4(w) => {
            let factor = factor(w.global);
            (whole_tiles(w.shape[0]) && factor.is_normal() && numbers(&w.scales)).then_some(Layout::Nvfp4)
        }
    }
}

/// What sums are multiplied with: weights are decoded 2⁸ too small, so that scales stay finite on the way.
fn factor(global: GlobalScale) -> f32 {
    match global {
        GlobalScale::Multiplier(s) => s * 256.0,
        GlobalScale::Divisor(s) => 256.0 / s,
    }
}

/// Writes weights of one layout, one below the other, to a part that has room for them.
pub(super) fn upload(memory: &Arena, part: &Part, k: usize, weights: &[Weight]) -> Result<(), Error> {
    let tile = tile_bytes(part.layout, k);
    let mut to = part.at;
    let mut factors = Vec::new();
    for w in weights {
        let mut tiles = vec![0u8; w.shape()[0].div_ceil(TILE) * tile];
        let each = tiles.par_chunks_mut(tile.max(1)).enumerate();
        match w {
            Weight::Plain(t) => return Err(Error::Shape(format!("{} is plain", t.name))),
            Weight::Fp8(w) => each.for_each(|(i, out)| fp8(w, i * TILE, out)),
            Weight::Nvfp4(w) => {
                each.for_each(|(i, out)| nvfp4(w, i * TILE, out));
                factors.resize(factors.len() + w.shape[0], factor(w.global));
            }
        }
        memory.gpu.upload(to, &tiles)?;
        to += tiles.len() as u64;
    }
    if !factors.is_empty() {
        memory.gpu.upload(to, bytemuck::cast_slice(&factors))?;
    }
    Ok(())
}

/// Output and first input, within tile and block, of each lane of each unit.
fn lanes() -> impl Iterator<Item = (usize, usize)> {
    let lane = |unit: usize, lane: usize| (lane / 4, unit * UNIT + lane % 4 * OF_LANE);
    (0..BLOCK / UNIT).flat_map(move |u| (0..32).map(move |l| lane(u, l)))
}

/// The tile whose first output is `first`.
fn fp8(w: &Fp8, first: usize, out: &mut [u8]) {
    let [n, k] = w.shape;
    let across = k.div_ceil(w.block[1].max(1));
    for (b, block) in out.chunks_exact_mut(block_bytes(Layout::Fp8)).enumerate() {
        let (scales, codes) = block.split_at_mut(TILE * 4);
        let outputs = (first..n).take(TILE);
        for (row, scale) in outputs.zip(scales.chunks_exact_mut(4)) {
            let s = w.scales[row / w.block[0].max(1) * across + b * BLOCK / w.block[1].max(1)];
            scale.copy_from_slice(&s.to_le_bytes());
        }
        for ((g, input), of_lane) in lanes().zip(codes.chunks_exact_mut(OF_LANE)) {
            let (row, input) = (first + g, b * BLOCK + input);
            let count = k.saturating_sub(input).min(OF_LANE);
            if row < n && count > 0 {
                of_lane[..count].copy_from_slice(&w.codes[row * k + input..][..count]);
                of_lane.chunks_exact_mut(4).for_each(|word| {
                    let [a, b, c, d] = [word[0], word[1], word[2], word[3]];
                    word.copy_from_slice(&[c, a, d, b]);
                });
            }
        }
    }
}

/// The same for e2m1.
fn nvfp4(w: &Nvfp4, first: usize, out: &mut [u8]) {
    let [n, k] = w.shape;
    for (b, block) in out.chunks_exact_mut(block_bytes(Layout::Nvfp4)).enumerate() {
        let (scales, codes) = block.split_at_mut(TILE * BLOCK / 16);
        for (((g, input), scale), of_lane) in lanes().zip(scales).zip(codes.chunks_exact_mut(OF_LANE / 2)) {
            let (row, input) = (first + g, b * BLOCK + input);
            if row >= n || input >= k {
                continue;
            }
            let s = w.scales[(row * k + input) / 16];
            *scale = s & 0x7f;
            // a negative scale is as good as codes of the other sign
            let flip = if s & 0x80 == 0 { 0 } else { 0x88 };
            let from = &w.codes[(row * k + input) / 2..][..OF_LANE / 2];
            for (word, bytes) in of_lane.chunks_exact_mut(4).zip(from.chunks_exact(4)) {
                let nibbles = bytes.iter().map(|byte| u32::from(byte ^ flip));
                let [even, odd] = [0, 4].map(|shift| half_word(nibbles.clone().map(|b| b >> shift & 15)));
                word.copy_from_slice(&(even | odd << 16).to_le_bytes());
            }
        }
    }
}

/// Four codes in the order that `Nvfp4::operands` undoes.
fn half_word(codes: impl Iterator<Item = u32>) -> u32 {
    let places = [(15, 6), (12, 3), (14, 0), (13, 9)]; // of the sign, and of exponent and mantissa
    codes.zip(places).map(|(code, (sign, size))| (code >> 3) << sign | (code & 7) << size).sum()
}
