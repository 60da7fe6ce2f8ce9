//! A weight matrix as it is stored: plain, or packed with its scales, and what it is worth.
//!
//! A backend gets the packed bytes and the scales as they are and may keep them so; [`Weight::to_f32`] is the
//! definition of what they mean. Every value is the product of a code, a scale and for NVFP4 a global scale, rounded
//! to f32 once: code times block scale is exact, because both have few bits. Activations are not quantised.

use crate::tensor::{Dtype, Tensor};
use float8::F8E4M3;
use std::ops::Range;

/// Values of an NVFP4 block: consecutive inputs of one output that share a scale.
pub const NVFP4_BLOCK: usize = 16;

/// The magnitudes of e2m1, by the low three bits of a code; the fourth is the sign.
pub const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// as numbers of this type
    Plain(Dtype),
    /// e4m3 with one scale
    Fp8Tensor,
    /// e4m3 with one scale an output
    Fp8Channel,
    /// e4m3 with one scale a block of outputs and inputs
    Fp8Block,
    /// e2m1 with one e4m3 scale for each [`NVFP4_BLOCK`] inputs of an output, and one f32 scale for all
    Nvfp4,
}

impl Format {
    /// The name that records and errors give it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Plain(Dtype::BF16) => "bf16",
            Format::Plain(Dtype::F16) => "f16",
            Format::Plain(Dtype::F32) => "f32",
            Format::Fp8Tensor => "fp8_tensor",
            Format::Fp8Channel => "fp8_channel",
            Format::Fp8Block => "fp8_block",
            Format::Nvfp4 => "nvfp4",
        }
    }

    /// Whether values are packed with scales.
    pub fn is_packed(self) -> bool {
        !matches!(self, Format::Plain(_))
    }
}

/// A weight, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight {
    /// numbers
    Plain(Tensor),
    /// e4m3 codes and f32 scales
    Fp8(Fp8),
    /// e2m1 codes, e4m3 scales and a global scale
    Nvfp4(Nvfp4),
}

/// `W[n, k] = e4m3(codes[n, k]) · scales[n / block[0], k / block[1]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8 {
    /// name without the checkpoint's prefix
    pub name: String,
    /// outputs N, inputs K
    pub shape: [usize; 2],
    /// `[N, K]` of e4m3 (`fn`: no infinity, 0x7f and 0xff are NaN)
    pub codes: Vec<u8>,
    /// `[⌈N / block[0]⌉, ⌈K / block[1]⌉]` multipliers, widened to f32 exactly
    pub scales: Vec<f32>,
    /// outputs and inputs that share a scale; the last block of either may be shorter
    pub block: [usize; 2],
}

/// `W[n, k] = e2m1(code[n, k]) · e4m3(scales[n, k / 16])`, times or divided by the global scale
#[derive(Clone, Debug, PartialEq)]
pub struct Nvfp4 {
    /// name without the checkpoint's prefix
    pub name: String,
    /// outputs N, inputs K; K is a multiple of [`NVFP4_BLOCK`]
    pub shape: [usize; 2],
    /// `[N, K / 2]`: input 2j in the low four bits of byte j, input 2j + 1 in the high ones
    pub codes: Vec<u8>,
    /// `[N, K / 16]` of e4m3, row-major
    pub scales: Vec<u8>,
    /// the scale of the whole matrix, and its direction
    pub global: GlobalScale,
}

/// The global scale of an NVFP4 matrix. The two directions differ in the last bit, so neither is turned into the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GlobalScale {
    /// ModelOpt's `weight_scale_2`: multiply
    Multiplier(f32),
    /// compressed-tensors' `weight_global_scale`: divide
    Divisor(f32),
}

impl GlobalScale {
    /// Applies it; one rounding.
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            GlobalScale::Multiplier(s) => x * s,
            GlobalScale::Divisor(s) => x / s,
        }
    }
}

/// Value of an e4m3 code.
pub fn e4m3(code: u8) -> f32 {
    F8E4M3::from_bits(code).to_f32()
}

/// Value of an e2m1 code, of which the low four bits count.
pub fn e2m1(code: u8) -> f32 {
    let magnitude = E2M1[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// Value of a scale that is a bare exponent (ue8m0): 2^(code − 127), NaN for 255.
pub fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22), // 2^−127 is subnormal
        255 => f32::NAN,
        e => f32::from_bits(u32::from(e) << 23),
    }
}

impl Weight {
    /// Name without the checkpoint's prefix.
    pub fn name(&self) -> &str {
        match self {
            Weight::Plain(t) => &t.name,
            Weight::Fp8(w) => &w.name,
            Weight::Nvfp4(w) => &w.name,
        }
    }

    /// Extent of each dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Weight::Plain(t) => &t.shape,
            Weight::Fp8(w) => &w.shape,
            Weight::Nvfp4(w) => &w.shape,
        }
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        match self {
            Weight::Plain(t) => Format::Plain(t.dtype),
            Weight::Fp8(w) if w.scales.len() == 1 => Format::Fp8Tensor,
            Weight::Fp8(w) if w.block[0] == 1 && w.block[1] >= w.shape[1] => Format::Fp8Channel,
            Weight::Fp8(_) => Format::Fp8Block,
            Weight::Nvfp4(_) => Format::Nvfp4,
        }
    }

    /// Every value as f32, row-major: exact for numbers, rounded once for what is packed.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Weight::Plain(t) => t.to_f32(),
            Weight::Fp8(w) => w.to_f32(),
            Weight::Nvfp4(w) => w.to_f32(),
        }
    }

    /// A copy of some rows, `[rows.len(), inputs]`. Scales of FP8 then belong to one row each.
    pub fn rows(&self, rows: Range<usize>) -> Weight {
        let name = self.name().to_owned();
        let inputs = self.shape().last().copied().unwrap_or(1);
        let n = rows.len();
        let cut = |bytes: &[u8], width: usize| bytes[rows.start * width..rows.end * width].to_vec();
        match self {
            Weight::Plain(t) => {
                let bytes = cut(&t.bytes, inputs * t.dtype.size());
                Weight::Plain(Tensor { name, dtype: t.dtype, shape: vec![n, inputs], bytes })
            }
            Weight::Fp8(w) => {
                let [tall, wide] = w.block.map(|b| b.max(1));
                let across = inputs.div_ceil(wide);
                let of_row = |row: usize| w.scales[row / tall * across..][..across].iter().copied();
                let scales = rows.clone().flat_map(of_row).collect();
                Weight::Fp8(Fp8 {
                    name,
                    shape: [n, inputs],
                    codes: cut(&w.codes, inputs),
                    scales,
                    block: [1, wide],
                })
            }
            Weight::Nvfp4(w) => Weight::Nvfp4(Nvfp4 {
                name,
                shape: [n, inputs],
                codes: cut(&w.codes, inputs / 2),
                scales: cut(&w.scales, inputs / NVFP4_BLOCK),
                global: w.global,
            }),
        }
    }

    /// The memory that its values or codes stand in, to read others into.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Weight::Plain(t) => t.bytes,
            Weight::Fp8(w) => w.codes,
            Weight::Nvfp4(w) => w.codes,
        }
    }

    /// The same values as numbers: as stored, or f32 when packed.
    pub fn into_tensor(self) -> Tensor {
        match self {
            Weight::Plain(t) => t,
            packed => {
                let bytes = packed.to_f32().iter().flat_map(|x| x.to_le_bytes()).collect();
                let (name, shape) = (packed.name().to_owned(), packed.shape().to_vec());
                Tensor { name, dtype: Dtype::F32, shape, bytes }
            }
        }
    }
}

impl Fp8 {
    /// Every value, `[N, K]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let values: [f32; 256] = std::array::from_fn(|code| e4m3(code as u8));
        let inputs = self.shape[1].max(1);
        let [tall, wide] = self.block.map(|b| b.max(1));
        let across = inputs.div_ceil(wide);
        let mut out = Vec::with_capacity(self.codes.len());
        for (n, row) in self.codes.chunks_exact(inputs).enumerate() {
            let scales = &self.scales[n / tall * across..][..across];
            for (codes, scale) in row.chunks(wide).zip(scales) {
                out.extend(codes.iter().map(|&code| values[usize::from(code)] * scale));
            }
        }
        out
    }
}

impl Nvfp4 {
    /// Every value, `[N, K]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(2 * self.codes.len());
        for (codes, &scale) in self.codes.chunks_exact(NVFP4_BLOCK / 2).zip(&self.scales) {
            let scale = e4m3(scale);
            let values: [f32; 16] = std::array::from_fn(|code| self.global.apply(e2m1(code as u8) * scale));
            out.extend(codes.iter().flat_map(|b| [values[usize::from(b & 15)], values[usize::from(b >> 4)]]));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_beyond_the_last_whole_one_has_its_own_scale() {
        // [3, 5] in blocks of 2 × 4: two by two scales; the last row and the last column stand alone.
        let codes = vec![0x38; 15]; // 1.0
        let w =
            Fp8 { name: "w".into(), shape: [3, 5], codes, scales: vec![2.0, 3.0, 5.0, 7.0], block: [2, 4] };
        let upper = [2.0, 2.0, 2.0, 2.0, 3.0];
        assert_eq!(w.to_f32(), [upper, upper, [5.0, 5.0, 5.0, 5.0, 7.0]].concat());
        assert_eq!(Weight::Fp8(w).format(), Format::Fp8Block);
    }

    #[test]
    fn the_low_nibble_is_the_even_input_and_global_scales_keep_their_direction() {
        let mut w = Nvfp4 {
            name: "w".into(),
            shape: [1, 16],
            codes: vec![0x91; 8], // low 1 = 0.5, high 9 = −0.5
            scales: vec![0x40],   // 2.0
            global: GlobalScale::Multiplier(4.0),
        };
        assert_eq!(w.to_f32()[..2], [4.0, -4.0]); // 0.5 · 2 · 4
        w.global = GlobalScale::Divisor(4.0);
        assert_eq!(w.to_f32()[..2], [0.25, -0.25]); // 0.5 · 2 / 4
    }

    #[test]
    fn bare_exponents_are_powers_of_two_down_to_the_subnormal_one() {
        assert_eq!([e8m0(127), e8m0(126), e8m0(254)], [1.0, 0.5, 2f32.powi(127)]);
        assert_eq!(e8m0(0), 2f32.powi(-126) / 2.0);
        assert!(e8m0(255).is_nan());
    }
}
