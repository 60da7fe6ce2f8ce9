//! Element types and the bytes of one tensor. Bytes of a checkpoint may start anywhere, so elements are
//! always assembled from their bytes, never cast.

use half::{bf16, f16};

/// Element types the engine computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// bfloat16: the upper half of an f32
    BF16,
    /// IEEE half precision
    F16,
    /// IEEE single precision
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::BF16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// The name safetensors gives it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::BF16 => "BF16",
            Dtype::F16 => "F16",
            Dtype::F32 => "F32",
        }
    }

    /// Little-endian elements as f32; exact.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Dtype::BF16 => pairs(bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            Dtype::F16 => pairs(bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::F32 => quads(bytes).map(f32::from_le_bytes).collect(),
        }
    }

    /// This build's type for one of safetensors', if it has one.
    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::BF16 => Some(Dtype::BF16),
            safetensors::Dtype::F16 => Some(Dtype::F16),
            safetensors::Dtype::F32 => Some(Dtype::F32),
            _ => None,
        }
    }
}

/// A tensor, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// name without the checkpoint's prefix, e.g. `layers.3.self_attn.q_proj.weight`
    pub name: String,
    /// element type
    pub dtype: Dtype,
    /// extent of each dimension, outermost first
    pub shape: Vec<usize>,
    /// little-endian elements, row-major
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// True when it has no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements as f32; exact for every dtype.
    pub fn to_f32(&self) -> Vec<f32> {
        self.dtype.widen(&self.bytes)
    }

    /// The same tensor with f32 elements.
    pub fn into_f32(self) -> Tensor {
        if self.dtype == Dtype::F32 {
            return self;
        }
        let bytes = self.to_f32().iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor { dtype: Dtype::F32, bytes, ..self }
    }

    /// The bits of the elements when they are bf16.
    pub fn to_bf16_bits(&self) -> Option<Vec<u16>> {
        (self.dtype == Dtype::BF16).then(|| pairs(&self.bytes).map(u16::from_le_bytes).collect())
    }

    /// The bits of the elements when they are f16.
    pub fn to_f16_bits(&self) -> Option<Vec<u16>> {
        (self.dtype == Dtype::F16).then(|| pairs(&self.bytes).map(u16::from_le_bytes).collect())
    }

    /// How many elements are NaN or infinite.
    pub fn non_finite(&self) -> u64 {
        non_finite(self.dtype, &self.bytes)
    }
}

/// How many elements are NaN or infinite: those with every exponent bit set.
pub(crate) fn non_finite(dtype: Dtype, bytes: &[u8]) -> u64 {
    let halves = |mask: u16| pairs(bytes).filter(|&b| u16::from_le_bytes(b) & mask == mask).count();
    let n = match dtype {
        Dtype::BF16 => halves(0x7f80),
        Dtype::F16 => halves(0x7c00),
        Dtype::F32 => quads(bytes).filter(|&b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000).count(),
    };
    n as u64
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = [u8; 2]> + '_ {
    bytes.as_chunks::<2>().0.iter().copied()
}

fn quads(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.as_chunks::<4>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, bytes: &[u8]) -> Tensor {
        Tensor { name: "t".into(), dtype, shape: vec![bytes.len() / dtype.size()], bytes: bytes.to_vec() }
    }

    #[test]
    fn every_bf16_and_f16_pattern_widens_exactly() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let bf = tensor(Dtype::BF16, &all).to_f32();
        let fp = tensor(Dtype::F16, &all).to_f32();
        for bits in 0..=u16::MAX {
            // A bf16 is the upper half of an f32, NaN payloads aside.
            let want = f32::from_bits(u32::from(bits) << 16);
            let got = bf[usize::from(bits)];
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:04x}");
            assert_eq!(fp[usize::from(bits)].is_finite(), bits & 0x7c00 != 0x7c00, "{bits:04x}");
        }
        assert_eq!(tensor(Dtype::BF16, &all).to_bf16_bits().unwrap(), (0..=u16::MAX).collect::<Vec<_>>());
        assert!(tensor(Dtype::F16, &all).to_bf16_bits().is_none());
    }

    #[test]
    fn nan_and_the_infinities_are_counted_in_every_dtype() {
        let f32s: Vec<u8> = [1.0, f32::NAN, f32::INFINITY, -f32::INFINITY, f32::MAX]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        assert_eq!(tensor(Dtype::F32, &f32s).non_finite(), 3);
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        // bf16: 2 signs × 2^7 mantissas; f16: 2 signs × 2^10 mantissas with all exponent bits set.
        assert_eq!(tensor(Dtype::BF16, &all).non_finite(), 256);
        assert_eq!(tensor(Dtype::F16, &all).non_finite(), 2048);
    }
}
