//! FP8 and NVFP4 weights as bytes of device memory, in the order of kernels/packed.cuh.

use super::arena::Arena;
use super::weights::{Layout, Part};
use crate::Error;
use cute_checkpoint::{Fp8, GlobalScale, Nvfp4, Weight};
use rayon::prelude::*;

/// Inputs of a block, to which inputs are padded.
pub(super) const BLOCK: usize = 128;
/// Inputs of a lane in a half of a unit.
const OF_LANE: usize = 8;
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

/// Unit, lane, output and first input, within tile and block, of each lane of each half.
fn lanes() -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let halves = (0..4).map(|i| (i / 2, i % 2));
    halves.flat_map(|(unit, half)| {
        (0..32).map(move |lane| (unit, lane, lane / 4, unit * 64 + lane % 4 * 16 + half * OF_LANE))
    })
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
        for ((_, _, g, input), of_lane) in lanes().zip(codes.chunks_exact_mut(OF_LANE)) {
            let (row, input) = (first + g, b * BLOCK + input);
            let count = k.saturating_sub(input).min(OF_LANE);
            if row < n && count > 0 {
                of_lane[..count].copy_from_slice(&w.codes[row * k + input..][..count]);
                of_lane.chunks_exact_mut(4).for_each(|word| {
                    let halves = [fp8_half(word[0], word[2]), fp8_half(word[1], word[3])];
                    word.copy_from_slice(&(halves[0] | halves[1] << 16).to_le_bytes());
                });
            }
        }
    }
}

/// Two codes in the order that `Fp8::operands` undoes.
fn fp8_half(first: u8, second: u8) -> u32 {
    let [first, second] = [u32::from(first), u32::from(second)];
    (first & 0x80) << 8 | (first & 0x7f) << 4 | (second & 0x70) << 8 | (second & 0x80) << 4 | second & 15
}

/// The same for e2m1.
fn nvfp4(w: &Nvfp4, first: usize, out: &mut [u8]) {
    let [n, k] = w.shape;
    for (b, block) in out.chunks_exact_mut(block_bytes(Layout::Nvfp4)).enumerate() {
        let (scales, codes) = block.split_at_mut(TILE * BLOCK / 16);
        for ((unit, lane, g, input), of_lane) in lanes().zip(codes.chunks_exact_mut(OF_LANE / 2)) {
            let (row, input) = (first + g, b * BLOCK + input);
            if row >= n || input >= k {
                continue;
            }
            let code = w.scales[(row * k + input) / 16];
            let Some(scale) = normal_scale(code) else { continue };
            scales[unit * 32 + lane] = scale;
            // a negative scale is as good as codes of the other sign
            let flip = if code & 0x80 == 0 { 0 } else { 0x88 };
            let bytes = &w.codes[(row * k + input) / 2..][..OF_LANE / 2];
            let word =
                |shift: u32| half_word(bytes.iter().map(|byte| u32::from((byte ^ flip) >> shift & 15)));
            of_lane.copy_from_slice(&(word(0) | word(4) << 16).to_le_bytes());
        }
    }
}

/// The magnitude of an e4m3 code as a normal number of five bits of exponent, of which 9 is 2⁰, and three of mantissa; none
/// for zero.
fn normal_scale(code: u8) -> Option<u8> {
    let (exponent, mantissa) = (code >> 3 & 15, code & 7);
    match (exponent, mantissa) {
        (0, 0) => None,
        (0, m) => {
            let up = m.leading_zeros() as u8 - 4; // until its leading one is bit 3
            Some((3 - up) << 3 | (m << up & 7))
        }
        (e, m) => Some((e + 2) << 3 | m),
    }
}

/// Four codes in the order that `Nvfp4::operands` undoes.
fn half_word(codes: impl Iterator<Item = u32>) -> u32 {
    let places = [(15, 6), (12, 3), (14, 0), (13, 9)]; // of the sign, and of exponent and mantissa
    codes.zip(places).map(|(code, (sign, size))| (code >> 3) << sign | (code & 7) << size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cute_checkpoint::Tensor;

    #[test]
    fn every_scale_has_a_normal_form() {
        for code in 0..0x7f_u8 {
            let value = float8::F8E4M3::from_bits(code).to_f32();
            let found = normal_scale(code)
                .map_or(0.0, |s| (1.0 + f32::from(s & 7) / 8.0) * 2f32.powi(i32::from(s >> 3) - 9));
            assert_eq!(found, value, "{code:#x}");
            assert_eq!(normal_scale(code | 0x80), normal_scale(code));
        }
    }

    #[test]
    fn what_the_kernels_cannot_decode_is_not_kept_packed() {
        let fp8 = |codes: Vec<u8>, scales: Vec<f32>, block| {
            Weight::Fp8(Fp8 { name: "w".into(), shape: [8, 256], codes, scales, block })
        };
        let one = || vec![0x38; 8 * 256];
        let with = |code| [vec![code], one()].concat()[..8 * 256].to_vec();
        assert_eq!(layout(&fp8(one(), vec![1.0], [8, 256]), true), Some(Layout::Fp8));
        for nan in [0x7f, 0xff] {
            assert_eq!(layout(&fp8(with(nan), vec![1.0], [8, 256]), true), None);
        }
        assert_eq!(layout(&fp8(one(), vec![1.0; 4], [8, 64]), true), None);
        assert_eq!(layout(&fp8(one(), vec![f32::NAN], [8, 256]), true), None);
        let nvfp4 = |scale, global| {
            let (name, scales) = ("w".into(), vec![scale; 8 * 16]);
            Weight::Nvfp4(Nvfp4 { name, shape: [8, 256], codes: vec![0; 8 * 128], scales, global })
        };
        assert_eq!(layout(&nvfp4(0x38, GlobalScale::Divisor(3.0)), true), Some(Layout::Nvfp4));
        assert_eq!(layout(&nvfp4(0x7f, GlobalScale::Divisor(3.0)), true), None);
        assert_eq!(layout(&nvfp4(0x38, GlobalScale::Multiplier(f32::MAX)), true), None);
        let t = Tensor {
            name: "t".into(),
            dtype: cute_checkpoint::Dtype::BF16,
            shape: vec![0, 1],
            bytes: vec![],
        };
        assert_eq!(layout(&Weight::Plain(t), false), None);
    }
}
