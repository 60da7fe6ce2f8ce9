//! Random weights, made on the device, for measurements.

use super::gpu::Arg;
use super::layout::{BF16, Layout};
use super::units;
use super::weights::Part;
use super::{Cuda, Matrix, experts, int, ptr};
use crate::Error;
use cute_checkpoint::Format;

impl Cuda {
    /// A matrix of so many outputs of each format, one below the other, with variance `1 / inputs`.
    pub(super) fn random(
        &self,
        outputs: &[(usize, Format)],
        inputs: usize,
        seed: u64,
    ) -> Result<Matrix, Error> {
        let first = outputs.first().map_or(BF16, |(_, format)| Layout::of(*format));
        let head: usize = outputs.iter().filter(|(_, f)| Layout::of(*f) == first).map(|(n, _)| n).sum();
        let rest: usize = outputs.iter().map(|(n, _)| n).sum::<usize>() - head;
        let mut matrix = Matrix::alloc(&self.memory, head, inputs, first)?;
        self.fill_random(&matrix.head, inputs, seed)?;
        if rest > 0 {
            let tail = Matrix::alloc(&self.memory, rest, inputs, BF16)?.head;
            self.fill_random(&tail, inputs, seed ^ 1)?;
            matrix.tail = Some(Part { first: head, ..tail });
        }
        Ok(matrix)
    }

    /// `count` matrices of one format, as experts lie.
    pub(super) fn random_alike(
        &self,
        count: usize,
        (outputs, format): (usize, Format),
        inputs: usize,
        seed: u64,
    ) -> Result<Vec<Matrix>, Error> {
        let one = Matrix::of(outputs, inputs, Layout::of(format));
        let all = experts::place(&self.memory, one, count)?;
        for (i, matrix) in all.iter().enumerate() {
            self.fill_random(&matrix.head, inputs, seed.wrapping_add(i as u64))?;
        }
        Ok(all)
    }

    fn fill_random(&self, part: &Part, k: usize, seed: u64) -> Result<(), Error> {
        let grid = [8 * self.multiprocessors as usize, 1, 1];
        let (deviation, kp) = (1.0 / (k as f32).sqrt(), part.layout.kp(k));
        if !part.layout.is_packed() {
            let args = [
                ptr(part.at),
                Arg::U64(part.layout.bytes(part.n, k) as u64 / 2),
                int(part.n),
                int(k),
                int(kp),
                Arg::F32(deviation * 12f32.sqrt()),
                Arg::U32(seed as u32),
            ];
            return self.launch((units::plain("elementwise.cu"), "random_weights"), grid, 256, 0, &args);
        }
        let words = part.n.div_ceil(8) * part.layout.tile_bytes(k) / 4;
        let all = part.layout.bytes(part.n, k) / 4;
        // codes: below 2, of e4m3; any, of e2m1. Scales: one f32; of 1 to 1.875, and a factor.
        let (block, head, codes, scales, scale, factor) = match part.layout {
            Layout::Nvfp4 => (144, 16, u32::MAX, 0x0707_0707, 0x4848_4848, 256.0 * deviation / (2.93 * 1.46)),
            _ => (264, 8, 0xbbff_bbff, 0, (deviation / 0.62).to_bits(), 0.0),
        };
        let args = [
            ptr(part.at),
            Arg::U64(words as u64),
            Arg::U64(all as u64),
            Arg::U32(block),
            Arg::U32(head),
            Arg::U32(codes),
            Arg::U32(scales),
            Arg::U32(scale),
            Arg::F32(factor),
            Arg::U32(seed as u32),
        ];
        self.launch((units::plain("elementwise.cu"), "random_packed"), grid, 256, 0, &args)
    }
}
