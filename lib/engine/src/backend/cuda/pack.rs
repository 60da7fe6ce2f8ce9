//! FP8 and NVFP4 weights as bytes of device memory, in the order of kernels/packed.cuh.

use super::layout::{BLOCK, Layout, TILE};
use crate::Error;
use cute_checkpoint::{Format, Fp8, GlobalScale, LazyWeight, Nvfp4, Weight};
use multiversion::multiversion;

/// Inputs of a lane in a half of a unit.
const OF_LANE: usize = 8;
const NAN: u8 = 0x7f;

/// The layout in which a weight can be kept, if its values allow it ([`fits`]): none when it is plain, is scaled in blocks
/// that lie across those of the kernels, or is one `of_several` and does not end with a tile.
pub(super) fn layout(w: &LazyWeight, of_several: bool) -> Option<Layout> {
    let whole_tiles = !of_several || w.rows().is_multiple_of(TILE);
    let inputs = w.shape().last().copied().unwrap_or(0);
    match w.format() {
        Format::Plain(_) => None,
        Format::Nvfp4 => whole_tiles.then_some(Layout::Nvfp4),
        _ => {
            let blocks = w.scale_inputs().is_none_or(|wide| wide.is_multiple_of(BLOCK) || wide >= inputs);
            (whole_tiles && blocks).then_some(Layout::Fp8)
        }
    }
}

/// Whether the kernels can decode these values: they cannot when a code or a scale is NaN.
pub(super) fn fits(w: &Weight) -> bool {
    // whole pieces, so that they are compared many at a time
    let nan = |codes: &[u8]| codes.iter().fold(false, |any, c| any | (c & NAN == NAN));
    let numbers = |codes: &[u8]| !codes.chunks(4096).any(nan);
    match w {
        Weight::Plain(_) => false,
        Weight::Fp8(w) => w.scales.iter().all(|s| s.is_finite()) && numbers(&w.codes),
        Weight::Nvfp4(w) => factor(w.global).is_normal() && numbers(&w.scales),
    }
}

/// What sums are multiplied with: weights are decoded 2⁸ too small, so that scales stay finite on the way.
fn factor(global: GlobalScale) -> f32 {
    match global {
        GlobalScale::Multiplier(s) => s * 256.0,
        GlobalScale::Divisor(s) => 256.0 / s,
    }
}

/// Brings the rows of a weight into tiles, and what their sums are multiplied with into `factors`, where the layout has
/// them. What belongs to rows that are not there is left alone.
pub(super) fn arrange(w: &Weight, layout: Layout, tiles: &mut [u8], factors: &mut [u8]) -> Result<(), Error> {
    let tile = layout.tile_bytes(w.shape()[1]).max(1);
    let each = tiles.chunks_exact_mut(tile).enumerate();
    match w {
        Weight::Plain(t) => return Err(Error::Shape(format!("{} is plain", t.name))),
        Weight::Fp8(w) => each.for_each(|(i, out)| fp8(w, i * TILE, out)),
        Weight::Nvfp4(w) => {
            each.for_each(|(i, out)| nvfp4(w, i * TILE, out));
            let factor = factor(w.global).to_le_bytes();
            factors.as_chunks_mut::<4>().0[..w.shape[0]].fill(factor);
        }
    }
    Ok(())
}

/// Units of a block, each of 64 inputs.
const UNITS: usize = 2;
/// Lanes that share an output in a unit. Their inputs in a half of it lie together on the device; in the file those of a
/// lane's two halves do.
const LANES: usize = 4;
/// Inputs of a scale of NVFP4: those of a lane in both halves of a unit.
const OF_SCALE: usize = 2 * OF_LANE;

/// The items of `from`, filled up to `N`.
#[inline(always)]
fn filled<T: Copy + Default, const N: usize>(from: &[T]) -> [T; N] {
    from.first_chunk()
        .copied()
        .unwrap_or_else(|| std::array::from_fn(|i| from.get(i).copied().unwrap_or_default()))
}

/// The tile whose first output is `first`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn fp8(w: &Fp8, first: usize, out: &mut [u8]) {
    let [n, k] = w.shape;
    let [tall, wide] = w.block.map(|b| b.max(1));
    let across = k.div_ceil(wide);
    for (output, row) in (first..n).take(TILE).enumerate() {
        let blocks = w.codes[row * k..][..k].chunks(BLOCK);
        for (b, (inputs, block)) in blocks.zip(out.chunks_exact_mut(Layout::Fp8.block_bytes())).enumerate() {
            let (scales, codes) = block.split_at_mut(TILE * 4);
            let scale = w.scales[row / tall * across + b * BLOCK / wide];
            scales[output * 4..][..4].copy_from_slice(&scale.to_le_bytes());
            let inputs: [u8; BLOCK] = filled(inputs);
            let lanes = inputs.as_chunks::<OF_LANE>().0;
            // of each unit and half: the lanes of an output behind those of the one before
            for (i, half) in codes.chunks_exact_mut(TILE * LANES * OF_LANE).enumerate() {
                let (unit, half_of) = (i / 2, i % 2);
                let of_output: [u64; LANES] = std::array::from_fn(|lane| {
                    fp8_operands(u64::from_le_bytes(lanes[(unit * LANES + lane) * 2 + half_of]))
                });
                half[output * LANES * OF_LANE..][..LANES * OF_LANE]
                    .copy_from_slice(of_output.map(u64::to_le_bytes).as_flattened());
            }
        }
    }
}

/// Each four codes in the order that `Fp8::operands` undoes: the first and third in the lower half, the others in the upper.
#[inline(always)]
fn fp8_operands(x: u64) -> u64 {
    let halves = |bits: u64| bits << 48 | bits << 32 | bits << 16 | bits;
    let low = 0xff_0000_00ff;
    let first = x & low | x << 8 & low << 16;
    let second = x >> 16 & low | x >> 8 & low << 16;
    let first = (first & halves(0x80)) << 8 | (first & halves(0x7f)) << 4;
    let second = (second & halves(0x70)) << 8 | (second & halves(0x80)) << 4 | second & halves(15);
    first | second
}

/// The same for e2m1.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn nvfp4(w: &Nvfp4, first: usize, out: &mut [u8]) {
    let [n, k] = w.shape;
    let of_block = BLOCK / OF_SCALE;
    for (output, row) in (first..n).take(TILE).enumerate() {
        let codes = w.codes[row * k / 2..][..k / 2].as_chunks::<OF_LANE>().0;
        let scales = &w.scales[row * k / OF_SCALE..][..k / OF_SCALE];
        let blocks = codes.chunks(of_block).zip(scales.chunks(of_block));
        for ((codes, scales), block) in blocks.zip(out.chunks_exact_mut(Layout::Nvfp4.block_bytes())) {
            let (to_scales, to_codes) = block.split_at_mut(TILE * of_block);
            let (codes, scales): ([_; UNITS * LANES], [u8; UNITS * LANES]) = (filled(codes), filled(scales));
            // a negative scale is as good as codes of the other sign; of zero there are none
            let flip = scales.map(|scale| u32::from(scale >> 7) * 0x8888_8888);
            let keep = scales.map(|scale| if scale & NAN == 0 { 0 } else { u32::MAX });
            for half in 0..2 {
                let codes: [u32; UNITS * LANES] =
                    codes.map(|both| u32::from_le_bytes(std::array::from_fn(|i| both[4 * half + i])));
                let words: [u32; UNITS * LANES] =
                    std::array::from_fn(|i| operands(codes[i] ^ flip[i]) & keep[i]);
                for (unit, words) in words.as_chunks::<LANES>().0.iter().enumerate() {
                    let place = ((unit * 2 + half) * TILE + output) * LANES * 4;
                    to_codes[place..][..LANES * 4]
                        .copy_from_slice(words.map(u32::to_le_bytes).as_flattened());
                }
            }
            for (unit, scales) in scales.as_chunks::<LANES>().0.iter().enumerate() {
                let normal = scales.map(|scale| NORMAL_SCALES[usize::from(scale & NAN)]);
                to_scales[(unit * TILE + output) * LANES..][..LANES].copy_from_slice(&normal);
            }
        }
    }
}

/// [`normal_scale`] of every code without its sign, and zero of zero.
const NORMAL_SCALES: [u8; 128] = {
    let mut all = [0; 128];
    let mut code = 1;
    while code < 128 {
        if let Some(normal) = normal_scale(code as u8) {
            all[code] = normal;
        }
        code += 1;
    }
    all
};

/// The magnitude of an e4m3 code as a normal number of five bits of exponent, of which 9 is 2⁰, and three of mantissa; none
/// for zero.
const fn normal_scale(code: u8) -> Option<u8> {
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

/// Eight codes in the order that `Nvfp4::operands` undoes: those in low and those in high halves of bytes.
#[inline(always)]
fn operands(codes: u32) -> u32 {
    // of four codes a, b, c and d, one a byte, where kernels/packed.cuh has them; the sign of c is in the other half
    let half = |x: u32| {
        let a = x << 6 & 7 << 6 | x << 12 & 1 << 15;
        let b = x >> 8 & 7 | x >> 2 & 1 << 9;
        let d = x >> 20 & 3 << 4 | x >> 12 & 1 << 14 | x >> 14 & 1 << 13;
        a | b | x >> 6 & 7 << 10 | d
    };
    let (even, odd) = (codes & 0x0f0f_0f0f, codes >> 4 & 0x0f0f_0f0f);
    half(even) | half(odd) << 16 | (even & 8 << 16) | odd >> 16 & 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use cute_checkpoint::Tensor;

    fn kept(w: &Weight) -> Option<Layout> {
        layout(&w.clone().into(), true).filter(|_| fits(w))
    }

    /// Unit, lane, output and first input, within tile and block, of each lane of each half.
    fn lanes() -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let halves = (0..4).map(|i| (i / 2, i % 2));
        halves.flat_map(|(unit, half)| {
            (0..32).map(move |lane| (unit, lane, lane / 4, unit * 64 + lane % 4 * 16 + half * OF_LANE))
        })
    }

    /// The tile whose first output is `first`, lane by lane.
    fn fp8_by_lanes(w: &Fp8, first: usize, out: &mut [u8]) {
        let [n, k] = w.shape;
        let across = k.div_ceil(w.block[1].max(1));
        for (b, block) in out.chunks_exact_mut(Layout::Fp8.block_bytes()).enumerate() {
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
    fn nvfp4_by_lanes(w: &Nvfp4, first: usize, out: &mut [u8]) {
        let [n, k] = w.shape;
        for (b, block) in out.chunks_exact_mut(Layout::Nvfp4.block_bytes()).enumerate() {
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
                let codes = std::array::from_fn(|i| u32::from((bytes[i / 2] ^ flip) >> (i % 2 * 4) & 15));
                of_lane.copy_from_slice(&nvfp4_word(codes).to_le_bytes());
            }
        }
    }

    /// Eight codes in the order that `Nvfp4::operands` undoes, bit by bit: of the even ones in the lower half of the word and
    /// of the odd ones in the upper, where sign and the three other bits of the first, second, third and fourth are.
    fn nvfp4_word(codes: [u32; 8]) -> u32 {
        let places = [[6, 7, 8, 15], [0, 1, 2, 9], [10, 11, 12, 19], [4, 5, 14, 13]];
        let bit =
            |i: usize, j: usize| (codes[i] >> j & 1).rotate_left(places[i / 2][j] + 16 * (i % 2) as u32);
        (0..8).flat_map(|i| (0..4).map(move |j| (i, j))).map(|(i, j)| bit(i, j)).sum()
    }

    #[test]
    fn a_block_at_once_is_what_its_lanes_are_one_by_one() {
        let bytes = |seed: usize, n: usize| -> Vec<u8> {
            (0..n).map(|i| ((i + seed) as u32).wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect()
        };
        for (n, k) in [(1usize, 16usize), (8, 128), (9, 272), (24, 640), (13, 48), (7, 1024)] {
            for block in [[1, k], [n, k], [128, 128], [4, 256]] {
                let across = k.div_ceil(block[1]);
                let scales = (0..n.div_ceil(block[0]) * across).map(|i| i as f32 + 0.5).collect();
                let w = Fp8 { name: "w".into(), shape: [n, k], codes: bytes(n, n * k), scales, block };
                for first in (0..n).step_by(TILE) {
                    let [mut found, mut expected] = [(); 2].map(|()| vec![0; Layout::Fp8.tile_bytes(k)]);
                    fp8(&w, first, &mut found);
                    fp8_by_lanes(&w, first, &mut expected);
                    assert!(found == expected, "{n} × {k} in {block:?} from {first}");
                }
            }
            let scales = bytes(k, n * k / 16).into_iter().map(|c| if c % 5 == 0 { c & 0x80 } else { c });
            let w = Nvfp4 {
                name: "w".into(),
                shape: [n, k],
                codes: bytes(n, n * k / 2),
                scales: scales.map(|c| if c & NAN == NAN { 1 } else { c }).collect(),
                global: GlobalScale::Divisor(3.0),
            };
            for first in (0..n).step_by(TILE) {
                let [mut found, mut expected] = [(); 2].map(|()| vec![0; Layout::Nvfp4.tile_bytes(k)]);
                nvfp4(&w, first, &mut found);
                nvfp4_by_lanes(&w, first, &mut expected);
                assert!(found == expected, "{n} × {k} from {first}");
            }
        }
    }

    #[test]
    fn eight_codes_go_where_each_of_them_goes_alone() {
        for all in [0x7531_eca9, 0x0123_4567, 0xfedc_ba98, 0x8888_8888, 0x7777_7777u32] {
            let codes: [u32; 8] = std::array::from_fn(|i| all >> (4 * i) & 15);
            assert_eq!(operands(all), nvfp4_word(codes), "{all:#x}");
        }
        for i in 0..32 {
            let codes: [u32; 8] = std::array::from_fn(|n| (1u32 << i) >> (4 * n) & 15);
            assert_eq!(operands(1 << i), nvfp4_word(codes), "bit {i}");
        }
    }

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
        assert_eq!(kept(&fp8(one(), vec![1.0], [8, 256])), Some(Layout::Fp8));
        for nan in [0x7f, 0xff] {
            assert_eq!(kept(&fp8(with(nan), vec![1.0], [8, 256])), None);
        }
        assert_eq!(kept(&fp8(one(), vec![1.0; 4], [8, 64])), None);
        assert_eq!(kept(&fp8(one(), vec![f32::NAN], [8, 256])), None);
        let nvfp4 = |scale, global| {
            let (name, scales) = ("w".into(), vec![scale; 8 * 16]);
            Weight::Nvfp4(Nvfp4 { name, shape: [8, 256], codes: vec![0; 8 * 128], scales, global })
        };
        assert_eq!(kept(&nvfp4(0x38, GlobalScale::Divisor(3.0))), Some(Layout::Nvfp4));
        assert_eq!(kept(&nvfp4(0x7f, GlobalScale::Divisor(3.0))), None);
        assert_eq!(kept(&nvfp4(0x38, GlobalScale::Multiplier(f32::MAX))), None);
        let t = Tensor {
            name: "t".into(),
            dtype: cute_checkpoint::Dtype::BF16,
            shape: vec![0, 1],
            bytes: vec![],
        };
        assert_eq!(kept(&Weight::Plain(t)), None);
    }
}
